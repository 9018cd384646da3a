package track

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// A kernel makes up the histories of many connections, as a kernel tells them,
// and knows of each what it is doing: the plain model that the tracker is
// compared with. Its events are in the order in which things happen.
type kernel struct {
	choose  func(n int) int // of 0 to n-1
	tell    func(event.Event)
	now     int64
	address uint64
	conns   []*conn // that hold something
	// over are those that ended, the last one last.
	over []ended
	// ids number the TIME_WAITs: their events carry it as the cookie.
	ids uint64
}

// conn is a connection or attempt, or what is left of it.
type conn struct {
	socket  event.Socket
	active  bool
	bound   bool
	state   event.State // FIN_WAIT2 and TIME_WAIT: of a small socket
	visited event.StateSet
	began   int64
	entered int64
	armed   int64 // or when the SYN was sent last
}

// ended is a use of a four-tuple that ended, and when.
type ended struct {
	socket event.Socket
	at     int64
	how    record.ReuseHow // what a use after it is, where nothing else says
}

var modelPorts = event.PortRange{Low: 40000, High: 40005}

func (k *kernel) destination() event.Socket {
	local := []string{"10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1"}[k.choose(4)]
	peer := []string{"10.0.9.1", "10.0.9.2"}[k.choose(2)]
	if local == "fd00::1" {
		peer = "fd00::9"
	}
	s := event.Socket{NetNS: event.NetNS{Inode: 7, Cookie: uint64(1 + k.choose(2))}}
	s.Tuple.Local = netip.AddrPortFrom(netip.MustParseAddr(local), 0)
	s.Tuple.Peer = netip.AddrPortFrom(netip.MustParseAddr(peer), 80)
	return s
}

// on returns the connection with this four-tuple.
func (k *kernel) on(s event.Socket) *conn {
	for _, c := range k.conns {
		if c.socket.NetNS == s.NetNS && c.socket.Tuple == s.Tuple {
			return c
		}
	}
	return nil
}

func (k *kernel) remove(c *conn) {
	k.conns = slices.DeleteFunc(k.conns, func(other *conn) bool { return other == c })
}

func (k *kernel) change(c *conn, from, to event.State, set func(*event.Event)) {
	c.visited = c.visited.With(to)
	e := event.Event{
		Kind: event.StateChange, Socket: c.socket, Old: from, New: to, Visited: c.visited,
		Began: time.Duration(k.now - c.began), Bound: c.bound,
	}
	if from == event.SynSent || to == event.SynSent {
		e.Ports = modelPorts
	}
	if set != nil {
		set(&e)
	}
	k.send(e)
}

func (k *kernel) send(e event.Event) {
	e.Mono, e.Time = k.now, k.now+int64(24*time.Hour)
	k.tell(e)
	k.now += 1 + int64(k.choose(1000))
}

// step lets one thing happen.
func (k *kernel) step() {
	k.now += int64(k.choose(3000)) * int64(time.Millisecond)
	for _, c := range slices.Clone(k.conns) {
		if c.state == event.TimeWait && k.now >= c.armed+int64(60500*time.Millisecond) {
			k.endTimeWait(c, event.Expired)
		} else if c.state == event.FinWait2 && k.now >= c.armed+int64(60*time.Second) {
			k.endFinWait2(c)
		} else if c.state == event.SynSent && (c.armed == c.began || k.now >= c.armed+int64(30*time.Second)) {
			c.armed = k.now
			k.send(event.Event{Kind: event.SynRetransmit, Socket: c.socket})
		}
	}
	if len(k.conns) == 0 || k.choose(3) == 0 {
		if k.choose(4) == 0 {
			k.accept()
		} else {
			k.connect()
		}
		return
	}
	switch c := k.conns[k.choose(len(k.conns))]; c.state {
	case event.SynSent:
		switch k.choose(3) {
		case 0:
			c.armed = k.now
			k.send(event.Event{Kind: event.SynRetransmit, Socket: c.socket})
		case 1:
			k.establish(c)
		case 2:
			errno := []syscall.Errno{0, syscall.ECONNREFUSED, syscall.ETIMEDOUT}[k.choose(3)]
			k.change(c, event.SynSent, event.Close, func(e *event.Event) { e.Errno, e.Shutdown = errno, errno == 0 })
			k.end(c, record.AfterClose)
		}
	case event.Established:
		k.close(c)
	case event.FinWait2:
		if k.choose(2) == 0 {
			k.enterTimeWait(c)
		} else {
			k.endFinWait2(c)
		}
	case event.TimeWait:
		switch k.choose(3) {
		case 0:
			c.armed = k.now
			e := event.Event{Kind: event.TimeWaitRearm, Socket: c.socket, InState: time.Duration(k.now - c.entered), Active: c.active}
			k.send(e)
		case 1:
			k.endTimeWait(c, []event.Ended{event.TimeWaitReset, event.Killed, event.EndedUnknown}[k.choose(3)])
		}
	}
}

