package track

import (
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// holding is a tracker, and TIME_WAITs of one destination that come and go.
type holding struct {
	t       *testing.T
	tracker *Tracker
	now     int64
	ports   event.PortRange
	told    []record.PortsFields
	taken   int
}

func newHolding(t *testing.T, ports event.PortRange) *holding {
	return &holding{t: t, tracker: New(Config{AllPorts: true, ResultsSeen: true}), now: int64(time.Hour), ports: ports}
}

func (h *holding) observe(e event.Event, port uint16) {
	h.t.Helper()
	h.now += int64(time.Millisecond)
	e.Time = h.now
	e.Address = uint64(port)
	e.Tuple = event.Tuple{Local: netip.AddrPortFrom(here.Addr(), port), Peer: there}
	h.tracker.Observe(&e, func(moment []record.Record) {
		for _, r := range moment {
			if r.Kind == record.PortPressure {
				h.told = append(h.told, *r.Ports)
			}
		}
	})
	checkInvariants(h.t, h.tracker)
}

// hold takes or frees ports until n are taken.
func (h *holding) hold(n int) {
	h.t.Helper()
	if h.taken == 0 && n > 0 { // which tells the range
		h.observe(event.Event{Kind: event.Existing, New: event.TimeWait, Ports: h.ports}, h.ports.Low)
		h.taken++
	}
	for ; h.taken < n; h.taken++ {
		h.observe(event.Event{Kind: event.TimeWaitEnter, Old: event.FinWait2, New: event.TimeWait, Active: true}, h.ports.Low+uint16(h.taken))
	}
	for ; h.taken > n; h.taken-- {
		h.observe(event.Event{Kind: event.TimeWaitEnd, Old: event.TimeWait, Ended: event.Expired}, h.ports.Low+uint16(h.taken-1))
	}
}

// TestLevels: 50, 80, 95 and 100 % are told once on the way up, and that the use is
// back under 50 %. What goes up and down by a port or two at the others is not.
func TestLevels(t *testing.T) {
	h := newHolding(t, event.PortRange{Low: 40000, High: 40099})
	for _, step := range []struct {
		hold int
		want []uint32 // in use, where told
	}{
		{49, nil}, {50, []uint32{50}}, {79, nil}, {49, []uint32{49}}, {50, []uint32{50}}, {79, nil},
		{80, []uint32{80}}, {79, nil}, {80, nil}, {60, nil}, {81, nil},
		{95, []uint32{95}}, {94, nil}, {96, nil}, {99, nil},
		{100, []uint32{100}}, {99, nil}, {100, nil}, {96, nil}, {100, nil},
		// Left well below, each is a crossing again.
		{94, nil}, {100, []uint32{100}}, {79, nil}, {100, []uint32{95, 100}},
		{44, []uint32{49}}, {45, nil}, {50, []uint32{50}}, {0, []uint32{49}},
	} {
		h.told = nil
		h.hold(step.hold)
		var got []uint32
		for _, f := range h.told {
			got = append(got, f.InUse)
			if f.TimeWait != f.InUse || f.Usable != 100 || f.Reserved >= 0 || f.Range != h.ports {
				t.Errorf("%+v", f)
			}
		}
		if !slices.Equal(got, step.want) {
			t.Errorf("to %d: told %v, want %v", step.hold, got, step.want)
		}
	}
	if n := h.tracker.ports.slab.inUse(); n != 0 {
		t.Errorf("%d destinations are left", n)
	}
}

// TestExhaustedIn: at the rate of the last seconds, and only where the number
// grows.
func TestExhaustedIn(t *testing.T) {
	h := newHolding(t, event.PortRange{Low: 40000, High: 40099})
	h.hold(2) // what was there before is no growth
	h.now += int64(48*time.Second) - 48*int64(time.Millisecond)
	h.hold(50)
	if f := h.told[0]; !f.Exhausts || f.ExhaustedIn.Round(time.Second) != 50*time.Second {
		t.Errorf("%+v, want 50 s", f)
	}
	h.hold(100)
	if f := h.told[len(h.told)-1]; !f.Exhausts || f.ExhaustedIn != 0 {
		t.Errorf("%+v, want now", f)
	}
	h.hold(0)
	if f := h.told[len(h.told)-1]; f.Exhausts {
		t.Errorf("%+v, want never", f)
	}
}

// TestReservedPorts: whatever the ranges are, no more is reserved than there is.
func TestReservedPorts(t *testing.T) {
	for _, test := range []struct {
		reserved []event.PortRange
		want     record.PortsFields
	}{
		{nil, record.PortsFields{Usable: 10}},
		{[]event.PortRange{{Low: 1, High: 39999}, {Low: 40010, High: 65535}}, record.PortsFields{Usable: 10}},
		{[]event.PortRange{{Low: 39990, High: 40001}, {Low: 40009, High: 40020}}, record.PortsFields{Usable: 7, Reserved: 3}},
		{[]event.PortRange{{Low: 1, High: 65535}}, record.PortsFields{Reserved: 10}},
		{[]event.PortRange{{Low: 40000, High: 40008}, {Low: 40001, High: 40009}}, record.PortsFields{Reserved: 10}},
		{[]event.PortRange{{Low: 40009, High: 40000}}, record.PortsFields{Usable: 10}},
	} {
		h := newHolding(t, event.PortRange{Low: 40000, High: 40009})
		h.tracker.Describe(event.NetNS{}, test.reserved)
		h.hold(1)
		for d := range h.tracker.Destinations(h.now) {
			test.want.Range, test.want.InUse = h.ports, min(1, test.want.Usable)
			test.want.TimeWait, test.want.ExhaustedIn, test.want.Exhausts = test.want.InUse, d.Ports.ExhaustedIn, test.want.Usable == 0
			if diff := cmp.Diff(test.want, d.Ports); diff != "" {
				t.Errorf("%v (-want +got):\n%s", test.reserved, diff)
			}
		}
	}
}

// TestOwnRanges: sockets with ranges of their own (IP_LOCAL_PORT_RANGE) take turns
// toward one destination. What is held is counted anew once a second at most.
func TestOwnRanges(t *testing.T) {
	h := newHolding(t, event.PortRange{})
	one, other := event.PortRange{Low: 40000, High: 40009}, event.PortRange{Low: 50000, High: 50009}
	connect := func(ports event.PortRange, n uint16) {
		h.observe(event.Event{
			Kind: event.StateChange, Old: event.SynSent, New: event.Established,
			Visited: event.StateSet(0).With(event.SynSent), Ports: ports,
		}, ports.Low+n)
	}
	for n := range uint16(10) {
		connect(one, n)
		connect(other, n)
	}
	if len(h.told) != 3 || h.told[2].InUse != 10 || h.told[2].Range != one {
		t.Errorf("told %+v", h.told)
	}
	h.now += int64(time.Second)
	connect(other, 9)
	for d := range h.tracker.Destinations(h.now) {
		if d.Ports.InUse != 10 || d.Ports.Range != other {
			t.Errorf("%+v", d.Ports)
		}
	}
	for c := range h.tracker.Connections(h.now) {
		if c.HoldsPort != other.Has(c.Socket.Tuple.Local.Port()) {
			t.Errorf("%+v", c)
		}
	}
}

// TestBounds: the tables are full. What waits stays, what is over makes room, and
// what there is no room for is told all the same.
func TestBounds(t *testing.T) {
	tracker := New(Config{AllPorts: true})
	tracker.uses.max, tracker.ports.sockets.max = 10, 5
	now := int64(time.Hour)
	told := make(map[record.Kind]int)
	observe := func(e event.Event, port uint16) {
		t.Helper()
		now++
		e.Time = now
		e.Address = uint64(port)
		e.Tuple = event.Tuple{Local: netip.AddrPortFrom(here.Addr(), port), Peer: there}
		tracker.Observe(&e, func(moment []record.Record) {
			for _, r := range moment {
				told[r.Kind]++
			}
		})
		checkInvariants(t, tracker)
	}
	enter := event.Event{Kind: event.TimeWaitEnter, Old: event.FinWait2, New: event.TimeWait, Active: true}
	end := event.Event{Kind: event.TimeWaitEnd, Old: event.TimeWait, New: event.Close, Ended: event.Expired}
	failed := event.Event{Kind: event.StateChange, Old: event.SynSent, New: event.Close, Errno: syscall.ECONNREFUSED}
	connected := event.Event{Kind: event.StateChange, Old: event.SynSent, New: event.Established, Visited: event.StateSet(0).With(event.SynSent)}

	for port := range uint16(8) {
		observe(enter, 100+port)
	}
	for port := range uint16(100) {
		observe(failed, 200+port)
	}
	if got := tracker.uses.forgotten; got != 98 {
		t.Errorf("%d were forgotten, want 98", got)
	}
	if tracker.uses.find(event.NetNS{}, event.Tuple{Local: netip.AddrPortFrom(here.Addr(), 299), Peer: there}) == 0 {
		t.Error("the last is forgotten")
	}
	for port := range uint16(20) {
		observe(enter, 400+port)
	}
	if len := tracker.uses.inUse(); len != 10 || tracker.uses.past.first != 0 {
		t.Errorf("%d are tracked, %v over, want 10 TIME_WAITs", len, tracker.uses.past)
	}
	for port := range uint16(20) {
		observe(end, 400+port)
	}
	if told[record.TimeWaitEnter] != 28 || told[record.TimeWaitEnd] != 20 {
		t.Errorf("told %v, want all", told)
	}
	for port := range uint16(20) {
		observe(connected, 500+port)
	}
	if got, lost := tracker.ports.sockets.inUse(), tracker.ports.untracked; got != 5 || lost != 15 {
		t.Errorf("%d sockets are tracked, %d not, want 5 and 15", got, lost)
	}
}

// TestPlacesAreBounded: pods come and go, each with an address of its own.
func TestPlacesAreBounded(t *testing.T) {
	tracker := New(Config{})
	for i := range uint32(3 * maxPlaces) {
		e := event.Event{Kind: event.StateChange, Old: event.Close, New: event.SynSent, Socket: event.Socket{Address: 1, Tuple: event.Tuple{Peer: there}}}
		e.NetNS.Inode = i
		e.Tuple.Local = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 0)
		tracker.Observe(&e, func([]record.Record) {})
		tracker.Describe(e.NetNS, nil)
		if len(tracker.places) > maxPlaces || len(tracker.ports.reserved) > maxNetNS {
			t.Fatalf("%d places, %d network namespaces", len(tracker.places), len(tracker.ports.reserved))
		}
	}
	checkInvariants(t, tracker)
}

// TestLifeAllocations: a connection from its connect to the end of its TIME_WAIT,
// told with the use before it, takes no memory of its own.
func TestLifeAllocations(t *testing.T) {
	tracker := New(Config{AllPorts: true, ResultsSeen: true})
	events := life(0)
	kinds := make(map[record.Kind]int)
	tell := func(moment []record.Record) {
		for i := range moment {
			kinds[moment[i].Kind]++
		}
	}
	now := int64(time.Hour)
	play := func() {
		now += int64(time.Millisecond)
		observeLife(tracker, events, 0, now, tell)
	}
	play()
	// The name of the owner of the use before is a string of its own.
	if n := testing.AllocsPerRun(1000, play); n > 1 {
		t.Errorf("%v allocations a connection", n)
	}
	for _, kind := range []record.Kind{record.State, record.Connect, record.Close, record.TimeWaitEnter, record.TimeWaitEnd, record.PortReuse} {
		if kinds[kind] < 1000 {
			t.Errorf("%d %v records", kinds[kind], kind)
		}
	}
}
