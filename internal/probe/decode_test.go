package probe

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

var sameAddrPort = cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })

// encode returns a record as the ring holds it.
func encode(e bpfEvent) []byte {
	b, err := binary.Append(nil, binary.LittleEndian, &e)
	if err != nil || len(b) != int(unsafe.Sizeof(e)) {
		panic(fmt.Sprintf("encode an event: %d bytes, %v", len(b), err))
	}
	return b
}

func mapped(address string) [16]byte { return netip.MustParseAddr(address).As16() }

func commOf(name string) (comm [16]int8) {
	for i := range name {
		comm[i] = int8(name[i])
	}
	return comm
}

// full is a record with all that a record can tell, each thing different.
func full() bpfEvent {
	return bpfEvent{
		Time: 5_000_000_000, Sock: 0xffff888012345678, Cookie: 4123, NetnsCookie: 4098,
		Since: 4_999_900_000, Began: 4_000_000_000,
		BytesSent: 1 << 40, BytesReceived: 1<<40 + 1,
		Owner: bpfOwner{Cgroup: 9123, Pid: 4711, Tid: 4712, Uid: 1000, Comm: commOf("curl")},
		Local: mapped("10.0.0.1"), Peer: mapped("10.0.0.2"),
		Netns: 4026532785, Tsval: 1<<32 - 1, HandshakeUs: 70, Errno: uint32(syscall.ECONNRESET),
		Reason: 3, Retransmits: 2,
		Visited: 1<<event.Established | 1<<event.Close, Family: unix.AF_INET, Lport: 41988, Pport: 443,
		Kind: uint8(event.StateChange), Old: uint8(event.Established), New: uint8(event.Close),
		ResultFollows: true, Shutdown: true, HasTsval: true, Started: true,
		Active: true, Bound: true, Lingers: true, Ended: uint8(event.Killed),
		LowestPort: 32768, HighestPort: 60999,
		Isn: 77, Packet: uint8(event.SYN), Location: 0xffffffff81000042,
	}
}

func decoded() event.Event {
	return event.Event{
		Kind: event.StateChange, Time: 1_700_000_005_000_000_000, Mono: 5_000_000_000,
		Socket: event.Socket{
			Address: 0xffff888012345678, Cookie: 4123,
			NetNS: event.NetNS{Inode: 4026532785, Cookie: 4098},
			Tuple: event.Tuple{Local: netip.MustParseAddrPort("10.0.0.1:41988"), Peer: netip.MustParseAddrPort("10.0.0.2:443")},
			Owner: event.Owner{PID: 4711, TID: 4712, UID: 1000, Comm: "curl", Cgroup: 9123},
		},
		Old: event.Established, New: event.Close,
		Visited:     event.StateSet(0).With(event.Established).With(event.Close),
		InState:     100 * time.Microsecond,
		Began:       time.Second,
		Handshake:   70 * time.Microsecond,
		Errno:       syscall.ECONNRESET,
		Retransmits: 2, ResultFollows: true, Shutdown: true, Started: true,
		TSVal: 1<<32 - 1, HasTSVal: true, BytesSent: 1 << 40, BytesReceived: 1<<40 + 1,
		Active: true, Bound: true, Lingers: true, Ended: event.Killed,
		Ports:  event.PortRange{Low: 32768, High: 60999},
		Reason: "NO_SOCKET", ISN: 77,
	}
}

func newDecoder() *decoder {
	return &decoder{offset: 1_700_000_000_000_000_000,
		resetReasons: map[uint32]string{3: "NO_SOCKET"}, dropReasons: map[uint32]string{3: "NETFILTER_DROP"},
		locate: func(address uint64) string { return fmt.Sprintf("at_%x", address) },
	}
}