func (k *kernel) connect() {
	s := k.destination()
	k.address++
	c := &conn{socket: s, active: true, state: event.SynSent, began: k.now, armed: k.now}
	c.socket.Address = k.address
	c.socket.Owner = event.Owner{PID: uint32(k.address), Comm: fmt.Sprint("program", k.address%3)}
	var taken *conn
	ended := event.Reused
	port := modelPorts.Low
	if k.choose(5) == 0 { // bound, to one in the range or not
		c.bound = true
		port = []uint16{999, modelPorts.Low, modelPorts.High}[k.choose(3)]
		c.socket.Tuple.Local = netip.AddrPortFrom(s.Tuple.Local.Addr(), port)
		if taken = k.on(c.socket); taken != nil && taken.state != event.TimeWait {
			return // the kernel says EADDRINUSE to bind
		}
		k.change(c, event.Close, event.SynSent, nil)
	} else {
		k.change(c, event.Close, event.SynSent, nil)
		reuses := k.choose(2) == 0
		for ; port <= modelPorts.High; port++ {
			c.socket.Tuple.Local = netip.AddrPortFrom(s.Tuple.Local.Addr(), port)
			taken = k.on(c.socket)
			if taken == nil || reuses && taken.state == event.TimeWait {
				break
			}
		}
		if port > modelPorts.High {
			c.socket.Tuple.Local = s.Tuple.Local
			k.change(c, event.SynSent, event.Close, func(e *event.Event) { e.ResultFollows = true })
			k.send(event.Event{Kind: event.ConnectResult, Socket: c.socket, Errno: syscall.EADDRNOTAVAIL, Started: true})
			return
		}
	}
	if taken != nil {
		k.endTimeWait(taken, ended)
	}
	k.conns = append(k.conns, c)
	if k.choose(4) > 0 {
		k.establish(c)
	}
}

func (k *kernel) establish(c *conn) {
	c.state = event.Established
	k.change(c, event.SynSent, event.Established, nil)
	c.began = k.now
}

func (k *kernel) accept() {
	s := k.destination()
	k.address++
	// This end is the listener's, at the port of a destination.
	s.Tuple.Local, s.Tuple.Peer = netip.AddrPortFrom(s.Tuple.Local.Addr(), 80), netip.AddrPortFrom(s.Tuple.Peer.Addr(), uint16(50000+k.choose(3)))
	s.Address = k.address
	if taken := k.on(s); taken != nil {
		if taken.state != event.TimeWait {
			return
		}
		k.endTimeWait(taken, event.SynAccepted)
	}
	c := &conn{socket: s, state: event.Established, began: k.now}
	k.conns = append(k.conns, c)
	k.change(c, event.Listen, event.SynRecv, nil)
	k.change(c, event.SynRecv, event.Established, nil)
	c.began = k.now
}

