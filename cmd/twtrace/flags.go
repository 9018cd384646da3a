package main

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
)

// peerFlags narrow to some destinations, and leave out no holder of a local port
// that others compete for.
type peerFlags struct {
	peerPorts  string
	addresses  []string
	ipv4, ipv6 bool
	netns      string
}

func (f *peerFlags) register(flags *pflag.FlagSet) {
	flags.StringVarP(&f.peerPorts, "remote-port", "D", "", "only these remote `ports`")
	flags.StringArrayVar(&f.addresses, "addr", nil, "only connections with an end in this `network`: 10.0.0.0/8, 2001:db8::1")
	flags.BoolVarP(&f.ipv4, "ipv4", "4", false, "only IPv4, on IPv6 sockets too")
	flags.BoolVarP(&f.ipv6, "ipv6", "6", false, "only IPv6")
}

// filter is what the flags mean, but for the network namespace.
func (f *peerFlags) filter() (filter probe.Filter, err error) {
	if filter.PeerPorts, err = parsePorts(f.peerPorts); err != nil {
		return filter, fmt.Errorf("remote port %w", err)
	}
	return filter, f.parseNetworks(&filter)
}

// lineFlags narrow to some lines.
type lineFlags struct {
	events     []string
	failures   bool
	pid        uint32
	comm       string
	localPorts string
	container  string
	pod        string
	namespace  string
}

func (f *lineFlags) register(flags *pflag.FlagSet) {
	flags.StringArrayVar(&f.events, "events", nil, "only these `kinds` of events: "+strings.Join(socketEvents, ", "))
	flags.BoolVar(&f.failures, "failures", false, "only connects that failed")
	flags.Uint32VarP(&f.pid, "pid", "p", 0, "only sockets of this `process`")
	flags.StringVar(&f.comm, "comm", "", "only sockets of processes with this `name`, as ps -o comm shows it")
	flags.StringVar(&f.container, "container", "", "only sockets of processes in this `container`: its name, or its id or the first of its digits")
	flags.StringVar(&f.pod, "pod", "", "only sockets of processes in this `pod`: its name, NAMESPACE/NAME, or its uid")
	flags.StringVar(&f.namespace, "namespace", "", "only sockets of processes in pods of this Kubernetes `namespace`")
	flags.StringVarP(&f.localPorts, "local-port", "L", "", "only these local `ports`: 80,443,8000-8099; a port that is not chosen yet is in no list")
}

// lineOptions are the flags, understood; the filter takes the rest.
type lineOptions struct {
	kinds    map[record.Kind]bool // nil: all
	failures bool
}

func (f *lineFlags) options(filter *probe.Filter) (o lineOptions, err error) {
	if filter.LocalPorts, err = parsePorts(f.localPorts); err != nil {
		return o, fmt.Errorf("local port %w", err)
	}
	// The kernel keeps no more of a name.
	const longest = 15
	filter.PID, filter.Comm, o.failures = f.pid, f.comm[:min(len(f.comm), longest)], f.failures
	filter.Container, filter.Pod, filter.Namespace = f.container, f.pod, f.namespace
	names := items(f.events)
	if len(names) == 0 {
		return o, nil
	}
	o.kinds = make(map[record.Kind]bool)
	for _, name := range names {
		kind, ok := record.ParseKind(name)
		if !ok || !kind.AboutSocket() {
			return o, fmt.Errorf("events %q: must be among %s", name, strings.Join(socketEvents, ", "))
		}
		o.kinds[kind] = true
	}
	return o, nil
}

// wants reports whether a line about a socket is of a kind that is wanted.
func (o *lineOptions) wants(r *record.Record) bool {
	if o.kinds != nil && !o.kinds[r.Kind] {
		return false
	}
	return !o.failures || r.Kind == record.Connect && r.Connect.Outcome != record.Established
}

// traceFlags say what to trace and how, whatever becomes of it.
type traceFlags struct {
	peerFlags
	readyFile string
	noColor   bool
	ringSize  string
	tier      string
	btf       string
}

func (f *traceFlags) register(flags *pflag.FlagSet) {
	f.peerFlags.register(flags)
	flags.StringVar(&f.netns, "netns", "", "only this network `namespace`: its inode, its name (ip netns), a path, or pid:PID")
	flags.StringVar(&f.readyFile, "ready-file", "", "create this `file` when tracing has begun")
	flags.BoolVar(&f.noColor, "no-color", false, "no colours, not even on a terminal (so does NO_COLOR)")
	flags.StringVar(&f.ringSize, "ring-size", "8M", "`bytes` of kernel memory for events that wait to be read: a power of two")
	flags.StringVar(&f.tier, "probe-tier", "auto", "force a choice of hooks: `"+strings.Join(probe.TierNames, "|")+"`")
	flags.StringVar(&f.btf, "btf", "", "read the kernel's types from this `file`, where the kernel carries none")
}

