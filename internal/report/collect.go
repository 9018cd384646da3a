package report

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

const (
	maxUses     = 512 // of ports, whose course is kept
	maxPressure = 256 // lines for each of these
	maxReuses   = 20  // the shortest
	maxRuns     = 1000
	maxDamaged  = 20 // that are shown
)

// Options narrow a report.
type Options struct {
	// Wants says which lines about sockets count; nil: all.
	Wants func(*record.Record) bool
	// Filters are the same in words, as given.
	Filters []string
	// Since and Until are Unix nanoseconds: from the first, and before the
	// last. 0: no limit.
	Since, Until int64
	// Connection is the cookie of the socket whose story is to be told, 0 for
	// none.
	Connection uint64
}

// Collector reads lines, in the order in which they were written as far as that is
// known, and keeps what a Report tells.
type Collector struct {
	options Options
	report  Report
	clock   *clock

	runs     map[runID]*run
	current  *run
	first    int64
	last     int64
	started  bool
	timeline struct{ established, failed, late, lost counter }
	events   [record.Kinds]uint64

	connects            [record.Outcomes]uint64
	endings             [event.Endings]uint64
	established, failed *histogram
	waits, gaps         *histogram
	destinations        *tally[destination]
	processes           *tally[string]
	containers          *tally[container]
	accepting           map[netip.AddrPort]bool
	uses                map[use]*portUse
	incidents           map[subject][]*incident
	incidentCount       int
	recent              recent
	story               story
	noReasons           bool // a drop has none
	orphans             uint64
}

// A runID tells runs apart.
type runID struct {
	node, boot string
	started    int64
}

// A run is a Run in the making.
type run struct {
	Run
	next     uint64 // the number of the line that comes next
	headless bool   // its first line is missing
	lost     Lost
	said     Lost // by its summary
}

// A destination is where a connection goes, or where it was accepted.
type destination struct {
	end      netip.AddrPort
	accepted bool
}

// A container is known by its id or else, as all control groups are, by that one's
// and its network namespace.
type container struct {
	id     string
	cgroup uint64
	netns  uint32
}

func containerOf(s *event.Socket) container {
	if in := s.Owner.In; in != nil && in.Container != "" {
		return container{id: in.Container}
	}
	return container{cgroup: s.Owner.Cgroup, netns: s.NetNS.Inode}
}

// A use of local ports, as in PortUse.
type use struct {
	netns event.NetNS
	local netip.Addr
	peer  netip.AddrPort
}

type portUse struct {
	PortUse
	waiting, open gauge
}

// NewCollector returns a Collector.
func NewCollector(options Options) *Collector {
	c := &Collector{
		options: options, clock: newClock(), runs: make(map[runID]*run),
		established: newHistogram(), failed: newHistogram(), waits: newHistogram(), gaps: newHistogram(),
		destinations: newTally(func(d destination) (string, bool) { return d.end.String(), d.accepted }),
		processes:    newTally(func(comm string) (string, bool) { return comm, false }),
		containers:   newTally(func(c container) (string, bool) { return "", false }), // rowsOf names them
		accepting:    make(map[netip.AddrPort]bool), uses: make(map[use]*portUse),
		incidents: make(map[subject][]*incident), recent: newRecent(),
		story: newStory(options.Connection),
	}
	c.report = Report{
		Schema: Schema, Filters: options.Filters,
		Reuses: make(map[string]uint64), Verdicts: make(map[string]uint64), Drops: make(map[string]uint64),
		UnknownKinds: make(map[string]uint64), UnknownKeys: make(map[string]uint64),
	}
	t := &c.timeline
	c.clock.counters = []*counter{&t.established, &t.failed, &t.late, &t.lost}
	return c
}

// Damage notes a line that could not be read.
func (c *Collector) Damage(file string, line uint64, why string) {
	c.report.DamagedLines++
	if len(c.report.Damaged) < maxDamaged {
		c.report.Damaged = append(c.report.Damaged, Damaged{File: file, Line: line, Why: why})
	}
}

// EndFile notes what is wrong with a file as a whole, once it was read: torn is why it
// has no proper end, kinds and keys are those that are not known.
func (c *Collector) EndFile(torn error, kinds, keys map[string]uint64) {
	if torn != nil {
		c.report.Truncated = true
	}
	for name, n := range kinds {
		c.report.UnknownKinds[name] += n
	}
	for name, n := range keys {
		c.report.UnknownKeys[name] += n
	}
}

