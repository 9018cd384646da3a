package track

import (
	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// timeWait observes what happens to a TIME_WAIT.
func (t *Tracker) timeWait(e *event.Event, tell func(moment []record.Record)) {
	if !e.Tuple.Peer.IsValid() || !e.Tuple.Local.IsValid() {
		return
	}
	switch {
	case e.Kind == event.TimeWaitEnter:
		sameDestination, isNew := t.enterTimeWait(e)
		if !isNew {
			return
		}
		_, r := appendRecord(t.moment[:0], record.TimeWaitEnter, e)
		r.State = record.StateFields{Old: e.Old, New: event.TimeWait, Duration: e.InState}
		if t.config.AllPorts {
			r.TimeWait.SameDestination = sameDestination
		}
	case e.Kind == event.TimeWaitRearm:
		t.rearm(e)
		return
	case e.Old == event.FinWait2:
		t.endFinWait2(e)
		return
	default:
		if !t.endTimeWait(e) {
			return
		}
		_, r := appendRecord(t.moment[:0], record.TimeWaitEnd, e)
		r.State = record.StateFields{Old: event.TimeWait, New: event.Close, Duration: e.InState}
		r.TimeWait = record.TimeWaitFields{Ended: e.Ended, Duration: e.InState, Exact: e.InState > 0}
	}
	tell(t.moment[:1])
}

// enterTimeWait notes that a TIME_WAIT began, and returns how many there are to
// the same destination, 0 where there is no room for it; isNew is false where it
// was told before.
func (t *Tracker) enterTimeWait(e *event.Event) (sameDestination uint32, isNew bool) {
	now := e.Clock()
	// In FIN_WAIT2 since before the trace, it was known by its address.
	holds := t.releasePort(e.Address) || e.Active
	n := t.uses.find(e.NetNS, e.Tuple)
	if n != 0 {
		switch use := t.uses.at(n); {
		case now <= use.entered:
			return 0, false
		case now <= use.left, now < use.ended: // its end, or a later connection's, came first
			use.entered = now
			return t.sameDestination(use) + 1, true
		case use.stage == inFinWait2 && use.where != 0:
			holds = true
		}
	}
	if n = t.enter(n, e, now, holds); n == 0 {
		return 0, true
	}
	use := t.uses.at(n)
	use.entered = now
	return t.sameDestination(use), true
}

func (t *Tracker) sameDestination(use *use) uint32 {
	return t.uses.sameDestination[t.uses.hash(use.toward())]
}

// enter puts the use of e's four-tuple, n or a new one, into TIME_WAIT, which began
// at the time entered. It returns it, 0 where there is no room.
func (t *Tracker) enter(n uint32, e *event.Event, entered int64, holdsPort bool) uint32 {
	follows := n != 0 && t.uses.at(n).stage == inFinWait2 && entered >= t.uses.at(n).ended
	if n = t.take(n, e); n == 0 {
		return 0
	}
	use := t.uses.at(n)
	if !follows { // its CLOSE was lost
		use.begin(e)
	} else if e.Owner.Known() {
		use.owner = holderOf(e.Owner)
	}
	use.ended = entered
	t.wait(n, inTimeWait, holdsPort, e.Clock())
	use.armed = true
	return n
}

// rearm notes that the 60 s of a TIME_WAIT begin again.
func (t *Tracker) rearm(e *event.Event) {
	n, now := t.uses.find(e.NetNS, e.Tuple), e.Clock()
	entered := now - int64(e.InState)
	if n == 0 || t.uses.at(n).stage != inTimeWait {
		// That it began was lost, unless this is late.
		if e.InState > 0 && (n == 0 || entered > max(t.uses.at(n).left, t.uses.at(n).entered)) {
			t.enter(n, e, entered, e.Active)
		}
		return
	}
	use := t.uses.at(n)
	if now < use.since {
		return
	}
	use.since, use.armed = now, true
	t.uses.waiting.remove(n, t.uses.byAge)
	t.uses.waiting.push(n, t.uses.byAge)
	if use.where != 0 {
		siblings := &t.ports.at(use.where).timeWaits
		siblings.remove(n, t.uses.siblings)
		siblings.push(n, t.uses.siblings)
	}
}

// endFinWait2 notes that a small socket in FIN_WAIT2 ended, and never was
// TIME_WAIT.
func (t *Tracker) endFinWait2(e *event.Event) {
	t.releasePort(e.Address) // where it is older than the trace
	if n := t.uses.find(e.NetNS, e.Tuple); n != 0 && t.uses.at(n).stage == inFinWait2 && e.Clock() >= t.uses.at(n).ended {
		t.detach(n)
		t.rest(n, e.Clock())
	}
}

// endTimeWait notes the end of a TIME_WAIT. It reports false where that end was
// told before.
func (t *Tracker) endTimeWait(e *event.Event) bool {
	t.releasePort(e.Address) // in FIN_WAIT2 since before the trace; that it began was lost
	n, now := t.uses.find(e.NetNS, e.Tuple), e.Clock()
	entered := now - int64(e.InState)
	known := false
	if n != 0 {
		use := t.uses.at(n)
		if entered <= use.left {
			return false
		}
		if now < use.ended { // since then there was another connection
			use.left = now
			return true
		}
		known = use.stage == inFinWait2 && entered >= use.ended || use.stage == inTimeWait && (e.InState == 0 || use.ended == entered)
	}
	if n = t.take(n, e); n == 0 {
		return true
	}
	use := t.uses.at(n)
	if !known { // all before was lost, or is older than the trace
		use.begin(e)
	} else if e.Owner.Known() {
		use.owner = holderOf(e.Owner)
	}
	if e.InState > 0 {
		use.ended = entered
	}
	use.left = now
	use.end.TimeWait = e.Ended
	t.rest(n, now)
	return true
}

// existing learns of a socket that is older than the trace.
func (t *Tracker) existing(e *event.Event) {
	if e.New == event.Listen {
		t.ports.listening[listener{e.NetNS, e.Tuple.Local.Port()}] = true
		return
	}
	if !e.Tuple.Peer.IsValid() || !e.Tuple.Local.IsValid() {
		return
	}
	t.locate(e)
	// Who opened the connection isn't known any more. A port of the range
	// where nobody listens is a connect's.
	port := e.Tuple.Local.Port()
	holdsPort := e.Ports.High != 0 && e.Ports.Has(port) && !t.ports.listening[listener{e.NetNS, port}]
	if e.New != event.TimeWait {
		if holdsPort && e.New != event.Close {
			t.hold(e)
		}
		return
	}
	if t.uses.find(e.NetNS, e.Tuple) != 0 {
		return // seen since
	}
	if n := t.take(0, e); n != 0 {
		t.wait(n, inTimeWait, holdsPort, e.Clock())
		t.setRange(t.uses.at(n).where, e.Ports, e.Clock())
	}
}