// config is what the flags mean.
func (f *traceFlags) config() (config probe.Config, err error) {
	if config.Filter, err = f.filter(); err != nil {
		return config, err
	}
	for _, parse := range []func(*probe.Config) error{f.parseNetNS, f.parseProbe} {
		if err := parse(&config); err != nil {
			return config, err
		}
	}
	return config, nil
}

// ready tells whoever waits for it that tracing has begun.
func (f *traceFlags) ready() error {
	if f.readyFile == "" {
		return nil
	}
	if err := os.WriteFile(f.readyFile, nil, 0o600); err != nil {
		return fmt.Errorf("write the ready file: %w", err)
	}
	return nil
}

// colored reports whether what goes to this file may have colours.
func (f *traceFlags) colored(file *os.File) bool {
	return term.IsTerminal(int(file.Fd())) && !f.noColor && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
}

// tailFlags are the tail's flags as the user gave them.
type tailFlags struct {
	traceFlags
	lineFlags
	output     string
	log        string
	logMaxSize string
	logMaxAge  time.Duration
	logKeep    uint
	duration   time.Duration
	count      uint64
	timestamps bool
}

func (f *tailFlags) register(flags *pflag.FlagSet) {
	f.traceFlags.register(flags)
	f.lineFlags.register(flags)
	flags.StringVarP(&f.output, "output", "o", "text", "what to write to stdout: `text|json`")
	f.registerLog(flags)
	flags.DurationVar(&f.duration, "duration", 0, "stop after this `time`: 30s, 10m")
	flags.Uint64Var(&f.count, "count", 0, "stop after this `number` of lines")
	flags.BoolVarP(&f.timestamps, "timestamps", "T", false, "begin each line with the local time")
}

// registerLog registers the flags of the log.
func (f *tailFlags) registerLog(flags *pflag.FlagSet) {
	flags.StringVar(&f.log, "log", "", "write the event log, JSON lines, to this `file` as well; compressed where it ends in .zst; SIGHUP opens it anew")
	flags.StringVar(&f.logMaxSize, "log-max-size", "", "go on in a new file when the log has these `bytes`: 100M, 1G (K, M and G are powers of 1024)")
	flags.DurationVar(&f.logMaxAge, "log-max-age", 0, "go on in a new file when the log is older than this `time`: 1h, 24h")
	flags.UintVar(&f.logKeep, "log-keep", 0, "of the old files that these two make, keep this `number` (default all)")
}

// socketEvents are the kinds of lines that --events chooses from.
var socketEvents = func() (names []string) {
	for kind := record.Meta; kind < record.Kinds; kind++ {
		if kind.AboutSocket() {
			names = append(names, kind.String())
		}
	}
	return names
}()

// completions are the values that the shell offers for a flag.
var completions = map[string][]string{
	"output":     {"text", "json"},
	"events":     socketEvents,
	"probe-tier": probe.TierNames,
}

// tailOptions are the flags, understood.
type tailOptions struct {
	lineOptions
	probe    probe.Config
	json     bool
	rotation rotation
}

func (f *tailFlags) options(descendants bool) (o tailOptions, err error) {
	if o.probe, err = f.config(); err != nil {
		return o, usageError{err}
	}
	if o.lineOptions, err = f.lineFlags.options(&o.probe.Filter); err != nil {
		return o, usageError{err}
	}
	for _, parse := range []func(*tailOptions) error{f.parseOutput, f.parseRotation} {
		if err := parse(&o); err != nil {
			return o, usageError{err}
		}
	}
	o.probe.Filter.Descendants = descendants
	o.probe.Filter.ConnectionsOnly = f.failures || o.kinds != nil && !o.kinds[record.State]
	return o, nil
}

func (f *tailFlags) parseOutput(o *tailOptions) error {
	switch f.output {
	case "text":
	case "json":
		o.json = true
	default:
		return fmt.Errorf("output %q: must be text or json", f.output)
	}
	if f.duration < 0 {
		return fmt.Errorf("duration %s: must not be negative", f.duration)
	}
	return nil
}