func TestDecode(t *testing.T) {
	for _, test := range []struct {
		name   string
		raw    func(*bpfEvent)
		decode func(*event.Event)
	}{
		{"everything", func(*bpfEvent) {}, func(*event.Event) {}},
		{"IPv6", func(r *bpfEvent) {
			r.Family, r.Local, r.Peer = unix.AF_INET6, mapped("2001:db8::1"), mapped("2001:db8::2")
		}, func(e *event.Event) {
			e.Tuple = event.Tuple{Local: netip.MustParseAddrPort("[2001:db8::1]:41988"), Peer: netip.MustParseAddrPort("[2001:db8::2]:443")}
		}},
		{"IPv4 on an IPv6 socket", func(r *bpfEvent) { r.Family = unix.AF_INET6 }, func(*event.Event) {}},
		{"no address and no port yet", func(r *bpfEvent) { r.Local, r.Lport = mapped("0.0.0.0"), 0 }, func(e *event.Event) {
			e.Tuple.Local = netip.AddrPort{}
		}},
		{"no address yet, but a port", func(r *bpfEvent) { r.Local = mapped("0.0.0.0") }, func(e *event.Event) {
			e.Tuple.Local = netip.AddrPortFrom(netip.Addr{}, 41988)
		}},
		{"no address yet, IPv6", func(r *bpfEvent) { r.Family, r.Local, r.Lport = unix.AF_INET6, mapped("::"), 0 }, func(e *event.Event) {
			e.Tuple.Local = netip.AddrPort{}
		}},
		{"a listener", func(r *bpfEvent) { r.Local, r.Peer, r.Pport = mapped("0.0.0.0"), mapped("0.0.0.0"), 0 }, func(e *event.Event) {
			e.Tuple = event.Tuple{Local: netip.MustParseAddrPort("0.0.0.0:41988")}
		}},
		{"a listener, IPv6", func(r *bpfEvent) {
			r.Family, r.Local, r.Peer, r.Pport = unix.AF_INET6, mapped("::"), mapped("::"), 0
		}, func(e *event.Event) {
			e.Tuple = event.Tuple{Local: netip.MustParseAddrPort("[::]:41988")}
		}},
		{"no family", func(r *bpfEvent) { r.Family = 0 }, func(e *event.Event) { e.Tuple = event.Tuple{} }},
		{"another family", func(r *bpfEvent) { r.Family = unix.AF_UNIX }, func(e *event.Event) { e.Tuple = event.Tuple{} }},
		{"no owner", func(r *bpfEvent) { r.Owner.Pid = 0 }, func(e *event.Event) { e.Owner = event.Owner{} }},
		{"a process without a thread", func(r *bpfEvent) { r.Owner.Tid = 0 }, func(e *event.Event) { e.Owner.TID = 0 }},
		{"a name of 15 bytes", func(r *bpfEvent) { r.Owner.Comm = commOf("kube-controller") }, func(e *event.Event) { e.Owner.Comm = "kube-controller" }},
		{"a name without an end", func(r *bpfEvent) { r.Owner.Comm = commOf("0123456789abcdef") }, func(e *event.Event) { e.Owner.Comm = "0123456789abcdef" }},
		{"what stands after a name", func(r *bpfEvent) { r.Owner.Comm = commOf("curl\x00old") }, func(*event.Event) {}},
		{"a name that is no text", func(r *bpfEvent) { r.Owner.Comm = commOf("\xff\x80\n") }, func(e *event.Event) { e.Owner.Comm = "\xff\x80\n" }},
		{"no beginning seen", func(r *bpfEvent) { r.Since, r.Began = 0, 0 }, func(e *event.Event) { e.InState, e.Began = 0, 0 }},
		{"a beginning on a clock that is ahead", func(r *bpfEvent) { r.Since, r.Began = r.Time+1, r.Time }, func(e *event.Event) { e.InState, e.Began = 0, 0 }},
		{"a reason without a name", func(r *bpfEvent) { r.Reason = 99 }, func(e *event.Event) { e.Reason = "" }},
		{"no flags", func(r *bpfEvent) {
			r.ResultFollows, r.Shutdown, r.HasTsval, r.Started = false, false, false, false
			r.Active, r.Bound, r.Lingers = false, false, false
		}, func(e *event.Event) {
			e.ResultFollows, e.Shutdown, e.HasTSVal, e.Started = false, false, false, false
			e.Active, e.Bound, e.Lingers = false, false, false
		}},
		{"no ports", func(r *bpfEvent) { r.LowestPort, r.HighestPort = 0, 0 }, func(e *event.Event) { e.Ports = event.PortRange{} }},
		{"the end of a TIME_WAIT", func(r *bpfEvent) {
			r.Kind, r.Old, r.New, r.Ended = uint8(event.TimeWaitEnd), uint8(event.TimeWait), uint8(event.Close), uint8(event.Reused)
		}, func(e *event.Event) {
			e.Kind, e.Old, e.New, e.Ended = event.TimeWaitEnd, event.TimeWait, event.Close, event.Reused
		}},
		{"a drop", func(r *bpfEvent) { r.Kind = uint8(event.Drop) }, func(e *event.Event) {
			e.Kind, e.Packet, e.Reason, e.Location = event.Drop, event.SYN, "NETFILTER_DROP", "at_ffffffff81000042"
		}},
		{"what else has no end", func(r *bpfEvent) { r.Kind, r.Ended = uint8(event.TimeWaitEnter), 0 }, func(e *event.Event) {
			e.Kind, e.Ended = event.TimeWaitEnter, 0
		}},
		{"a socket that was there before", func(r *bpfEvent) { r.Kind, r.Old, r.New = uint8(event.Existing), 0, uint8(event.TimeWait) }, func(e *event.Event) {
			e.Kind, e.Old, e.New = event.Existing, 0, event.TimeWait
		}},
		{"a result, which has no states", func(r *bpfEvent) { r.Kind, r.Old, r.New = uint8(event.ConnectResult), 0, 0 }, func(e *event.Event) {
			e.Kind, e.Old, e.New = event.ConnectResult, 0, 0
		}},
	} {
		raw, want := full(), decoded()
		test.raw(&raw)
		test.decode(&want)
		var got event.Event
		if err := newDecoder().event(&got, encode(raw)); err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if diff := cmp.Diff(want, got, sameAddrPort); diff != "" {
			t.Errorf("%s (-want +got):\n%s", test.name, diff)
		}
	}
}

