package verdict

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

var (
	pod   = event.NetNS{Inode: 10, Cookie: 110}
	other = event.NetNS{Inode: 11, Cookie: 111}
	node  = event.NetNS{Inode: 12, Cookie: 112}
	far   = event.NetNS{Inode: 13, Cookie: 113}
)

// connect returns what is known of a connect that ended so, with all hooks at work.
func connect(outcome record.Outcome, errno syscall.Errno, change ...func(*Facts)) *Facts {
	r := &record.Record{
		Kind: record.Connect,
		Socket: event.Socket{NetNS: pod, Tuple: event.Tuple{
			Local: netip.MustParseAddrPort("10.77.1.2:40000"), Peer: netip.MustParseAddrPort("10.88.0.2:80"),
		}},
		State: record.StateFields{Old: event.SynSent, New: event.Close, Duration: 3 * time.Second},
		Connect: record.ConnectFields{
			Outcome: outcome, Errno: errno, Duration: 3 * time.Second, Retransmits: 2, TSVal: 1_000_000, HasTSVal: true,
		},
	}
	f := &Facts{
		Record: r, Case: track.Case{Active: true, Retransmits: []uint64{5, 6}},
		Sysctls: &event.Sysctls{Ports: event.PortRange{Low: 32768, High: 60999}, Numbers: [...]int64{2, 1000, 1, 60, 4096, 6, 4}}, SysctlsLine: 2,
		Offsets: "per_host", DropsSeen: true, DropReasons: true,
	}
	for _, c := range change {
		c(f)
	}
	return f
}

func drop(packet event.Packet, reason, location string, netns event.NetNS) func(*Facts) {
	return func(f *Facts) {
		f.Drops = append(f.Drops, track.Drop{
			Line: 7, Count: 3, Reverse: packet == event.SYNACK, Sender: netns == pod && packet == event.SYN,
			DropFields: record.DropFields{Packet: packet, Reason: reason, Location: location, NetNS: netns},
		})
	}
}

func counters(netns event.NetNS, delta map[string]uint64) func(*Facts) {
	return func(f *Facts) {
		f.Counters = append(f.Counters, Counters{NetNS: netns, Line: 8, CountersFields: record.CountersFields{Delta: delta}, ConntrackCount: 10, ConntrackMax: 1000})
	}
}

func resetIn(state event.State, received bool) func(*Facts) {
	return func(f *Facts) { f.Resets = append(f.Resets, track.Reset{Line: 9, State: state, Received: received}) }
}

func atOnce(f *Facts) { f.Record.State, f.Record.Connect.Retransmits = record.StateFields{}, 0 }

func ports(inUse, timeWait uint32) func(*Facts) {
	return func(f *Facts) {
		f.Record.Connect.Retransmits = 0
		f.Record.Ports = &record.PortsFields{InUse: inUse, TimeWait: timeWait, Usable: inUse,
			Holder: &record.PortHolder{Port: 32768, Owner: event.Owner{PID: 7, Comm: "curl"}, EndsIn: time.Minute}}
	}
}

// newer is a TSval, newer by this, that the peer was sent before, and what became of
// the connects that it predicts.
func newer(by int, netns event.NetNS, predicted [2][2]int) func(*Facts) {
	return func(f *Facts) {
		f.Peer.Newest = track.Stamp{TSVal: uint32(1_000_000 + by), Ago: time.Second, NetNS: netns, Local: netip.MustParseAddr("10.77.2.2"), Line: 4}
		f.Peer.Predicted = predicted
	}
}

func previous(after time.Duration, by record.CloseBy) func(*Facts) {
	return func(f *Facts) {
		f.Previous = &record.ReuseFields{Scope: record.ScopeTuple, After: after, Previous: record.PreviousUse{End: record.UseEnd{Close: by}}}
	}
}

func there(f *Facts) { f.There = far }

