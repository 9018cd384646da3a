package probe

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
)

// Tier is a choice of hooks. Auto chooses hook by hook; the others force one
// choice, and fail where this kernel does not permit it.
type Tier uint8

// The tiers.
const (
	Auto Tier = iota
	// Fentry: BTF tracepoints, and fentry and fexit at the functions.
	Fentry
	// Kprobe: BTF tracepoints, and kprobes and kretprobes at the functions.
	Kprobe
	// Tracepoint: BTF tracepoints, and the tracepoints of system calls.
	Tracepoint
	// RawTP: raw tracepoints, and kprobes or else system calls. What a
	// kernel without BTF of its own gets.
	RawTP
	// StateOnly: BTF tracepoints and nothing else.
	StateOnly
)

// TierNames are the tiers as --probe-tier spells them.
var TierNames = []string{
	Auto:       "auto",
	Fentry:     "fentry",
	Kprobe:     "kprobe",
	Tracepoint: "tracepoint",
	RawTP:      "raw_tp",
	StateOnly:  "state_only",
}

func (t Tier) String() string { return TierNames[t] }

// ParseTier returns the tier that is spelled name.
func ParseTier(name string) (Tier, error) {
	for t, n := range TierNames {
		if n == name {
			return Tier(t), nil
		}
	}
	return 0, fmt.Errorf("probe tier %q: must be one of %s", name, strings.Join(TierNames, ", "))
}

// permits reports whether the tier uses programs of this kind.
func (t Tier) permits(via string) bool {
	switch t {
	case Auto:
		return true
	case Fentry:
		return via == "tp_btf" || via == "fentry" || via == "fexit" || via == "iter"
	case Kprobe:
		return via == "tp_btf" || via == "kprobe" || via == "kretprobe" || via == "iter"
	case Tracepoint:
		return via == "tp_btf" || via == "tracepoint" || via == "iter"
	case RawTP:
		return via == "raw_tp" || via == "kprobe" || via == "kretprobe" || via == "tracepoint" || via == "iter"
	case StateOnly:
		return via == "tp_btf" || via == "iter"
	}
	return false
}

// Hook is one place in the kernel, and how its hook fared.
type Hook struct {
	// Name is the tracepoint or function.
	Name     string
	Attached bool
	// Via is tp_btf, raw_tp, tracepoint, fentry, fexit, kprobe, kretprobe
	// or iter.
	Via string
	// WhyNot is one line, where it is not attached.
	WhyNot string
}

// A source is something that twtrace wants to know, with the ways to know it,
// best first. Each way is a list of programs; the first of them must attach,
// the others are wanted.
type source struct {
	ways [][]string
	// gives is what it tells.
	gives string
	// unseen is what can't be seen without it; "" where it is essential.
	unseen string
}

var (
	connectCalls = source{
		ways: [][]string{
			{"v4_connect_fexit", "v4_connect_fentry", "v6_connect_fexit", "v6_connect_fentry", "v4_pre_fexit", "v6_pre_fexit", "security_fexit"},
			{"v4_connect_kretprobe", "v4_connect_kprobe", "v6_connect_kretprobe", "v6_connect_kprobe", "v4_pre_kretprobe", "v4_pre_kprobe", "v6_pre_kretprobe", "v6_pre_kprobe", "security_kretprobe", "security_kprobe"},
			{"sys_exit_connect", "sys_enter_connect"},
		},
		gives:  "the result of every call of connect",
		unseen: "connects that fail before a SYN is built (no route, forbidden); the errno of those that fail while it is built is inferred",
	}
	accepts = source{
		ways:   [][]string{{"accept_fentry"}, {"accept_kprobe"}, {"sys_exit_accept4", "sys_exit_accept"}},
		gives:  "who accepted a connection",
		unseen: "who accepted a connection: its owner stays the listener's",
	}
	timeWaits = source{
		ways: [][]string{
			{"timer_cancel_btf", "timer_start_btf", "kfree_skb_btf"},
			{"timer_cancel_raw", "timer_start_raw", "kfree_skb_raw"},
		},
		gives:  "TIME_WAITs: their beginning and their end",
		unseen: "TIME_WAIT: when it begins, when and how it ends, whose it was, and what of it holds local ports",
	}
	cgroups = source{
		ways:   [][]string{{"cgroup_btf"}, {"cgroup_raw"}},
		gives:  "the paths of control groups that are made",
		unseen: "the containers of processes whose control group is gone before it is looked up",
	}
	descent = source{ways: [][]string{{"task_fork", "task_exit"}}, gives: "the children of a command"}
)

