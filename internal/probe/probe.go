// Package probe asks the kernel. It finds out what this kernel offers and
// permits, loads and attaches the BPF programs, and reads and decodes what they
// send. It is the only importer of cilium/ebpf.
package probe

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// Config says what to trace, and how.
type Config struct {
	// Tier forces a choice of hooks; Auto takes the best that this kernel
	// permits.
	Tier Tier
	// BTF is a file with the kernel's types, for a kernel that does not
	// carry them; "" for the kernel's own.
	BTF string
	// RingSize is the ring buffer's size in bytes: a power of two, at
	// least a page. 0 is 8 MiB.
	RingSize int
	Filter   Filter
	Cgroups  Cgroups
}

// ringSize is the size that is meant, in bytes.
func (c Config) ringSize() uint32 {
	if c.RingSize == 0 {
		return 8 << 20
	}
	return uint32(c.RingSize)
}

// Cgroups says which hierarchy of control groups the ids in events are of: the
// zero Cgroups is version 2.
type Cgroups struct {
	// Hierarchy is the number of one of version 1, as in /proc/PID/cgroup, and
	// Controller one of its controllers: "memory".
	Hierarchy  uint32
	Controller string
}

// Tracer is the loaded programs and their ring buffer. Its methods are not
// safe for concurrent use, except Lost.
type Tracer struct {
	spec    *ebpf.CollectionSpec
	types   *btf.Spec
	cache   *btf.Cache // of the kernel's types; reading them takes longest
	kernel  bpfKernel
	symbols symbols
	// noSymbols is why there are none.
	noSymbols error
	tsOffsets TSOffsetMode
	maps      map[string]*ebpf.Map
	hooks     []Hook
	// attached are the programs at work, by name.
	attached map[string]attachment
	// loading are those that are being loaded, or were, and are not attached.
	loading map[string]chan loaded
	ring    *ringbuf.Reader
	filled  *bell
	empty   bool // the ring was, when it was looked at last
	record  ringbuf.Record
	decode  decoder
}

// attachment is a program and what holds it at its hook.
type attachment struct {
	program *ebpf.Program
	link    io.Closer // nil once detached
}

// loaded is what came of loading a program: nothing where it was not tried.
type loaded struct {
	program *ebpf.Program
	err     error
}

// Open loads and attaches. A hook that this kernel lacks or refuses is left
// out, and Hooks tells so; only without the state changes there is an error.
// Whatever Open attached the kernel takes down when the process ends, however
// it ends.
func Open(config Config) (*Tracer, error) {
	release, err := readRelease()
	if err != nil {
		return nil, err
	}
	// Reading the symbols takes as long as all else until the attaching. What
	// the timestamps are tried by must be over until then, or it is traced.
	t := &Tracer{attached: make(map[string]attachment)}
	found := make(chan struct{})
	go func() {
		defer close(found)
		t.tsOffsets, _ = TSOffsets() // else they are not known
		t.symbols, t.noSymbols = readSymbols("/proc/kallsyms")
	}()
	cache := btf.NewCache()
	types, err := kernelTypes(cache, config.BTF)
	if err != nil {
		return nil, err
	}
	spec, err := loadSpec(release)
	if err != nil {
		return nil, err
	}
	// Needed before 5.11, which charges maps to RLIMIT_MEMLOCK. Where it is
	// refused the load says so in plainer words.
	_ = rlimit.RemoveMemlock()

	t.spec, t.types, t.cache = spec, types, cache
	created := make(chan error, 1)
	go func() { created <- t.createMaps(config) }()
	t.decode.resetReasons = reasons(types, "sk_rst_reason", "SK_RST_REASON_")
	t.decode.dropReasons = reasons(types, "skb_drop_reason", "SKB_DROP_REASON_")
	where := newLocator("/proc/kallsyms")
	t.decode.locate = where.name
	t.kernel = facts(cache, types)
	<-found
	if err = <-created; err == nil {
		err = t.open(config)
	}
	if err != nil {
		t.Close()
		return nil, err
	}
	go where.functions()
	return t, nil
}

