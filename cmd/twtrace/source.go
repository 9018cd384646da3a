package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
	"github.com/twtrace/twtrace/internal/verdict"
)

// A source is where a live run has its records from: the kernel's events, and
// what they mean.
type source struct {
	tracer  *probe.Tracer
	tracker *track.Tracker
	who     *who
	began   time.Time
	// allPorts: every holder of a local port is seen.
	allPorts bool
	// blindSpots are what can't be seen, a line each.
	blindSpots []string
	// tell takes what is told now. explained is what hands it there, with
	// owners and verdicts: made once, since there is one for every event.
	tell, explained func(moment []record.Record)
	// warn takes what the user should know, one line each.
	warn func(format string, args ...any)

	damaged   uint64 // events that could not be decoded
	missed    uint64 // events that were lost and tell more than a state, as was noticed last
	missedAt  int64  // when that was, on the events' clock
	quiet     bool   // the ring was empty, when it was looked at last
	compare   bool   // the tables are to be compared
	compared  bool   // they were, and what was missing is still to be ended
	suspects  bool   // a network namespace is suspect
	untracked bool   // was said
	forgot    bool   // was said
	event     event.Event
	netns     map[event.NetNS]*namespace // nil: nothing was heard of it for long
	swept     int64                      // when those were looked for last, on the events' clock
	reading   reading                    // of counters
	older     map[uint32]bool            // network namespaces that were there at the start; nil: not known
}

// A namespace is a network namespace with TCP in it.
type namespace struct {
	sysctls event.Sysctls
	line    uint64 // where they stand in the log
	read    bool   // they were, at least once
	looked  int64  // when, on the events' clock

	// counts are its counters as they were read, the oldest first.
	counts []counts
	moved  verdict.Counters // the last time that a connect failed
	since  int64            // as against then
	// backlog is the longest queue of a listener when one overflowed.
	backlog *verdict.Backlog
	suspect bool // its counters may tell more
	// reads of the counters in this second
	reads  int
	second int64
}

// counts are the counters of a network namespace at a moment.
type counts struct {
	at int64
	owner.Counters
}

const (
	// maxNamespaces bounds those whose settings are remembered.
	maxNamespaces = 64 << 10
	// settingsAge is how old the settings of a namespace in use may become.
	settingsAge = int64(10 * time.Second)
	// namespaceAge is how long what is known of a namespace is kept that nothing is
	// heard of: most are of pods that are gone.
	namespaceAge = int64(5 * time.Minute)
)

// openSource begins to trace, and makes known the sockets that were there
// before.
func openSource(config probe.Config, warn func(format string, args ...any)) (*source, error) {
	hierarchy, err := owner.FindHierarchy("/proc")
	if err != nil {
		return nil, err
	}
	config.Cgroups = probe.Cgroups{Hierarchy: hierarchy.ID, Controller: hierarchy.Controller}
	tracer, err := probe.Open(config)
	if err != nil {
		return nil, err
	}
	filter := config.Filter
	hiding := filter.PID != 0 || filter.Comm != "" || filter.LocalPorts != nil || filter.Descendants || filter.ByContainer()
	s := &source{
		tracer: tracer, began: time.Now(), warn: warn, netns: make(map[event.NetNS]*namespace),
		who:        newWho(hierarchy, tracer, config.Filter),
		allPorts:   tracer.SeesTimeWaits() && !hiding,
		blindSpots: tracer.BlindSpots(),
	}
	s.tracker = track.New(track.Config{
		PeersFiltered: filter.PeerPorts != nil || filter.Networks != nil || filter.Version != 0,
		ResultsSeen:   tracer.SeesResults(),
		AllPorts:      s.allPorts,
	})
	if hiding {
		s.blindSpots = append(s.blindSpots, "who holds the local ports toward a destination, and how many are taken: -p, --comm, -L, --container, --pod, --namespace and a command leave other holders out")
	}
	s.explained = s.explain
	if err := s.adopt(); err != nil {
		if filter.Descendants {
			s.close()
			return nil, fmt.Errorf("trace a command: %w", err)
		}
		warn("sockets older than this run have no owner: %v", err)
	}
	return s, nil
}