// sources in the order in which they are attached: what deletes from the
// table of sockets before what fills it.
var sources = []source{
	{ways: [][]string{{"destroy_btf"}, {"destroy_raw"}}, gives: "when a socket is gone"},
	timeWaits, // before the state changes, which tell their owners
	cgroups,   // before the events that name one
	{gives: "state changes, and with them connections", ways: [][]string{
		{"state_btf", "nested_btf", "nested2_btf", "nested3_btf", "nested4_btf"},
		{"state_raw", "nested_raw", "nested2_raw", "nested3_raw", "nested4_raw"},
	}},
	connectCalls,
	accepts,
	{ways: [][]string{{"retransmit_btf"}, {"retransmit_raw"}}, gives: "SYNs that are sent again", unseen: "SYNs that are sent again"},
	{ways: [][]string{{"synack_btf"}, {"synack_raw"}}, gives: "SYN-ACKs that are sent again", unseen: "SYN-ACKs that are sent again"},
	{ways: [][]string{{"rst_sent_btf"}, {"rst_sent_raw"}}, gives: "RSTs that are sent", unseen: "RSTs that are sent"},
	{ways: [][]string{{"rst_received_btf"}, {"rst_received_raw"}}, gives: "RSTs that are received", unseen: "RSTs that are received"},
}

// viaOf names the kind of a program, as its section does.
func viaOf(program *ebpf.ProgramSpec) string {
	via, _, _ := strings.Cut(program.SectionName, "/")
	return via
}

// hookName is the place where a program is attached.
func hookName(program *ebpf.ProgramSpec) string {
	return program.AttachTo[strings.LastIndex(program.AttachTo, "/")+1:]
}

func (t *Tracer) attach(config Config) (err error) {
	t.prepare(t.likely(config.Tier))
	defer func() { err = errors.Join(err, t.discard()) }()
	for _, s := range sources {
		if err := t.attachSource(s, config.Tier); err != nil {
			return err
		}
	}
	if config.Filter.Descendants {
		return t.attachSource(descent, Auto)
	}
	return nil
}

// likely are the first way of each source that the tier permits, without the programs
// that are not for this kernel.
func (t *Tracer) likely(tier Tier) (ways [][]string) {
	for _, s := range sources {
		for _, way := range s.ways {
			way = slices.DeleteFunc(slices.Clone(way), func(name string) bool { return t.spec.Programs[name] == nil })
			if len(way) > 0 && tier.permits(viaOf(t.spec.Programs[way[0]])) {
				ways = append(ways, way)
				break
			}
		}
	}
	return ways
}

// attachSource takes the first way that works.
func (t *Tracer) attachSource(s source, tier Tier) error {
	var refused Hook
	var why error
	for _, way := range s.ways {
		taken := false
		for i, name := range way {
			program, ok := t.spec.Programs[name]
			if !ok {
				continue // not for this kernel
			}
			hook := Hook{Name: hookName(program), Via: viaOf(program)}
			if !tier.permits(hook.Via) {
				break
			}
			if err := t.attachOne(name); err != nil {
				err = explain(err)
				hook.WhyNot = err.Error()
				t.hooks = append(t.hooks, hook)
				if i == 0 {
					refused, why = hook, err
					break
				}
				continue
			}
			hook.Attached = true
			taken = true
			if !slices.Contains(t.hooks, hook) { // two programs may share one
				t.hooks = append(t.hooks, hook)
			}
		}
		if taken {
			return nil
		}
	}
	if tier != Auto && tier != StateOnly && refused.Name != "" {
		return fmt.Errorf("probe tier %s: attach %s to %s: %w", tier, refused.Via, refused.Name, why)
	}
	if s.unseen == "" {
		return fmt.Errorf("attach %s: %w", refused.Name, why)
	}
	return nil
}

