package probe

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
)

// kallsyms is a kernel's table of symbols, made small.
const kallsyms = `0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81000000 T _text
ffffffff81000100 t __mod_timer
ffffffff81000180 T mod_timer
ffffffff81000200 t __run_timers
ffffffff81000280 t run_timer_softirq
ffffffff81000300 t __inet_check_established
ffffffff81000380 t other
ffffffff81000400 t tw_timer_handler
ffffffff81000480 T inet_twsk_purge
ffffffff81000500 T tcp_abort.isra.0
ffffffff81000580 T tcp_v4_rcv
ffffffff81000580 T alias_of_tcp_v4_rcv
ffffffff81000680 t tcp_v4_rcv_other
ffffffff81000700 T tcp_timewait_state_process
ffffffff81000700 T alias_before_tcp_v6_rcv
ffffffff81000780 T tcp_v6_rcv
ffffffff81000800 t tcp_v4_rcv.cold
ffffffff81000820 T __etext
ffffffffc0000000 t tcp_abort	[some_module]
ffffffffc0000100 t tw_timer_handler	[some_module]
`

func TestParseSymbols(t *testing.T) {
	got, err := parseSymbols(strings.NewReader(kallsyms))
	if err != nil {
		t.Fatal(err)
	}
	const text = 0xffffffff81000000
	var want symbols
	want.twTimerHandler = text + 0x400
	for i, f := range []struct {
		start, end uint64
		means      event.Ended
	}{
		{0x100, 0x180, notEnded},
		{0x180, 0x200, notEnded},
		{0x200, 0x280, event.Expired},
		{0x280, 0x300, event.Expired},
		{0x300, 0x380, event.Reused},
		{0x480, 0x500, event.Killed},
		{0x500, 0x580, event.Killed},
		{0x580, 0x680, event.SynAccepted},
		{0x700, 0x780, event.TimeWaitReset},
		{0x780, 0x800, event.SynAccepted},
		{0x800, 0x820, event.SynAccepted},
	} {
		want.callers[i] = bpfCaller{Start: text + f.start, End: text + f.end, Means: uint64(f.means)}
	}
	for i, r := range [][2]uint64{{0x580, 0x680}, {0x780, 0x800}, {0x800, 0x820}} {
		want.tcpRcv[i] = bpfRange{Start: text + r[0], End: text + r[1]}
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(symbols{})); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseSymbolsRefuses(t *testing.T) {
	// Without CAP_SYSLOG every address reads as zero.
	var hidden strings.Builder
	for line := range strings.Lines(kallsyms) {
		hidden.WriteString(strings.Repeat("0", 16) + line[16:])
	}
	for _, test := range []struct{ name, text, want string }{
		{"hidden", hidden.String(), "hides its addresses"},
		{"empty", "", "hides its addresses"},
		{"no handler", "ffffffff81000000 T _text\n", "hides its addresses"},
		{"a module's handler", "ffffffffc0000100 t tw_timer_handler\t[some_module]\n", "hides its addresses"},
		{"no address", "tw_timer_handler\n", "is none"},
		{"no kind", kallsyms + "ffffffff81000820\n", ""},
		{"cut off", kallsyms[:len("0000000000000000 A fixed_percpu_data\nffffff")], "is none"},
		{"a kind of two letters", "ffffffff81000000 TT _text\n", "is none"},
		{"too large an address", "fffffffffffffffff T _text\n", "is none"},
		{"an empty line", "\n" + kallsyms, "is none"},
		{"no text", "\x00\xff\xfe\n", "is none"},
		{"a line without an end", "ffffffff81000000 T " + strings.Repeat("a", 1<<20), "too long"},
	} {
		got, err := parseSymbols(strings.NewReader(test.text))
		if test.want == "" {
			// What comes after the first module is not read.
			if err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
		if got != (symbols{}) {
			t.Errorf("%s: an error, and yet %+v", test.name, got)
		}
	}
}

// TestManySymbols: a kernel of which the compiler made more functions than there
// is room for.
func TestManySymbols(t *testing.T) {
	var text strings.Builder
	for i := range 3 * maxCallers {
		fmt.Fprintf(&text, "%x t tcp_v4_rcv.part.%d\n", 0x1000+i*16, i)
	}
	text.WriteString("9000 t tw_timer_handler\n")
	got, err := parseSymbols(strings.NewReader(text.String()))
	if err != nil {
		t.Fatal(err)
	}
	for i, caller := range got.callers {
		if caller.Start != uint64(0x1000+i*16) || caller.End != caller.Start+16 {
			t.Errorf("function %d from %#x to %#x", i, caller.Start, caller.End)
		}
	}
}

// TestRunningKernel: this kernel has a function for each way to end, whatever its
// compiler inlined.
func TestRunningKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("the kernel's addresses need root")
	}
	got, err := readSymbols("/proc/kallsyms")
	if err != nil {
		if os.Getenv("TWTRACE_TEST_REQUIRE") == "" && strings.Contains(err.Error(), "hides its addresses") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	if name := readFunctions("/proc/kallsyms").at(got.twTimerHandler + 1); name != "tw_timer_handler" {
		t.Errorf("%q is where tw_timer_handler should be", name)
	}
	found := make(map[event.Ended]int)
	last := 0
	for i, caller := range got.callers {
		if caller.Start == 0 {
			continue
		}
		last = i
		if caller.End <= caller.Start || caller.End-caller.Start > 1<<20 {
			t.Errorf("a function from %#x to %#x", caller.Start, caller.End)
		}
		found[event.Ended(caller.Means)]++
	}
	if last == maxCallers-1 {
		t.Errorf("all %d places are taken: there may be more functions", maxCallers)
	}
	for _, means := range []event.Ended{event.Expired, event.Reused, event.SynAccepted, event.TimeWaitReset, event.Killed, notEnded} {
		if found[means] == 0 {
			t.Errorf("no function means %d (%v)", means, means)
		}
	}
	if got.tcpRcv[0].Start == 0 || got.tcpRcv[1].Start == 0 {
		t.Errorf("where TCP receives: %+v", got.tcpRcv)
	}
}

func TestNoSymbols(t *testing.T) {
	if _, err := readSymbols(t.TempDir() + "/none"); err == nil || !strings.HasPrefix(err.Error(), "read the kernel's symbols: ") {
		t.Error(err)
	}
}

// FuzzSymbols: whatever the table holds, what is found has an order.
func FuzzSymbols(f *testing.F) {
	f.Add(kallsyms)
	f.Add("")
	f.Add("1 t tw_timer_handler\n1 t tcp_v4_rcv\n1 t tcp_v6_rcv.cold\n2 t tcp_abort")
	f.Add("ffffffffffffffff t tcp_abort\n0 t tw_timer_handler\n")
	f.Add("1 t mod_timer\n0 t tcp_abort\n1 t tw_timer_handler\n")
	f.Fuzz(func(t *testing.T, text string) {
		moduleFunction(strings.NewReader(text), 0xffffffffc0000000)
		all := parseFunctions(strings.NewReader(text), 0)
		for i, start := range all.starts {
			if i > 0 && start <= all.starts[i-1] {
				t.Errorf("functions out of order: %x", all.starts)
			}
			for _, address := range []uint64{start - 1, start, start + 1} {
				all.at(address)
			}
		}
		got, err := parseSymbols(strings.NewReader(text))
		if err != nil {
			if got != (symbols{}) {
				t.Errorf("an error, and yet %+v", got)
			}
			return
		}
		if got.twTimerHandler == 0 {
			t.Error("no tw_timer_handler, and no error")
		}
		// The programs read up to the first without an end.
		ended := true
		for _, caller := range got.callers {
			if caller.End != 0 && !ended {
				t.Errorf("a function that nobody reads: %+v", got.callers)
			}
			ended = caller.End != 0
			if caller.End != 0 && caller.Means == 0 {
				t.Errorf("a function that means nothing: %+v", caller)
			}
		}
	})
}

func BenchmarkSymbols(b *testing.B) {
	if os.Geteuid() != 0 {
		b.Skip("the kernel's addresses need root")
	}
	for b.Loop() {
		if _, err := readSymbols("/proc/kallsyms"); err != nil {
			b.Fatal(err)
		}
	}
}

// TestLocator: a function by an address within it, of the kernel and of a module.
func TestLocator(t *testing.T) {
	path := filepath.Join(t.TempDir(), "kallsyms")
	kernel := strings.Join([]string{
		"0000000000000000 A fixed_percpu_data",
		"0000000000001000 A cpu_debug_store",
		"ffffffff81000000 T first",
		"ffffffff81000010 t nf_hook_slow",
		"ffffffff81000010 t alias",
		"ffffffff81000020 d no_function",
		"ffffffff81000100 T tcp_v4_rcv.isra.0",
		"ffffffff81000200 t tw_timer_handler",
		"ffffffff81000300 T _einittext",
		"",
	}, "\n")
	modules := strings.Join([]string{
		"ffffffffc0000200 t nft_do_chain\t[nf_tables]",
		"ffffffffc0000100 t nft_other\t[nf_tables]",
		"ffffffffc0000104 d no_function\t[nf_tables]",
		"",
	}, "\n")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(kernel)
	l := newLocator(path)
	l.functions()
	write(kernel + modules) // they were loaded later
	for _, test := range []struct {
		address uint64
		want    string
	}{
		{0x1001, ""},
		{0xffffffff80ffffff, ""},
		{0xffffffff81000000, "first"},
		{0xffffffff8100000f, "first"},
		{0xffffffff81000010, "nf_hook_slow"},
		{0xffffffff810000ff, "nf_hook_slow"},
		{0xffffffff81000142, "tcp_v4_rcv"},
		{0xffffffff81000301, ""},
		{0xffffffffc0000142, "nft_other"},
		{0xffffffffc0000242, "nft_do_chain"},
		{0xffffffff81000142, "tcp_v4_rcv"},
	} {
		if got := l.name(test.address); got != test.want {
			t.Errorf("%#x: %q, want %q", test.address, got, test.want)
		}
	}
	write("")
	for _, address := range []uint64{0xffffffff81000011, 0xffffffffc0000142} {
		if l.name(address) == "" {
			t.Errorf("%#x is forgotten", address)
		}
	}
	for range 2 * maxLocations {
		l.name(0xffffffffc0000200 + uint64(len(l.ofModules)))
		if len(l.ofModules) > maxLocations {
			t.Fatalf("%d places are known", len(l.ofModules))
		}
	}
	if got := newLocator(filepath.Join(t.TempDir(), "none")).name(1); got != "" {
		t.Errorf("%q without symbols", got)
	}
}
