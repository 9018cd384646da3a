package track

import (
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// A teller numbers what it is told, as the log does, and keeps the case of each
// connect and close.
type teller struct {
	tracker *Tracker
	now     time.Duration
	lines   uint64
	records []record.Record
	cases   []Case
}

func newTeller() *teller {
	return &teller{tracker: New(Config{ResultsSeen: true, AllPorts: true}), now: time.Hour}
}

func (l *teller) tell(moment []record.Record) {
	for i := range moment {
		r := &moment[i]
		if r.Kind == record.Connect || r.Kind == record.Close {
			l.cases = append(l.cases, l.tracker.Case(moment, r))
		}
		l.lines++
		r.Line = l.lines
		l.records = append(l.records, *r)
	}
}

// observe observes e, so much later than the one before.
func (l *teller) observe(later time.Duration, e event.Event) {
	l.now += later
	e.Time, e.Mono = int64(l.now), int64(l.now)
	l.tracker.Observe(&e, l.tell)
}

func (l *teller) last() Case { return l.cases[len(l.cases)-1] }

// attemptOf is a connect's socket.
func attemptOf(address uint64, netns uint32, local string, peer netip.AddrPort) event.Socket {
	return event.Socket{Address: address, Cookie: address, NetNS: event.NetNS{Inode: netns}, Tuple: event.Tuple{Local: netip.MustParseAddrPort(local), Peer: peer}}
}

func syn(s event.Socket) event.Event {
	return event.Event{Kind: event.StateChange, Socket: s, Old: event.Close, New: event.SynSent}
}

// endOf is the end of an attempt that took so long.
func endOf(s event.Socket, to event.State, errno syscall.Errno, took time.Duration, tsval, isn uint32) event.Event {
	return event.Event{
		Kind: event.StateChange, Socket: s, Old: event.SynSent, New: to, Visited: event.StateSet(0).With(event.SynSent).With(to),
		Errno: errno, Began: took, InState: took, TSVal: tsval, HasTSVal: tsval != 0, ISN: isn,
	}
}

func dropOf(packet event.Packet, isn uint32, location, reason string, netns uint32) event.Event {
	e := event.Event{Kind: event.Drop, Packet: packet, ISN: isn, Location: location, Reason: reason}
	e.NetNS.Inode = netns
	e.Tuple = event.Tuple{Local: netip.MustParseAddrPort("10.88.0.2:80"), Peer: netip.MustParseAddrPort("10.88.0.1:50000")}
	return e
}

// TestDropsOfACase: dropped packets are those of the connect with the same sequence
// number, whatever NAT made of their ends, while it went on.
func TestDropsOfACase(t *testing.T) {
	l := newTeller()
	s := attemptOf(1, 10, "10.77.1.2:40000", there)
	l.observe(0, dropOf(event.SYN, 77, "nf_hook_slow", "NETFILTER_DROP", 12)) // of an earlier one
	l.observe(time.Minute, syn(s))
	l.observe(time.Millisecond, dropOf(event.SYN, 78, "nf_hook_slow", "NETFILTER_DROP", 12)) // of another
	l.observe(3*time.Second, endOf(s, event.Close, syscall.ETIMEDOUT, 3*time.Second, 0, 77))
	if drops := l.last().Drops; len(drops) != 0 {
		t.Errorf("drops of others: %+v", drops)
	}

	l.observe(time.Minute, syn(s))
	l.observe(time.Millisecond, dropOf(event.SYN, 79, "nf_hook_slow", "NETFILTER_DROP", 12))
	line := l.lines
	l.observe(time.Second, dropOf(event.SYN, 79, "nf_hook_slow", "NETFILTER_DROP", 12))
	l.observe(time.Second, dropOf(event.SYNACK, 79, "ip_rcv_finish_core", "IP_RPFILTER", 10))
	l.observe(time.Second, endOf(s, event.Close, syscall.ETIMEDOUT, 3*time.Second, 0, 79))
	drops := l.last().Drops
	if len(drops) != 2 || drops[0].Line != line || drops[0].Count != 2 || drops[0].Reverse || drops[0].NetNS.Inode != 12 ||
		!drops[1].Reverse || drops[1].Packet != event.SYNACK || drops[1].Reason != "IP_RPFILTER" {
		t.Errorf("drops: %+v", drops)
	}
}

// TestDropsThatAreNone: what TCP frees since it is done with it is no drop, or tells
// of nothing.
func TestDropsThatAreNone(t *testing.T) {
	for _, test := range []struct {
		name string
		e    event.Event
		line bool // it has one
		seen bool // it counts
	}{
		{"a RST that TCP has taken", dropOf(event.RST, 5, "tcp_v4_rcv", "", 10), false, false},
		{"an ACK that TCP has taken", dropOf(event.ACK, 5, "tcp_v4_do_rcv", "", 10), false, false},
		{"a SYN that came again for a request", func() event.Event {
			e := dropOf(event.SYN, 5, "tcp_v4_rcv", "", 10)
			e.New = event.NewSynRecv
			return e
		}(), false, false},
		{"a SYN that TCP has freed, and does not say why", dropOf(event.SYN, 5, "tcp_v4_rcv", "", 10), true, false},
		{"a SYN without a socket", dropOf(event.SYN, 5, "tcp_v4_rcv", "NO_SOCKET", 10), true, true},
		{"a RST that a rule drops", dropOf(event.RST, 5, "nft_do_chain", "NETFILTER_DROP", 10), true, true},
	} {
		l := newTeller()
		s := attemptOf(1, 10, "10.77.1.2:40000", there)
		l.observe(0, syn(s))
		before := l.lines
		l.observe(time.Millisecond, test.e)
		if got := l.lines > before; got != test.line {
			t.Errorf("%s: told: %v", test.name, got)
		}
		l.observe(time.Second, endOf(s, event.Close, syscall.ETIMEDOUT, time.Second, 0, 5))
		if got := len(l.last().Drops) > 0; got != test.seen {
			t.Errorf("%s: counts: %v", test.name, got)
		}
	}
}

// TestSeenOfAnAttempt: what was seen goes with the socket, and ends with it.
func TestSeenOfAnAttempt(t *testing.T) {
	l := newTeller()
	s := attemptOf(1, 10, "10.77.1.2:40000", there)
	l.observe(0, syn(s))
	l.observe(time.Second, event.Event{Kind: event.SynRetransmit, Socket: s, Retransmits: 1})
	again := l.lines
	l.observe(time.Millisecond, event.Event{Kind: event.ResetSent, Socket: s, New: event.SynSent, Reason: "TCP_INVALID_ACK_SEQUENCE"})
	l.observe(time.Millisecond, endOf(s, event.Established, 0, time.Second, 0, 1))
	c := l.last()
	if len(c.Retransmits) != 1 || c.Retransmits[0] != again || len(c.Resets) != 1 || c.Resets[0].Received || c.Resets[0].State != event.SynSent {
		t.Errorf("%+v", c)
	}
	// A RST that comes after the end stays with nobody: the kernel uses the
	// memory again.
	l.observe(time.Second, event.Event{Kind: event.ResetSent, Socket: s, New: event.Close})
	l.observe(time.Second, syn(s))
	l.observe(time.Second, endOf(s, event.Close, syscall.ETIMEDOUT, time.Second, 0, 2))
	if c := l.last(); len(c.Resets) != 0 || len(c.Retransmits) != 0 {
		t.Errorf("of an earlier socket: %+v", c)
	}
}

// TestPredictions: the order of TSvals from all network namespaces predicts whom a peer
// with tcp_tw_recycle answers.
func TestPredictions(t *testing.T) {
	l := newTeller()
	a, b := attemptOf(1, 10, "10.77.1.2:40000", there), attemptOf(2, 11, "10.77.2.2:40000", there)
	connected := func(s event.Socket, tsval uint32) {
		l.observe(time.Second, syn(s))
		l.observe(time.Millisecond, endOf(s, event.Established, 0, time.Millisecond, tsval, 1))
	}
	silent := func(s event.Socket, tsval uint32) Case {
		l.observe(time.Second, syn(s))
		l.observe(time.Second, endOf(s, event.Close, 0, time.Second, tsval, 1))
		return l.last()
	}
	const high = 1<<32 - 1500 // the clock wraps round within the test
	connected(a, high)
	if c := silent(b, high-1000); c.Peer.Newest.TSVal != high || c.Peer.Newest.NetNS.Inode != 10 || c.Peer.Predicted != [2][2]int{{1, 0}, {0, 1}} {
		t.Errorf("older: %+v", c.Peer)
	}
	connected(a, 500) // newer, past the wrap
	if c := silent(b, 100); c.Peer.Predicted != [2][2]int{{2, 0}, {0, 2}} || c.Peer.Newest.TSVal != 500 {
		t.Errorf("past the wrap: %+v", c.Peer)
	}
	if c := silent(b, 499); c.Peer.Predicted != [2][2]int{{2, 1}, {0, 2}} {
		t.Errorf("older by one only: %+v", c.Peer)
	}
	// Within a minute of silence the peer forgets.
	l.observe(61*time.Second, syn(b))
	l.observe(time.Second, endOf(b, event.Close, 0, time.Second, 100, 1))
	if c := l.last(); c.Peer.Newest.Ago != 0 || c.Peer.Predicted != [2][2]int{{2, 2}, {0, 2}} {
		t.Errorf("forgotten: %+v", c.Peer)
	}
	// What the close says counts, too; other destinations don't.
	connected(a, 1000)
	l.observe(time.Second, event.Event{
		Kind: event.StateChange, Socket: a, Old: event.LastAck, New: event.Close, TSVal: 9000, HasTSVal: true, Began: time.Second,
		Visited: event.StateSet(0).With(event.SynSent).With(event.Established),
	})
	if c := silent(b, 5000); c.Peer.Newest.TSVal != 9000 {
		t.Errorf("the close's: %+v", c.Peer)
	}
	elsewhere := attemptOf(3, 11, "10.77.2.2:40000", netip.MustParseAddrPort("10.0.0.9:443"))
	if c := silent(elsewhere, 1); c.Peer.Newest.Ago != 0 {
		t.Errorf("another destination's: %+v", c.Peer)
	}
}

// TestSilence: who has no answer from a destination, and what answers otherwise.
func TestSilence(t *testing.T) {
	l := newTeller()
	other := netip.MustParseAddrPort("10.0.0.9:443")
	a, b := attemptOf(1, 10, "10.77.1.2:40000", there), attemptOf(2, 11, "10.77.2.2:40000", there)
	for _, s := range []event.Socket{a, attemptOf(3, 11, "10.77.2.2:40001", other)} {
		l.observe(time.Second, syn(s))
		l.observe(time.Millisecond, endOf(s, event.Established, 0, time.Millisecond, 0, 1))
	}
	for i, s := range []event.Socket{a, b} {
		l.observe(time.Second, syn(s))
		l.observe(3*time.Second, endOf(s, event.Close, syscall.ETIMEDOUT, 3*time.Second, 0, 1))
		p := l.last().Peer
		if p.SilentFrom != i+1 || p.Answered == 0 || (p.ElsewhereAnswered != 0) != (s.NetNS.Inode == 11) || p.Rate <= 0 {
			t.Errorf("%d: %+v", i, p)
		}
	}
	l.observe(3*time.Minute, syn(b))
	l.observe(3*time.Second, endOf(b, event.Close, syscall.ETIMEDOUT, 3*time.Second, 0, 1))
	if p := l.last().Peer; p.SilentFrom != 1 || p.Answered != 0 || p.ElsewhereAnswered != 0 {
		t.Errorf("long ago: %+v", p)
	}
}

// TestBoundsOfCases: the tables do not grow without end.
func TestBoundsOfCases(t *testing.T) {
	l := newTeller()
	for i := range uint32(3 * maxPeers) {
		peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 80)
		s := attemptOf(uint64(i+1), 10, "10.77.1.2:40000", peer)
		l.observe(time.Microsecond, event.Event{Kind: event.SynRetransmit, Socket: s, Retransmits: 1})
		l.observe(time.Microsecond, dropOf(event.SYN, i, "nf_hook_slow", "", 10))
		if i%2 == 0 {
			l.observe(time.Microsecond, endOf(s, event.Close, syscall.ETIMEDOUT, time.Second, 1, i))
		}
		l.records, l.cases = l.records[:0], l.cases[:0]
	}
	if a, d, p := len(l.tracker.attempts), len(l.tracker.drops), len(l.tracker.peers); a > maxAttempts || d > maxDropped || p > maxPeers {
		t.Errorf("%d attempts, %d drops, %d peers", a, d, p)
	}
}