func (f *tailFlags) parseRotation(o *tailOptions) error {
	o.rotation = rotation{maxAge: f.logMaxAge, keep: int(min(f.logKeep, math.MaxInt))}
	if f.logMaxSize != "" {
		size, ok := parseSize(f.logMaxSize)
		if !ok || size < minLogSize {
			return fmt.Errorf("log size %q: must be at least 64K, such as 100M or 1G", f.logMaxSize)
		}
		o.rotation.maxSize = size
	}
	if f.logMaxAge != 0 && f.logMaxAge < time.Second {
		return fmt.Errorf("log age %s: must be at least 1s", f.logMaxAge)
	}
	switch {
	case f.log == "" && o.rotation != rotation{}:
		return errors.New("--log-max-size, --log-max-age and --log-keep are about a log: add --log FILE")
	case f.logKeep > 0 && !o.rotation.rotates():
		return errors.New("--log-keep is about old logs: add --log-max-size or --log-max-age")
	}
	return nil
}

// parsePorts reads a list of ports and ranges, "80,8000-8099".
func parsePorts(list string) (*probe.Ports, error) {
	if list == "" {
		return nil, nil
	}
	var ports probe.Ports
	for _, item := range strings.Split(list, ",") {
		low, high, isRange := strings.Cut(item, "-")
		if !isRange {
			high = low
		}
		first, err := strconv.ParseUint(low, 10, 16)
		if err != nil || first == 0 {
			return nil, fmt.Errorf("%q: must be 1 to 65535", item)
		}
		last, err := strconv.ParseUint(high, 10, 16)
		if err != nil || last < first {
			return nil, fmt.Errorf("%q: must be 1 to 65535, the lower one first", item)
		}
		for port := first; port <= last; port++ {
			ports.Add(uint16(port))
		}
	}
	return &ports, nil
}

func (f *peerFlags) parseNetworks(filter *probe.Filter) error {
	if f.ipv4 && f.ipv6 {
		return fmt.Errorf("-4 and -6 exclude each other: leave both out to see both")
	}
	if f.ipv4 {
		filter.Version = 4
	}
	if f.ipv6 {
		filter.Version = 6
	}
	for _, text := range items(f.addresses) {
		network, err := netip.ParsePrefix(text)
		if err != nil {
			address, err := netip.ParseAddr(text)
			if err != nil {
				return fmt.Errorf("address %q: must be an address or a network such as 10.0.0.0/8", text)
			}
			if address.Zone() != "" {
				return fmt.Errorf("address %q: no zone can be traced: leave %%%s out", text, address.Zone())
			}
			network = netip.PrefixFrom(address, address.BitLen())
		}
		if mapped := network.Addr(); mapped.Is4In6() && network.Bits() >= 96 {
			network = netip.PrefixFrom(mapped.Unmap(), network.Bits()-96)
		}
		filter.Networks = append(filter.Networks, network.Masked())
	}
	return nil
}

// items are those of lists with commas: a flag can be given more than once.
func items(lists []string) []string {
	if all := strings.Join(lists, ","); all != "" {
		return strings.Split(all, ",")
	}
	return nil
}

func (f *traceFlags) parseNetNS(config *probe.Config) (err error) {
	if f.netns == "" {
		return nil
	}
	config.Filter.NetNS, err = owner.FindNetNS("/proc", f.netns)
	return err
}

func (f *traceFlags) parseProbe(config *probe.Config) (err error) {
	config.BTF = f.btf
	if config.Tier, err = probe.ParseTier(f.tier); err != nil {
		return err
	}
	config.RingSize, err = parseRingSize(f.ringSize)
	return err
}

// parseRingSize reads the size of the ring buffer, which the kernel wants to be a power
// of two.
func parseRingSize(text string) (int, error) {
	size, ok := parseSize(text)
	if !ok || bits.OnesCount64(uint64(size)) != 1 || size < int64(os.Getpagesize()) || size > 1<<30 {
		return 0, fmt.Errorf("ring size %q: must be a power of two from %d to 1024M", text, os.Getpagesize())
	}
	return int(size), nil
}

// parseSize reads a number of bytes, with K, M or G for its multiples by 1024.
func parseSize(text string) (size int64, ok bool) {
	number := strings.TrimRight(text, "KMG")
	shift, ok := map[string]int{"": 0, "K": 10, "M": 20, "G": 30}[text[len(number):]]
	n, err := strconv.ParseUint(number, 10, 63)
	if !ok || err != nil || n > math.MaxInt64>>shift {
		return 0, false
	}
	return int64(n) << shift, true
}
