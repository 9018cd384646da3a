package main

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/verdict"
)

const (
	// countersAge is how old the counters that others are compared with may
	// become, where there is something to compare.
	countersAge = int64(10 * time.Second)
	// countersRest is how long the counters of a suspect are left alone.
	countersRest = int64(500 * time.Millisecond)
	// maxReads bounds how often the counters of a network namespace are read
	// in a second.
	maxReads = 10
	// maxReading is how long counters may be read in one go, and one part of the
	// time in readingShare how long they may be read for ever. Connects that
	// fail in many namespaces at once want the counters of all of them, and a slow
	// processor takes its time.
	maxReading   = int64(time.Second)
	readingShare = 10
	// maxCounts is how many readings of the counters are kept: as far back as
	// an ordinary connect goes on.
	maxCounts = 32
)

// explain tells a moment with its owners and its verdicts, and first what they rest
// on.
func (s *source) explain(moment []record.Record) {
	s.who.identify(moment)
	for i := range moment {
		if r := &moment[i]; verdict.Concerns(r) {
			r.Verdict = s.why(moment, r)
		}
	}
	s.tell(moment)
}

// why returns the verdict on a record.
func (s *source) why(moment []record.Record, r *record.Record) *record.VerdictFields {
	f := verdict.Facts{
		Record: r, Case: s.tracker.Case(moment, r),
		Offsets:     string(s.tracer.TSOffsets()),
		DropsSeen:   s.tracer.SeesDrops(),
		DropReasons: s.tracer.SeesDropReasons(),
		Lost:        s.missedAt > 0 && s.event.Clock()-s.missedAt <= int64(r.Connect.Duration+time.Second),
	}
	here := r.Socket.NetNS
	if n := s.netns[here]; n != nil && n.read {
		f.Sysctls, f.SysctlsLine = &n.sysctls, n.line
	}
	if r.Kind == record.Connect && r.Connect.Outcome != record.NoLocalPort && r.State.New != 0 {
		began := s.event.Clock() - int64(r.Connect.Duration)
		looked := map[event.NetNS]bool{{}: true}
		places := []event.NetNS{here, f.There}
		for i := range f.Drops {
			places = append(places, f.Drops[i].NetNS)
		}
		for _, netns := range places {
			if looked[netns] {
				continue
			}
			looked[netns] = true
			if c, ok := s.counters(netns, began); ok {
				f.Counters = append(f.Counters, c)
			}
			if n := s.netns[netns]; n != nil && netns == f.There {
				f.Backlog = n.backlog
			}
		}
	}
	return verdict.Of(&f)
}

// counters looks at the counters of a network namespace, tells what moved since the
// time began, or a little before, and returns it.
func (s *source) counters(netns event.NetNS, began int64) (verdict.Counters, bool) {
	n, now := s.netns[netns], s.event.Clock()
	if n == nil || len(n.counts) == 0 {
		return verdict.Counters{}, false
	}
	before := n.before(began)
	may := n.mayCount(now) && s.reading.may(probe.Now())
	if n.since == before.at && !may {
		return n.moved, true // told just now
	}
	if may {
		asked := probe.Now()
		read := s.count(netns, s.path(netns, s.event.Owner.TID, s.event.Owner.PID))
		s.reading.spent += probe.Now() - asked
		if !read {
			return verdict.Counters{}, false
		}
	}
	if n.counted() <= began {
		return verdict.Counters{}, false // none were read since: that none moved is not known
	}
	n.since = before.at
	// How full a table was, nobody knows later.
	if last := &n.counts[len(n.counts)-1]; last.at-now > int64(time.Second) {
		last.ConntrackMax = 0
	}
	n.moved = s.tellMoved(netns, before)
	return n.moved, true
}