func (k *kernel) close(c *conn) {
	switch k.choose(3) {
	case 0:
		k.change(c, event.Established, event.Close, func(e *event.Event) { e.Errno = syscall.ECONNRESET })
		k.end(c, record.AfterClose)
	case 1:
		k.change(c, event.Established, event.CloseWait, nil)
		k.change(c, event.CloseWait, event.LastAck, nil)
		k.change(c, event.LastAck, event.Close, nil)
		k.end(c, record.AfterClose)
	case 2:
		k.change(c, event.Established, event.FinWait1, nil)
		k.change(c, event.FinWait1, event.FinWait2, nil)
		c.state, c.armed, c.entered = event.FinWait2, k.now, k.now
		k.change(c, event.FinWait2, event.Close, func(e *event.Event) { e.Shutdown, e.Lingers = true, true })
		if k.choose(4) > 0 {
			k.enterTimeWait(c)
		}
	}
}

func (k *kernel) enterTimeWait(c *conn) {
	k.ids++
	c.state, c.armed, c.entered, c.socket.Cookie = event.TimeWait, k.now, k.now, k.ids
	k.send(event.Event{Kind: event.TimeWaitEnter, Socket: c.socket, Old: event.FinWait2, New: event.TimeWait, Active: c.active})
}

func (k *kernel) endTimeWait(c *conn, how event.Ended) {
	e := event.Event{
		Kind: event.TimeWaitEnd, Socket: c.socket, Old: event.TimeWait, New: event.Close,
		InState: time.Duration(k.now - c.entered), Ended: how, Active: c.active,
	}
	k.remove(c)
	k.over = append(k.over, ended{c.socket, c.entered, record.AfterTimeWait})
	k.send(e)
}

func (k *kernel) endFinWait2(c *conn) {
	k.remove(c)
	k.over = append(k.over, ended{c.socket, c.entered, record.AfterClose})
	k.send(event.Event{Kind: event.TimeWaitEnd, Socket: c.socket, Old: event.FinWait2, New: event.Close, Ended: event.Expired, Active: c.active})
}

// end notes that a connection left nothing; its CLOSE was told a moment before.
func (k *kernel) end(c *conn, how record.ReuseHow) {
	k.remove(c)
	k.over = append(k.over, ended{c.socket, k.now, how})
}

// usage is how many local ports of the range are held toward a destination, and
// how many of them by TIME_WAITs; and how many TIME_WAITs there are to it at all.
type usage struct{ inUse, timeWait, all uint32 }

func (k *kernel) usage() map[destinationKey]usage {
	toward := make(map[destinationKey]usage)
	for _, c := range k.conns {
		key := towards(&c.socket)
		u := toward[key]
		holds := c.active && modelPorts.Has(c.socket.Tuple.Local.Port())
		if holds {
			u.inUse++
		}
		if c.state == event.TimeWait {
			u.all++
			if holds {
				u.timeWait++
			}
		}
		toward[key] = u
	}
	return toward
}

// TestModel compares what the tracker counts and tells with the model, after
// every step of a history in which nothing is lost.
func TestModel(t *testing.T) {
	r := newRand(t)
	for range 60 {
		playModel(t, r.IntN, 400)
		if t.Failed() {
			return
		}
	}
}

func playModel(t *testing.T, choose func(int) int, steps int) {
	t.Helper()
	tracker := New(Config{AllPorts: true, ResultsSeen: true})
	k := &kernel{choose: choose, now: int64(time.Hour)}
	entered, left := make(map[uint64]int), make(map[uint64]int)
	var current event.Event
	tell := func(moment []record.Record) {
		for i := range moment {
			switch r := &moment[i]; r.Kind {
			case record.TimeWaitEnter:
				entered[r.Socket.Cookie]++
				if want := k.usage()[towards(&r.Socket)].all; r.TimeWait.SameDestination != want {
					t.Errorf("%d TIME_WAITs to the same destination, want %d", r.TimeWait.SameDestination, want)
				}
			case record.TimeWaitEnd:
				left[r.Socket.Cookie]++
				if !r.TimeWait.Exact {
					t.Errorf("an end that is not exact: %+v", r)
				}
			case record.PortReuse:
				checkReuse(t, r)
			case record.Connect:
				if r.Connect.Outcome == record.NoLocalPort && (r.Ports == nil || r.Ports.InUse != r.Ports.Usable) {
					t.Errorf("no local port, and %+v", r.Ports)
				}
			}
		}
		k.checkReuse(t, &current, moment)
	}
	k.tell = func(e event.Event) {
		current = e
		tracker.Observe(&e, tell)
		checkInvariants(t, tracker)
	}
	for range steps {
		k.step()
		k.compare(t, tracker)
		if t.Failed() {
			return
		}
	}
	for id := uint64(1); id <= k.ids; id++ {
		waits := slices.ContainsFunc(k.conns, func(c *conn) bool { return c.socket.Cookie == id })
		if entered[id] != 1 || waits != (left[id] == 0) || left[id] > 1 {
			t.Errorf("TIME_WAIT %d was told to begin %d times and to end %d times", id, entered[id], left[id])
		}
	}
}

