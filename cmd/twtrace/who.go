package main

import (
	"cmp"
	"iter"
	"os"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/names"
	"github.com/twtrace/twtrace/internal/owner"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

// A who tells which containers the owners of sockets are in, and which of them are
// wanted.
type who struct {
	cgroups *owner.Cgroups
	names   *names.Names
	filter  probe.Filter
	// leaveOut has the kernel leave out what is in a control group.
	leaveOut func(id uint64) error
	node     string // of Kubernetes, "" where nobody tells
}

// envNode is the variable that names the node to what runs in a pod: from inside, its
// host name is the pod's.
const envNode = "NODE_NAME"

func newWho(hierarchy owner.Hierarchy, tracer *probe.Tracer, filter probe.Filter) *who {
	return &who{
		cgroups: owner.OpenCgroups("/proc", hierarchy, tracer.CgroupPath), names: names.Open(),
		filter: filter, leaveOut: tracer.LeaveOut, node: os.Getenv(envNode),
	}
}

func (w *who) close() error {
	w.names.Close()
	return w.cgroups.Close()
}

// of returns what is known of a control group, nil for nothing. Of a container that is
// new it waits a moment for the name (names.Names.Of).
func (w *who) of(id uint64) *event.Cgroup {
	in := w.cgroups.Find(id)
	if in == nil || in.Container == "" || named(in) {
		return in
	}
	known := *in
	if name, ok := w.names.Of(in.Container); ok {
		known.Name, known.Pod, known.Namespace = name.Container, name.Pod, name.Namespace
		known.Runtime = cmp.Or(known.Runtime, name.Runtime)
		known.PodUID = cmp.Or(known.PodUID, name.PodUID)
	}
	if known.PodUID != "" {
		known.Node = w.node
	}
	if known == *in {
		return in
	}
	w.cgroups.Learn(id, &known)
	return &known
}

// named reports whether a container's name is known, or its pod's where it has none
// of its own.
func named(in *event.Cgroup) bool { return in.Name != "" || in.Pod != "" }

// wants tells the event's owner, and reports whether a filter by container lets it
// pass. Whose a dropped packet is turns out later.
//
// The kernel lets pass what it was not told to leave out: a container that comes
// while a filter is on is looked at here, first for its name. That way no event of one
// that is wanted is left out before it is known to be.
func (w *who) wants(e *event.Event) bool {
	e.Owner.In = w.of(e.Owner.Cgroup)
	if e.Kind == event.Drop || w.filter.HasContainer(e.Owner.In) {
		return true
	}
	if in := e.Owner.In; in != nil && (in.Container == "" || named(in)) {
		_ = w.leaveOut(e.Owner.Cgroup) // where it can't, the next is looked at as well
	}
	return false
}

// identify tells the owners in a moment: those that the tracker remembers have their
// control group's id alone.
func (w *who) identify(moment []record.Record) {
	for i := range moment {
		r := &moment[i]
		w.fill(&r.Socket.Owner)
		if r.Reuse != nil {
			w.fill(&r.Reuse.Previous.Owner)
		}
		if r.Ports != nil && r.Ports.Holder != nil {
			w.fill(&r.Ports.Holder.Owner)
		}
	}
}

// connections are the tracker's, with their owners told.
func (s *source) connections(now int64) iter.Seq[track.Connection] {
	return func(yield func(track.Connection) bool) {
		for c := range s.tracker.Connections(now) {
			s.who.fill(&c.Socket.Owner)
			if !yield(c) {
				return
			}
		}
	}
}

func (w *who) fill(o *event.Owner) {
	if o.In == nil {
		o.In = w.of(o.Cgroup)
	}
}
