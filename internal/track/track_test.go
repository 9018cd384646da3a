package track

import (
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

var (
	here  = netip.MustParseAddrPort("10.0.0.1:5000")
	there = netip.MustParseAddrPort("10.0.0.2:80")
)

// newRand returns a generator whose seed a failing test tells.
func newRand(t *testing.T) *rand.Rand {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	return rand.New(rand.NewPCG(seed, 0))
}

// pick returns one of choices.
func pick[T any](r *rand.Rand, choices ...T) T { return choices[r.IntN(len(choices))] }

// TestOutcomes: the errno decides, whoever tells of it.
func TestOutcomes(t *testing.T) {
	named := map[syscall.Errno]record.Outcome{
		syscall.ECONNREFUSED:  record.Refused,
		syscall.ETIMEDOUT:     record.TimedOut,
		syscall.EHOSTUNREACH:  record.Unreachable,
		syscall.ENETUNREACH:   record.Unreachable,
		syscall.EHOSTDOWN:     record.Unreachable,
		syscall.ENETDOWN:      record.Unreachable,
		syscall.EADDRNOTAVAIL: record.NoLocalPort,
		syscall.EACCES:        record.Denied,
		syscall.EPERM:         record.Denied,
		syscall.ECONNRESET:    record.ConnectionReset,
	}
	for errno := syscall.Errno(1); errno < 600; errno++ {
		want := named[errno]
		if want == 0 {
			want = record.Failed
		}
		for _, e := range []event.Event{
			{Kind: event.StateChange, Old: event.SynSent, New: event.Close, Errno: errno, Began: time.Second},
			{Kind: event.StateChange, Old: event.SynSent, New: event.Close, Errno: errno, Began: time.Second, Shutdown: true},
			{Kind: event.ConnectResult, Errno: errno, InState: time.Second},
			{Kind: event.ConnectResult, Errno: errno, InState: time.Second, Started: true},
		} {
			var got []record.ConnectFields
			New(Config{}).Observe(&e, func(moment []record.Record) {
				for _, r := range moment {
					if r.Kind == record.Connect {
						got = append(got, r.Connect)
					}
				}
			})
			if diff := cmp.Diff([]record.ConnectFields{{Outcome: want, Errno: errno, Duration: time.Second}}, got); diff != "" {
				t.Errorf("%v of %+v (-want +got):\n%s", errno, e, diff)
			}
		}
	}
}

// told are the records that came of events, by the event: its place among them,
// which its cookie holds.
type told struct {
	states, connects, others, reuses map[uint64]int
}

// observe numbers the events, gives them all to a tracker, and checks what holds
// for any, however wrong their order.
func observe(t *testing.T, tracker *Tracker, events []event.Event, tick func(now int64) bool) told {
	t.Helper()
	got := told{make(map[uint64]int), make(map[uint64]int), make(map[uint64]int), make(map[uint64]int)}
	tell := func(moment []record.Record) {
		if moment[0].Kind == record.PortPressure {
			if len(moment) != 1 || moment[0].Ports == nil || moment[0].Ports.InUse > moment[0].Ports.Usable {
				t.Errorf("a moment of pressure: %+v", moment)
			}
			return // of no single socket
		}
		checkMoment(t, moment, events)
		for _, r := range moment {
			switch r.Kind {
			case record.State:
				got.states[r.Socket.Cookie]++
			case record.Connect:
				got.connects[r.Socket.Cookie]++
			case record.PortReuse:
				got.reuses[r.Socket.Cookie]++
			default:
				got.others[r.Socket.Cookie]++
			}
		}
	}
	for i := range events {
		e := &events[i]
		e.Cookie = uint64(i)
		tracker.Observe(e, tell)
		checkInvariants(t, tracker)
		if len(tracker.held) > maxHeld {
			t.Fatalf("%d events are held, more than %d", len(tracker.held), maxHeld)
		}
		if _, ok := tracker.held[0]; ok {
			t.Fatal("an event is held that has no address to tell its next one by")
		}
		if tick(e.Time) {
			tracker.Tick(e.Time, tell)
			for _, held := range tracker.held {
				if e.Time-held.Time >= patience {
					t.Errorf("an event of %v is held at %v", time.Duration(held.Time), time.Duration(e.Time))
				}
			}
		}
	}
	tracker.Flush(tell)
	if len(tracker.held) != 0 {
		t.Errorf("%d events are held after the end", len(tracker.held))
	}

	for i := range events {
		e, id := &events[i], uint64(i)
		states, connects, others := got.states[id], got.connects[id], got.others[id]
		nameless := e.New == event.SynRecv && !e.Tuple.Peer.IsValid()
		isState := e.Kind == event.StateChange
		if got.reuses[id] > min(1, connects+others) {
			t.Errorf("%d port_reuse, %d connect and %d other records of event %d, %+v", got.reuses[id], connects, others, i, *e)
		}
		switch {
		case e.Kind == event.TimeWaitEnter, e.Kind == event.TimeWaitEnd:
			if states+connects > 0 || others > 1 {
				t.Errorf("%d state, %d connect and %d other records of event %d, %+v", states, connects, others, i, *e)
			}
		case e.Kind == event.TimeWaitRearm, e.Kind == event.Existing:
			if states+connects+others > 0 {
				t.Errorf("%d state, %d connect and %d other records of event %d, %+v", states, connects, others, i, *e)
			}
		case e.Kind == event.Drop && states+connects == 0 && others <= 1:
		case isState && states == 0 && tracker.config.PeersFiltered && nameless && connects+others == 0:
		case isState && states == 1 && connects+others <= 1:
		case e.Kind == event.ConnectResult && states == 0 && connects == 1 && others == 0:
		case !isState && e.Kind > event.ConnectResult && e.Kind < event.TimeWaitEnter && states+connects == 0 && others == 1:
		case (e.Kind == 0 || e.Kind >= event.Kinds) && states+connects+others == 0:
		default:
			t.Errorf("%d state, %d connect and %d other records of event %d, %+v", states, connects, others, i, *e)
		}
	}
	return got
}

// checkMoment checks the form of a moment, on which the tail relies: a state
// and what it made, or one record that stands for itself.
func checkMoment(t *testing.T, moment []record.Record, events []event.Event) {
	t.Helper()
	if n := len(moment); n > 1 && moment[n-1].Kind == record.PortReuse {
		checkReuse(t, &moment[n-1])
		moment = moment[:n-1]
		if of := moment[n-2].Kind; of != record.Connect && of != record.Accept {
			t.Errorf("a port_reuse after a %v", of)
		}
	}
	if len(moment) == 0 || len(moment) > 2 {
		t.Errorf("a moment of %d records", len(moment))
		return
	}
	last := &moment[len(moment)-1]
	e := &events[last.Socket.Cookie]
	if last.Time != e.Time {
		t.Errorf("time %d of a record, %d of its event", last.Time, e.Time)
	}
	if len(moment) == 2 {
		first := &moment[0]
		if first.Kind != record.State || last.Kind == record.State || last.Kind == record.SynRetransmit || last.Kind == record.Reset {
			t.Errorf("a moment of %v and %v", first.Kind, last.Kind)
		}
		// A connect that the call's result settles ends when it returns.
		if first.Time != last.Time && e.Kind != event.ConnectResult {
			t.Errorf("times %d and %d in one moment", first.Time, last.Time)
		}
		if first.Socket.Address != last.Socket.Address {
			t.Errorf("sockets %d and %d in one moment", first.Socket.Address, last.Socket.Address)
		}
	}
	if last.Kind == record.State || e.Kind == event.StateChange {
		if want := (record.StateFields{Old: e.Old, New: e.New, Duration: e.InState}); last.State != want {
			t.Errorf("%v of %+v has the change %+v", last.Kind, *e, last.State)
		}
	}
	switch last.Kind {
	case record.Connect:
		established := last.Connect.Errno == 0 && last.State.New == event.Established
		if (last.Connect.Outcome == record.Established) != established || last.Connect.Outcome.String() == "invalid" {
			t.Errorf("connect %v with errno %d, to %v", last.Connect.Outcome, last.Connect.Errno, last.State.New)
		}
	case record.Accept:
		if last.State.Old != event.SynRecv || last.State.New != event.Established {
			t.Errorf("accept at %v from %v", last.State.New, last.State.Old)
		}
	case record.Close:
		if last.State.New != event.Close || last.Close.By.String() == "invalid" {
			t.Errorf("close by %v at %v", last.Close.By, last.State.New)
		}
	}
}

// checkReuse checks that a port_reuse makes sense by itself.
func checkReuse(t *testing.T, r *record.Record) {
	t.Helper()
	f := r.Reuse
	if f == nil || f.How.String() == "invalid" || f.After < 0 || f.After > time.Duration(window) {
		t.Errorf("port_reuse %+v", f)
		return
	}
	if f.Previous.Ended != 0 && (f.Previous.Ended > r.Time || f.Previous.Time > f.Previous.Ended) {
		t.Errorf("at %d a port_reuse after %+v", r.Time, f.Previous)
	}
	if (f.How == record.OtherNetNS) != (f.Previous.NetNS != r.Socket.NetNS) || f.Previous.Local.IsValid() != (f.Scope == record.ScopePort) {
		t.Errorf("port_reuse %+v of %+v", f, r.Socket)
	}
}

// anyEvent returns an event that no kernel need ever send.
func anyEvent(r *rand.Rand, now int64) event.Event {
	e := event.Event{
		Kind:          event.Kind(r.IntN(int(event.Kinds) + 1)),
		Time:          now,
		Socket:        event.Socket{Address: r.Uint64N(6)},
		Old:           event.State(r.IntN(16)),
		New:           event.State(r.IntN(16)),
		Visited:       event.StateSet(r.Uint32()),
		InState:       time.Duration(r.Int64N(int64(30 * time.Millisecond))),
		Began:         time.Duration(r.Int64N(int64(time.Second))),
		Errno:         pick(r, 0, 0, 0, syscall.Errno(r.IntN(600))),
		ResultFollows: r.IntN(4) == 0,
		Shutdown:      r.IntN(2) == 0,
		Started:       r.IntN(2) == 0,
		Retransmits:   r.Uint32N(8),
	}
	if r.IntN(2) == 0 {
		e.Kind = event.StateChange
	}
	if r.IntN(2) == 0 {
		e.Old, e.New = event.Listen, event.SynRecv
	}
	if r.IntN(3) == 0 {
		e.Kind = pick(r, event.TimeWaitEnter, event.TimeWaitRearm, event.TimeWaitEnd)
		e.Old = pick(r, event.FinWait2, event.TimeWait)
	}
	if e.Kind == event.Drop {
		e.Packet = event.Packet(1 + r.IntN(int(event.Packets)-1))
		e.Location = pick(r, "", "nf_hook_slow", "tcp_v4_rcv")
	}
	e.NetNS.Inode = r.Uint32N(2)
	e.Active, e.Bound, e.Lingers = r.IntN(2) == 0, r.IntN(4) == 0, r.IntN(2) == 0
	e.Ended = event.Ended(1 + r.IntN(int(event.Endings)-1))
	e.Ports = pick(r, event.PortRange{}, event.PortRange{Low: 5000, High: 5001}, event.PortRange{Low: 5000, High: 5000})
	e.Tuple.Peer = pick(r, netip.AddrPort{}, there)
	e.Tuple.Local = pick(r, netip.AddrPort{}, netip.AddrPortFrom(here.Addr(), 0), here, here)
	return e
}

// TestAnyOrder: events in any order, twice, or not at all, from several CPUs
// whose clocks differ a little.
func TestAnyOrder(t *testing.T) {
	r := newRand(t)
	for range 2000 {
		events := make([]event.Event, r.IntN(60))
		now := int64(time.Hour)
		for i := range events {
			now += r.Int64N(patience/2) - patience/8
			events[i] = anyEvent(r, now)
			if i > 0 && r.IntN(8) == 0 {
				events[i] = events[i-1]
			}
		}
		observe(t, New(Config{PeersFiltered: r.IntN(2) == 0, AllPorts: r.IntN(2) == 0}), events, func(int64) bool { return r.IntN(3) == 0 })
		if t.Failed() {
			return
		}
	}
}

// anAttempt returns a connect with all that comes of it, as the kernel tells it.
func anAttempt(r *rand.Rand, address uint64) []event.Event {
	var visited event.StateSet
	change := func(from, to event.State) event.Event {
		visited = visited.With(to)
		e := event.Event{Kind: event.StateChange, Old: from, New: to, Visited: visited}
		e.Tuple.Peer = there
		if from != event.Close {
			e.Tuple.Local = here
		}
		return e
	}
	failed := func(errno syscall.Errno, shutdown bool) event.Event {
		e := change(event.SynSent, event.Close)
		e.Errno, e.Shutdown = errno, shutdown
		return e
	}
	result := func(errno syscall.Errno, started bool) event.Event {
		return event.Event{Kind: event.ConnectResult, Errno: errno, Started: started, Socket: event.Socket{Tuple: event.Tuple{Peer: there}}}
	}
	var events []event.Event
	if r.IntN(6) == 0 {
		events = append(events, result(pick(r, syscall.ENETUNREACH, syscall.EPERM), false))
	} else {
		events = append(events, change(event.Close, event.SynSent))
		for n := range r.Uint32N(3) {
			events = append(events, event.Event{Kind: event.SynRetransmit, Retransmits: n + 1})
		}
		switch r.IntN(6) {
		case 0:
			events = append(events, failed(pick(r, syscall.ECONNREFUSED, syscall.ETIMEDOUT, syscall.EHOSTUNREACH), false))
		case 1:
			events = append(events, failed(0, true))
		case 2: // no hook at the call
			e := failed(0, false)
			e.Tuple.Local = netip.AddrPort{}
			events = append(events, e)
		case 3:
			e := failed(0, false)
			e.ResultFollows = true
			events = append(events, e, result(syscall.EADDRNOTAVAIL, true))
		case 4:
			events = append(events, change(event.SynSent, event.SynRecv), change(event.SynRecv, event.Established))
			fallthrough
		default:
			if !visited.Has(event.Established) {
				events = append(events, change(event.SynSent, event.Established))
			}
			events = append(events, change(event.Established, event.CloseWait), change(event.CloseWait, event.LastAck))
			if r.IntN(2) == 0 {
				events = append(events, event.Event{Kind: event.ResetReceived})
			}
			events = append(events, change(event.LastAck, event.Close))
		}
	}
	for i := range events {
		events[i].Address = address
	}
	return events
}

// TestOneConnectAnAttempt: an attempt gives exactly one connect record, and at
// most one where events of it are lost; whatever happens on other sockets, and
// on the same one before and after.
func TestOneConnectAnAttempt(t *testing.T) {
	r := newRand(t)
	for round := range 300 {
		lossy := round%2 == 1
		var events []event.Event
		var attemptOf []int
		queues := make([][]event.Event, 4)
		current := make([]int, len(queues))
		attempts := 0
		for len(events) < 300 {
			q := r.IntN(len(queues))
			if len(queues[q]) == 0 {
				queues[q] = anAttempt(r, uint64(q+1))
				current[q] = attempts
				attempts++
			}
			e := queues[q][0]
			queues[q] = queues[q][1:]
			if lossy && r.IntN(4) == 0 {
				continue
			}
			e.Time = int64(len(events)) * int64(time.Millisecond)
			events = append(events, e)
			attemptOf = append(attemptOf, current[q])
		}
		got := observe(t, New(Config{}), events, func(int64) bool { return r.IntN(10) == 0 })

		connects := make([]int, attempts)
		for id, n := range got.connects {
			connects[attemptOf[id]] += n
		}
		unfinished := make(map[int]bool)
		for q := range queues {
			if len(queues[q]) > 0 {
				unfinished[current[q]] = true
			}
		}
		for attempt, n := range connects {
			if n > 1 || n == 0 && !lossy && !unfinished[attempt] {
				t.Errorf("%d connect records of attempt %d", n, attempt)
				for i, of := range attemptOf {
					if of == attempt {
						t.Logf("%+v", events[i])
					}
				}
				return
			}
		}
		if t.Failed() {
			return
		}
	}
}

// TestHeldIsBounded: when each of very many sockets waits for an event that
// does not come, all are told all the same.
func TestHeldIsBounded(t *testing.T) {
	for _, e := range []event.Event{
		{Kind: event.StateChange, Old: event.SynSent, New: event.Close, ResultFollows: true},
		{Kind: event.StateChange, Old: event.Listen, New: event.SynRecv},
	} {
		events := slices.Repeat([]event.Event{e}, 2*maxHeld+1)
		for i := range events {
			events[i].Address = uint64(i + 1)
		}
		got := observe(t, New(Config{}), events, func(int64) bool { return false })
		if len(got.states) != len(events) {
			t.Errorf("%d of %d changes were told", len(got.states), len(events))
		}
	}
}

// TestWaiting: a passive open without its peer is told within the second, also
// where the times of two CPUs are out of order.
func TestWaiting(t *testing.T) {
	tracker := New(Config{})
	var got []int64
	tell := func(moment []record.Record) { got = append(got, moment[0].Time) }
	for i, now := range []int64{100, 50} {
		e := event.Event{Kind: event.StateChange, Time: now, Old: event.Listen, New: event.SynRecv}
		e.Address = uint64(i + 1)
		tracker.Observe(&e, tell)
	}
	for _, step := range []struct {
		now  int64
		want []int64
	}{
		{49 + patience, nil},
		{50 + patience, []int64{50}},
		{99 + patience, []int64{50}},
		{100 + patience, []int64{50, 100}},
		{200 + patience, []int64{50, 100}},
	} {
		tracker.Tick(step.now, tell)
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("at %d (-want +got):\n%s", step.now, diff)
		}
	}
}

