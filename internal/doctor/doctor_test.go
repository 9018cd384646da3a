package doctor

import (
	"encoding/json"
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/rendertest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// healthy returns a namespace without a problem.
func healthy(inode uint64, name string) owner.Namespace {
	return owner.Namespace{
		Inode: inode, Name: name, Recycle: -1,
		Sysctls: event.Sysctls{
			Ports:   event.PortRange{Low: 32768, High: 60999},
			Numbers: [...]int64{2, 1000, 1, 60, 262144, 6, 4},
		},
	}
}

// set sets a sysctl.
func set(n *owner.Namespace, name string, value int64) {
	for i := range event.SysctlNames {
		if event.SysctlNames[i] == name {
			n.Sysctls.Numbers[i] = value
		}
	}
}

// waiting lets TIME_WAITs hold local ports toward one destination.
func waiting(n *owner.Namespace, timeWaits int) {
	n.Counters.TimeWaits = uint64(timeWaits)
	n.Busiest = owner.Destination{Local: netip.MustParseAddr("10.1.0.7"), Peer: netip.MustParseAddrPort("10.1.0.9:443"), TimeWait: timeWaits}
}

// working is a machine where all works.
func working(namespaces ...owner.Namespace) *Findings {
	return &Findings{
		Kernel: "6.8.0-1018-azure", Arch: "amd64", BTF: true, Lockdown: "none", TSOffsetMode: "per_host",
		Privileges: privileges(1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_SYSLOG | 1<<unix.CAP_SYS_PTRACE | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_DAC_OVERRIDE),
		TimeWaits:  true,
		Probes: []Probe{
			{Name: "inet_sock_set_state", Available: true, Via: "tp_btf", Gives: "state changes", LostWithout: "everything"},
			{Name: "tcp_v4_connect", Available: true, Via: "fexit", Gives: "results", LostWithout: "results"},
		},
		Namespaces: namespaces, Host: 4026531840,
	}
}

// TestGolden: a machine with something wrong, as text and as JSON.
func TestGolden(t *testing.T) {
	host := healthy(4026531840, "")
	host.Oldest = event.Owner{PID: 1, Comm: "systemd"}
	host.Counters.TimeWaits = 3
	host.Counters.ConntrackCount, host.Counters.ConntrackMax = 250000, 262144
	pod := healthy(4026532785, "")
	pod.Oldest = event.Owner{PID: 4711, Comm: "pau\x1b[31mse"}
	pod.Sysctls.Reserved = []event.PortRange{{Low: 33000, High: 33000}, {Low: 40000, High: 40099}}
	waiting(&pod, 20000)
	old := healthy(4026533000, "legacy")
	old.Recycle = 1
	set(&old, "tcp_tw_reuse_delay", -1)
	idle := healthy(4026532900, "")

	f := working(host, pod, old, idle)
	f.Probes[1] = Probe{Name: "tcp_v4_connect", Via: "fexit", WhyNot: "not permitted (EPERM)", Forbidden: true, Gives: "results", LostWithout: "results"}
	f.BlindSpots = []string{"cookies (needs Linux 5.12)", "connects that fail before a SYN is built"}
	f.HookBlindSpots = f.BlindSpots[1:]
	r := f.Report()
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, got := range map[string]string{"doctor.json": string(text) + "\n", "doctor.txt": string(r.Text())} {
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestNamespaceProblems: each rule finds what it is for, and just misses what is
// not wrong.
func TestNamespaceProblems(t *testing.T) {
	type change = func(*owner.Namespace)
	tests := map[string]struct {
		change change
		want   []string // the rules
	}{
		"healthy":           {func(*owner.Namespace) {}, nil},
		"half the ports":    {func(n *owner.Namespace) { waiting(n, 14116) }, nil},
		"more than half":    {func(n *owner.Namespace) { waiting(n, 14117) }, []string{"ports"}},
		"to many peers":     {func(n *owner.Namespace) { waiting(n, 20000); n.Busiest.TimeWait = 7000 }, nil},
		"no reuse":          {func(n *owner.Namespace) { waiting(n, 8000); set(n, "tcp_tw_reuse", 0) }, []string{"tcp_tw_reuse"}},
		"no reuse, no need": {func(n *owner.Namespace) { waiting(n, 7000); set(n, "tcp_tw_reuse", 0) }, nil},
		"no reuse, more than half": {func(n *owner.Namespace) { waiting(n, 20000); set(n, "tcp_tw_reuse", 0) },
			[]string{"ports"}},
		"one port":           {func(n *owner.Namespace) { n.Sysctls.Ports = event.PortRange{Low: 5000, High: 5000} }, []string{"few ports"}},
		"few ports":          {func(n *owner.Namespace) { n.Sysctls.Ports = event.PortRange{Low: 5001, High: 6023} }, []string{"few ports"}},
		"just enough":        {func(n *owner.Namespace) { n.Sysctls.Ports = event.PortRange{Low: 5000, High: 6023} }, nil},
		"reserved":           {func(n *owner.Namespace) { n.Sysctls.Reserved = []event.PortRange{{Low: 1, High: 60000}} }, []string{"few ports"}},
		"buckets":            {func(n *owner.Namespace) { n.Counters.TimeWaits = 235930 }, []string{"tcp_max_tw_buckets"}},
		"buckets left":       {func(n *owner.Namespace) { n.Counters.TimeWaits = 235929 }, nil},
		"no buckets":         {func(n *owner.Namespace) { set(n, "tcp_max_tw_buckets", 0) }, nil},
		"conntrack":          {func(n *owner.Namespace) { n.Counters.ConntrackCount, n.Counters.ConntrackMax = 81, 100 }, []string{"conntrack"}},
		"conntrack left":     {func(n *owner.Namespace) { n.Counters.ConntrackCount, n.Counters.ConntrackMax = 80, 100 }, nil},
		"recycle":            {func(n *owner.Namespace) { n.Recycle = 1 }, []string{"tcp_tw_recycle"}},
		"recycle off":        {func(n *owner.Namespace) { n.Recycle = 0 }, nil},
		"no timestamps":      {func(n *owner.Namespace) { set(n, "tcp_timestamps", 0) }, nil},
		"reuse without them": {func(n *owner.Namespace) { set(n, "tcp_timestamps", 0); set(n, "tcp_tw_reuse", 1) }, []string{"tcp_timestamps"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := healthy(4026532785, "blue")
			test.change(&n)
			var got []string
			for _, p := range working(n).Report().Problems {
				got = append(got, p.of)
				if !strings.HasPrefix(p.What, "blue, network namespace 4026532785: ") || p.Why == "" || p.Hint == "" {
					t.Errorf("%+v", p)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestWayOut: the command fits the place.
func TestWayOut(t *testing.T) {
	for _, test := range []struct {
		n    owner.Namespace
		want string
	}{
		{owner.Namespace{Inode: 1, Name: "blue"}, `ip netns exec blue sysctl -w net.ipv4.tcp_tw_recycle=0; for a pod, securityContext.sysctls`},
		{owner.Namespace{Inode: 1, Name: "a b;'c"}, `ip netns exec 'a b;'\''c' sysctl -w net.ipv4.tcp_tw_recycle=0; for a pod, securityContext.sysctls`},
		{owner.Namespace{Inode: 1, Oldest: event.Owner{PID: 4711, Comm: "pause"}}, `nsenter -t 4711 -n sysctl -w net.ipv4.tcp_tw_recycle=0; for a pod, securityContext.sysctls`},
		{owner.Namespace{Inode: 1}, `sysctl -w net.ipv4.tcp_tw_recycle=0, inside; for a pod, securityContext.sysctls`},
		{owner.Namespace{Inode: 4026531840, Oldest: event.Owner{PID: 1, Comm: "systemd"}}, `sysctl -w net.ipv4.tcp_tw_recycle=0`},
	} {
		n := healthy(test.n.Inode, test.n.Name)
		n.Oldest, n.Recycle = test.n.Oldest, 1
		if got := working(n).Report().Problems[0].Hint; got != test.want {
			t.Errorf("hint %q, want %q", got, test.want)
		}
	}
}

// TestMachineProblems: one thing that is wrong is told once, with its cause.
func TestMachineProblems(t *testing.T) {
	eperm := errors.New("create the maps: not permitted (EPERM)")
	refuse := func(f *Findings) {
		f.Probes[1] = Probe{Name: "tcp_v4_connect", Via: "fexit", WhyNot: "not permitted (EPERM)", Forbidden: true, LostWithout: "results"}
	}
	hide := func(f *Findings) {
		f.TimeWaits = false
		f.Probes = append(f.Probes, Probe{Name: "timer_cancel", Via: "tp_btf", WhyNot: "the kernel hides its addresses", LostWithout: "TIME_WAIT"})
		f.HookBlindSpots = append(f.HookBlindSpots, "TIME_WAIT")
	}
	tests := map[string]struct {
		change func(*Findings)
		want   []string // what, and a word of the reason or the hint
	}{
		"healthy":    {func(*Findings) {}, nil},
		"no rights":  {func(f *Findings) { f.Refused, f.Hint, f.Privileges = eperm, "sudo", privileges(0) }, []string{"nothing can be traced|missing: CAP_BPF, CAP_PERFMON"}},
		"userns":     {func(f *Findings) { f.Refused, f.OwnUsers = eperm, true }, []string{"nothing can be traced|user namespace"}},
		"lockdown":   {func(f *Findings) { f.Refused, f.Lockdown = eperm, "confidentiality" }, []string{"nothing can be traced|lockdown=integrity"}},
		"no BTF":     {func(f *Findings) { f.BTF = false }, []string{"this kernel carries no BTF|CONFIG_DEBUG_INFO_BTF"}},
		"pidns":      {func(f *Findings) { f.OwnProcesses = true }, []string{"the machine's processes are not visible|--pid=host"}},
		"addresses":  {hide, []string{"TIME_WAITs can't be seen|the kernel hides its addresses"}},
		"no need":    {refuse, nil},
		"refused":    {func(f *Findings) { refuse(f); f.HookBlindSpots = []string{"results"} }, []string{"hooks are forbidden: tcp_v4_connect (fexit)|can't be seen: results"}},
		"unrelated":  {func(f *Findings) { refuse(f); hide(f) }, []string{"TIME_WAITs can't be seen|the kernel hides its addresses"}},
		"unreadable": {func(f *Findings) { f.Unseen = errors.Join(errors.New("a"), errors.New("b"), errors.New("c")) }, []string{"some network namespaces can't be looked into|a; and 2 more"}},
		"some rights": {func(f *Findings) {
			refuse(f)
			hide(f)
			f.Privileges = privileges(1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON)
			f.HookBlindSpots = append(f.HookBlindSpots, "results")
		}, []string{"privileges are missing|CAP_SYSLOG to see TIME_WAITs"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			f := working()
			test.change(f)
			r := f.Report()
			if r.OK != (f.Refused == nil) {
				t.Errorf("ok is %v", r.OK)
			}
			if len(r.Problems) != len(test.want) {
				t.Fatalf("%+v, want %q", r.Problems, test.want)
			}
			for i, p := range r.Problems {
				what, word, _ := strings.Cut(test.want[i], "|")
				if p.What != what || !strings.Contains(p.Why+p.Hint, word) || p.Hint == "" {
					t.Errorf("%+v, want %q", p, test.want[i])
				}
			}
		})
	}
}

// TestManyNamespaces: hundreds of pods with the same fault do not bury the rest.
func TestManyNamespaces(t *testing.T) {
	var namespaces []owner.Namespace
	for i := range 300 {
		n := healthy(uint64(4026532000+i), "")
		n.Recycle = 1
		n.Counters.TimeWaits = uint64(i)
		namespaces = append(namespaces, n)
	}
	r := working(namespaces...).Report()
	if len(r.Problems) != 300 || !strings.Contains(r.Problems[0].What, "4026532299") {
		t.Errorf("%d problems, the first of %s; want all, and of the busiest first", len(r.Problems), r.Problems[0].What)
	}
	text := string(r.Text())
	if want := "\nand 260 more, with at most 259 TIME_WAITs each: see -o json\n"; !strings.Contains(text, want) {
		t.Errorf("the text has no %q", want)
	}
	if got := strings.Count(text, "tcp_tw_recycle is on"); got != mostAlike {
		t.Errorf("the text tells %d, want %d", got, mostAlike)
	}
	if want := "* tcp_tw_recycle: the same in 297 more network namespaces, see -o json\n"; !strings.HasSuffix(text, want) {
		t.Errorf("the text ends in %q, want %q", text[len(text)-len(want):], want)
	}
}

func TestPrivileges(t *testing.T) {
	all := privileges(1<<64 - 1)
	if len(all.Missing) != 0 || len(all.Effective) != len(capabilities) {
		t.Errorf("of all: %+v", all)
	}
	none := privileges(0)
	if len(none.Effective) != 0 || len(none.Missing) != len(capabilities) {
		t.Errorf("of none: %+v", none)
	}
	// CAP_SYS_ADMIN contains those that were taken out of it.
	want := Privileges{Effective: []string{"CAP_SYS_ADMIN"}, Missing: []string{"CAP_SYSLOG", "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_NET_ADMIN"}}
	if diff := cmp.Diff(want, privileges(1<<unix.CAP_SYS_ADMIN)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// FuzzText: whatever processes and namespaces are called, and whatever an error
// quotes, the text is harmless, and has no line that is not ours.
func FuzzText(f *testing.F) {
	for _, name := range rendertest.Names {
		f.Add(name, false)
		f.Add(name, true)
	}
	f.Fuzz(func(t *testing.T, name string, refused bool) {
		named, owned := healthy(1, name), healthy(2, "")
		owned.Oldest = event.Owner{PID: 4711, Comm: name}
		named.Recycle, owned.Recycle = 1, 1
		found := working(named, owned)
		found.Kernel, found.Arch, found.Lockdown = name, name, name
		found.Probes[1] = Probe{Name: "tcp_v4_connect", Via: "fexit", WhyNot: name, Forbidden: true}
		found.Unseen = errors.Join(errors.New("open "+name), errors.New(name))
		found.BlindSpots, found.HookBlindSpots = []string{name}, []string{name}
		if refused {
			found.Refused, found.Hint = errors.New(name), name
		}
		r := found.Report()
		text := string(r.Text())
		rendertest.Check(t, text)
		if n := strings.Count(text, "\n* "); n != len(r.Problems) {
			t.Errorf("%q: %d problems are told, want %d:\n%s", name, n, len(r.Problems), text)
		}
	})
}