// compare compares the counts.
func (k *kernel) compare(t *testing.T, tracker *Tracker) {
	t.Helper()
	want := k.usage()
	for d := range tracker.Destinations(k.now) {
		key := towards(&d.Socket)
		got := usage{d.Ports.InUse, d.Ports.TimeWait, want[key].all}
		if got != want[key] || d.Ports.Usable != 6 || d.Ports.Range != modelPorts {
			t.Errorf("toward %v %+v, want %+v", d.Socket.Tuple, d.Ports, want[key])
		}
		delete(want, key)
	}
	for key, usage := range want {
		if usage.inUse > 0 {
			t.Errorf("toward %v nothing, want %+v", key, usage)
		}
	}
	connections, timeWaits := 0, 0
	for c := range tracker.Connections(k.now) {
		of := k.on(c.Socket)
		isWaiting := of != nil && of.state == event.TimeWait
		if of == nil && c.Socket.Tuple.Local.Port() != 0 || c.TimeWait != isWaiting && of != nil {
			t.Errorf("a connection %+v, want %+v", c, of)
			continue
		}
		if c.TimeWait {
			timeWaits++
			if want := time.Duration(max(of.armed+timeWaitLen-k.now, 1)); c.EndsIn != want || c.Socket.Owner != of.socket.Owner {
				t.Errorf("it ends in %v, want %v; owner %+v, want %+v", c.EndsIn, want, c.Socket.Owner, of.socket.Owner)
			}
		} else {
			connections++
		}
	}
	for _, c := range k.conns {
		switch {
		case c.state == event.TimeWait:
			timeWaits--
		case c.active && c.state != event.FinWait2:
			connections--
		}
	}
	if connections != 0 || timeWaits != 0 {
		t.Errorf("%d connections and %d TIME_WAITs too many", connections, timeWaits)
	}
}

// checkReuse finds by hand what e reuses in this network namespace: the last use
// of its four-tuple, or else of its port.
func (k *kernel) checkReuse(t *testing.T, e *event.Event, moment []record.Record) {
	t.Helper()
	last := moment[len(moment)-1]
	kind := moment[0].Kind
	if len(moment) > 1 {
		kind = moment[1].Kind
	}
	if kind != record.Connect && kind != record.Accept || e.Kind == event.ConnectResult {
		return
	}
	begin := e.Mono - int64(e.Began)
	if kind == record.Accept {
		begin = e.Mono
	}
	tuple := e.Tuple
	var scope record.ReuseScope
	var after int64
	how := record.AfterClose
	for _, u := range slices.Backward(k.over) {
		used := u.socket.Tuple
		if used.Peer != tuple.Peer || used.Local.Port() != tuple.Local.Port() || u.socket.NetNS != e.NetNS || begin-u.at > window {
			continue
		}
		if used.Local == tuple.Local {
			scope, after, how = record.ScopeTuple, begin-u.at, u.how
			break
		}
		if scope == 0 && u.at <= begin {
			scope, after, how = record.ScopePort, begin-u.at, u.how
		}
	}
	if last.Kind != record.PortReuse {
		if scope == record.ScopeTuple {
			t.Errorf("no port_reuse of %v, %v after", tuple, time.Duration(after))
		}
		return
	}
	f := last.Reuse
	if f.How == record.OtherNetNS {
		if scope == record.ScopeTuple {
			t.Errorf("%v moved, and was used here %v before", tuple, time.Duration(after))
		}
		return
	}
	if scope != record.ScopeTuple {
		return // one of several: which is the last, what waits still tells
	}
	switch {
	case isActive(e) && e.Bound:
		how = record.ExplicitBind
	case f.Previous.End.TimeWait == event.Reused:
		how = record.TimeWaitReuse
	case f.Previous.End.TimeWait == event.SynAccepted:
		how = record.AfterSynAccepted
	}
	if f.Scope != scope || f.How != how || f.After < time.Duration(after-int64(time.Millisecond)) || f.After > max(time.Duration(after), 1)+time.Millisecond {
		t.Errorf("port_reuse %+v of %v, want %v, %v, %v after", f, tuple, scope, how, time.Duration(after))
	}
}

