package probe

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/twtrace/twtrace/internal/event"
)

// notEnded marks the functions that set a timer anew; it stands beside the
// ways of event.Ended in enum ended of bpf/event.h.
const notEnded = event.Endings

// endings are the functions of the kernel that have a TIME_WAIT's timer
// cancelled, and what it means where one is the innermost on the stack.
// Which of them exist, and which are inlined into which, differs from kernel to
// kernel and compiler to compiler: whole families are named, so that one is
// always there (5.10 to 7.2).
var endings = map[string]event.Ended{
	// kernel/time/timer.c: the timer goes to another slot, or CPU.
	"__mod_timer":        notEnded,
	"mod_timer":          notEnded,
	"mod_timer_pending":  notEnded,
	"timer_reduce":       notEnded,
	"migrate_timer_list": notEnded,
	"timers_dead_cpu":    notEnded,
	// its time is over.
	"expire_timers":       event.Expired,
	"__run_timers":        event.Expired,
	"__run_timer_base":    event.Expired,
	"run_timer_base":      event.Expired,
	"run_timer_softirq":   event.Expired,
	"timer_expire_remote": event.Expired,
	// net/ipv4/inet_hashtables.c, net/ipv6/inet6_hashtables.c: a connect
	// takes the port.
	"__inet_check_established":  event.Reused,
	"__inet6_check_established": event.Reused,
	"__inet_hash_connect":       event.Reused,
	"inet_hash_connect":         event.Reused,
	"inet6_hash_connect":        event.Reused,
	// net/ipv4/tcp_minisocks.c: a RST, unless tcp_rfc1337 is set.
	"tcp_timewait_state_process": event.TimeWaitReset,
	// net/ipv4/tcp_ipv4.c, net/ipv6/tcp_ipv6.c: TCP_TW_SYN.
	"tcp_v4_rcv": event.SynAccepted,
	"tcp_v6_rcv": event.SynAccepted,
	// The network namespace goes; SOCK_DESTROY, as by ss -K.
	"inet_twsk_purge": event.Killed,
	"tcp_twsk_purge":  event.Killed,
	"tcp_abort":       event.Killed,
}

// symbols are what the programs must know of this kernel's functions.
type symbols struct {
	twTimerHandler uint64
	callers        [maxCallers]bpfCaller
	tcpRcv         [maxTCPRcv]bpfRange
}

// The sizes of the arrays in bpf/maps.h.
const (
	maxCallers = 32
	maxTCPRcv  = 4
)

// readSymbols reads the kernel's symbol table, some 10 MB of text.
func readSymbols(path string) (symbols, error) {
	file, err := os.Open(path)
	if err != nil {
		return symbols{}, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	defer file.Close()
	return parseSymbols(file)
}

// parseSymbols parses /proc/kallsyms: a line a symbol, in the order of their
// addresses, then those of modules. A function ends where the next symbol
// begins.
func parseSymbols(r io.Reader) (symbols, error) {
	var s symbols
	callers, rcv := s.callers[:0], s.tcpRcv[:0]
	endCaller, endRcv := 0, 0 // of those before, the end is known
	var last uint64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, err := parseSymbol(lines.Bytes())
		if err != nil {
			return symbols{}, fmt.Errorf("read the kernel's symbols: %w", err)
		}
		if line.ofModule {
			break
		}
		address := line.address
		if address == 0 {
			continue // hidden, or of no function: per-CPU data
		}
		if address != last {
			for ; endCaller < len(callers); endCaller++ {
				callers[endCaller].End = address
			}
			for ; endRcv < len(rcv); endRcv++ {
				rcv[endRcv].End = address
			}
			last = address
		}
		means, ok := endings[string(line.name)]
		switch {
		case string(line.name) == "tw_timer_handler":
			s.twTimerHandler = address
		case ok && len(callers) < maxCallers:
			callers = append(callers, bpfCaller{Start: address, Means: uint64(means)})
			if means == event.SynAccepted && len(rcv) < maxTCPRcv {
				rcv = append(rcv, bpfRange{Start: address})
			}
		}
	}
	if err := lines.Err(); err != nil {
		return symbols{}, fmt.Errorf("read the kernel's symbols: %w", err)
	}
	if s.twTimerHandler == 0 {
		return symbols{}, errors.New("the kernel hides its addresses: needs CAP_SYSLOG, and kernel.kptr_restrict below 2")
	}
	return s, nil
}