// TestDecodeEachFlag: no flag is taken for another.
func TestDecodeEachFlag(t *testing.T) {
	flags := func(e *event.Event) [7]bool {
		return [...]bool{e.ResultFollows, e.Shutdown, e.HasTSVal, e.Started, e.Active, e.Bound, e.Lingers}
	}
	for i := range 7 {
		var want [7]bool
		want[i] = true
		raw := full()
		raw.ResultFollows, raw.Shutdown, raw.HasTsval, raw.Started = want[0], want[1], want[2], want[3]
		raw.Active, raw.Bound, raw.Lingers = want[4], want[5], want[6]
		var e event.Event
		if err := newDecoder().event(&e, encode(raw)); err != nil || flags(&e) != want {
			t.Errorf("%v: %v, want %v", flags(&e), err, want)
		}
	}
}

func TestDecodeShort(t *testing.T) {
	b := encode(full())
	e := decoded()
	for size := range b {
		if size == short {
			continue
		}
		if err := newDecoder().event(&e, b[:size:size]); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("%d bytes", size)) {
			t.Errorf("%d bytes: %v", size, err)
		}
	}
	// What a short event lacks is not that of the one before.
	d, want := newDecoder(), decoded()
	want.Began, want.Handshake, want.Errno, want.Reason = 0, 0, 0, ""
	want.BytesSent, want.BytesReceived, want.TSVal, want.ISN = 0, 0, 0, 0
	for _, b := range [][]byte{b, b[:short:short]} {
		if err := d.event(&e, b); err != nil {
			t.Error(err)
		}
	}
	if diff := cmp.Diff(want, e, sameAddrPort); diff != "" {
		t.Errorf("a short event (-want +got):\n%s", diff)
	}
	// The ring pads records to 8 bytes.
	if err := newDecoder().event(&e, append(b, make([]byte, 8)...)); err != nil {
		t.Error(err)
	}
}

func TestDecodeUnknown(t *testing.T) {
	for n := range 256 {
		number := uint8(n)
		kind, from, to, ended := full(), full(), full(), full()
		kind.Kind, from.Old, to.New = number, number, number
		ended.Kind, ended.Ended = uint8(event.TimeWaitEnd), number
		packet := full()
		packet.Kind, packet.Packet = uint8(event.Drop), number
		for _, test := range []struct {
			what  string
			raw   bpfEvent
			known bool
		}{
			{"kind", kind, event.Kind(number).String() != "invalid"},
			{"old state", from, event.State(number).String() != ""},
			{"new state", to, event.State(number).String() != ""},
			{"end", ended, event.Ended(number).String() != "invalid"},
			{"packet", packet, event.Packet(number).String() != "invalid"},
		} {
			var e event.Event
			err := newDecoder().event(&e, encode(test.raw))
			if test.known != (err == nil) {
				t.Errorf("%s %d: %v", test.what, n, err)
			}
			if err != nil && !errors.Is(err, ErrUndecodable) {
				t.Errorf("%s %d: %v is no ErrUndecodable", test.what, n, err)
			}
			if err != nil && (!strings.HasPrefix(err.Error(), "decode an event: ") || !strings.Contains(err.Error(), fmt.Sprint(n))) {
				t.Errorf("%s %d: %v", test.what, n, err)
			}
		}
	}
}

// TestTells: the kernel programs count what is lost by as many kinds as there are.
func TestTells(t *testing.T) {
	if kinds := spec(t).Maps["lost"].MaxEntries; kinds != uint32(event.TellsKinds) {
		t.Errorf("%d kinds, want %d", kinds, event.TellsKinds)
	}
}

