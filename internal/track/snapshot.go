package track

import (
	"iter"
	"net/netip"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// Destination is where connects of one network namespace and local address go,
// and the local ports that they take there.
type Destination struct {
	// Socket has the network namespace, the local address (port 0) and the
	// peer.
	Socket event.Socket
	Ports  record.PortsFields
}

// Destinations are those that hold a local port now, the time on the events'
// clock, in no order. The tracker must not observe anything meanwhile.
func (t *Tracker) Destinations(now int64) iter.Seq[Destination] {
	return func(yield func(Destination) bool) {
		for _, n := range t.ports.byKey {
			d := t.ports.at(n)
			if d.live+d.waiting == 0 {
				continue // all out of the range
			}
			if !yield(Destination{Socket: d.key.socket(), Ports: t.portsFields(d, now)}) {
				return
			}
		}
	}
}

// Connection is a connect that holds a local port, or a TIME_WAIT.
type Connection struct {
	Socket event.Socket
	// TimeWait is set on a TIME_WAIT, Active on one of a connect, and HoldsPort
	// where that holds one of the ports that connects choose from.
	TimeWait, Active, HoldsPort bool
	// EndsIn is the time until a TIME_WAIT ends by itself, give or take the
	// coarseness of the kernel's timers (1.5 s at HZ=250): 0 where its
	// beginning was not seen.
	EndsIn time.Duration
}

// Connections are the connects that hold a local port and all TIME_WAITs now, in
// no order. The tracker must not observe anything meanwhile.
func (t *Tracker) Connections(now int64) iter.Seq[Connection] {
	return func(yield func(Connection) bool) {
		for address, n := range t.ports.byAddress {
			s := t.ports.sockets.at(n)
			d := t.ports.at(s.where)
			c := Connection{Socket: d.key.socket(), Active: true, HoldsPort: d.holds(s.port)}
			c.Socket.Address = address
			c.Socket.Owner = s.owner.owner()
			c.Socket.Tuple.Local = netip.AddrPortFrom(c.Socket.Tuple.Local.Addr(), s.port)
			if !yield(c) {
				return
			}
		}
		for n := uint32(1); n <= t.uses.made; n++ {
			u := t.uses.at(n)
			if u.stage != inTimeWait {
				continue
			}
			c := Connection{Socket: u.socket(), TimeWait: true, Active: u.where != 0}
			c.HoldsPort = c.Active && t.ports.at(u.where).holds(u.pair.lport)
			c.Socket.Owner = u.owner.owner()
			if u.armed {
				c.EndsIn = u.endsIn(now)
			}
			if !yield(c) {
				return
			}
		}
	}
}