// Add takes the next line. raw is the line as it stands in the log.
func (c *Collector) Add(r *record.Record, raw []byte) {
	if !c.follow(r) {
		return
	}
	c.recent.keep(r, raw)
	if r.Kind == record.Summary {
		c.current.Complete = true
		c.current.said = Lost{Kernel: r.Summary.LostKernel, Output: r.Summary.LostOutput}
	}
	if c.options.Since != 0 && r.Time < c.options.Since || c.options.Until != 0 && r.Time >= c.options.Until ||
		c.options.Wants != nil && r.Kind.AboutSocket() && !c.options.Wants(r) {
		return
	}
	c.story.add(r, raw, &c.recent)
	if !c.started || r.Time < c.first {
		c.first, c.started = r.Time, true
	}
	c.last = max(c.last, r.Time)
	c.report.Lines++
	c.events[r.Kind]++
	slice := c.clock.at(r.Time)
	if r.Verdict != nil {
		c.verdict(r, raw)
	}
	switch r.Kind {
	case record.Connect:
		c.connect(r, slice)
	case record.Accept:
		c.accept(r)
	case record.Close:
		c.open(r, slice, -1)
	case record.TimeWaitEnter, record.TimeWaitEnd:
		c.timeWait(r, slice)
	case record.PortReuse:
		c.reuse(r)
	case record.PortPressure:
		c.pressure(r)
	case record.Drop:
		c.drop(r)
	case record.Lost:
		c.timeline.lost[slice] += r.Lost.Count
		if r.Lost.Where == record.InKernel {
			c.current.lost.Kernel += r.Lost.Count
			if kinds := r.Lost.Kinds; kinds != nil {
				c.current.lost.States += kinds[record.State]
			}
		} else {
			c.current.lost.Output += r.Lost.Count
		}
	}
}

// follow finds the line's run, and reports whether it is a line of it that was not
// read before.
func (c *Collector) follow(r *record.Record) bool {
	seq := r.Line - 1
	if r.Kind == record.Meta {
		c.begin(r.Meta, seq)
	} else if c.current == nil || seq == 0 && c.current.next > 0 {
		// The head of this log is missing: nobody knows whose lines these are.
		c.current = &run{headless: true, next: seq}
		c.runs[runID{started: int64(len(c.runs))}] = c.current
	}
	in := c.current
	if seq < in.next {
		c.report.RepeatedLines++
		return false
	}
	c.report.MissingLines += seq - in.next
	in.next = seq + 1
	return true
}

// begin begins a run, or goes on with one in a further file.
func (c *Collector) begin(m *record.MetaFields, seq uint64) {
	id := runID{m.Node, m.BootID, m.Started}
	if in, ok := c.runs[id]; ok {
		c.current = in
		return
	}
	c.current = &run{headless: seq > 0, Run: Run{
		Node: m.Node, Kernel: m.Kernel, Arch: m.Arch, Version: m.Version,
		Filters: m.Filters, BlindSpots: m.BlindSpots,
	}}
	if m.Started != 0 {
		c.current.Started = utc(m.Started)
	}
	c.runs[id] = c.current
	c.recent = newRecent()
}

func (c *Collector) connect(r *record.Record, slice int) {
	outcome, peer := r.Connect.Outcome, r.Socket.Tuple.Peer
	c.connects[outcome]++
	good, late := outcome == record.Established, r.Connect.Retransmits > 0
	for _, row := range c.rowsOf(r, destination{end: peer}) {
		if row == nil {
			continue
		}
		row.Connects++
		row.Outcomes[nameOf(outcome)]++
		switch {
		case !good:
			row.Failed++
		case late:
			row.Late++
		}
	}
	if !good {
		c.timeline.failed[slice]++
		if r.Connect.Duration > 0 {
			c.failed.add(r.Connect.Duration)
		}
		if r.Verdict == nil {
			c.report.Unexplained++
		}
		return
	}
	c.timeline.established[slice]++
	if late {
		c.timeline.late[slice]++
	}
	if d := r.Connect.Duration; d > 0 {
		c.established.add(d)
		row := c.destinations.of(destination{end: peer})
		if row.latency == nil {
			row.latency = newHistogram()
		}
		row.latency.add(d)
	}
	c.open(r, slice, 1)
}