// loadSpec reads the BPF programs for this kernel. Where tasks can be preempted in
// them, nested_* stands there more than once: the kernel looks at each by itself,
// and leaves out only those that somebody is in.
func loadSpec(release release) (*ebpf.CollectionSpec, error) {
	spec, err := loadBpf()
	if err != nil {
		return nil, fmt.Errorf("read the BPF object: %w", err)
	}
	if release.allocatesEntries() {
		// A hundred megabytes, and most of the time that it takes to start.
		for _, table := range spec.Maps {
			if table.Type == ebpf.Hash {
				table.Flags |= unix.BPF_F_NO_PREALLOC
			}
		}
	}
	if !release.preemptsTracepoints() {
		return spec, nil
	}
	for _, via := range []string{"btf", "raw"} {
		for _, name := range []string{"nested2_", "nested3_", "nested4_"} {
			spec.Programs[name+via] = spec.Programs["nested_"+via].Copy()
		}
	}
	return spec, nil
}

func (t *Tracer) open(config Config) error {
	if err := t.configure(config); err != nil {
		return err
	}
	ring, err := ringbuf.NewReader(t.maps["events"])
	if err != nil {
		return fmt.Errorf("open the ring buffer: %w", err)
	}
	t.ring = ring
	if t.filled, err = newBell(t.maps["events"], t.maps["resting"]); err != nil {
		return fmt.Errorf("open the ring buffer: %w", err)
	}
	// The ring's reader never waits itself: it would block a thread.
	t.ring.SetDeadline(time.Unix(0, 1))
	t.decode.syncClock()
	return t.attach(config)
}

// createMaps makes the maps once, but for the constants; every program is then
// loaded on its own, so that one that is refused takes no other with it.
func (t *Tracer) createMaps(config Config) error {
	events := t.spec.Maps["events"]
	events.MaxEntries = config.ringSize()
	events.Value = nil // else made twice: the kernel refuses a ring that has a type
	// A table takes time to make, also where nothing is put there.
	if !config.Filter.ByContainer() {
		t.spec.Maps["unwanted"].MaxEntries = 1
	}
	if !config.Filter.Descendants {
		t.spec.Maps["traced"].MaxEntries = 1
	}
	spec := t.part()
	for name, table := range t.spec.Maps {
		spec.Maps[name] = table.Copy()
	}
	delete(spec.Maps, constants)
	delete(spec.Maps, "holders") // made where it is used, as large as it must be
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("create the maps: %w", explain(err))
	}
	t.maps = collection.Maps
	collection.Maps = nil
	return t.fillNetworks(config.Filter.Networks)
}

// constants is the map of what the programs are loaded with.
const constants = ".rodata"

// createConstants makes that map.
func (t *Tracer) createConstants() error {
	spec := t.part()
	spec.Maps[constants] = t.spec.Maps[constants].Copy()
	spec.Variables = t.spec.Variables // become its contents
	collection, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("create the maps: %w", explain(err))
	}
	defer collection.Close()
	t.maps[constants] = collection.DetachMap(constants)
	return nil
}

// Hooks lists every hook, attached or not, in a fixed order.
func (t *Tracer) Hooks() []Hook { return t.hooks }

// TSOffsets tells how this kernel chooses timestamp offsets, "" where Open could
// not find out.
func (t *Tracer) TSOffsets() TSOffsetMode { return t.tsOffsets }

// Read waits for the next event, and decodes it into e, all of it. Where none
// comes for a while the error is os.ErrDeadlineExceeded, and the ring was
// empty: a good moment for chores. An event that can't be decoded gives
// ErrUndecodable.
func (t *Tracer) Read(e *event.Event) error {
	if t.empty {
		t.filled.wait(t.pending)
		t.decode.syncClock()
	}
	if t.empty = !t.pending(); t.empty {
		return os.ErrDeadlineExceeded
	}
	err := t.ring.ReadInto(&t.record)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	if err != nil {
		return fmt.Errorf("read the ring buffer: %w", err)
	}
	return t.decode.event(e, t.record.RawSample)
}

