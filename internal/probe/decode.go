package probe

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// ErrUndecodable is wrapped by Read's error where an event makes no sense. The
// next may.
var ErrUndecodable = errors.New("decode an event")

// decoder turns records of the ring into events.
type decoder struct {
	// offset is what CLOCK_REALTIME is ahead of CLOCK_MONOTONIC, in ns.
	offset int64
	// resetReasons and dropReasons are the kernel's names of enum
	// sk_rst_reason and skb_drop_reason.
	resetReasons, dropReasons map[uint32]string
	// locate names the function at an address.
	locate func(uint64) string
	// comms keeps the strings of names seen, so that a known one costs no
	// allocation. Bounded by maxComms.
	comms map[[16]byte]string
	// whole is room for a short event; what that has not is zero.
	whole [unsafe.Sizeof(bpfEvent{})]byte
}

// short is the length of a short event: of a change that tells no more than itself,
// and of what happens to a TIME_WAIT.
const short = int(unsafe.Offsetof(bpfEvent{}.Began))

// maxComms bounds the names kept; past it all are forgotten.
const maxComms = 4096

// syncClock follows a clock that is set while the trace runs. The programs can
// only read CLOCK_MONOTONIC.
func (d *decoder) syncClock() {
	mono := Now()
	d.offset = clock(unix.CLOCK_REALTIME) - mono
}

// Now is the time on the events' clock (event.Event.Mono), in nanoseconds.
func Now() int64 { return clock(unix.CLOCK_MONOTONIC) }

func clock(id int32) int64 {
	var now unix.Timespec
	_ = unix.ClockGettime(id, &now) // It can't fail with these clocks and this address.
	return now.Nano()
}