// BlindSpots says, a line each, what can't be seen since hooks are missing or
// since those that are there do not show it.
func (t *Tracer) BlindSpots() []string {
	return append(t.HookBlindSpots(), t.kernelBlindSpots()...)
}

// HookBlindSpots are those of BlindSpots that other hooks would take away.
func (t *Tracer) HookBlindSpots() []string {
	var spots []string
	for _, s := range sources {
		if way := t.wayTaken(s); way == nil && s.unseen != "" {
			spots = append(spots, s.unseen)
		}
	}
	if way := t.wayTaken(connectCalls); way != nil && way[0] == "sys_exit_connect" {
		spots = append(spots, "connects by MPTCP, by io_uring, by sendto(MSG_FASTOPEN), by 32-bit programs or from the kernel itself, where they fail before a SYN is built")
	}
	if way := t.wayTaken(accepts); way != nil && way[0] == "sys_exit_accept4" {
		spots = append(spots, "who accepted a connection by MPTCP, by io_uring or in a 32-bit program: its owner stays the listener's")
	}
	for _, hook := range t.hooks {
		if unseen := unseenWithout[hook.Name]; unseen != "" && !hook.Attached {
			spots = append(spots, unseen)
		}
	}
	return spots
}

// olderSockets is what the walk over the sockets is for, which no source has.
const olderSockets = "sockets that are older than the trace"

// Purpose says what a hook gives, and what is lost where neither it nor another
// gives that.
func (t *Tracer) Purpose(hook Hook) (gives, lost string) {
	if hook.Via == "iter" {
		return olderSockets, "the owners of " + olderSockets
	}
	if unseen := unseenWithout[hook.Name]; unseen != "" {
		return unseen, unseen
	}
	for _, s := range slices.Concat(sources, []source{descent}) {
		for _, name := range slices.Concat(s.ways...) {
			if program, ok := t.spec.Programs[name]; !ok || hookName(program) != hook.Name {
				continue
			}
			if s.unseen == "" {
				return s.gives, "everything: without it nothing is traced"
			}
			return s.gives, s.unseen
		}
	}
	return "", ""
}

// SeesResults reports whether the results of connect calls are seen, and need
// not be inferred from the state changes.
func (t *Tracer) SeesResults() bool { return t.wayTaken(connectCalls) != nil }

// SeesTimeWaits reports whether the life of TIME_WAITs is seen.
func (t *Tracer) SeesTimeWaits() bool { return t.wayTaken(timeWaits) != nil }

// SeesDrops reports whether packets that the kernel throws away are seen.
func (t *Tracer) SeesDrops() bool {
	return slices.ContainsFunc(t.hooks, func(h Hook) bool { return h.Name == "kfree_skb" && h.Attached })
}

// SeesDropReasons reports whether the kernel says why it throws one away.
func (t *Tracer) SeesDropReasons() bool { return t.kernel.DropReason }

// unseenWithout names what a source shows less where only one of its programs
// is missing.
var unseenWithout = map[string]string{
	"security_socket_connect": "connects that a security module forbids",
	"kfree_skb":               "packets of handshakes that the kernel drops",
	"tcp_v4_pre_connect":      "IPv4 connects that a cgroup's BPF program forbids",
	"tcp_v6_pre_connect":      "IPv6 connects that a cgroup's BPF program forbids",
}

// wayTaken returns the way of s that is attached, nil for none.
func (t *Tracer) wayTaken(s source) []string {
	for _, way := range s.ways {
		if _, ok := t.attached[way[0]]; ok {
			return way
		}
	}
	return nil
}
