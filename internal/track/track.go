// Package track tells what the events of the kernel mean: how a connect ended,
// who closed a connection. It is pure: no clock, no I/O, and time comes with
// the events, so that a log is told as the live run was.
package track

import (
	"net/netip"
	"syscall"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// The kernel programs keep a socket's history and hand it on with every event,
// so that an event that is lost takes none of its neighbours' meaning with it.
// Only two events are told together with the next of the same socket.
const (
	// patience is how long an event waits for the next one. Both come from
	// one call or one packet.
	patience = int64(time.Second)
	// maxHeld bounds the events that wait.
	maxHeld = 4096
)

// Tracker turns events into records.
type Tracker struct {
	// held are events that wait for the next one of the same socket, by
	// its address.
	held map[uint64]event.Event
	// oldest is no later than the Clock of any held event.
	oldest int64
	config Config
	uses   uses
	ports  ports
	places map[[16]byte]place
	// attempts are by the address of their socket.
	attempts map[uint64]*attempt
	// drops are by the sequence number of the SYN.
	drops   map[uint32]*dropped
	peers   map[netip.AddrPort]*peer
	answers map[event.NetNS]answer
	// told is what the event that is being told of says of itself.
	told struct {
		active bool
		isn    uint32
	}
	now int64 // its time
	// missingUses and missingSockets, these by address, are gone as far as
	// the kernel knows.
	missingUses    []missing
	missingSockets []uint64
	// moment is room for what is told: no event tells more than three records.
	moment     [3]record.Record
	reused     record.ReuseFields
	portsTold  record.PortsFields
	holderTold record.PortHolder
}

// Config tells what the events can't.
type Config struct {
	// PeersFiltered: the kernel filters by peer. A passive open whose peer
	// never becomes known may be one that it left out.
	PeersFiltered bool
	// ResultsSeen: the results of connect calls come as ConnectResults,
	// and need not be inferred.
	ResultsSeen bool
	// AllPorts: every socket that holds a local port is seen, whoever's it
	// is. Else there is no telling how many are taken.
	AllPorts bool
}

// New returns a Tracker.
func New(config Config) *Tracker {
	return &Tracker{
		held: make(map[uint64]event.Event), config: config,
		uses: newUses(maxUses), ports: newPorts(maxLive, maxUses), places: make(map[[16]byte]place),
		attempts: make(map[uint64]*attempt), drops: make(map[uint32]*dropped),
		peers: make(map[netip.AddrPort]*peer), answers: make(map[event.NetNS]answer),
	}
}

// Observe tells what e means, a moment at a time: a state and what it made. It
// tells nothing where e must wait for the next event of its socket. A moment is
// the tracker's again when tell returns.
func (t *Tracker) Observe(e *event.Event, tell func(moment []record.Record)) {
	t.told.active, t.told.isn, t.now = isActive(e), e.ISN, e.Clock()
	t.expire(t.now)
	switch e.Kind {
	case event.TimeWaitEnter, event.TimeWaitRearm, event.TimeWaitEnd:
		t.timeWait(e, tell)
	case event.Existing:
		t.existing(e)
		return // levels are told when something happens
	case event.Drop:
		t.drop(e, tell)
		return
	default:
		t.connection(e, tell)
	}
	if len(t.ports.touched) > 0 {
		t.pressure(e, tell)
	}
}

// connection observes what happens to a socket.
func (t *Tracker) connection(e *event.Event, tell func(moment []record.Record)) {
	t.count(e)
	if e.Kind == event.StateChange {
		switch e.New {
		case event.SynSent, event.SynRecv:
			t.locate(e)
			delete(t.attempts, e.Address) // of a socket that was there before
		case event.Established:
			t.locate(e) // before 6.18 a clone shows its listener's address first
		}
	}
	moment := t.moment[:0]
	if held, ok := t.held[e.Address]; ok {
		delete(t.held, e.Address)
		if held.ResultFollows && e.Kind == event.ConnectResult {
			moment, _ = appendChange(moment, record.State, &held)
		} else {
			t.release(&held, e, tell)
		}
	}
	if t.mustWait(e) && len(t.held) < maxHeld {
		if len(t.held) == 0 || e.Clock() < t.oldest {
			t.oldest = e.Clock()
		}
		t.held[e.Address] = *e
		return
	}
	if moment = t.records(moment, e); len(moment) > 0 {
		tell(moment)
		t.learn(e, moment)
	}
}

// records appends what e means by itself.
func (t *Tracker) records(moment []record.Record, e *event.Event) []record.Record {
	switch e.Kind {
	case event.StateChange:
		return t.stateChange(moment, e)
	case event.ConnectResult:
		moment, r := appendRecord(moment, record.Connect, e)
		if e.Started {
			r.State = record.StateFields{Old: event.SynSent, New: event.Close, Duration: e.InState}
		}
		r.Connect = record.ConnectFields{Outcome: outcome(e.Errno), Errno: e.Errno, Duration: e.InState}
		if r.Connect.Outcome == record.NoLocalPort {
			r.Ports = t.portsOf(e)
		}
		return moment
	case event.SynRetransmit, event.SynAckRetransmit:
		t.keep(e)
		moment, r := appendRecord(moment, record.SynRetransmit, e)
		r.SYN = record.SYNFields{SynAck: e.Kind == event.SynAckRetransmit, Attempt: e.Retransmits}
		return moment
	case event.ResetSent, event.ResetReceived:
		moment, r := appendRecord(moment, record.Reset, e)
		r.Reset = record.ResetFields{Received: e.Kind == event.ResetReceived, Reason: e.Reason}
		return moment
	}
	return moment
}

// mustWait reports whether the next event of the socket tells what e can't:
// the errno of a call that just failed, or whom a passive open comes from.
func (t *Tracker) mustWait(e *event.Event) bool {
	return e.Kind == event.StateChange && e.Address != 0 &&
		(e.ResultFollows || e.New == event.SynRecv && !e.Tuple.Peer.IsValid())
}

// release tells a held event, now that the next one of its socket is here, and
// is not the result that it waited for.
func (t *Tracker) release(held, next *event.Event, tell func(moment []record.Record)) {
	if !held.ResultFollows && next.Tuple.Peer.IsValid() && next.Visited.With(next.Old).Has(event.SynRecv) {
		held.Tuple = next.Tuple
		t.tellChange(held, tell)
		return
	}
	t.giveUp(held, tell)
}

// Tick tells the events that have waited long enough at the time now, in Unix
// nanoseconds, a moment at a time.
func (t *Tracker) Tick(now int64, tell func(moment []record.Record)) {
	if len(t.held) == 0 || now-t.oldest < patience {
		return
	}
	t.oldest = now
	for address, held := range t.held {
		if now-held.Clock() < patience {
			t.oldest = min(t.oldest, held.Clock())
			continue
		}
		delete(t.held, address)
		t.giveUp(&held, tell)
	}
}

// Flush tells all events that wait, at the end.
func (t *Tracker) Flush(tell func(moment []record.Record)) {
	for address, held := range t.held {
		delete(t.held, address)
		t.giveUp(&held, tell)
	}
}

// giveUp tells an event whose next one never came.
func (t *Tracker) giveUp(held *event.Event, tell func(moment []record.Record)) {
	if held.ResultFollows || !t.config.PeersFiltered {
		t.tellChange(held, tell)
	}
}

func (t *Tracker) tellChange(e *event.Event, tell func(moment []record.Record)) {
	t.told.active, t.told.isn, t.now = isActive(e), e.ISN, e.Clock()
	moment := t.stateChange(t.moment[:0], e)
	tell(moment)
	t.learn(e, moment)
}

// appendRecord appends a record about the socket of e to a moment, where the caller
// finishes it: they are large, and to copy them costs most. It has room (Tracker.moment).
func appendRecord(moment []record.Record, kind record.Kind, e *event.Event) ([]record.Record, *record.Record) {
	n := len(moment)
	moment = moment[:n+1]
	r := &moment[n]
	*r = record.Record{}
	r.Kind, r.Time, r.Socket = kind, e.Time, e.Socket
	return moment, r
}

// appendChange is appendRecord for what a change of state tells.
func appendChange(moment []record.Record, kind record.Kind, e *event.Event) ([]record.Record, *record.Record) {
	moment, r := appendRecord(moment, kind, e)
	r.State = record.StateFields{Old: e.Old, New: e.New, Duration: e.InState}
	return moment, r
}

// stateChange tells a change and what it made: a connect that ended, a passive
// open that is established, a connection that closed.
func (t *Tracker) stateChange(moment []record.Record, e *event.Event) []record.Record {
	moment, _ = appendChange(moment, record.State, e)
	// A socket that the programs had no room for brings no history.
	visited := e.Visited.With(e.Old).With(e.New)
	switch {
	case e.New == event.Established && visited.Has(event.SynSent),
		e.New == event.Close && visited.Has(event.SynSent) && !wasEstablished(visited):
		moment, r := appendChange(moment, record.Connect, e)
		r.Connect = t.connect(e)
		outcome := r.Connect.Outcome
		if outcome == record.NoLocalPort {
			r.Ports = t.portsOf(e)
			return moment
		}
		moment = t.again(moment, e, e.Clock()-int64(e.Began))
		if e.New == event.Close {
			t.closed(e, record.UseEnd{Outcome: outcome})
		}
		return moment
	case e.New == event.Established && e.Old == event.SynRecv:
		moment, r := appendChange(moment, record.Accept, e)
		r.Accept = record.AcceptFields{Duration: e.Handshake}
		return t.again(moment, e, e.Clock()-int64(e.Handshake))
	case e.New == event.Close && wasEstablished(visited):
		moment, r := appendChange(moment, record.Close, e)
		r.Close = record.CloseFields{
			By: closeBy(e), Duration: e.Began,
			BytesSent: e.BytesSent, BytesReceived: e.BytesReceived,
			TSValLast: e.TSVal, HasTSValLast: e.HasTSVal,
		}
		t.closed(e, record.UseEnd{Close: r.Close.By})
		return moment
	}
	return moment
}

// again appends that a connection or attempt, which began at the time begin, has
// ports that were used before.
func (t *Tracker) again(moment []record.Record, e *event.Event, begin int64) []record.Record {
	if !t.reuse(e, begin) {
		return moment
	}
	moment, r := appendRecord(moment, record.PortReuse, e)
	r.Reuse = &t.reused
	return moment
}

// wasEstablished reports whether a connection got past its handshake; the
// states beyond ESTABLISHED say so where its beginning was not seen.
func wasEstablished(visited event.StateSet) bool {
	for _, s := range []event.State{event.Established, event.FinWait1, event.FinWait2, event.CloseWait, event.LastAck, event.Closing} {
		if visited.Has(s) {
			return true
		}
	}
	return false
}

func (t *Tracker) connect(e *event.Event) record.ConnectFields {
	fields := record.ConnectFields{
		Duration: e.Began, Retransmits: e.Retransmits,
		TSVal: e.TSVal, HasTSVal: e.HasTSVal,
	}
	switch {
	case e.New == event.Established:
		fields.Outcome = record.Established
	case e.Errno != 0:
		fields.Errno = e.Errno
		fields.Outcome = outcome(e.Errno)
	case t.noLocalPort(e):
		fields.Errno = syscall.EADDRNOTAVAIL
		fields.Outcome = record.NoLocalPort
		fields.HasTSVal = false
	case e.ResultFollows:
		fields.Outcome = record.Failed
	default:
		fields.Outcome = record.Abandoned
	}
	return fields
}

// sameCall is longer than the kernel takes from SYN_SENT to finding no port,
// and shorter than a program takes to change its mind.
const sameCall = 10 * time.Millisecond

// noLocalPort infers EADDRNOTAVAIL where no hook saw the call's result. The
// kernel sets no error of the socket for it; but nobody had closed the socket,
// and it has no port, or one of the program's choice and no time has passed
// (tcp_v4_connect, 5.10 to 7.2).
func (t *Tracker) noLocalPort(e *event.Event) bool {
	if e.Shutdown {
		return false
	}
	atOnce := e.InState > 0 && e.InState < sameCall
	return e.Tuple.Local.Port() == 0 || atOnce && !t.config.ResultsSeen
}

// outcome sorts a connect by the errno that it ended with.
func outcome(errno syscall.Errno) record.Outcome {
	switch errno {
	case syscall.ECONNREFUSED:
		return record.Refused
	case syscall.ETIMEDOUT:
		return record.TimedOut
	case syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EHOSTDOWN, syscall.ENETDOWN:
		return record.Unreachable
	case syscall.EADDRNOTAVAIL:
		return record.NoLocalPort
	case syscall.EACCES, syscall.EPERM:
		return record.Denied
	case syscall.ECONNRESET:
		return record.ConnectionReset
	}
	return record.Failed
}

// closeBy tells who ended a connection, by its error and by the state that it
// was in last.
func closeBy(e *event.Event) record.CloseBy {
	switch e.Errno {
	case 0:
	case syscall.ECONNRESET, syscall.EPIPE:
		// tcp_reset() says EPIPE where the peer had closed before.
		return record.ByResetReceived
	case syscall.ECONNABORTED:
		// SOCK_DESTROY, as by ss -K: tcp_abort() sends a RST.
		return record.ByResetSent
	default:
		// tcp_write_err(): ETIMEDOUT, or what ICMP had said meanwhile.
		return record.ByTimeout
	}
	switch e.Old {
	case event.Closing:
		return record.ByBoth
	case event.LastAck:
		return record.ByPeer
	case event.FinWait2:
		return record.ByLocal
	default:
		// Straight to CLOSE: SO_LINGER 0, data that nobody read, data that
		// came after the close.
		return record.ByResetSent
	}
}
