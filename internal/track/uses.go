package track

import (
	"hash/maphash"
	"iter"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

const (
	// window is how long a use of a four-tuple is remembered after its end.
	window = int64(120 * time.Second)
	// memory is the window, and what a SYN takes to be answered or sent again.
	memory = window + int64(5*time.Second)
	// stale is when a TIME_WAIT, or what is left in FIN_WAIT2, is known to
	// have ended though nobody told: twice its time.
	stale = int64(120 * time.Second)
	// maxUses bounds the uses remembered and the TIME_WAITs known, together.
	maxUses = 1 << 20
)

// pair is what two uses that meet have in common but for their network namespaces:
// the peer, and the local port.
type pair struct {
	peer         [16]byte
	pport, lport uint16
}

// pairIn is a pair in one of them. It has no padding: it is hashed in one go.
type pairIn struct {
	cookie uint64
	inode  uint32
	pair
}

func pairOf(t event.Tuple) pair {
	return pair{peer: t.Peer.Addr().As16(), pport: t.Peer.Port(), lport: t.Local.Port()}
}

// A use is the last connection, or attempt, of a four-tuple in a network
// namespace that is over, or what is left of it in TIME_WAIT. There can be a
// million: it holds no pointers.
type use struct {
	netns event.NetNS
	began int64 // 0 unknown
	// ended is when it went to TIME_WAIT or, without one, to CLOSE: 0
	// unknown.
	ended int64
	since int64 // in its stage, or its timer was set anew
	// entered and left are when a TIME_WAIT of this four-tuple, the last one,
	// was told to begin and to end: 0 none.
	entered, left int64
	owner         holder
	local         [16]byte
	pair          pair
	end           record.UseEnd
	stage         stage
	armed         bool   // the 60 s of its TIME_WAIT began at `since`
	where         uint32 // destination whose port it holds, 0 none
	next          uint32 // use of the same pair there
	byAge         link   // in uses.past or uses.waiting
	siblings      link   // in a list of the destination
}

// A stage is how far a use has come.
type stage uint8

const (
	past stage = iota
	// inFinWait2: a small socket is left of it, which is in FIN_WAIT2.
	inFinWait2
	inTimeWait
)

// holder is an event.Owner without pointers.
type holder struct {
	cgroup        uint64
	pid, tid, uid uint32
	comm          [16]byte
}

func holderOf(o event.Owner) holder {
	h := holder{cgroup: o.Cgroup, pid: o.PID, tid: o.TID, uid: o.UID}
	copy(h.comm[:], o.Comm)
	return h
}

func (h *holder) owner() event.Owner {
	n := 0
	for n < len(h.comm) && h.comm[n] != 0 {
		n++
	}
	return event.Owner{PID: h.pid, TID: h.tid, UID: h.uid, Comm: string(h.comm[:n]), Cgroup: h.cgroup}
}

// uses are the uses known.
type uses struct {
	slab[use]
	// heads are the first use of each pair in a network namespace, by their
	// hash: it takes less room, and the few that have the same share a chain.
	heads map[uint64]uint32
	past  list // the first over first
	// waiting are in FIN_WAIT2 or TIME_WAIT, the first armed first.
	waiting list
	// sameDestination counts the TIME_WAITs of the same network namespace,
	// local address, peer address and peer port, by their hash.
	sameDestination map[uint64]uint32
	seed            maphash.Seed
	// forgotten counts those for which there was no room, before their
	// window was over.
	forgotten uint64
}

func newUses(most int) uses {
	return uses{
		slab: newSlab[use](most), heads: make(map[uint64]uint32),
		sameDestination: make(map[uint64]uint32), seed: maphash.MakeSeed(),
	}
}

func (u *uses) byAge(n uint32) *link    { return &u.at(n).byAge }
func (u *uses) siblings(n uint32) *link { return &u.at(n).siblings }

// head is the key of `heads`.
func (u *uses) head(netns event.NetNS, p pair) uint64 {
	return maphash.Comparable(u.seed, pairIn{netns.Cookie, netns.Inode, p})
}

// of goes along the uses of a pair in a network namespace.
func (u *uses) of(netns event.NetNS, p pair) iter.Seq2[uint32, *use] {
	return func(yield func(uint32, *use) bool) {
		for n := u.heads[u.head(netns, p)]; n != 0; n = u.at(n).next {
			if use := u.at(n); use.netns == netns && use.pair == p && !yield(n, use) {
				return
			}
		}
	}
}

// find returns the use of this very four-tuple in this network namespace.
func (u *uses) find(netns event.NetNS, t event.Tuple) uint32 {
	local := t.Local.Addr().As16()
	for n, use := range u.of(netns, pairOf(t)) {
		if use.local == local {
			return n
		}
	}
	return 0
}

// make makes a use, in no list yet. It returns 0 where all are in TIME_WAIT.
func (u *uses) make(netns event.NetNS, t event.Tuple) uint32 {
	if u.inUse() >= u.max {
		u.forgotten++
		if u.past.first == 0 {
			return 0
		}
		u.forget(u.past.first)
	}
	pair := pairOf(t)
	head := u.head(netns, pair)
	n := u.add(use{netns: netns, local: t.Local.Addr().As16(), pair: pair, next: u.heads[head]})
	u.heads[head] = n
	return n
}

// forget takes a use that is over out of everything.
func (u *uses) forget(n uint32) {
	use := u.at(n)
	u.past.remove(n, u.byAge)
	head := u.head(use.netns, use.pair)
	switch before := u.heads[head]; {
	case before != n:
		for u.at(before).next != n {
			before = u.at(before).next
		}
		u.at(before).next = use.next
	case use.next == 0:
		delete(u.heads, head)
	default:
		u.heads[head] = use.next
	}
	u.remove(n)
}

// toward is where the port of a use leads.
func (use *use) toward() destinationKey {
	return destinationKey{use.netns, use.local, use.pair.peer, use.pair.pport}
}

// hash is the key of `sameDestination`.
func (u *uses) hash(key destinationKey) uint64 { return maphash.Comparable(u.seed, key) }

// expire lets go of what nobody asks for or tells any more.
func (t *Tracker) expire(now int64) {
	u := &t.uses
	for n := u.waiting.first; n != 0 && now-u.at(n).since > stale; n = u.waiting.first {
		t.detach(n)
		t.rest(n, now)
	}
	for n := u.past.first; n != 0 && now-u.at(n).since > memory; n = u.past.first {
		u.forget(n)
	}
}

// keep keeps in mind the earlier uses of the ports of a connect that has no answer
// yet: when it is told how it ended they could be forgotten.
func (t *Tracker) keep(e *event.Event) {
	if !e.Tuple.Peer.IsValid() {
		return
	}
	for _, netns := range [...]event.NetNS{e.NetNS, t.cameFrom(e)} {
		for n, use := range t.uses.of(netns, pairOf(e.Tuple)) {
			if use.stage == past {
				t.detach(n)
				t.rest(n, e.Clock())
			}
		}
	}
}

// closed remembers a connection, or an attempt that had a local port, that went
// to CLOSE.
func (t *Tracker) closed(e *event.Event, end record.UseEnd) {
	holds := isActive(e)
	if e.Lingers && t.releasePort(e.Address) {
		holds = true // one older than the trace is known only by that
	}
	if !e.Tuple.Peer.IsValid() || e.Tuple.Local.Port() == 0 || !e.Tuple.Local.Addr().IsValid() {
		return
	}
	now := e.Clock()
	n := t.uses.find(e.NetNS, e.Tuple)
	if n != 0 && now <= max(t.uses.at(n).ended, t.uses.at(n).left) {
		return // told before
	}
	if n = t.take(n, e); n == 0 {
		return
	}
	use := t.uses.at(n)
	use.begin(e)
	use.ended = now
	if e.Began > 0 {
		use.began = now - int64(e.Began)
	}
	use.end = end
	if e.Lingers {
		t.wait(n, inFinWait2, holds, now)
	} else {
		t.rest(n, now)
	}
}

// begin forgets all of an earlier use of the same four-tuple, but for what was
// told of its TIME_WAIT.
func (use *use) begin(e *event.Event) {
	use.owner = holderOf(e.Owner)
	use.began, use.ended = 0, 0
	use.end = record.UseEnd{}
}

// take returns the use of e's four-tuple in no list and holding nothing: n, which
// was found, or a new one; 0 where there is no room.
func (t *Tracker) take(n uint32, e *event.Event) uint32 {
	if n == 0 {
		return t.uses.make(e.NetNS, e.Tuple)
	}
	t.detach(n)
	return n
}

// detach takes a use out of its lists, and out of the counts.
func (t *Tracker) detach(n uint32) {
	use := t.uses.at(n)
	if use.stage == past {
		t.uses.past.remove(n, t.uses.byAge)
		return
	}
	t.uses.waiting.remove(n, t.uses.byAge)
	if use.where != 0 {
		d := t.ports.at(use.where)
		d.list(use.stage).remove(n, t.uses.siblings)
		d.count(use.stage, use.pair.lport, -1)
		t.touch(use.where)
		use.where = 0
	}
	if use.stage == inTimeWait {
		key := t.uses.hash(use.toward())
		if t.uses.sameDestination[key]--; t.uses.sameDestination[key] == 0 {
			delete(t.uses.sameDestination, key)
		}
	}
	use.stage, use.armed = past, false
}

// rest puts a detached use among those that are over.
func (t *Tracker) rest(n uint32, now int64) {
	t.uses.at(n).since = now
	t.uses.past.push(n, t.uses.byAge)
}

// wait puts a detached use among those in FIN_WAIT2 or TIME_WAIT.
func (t *Tracker) wait(n uint32, stage stage, holdsPort bool, now int64) {
	use := t.uses.at(n)
	use.stage, use.since = stage, now
	t.uses.waiting.push(n, t.uses.byAge)
	if stage == inTimeWait {
		t.uses.sameDestination[t.uses.hash(use.toward())]++
	}
	if holdsPort {
		use.where = t.ports.get(use.toward())
		d := t.ports.at(use.where)
		d.list(stage).push(n, t.uses.siblings)
		d.count(stage, use.pair.lport, +1)
		t.touch(use.where)
	}
}
