package track

import (
	"net/netip"
	"slices"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// reuse finds, in t.reused, which earlier use of its ports a connection or attempt
// that began at the time begin follows; it returns false where none is remembered.
func (t *Tracker) reuse(e *event.Event, begin int64) bool {
	if !e.Tuple.Peer.IsValid() || e.Tuple.Local.Port() == 0 || !e.Tuple.Local.Addr().IsValid() {
		return false
	}
	pair, local := pairOf(e.Tuple), e.Tuple.Local.Addr().As16()
	var same uint32
	var moved, port *use
	for n, u := range t.uses.of(e.NetNS, pair) {
		switch {
		case u.ended > e.Clock(): // later, or what is left of this very one
		case u.local == local:
			same = n
		case u.isBefore(begin):
			port = latest(port, u)
		}
	}
	if netns := t.cameFrom(e); netns != (event.NetNS{}) {
		for _, u := range t.uses.of(netns, pair) {
			if u.local == local && u.isBefore(begin) {
				moved = u
			}
		}
	}
	t.reused = record.ReuseFields{}
	fields := &t.reused
	var u *use
	if same != 0 {
		u = t.uses.at(same)
		fields.How = howAgain(u, e)
		if u.stage != past { // that it ended was lost
			t.detach(same)
			t.rest(same, e.Clock())
		}
		if u.ended != 0 && begin-u.ended > window {
			u = nil
		}
	}
	switch {
	case u != nil:
		fields.Scope = record.ScopeTuple
	case moved != nil:
		u, fields.Scope, fields.How = moved, record.ScopeTuple, record.OtherNetNS
	case port != nil:
		u, fields.Scope, fields.How = port, record.ScopePort, howAfter(port, e)
	default:
		return false
	}
	if u.ended != 0 {
		fields.After = time.Duration(max(begin-u.ended, 1))
	}
	fields.Previous = record.PreviousUse{End: u.end, Owner: u.owner.owner(), NetNS: u.netns}
	wall := e.Time - e.Clock()
	if u.began != 0 {
		fields.Previous.Time = u.began + wall
	}
	if u.ended != 0 {
		fields.Previous.Ended = u.ended + wall
	}
	if fields.Scope == record.ScopePort {
		fields.Previous.Local = u.socket().Tuple.Local.Addr()
	}
	return true
}

// isBefore reports whether a use was over at the time begin, and its window was not;
// where its end is not known it is taken for that.
func (use *use) isBefore(begin int64) bool {
	return use.ended <= begin && (use.ended == 0 || begin-use.ended <= window)
}

func latest(a, b *use) *use {
	if a == nil || b.ended > a.ended {
		return b
	}
	return a
}

// howAgain tells how a connection got the four-tuple that u had before.
func howAgain(u *use, e *event.Event) record.ReuseHow {
	active := isActive(e)
	switch {
	case active && e.Bound:
		return record.ExplicitBind
	// Where the end of its TIME_WAIT was lost, it was taken all the same.
	case active && (u.stage == inTimeWait || u.end.TimeWait == event.Reused):
		return record.TimeWaitReuse
	case !active && (u.stage == inTimeWait || u.end.TimeWait == event.SynAccepted):
		return record.AfterSynAccepted
	default:
		return howAfter(u, e)
	}
}

// howAfter is howAgain where nothing had to make way: the port was free.
func howAfter(u *use, e *event.Event) record.ReuseHow {
	switch {
	case isActive(e) && e.Bound:
		return record.ExplicitBind
	case u.stage == inTimeWait || u.end.TimeWait != 0:
		return record.AfterTimeWait
	default:
		return record.AfterClose
	}
}

func isActive(e *event.Event) bool { return e.Visited.With(e.Old).Has(event.SynSent) }

// maxPlaces bounds the local addresses of which it is known where they are.
const maxPlaces = 64 << 10

// A place is where a local address is used, and where it was before.
type place struct {
	now    event.NetNS
	before [3]event.NetNS // the last first
	// shared: it came back to where it was, so it is in both.
	shared bool
}

// isMovable reports whether an address belongs to one network namespace at a
// time, as a pod's does.
func isMovable(address netip.Addr) bool {
	return address.IsValid() && !address.IsUnspecified() && !address.IsLoopback() && !address.IsLinkLocalUnicast()
}

// locate follows a local address from one network namespace to another.
func (t *Tracker) locate(e *event.Event) {
	address := e.Tuple.Local.Addr()
	if !isMovable(address) {
		return
	}
	p, ok := t.places[address.As16()]
	switch {
	case ok && p.now == e.NetNS:
		return
	case !ok && len(t.places) >= maxPlaces:
		clear(t.places)
	case ok:
		p.shared = p.shared || slices.Contains(p.before[:], e.NetNS)
		p.before = [3]event.NetNS{p.now, p.before[0], p.before[1]}
	}
	p.now = e.NetNS
	t.places[address.As16()] = p
}

// cameFrom returns where the local address of e was before it moved to where e is:
// none where it did not.
func (t *Tracker) cameFrom(e *event.Event) event.NetNS {
	p := t.places[e.Tuple.Local.Addr().As16()]
	if !isMovable(e.Tuple.Local.Addr()) || p.shared || p.now != e.NetNS {
		return event.NetNS{}
	}
	return p.before[0]
}

// socket is whose port a use had.
func (u *use) socket() event.Socket {
	key := u.toward()
	s := key.socket()
	s.Tuple.Local = netip.AddrPortFrom(s.Tuple.Local.Addr(), u.pair.lport)
	return s
}