// close ends the trace.
func (s *source) close() error { return errors.Join(s.who.close(), s.tracer.Close()) }

// adopt makes known the sockets that were there before.
func (s *source) adopt() error {
	holders, err := owner.Holders("/proc")
	if err != nil {
		return err
	}
	cgroups := make(map[uint32]uint64) // by process: one can have many sockets
	for inode, holder := range holders {
		cgroup, ok := cgroups[holder.PID]
		if !ok {
			cgroup = s.who.cgroups.Of(holder.PID)
			cgroups[holder.PID] = cgroup
		}
		holder.Cgroup = cgroup
		holders[inode] = holder
	}
	netns, err := owner.NetNS("/proc")
	if err != nil {
		return err
	}
	s.older = make(map[uint32]bool, len(netns))
	for _, path := range netns {
		if inode, err := owner.Inode(path); err == nil {
			s.older[uint32(inode)] = true
		}
	}
	return s.tracer.Adopt(holders, netns, func(e *event.Event) {
		if s.who.wants(e) {
			s.tracker.Observe(e, func([]record.Record) {})
		}
	})
}

// next reads an event and tells what it means. The ring was empty where quiet is
// set: a good moment for chores.
func (s *source) next(tell func(moment []record.Record)) (quiet bool, err error) {
	s.tell = tell
	err = s.tracer.Read(&s.event)
	s.quiet = errors.Is(err, os.ErrDeadlineExceeded)
	switch {
	case err == nil:
		if !s.who.wants(&s.event) {
			return false, nil
		}
		s.look(&s.event)
		s.tracker.Observe(&s.event, s.explained)
		s.suspect(&s.event)
	case s.quiet:
		// Only now: what an event waits for may be in the ring.
		now := probe.Now()
		s.tracker.Tick(now, s.explained)
		s.examine(now, false)
		s.catchUp(now)
		return true, nil
	case errors.Is(err, probe.ErrUndecodable):
		if s.damaged == 0 {
			s.warn("%v: it is counted as lost, and so are any more of its kind", err)
		}
		s.damaged++
	default:
		return false, err
	}
	return false, nil
}

// flush tells what still waits for another event, at the end.
func (s *source) flush(tell func(moment []record.Record)) {
	s.tell = tell
	s.tracker.Flush(s.explained)
	s.examine(s.event.Clock(), true)
}

// look reads the settings of the event's network namespace where they are not
// known, or old, and tells them where they are new.
func (s *source) look(e *event.Event) {
	n, known := s.netns[e.NetNS]
	now := e.Clock()
	if n != nil && now-n.looked < settingsAge || e.NetNS.Inode == 0 {
		return
	}
	if n == nil {
		if len(s.netns) >= maxNamespaces {
			clear(s.netns)
		}
		s.sweep(now)
		n = &namespace{}
		if !known && s.older != nil && !s.older[e.NetNS.Inode] {
			n.counts = []counts{{at: now}} // it began with none
		}
		s.netns[e.NetNS] = n
	}
	n.looked = now
	// A thread or process that leads there can end before it is followed: then
	// another does.
	path := s.path(e.NetNS, e.Owner.TID, e.Owner.PID)
	sysctls, cookie, err := owner.Sysctls(path)
	if err != nil && path != "" {
		path = s.path(e.NetNS)
		sysctls, cookie, err = owner.Sysctls(path)
	}
	if err != nil {
		return // gone, or not ours to see: nothing is told
	}
	if isAnother(e.NetNS, cookie) {
		return
	}
	if len(n.counts) < 2 || now-n.counted() > countersAge {
		s.count(e.NetNS, path)
	}
	if n.read && sysctls.Equal(n.sysctls) {
		return
	}
	n.sysctls, n.read = sysctls, true
	s.tracker.Describe(e.NetNS, sysctls.Reserved)
	said := []record.Record{{Kind: record.NetNS, Time: e.Time, Socket: event.Socket{NetNS: e.NetNS}, Sysctls: &n.sysctls}}
	s.tell(said)
	n.line = said[0].Line
}

