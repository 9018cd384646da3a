package track

import (
	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// After events were lost the tables here may hold what has ended, and lack what
// has begun. The kernel programs' own tables are right: they say what is.

// A missing is something that the kernel does not know any more.
type missing struct {
	number uint32
	since  int64 // of a use: it is this one, if it is still in the same stage
}

// Reconcile compares with what tables hands to found: Existing events of all
// sockets, by their address alone, and of all that is in FIN_WAIT2 or TIME_WAIT
// without a socket. What is new is known from then on. What is missing may have
// ended in an event that is still to be read: EndMissing, later, ends it.
func (t *Tracker) Reconcile(tables func(found func(*event.Event)) error) error {
	uses := make([]bool, t.uses.made+1)
	sockets := make([]bool, t.ports.sockets.made+1)
	err := tables(func(e *event.Event) {
		if !e.Tuple.Peer.IsValid() {
			if n := t.ports.byAddress[e.Address]; n != 0 {
				sockets[n] = true
			}
			return
		}
		n := t.uses.find(e.NetNS, e.Tuple)
		// From TIME_WAIT none goes back to FIN_WAIT2: that is another.
		known := n != 0 && (t.uses.at(n).stage == inTimeWait) == (e.New == event.TimeWait)
		if !known && e.New == event.TimeWait && int64(e.InState) <= stale {
			// That it began was lost, or is still to be read. Of an older one that
			// it ended was: it stays in the kernel's tables.
			if entered := e.Clock() - int64(e.InState); n == 0 || entered > t.uses.at(n).left {
				n = t.enter(n, e, entered, e.Active)
				if known = n != 0; known {
					t.uses.at(n).armed = false // maybe later, again
				}
			}
		}
		if known && int(n) < len(uses) {
			uses[n] = true
		}
		// One that is FIN_WAIT2 since before the trace is known by its address.
		if n := t.ports.byAddress[e.Address]; n != 0 {
			sockets[n] = true
		}
	})
	if err != nil {
		return err
	}
	t.missingUses, t.missingSockets = t.missingUses[:0], t.missingSockets[:0]
	for n := t.uses.waiting.first; n != 0; n = t.uses.byAge(n).after {
		if int(n) < len(uses) && !uses[n] {
			t.missingUses = append(t.missingUses, missing{n, t.uses.at(n).since})
		}
	}
	for address, n := range t.ports.byAddress {
		if !sockets[n] {
			t.missingSockets = append(t.missingSockets, address)
		}
	}
	return nil
}

// EndMissing ends what Reconcile missed and no event has ended since, at the time
// of day now, which is clock on the events' clock.
func (t *Tracker) EndMissing(now, clock int64, tell func(moment []record.Record)) {
	for _, m := range t.missingUses {
		use := t.uses.at(m.number)
		if use.stage == past || use.since != m.since {
			continue
		}
		wasTimeWait := use.stage == inTimeWait
		t.detach(m.number)
		t.rest(m.number, clock)
		if !wasTimeWait {
			continue
		}
		use.left = clock
		use.end.TimeWait = event.EndedUnknown
		r := record.Record{
			Kind: record.TimeWaitEnd, Time: now, Socket: use.socket(),
			State:    record.StateFields{Old: event.TimeWait, New: event.Close},
			TimeWait: record.TimeWaitFields{Ended: event.EndedUnknown},
		}
		r.Socket.Owner = use.owner.owner()
		t.moment[0] = r
		tell(t.moment[:1])
	}
	for _, address := range t.missingSockets {
		t.releasePort(address)
	}
	t.missingUses, t.missingSockets = t.missingUses[:0], t.missingSockets[:0]
	if len(t.ports.touched) > 0 {
		t.pressure(&event.Event{Time: now, Mono: clock}, tell)
	}
}
