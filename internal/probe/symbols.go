package probe

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strconv"
	"time"

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
		// "ffffffff82006070 t tw_timer_handler"
		line := lines.Bytes()
		digits, rest, _ := bytes.Cut(line, []byte{' '})
		kind, name, _ := bytes.Cut(rest, []byte{' '})
		address, err := strconv.ParseUint(string(digits), 16, 64)
		if err != nil || len(kind) != 1 {
			return symbols{}, fmt.Errorf("read the kernel's symbols: %q is none", line)
		}
		if bytes.IndexByte(name, '[') >= 0 {
			break // of a module
		}
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
		// What the compiler made of a function has a suffix:
		// tcp_v4_rcv.cold, tcp_abort.isra.0.
		name, _, _ = bytes.Cut(name, []byte{'.'})
		means, ok := endings[string(name)]
		switch {
		case string(name) == "tw_timer_handler":
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

// A locator names functions of the kernel by addresses within them. There are few
// places that drop packets, and many functions: it keeps the names that it found, and
// the whole table only for a while.
type locator struct {
	path  string
	known map[uint64]string
	table *symbolTable
	used  time.Time
}

const (
	// maxLocations bounds the places that are remembered; past it all are
	// forgotten.
	maxLocations = 1024
	// tableAge is how long the table is kept after it was used.
	tableAge = time.Minute
)

func newLocator(path string) *locator {
	return &locator{path: path, known: make(map[uint64]string)}
}

// name returns the function that an address lies in, "" where the kernel doesn't
// tell.
func (l *locator) name(address uint64) string {
	name, ok := l.known[address]
	if ok {
		return name
	}
	if l.table == nil {
		if file, err := os.Open(l.path); err == nil {
			l.table = readTable(file)
			file.Close()
		}
	}
	if l.table != nil {
		name = l.table.at(address)
	}
	l.used = time.Now()
	if len(l.known) >= maxLocations {
		clear(l.known)
	}
	l.known[address] = name
	return name
}

// rest lets go of the table where it was not used for a while.
func (l *locator) rest() {
	if l.table != nil && time.Since(l.used) > tableAge {
		l.table = nil
	}
}

// A symbolTable is the kernel's table of some 200,000 symbols, without a pointer for each.
type symbolTable struct {
	symbols []symbol
	names   []byte
}

type symbol struct {
	address uint64
	name    uint32 // where it begins in names; it ends at the next NUL
}

// readTable reads /proc/kallsyms. The symbols of modules stand behind the kernel's
// own, in no order.
func readTable(r io.Reader) *symbolTable {
	t := &symbolTable{}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		digits, rest, _ := bytes.Cut(lines.Bytes(), []byte{' '})
		address, err := strconv.ParseUint(string(digits), 16, 64)
		if err != nil || address == 0 {
			continue
		}
		_, name, _ := bytes.Cut(rest, []byte{' '})
		name, _, _ = bytes.Cut(name, []byte{'\t'}) // of a module
		name, _, _ = bytes.Cut(name, []byte{'.'})
		t.symbols = append(t.symbols, symbol{address, uint32(len(t.names))})
		t.names = append(append(t.names, name...), 0)
	}
	slices.SortStableFunc(t.symbols, func(a, b symbol) int { return cmp.Compare(a.address, b.address) })
	return t
}

// at returns the last symbol that begins at or before the address, the first of
// several that begin at the same.
func (t *symbolTable) at(address uint64) string {
	n := sort.Search(len(t.symbols), func(i int) bool { return t.symbols[i].address > address })
	if n == 0 {
		return ""
	}
	begin := t.symbols[n-1].address
	for n--; n > 0 && t.symbols[n-1].address == begin; n-- {
	}
	name, _, _ := bytes.Cut(t.names[t.symbols[n].name:], []byte{0})
	return string(name)
}