// isAnother reports whether a network namespace with this cookie is not that one, but
// has its inode now. Where either cookie is not known it is taken for the same.
func isAnother(netns event.NetNS, cookie uint64) bool {
	return cookie != 0 && netns.Cookie != 0 && cookie != netns.Cookie
}

// sweep lets go of what is known of namespaces that nothing is heard of.
func (s *source) sweep(now int64) {
	if now-s.swept < namespaceAge/10 {
		return
	}
	s.swept = now
	for netns, n := range s.netns {
		if n != nil && now-n.looked > namespaceAge {
			s.netns[netns] = nil
		}
	}
}

// path is where a network namespace can be entered, by a thread or process that may
// be in it: "" where it is gone, or not ours to see.
func (s *source) path(netns event.NetNS, maybe ...uint32) string {
	path, err := owner.PathOf("/proc", netns.Inode, maybe...)
	if err != nil {
		return ""
	}
	return path
}

// catchUp ends what was missing when the tables were compared last, now that the
// ring has been read once more, and compares them where that is still to be done.
func (s *source) catchUp(now int64) {
	if s.compared {
		s.compared = false
		s.tracker.EndMissing(time.Now().UnixNano(), now, s.explained)
	}
	s.compareTables()
}

// compareTables compares, after a loss, what the tracker knows with what the kernel
// does. That takes long where there is much: it waits until the ring is empty, or
// more would be lost meanwhile.
func (s *source) compareTables() {
	if !s.compare || !s.quiet {
		return
	}
	s.compare = false
	if err := s.tracker.Reconcile(s.tracer.Tables); err != nil {
		s.warn("%v: what ended in a lost event stays in the tables", err)
		return
	}
	s.compared = true
}

// lost counts the events that were lost before they could be told.
func (s *source) lost() (lost probe.Loss, err error) {
	if lost, err = s.tracer.Lost(); err != nil {
		return lost, err
	}
	lost.Missed += s.damaged
	untracked, err := s.tracer.Untracked()
	if err != nil {
		return lost, err
	}
	if untracked > 0 && !s.untracked {
		s.untracked = true
		s.warn("no room for more sockets, in their tables or in memory: further ones have no owner")
	}
	// A table without room for all would have the rest ended.
	// A state alone is in the history that later events bring.
	if missed := lost.Total() - lost.Events[event.TellsState]; missed > s.missed && untracked == 0 {
		s.missed, s.missedAt = missed, s.event.Clock()
		s.compare = true
		s.compareTables() // before the loss is told, if it can be
	}
	if !s.forgot && s.tracker.Forgotten() > 0 {
		s.forgot = true
		s.warn("too many connections to remember: some uses of ports are forgotten early, and counted")
	}
	return lost, nil
}

// lineOf is the kind of line that a lost event would have told.
var lineOf = [event.TellsKinds]record.Kind{
	event.TellsState:         record.State,
	event.TellsConnect:       record.Connect,
	event.TellsAccept:        record.Accept,
	event.TellsClose:         record.Close,
	event.TellsTimeWaitEnter: record.TimeWaitEnter,
	event.TellsTimeWaitEnd:   record.TimeWaitEnd,
	event.TellsSynRetransmit: record.SynRetransmit,
	event.TellsDrop:          record.Drop,
	event.TellsReset:         record.Reset,
}

// inKernel tells what was lost since before, if anything was.
func inKernel(lost, before probe.Loss) (fields record.LostFields, ok bool) {
	fields = record.LostFields{Count: lost.Total() - before.Total(), Where: record.InKernel}
	for tells, kind := range lineOf {
		n := lost.Events[tells] - before.Events[tells]
		if n == 0 || kind == 0 {
			continue
		}
		if fields.Kinds == nil {
			fields.Kinds = new([record.Kinds]uint64)
		}
		fields.Kinds[kind] = n
	}
	return fields, fields.Count > 0
}