// count reads the counters of the network namespace at path anew, and tells the
// verdicts on it that follow from them alone.
func (s *source) count(netns event.NetNS, path string) bool {
	if path == "" {
		return false
	}
	n := s.netns[netns]
	counters, cookie, err := owner.ReadCounters(path)
	if err != nil || isAnother(netns, cookie) {
		return false
	}
	// The event can be older: what it waited for in the ring is in the counters.
	now := probe.Now()
	n.suspect = false
	n.reads++
	n.counts = append(n.counts, counts{now, counters})
	if len(n.counts) == 1 {
		return true // nothing to compare it with
	}
	if len(n.counts) > maxCounts {
		n.counts = slices.Delete(n.counts, 0, 1)
	}
	before := n.counts[len(n.counts)-2]
	moved := counters.Since(before.Counters)
	if moved["TCPTimeWaitOverflow"]+moved["ListenOverflows"] == 0 {
		return true
	}
	n.backlog = nil
	if moved["ListenOverflows"] > 0 {
		n.backlog = fullest(path)
	}
	most := int64(-1)
	if n.read {
		most = n.sysctls.Number("tcp_max_tw_buckets")
	}
	told := s.tellMoved(netns, before)
	for _, v := range verdict.OfNetNS(&told, most, n.backlog) {
		s.tell([]record.Record{{Kind: record.Verdict, Time: s.event.Time, Socket: event.Socket{NetNS: netns}, Verdict: v}})
	}
	return true
}

// tellMoved tells what the counters of a network namespace have moved since they were
// as before.
func (s *source) tellMoved(netns event.NetNS, before counts) verdict.Counters {
	n := s.netns[netns]
	last := &n.counts[len(n.counts)-1]
	moved := verdict.Counters{
		NetNS:          netns,
		CountersFields: record.CountersFields{Interval: time.Duration(last.at - before.at), Delta: last.Since(before.Counters)},
		ConntrackCount: last.ConntrackCount, ConntrackMax: last.ConntrackMax,
	}
	if len(moved.Delta) > 0 {
		said := []record.Record{{Kind: record.Counters, Time: s.event.Time, Socket: event.Socket{NetNS: netns}, Counters: &moved.CountersFields}}
		s.tell(said)
		moved.Line = said[0].Line
	}
	return moved
}

// fullest returns the longest queue of a listener in the network namespace at path.
func fullest(path string) *verdict.Backlog {
	queues, err := owner.Queues(path)
	if err != nil || len(queues) == 0 {
		return nil
	}
	longest := slices.MaxFunc(queues, func(a, b owner.Queue) int { return cmp.Compare(a.Length, b.Length) })
	backlog := &verdict.Backlog{Port: longest.Port, Length: longest.Length}
	if holders, err := owner.Holders("/proc", longest.Inode); err == nil {
		backlog.Owner = holders[longest.Inode]
	}
	return backlog
}

// suspect notes a sign that a network namespace has no room for a TIME_WAIT, which
// only its counters tell.
func (s *source) suspect(e *event.Event) {
	if e.Kind != event.StateChange || e.New != event.Close || e.Lingers || e.Errno != 0 ||
		e.Old != event.FinWait2 && e.Old != event.Closing {
		return
	}
	if n := s.netns[e.NetNS]; n != nil {
		n.suspect = true
		s.suspects = true
	}
}

// examine looks at the counters of the network namespaces that are suspect.
// They are left alone for a while in between, but not at the end.
func (s *source) examine(now int64, end bool) {
	if !s.suspects {
		return
	}
	s.suspects = false
	for netns, n := range s.netns {
		if n == nil || !n.suspect {
			continue
		}
		if !end && now-n.counted() < countersRest {
			s.suspects = true // later
			continue
		}
		s.count(netns, s.path(netns))
	}
}

// reading is the time for which counters were read, less what has come back since.
// Meanwhile no event is read: on a busy machine, where another thread must wait for its
// turn, much would be lost.
type reading struct {
	spent, at int64 // ns
}

// may reports whether there is some left at the time now.
func (r *reading) may(now int64) bool {
	r.spent = max(0, r.spent-(now-r.at)/readingShare)
	r.at = now
	return r.spent < maxReading
}

// mayCount reports whether the counters may be read once more in this second: a storm
// of connects that fail must not become one of reads.
func (n *namespace) mayCount(now int64) bool {
	if second := now / int64(time.Second); second != n.second {
		n.second, n.reads = second, 0
	}
	return n.reads < maxReads
}

// counted is when the counters were read last.
func (n *namespace) counted() int64 {
	if len(n.counts) == 0 {
		return math.MinInt64 / 2
	}
	return n.counts[len(n.counts)-1].at
}

// before returns the last counters that were read before a time, or else the oldest.
func (n *namespace) before(at int64) counts {
	found := n.counts[0]
	for _, c := range n.counts {
		if c.at <= at {
			found = c
		}
	}
	return found
}
