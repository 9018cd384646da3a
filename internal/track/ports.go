package track

import (
	"net/netip"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

const (
	// maxLive bounds the connects that are known to hold a port.
	maxLive = 1 << 20
	// maxNetNS bounds the network namespaces that are described.
	maxNetNS = 64 << 10
	// rateOver is how far back the rate of a destination's growth looks, at
	// least; twice that at most.
	rateOver = int64(10 * time.Second)
)

// levels are the shares of the range, in percent, that are told.
var levels = [...]uint32{50, 80, 95, 100}

// left are the shares under which a level counts as left.
var left = [len(levels)]uint32{50, 50, 80, 95}

// destinationKey is what local ports are counted by: the kernel gives the same
// port to connects toward different destinations.
type destinationKey struct {
	netns       event.NetNS
	local, peer [16]byte
	pport       uint16
}

func towards(s *event.Socket) destinationKey {
	return destinationKey{s.NetNS, s.Tuple.Local.Addr().As16(), s.Tuple.Peer.Addr().As16(), s.Tuple.Peer.Port()}
}

// A destination is where connects go, and the local ports that they hold there.
type destination struct {
	key   destinationKey
	ports event.PortRange // the last known, since the time ranged
	// live and waiting count those of the lists that hold a port of that
	// range.
	live, waiting uint32
	ranged        int64
	sockets       list // connects
	finWait2s     list // uses; so are
	timeWaits     list // those in TIME_WAIT, the first armed first
	// level is how many of `levels` are reached and told.
	level int
	// marks are what was in use, and when: one rateOver ago or more, and
	// the one that takes its place.
	marks [2]mark
}

type mark struct {
	time  int64
	inUse uint32
}

// list is the one that uses in this stage are in.
func (d *destination) list(stage stage) *list {
	if stage == inTimeWait {
		return &d.timeWaits
	}
	return &d.finWait2s
}

// holds reports whether a port is one of those that connects choose from. One
// that is not chosen yet will be.
func (d *destination) holds(port uint16) bool {
	return port == 0 || d.ports.High == 0 || d.ports.Has(port)
}

// count counts a port more, or less; past stands for connects.
func (d *destination) count(stage stage, port uint16, change int) {
	if !d.holds(port) {
		return
	}
	if stage == inTimeWait {
		d.waiting += uint32(change)
	} else {
		d.live += uint32(change)
	}
}

// A socket is one of a connect, and holds a port.
type socket struct {
	address  uint64
	owner    holder
	where    uint32 // destination
	siblings link   // in its sockets
	port     uint16 // 0 not known yet
}

// ports counts the local ports in use.
type ports struct {
	slab[destination]
	byKey     map[destinationKey]uint32
	sockets   slab[socket]
	byAddress map[uint64]uint32 // sockets
	untracked uint64            // connects that there was no room for
	// reserved are the ip_local_reserved_ports of network namespaces.
	reserved map[event.NetNS][]event.PortRange
	// touched are the destinations whose use changed since the last check.
	touched []uint32
	// listening are the ports that have a listener among the sockets older
	// than the trace.
	listening map[listener]bool
}

type listener struct {
	netns event.NetNS
	port  uint16
}

func newPorts(mostSockets, mostUses int) ports {
	return ports{
		slab:      newSlab[destination](mostSockets + mostUses), // each has one of these
		byKey:     make(map[destinationKey]uint32),
		sockets:   newSlab[socket](mostSockets),
		byAddress: make(map[uint64]uint32),
		reserved:  make(map[event.NetNS][]event.PortRange),
		listening: make(map[listener]bool),
	}
}

func (p *ports) siblings(n uint32) *link { return &p.sockets.at(n).siblings }

// get returns the destination, made where it is new.
func (p *ports) get(key destinationKey) uint32 {
	n := p.byKey[key]
	if n == 0 {
		n = p.add(destination{key: key})
		p.byKey[key] = n
	}
	return n
}

func (t *Tracker) touch(n uint32) {
	if len(t.ports.touched) == 0 || t.ports.touched[len(t.ports.touched)-1] != n {
		t.ports.touched = append(t.ports.touched, n)
	}
}

// setRange notes the range that connects toward a destination choose from. What
// holds a port is counted anew where it is another; so it is not where sockets
// with ranges of their own (IP_LOCAL_PORT_RANGE) take turns within a second.
func (t *Tracker) setRange(n uint32, ports event.PortRange, now int64) {
	if n == 0 || ports.High == 0 {
		return
	}
	d := t.ports.at(n)
	if ports == d.ports || d.ports.High != 0 && now-d.ranged < int64(time.Second) {
		return
	}
	t.recount(d, ports, now)
}

// recount counts what holds a port of this range, if it is another.
func (t *Tracker) recount(d *destination, ports event.PortRange, now int64) {
	if ports == d.ports || ports.High == 0 {
		return
	}
	d.ports, d.ranged = ports, now
	d.marks = [2]mark{}
	d.live, d.waiting = 0, 0
	for n := d.sockets.first; n != 0; n = t.ports.siblings(n).after {
		d.count(past, t.ports.sockets.at(n).port, +1)
	}
	for _, stage := range []stage{inFinWait2, inTimeWait} {
		for n := d.list(stage).first; n != 0; n = t.uses.siblings(n).after {
			d.count(stage, t.uses.at(n).pair.lport, +1)
		}
	}
}

// hold notes that a connect holds a port, or will in a moment.
func (t *Tracker) hold(e *event.Event) {
	p := &t.ports
	key := towards(&e.Socket)
	n := p.byAddress[e.Address]
	if n != 0 && p.at(p.sockets.at(n).where).key != key {
		t.releasePort(e.Address) // its end was lost
		n = 0
	}
	if n == 0 {
		if n = p.sockets.add(socket{address: e.Address, port: e.Tuple.Local.Port()}); n == 0 {
			p.untracked++
			return
		}
		p.byAddress[e.Address] = n
		where := p.get(key)
		p.sockets.at(n).where = where
		p.at(where).sockets.push(n, p.siblings)
		p.at(where).count(past, e.Tuple.Local.Port(), +1)
	}
	s := p.sockets.at(n)
	d := p.at(s.where)
	d.count(past, s.port, -1)
	s.port = e.Tuple.Local.Port()
	d.count(past, s.port, +1)
	if e.Owner.Known() {
		s.owner = holderOf(e.Owner)
	}
	t.setRange(s.where, e.Ports, e.Clock())
	if e.New != event.SynSent || e.Kind == event.Existing {
		t.touch(s.where)
	} // else it may find none in a moment, and crosses no level by that
}

// releasePort notes that the socket at this address holds no port any more, and
// reports whether it did.
func (t *Tracker) releasePort(address uint64) bool {
	p := &t.ports
	n := p.byAddress[address]
	if n == 0 {
		return false
	}
	s := p.sockets.at(n)
	d := p.at(s.where)
	d.sockets.remove(n, p.siblings)
	d.count(past, s.port, -1)
	t.touch(s.where)
	delete(p.byAddress, address)
	p.sockets.remove(n)
	return true
}

// count follows which sockets hold local ports.
func (t *Tracker) count(e *event.Event) {
	switch {
	case e.Kind == event.SynRetransmit: // tells the port of a connect without an answer
	case e.Kind != event.StateChange:
		return
	case e.New == event.SynSent, e.New == event.Listen, e.Old == event.Listen:
		t.releasePort(e.Address) // of another socket, whose end was lost
		if e.New != event.SynSent {
			return
		}
	case e.New == event.Close:
		if n := t.ports.byAddress[e.Address]; n != 0 && e.Old == event.SynSent && e.Tuple.Local.Port() == 0 {
			// It found no port of this very range.
			t.recount(t.ports.at(t.ports.sockets.at(n).where), e.Ports, e.Clock())
		}
		if !e.Lingers { // else closed does
			t.releasePort(e.Address)
		}
		return
	case !e.Visited.Has(event.SynSent), e.Old != event.SynSent && t.ports.byAddress[e.Address] != 0:
		return
	}
	if e.Address != 0 && e.Tuple.Peer.IsValid() && e.Tuple.Local.Addr().IsValid() {
		t.hold(e)
	}
}

// inUse is how many ports of the range are taken, of how many. A connect that
// just finds none counts for a moment, too.
func (p *ports) inUse(d *destination) (used, usable uint32, reserved int) {
	reserved = -1
	if d.ports.High == 0 {
		return 0, 0, reserved
	}
	usable = uint32(d.ports.High-d.ports.Low) + 1
	if ranges, ok := p.reserved[d.key.netns]; ok {
		reserved = 0
		for _, r := range ranges {
			low, high := max(r.Low, d.ports.Low), min(r.High, d.ports.High)
			if low <= high {
				reserved += int(high-low) + 1
			}
		}
		reserved = min(reserved, int(usable))
		usable -= uint32(reserved)
	}
	return min(d.live+d.waiting, usable), usable, reserved
}

// pressure tells where the use of a range crossed a level, and lets go of
// destinations without any.
func (t *Tracker) pressure(e *event.Event, tell func(moment []record.Record)) {
	p := &t.ports
	now := e.Clock()
	for _, n := range p.touched {
		d := p.at(n)
		if p.byKey[d.key] != n {
			continue // let go already
		}
		used, usable, _ := p.inUse(d)
		d.note(now, used)
		if usable > 0 && t.config.AllPorts {
			before := d.level
			if d.level = level(before, used, usable); d.level > before || d.level == 0 && before > 0 {
				t.portsTold = t.portsFields(d, now)
				if d.level == 0 { // it falls, whatever it did before
					t.portsTold.ExhaustedIn, t.portsTold.Exhausts = 0, false
				}
				t.moment[0] = record.Record{Kind: record.PortPressure, Time: e.Time, Socket: d.key.socket(), Ports: &t.portsTold}
				tell(t.moment[:1])
			}
		}
		if d.sockets.first == 0 && d.finWait2s.first == 0 && d.timeWaits.first == 0 {
			delete(p.byKey, d.key)
			p.remove(n)
		}
	}
	p.touched = p.touched[:0]
}

// level is how many of `levels` are reached, where it was `before`. Those above
// the first are left only well below, so that a few ports more and less don't tell
// them again.
func level(before int, used, usable uint32) int {
	level := before
	for level < len(levels) && used*100 >= levels[level]*usable {
		level++
	}
	for level > 0 && used*100 < left[level-1]*usable {
		level--
	}
	return level
}

// note keeps what was in use, for the rate.
func (d *destination) note(now int64, used uint32) {
	switch {
	case d.marks[0].time == 0:
		d.marks = [2]mark{{now, used}, {now, used}}
	case now-d.marks[1].time >= rateOver:
		d.marks = [2]mark{d.marks[1], {now, used}}
	}
}

// exhaustedIn is when no port will be left at the rate of the last 10 to 20
// seconds, or of those since it is known, one at least; known is false where
// their number does not grow.
func (d *destination) exhaustedIn(now int64, used, usable uint32) (left time.Duration, known bool) {
	if used >= usable {
		return 0, true
	}
	before := d.marks[0]
	if before.time == 0 || now-before.time < int64(time.Second) || used <= before.inUse {
		return 0, false
	}
	return time.Duration(float64(now-before.time) * float64(usable-used) / float64(used-before.inUse)), true
}

// portsFields tells of the ports toward a destination.
func (t *Tracker) portsFields(d *destination, now int64) record.PortsFields {
	used, usable, reserved := t.ports.inUse(d)
	f := record.PortsFields{InUse: used, TimeWait: min(d.waiting, used), Usable: usable, Range: d.ports, Reserved: reserved}
	f.ExhaustedIn, f.Exhausts = d.exhaustedIn(now, used, usable)
	return f
}

// portsOf tells of the ports toward the destination of a connect that found
// none, and of the TIME_WAIT there that ends first. It is nil where its ports are
// not known to be taken.
func (t *Tracker) portsOf(e *event.Event) *record.PortsFields {
	n := t.ports.byKey[towards(&e.Socket)]
	if n == 0 || !t.config.AllPorts {
		return nil
	}
	d := t.ports.at(n)
	f := t.portsFields(d, e.Clock())
	if f.Usable == 0 || f.InUse < f.Usable {
		return nil
	}
	t.portsTold = f
	// Those that a change of the range left outside came before.
	for n := d.timeWaits.first; n != 0; n = t.uses.siblings(n).after {
		use := t.uses.at(n)
		if !d.ports.Has(use.pair.lport) {
			continue
		}
		t.holderTold = record.PortHolder{Port: use.pair.lport, Owner: use.owner.owner()}
		if use.armed {
			t.holderTold.EndsIn = use.endsIn(e.Clock())
		}
		t.portsTold.Holder = &t.holderTold
		break
	}
	return &t.portsTold
}

// endsIn is when a TIME_WAIT ends by itself, at the earliest.
func (use *use) endsIn(now int64) time.Duration {
	return time.Duration(max(use.since+timeWaitLen-now, 1))
}

// timeWaitLen is TCP_TIMEWAIT_LEN (include/net/tcp.h, 5.10 to 7.2). The kernel's
// timer wheel rounds it up: at HZ=250 by 1.5 s at most.
const timeWaitLen = int64(60 * time.Second)

func (k *destinationKey) socket() event.Socket {
	return event.Socket{NetNS: k.netns, Tuple: event.Tuple{
		Local: netip.AddrPortFrom(netip.AddrFrom16(k.local).Unmap(), 0),
		Peer:  netip.AddrPortFrom(netip.AddrFrom16(k.peer).Unmap(), k.pport),
	}}
}

// Forgotten counts the earlier uses of four-tuples that were forgotten early, and
// the connects that do not count as holding a port, since there are bounds.
func (t *Tracker) Forgotten() uint64 { return t.uses.forgotten + t.ports.untracked }

// Describe tells the tracker which local ports of a network namespace are
// reserved (ip_local_reserved_ports).
func (t *Tracker) Describe(netns event.NetNS, reserved []event.PortRange) {
	if _, ok := t.ports.reserved[netns]; !ok && len(t.ports.reserved) >= maxNetNS {
		clear(t.ports.reserved)
	}
	t.ports.reserved[netns] = reserved
}