// plain are events whose records need no room that is not there.
var plain = map[string]event.Event{
	"state": {
		Kind: event.StateChange, Old: event.Established, New: event.FinWait1,
		Socket: event.Socket{Address: 1, Tuple: event.Tuple{Local: here, Peer: there}},
	},
	"connect": {
		Kind: event.StateChange, Old: event.SynSent, New: event.Established,
		Socket: event.Socket{Address: 1, Tuple: event.Tuple{Local: here, Peer: there}},
	},
	"close": {
		Kind: event.StateChange, Old: event.LastAck, New: event.Close,
		Socket: event.Socket{Address: 1, Tuple: event.Tuple{Local: here, Peer: there}},
	},
	"result": {Kind: event.ConnectResult, Errno: syscall.ENETUNREACH},
	"reset":  {Kind: event.ResetSent, Reason: "NO_SOCKET"},
}

func TestObserveAllocations(t *testing.T) {
	for name, e := range plain {
		tracker := New(Config{})
		records := 0
		tell := func(moment []record.Record) { records += len(moment) }
		if n := testing.AllocsPerRun(100, func() { tracker.Observe(&e, tell) }); n != 0 {
			t.Errorf("%s: %v allocations an event", name, n)
		}
		if records == 0 {
			t.Errorf("%s: nothing is told", name)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, name := range slices.Sorted(maps.Keys(plain)) {
		b.Run(name, func(b *testing.B) {
			tracker, e := New(Config{}), plain[name]
			tell := func([]record.Record) {}
			b.ReportAllocs()
			for b.Loop() {
				tracker.Observe(&e, tell)
			}
		})
	}
	b.Run("accept before 6.18", func(b *testing.B) {
		tracker := New(Config{})
		tell := func([]record.Record) {}
		first := event.Event{Kind: event.StateChange, Old: event.Listen, New: event.SynRecv, Socket: event.Socket{Address: 1}}
		second := event.Event{Kind: event.StateChange, Old: event.SynRecv, New: event.Established, Socket: event.Socket{Address: 1, Tuple: event.Tuple{Peer: there}}}
		b.ReportAllocs()
		for b.Loop() {
			tracker.Observe(&first, tell)
			tracker.Observe(&second, tell)
		}
	})
}

// FuzzObserve takes twelve bytes for an event.
func FuzzObserve(f *testing.F) {
	const size = 12
	encode := func(events ...[size]byte) (b []byte) {
		for _, e := range events {
			b = append(b, e[:]...)
		}
		return b
	}
	state := byte(event.StateChange)
	f.Add(encode(), false)
	f.Add(encode( // accept before 6.18
		[size]byte{state, byte(event.Listen), byte(event.SynRecv), 1},
		[size]byte{state, byte(event.SynRecv), byte(event.Established), 1, 1, 0, 1 << event.SynRecv},
	), true)
	f.Add(encode( // no local port
		[size]byte{state, byte(event.SynSent), byte(event.Close), 1, 1 | 2},
		[size]byte{byte(event.ConnectResult), 0, 0, 1, 1, byte(syscall.EADDRNOTAVAIL)},
	), false)
	f.Add(encode( // a TIME_WAIT, and a connect that takes it
		[size]byte{state, byte(event.FinWait2), byte(event.Close), 1, 1 | 16 | 32 | 64, 0, 1<<event.SynSent | 1<<event.FinWait2},
		[size]byte{byte(event.TimeWaitEnter), byte(event.FinWait2), byte(event.TimeWait), 2, 1 | 16, 0, 0, 0, 4},
		[size]byte{byte(event.TimeWaitRearm), 0, 0, 2, 1 | 16, 0, 0, 0, 4, 0, 0, 1},
		[size]byte{byte(event.TimeWaitEnd), byte(event.TimeWait), byte(event.Close), 2, 1 | 16, 0, 0, 0, 4, 0, byte(event.Reused), 2},
		[size]byte{state, byte(event.SynSent), byte(event.Established), 1, 1 | 16, 0, 1 << event.SynSent, 0, 8, 2},
	), false)
	f.Fuzz(func(t *testing.T, b []byte, filtered bool) {
		var events []event.Event
		for ; len(b) >= size; b = b[size:] {
			e := event.Event{
				Kind:          event.Kind(b[0]),
				Time:          int64(time.Hour) + int64(len(events))*patience/3,
				Socket:        event.Socket{Address: uint64(b[3])},
				Old:           event.State(b[1]),
				New:           event.State(b[2]),
				ResultFollows: b[4]&2 != 0,
				Shutdown:      b[4]&4 != 0,
				Started:       b[4]&8 != 0,
				Errno:         syscall.Errno(b[5]),
				Visited:       event.StateSet(uint16(b[6]) | uint16(b[7])<<8),
				Lingers:       b[4]&32 != 0,
				Bound:         b[8]&1 != 0,
				Active:        b[8]&4 != 0,
				Ended:         event.Ended(b[10]),
				InState:       time.Duration(b[11]) * time.Duration(patience/3),
				Began:         time.Duration(b[11]) * time.Duration(patience/3),
			}
			e.NetNS.Inode = uint32(b[8] >> 4)
			if b[9] != 0 {
				e.Ports = event.PortRange{Low: 5000, High: 5000 + uint16(b[9]-1)}
			}
			if b[4]&1 != 0 {
				e.Tuple.Peer = there
			}
			if b[4]&16 != 0 {
				e.Tuple.Local = here
			}
			events = append(events, e)
		}
		observe(t, New(Config{PeersFiltered: filtered}), events, func(now int64) bool { return now/(patience/3)%2 == 0 })
	})
}

// TestRecordsAreOfTheirEvent: what an event knows of its socket its records
// tell, and a passive open tells whom its next event names.
func TestRecordsAreOfTheirEvent(t *testing.T) {
	owner := event.Owner{PID: 1, TID: 2, UID: 3, Comm: "nginx", Cgroup: 4}
	first := event.Event{
		Kind: event.StateChange, Time: 5, Old: event.Listen, New: event.SynRecv,
		Socket: event.Socket{Address: 6, Cookie: 7, NetNS: event.NetNS{Inode: 8, Cookie: 9}, Owner: owner, Tuple: event.Tuple{Local: here}},
	}
	second := first
	second.Time, second.Old, second.New, second.Tuple.Peer = 10, event.SynRecv, event.Established, there
	second.Handshake = time.Millisecond

	var got []record.Record
	tracker := New(Config{PeersFiltered: true})
	for _, e := range []event.Event{first, second} {
		tracker.Observe(&e, func(moment []record.Record) { got = append(got, moment...) })
	}
	established := record.StateFields{Old: event.SynRecv, New: event.Established}
	want := []record.Record{
		{Kind: record.State, Time: 5, Socket: second.Socket, State: record.StateFields{Old: event.Listen, New: event.SynRecv}},
		{Kind: record.State, Time: 10, Socket: second.Socket, State: established},
		{Kind: record.Accept, Time: 10, Socket: second.Socket, State: established, Accept: record.AcceptFields{Duration: time.Millisecond}},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