// TestDamage: a history of which parts are lost, told twice, or told late. No
// TIME_WAIT is told twice to begin or to end, and what is kept is consistent.
func TestDamage(t *testing.T) {
	r := newRand(t)
	for range 200 {
		playDamaged(t, r.IntN, 300)
		if t.Failed() {
			return
		}
	}
}

func playDamaged(t *testing.T, choose func(int) int, steps int) {
	t.Helper()
	tracker := New(Config{AllPorts: true, PeersFiltered: choose(2) == 0})
	entered, left := make(map[uint64]int), make(map[uint64]int)
	tell := func(moment []record.Record) {
		for i := range moment {
			switch r := &moment[i]; r.Kind {
			case record.TimeWaitEnter:
				entered[r.Socket.Cookie]++
			case record.TimeWaitEnd:
				left[r.Socket.Cookie]++
			case record.PortReuse:
				checkReuse(t, r)
			}
		}
	}
	observe := func(e event.Event) {
		tracker.Observe(&e, tell)
		if err := broken(tracker); err != nil {
			t.Fatalf("after %+v: %v", e, err)
		}
	}
	var late []event.Event
	k := &kernel{choose: choose, now: int64(time.Hour)}
	k.tell = func(e event.Event) {
		switch choose(12) {
		case 0:
			return
		case 1:
			late = append(late, e)
			return
		case 2:
			late = append(late, e)
		}
		observe(e)
		if len(late) > 0 && choose(3) == 0 {
			n := choose(len(late))
			observe(late[n])
			late = slices.Delete(late, n, n+1)
		}
		// What is late by more than the window is as lost.
		late = slices.DeleteFunc(late, func(e event.Event) bool { return k.now-e.Mono > window })
	}
	for range steps {
		k.step()
	}
	tracker.Flush(tell)
	for _, count := range []map[uint64]int{entered, left} {
		for id, n := range count {
			if n > 1 {
				t.Errorf("TIME_WAIT %d was told %d times", id, n)
			}
		}
	}
}

// TestReconcile: after much was lost the tables are compared with what the kernel
// has. Of TIME_WAITs all is known then, and nothing that is over is taken for
// alive.
func TestReconcile(t *testing.T) {
	r := newRand(t)
	for range 100 {
		tracker := New(Config{AllPorts: true, ResultsSeen: true})
		entered, left := make(map[uint64]int), make(map[uint64]int)
		unnamed := 0
		tell := func(moment []record.Record) {
			for i := range moment {
				switch r := &moment[i]; {
				case r.Kind == record.TimeWaitEnter:
					entered[r.Socket.Cookie]++
				case r.Kind == record.TimeWaitEnd && r.Socket.Cookie == 0:
					unnamed++
				case r.Kind == record.TimeWaitEnd:
					left[r.Socket.Cookie]++
				}
			}
		}
		k := &kernel{choose: r.IntN, now: int64(time.Hour)}
		lost := 0
		k.tell = func(e event.Event) {
			if r.IntN(4) == 0 {
				lost++
				return
			}
			tracker.Observe(&e, tell)
			checkInvariants(t, tracker)
		}
		for range 200 {
			k.step()
		}
		if err := tracker.Reconcile(k.tables); err != nil {
			t.Fatal(err)
		}
		tracker.EndMissing(k.now+int64(24*time.Hour), k.now, tell)
		checkInvariants(t, tracker)
		k.compareTimeWaits(t, tracker)
		for id, n := range left {
			if n > 1 || entered[id] > 1 {
				t.Errorf("TIME_WAIT %d was told to begin %d times and to end %d times", id, entered[id], n)
			}
		}
		// A second look finds nothing more.
		before := unnamed
		if err := tracker.Reconcile(k.tables); err != nil {
			t.Fatal(err)
		}
		tracker.EndMissing(k.now+int64(24*time.Hour), k.now, tell)
		if unnamed != before {
			t.Errorf("%d TIME_WAITs more are missing", unnamed-before)
		}
		k.compareTimeWaits(t, tracker)
		if t.Failed() {
			return
		}
	}
}