// event decodes b, a struct event of bpf/event.h, field by field.
func (d *decoder) event(e *event.Event, b []byte) error {
	var r bpfEvent
	if len(b) < int(unsafe.Sizeof(r)) {
		if len(b) != short {
			return fmt.Errorf("%w: %d bytes, want %d or %d", ErrUndecodable, len(b), short, len(d.whole))
		}
		copy(d.whole[:], b)
		b = d.whole[:]
	}
	le := binary.LittleEndian
	kind := event.Kind(b[unsafe.Offsetof(r.Kind)])
	if kind == 0 || kind >= event.Kinds {
		return fmt.Errorf("%w: kind %d is not known", ErrUndecodable, kind)
	}
	from, to := event.State(b[unsafe.Offsetof(r.Old)]), event.State(b[unsafe.Offsetof(r.New)])
	if kind == event.StateChange && (from.String() == "" || to.String() == "") {
		return fmt.Errorf("%w: a change from state %d to %d is not known", ErrUndecodable, uint8(from), uint8(to))
	}
	if ended := event.Ended(b[unsafe.Offsetof(r.Ended)]); kind == event.TimeWaitEnd && (ended == 0 || ended >= event.Endings) {
		return fmt.Errorf("%w: the end %d of a TIME_WAIT is not known", ErrUndecodable, uint8(ended))
	}
	if packet := event.Packet(b[unsafe.Offsetof(r.Packet)]); kind == event.Drop && (packet == 0 || packet >= event.Packets) {
		return fmt.Errorf("%w: the packet %d is not known", ErrUndecodable, uint8(packet))
	}
	now := le.Uint64(b[unsafe.Offsetof(r.Time):])
	family := le.Uint16(b[unsafe.Offsetof(r.Family):])
	*e = event.Event{
		Kind: kind,
		Time: int64(now) + d.offset,
		Mono: int64(now),
		Socket: event.Socket{
			Address: le.Uint64(b[unsafe.Offsetof(r.Sock):]),
			Cookie:  le.Uint64(b[unsafe.Offsetof(r.Cookie):]),
			NetNS: event.NetNS{
				Inode:  le.Uint32(b[unsafe.Offsetof(r.Netns):]),
				Cookie: le.Uint64(b[unsafe.Offsetof(r.NetnsCookie):]),
			},
			Owner: d.owner(b[unsafe.Offsetof(r.Owner):]),
		},
		Old:           from,
		New:           to,
		Visited:       event.StateSet(le.Uint16(b[unsafe.Offsetof(r.Visited):])),
		InState:       since(now, le.Uint64(b[unsafe.Offsetof(r.Since):])),
		Began:         since(now, le.Uint64(b[unsafe.Offsetof(r.Began):])),
		Handshake:     time.Duration(le.Uint32(b[unsafe.Offsetof(r.HandshakeUs):])) * time.Microsecond,
		Errno:         syscall.Errno(le.Uint32(b[unsafe.Offsetof(r.Errno):])),
		ResultFollows: b[unsafe.Offsetof(r.ResultFollows)] != 0,
		Shutdown:      b[unsafe.Offsetof(r.Shutdown)] != 0,
		Started:       b[unsafe.Offsetof(r.Started)] != 0,
		HasTSVal:      b[unsafe.Offsetof(r.HasTsval)] != 0,
		Retransmits:   le.Uint32(b[unsafe.Offsetof(r.Retransmits):]),
		TSVal:         le.Uint32(b[unsafe.Offsetof(r.Tsval):]),
		ISN:           le.Uint32(b[unsafe.Offsetof(r.Isn):]),
		BytesSent:     le.Uint64(b[unsafe.Offsetof(r.BytesSent):]),
		BytesReceived: le.Uint64(b[unsafe.Offsetof(r.BytesReceived):]),
		Active:        b[unsafe.Offsetof(r.Active)] != 0,
		Bound:         b[unsafe.Offsetof(r.Bound)] != 0,
		Lingers:       b[unsafe.Offsetof(r.Lingers)] != 0,
		Ended:         event.Ended(b[unsafe.Offsetof(r.Ended)]),
		Ports: event.PortRange{
			Low:  le.Uint16(b[unsafe.Offsetof(r.LowestPort):]),
			High: le.Uint16(b[unsafe.Offsetof(r.HighestPort):]),
		},
	}
	switch reason := le.Uint32(b[unsafe.Offsetof(r.Reason):]); kind {
	case event.Drop:
		e.Packet = event.Packet(b[unsafe.Offsetof(r.Packet)])
		e.Reason = d.dropReasons[reason]
		e.Location = d.locate(le.Uint64(b[unsafe.Offsetof(r.Location):]))
	default:
		e.Reason = d.resetReasons[reason]
	}
	if family != unix.AF_INET && family != unix.AF_INET6 {
		return nil
	}
	e.Tuple.Local = endpoint(b[unsafe.Offsetof(r.Local):], le.Uint16(b[unsafe.Offsetof(r.Lport):]))
	if peer := endpoint(b[unsafe.Offsetof(r.Peer):], le.Uint16(b[unsafe.Offsetof(r.Pport):])); peer.Port() != 0 {
		e.Tuple.Peer = peer
		// Only a listener is bound to no address. A socket on its way
		// to a peer has none yet.
		if e.Tuple.Local.Addr().IsUnspecified() {
			e.Tuple.Local = netip.AddrPortFrom(netip.Addr{}, e.Tuple.Local.Port())
		}
	}
	return nil
}

// since is the time from then to now; 0 where then is not known.
func since(now, then uint64) time.Duration {
	if then == 0 || then > now {
		return 0
	}
	return time.Duration(now - then)
}

func endpoint(b []byte, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[:16])).Unmap(), port)
}

// owner decodes b, a struct owner of bpf/event.h.
func (d *decoder) owner(b []byte) event.Owner {
	var r bpfOwner
	le := binary.LittleEndian
	pid := le.Uint32(b[unsafe.Offsetof(r.Pid):])
	if pid == 0 {
		return event.Owner{}
	}
	return event.Owner{
		PID:    pid,
		TID:    le.Uint32(b[unsafe.Offsetof(r.Tid):]),
		UID:    le.Uint32(b[unsafe.Offsetof(r.Uid):]),
		Comm:   d.comm([16]byte(b[unsafe.Offsetof(r.Comm):])),
		Cgroup: le.Uint64(b[unsafe.Offsetof(r.Cgroup):]),
	}
}

func (d *decoder) comm(raw [16]byte) string {
	if comm, ok := d.comms[raw]; ok {
		return comm
	}
	if d.comms == nil || len(d.comms) >= maxComms {
		d.comms = make(map[[16]byte]string)
	}
	comm, _, _ := bytes.Cut(raw[:], []byte{0})
	d.comms[raw] = string(comm)
	return d.comms[raw]
}