// A symbol is a line of /proc/kallsyms.
type symbol struct {
	address    uint64
	name       []byte // without what the compiler added: tcp_v4_rcv.cold, tcp_abort.isra.0
	isFunction bool
	ofModule   bool
}

// parseSymbol parses "ffffffff82006070 t tw_timer_handler", with "\t[module]" where
// it is of one. The name is a part of the line.
func parseSymbol(line []byte) (symbol, error) {
	digits, rest, _ := bytes.Cut(line, []byte{' '})
	kind, name, _ := bytes.Cut(rest, []byte{' '})
	address, err := strconv.ParseUint(string(digits), 16, 64)
	if err != nil || len(kind) != 1 {
		return symbol{}, fmt.Errorf("%q is none", line)
	}
	name, _, ofModule := bytes.Cut(name, []byte{'\t'})
	name, _, _ = bytes.Cut(name, []byte{'.'})
	isFunction := strings.IndexByte("tTwW", kind[0]) >= 0
	return symbol{address, name, isFunction, ofModule}, nil
}

// functions are the kernel's own, some 100,000, without a pointer for each.
type functions struct {
	starts []uint64 // in order
	names  []byte
	ends   []uint32 // of the names
}

// readFunctions reads them from /proc/kallsyms; none where they are hidden.
func readFunctions(path string) functions {
	file, err := os.Open(path)
	if err != nil {
		return functions{}
	}
	defer file.Close()
	const expected = 1 << 17 // what is not used takes no memory
	return parseFunctions(file, expected)
}

// parseFunctions makes room for as many functions as are expected.
func parseFunctions(r io.Reader, expected int) functions {
	f := functions{
		starts: make([]uint64, 0, expected),
		names:  make([]byte, 0, 24*expected),
		ends:   make([]uint32, 0, expected),
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, err := parseSymbol(lines.Bytes())
		if err != nil || line.ofModule {
			break
		}
		if line.isFunction && line.address != 0 {
			f.add(line.address, line.name)
		}
	}
	return f
}

// add takes the first name of an address, and those that come in order.
func (f *functions) add(address uint64, name []byte) {
	if n := len(f.starts); n > 0 && address <= f.starts[n-1] {
		return
	}
	f.starts = append(f.starts, address)
	f.names = append(f.names, name...)
	f.ends = append(f.ends, uint32(len(f.names)))
}

// at returns the function that an address lies in, "" where it is none of these.
func (f functions) at(address uint64) string {
	n, found := slices.BinarySearch(f.starts, address)
	if !found {
		n--
	}
	if n < 0 || n == len(f.starts)-1 && !found {
		return ""
	}
	var begin uint32
	if n > 0 {
		begin = f.ends[n-1]
	}
	return string(f.names[begin:f.ends[n]])
}

// A locator names functions of the kernel by addresses within them. The kernel's own
// are read as soon as it traces, side by side with that: it takes some 50 ms, in which
// a busy machine fills the ring. Modules come and go: theirs are looked up when one is
// met, and remembered.
type locator struct {
	path      string
	functions func() functions
	ofModules map[uint64]string
}

func newLocator(path string) *locator {
	return &locator{
		path: path, ofModules: make(map[uint64]string),
		functions: sync.OnceValue(func() functions { return readFunctions(path) }),
	}
}

// maxLocations bounds the places in modules that are remembered; past it all are
// forgotten.
const maxLocations = 1024

// name returns the function that an address lies in, "" where the kernel doesn't
// tell.
func (l *locator) name(address uint64) string {
	if name := l.functions().at(address); name != "" {
		return name
	}
	name, ok := l.ofModules[address]
	if ok {
		return name
	}
	if file, err := os.Open(l.path); err == nil {
		name = moduleFunction(file, address)
		file.Close()
	}
	if len(l.ofModules) >= maxLocations {
		clear(l.ofModules)
	}
	l.ofModules[address] = name
	return name
}

// moduleFunction returns the last function of a module that begins at or before the
// address, in /proc/kallsyms, where they stand in no order.
func moduleFunction(r io.Reader, address uint64) (name string) {
	var begin uint64
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line, err := parseSymbol(lines.Bytes())
		if err == nil && line.ofModule && line.isFunction && line.address > begin && line.address <= address {
			begin, name = line.address, string(line.name)
		}
	}
	return name
}
