package report

import (
	"cmp"
	"fmt"
	"slices"
	"sort"
	"time"

	"github.com/twtrace/twtrace/internal/record"
)

const (
	// gap is how far apart two verdicts of one incident may be.
	gap = int64(time.Minute)
	// maxIncidents bounds those that are kept.
	maxIncidents = 1000
	// recentBytes is how much of the lines before is kept, for evidence.
	recentBytes = 8 << 20
	// maxSettings bounds the settings of network namespaces that are kept as
	// evidence beyond that.
	maxSettings = 4 << 10
)

// A subject is what an incident is about: a cause, and a destination or else a network
// namespace.
type subject struct {
	cause string
	to    destination
	netns uint32
}

// An incident is an Incident in the making.
type incident struct {
	Incident
	from, to   int64
	confidence record.Confidence
	failed     uint64
	processes  map[string]uint64
	containers map[string]uint64
	netns      map[string]uint64
}

// verdict adds a verdict to its incident.
func (c *Collector) verdict(r *record.Record, raw []byte) {
	cause := r.Verdict
	for cause.Inner != nil {
		cause = cause.Inner
	}
	c.report.Verdicts[cause.ID]++
	key := subject{cause: cause.ID, to: c.end(r)}
	if r.Kind == record.Verdict || !key.to.end.IsValid() {
		key = subject{cause: cause.ID, netns: r.Socket.NetNS.Inode}
	}
	all := c.incidents[key]
	i := slices.IndexFunc(all, func(i *incident) bool { return i.from-gap <= r.Time && r.Time <= i.to+gap })
	if i < 0 {
		if c.incidentCount >= maxIncidents {
			c.report.MoreIncidents++
			return
		}
		c.incidentCount++
		i = len(all)
		all = append(all, &incident{
			from: r.Time, to: r.Time,
			Incident:  Incident{Cause: cause.ID, Wrappers: make(map[string]uint64), Outcomes: make(map[string]uint64)},
			processes: make(map[string]uint64), containers: make(map[string]uint64), netns: make(map[string]uint64),
		})
		if key.to.end.IsValid() {
			all[i].Peer, all[i].Accepted = key.to.end.String(), key.to.accepted
		}
		c.incidents[key] = all
	}
	in := all[i]
	in.from, in.to = min(in.from, r.Time), max(in.to, r.Time)
	in.Count++
	if cause != r.Verdict {
		in.Wrappers[r.Verdict.ID]++
	}
	if r.Kind == record.Connect {
		in.Outcomes[nameOf(r.Connect.Outcome)]++
		if r.Connect.Outcome != record.Established {
			in.failed++
		}
	}
	count(in.processes, r.Socket.Owner.Comm)
	count(in.containers, containerName(&r.Socket))
	if r.Socket.NetNS.Inode != 0 {
		count(in.netns, fmt.Sprint(r.Socket.NetNS.Inode))
	}
	if cause.Confidence > in.confidence {
		in.confidence = cause.Confidence
		in.explain(c, r, cause, raw)
	}
}

// count counts a name among a few.
func count(names map[string]uint64, name string) {
	if _, ok := names[name]; ok || len(names) < maxShares && name != "" {
		names[name]++
	}
}

// explain takes what a verdict says.
func (in *incident) explain(c *Collector, r *record.Record, cause *record.VerdictFields, raw []byte) {
	in.Confidence = cause.Confidence.String()
	in.Text, in.Advice = cause.Text, cause.Advice
	in.RuledOut, in.NotVisible = orEmpty(cause.RuledOut), orEmpty(cause.NotVisible)
	in.Line = string(raw)
	in.Evidence = []Evidence{}
	facts := cause.Evidence
	if cause != r.Verdict {
		facts = slices.Concat(r.Verdict.Evidence, facts)
	}
	for i, e := range facts {
		if slices.Contains(facts[:i], e) {
			continue // both rest on it
		}
		evidence := Evidence{Text: e.Text}
		if e.Line > 0 {
			seq := e.Line - 1
			evidence.Seq, evidence.Line = &seq, c.recent.line(seq)
		}
		in.Evidence = append(in.Evidence, evidence)
	}
}

// finishIncidents returns the incidents, those with the most failures first.
func (c *Collector) finishIncidents() []Incident {
	var all []*incident
	for _, some := range c.incidents {
		all = append(all, some...)
	}
	slices.SortFunc(all, func(a, b *incident) int {
		return cmp.Or(
			cmp.Compare(b.failed, a.failed), cmp.Compare(b.Count, a.Count), cmp.Compare(a.from, b.from),
			cmp.Compare(a.Cause, b.Cause), cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Line, b.Line),
		)
	})
	out := []Incident{}
	for _, in := range all {
		in.From, in.To = utc(in.from), utc(in.to)
		in.Processes = shares(in.processes, maxShares)
		in.Containers = shares(in.containers, maxShares)
		in.NetNS = shares(in.netns, maxShares)
		out = append(out, in.Incident)
	}
	return out
}

// recent are the lines before, as many as there is room for, by their numbers.
type recent struct {
	bytes []byte // a ring
	next  int
	lines []kept // the oldest first
	// settings are lines that stay evidence for long.
	settings map[uint64]string
}

type kept struct {
	seq        uint64
	start, end int
}

func newRecent() recent { return recent{settings: make(map[uint64]string)} }

// keep keeps a line that can be evidence.
func (k *recent) keep(r *record.Record, raw []byte) {
	switch r.Kind {
	case record.State, record.Accept, record.Meta, record.Summary, 0:
		return
	case record.NetNS:
		if len(k.settings) < maxSettings {
			k.settings[r.Line-1] = string(raw)
		}
		return
	}
	if k.next+len(raw) > len(k.bytes) {
		if len(k.bytes) < recentBytes {
			k.bytes = append(k.bytes, make([]byte, max(len(k.bytes), recentBytes/64))...)
		} else {
			k.next = 0
		}
	}
	start, end := k.next, k.next+len(raw)
	gone := 0
	for gone < len(k.lines) && k.lines[gone].start < end && start < k.lines[gone].end {
		gone++
	}
	k.lines = append(k.lines[gone:], kept{r.Line - 1, start, end})
	copy(k.bytes[start:], raw)
	k.next = end
}

// line returns the line with a number, "" where it is not there any more.
func (k *recent) line(seq uint64) string {
	i := sort.Search(len(k.lines), func(i int) bool { return k.lines[i].seq >= seq })
	if i < len(k.lines) && k.lines[i].seq == seq {
		return string(k.bytes[k.lines[i].start:k.lines[i].end])
	}
	return k.settings[seq]
}
