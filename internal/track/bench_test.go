package track

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// life is one connection whose client closes first, up to the end of its
// TIME_WAIT: what the kernel tells of it, on the client's side.
func life(n int) []event.Event {
	s := event.Socket{
		Address: uint64(n + 1), Cookie: uint64(n + 1), NetNS: event.NetNS{Inode: 7, Cookie: 8},
		Owner: event.Owner{PID: 4711, TID: 4711, UID: 1000, Comm: "curl", Cgroup: 9123},
		Tuple: tupleOf(n),
	}
	ports := event.PortRange{Low: 1024, High: 65535}
	var events []event.Event
	var visited event.StateSet
	last := event.Close
	for _, state := range []event.State{event.SynSent, event.Established, event.FinWait1, event.FinWait2, event.Close} {
		visited = visited.With(state)
		e := event.Event{
			Kind: event.StateChange, Socket: s, Old: last, New: state, Visited: visited,
			InState: time.Millisecond, Began: 2 * time.Millisecond, Lingers: state == event.Close,
		}
		if state == event.SynSent {
			e.Tuple.Local = netip.AddrPortFrom(e.Tuple.Local.Addr(), 0)
			e.Ports = ports
		}
		events = append(events, e)
		last = state
	}
	events = append(events, event.Event{Kind: event.TimeWaitEnter, Socket: s, Old: event.FinWait2, New: event.TimeWait, Active: true})
	return append(events, event.Event{Kind: event.TimeWaitEnd, Socket: s, Old: event.TimeWait, New: event.Close, Ended: event.Expired, Active: true})
}

// tupleOf is the n-th of the connections of one client: as many ports as there
// are, then the next server.
func tupleOf(n int) event.Tuple {
	const ports = 28000
	server := n / ports
	return event.Tuple{
		Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, 1}), uint16(32768+n%ports)),
		Peer:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, byte(server >> 8), byte(server)}), 443),
	}
}

// BenchmarkConnection: all events of one connection, with nothing else tracked,
// ever new ports.
func BenchmarkConnection(b *testing.B) {
	tracker := New(Config{AllPorts: true, ResultsSeen: true})
	events := life(0)
	tell := func([]record.Record) {}
	now, n := int64(time.Hour), 0
	b.ReportAllocs()
	used := cpu()
	for b.Loop() {
		now += int64(time.Millisecond)
		observeLife(tracker, events, n%100_000, now, tell)
		n++
	}
	b.ReportMetric(float64(cpu()-used)/float64(b.N)/float64(len(events)), "cpu-ns/event")
}

// observeLife gives a connection's events to the tracker, as those of the n-th.
func observeLife(tracker *Tracker, events []event.Event, n int, now int64, tell func([]record.Record)) {
	tuple := tupleOf(n)
	for i := range events {
		e := events[i]
		e.Address = uint64(n + 1)
		e.Tuple = tuple
		if e.New == event.SynSent {
			e.Tuple.Local = netip.AddrPortFrom(tuple.Local.Addr(), 0)
		}
		e.Mono, e.Time = now+int64(i), now+int64(i)+int64(24*time.Hour)
		if e.Kind == event.TimeWaitEnd {
			e.InState = 1
		}
		tracker.Observe(&e, tell)
	}
}

// BenchmarkTimeWait: a TIME_WAIT more and one less, where that many are tracked:
// half of them still wait, half are remembered. B/entry is the heap that each
// takes.
func BenchmarkTimeWait(b *testing.B) {
	for _, tracked := range []int{1_000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(tracked), func(b *testing.B) {
			benchmarkTimeWait(b, tracked, tupleOf)
		})
	}
	// A server's: each has a peer's port of its own.
	for _, tracked := range []int{1_000, 1_000_000} {
		b.Run(fmt.Sprint("server/", tracked), func(b *testing.B) {
			here := netip.MustParseAddrPort("10.1.0.1:80")
			benchmarkTimeWait(b, tracked, func(n int) event.Tuple {
				t := tupleOf(n)
				return event.Tuple{Local: here, Peer: netip.AddrPortFrom(t.Peer.Addr(), t.Local.Port())}
			})
		})
	}
	// Pods' that call one server: each has the ports of the others.
	b.Run("pods/500000", func(b *testing.B) {
		benchmarkTimeWait(b, 500_000, func(n int) event.Tuple {
			t := tupleOf(n)
			return event.Tuple{Local: netip.AddrPortFrom(t.Peer.Addr(), t.Local.Port()), Peer: tupleOf(0).Peer}
		})
	})
}

func benchmarkTimeWait(b *testing.B, tracked int, tupleOf func(int) event.Tuple) {
	events := life(0)
	active := tupleOf(0).Peer.Port() == 443
	enter, end := events[len(events)-2], events[len(events)-1]
	enter.Active, end.Active = active, active
	before := heap()
	tracker := New(Config{AllPorts: true, ResultsSeen: true})
	tell := func([]record.Record) {}
	// Time passes so that what has ended is forgotten as fast as more comes.
	tick := memory / int64(tracked-tracked/2)
	now := int64(time.Hour)
	observe := func(e *event.Event, n int) {
		now += tick / 2
		e.Mono, e.Time = now, now+int64(24*time.Hour)
		e.Tuple = tupleOf(n)
		// Each address has a network namespace of its own, as a pod's.
		local := e.Tuple.Local.Addr().As4()
		e.NetNS = event.NetNS{Inode: binary.BigEndian.Uint32(local[:]), Cookie: 8}
		e.InState = 0
		if e.Kind == event.TimeWaitEnd {
			e.InState = time.Duration(int64(tracked/2) * tick)
		}
		tracker.Observe(e, tell)
	}
	n := 0
	for ; n < tracked/2; n++ {
		observe(&enter, n)
	}
	// Twice, for as long as it grows.
	for ; n < 2*tracked; n++ {
		observe(&enter, n)
		observe(&end, n-tracked/2)
	}
	if got := tracker.uses.inUse(); got < tracked*98/100 || got > tracked*102/100 {
		b.Fatalf("%d are tracked, want %d", got, tracked)
	}
	entry := float64(heap()-before) / float64(tracked)
	b.ReportAllocs()
	used := cpu()
	for b.Loop() {
		observe(&enter, n)
		observe(&end, n-tracked/2)
		n++
	}
	b.ReportMetric(float64(cpu()-used)/float64(b.N), "cpu-ns/op")
	b.ReportMetric(entry, "B/entry")
	b.ReportMetric(float64(pause())/1e3, "GC-pause-µs")
	runtime.KeepAlive(tracker)
}

// cpu is the time that this process has used: where others use the machine, too,
// it says more than the clock.
func cpu() int64 {
	var usage unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &usage); err != nil {
		panic(err)
	}
	return usage.Utime.Nano() + usage.Stime.Nano()
}

// pause is for how long a collection stops everything.
func pause() uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	runtime.GC()
	runtime.ReadMemStats(&after)
	return after.PauseTotalNs - before.PauseTotalNs
}

// heap is what is in use after a collection.
func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