// pending reports whether something is in the ring.
func (t *Tracer) pending() bool { return t.ring.AvailableBytes() > 0 }

// Loss is how many events nobody can read.
type Loss struct {
	// Events are those that the ring buffer had no room for, by what they
	// would have told. Where it fills, it takes first no more changes of state,
	// then none of what shows later as well (room_for in bpf/emit.h).
	Events [event.TellsKinds]uint64
	// Missed are the state changes, resets and SYN-ACKs sent again that the
	// kernel ran no program for, since the same program was at work on that CPU
	// already. They include those that the filter would have left out.
	Missed uint64
}

// Total is how many there are in all.
func (l *Loss) Total() uint64 {
	total := l.Missed
	for _, n := range l.Events {
		total += n
	}
	return total
}

// Lost counts the events since Open that nobody can read, exactly.
func (t *Tracer) Lost() (loss Loss, err error) {
	if loss.Missed, err = t.missed(); err != nil {
		return loss, err
	}
	for tells := range loss.Events {
		if loss.Events[tells], err = sum(t.maps["lost"], uint32(tells), func(n uint64) uint64 { return n }); err != nil {
			return loss, fmt.Errorf("read what the ring buffer had no room for: %w", err)
		}
	}
	return loss, nil
}

// missed counts the runs that the kernel left out and nested_* did not take.
func (t *Tracer) missed() (uint64, error) {
	var missed uint64
	for name, a := range t.attached {
		stats, err := a.program.Stats()
		if err != nil {
			return 0, fmt.Errorf("read what %s missed: %w", name, err)
		}
		if makesEvents(name) {
			missed += stats.RecursionMisses
		}
	}
	taken, err := sum(t.maps["running"], 0, func(r bpfRunning) uint64 { return r.Taken })
	if err != nil {
		return 0, fmt.Errorf("read what was taken over: %w", err)
	}
	return missed - min(taken, missed), nil
}

// sum adds up a per-CPU array's entry over the CPUs.
func sum[T any](array *ebpf.Map, key uint32, count func(T) uint64) (uint64, error) {
	var perCPU []T
	if err := array.Lookup(key, &perCPU); err != nil {
		return 0, err
	}
	var total uint64
	for _, value := range perCPU {
		total += count(value)
	}
	return total, nil
}

// makesEvents reports whether every run of a program is an event. What nested_*
// misses state_* has missed too.
func makesEvents(program string) bool {
	return strings.HasPrefix(program, "state_") || strings.HasPrefix(program, "synack_") || strings.HasPrefix(program, "rst_")
}

// Untracked counts the sockets that go without an owner since the table of
// sockets was full.
func (t *Tracer) Untracked() (uint64, error) {
	n, err := sum(t.maps["untracked"], 0, func(n uint64) uint64 { return n })
	if err != nil {
		return 0, fmt.Errorf("read the count of untracked sockets: %w", err)
	}
	return n, nil
}

// Detach takes the hooks down. What is in the ring can still be read.
func (t *Tracer) Detach() error {
	var errs []error
	for name, a := range t.attached {
		if a.link != nil {
			errs = append(errs, a.link.Close())
			a.link = nil
			t.attached[name] = a
		}
	}
	if t.filled != nil {
		t.filled.stir() // What is under way is there in a moment.
	}
	return errors.Join(errs...)
}

// Close takes everything down.
func (t *Tracer) Close() error {
	errs := []error{t.Detach()}
	for _, a := range t.attached {
		errs = append(errs, a.program.Close())
	}
	if t.ring != nil {
		errs = append(errs, t.ring.Close())
	}
	if t.filled != nil {
		errs = append(errs, t.filled.Close())
	}
	for _, m := range t.maps {
		errs = append(errs, m.Close())
	}
	return errors.Join(errs...)
}

// part returns a collection of nothing, to take in what is to be loaded of all: a copy
// of all takes longer than to load a program.
func (t *Tracer) part() *ebpf.CollectionSpec {
	return &ebpf.CollectionSpec{
		Maps: make(map[string]*ebpf.MapSpec), Programs: make(map[string]*ebpf.ProgramSpec),
		Types: t.spec.Types, ByteOrder: t.spec.ByteOrder,
	}
}

