package sink

import (
	"maps"
	"slices"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// AppendSentence appends what a record says, in one line of plain words without
// columns: for readers who see it between other programs' lines. What comes from
// the traced processes is made harmless, as in the tail.
func AppendSentence(b []byte, r *record.Record) []byte {
	l := line{b: b, start: len(b)}
	switch r.Kind {
	case record.Meta:
		l.text("twtrace ")
		l.name(r.Meta.Version, len(r.Meta.Version))
		l.text(" traces Linux ")
		l.name(r.Meta.Kernel, len(r.Meta.Kernel))
		return l.b
	case record.Lost:
		l.text("lost ")
		l.lost(r.Lost.Count, r.Lost.Where)
		l.lostKinds(r.Lost.Kinds)
		return l.b
	case record.Summary:
		sentenceSummary(&l, r.Summary)
		return l.b
	case record.NetNS:
		l.netns(r.Socket.NetNS)
		l.text("settings ")
		l.b = record.AppendSysctls(l.b, r.Sysctls)
		return l.b
	case record.Counters:
		l.netns(r.Socket.NetNS)
		separator := "moved "
		for _, name := range slices.Sorted(maps.Keys(r.Counters.Delta)) {
			l.text(separator)
			l.name(name, len(name))
			l.text(" by ")
			l.number(r.Counters.Delta[name])
			separator = ", "
		}
		return l.b
	case record.Verdict:
		l.netns(r.Socket.NetNS)
	default:
		if r.Socket.Owner.Known() {
			l.process(r.Socket.Owner)
			l.text(" ")
		}
		l.end(r.Socket.Tuple.Local)
		l.text(" -> ")
		l.end(r.Socket.Tuple.Peer)
		l.text(": ")
	}

	plain := Text{}
	switch r.Kind {
	case record.Connect, record.Accept, record.Close, record.Verdict:
		// What was made of the change says it all.
	case record.PortReuse:
		l.text(reused(r.Reuse))
		l.text(" ")
	case record.TimeWaitEnter:
		l.text("TIME_WAIT begins, ")
	case record.TimeWaitEnd:
		l.text("TIME_WAIT ends: ")
	default:
		plain.change(&l, r)
		l.text(", ")
	}
	before := len(l.b)
	note(&l, r)
	if len(l.b) == before && len(l.b) > l.start+2 && string(l.b[before-2:]) == ", " {
		l.b = l.b[:before-2]
	}
	if v := r.Verdict; v != nil {
		if r.Kind != record.Verdict {
			l.text("; ")
		}
		for v.Inner != nil {
			v = v.Inner
		}
		l.name(v.ID, len(v.ID))
		l.text(" (")
		l.text(v.Confidence.String())
		l.text("): ")
		l.name(v.Text, len(v.Text))
	}
	return l.b
}

func sentenceSummary(l *line, s *record.SummaryFields) {
	l.text("traced ")
	l.span(s.Duration)
	var connects, failed uint64
	for outcome, n := range s.Connects {
		connects += n
		if record.Outcome(outcome) != record.Established {
			failed += n
		}
	}
	l.text(": ")
	l.count(connects, "connect")
	l.text(", ")
	l.number(failed)
	l.text(" of them failed; lost ")
	l.lost(s.LostKernel, record.InKernel)
	l.text(", ")
	l.lost(s.LostOutput, record.InOutput)
}

// netns names a network namespace.
func (l *line) netns(n event.NetNS) {
	l.text("netns ")
	l.number(uint64(n.Inode))
	l.text(": ")
}