func (c *Collector) accept(r *record.Record) {
	local := r.Socket.Tuple.Local
	if len(c.accepting) < maxRows {
		c.accepting[local] = true
	}
	for _, row := range c.rowsOf(r, destination{local, true}) {
		if row != nil {
			row.Accepts++
		}
	}
}

// rowsOf returns the rows of the tables that a line is about. What is not known has
// none. Connects and accepts have the rows know of each other.
func (c *Collector) rowsOf(r *record.Record, d destination) (rows [3]*row) {
	owner := &r.Socket.Owner
	rows[0] = c.destinations.of(d)
	if owner.Comm != "" {
		rows[1] = c.processes.of(owner.Comm)
	}
	if owner.Cgroup != 0 {
		rows[2] = c.containers.of(containerOf(&r.Socket))
		// Its first line can come before its name.
		if rows[2].Name == "" || owner.In != nil && owner.In.Name != "" {
			rows[2].Name = containerName(&r.Socket)
		}
	}
	if r.Kind != record.Connect && r.Kind != record.Accept {
		return rows
	}
	rows[0].seen(owner.Comm)
	if rows[1] != nil && !d.accepted {
		rows[1].seen(rows[0].Name)
	}
	if rows[2] != nil {
		rows[2].seen(owner.Comm)
	}
	return rows
}

// end is what a line about a connection counts for: where it was accepted, or else
// where it goes to.
func (c *Collector) end(r *record.Record) destination {
	to := destination{end: r.Socket.Tuple.Peer}
	if _, ok := c.destinations.rows[to]; !ok && c.accepting[r.Socket.Tuple.Local] {
		return destination{r.Socket.Tuple.Local, true}
	}
	return to
}

func (c *Collector) timeWait(r *record.Record, slice int) {
	enters := r.Kind == record.TimeWaitEnter
	for _, row := range c.rowsOf(r, c.end(r)) {
		switch {
		case row == nil:
		case enters:
			row.TimeWait.Entered++
		default:
			row.ended(nameOf(r.TimeWait.Ended), r.TimeWait.Duration)
		}
	}
	same := uint64(r.TimeWait.SameDestination)
	u := c.useOf(r, same > 1)
	if enters {
		c.report.TimeWait.Entered++
		if u != nil {
			u.waiting.set(slice, max(same, u.waiting.now+1))
			u.peak()
		}
		return
	}
	c.endings[r.TimeWait.Ended]++
	if d := r.TimeWait.Duration; d > 0 && r.TimeWait.Exact {
		c.waits.add(d)
	}
	if !r.TimeWait.Exact {
		c.orphans++
	}
	if u != nil && u.waiting.now > 0 {
		u.waiting.set(slice, u.waiting.now-1)
	}
}

// open counts the connections from here that are open.
func (c *Collector) open(r *record.Record, slice, by int) {
	u := c.useOf(r, by > 0)
	if u == nil || int(u.open.now)+by < 0 {
		return
	}
	u.open.set(slice, uint64(int(u.open.now)+by))
	u.peak()
}

func (u *portUse) peak() {
	u.PeakTimeWaits = max(u.PeakTimeWaits, u.waiting.now)
	u.PeakInUse = max(u.PeakInUse, u.waiting.now+u.open.now)
}

// useOf returns the use of ports that a line is about: nil where it is not known, and
// not to be made.
func (c *Collector) useOf(r *record.Record, make bool) *portUse {
	s := &r.Socket
	key := use{s.NetNS, s.Tuple.Local.Addr(), s.Tuple.Peer}
	u, ok := c.uses[key]
	if ok || !make {
		return u
	}
	if len(c.uses) >= maxUses {
		c.pruneUses()
	}
	u = &portUse{PortUse: PortUse{NetNS: s.NetNS.Inode, Peer: s.Tuple.Peer.String()}}
	if key.local.IsValid() {
		u.Local = key.local.String()
	}
	c.uses[key] = u
	c.clock.gauges = append(c.clock.gauges, &u.waiting, &u.open)
	return u
}

// pruneUses forgets the half that used the least.
func (c *Collector) pruneUses() {
	keys := slices.SortedFunc(maps.Keys(c.uses), func(a, b use) int { return byPeak(c.uses[a], c.uses[b]) })
	for _, key := range keys[maxUses/2:] {
		delete(c.uses, key)
	}
	c.clock.gauges = c.clock.gauges[:0]
	for _, u := range c.uses {
		c.clock.gauges = append(c.clock.gauges, &u.waiting, &u.open)
	}
}