// load loads one program, with the maps that were made and with more.
func (t *Tracer) load(name string, more map[string]*ebpf.Map) (*ebpf.Program, error) {
	spec := t.part()
	spec.Programs[name] = t.spec.Programs[name].Copy()
	replacements := maps.Clone(t.maps)
	maps.Copy(replacements, more)
	used := spec.Programs[name].Instructions.ReferenceOffsets()
	for m := range replacements {
		if _, ok := used[m]; ok {
			spec.Maps[m] = t.spec.Maps[m]
		} else {
			delete(replacements, m)
		}
	}
	collection, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{
		MapReplacements: replacements,
		Programs:        ebpf.ProgramOptions{KernelTypes: t.types},
		Cache:           t.cache,
	})
	if err != nil {
		return nil, err
	}
	defer collection.Close()
	return collection.DetachProgram(name), nil
}

// prepare begins to load the programs of ways, as many ways at a time as there are
// processors. Where the first of a way is refused the others are not asked for.
func (t *Tracer) prepare(ways [][]string) {
	t.loading = make(map[string]chan loaded)
	next := make(chan []string, len(ways))
	for _, way := range ways {
		for _, name := range way {
			t.loading[name] = make(chan loaded, 1)
		}
		next <- way
	}
	close(next)
	results := maps.Clone(t.loading)
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for way := range next {
				refused := false
				for i, name := range way {
					var l loaded
					if !refused {
						l.program, l.err = t.load(name, nil)
						refused = i == 0 && l.err != nil
					}
					results[name] <- l
				}
			}
		}()
	}
}

// take returns a program that is being loaded, or loads it.
func (t *Tracer) take(name string) (*ebpf.Program, error) {
	if loading, ok := t.loading[name]; ok {
		delete(t.loading, name)
		l := <-loading
		return l.program, l.err
	}
	return t.load(name, nil)
}

// discard closes the programs that nobody has taken.
func (t *Tracer) discard() error {
	var errs []error
	for name, loading := range t.loading {
		if l := <-loading; l.program != nil {
			errs = append(errs, l.program.Close())
		}
		delete(t.loading, name)
	}
	return errors.Join(errs...)
}

// attachOne attaches a program.
func (t *Tracer) attachOne(name string) error {
	if t.noSymbols != nil && slices.Contains(slices.Concat(timeWaits.ways...), name) {
		return t.noSymbols
	}
	program, err := t.take(name)
	if err != nil {
		return err
	}
	link, err := attachProgram(t.spec.Programs[name], program)
	if err != nil {
		program.Close()
		return err
	}
	t.attached[name] = attachment{program, link}
	return nil
}

func attachProgram(spec *ebpf.ProgramSpec, program *ebpf.Program) (io.Closer, error) {
	switch via := viaOf(spec); via {
	case "tp_btf", "fentry", "fexit":
		return link.AttachTracing(link.TracingOptions{Program: program})
	case "raw_tp":
		return link.AttachRawTracepoint(link.RawTracepointOptions{Name: spec.AttachTo, Program: program})
	case "kprobe", "kretprobe":
		return attachKprobe(via, spec.AttachTo, program)
	case "tracepoint":
		return attachTracepoint(spec.AttachTo, program)
	default:
		return nil, fmt.Errorf("attach %s: no way to attach %s", spec.Name, via)
	}
}

func attachKprobe(via, symbol string, program *ebpf.Program) (io.Closer, error) {
	// Without this file the library falls back to tracefs, in vain, and
	// says only that.
	if _, err := os.Stat("/sys/bus/event_source/devices/kprobe"); errors.Is(err, os.ErrNotExist) {
		return nil, errors.New("this kernel has no kprobes")
	}
	if via == "kprobe" {
		return link.Kprobe(symbol, program, nil)
	}
	return link.Kretprobe(symbol, program, nil)
}