// TestReconcileOld: a TIME_WAIT whose end the programs never saw stays in their
// tables. It is not taken for alive again with every look at them.
func TestReconcileOld(t *testing.T) {
	for inState, want := range map[time.Duration]int{time.Minute: 1, 3 * time.Minute: 0} {
		tracker := New(Config{AllPorts: true, ResultsSeen: true})
		enter := life(0)[5]
		if err := tracker.Reconcile(func(found func(*event.Event)) error {
			e := event.Event{Kind: event.Existing, Mono: int64(time.Hour), Socket: enter.Socket, New: event.TimeWait, InState: inState, Active: true}
			found(&e)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		waiting := 0
		for c := range tracker.Connections(int64(time.Hour)) {
			if c.TimeWait {
				waiting++
			}
		}
		if waiting != want {
			t.Errorf("after %s: %d in TIME_WAIT, want %d", inState, waiting, want)
		}
	}
}

// tables hands over what the kernel programs' tables hold.
func (k *kernel) tables(found func(*event.Event)) error {
	for _, c := range k.conns {
		e := event.Event{Kind: event.Existing, Mono: k.now, Time: k.now + int64(24*time.Hour), New: c.state}
		if c.state != event.FinWait2 && c.state != event.TimeWait {
			e.Socket.Address = c.socket.Address
		} else {
			e.Socket = c.socket
			e.Socket.Address += 1 << 32 // the small socket's
			e.Active = c.active
			if c.state == event.TimeWait {
				e.InState = time.Duration(k.now - c.entered)
			}
		}
		found(&e)
	}
	return nil
}

// compareTimeWaits checks that exactly the kernel's TIME_WAITs are known, and no
// connects that are none.
func (k *kernel) compareTimeWaits(t *testing.T, tracker *Tracker) {
	t.Helper()
	known := 0
	for c := range tracker.Connections(k.now) {
		of := k.on(c.Socket)
		switch {
		case c.TimeWait && (of == nil || of.state != event.TimeWait):
			t.Errorf("%v is in TIME_WAIT, want %+v", c.Socket.Tuple, of)
		case c.TimeWait:
			known++
		case !slices.ContainsFunc(k.conns, func(of *conn) bool { return of.socket.Address == c.Socket.Address }):
			t.Errorf("a connect that is none: %+v", c)
		}
	}
	for _, c := range k.conns {
		if c.state == event.TimeWait {
			known--
		}
	}
	if known != 0 {
		t.Errorf("%d TIME_WAITs are known that are none, or less", known)
	}
}

// choices makes choices of bytes; when they are used up, always the first.
func choices(b []byte) func(int) int {
	return func(n int) int {
		var number int
		for size := 1; size < n && len(b) > 0; size <<= 8 {
			number, b = number<<8|int(b[0]), b[1:]
		}
		return number % n
	}
}

func randomBytes(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func FuzzModel(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(randomBytes(seed, 400))
	}
	f.Fuzz(func(t *testing.T, b []byte) { playModel(t, choices(b), min(len(b)/4, 200)) })
}

func FuzzDamage(f *testing.F) {
	for seed := range uint64(4) {
		f.Add(randomBytes(seed, 400))
	}
	f.Fuzz(func(t *testing.T, b []byte) { playDamaged(t, choices(b), min(len(b)/4, 200)) })
}