func byPeak(a, b *portUse) int {
	return cmp.Or(
		cmp.Compare(b.PeakInUse, a.PeakInUse), cmp.Compare(len(b.Pressure), len(a.Pressure)),
		cmp.Compare(a.Peer, b.Peer), cmp.Compare(a.Local, b.Local), cmp.Compare(a.NetNS, b.NetNS),
	)
}

func (c *Collector) pressure(r *record.Record) {
	u := c.useOf(r, true)
	p := r.Ports
	u.PeakInUse = max(u.PeakInUse, uint64(p.InUse))
	u.PeakTimeWaits = max(u.PeakTimeWaits, uint64(p.TimeWait))
	u.Usable = max(u.Usable, uint64(p.Usable))
	if len(u.Pressure) < maxPressure {
		u.Pressure = append(u.Pressure, Pressure{
			Time: utc(r.Time), InUse: uint64(p.InUse), TimeWait: uint64(p.TimeWait),
			Ratio: float64(p.InUse) / float64(max(p.Usable, 1)),
		})
	}
}

func (c *Collector) reuse(r *record.Record) {
	f := r.Reuse
	how := nameOf(f.How)
	c.report.Reuses[how]++
	c.destinations.of(c.end(r)).Reuses++
	if f.After <= 0 {
		return
	}
	c.gaps.add(f.After)
	all := c.report.ShortestReuses
	after := milliseconds(f.After)
	i, _ := slices.BinarySearchFunc(all, after, func(r Reuse, after float64) int { return cmp.Compare(r.After, after) })
	if i >= maxReuses {
		return
	}
	s := &r.Socket
	all = slices.Insert(all, i, Reuse{
		Time: utc(r.Time), After: after, Scope: f.Scope.String(), How: how,
		Local: s.Tuple.Local.String(), Peer: s.Tuple.Peer.String(),
		Owner: ownerName(s.Owner), Previous: ownerName(f.Previous.Owner),
	})
	c.report.ShortestReuses = all[:min(len(all), maxReuses)]
}

func (c *Collector) drop(r *record.Record) {
	d := &r.Drop
	name := cmp.Or(d.Reason, d.Location, unknown)
	if d.Reason == "" {
		c.noReasons = true
	}
	c.report.Drops[name]++
	if r.Socket.Owner.Known() {
		c.destinations.of(c.end(r)).Drops++
	}
}

// Report returns what was collected. The Collector can't be used any more.
func (c *Collector) Report() *Report {
	r := &c.report
	if c.started {
		r.Window = Window{From: utc(c.first), To: utc(c.last)}
	}
	r.Events = names(c.events[:], func(i int) string { return nameOf(record.Kind(i)) })
	delete(r.Events, record.Summary.String())
	r.Connects = names(c.connects[:], func(i int) string { return nameOf(record.Outcome(i)) })
	r.TimeWait.Ended = names(c.endings[:], func(i int) string { return nameOf(event.Ended(i)) })
	r.TimeWait.Duration = c.waits.distribution(true)
	r.Latency.Established = c.established.distribution(true)
	r.Latency.Failed = c.failed.distribution(true)
	r.Gaps = c.gaps.distribution(true)
	r.Destinations, r.Processes, r.Containers = c.destinations.finish(), c.processes.finish(), c.containers.finish()
	r.Incidents = c.finishIncidents()
	r.ShortestReuses = orEmpty(r.ShortestReuses)
	c.finishRuns()
	c.finishSeries()
	r.NotShown = orEmpty(c.notShown())
	r.Connection = c.story.finish()
	return r
}

func (c *Collector) finishRuns() {
	r := &c.report
	r.Runs = []Run{}
	all := slices.SortedFunc(maps.Values(c.runs), func(a, b *run) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Node, b.Node))
	})
	narrowed := c.options.Since != 0 || c.options.Until != 0
	for _, in := range all {
		if !in.Complete {
			r.Truncated = true
		}
		lost := in.lost
		if !narrowed {
			// What could not be told in a line of its own is in the summary.
			lost.Kernel, lost.Output = max(lost.Kernel, in.said.Kernel), max(lost.Output, in.said.Output)
		}
		r.Lost.Kernel += lost.Kernel
		r.Lost.Output += lost.Output
		r.Lost.States += lost.States
		if len(r.Runs) < maxRuns {
			r.Runs = append(r.Runs, in.Run)
		}
	}
	if len(all) == 0 {
		r.Truncated = true // not even a whole line
	}
}

