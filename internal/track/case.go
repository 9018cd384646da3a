package track

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// A Case is what was seen of a connect that failed or was late, or of a connection
// that a RST ended: what the verdict on it rests on.
type Case struct {
	// Active is set on a connection that began with a connect.
	Active bool
	// Retransmits are the lines about SYNs that were sent again, the first
	// few, as record.Record.Line has them.
	Retransmits []uint64
	Resets      []Reset
	Drops       []Drop
	// Previous is the earlier use of the same ports, nil for none.
	Previous *record.ReuseFields
	Peer     Peer
	// There is the network namespace of the peer, where that is on this
	// machine.
	There event.NetNS
}

// Reset is a RST of a connection.
type Reset struct {
	Line     uint64
	Received bool
	// State is that of the socket when the RST was sent or came.
	State  event.State
	Reason string
}

// Drop is a packet of a handshake that this machine threw away.
type Drop struct {
	Line uint64
	record.DropFields
	// Count is how many like this there were.
	Count int
	// Reverse is set on a packet that was on its way to the connecting end.
	Reverse bool
	// Sender is set where the packet was still its socket's: it had not left
	// the network namespace.
	Sender bool
}

// Peer is what is known of a destination, from all network namespaces together:
// behind NAT it takes them for one.
type Peer struct {
	// Newest is the newest TSval that it was sent before this connect began.
	Newest Stamp
	// Predicted counts the connects to it of the last minutes, by whether a
	// peer that refuses older TSvals would have left them unanswered, and
	// whether they were: [predicted silent][was silent].
	Predicted [2][2]int
	// SilentFrom is how many network namespaces had no answer from it within
	// the last minute.
	SilentFrom int
	// Answered is how long ago it answered anybody, and ElsewhereAnswered how
	// long ago another destination answered this network namespace: 0 never
	// within the last two minutes.
	Answered, ElsewhereAnswered time.Duration
	// Rate is how many connects a second it was sent within the last minute.
	Rate float64
}

// Stamp is a TSval that a peer was sent.
type Stamp struct {
	TSVal uint32
	// Ago is how long before this connect, 0 for none.
	Ago   time.Duration
	NetNS event.NetNS
	Local netip.Addr
	// Line is that of the connect or close that shows it.
	Line uint64
}

const (
	// maxAttempts bounds the attempts of which something was seen.
	maxAttempts = 16 << 10
	// maxSeen bounds what is kept of one.
	maxSeen = 4
	// maxDropped bounds the handshakes of which a packet was dropped.
	maxDropped = 4096
)

// An attempt is what was seen of a connect that has no outcome yet, or of a
// connection that a RST is ending.
type attempt struct {
	began       int64
	retransmits []uint64
	resets      []Reset
	// newest is what the peer had been sent when it was left unanswered.
	newest stamp
}

// attempt returns what was seen of the socket of e.
func (t *Tracker) attempt(e *event.Event) *attempt {
	a := t.attempts[e.Address]
	if a == nil {
		if len(t.attempts) >= maxAttempts {
			clear(t.attempts)
		}
		a = &attempt{began: e.Clock()}
		if p := t.peers[e.Tuple.Peer]; p != nil {
			a.newest = p.newest
		}
		t.attempts[e.Address] = a
	}
	return a
}

// learn keeps in mind what was told of e, with the line that it stands in.
func (t *Tracker) learn(e *event.Event, moment []record.Record) {
	for i := range moment {
		switch r := &moment[i]; r.Kind {
		case record.SynRetransmit:
			if !r.SYN.SynAck && e.Address != 0 {
				if a := t.attempt(e); len(a.retransmits) < maxSeen {
					a.retransmits = append(a.retransmits, r.Line)
				}
			}
		case record.Reset:
			if e.Address != 0 {
				if a := t.attempt(e); len(a.resets) < maxSeen {
					a.resets = append(a.resets, Reset{r.Line, r.Reset.Received, e.New, r.Reset.Reason})
				}
			}
		case record.Connect:
			t.heard(e, r)
			delete(t.attempts, e.Address)
		case record.Close:
			t.lastHeard(e, r)
			delete(t.attempts, e.Address)
		}
	}
}

// Case returns what was seen of the connect or the connection that a record of the
// moment tells the end of. It can be asked only while the moment is being told.
func (t *Tracker) Case(moment []record.Record, r *record.Record) Case {
	var c Case
	for i := range moment {
		if moment[i].Kind == record.PortReuse {
			c.Previous = moment[i].Reuse
		}
	}
	if a := t.attempts[r.Socket.Address]; a != nil {
		c.Retransmits, c.Resets = a.retransmits, a.resets
	}
	s := &r.Socket
	c.Active = t.told.active
	if d := t.drops[t.told.isn]; d != nil && d.last >= t.now-int64(r.Connect.Duration)-int64(time.Second) {
		c.Drops = d.seen
	}
	c.Peer = t.peerOf(r)
	if p, ok := t.places[s.Tuple.Peer.Addr().As16()]; ok {
		c.There = p.now
	} else if s.Tuple.Peer.Addr().IsLoopback() {
		c.There = s.NetNS
	}
	return c
}

// dropped are the packets of a handshake that were dropped.
type dropped struct {
	seen []Drop
	last int64
}

// drop observes that a packet of a handshake was dropped.
func (t *Tracker) drop(e *event.Event, tell func(moment []record.Record)) {
	// What TCP is done with, it frees as if it had dropped it: a RST, an ACK, a
	// SYN that came again for a request it has.
	byTCP := strings.HasPrefix(e.Location, "tcp_")
	if byTCP && (e.Packet != event.SYN || e.New == event.NewSynRecv) {
		return
	}
	moment, r := appendRecord(t.moment[:0], record.Drop, e)
	r.Drop = record.DropFields{
		Packet: e.Packet, Reason: e.Reason, Location: e.Location, NetNS: e.NetNS,
		Listener: e.New == event.Listen || e.New == event.NewSynRecv,
	}
	if e.Address == 0 {
		t.orient(r)
	}
	tell(moment)

	if byTCP && e.Reason == "" {
		return // maybe the same: no reason for anything
	}
	d := t.drops[e.ISN]
	if d == nil {
		if len(t.drops) >= maxDropped {
			t.forgetDrops()
		}
		d = &dropped{}
		t.drops[e.ISN] = d
	}
	d.last = e.Clock()
	for i := range d.seen {
		if d.seen[i].DropFields == r.Drop {
			d.seen[i].Count++
			return
		}
	}
	if len(d.seen) < maxSeen {
		d.seen = append(d.seen, Drop{
			Line: t.moment[0].Line, DropFields: r.Drop, Count: 1,
			Reverse: e.Packet == event.SYNACK || e.Packet == event.RST, Sender: e.Old != 0,
		})
	}
}

// orient finds out which end of a packet that met no socket is this machine's: by
// itself it is the destination.
func (t *Tracker) orient(r *record.Record) {
	tuple := &r.Socket.Tuple
	source, isOurs := t.places[tuple.Peer.Addr().As16()]
	if _, ok := t.places[tuple.Local.Addr().As16()]; !ok && isOurs {
		tuple.Local, tuple.Peer = tuple.Peer, tuple.Local
		r.Socket.NetNS = source.now
	}
}

// forgetDrops makes room: what lies back longest goes.
func (t *Tracker) forgetDrops() {
	last := make([]int64, 0, len(t.drops))
	for _, d := range t.drops {
		last = append(last, d.last)
	}
	slices.Sort(last)
	median := last[len(last)/2]
	for key, d := range t.drops {
		if d.last <= median {
			delete(t.drops, key)
		}
	}
}