// TestSyncClock: an event of this moment is told to be of this moment.
func TestSyncClock(t *testing.T) {
	var d decoder
	before := time.Now().UnixNano()
	d.syncClock()
	var mono unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &mono); err != nil {
		t.Fatal(err)
	}
	raw := full()
	raw.Time = uint64(mono.Nano())
	var e event.Event
	if err := d.event(&e, encode(raw)); err != nil {
		t.Fatal(err)
	}
	after := time.Now().UnixNano()
	// The two clocks are read one after the other.
	const slack = int64(time.Second)
	if e.Time < before-slack || e.Time > after+slack {
		t.Errorf("%d, want between %d and %d", e.Time, before, after)
	}
}

// TestCommsAreBounded: programs can call themselves ever new names.
func TestCommsAreBounded(t *testing.T) {
	d := newDecoder()
	raw := full()
	for i := range 3 * maxComms {
		name := fmt.Sprintf("worker-%d", i)
		raw.Owner.Comm = commOf(name)
		var e event.Event
		if err := d.event(&e, encode(raw)); err != nil {
			t.Fatal(err)
		}
		if e.Owner.Comm != name {
			t.Fatalf("comm %q, want %q", e.Owner.Comm, name)
		}
		if len(d.comms) > maxComms {
			t.Fatalf("%d names are kept", len(d.comms))
		}
	}
}

func TestDecodeAllocations(t *testing.T) {
	d, b := newDecoder(), encode(full())
	var e event.Event
	var err error
	if n := testing.AllocsPerRun(100, func() { err = d.event(&e, b) }); n != 0 || err != nil {
		t.Errorf("%v allocations an event, %v", n, err)
	}
}

func BenchmarkDecode(b *testing.B) {
	d, raw := newDecoder(), encode(full())
	var e event.Event
	b.ReportAllocs()
	for b.Loop() {
		if err := d.event(&e, raw); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzDecode: whatever the ring holds, what is decoded can be told.
func FuzzDecode(f *testing.F) {
	f.Add(encode(full()))
	f.Add(encode(bpfEvent{Kind: uint8(event.ResetSent)}))
	for ended := range uint8(event.Endings) + 1 {
		f.Add(encode(bpfEvent{
			Kind: uint8(event.TimeWaitEnd), Old: uint8(event.TimeWait), New: uint8(event.Close), Ended: ended,
			Family: unix.AF_INET, Local: mapped("10.0.0.1"), Peer: mapped("10.0.0.2"), Lport: 41988, Pport: 443, Active: true,
		}))
	}
	f.Add(encode(bpfEvent{Kind: uint8(event.TimeWaitEnter), New: uint8(event.TimeWait), LowestPort: 60999, HighestPort: 1}))
	f.Add(encode(bpfEvent{Kind: uint8(event.Existing), New: uint8(event.Listen), Family: unix.AF_INET6, Lport: 80}))
	f.Add(encode(bpfEvent{Kind: uint8(event.StateChange), Old: uint8(event.Established), New: uint8(event.CloseWait)})[:short])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var e event.Event
		if newDecoder().event(&e, b) != nil {
			if len(b) == int(unsafe.Sizeof(bpfEvent{})) && e != (event.Event{}) {
				t.Errorf("an error, and yet %+v", e)
			}
			return
		}
		if e.Kind.String() == "invalid" {
			t.Errorf("kind %d", e.Kind)
		}
		if e.Kind == event.StateChange && (e.Old.String() == "" || e.New.String() == "") {
			t.Errorf("states %d and %d", e.Old, e.New)
		}
		if e.Kind == event.TimeWaitEnd && e.Ended.String() == "invalid" {
			t.Errorf("a TIME_WAIT ended by %d", e.Ended)
		}
		if e.Clock() != e.Mono && e.Mono != 0 {
			t.Errorf("clock %d, monotonic %d", e.Clock(), e.Mono)
		}
		for _, end := range []netip.AddrPort{e.Tuple.Local, e.Tuple.Peer} {
			if end.Addr().Is4In6() {
				t.Errorf("%v is not told as IPv4", end)
			}
		}
		if e.Tuple.Peer.IsValid() && e.Tuple.Local.Addr().IsValid() && e.Tuple.Local.Addr().IsUnspecified() {
			t.Errorf("%v is nowhere, with the peer %v", e.Tuple.Local, e.Tuple.Peer)
		}
		if len(e.Owner.Comm) > 16 || strings.Contains(e.Owner.Comm, "\x00") || !e.Owner.Known() && e.Owner != (event.Owner{}) {
			t.Errorf("owner %+v", e.Owner)
		}
	})
}
