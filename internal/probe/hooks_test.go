package probe

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// iterators are the walk of Adopt.
var iterators = []string{"existing"}

func spec(t *testing.T) *ebpf.CollectionSpec {
	t.Helper()
	spec, err := loadSpec(release{7, 2})
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// TestEveryProgramHasItsPlace: no hook names a program that the object does not
// have, and no program is carried along that nothing attaches.
func TestEveryProgramHasItsPlace(t *testing.T) {
	named := slices.Clone(iterators)
	for _, s := range append(slices.Clone(sources), descent) {
		for _, way := range s.ways {
			named = append(named, way...)
		}
	}
	var programs []string
	for name := range spec(t).Programs {
		programs = append(programs, name)
	}
	slices.Sort(named)
	slices.Sort(programs)
	if diff := cmp.Diff(programs, named); diff != "" {
		t.Errorf("(-object +hooks):\n%s", diff)
	}
}

// TestEveryProgramCanBeAttached: there is a way for its section, and its hook
// has a name to be told by.
func TestEveryProgramCanBeAttached(t *testing.T) {
	vias := []string{"tp_btf", "raw_tp", "tracepoint", "fentry", "fexit", "kprobe", "kretprobe"}
	for name, program := range spec(t).Programs {
		via := viaOf(program)
		if slices.Contains(iterators, name) {
			if via != "iter" {
				t.Errorf("%s is attached via %s", name, via)
			}
			continue
		}
		if !slices.Contains(vias, via) {
			t.Errorf("%s: no way to attach %s", name, via)
		}
		if hook := hookName(program); hook == "" || strings.Contains(hook, "/") {
			t.Errorf("%s: hook %q", name, hook)
		}
	}
}

// TestPurposes: every hook has something that it gives, and that is lost without
// it.
func TestPurposes(t *testing.T) {
	tracer := &Tracer{spec: spec(t)}
	for name, program := range tracer.spec.Programs {
		gives, lost := tracer.Purpose(Hook{Name: hookName(program), Via: viaOf(program)})
		if gives == "" || lost == "" {
			t.Errorf("%s gives %q, and without it is lost %q", name, gives, lost)
		}
	}
}

func TestTierNames(t *testing.T) {
	for i, name := range TierNames {
		tier, err := ParseTier(name)
		if err != nil || tier != Tier(i) || tier.String() != name {
			t.Errorf("%s: tier %d, %v", name, tier, err)
		}
	}
	for _, name := range []string{"", "Auto", "fexit", "kprobe "} {
		_, err := ParseTier(name)
		if err == nil {
			t.Errorf("%q is a tier", name)
			continue
		}
		for _, name := range TierNames {
			if !strings.Contains(err.Error(), name) {
				t.Errorf("%v: does not offer %s", err, name)
			}
		}
	}
}

func TestTiersPermit(t *testing.T) {
	want := map[Tier]string{
		Auto:       "tp_btf raw_tp tracepoint fentry fexit kprobe kretprobe iter",
		Fentry:     "tp_btf fentry fexit iter",
		Kprobe:     "tp_btf kprobe kretprobe iter",
		Tracepoint: "tp_btf tracepoint iter",
		RawTP:      "raw_tp tracepoint kprobe kretprobe iter",
		StateOnly:  "tp_btf iter",
	}
	for i := range TierNames {
		var permitted []string
		for _, via := range strings.Fields(want[Auto]) {
			if Tier(i).permits(via) {
				permitted = append(permitted, via)
			}
		}
		if got := strings.Join(permitted, " "); got != want[Tier(i)] {
			t.Errorf("%s permits %s, want %s", Tier(i), got, want[Tier(i)])
		}
	}
}

// TestEveryTierSeesTheEssential: a tier that a user forces has a way to all
// that twtrace can't do without, and to what it is named for.
func TestEveryTierSeesTheEssential(t *testing.T) {
	programs := spec(t).Programs
	ways := func(tier Tier, s source) (n int) {
		for _, way := range s.ways {
			permitted := 0
			for _, name := range way {
				if tier.permits(viaOf(programs[name])) {
					permitted++
				}
			}
			if permitted > 0 && permitted < len(way) {
				t.Errorf("%s permits only some of %v", tier, way)
			}
			if permitted == len(way) {
				n++
			}
		}
		return n
	}
	for i := range TierNames {
		tier := Tier(i)
		for _, s := range sources {
			if s.unseen == "" && ways(tier, s) == 0 {
				t.Errorf("%s has no way for %v", tier, s.ways)
			}
		}
		for what, s := range map[string]source{"connects": connectCalls, "accepts": accepts} {
			if got := ways(tier, s) > 0; got != (tier != StateOnly) {
				t.Errorf("%s sees the calls of %s: %v", tier, what, got)
			}
		}
	}
}

// TestBlindSpots: what is not attached is said.
func TestBlindSpots(t *testing.T) {
	programs := spec(t).Programs
	modern := bpfKernel{ResetReason: true, DropReason: true, CookieHelper: true, NetnsCookie: true}
	// attached takes the first way of each source that a tier permits.
	attached := func(tier Tier, without ...string) *Tracer {
		tracer := &Tracer{attached: make(map[string]attachment), kernel: modern}
		for _, s := range sources {
			for _, way := range s.ways {
				if !tier.permits(viaOf(programs[way[0]])) {
					continue
				}
				for _, name := range way {
					taken := !slices.Contains(without, name)
					if taken {
						tracer.attached[name] = attachment{}
					}
					tracer.hooks = append(tracer.hooks, Hook{Name: hookName(programs[name]), Attached: taken})
				}
				break
			}
		}
		return tracer
	}
	old := attached(Auto)
	old.kernel = bpfKernel{}
	for _, test := range []struct {
		name   string
		tracer *Tracer
		want   []string // the beginning of each line
	}{
		{"everything", attached(Auto), nil},
		{"kprobes", attached(Kprobe), nil},
		{"raw tracepoints", attached(RawTP), nil},
		{"system calls", attached(Tracepoint), []string{"connects by MPTCP", "who accepted a connection by MPTCP"}},
		{"state changes", attached(StateOnly), []string{"connects that fail before a SYN is built", "who accepted a connection: "}},
		{"without retransmits", attached(Auto, "retransmit_btf", "retransmit_raw"), []string{"SYNs that are sent again"}},
		{"without a hook for security modules", attached(Auto, "security_fexit"), []string{"connects that a security module forbids"}},
		{"without IPv6", attached(Auto, "v6_pre_fexit"), []string{"IPv6 connects that a cgroup's BPF program forbids"}},
		{"Linux 5.10", old, []string{"cookies of sockets", "cookies of network namespaces", "why a RST is sent", "why a packet is dropped"}},
	} {
		got := test.tracer.BlindSpots()
		same := slices.EqualFunc(test.want, got, func(want, got string) bool {
			return strings.HasPrefix(got, want) && !strings.Contains(got, "\n")
		})
		if !same {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// TestExplain: an error is one line of what a user can act on.
func TestExplain(t *testing.T) {
	verifier := func(cause error) error {
		return fmt.Errorf("program state_btf: load program: %w", &ebpf.VerifierError{
			Cause: cause,
			Log: []string{
				"0: R1=ctx(off=0,imm=0) R10=fp0", "; struct sock *sk", "0: (79) r6 = *(u64 *)(r1 +8)",
				"invalid bpf_context access off=8 size=8", "processed 1 insns (limit 1000000) max_states_per_insn 0",
				"", "",
			},
		})
	}
	for _, test := range []struct {
		name string
		err  error
		want string
	}{
		{"EPERM", fmt.Errorf("create map: %w (MEMLOCK may be too low, consider rlimit.RemoveMemlock)", unix.EPERM), "not permitted (EPERM)"},
		{"EACCES", &os.PathError{Op: "open", Path: "/x", Err: unix.EACCES}, "not permitted (EACCES)"},
		{"verifier", verifier(unix.EACCES), "refused by the kernel's verifier: invalid bpf_context access off=8 size=8"},
		{"verifier, EINVAL", verifier(unix.EINVAL), "refused by the kernel's verifier: invalid bpf_context access off=8 size=8"},
		{"silent verifier", &ebpf.VerifierError{Cause: unix.EINVAL}, "refused by the kernel's verifier: it does not say why"},
		{"no such type", fmt.Errorf("attach: %w", btf.ErrNotFound), "this kernel has no such function or tracepoint"},
		{"no such symbol", fmt.Errorf("symbol x: %w", os.ErrNotExist), "this kernel has no such function or tracepoint"},
		{"ENOENT", fmt.Errorf("perf: %w", unix.ENOENT), "this kernel has no such function or tracepoint"},
		{"no such feature", fmt.Errorf("iter: %w", ebpf.ErrNotSupported), "not supported by this kernel"},
		{"no such link", fmt.Errorf("iter: %w", link.ErrNotSupported), "not supported by this kernel"},
		{"ENOTSUPP", fmt.Errorf("tracing: %w", unix.Errno(524)), "not supported by this kernel"},
		{"another", errors.New("something else\nwith a second line"), "something else"},
	} {
		if got := explain(test.err).Error(); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
	for _, errno := range []error{unix.EPERM, unix.EACCES} {
		if err := explain(errno); !errors.Is(err, ErrNotPermitted) {
			t.Errorf("%v: %v is no ErrNotPermitted", errno, err)
		}
	}
	if err := explain(verifier(unix.EACCES)); errors.Is(err, ErrNotPermitted) {
		t.Errorf("%v is ErrNotPermitted", err)
	}
}