func TestOf(t *testing.T) {
	for _, test := range []struct {
		name string
		f    *Facts
		want string
	}{
		{"TIME_WAITs hold all ports", connect(record.NoLocalPort, syscall.EADDRNOTAVAIL, ports(10, 10)), "local_ports_exhausted_time_wait likely"},
		{"most of them", connect(record.NoLocalPort, syscall.EADDRNOTAVAIL, ports(10, 6)), "local_ports_exhausted_time_wait likely"},
		{"connections hold all ports", connect(record.NoLocalPort, syscall.EADDRNOTAVAIL, ports(10, 0)), "local_ports_exhausted_live likely"},
		{"most of them are connections", connect(record.NoLocalPort, syscall.EADDRNOTAVAIL, ports(10, 4)), "local_ports_exhausted_live likely"},
		{"who holds them is not known", connect(record.NoLocalPort, syscall.EADDRNOTAVAIL), ""},
		{"no route", connect(record.Unreachable, syscall.ENETUNREACH, atOnce), "unreachable_local certain"},
		{"a route that says unreachable", connect(record.Unreachable, syscall.EHOSTUNREACH, atOnce), "unreachable_local certain"},
		{"prohibited, or a security module", connect(record.Denied, syscall.EACCES, atOnce), "unreachable_local possible"},
		{"a blackhole, or a bad address", connect(record.Failed, syscall.EINVAL, atOnce), "unreachable_local possible"},
		{"forbidden", connect(record.Denied, syscall.EPERM, atOnce), ""},
		{"an errno of no route's", connect(record.Failed, syscall.EBADF, atOnce), ""},

		{"a RST", connect(record.Refused, syscall.ECONNREFUSED, resetIn(event.SynSent, true)), "refused certain"},
		{"a RST, and an unrelated drop", connect(record.Refused, syscall.ECONNREFUSED, resetIn(event.SynSent, true), drop(event.SYN, "NO_SOCKET", "tcp_v4_rcv", far)), "refused certain"},
		{"port unreachable", connect(record.Refused, syscall.ECONNREFUSED), "unreachable_icmp certain"},
		{"host unreachable", connect(record.Unreachable, syscall.EHOSTUNREACH), "unreachable_icmp certain"},
		{"host unreachable, rejected on this machine", connect(record.Unreachable, syscall.EHOSTUNREACH, drop(event.SYN, "NETFILTER_DROP", "nft_do_chain", node)), "unreachable_icmp certain"},
		{"network unreachable", connect(record.Unreachable, syscall.ENETUNREACH), "unreachable_icmp certain"},
		{"no neighbour", connect(record.Unreachable, syscall.EHOSTUNREACH, drop(event.SYN, "NEIGH_FAILED", "neigh_invalidate", pod)), "unreachable_neighbour certain"},
		{"no neighbour, before there were reasons", connect(record.Unreachable, syscall.EHOSTUNREACH, drop(event.SYN, "", "neigh_invalidate", pod)), "unreachable_neighbour certain"},
		{"no neighbour of a router's", connect(record.Unreachable, syscall.EHOSTUNREACH, drop(event.SYN, "NEIGH_FAILED", "neigh_invalidate", node)), "unreachable_icmp certain"},
		{"ICMP or a neighbour, and drops are not seen", connect(record.Unreachable, syscall.EHOSTUNREACH, blind), "unreachable_neighbour possible"},
		{"ICMP at once, and drops are not seen", connect(record.Unreachable, syscall.EHOSTUNREACH, blind, lasting(time.Second)), "unreachable_icmp possible"},
		{"reset by both", connect(record.ConnectionReset, syscall.ECONNRESET), ""},

		{"old state, PAWS at the peer", connect(record.Established, 0, there, resetIn(event.SynSent, false), counters(far, map[string]uint64{"PAWSTimewait": 1})), "late_success(peer_time_wait_collision likely)"},
		{"old state, PAWS at the peer before 6.14", connect(record.Established, 0, there, resetIn(event.SynSent, false), counters(far, map[string]uint64{"PAWSEstab": 1, "TCPSYNChallenge": 1})), "late_success(peer_time_wait_collision likely)"},
		{"old state, the peer had closed first", connect(record.Established, 0, resetIn(event.SynSent, false), previous(time.Second, record.ByPeer)), "late_success(peer_time_wait_collision likely)"},
		{"old state, nothing known", connect(record.Established, 0, resetIn(event.SynSent, false)), "late_success(peer_time_wait_collision possible)"},
		{"old state, challenged at the peer", connect(record.Established, 0, there, resetIn(event.SynSent, false), counters(far, map[string]uint64{"TCPSYNChallenge": 1})), "late_success(peer_half_open likely)"},
		{"old state, challenged somewhere else", connect(record.Established, 0, there, resetIn(event.SynSent, false), counters(node, map[string]uint64{"TCPSYNChallenge": 1})), "late_success(peer_time_wait_collision possible)"},
		{"old state, left without a word", connect(record.Established, 0, resetIn(event.SynSent, false), previous(time.Second, record.ByResetSent)), "late_success(peer_half_open possible)"},

		{"the SYN is dropped", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nft_do_chain", pod)), "syn_dropped_local certain"},
		{"the SYN is dropped, before there were reasons", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "", "nf_hook_slow", pod)), "syn_dropped_local certain"},
		{"the SYN is dropped on the node", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nft_do_chain", node)), "syn_dropped_local likely"},
		{"the SYN is dropped, and it gave up", connect(record.Abandoned, 0, drop(event.SYN, "QDISC_DROP", "__dev_queue_xmit", pod)), "app_gave_up(syn_dropped_local certain)"},
		{"the SYN-ACK is dropped", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYNACK, "IP_RPFILTER", "ip_rcv_finish_core", pod)), "synack_dropped_local certain"},
		{"the SYN-ACK is dropped on the node", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYNACK, "NETFILTER_DROP", "nft_do_chain", node)), "synack_dropped_local likely"},
		{"no source port on the node", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nf_hook_slow", node), counters(node, map[string]uint64{"nf_conntrack_insert_failed": 3})), "node_snat_insert_failed certain"},
		{"no source port, the first drop not counted", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nf_hook_slow", node), counters(node, map[string]uint64{"nf_conntrack_insert_failed": 2})), "node_snat_insert_failed certain"},
		{"one insert failed, and three were dropped", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nf_hook_slow", node), counters(node, map[string]uint64{"nf_conntrack_insert_failed": 1})), "node_snat_insert_failed likely"},
		{"a rule dropped it while an insert failed", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nft_do_chain", node), counters(node, map[string]uint64{"nf_conntrack_insert_failed": 3})), "syn_dropped_local likely"},
		{"an insert failed in another namespace", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nf_hook_slow", node), counters(node, nil), counters(other, map[string]uint64{"nf_conntrack_insert_failed": 3})), "syn_dropped_local likely"},
		{"the table is full", connect(record.TimedOut, syscall.ETIMEDOUT, drop(event.SYN, "NETFILTER_DROP", "nf_hook_slow", node), counters(node, nil), full), "conntrack_table_full certain"},
		{"the queue is full", connect(record.TimedOut, syscall.ETIMEDOUT, there, counters(far, map[string]uint64{"ListenOverflows": 3})), "listen_overflow likely"},
		{"the queue is full, and the timestamp older", connect(record.TimedOut, syscall.ETIMEDOUT, there, newer(50, other, [2][2]int{{5, 0}, {0, 1}}), counters(far, map[string]uint64{"ListenOverflows": 3})), "listen_overflow likely"},
		{"a queue is full elsewhere", connect(record.TimedOut, syscall.ETIMEDOUT, counters(other, map[string]uint64{"ListenOverflows": 3})), "syn_unanswered likely"},

		{"older, and the order predicts", connect(record.TimedOut, syscall.ETIMEDOUT, newer(50, other, [2][2]int{{5, 0}, {0, 3}})), "peer_per_host_paws likely"},
		{"older, and it gave up", connect(record.Abandoned, 0, newer(50, other, [2][2]int{{5, 0}, {0, 3}})), "app_gave_up(peer_per_host_paws likely)"},
		{"older, too few to tell", connect(record.TimedOut, syscall.ETIMEDOUT, newer(50, other, [2][2]int{{2, 0}, {0, 1}})), "peer_per_host_paws possible"},
		{"older, one against it", connect(record.TimedOut, syscall.ETIMEDOUT, newer(50, other, [2][2]int{{5, 1}, {0, 4}})), "peer_per_host_paws possible"},
		{"older, and others like it were answered", connect(record.TimedOut, syscall.ETIMEDOUT, newer(50, other, [2][2]int{{5, 0}, {4, 1}})), "syn_unanswered likely"},
		{"as old", connect(record.TimedOut, syscall.ETIMEDOUT, newer(1, other, [2][2]int{{5, 0}, {0, 3}})), "syn_unanswered likely"},
		{"newer", connect(record.TimedOut, syscall.ETIMEDOUT, newer(-50, other, [2][2]int{{5, 0}, {0, 3}})), "syn_unanswered likely"},
		{"older, without timestamps", connect(record.TimedOut, syscall.ETIMEDOUT, newer(50, other, [2][2]int{{5, 0}, {0, 3}}), func(f *Facts) { f.Record.Connect.HasTSVal = false }), "syn_unanswered likely"},
		{"older, but dropped here", connect(record.TimedOut, syscall.ETIMEDOUT, newer(50, other, [2][2]int{{5, 0}, {0, 3}}), drop(event.SYN, "NETFILTER_DROP", "nft_do_chain", pod)), "syn_dropped_local certain"},
		{"older, dropped by the peer's own program", connect(record.TimedOut, syscall.ETIMEDOUT, there, newer(50, other, [2][2]int{{5, 0}, {0, 3}}), drop(event.SYN, "", "do_xdp_generic", far)), "peer_per_host_paws likely"},
		{"dropped by the peer's own program", connect(record.TimedOut, syscall.ETIMEDOUT, there, drop(event.SYN, "", "do_xdp_generic", far)), "syn_dropped_local likely"},

		{"one destination is silent to many", connect(record.TimedOut, syscall.ETIMEDOUT, silent(2, time.Minute, time.Second)), "cloud_snat_suspected possible"},
		{"to one", connect(record.TimedOut, syscall.ETIMEDOUT, silent(1, time.Minute, time.Second)), "syn_unanswered likely"},
		{"which never answered", connect(record.TimedOut, syscall.ETIMEDOUT, silent(2, 0, time.Second)), "syn_unanswered likely"},
		{"and nobody else answers", connect(record.TimedOut, syscall.ETIMEDOUT, silent(2, time.Minute, 0)), "syn_unanswered likely"},
		{"its port was used before", connect(record.TimedOut, syscall.ETIMEDOUT, previous(20*time.Second, record.ByLocal)), "nat_port_cooldown possible"},
		{"and ended by a RST, long enough ago", connect(record.TimedOut, syscall.ETIMEDOUT, previous(20*time.Second, record.ByResetSent)), "syn_unanswered likely"},
		{"too long ago", connect(record.TimedOut, syscall.ETIMEDOUT, previous(65*time.Second, record.ByLocal)), "syn_unanswered likely"},
		{"silence", connect(record.TimedOut, syscall.ETIMEDOUT), "syn_unanswered likely"},
		{"silence, and drops are not seen", connect(record.TimedOut, syscall.ETIMEDOUT, blind), "syn_unanswered possible"},
		{"silence, and it gave up", connect(record.Abandoned, 0), "app_gave_up(syn_unanswered likely)"},
		{"it gave up before a SYN was sent again", connect(record.Abandoned, 0, func(f *Facts) { f.Record.Connect.Retransmits = 0 }), "app_gave_up"},
		{"late", connect(record.Established, 0), "late_success(syn_unanswered likely)"},
		{"not late", connect(record.Established, 0, func(f *Facts) { f.Record.Connect.Retransmits = 0 }), ""},
		{"reset soon after", closed(record.ByResetReceived, time.Second, true), "reset_after_handshake certain"},
		{"reset later", closed(record.ByResetReceived, time.Hour, true), ""},
		{"reset by us", closed(record.ByResetSent, time.Second, true), ""},
		{"reset by a client", closed(record.ByResetReceived, time.Second, false), ""},
	} {
		v := Of(test.f)
		if got := spell(v); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
		check(t, test.name, test.f, v)
	}
}

func blind(f *Facts) { f.DropsSeen, f.DropReasons = false, false }

func lasting(d time.Duration) func(*Facts) {
	return func(f *Facts) { f.Record.Connect.Duration = d }
}

func full(f *Facts) { f.Counters[0].ConntrackCount = f.Counters[0].ConntrackMax }

func silent(from int, answered, elsewhere time.Duration) func(*Facts) {
	return func(f *Facts) {
		f.Peer.SilentFrom, f.Peer.Answered, f.Peer.ElsewhereAnswered = from, answered, elsewhere
	}
}

func closed(by record.CloseBy, after time.Duration, active bool) *Facts {
	return &Facts{Record: &record.Record{Kind: record.Close, Close: record.CloseFields{By: by, Duration: after}}, Case: track.Case{Active: active}}
}

func spell(v *record.VerdictFields) string {
	switch {
	case v == nil:
		return ""
	case v.Inner != nil:
		return v.ID + "(" + spell(v.Inner) + ")"
	case v.ID == GaveUp || v.ID == LateSuccess:
		return v.ID
	}
	return v.ID + " " + v.Confidence.String()
}

// sure are the causes that can be certain.
var sure = []string{NoRoute, ResetEarly, Refused, NoNeighbour, ICMP, SYNACKDropped, ConntrackFull, SNATClash, SYNDropped, GaveUp, LateSuccess}

// check checks what holds of every verdict.
func check(t *testing.T, name string, f *Facts, v *record.VerdictFields) {
	t.Helper()
	for ; v != nil; v = v.Inner {
		if v.Text == "" || v.Advice == "" || len(v.Evidence) == 0 {
			t.Errorf("%s: %s has no text, no advice or no evidence: %+v", name, v.ID, v)
		}
		for _, text := range slices.Concat([]string{v.Text, v.Advice}, v.RuledOut, v.NotVisible) {
			if text == "" || strings.Contains(text, "%!") || strings.HasPrefix(text, " ") {
				t.Errorf("%s: %s says %q", name, v.ID, text)
			}
		}
		for _, e := range v.Evidence {
			if e.Text == "" || strings.Contains(e.Text, "%!") {
				t.Errorf("%s: %s has the evidence %q", name, v.ID, e.Text)
			}
		}
		if v.Confidence == record.Certain && !slices.Contains(sure, v.ID) {
			t.Errorf("%s: %s is certain", name, v.ID)
		}
		for _, other := range v.RuledOut {
			if id, _, ok := strings.Cut(other, ": "); ok && id == v.ID {
				t.Errorf("%s: %s rules itself out", name, v.ID)
			}
		}
		// A drop on the way elsewhere is another's word.
		if v.ID == SYNDropped && v.Confidence == record.Certain && !f.here(f.dropOf(event.SYN, false)) {
			t.Errorf("%s: certain of a drop in another namespace", name)
		}
	}
}

// TestEveryID: each cause stands in the table, and each can be found.
func TestEveryID(t *testing.T) {
	ids := []string{
		NoPortTimeWait, NoPortLive, Refused, Unanswered, SYNDropped, SYNACKDropped, NoRoute, ICMP, NoNeighbour, PerHostPAWS,
		TimeWaitAtPeer, HalfOpenAtPeer, SNATClash, ConntrackFull, CloudSNAT, PortCooldown, ListenOverflow, ResetEarly,
	}
	for _, id := range ids {
		if n := len(slices.DeleteFunc(slices.Clone(rules), func(r rule) bool { return r.id != id })); n != 1 {
			t.Errorf("%d rules for %s", n, id)
		}
	}
	if len(rules) != len(ids) {
		t.Errorf("%d rules, want %d", len(rules), len(ids))
	}
	for _, r := range rules {
		for _, other := range r.confusedWith {
			if !slices.Contains(ids, other) {
				t.Errorf("%s is confused with %s, which is none", r.id, other)
			}
		}
	}
}

func TestOfNetNS(t *testing.T) {
	backlog := &Backlog{Port: 80, Length: 2, Owner: event.Owner{PID: 7, Comm: "nginx"}}
	for _, test := range []struct {
		delta map[string]uint64
		want  []string
	}{
		{nil, nil},
		{map[string]uint64{"TW": 5, "ListenDrops": 1}, nil},
		{map[string]uint64{"TCPTimeWaitOverflow": 1}, []string{TimeWaitOverflow}},
		{map[string]uint64{"ListenOverflows": 2, "ListenDrops": 2}, []string{ListenOverflow}},
		{map[string]uint64{"TCPTimeWaitOverflow": 3, "ListenOverflows": 2}, []string{TimeWaitOverflow, ListenOverflow}},
	} {
		var got []string
		for _, v := range OfNetNS(&Counters{NetNS: pod, Line: 3, CountersFields: record.CountersFields{Delta: test.delta}}, 4096, backlog) {
			got = append(got, v.ID)
			if v.Confidence != record.Certain || v.Evidence[0].Line != 3 || v.Text == "" || v.Advice == "" {
				t.Errorf("%v: %+v", test.delta, v)
			}
			if v.ID == ListenOverflow && !strings.Contains(fmt.Sprint(v.Evidence), "nginx (7)") {
				t.Errorf("%v: the listener is not named: %v", test.delta, v.Evidence)
			}
		}
		if !slices.Equal(got, test.want) {
			t.Errorf("%v: %v, want %v", test.delta, got, test.want)
		}
	}
}

// TestAnyFacts: whatever is put together, no verdict is without a reason, nor surer
// than it may be.
func TestAnyFacts(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(n int) int { return r.IntN(n) }
	places := []event.NetNS{{}, pod, other, node, far}
	changes := []func(*Facts){
		atOnce, blind, there, ports(10, 10), ports(10, 1), ports(0, 0), lasting(0), lasting(time.Millisecond),
		resetIn(event.SynSent, true), resetIn(event.SynSent, false), resetIn(event.Established, true),
		silent(3, time.Second, time.Second), newer(1000, other, [2][2]int{{9, 0}, {0, 9}}), newer(-1000, pod, [2][2]int{}),
		previous(time.Second, record.ByPeer), previous(time.Second, record.ByResetSent), previous(0, 0),
		func(f *Facts) { f.Sysctls = nil }, func(f *Facts) { f.Lost = true }, func(f *Facts) { f.Offsets = "per_connection" },
		func(f *Facts) { f.Backlog = &Backlog{Port: 80, Length: 2} },
		func(f *Facts) {
			drop(event.Packet(1+pick(4)), []string{"", "NETFILTER_DROP", "NEIGH_FAILED", "NO_SOCKET"}[pick(4)],
				[]string{"", "nf_hook_slow", "nft_do_chain", "do_xdp_generic", "tcp_v4_rcv"}[pick(5)], places[pick(5)])(f)
		},
		func(f *Facts) {
			counters(places[pick(5)], map[string]uint64{[]string{"ListenOverflows", "PAWSTimewait", "nf_conntrack_insert_failed", "TCPSYNChallenge"}[pick(4)]: uint64(1 + pick(5))})(f)
		},
	}
	errnos := []syscall.Errno{0, syscall.ETIMEDOUT, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EACCES, syscall.EINVAL, syscall.EADDRNOTAVAIL, 524}
	for range 20_000 {
		f := connect(record.Outcome(1+pick(int(record.Outcomes)-1)), errnos[pick(len(errnos))])
		for range pick(6) {
			changes[pick(len(changes))](f)
		}
		check(t, fmt.Sprintf("%+v", f.Record.Connect), f, Of(f))
		if t.Failed() {
			return
		}
	}
}