func (c *Collector) finishSeries() {
	used, t := c.clock.used, &c.timeline
	c.report.Timeline = Timeline{
		Slice:       milliseconds(time.Duration(c.clock.slice)),
		Established: t.established[:used], Failed: t.failed[:used], Late: t.late[:used], Lost: t.lost[:used],
	}
	if used > 0 {
		c.report.Timeline.From = utc(c.clock.from)
	}
	c.report.PortUse = []PortUse{}
	for _, u := range slices.SortedFunc(maps.Values(c.uses), byPeak) {
		u.TimeWaits, u.Open = u.waiting.finish(used), u.open.finish(used)
		c.report.PortUse = append(c.report.PortUse, u.PortUse)
	}
}

func (g *gauge) finish(used int) []uint64 {
	g.carry(used - 1)
	most := make([]uint64, used)
	for i := range most {
		most[i] = uint64(g.most[i])
	}
	return most
}

// notShown tells what this log can't show.
func (c *Collector) notShown() (said []string) {
	r := &c.report
	say := func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }
	filters := make(map[string]bool)
	spots := make(map[string]bool)
	headless := false
	for _, in := range c.runs {
		headless = headless || in.headless
		for _, f := range in.Filters {
			if !strings.HasPrefix(f, "--probe-tier=") {
				filters[f] = true
			}
		}
		for _, s := range in.BlindSpots {
			spots[s] = true
		}
	}
	if len(filters) > 0 {
		say("twtrace was told to look at a part only: %s", strings.Join(slices.Sorted(maps.Keys(filters)), " "))
	}
	if headless {
		say("the beginning of a run is missing: what began before has no owner and no duration here, and it is not known what that run could see")
	}
	if r.Truncated {
		say("a run did not get to its end, or its last lines are missing: what came then is not here")
	}
	if r.MissingLines > 0 {
		say("%d lines were made and did not reach this log", r.MissingLines)
	}
	if n := r.Lost.States; n > 0 {
		say("%d changes of state were lost in the kernel, which made no other line", n)
	}
	if n := r.Lost.Kernel - min(r.Lost.States, r.Lost.Kernel); n > 0 {
		say("%d events were lost in the kernel: a connection can lack its end, and a verdict a fact", n)
	}
	if r.Destinations.Gone+r.Processes.Gone+r.Containers.Gone > 0 {
		say("there were more destinations, processes or containers than are kept: the least used are counted together")
	}
	for _, s := range slices.Sorted(maps.Keys(spots)) {
		say("%s", s)
	}
	if c.noReasons {
		say("why a packet was dropped, where the kernel did not say (before Linux 5.17, or not specified)")
	}
	if len(c.runs) > 0 {
		say("what happened beyond the machine: a packet that left it and one that never came look alike")
	}
	return said
}

const unknown = "unknown"

// nameOf spells a value as the log does; one that only a newer twtrace knows is 0 here.
func nameOf[T interface {
	comparable
	fmt.Stringer
}](value T) string {
	var none T
	if value == none {
		return unknown
	}
	return value.String()
}

// names turns counts into a map without noughts. Counts of the same name add up.
func names(counts []uint64, name func(int) string) map[string]uint64 {
	all := make(map[string]uint64)
	for i, n := range counts {
		if n > 0 {
			all[name(i)] += n
		}
	}
	return all
}

// ownerName names one process.
func ownerName(o event.Owner) string {
	if !o.Known() {
		return ""
	}
	name := fmt.Sprintf("%s (%d)", o.Comm, o.PID)
	if in := o.In.String(); in != "" {
		name += " in " + in
	}
	return name
}

// containerName names the container that a socket's owner is in or, where it is in
// none that is known, its control group.
func containerName(s *event.Socket) string {
	in := s.Owner.In
	switch name := in.LongString(); {
	case s.Owner.Cgroup == 0:
		return ""
	case name != "":
		return name
	case in != nil && in.Path != "":
		return fmt.Sprintf("%s, netns %d", in.Path, s.NetNS.Inode)
	}
	return fmt.Sprintf("cgroup %d, netns %d", s.Owner.Cgroup, s.NetNS.Inode)
}

func orEmpty[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

func utc(ns int64) time.Time { return time.Unix(0, ns).UTC() }
