// Package report turns event logs into a postmortem: what failed and why, who it was,
// and what TIME_WAIT and the local ports had to do with it. A Collector reads the
// lines once, in memory that is bounded; the Report that it makes is rendered as
// text, HTML or JSON.
package report

import "time"

// Schema stands in the JSON of a Report. It changes only when a reader of the old one
// would break.
const Schema = "twtrace-report/1"

// Report is what a log tells. Its JSON is documented in docs/report.md. Times are UTC;
// durations are in milliseconds.
type Report struct {
	Schema string `json:"schema"`
	// Window is from the first line to the last.
	Window Window `json:"window"`
	Runs   []Run  `json:"runs"`

	// Lines are those that were read whole and passed the filters, Events the
	// same by their kind, but for the summaries.
	Lines  uint64            `json:"lines"`
	Events map[string]uint64 `json:"events"`
	// Filters are what narrows this report, as given.
	Filters []string `json:"filters,omitempty"`

	Connects map[string]uint64 `json:"connects"` // by outcome
	TimeWait TimeWait          `json:"time_wait"`
	Reuses   map[string]uint64 `json:"reuses"`   // by how
	Verdicts map[string]uint64 `json:"verdicts"` // by cause
	Drops    map[string]uint64 `json:"drops"`    // by reason, or location, or packet
	Lost     Lost              `json:"lost"`

	// Truncated: a run has no summary, or a file ends within a line. The log
	// may tell less than happened.
	Truncated bool `json:"truncated"`
	// DamagedLines is how many lines could not be read; Damaged are the first
	// of them.
	DamagedLines uint64    `json:"damaged_lines"`
	Damaged      []Damaged `json:"damaged,omitempty"`
	// MissingLines are gaps in a run's numbers: lines that were made and did
	// not reach this log.
	MissingLines uint64 `json:"missing_lines,omitempty"`
	// RepeatedLines were in another file already, and count once.
	RepeatedLines uint64 `json:"repeated_lines,omitempty"`
	// UnknownKinds and UnknownKeys are of a newer twtrace: counted, and not
	// understood.
	UnknownKinds map[string]uint64 `json:"unknown_kinds,omitempty"`
	UnknownKeys  map[string]uint64 `json:"unknown_keys,omitempty"`

	// Incidents are verdicts with the same cause and destination, close in
	// time; the gravest first. MoreIncidents are further ones, not kept.
	Incidents     []Incident `json:"incidents"`
	MoreIncidents uint64     `json:"more_incidents,omitempty"`
	// Unexplained are connects that failed without a verdict.
	Unexplained uint64 `json:"unexplained,omitempty"`

	// Latency is how long connects took that succeeded, and that failed.
	Latency struct {
		Established Distribution `json:"established"`
		Failed      Distribution `json:"failed"`
	} `json:"latency"`

	// The tables have the most failures first, then the most connects.
	Destinations Table `json:"destinations"`
	Processes    Table `json:"processes"`
	Containers   Table `json:"containers"`

	// Timeline holds what happened in each slice of the window.
	Timeline Timeline `json:"timeline"`
	// PortUse is who used local ports toward one destination, the most first.
	PortUse []PortUse `json:"port_use"`

	// Gaps are the times between the end of a use of ports and the next, and
	// ShortestReuses those that were shortest.
	Gaps           Distribution `json:"gaps"`
	ShortestReuses []Reuse      `json:"shortest_reuses"`

	// NotShown is what this log can't show, a sentence each.
	NotShown []string `json:"not_shown"`

	// Connection is one connection's story, where it was asked for.
	Connection *Story `json:"connection,omitempty"`
}

// Window is a span of time.
type Window struct {
	From time.Time `json:"from,omitzero"`
	To   time.Time `json:"to,omitzero"`
}

// Run is one run of twtrace that wrote to the log.
type Run struct {
	Node       string    `json:"node,omitempty"`
	Kernel     string    `json:"kernel,omitempty"`
	Arch       string    `json:"arch,omitempty"`
	Version    string    `json:"version,omitempty"`
	Started    time.Time `json:"started,omitzero"`
	Filters    []string  `json:"filters,omitempty"`
	BlindSpots []string  `json:"blind_spots,omitempty"`
	// Complete: its summary is there.
	Complete bool `json:"complete"`
}

// TimeWait counts the TIME_WAITs.
type TimeWait struct {
	Entered uint64 `json:"entered"`
	// Ended is by how.
	Ended map[string]uint64 `json:"ended"`
	// Duration is of those whose beginning and end were seen.
	Duration Distribution `json:"duration"`
}

// Lost counts what was lost: events in the kernel, and lines on their way out.
type Lost struct {
	Kernel uint64 `json:"kernel"`
	Output uint64 `json:"output"`
	// States are those of Kernel that told a change of state and nothing more,
	// which later lines about their sockets imply.
	States uint64 `json:"states"`
}

// Damaged is a line that could not be read.
type Damaged struct {
	File string `json:"file"`
	Line uint64 `json:"line"`
	Why  string `json:"why"`
}

// Distribution tells how long something took, in milliseconds. All is absent where
// Count is 0.
type Distribution struct {
	Count uint64  `json:"count"`
	Min   float64 `json:"min_ms,omitempty"`
	P50   float64 `json:"p50_ms,omitempty"`
	P90   float64 `json:"p90_ms,omitempty"`
	P99   float64 `json:"p99_ms,omitempty"`
	P999  float64 `json:"p999_ms,omitempty"`
	Max   float64 `json:"max_ms,omitempty"`
	// Buckets are without gaps, five to a power of ten.
	Buckets []Bucket `json:"buckets,omitempty"`
}

// Bucket counts the values from From to before To, in milliseconds.
type Bucket struct {
	From  float64 `json:"from_ms"`
	To    float64 `json:"to_ms"`
	Count uint64  `json:"count"`
}

// Table is by destination, process or container. Rows that were used least gave way
// where there were too many: then Others has what they had, and Rows has too little
// of those that came again.
type Table struct {
	Rows   []Row  `json:"rows"`
	Others *Row   `json:"others,omitempty"`
	Gone   uint64 `json:"gone,omitempty"` // how many are in Others
}

// Row is what one destination, process or container did.
type Row struct {
	Name string `json:"name"` // 20.1.2.3:443, or curl, or a cgroup
	// Accepted: the name is an address of this machine that connections were
	// accepted on, not one that was connected to.
	Accepted bool              `json:"accepted,omitempty"`
	Connects uint64            `json:"connects"`
	Failed   uint64            `json:"failed"`
	Outcomes map[string]uint64 `json:"outcomes,omitempty"`
	Late     uint64            `json:"late,omitempty"` // established after a SYN was sent again
	Accepts  uint64            `json:"accepts,omitempty"`
	Latency  *Distribution     `json:"latency,omitempty"` // a destination's, of those established, without Buckets
	Reuses   uint64            `json:"reuses,omitempty"`
	Drops    uint64            `json:"drops,omitempty"`
	TimeWait RowTimeWait       `json:"time_wait"`
	// With are the processes behind a destination or in a container, and the
	// destinations of a process: the most frequent, as far as they were kept.
	With []Share `json:"with,omitempty"`
}

// RowTimeWait is what a row has of TimeWait.
type RowTimeWait struct {
	Entered uint64            `json:"entered"`
	Ended   map[string]uint64 `json:"ended,omitempty"`
	Mean    float64           `json:"mean_ms,omitempty"`
	Max     float64           `json:"max_ms,omitempty"`
}

// Share is a name and how often it came.
type Share struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
}

// Timeline holds what happened in each slice of the window; all lists are equally
// long.
type Timeline struct {
	From        time.Time `json:"from,omitzero"`
	Slice       float64   `json:"slice_ms"`
	Established []uint64  `json:"established"`
	Failed      []uint64  `json:"failed"`
	Late        []uint64  `json:"late"` // of those established
	Lost        []uint64  `json:"lost"`
}

// PortUse is the use of local ports from one network namespace and local address
// toward one peer address and port. TimeWaits and Open are the most in each slice of
// the Timeline: TIME_WAITs, and connections from here that were open.
type PortUse struct {
	NetNS     uint32   `json:"netns,omitempty"`
	Local     string   `json:"local,omitempty"`
	Peer      string   `json:"peer"`
	TimeWaits []uint64 `json:"time_waits"`
	Open      []uint64 `json:"open"`
	// PeakTimeWaits and PeakInUse are the most at any moment; in use are
	// both, as counted here, or as the log says where that is more.
	PeakTimeWaits uint64 `json:"peak_time_waits"`
	PeakInUse     uint64 `json:"peak_in_use"`
	// Usable are the ports that there are, 0 where the log doesn't say.
	Usable uint64 `json:"usable,omitempty"`
	// Pressure are the crossings that the log has, in the order of time.
	Pressure []Pressure `json:"pressure,omitempty"`
}

// Pressure is a port_pressure line.
type Pressure struct {
	Time     time.Time `json:"time"`
	InUse    uint64    `json:"in_use"`
	TimeWait uint64    `json:"time_wait"`
	Ratio    float64   `json:"used_ratio"`
}

// Reuse is a port_reuse line.
type Reuse struct {
	Time     time.Time `json:"time"`
	After    float64   `json:"after_ms"`
	Scope    string    `json:"scope"`
	How      string    `json:"how"`
	Local    string    `json:"local"`
	Peer     string    `json:"peer"`
	Owner    string    `json:"owner,omitempty"`
	Previous string    `json:"previous_owner,omitempty"`
}

// Incident is verdicts with one cause and one destination, close in time.
type Incident struct {
	Cause      string `json:"cause"`
	Confidence string `json:"confidence"` // the highest of them
	// Peer is the destination; where it is "" the cause belongs to a network
	// namespace. Accepted: it is an address of this machine that the
	// connections were accepted on.
	Peer     string `json:"peer,omitempty"`
	Accepted bool   `json:"accepted,omitempty"`

	From  time.Time `json:"from"`
	To    time.Time `json:"to"`
	Count uint64    `json:"count"`
	// Wrappers counts those that were app_gave_up or late_success, Outcomes
	// the connects by how they ended.
	Wrappers map[string]uint64 `json:"wrappers,omitempty"`
	Outcomes map[string]uint64 `json:"outcomes,omitempty"`
	// Processes, NetNS and Containers are whom it hit, the most frequent
	// first.
	Processes  []Share `json:"processes,omitempty"`
	NetNS      []Share `json:"netns,omitempty"`
	Containers []Share `json:"containers,omitempty"`
	// The rest is from the surest of the verdicts, the first of these.
	Text       string     `json:"text"`
	Evidence   []Evidence `json:"evidence"`
	RuledOut   []string   `json:"ruled_out"`
	NotVisible []string   `json:"not_visible"`
	Advice     string     `json:"advice,omitempty"`
	// Line is the line with that verdict.
	Line string `json:"line"`
}

// Evidence is a fact, and the line that shows it.
type Evidence struct {
	Text string  `json:"text"`
	Seq  *uint64 `json:"seq,omitempty"`
	// Line is that line as it stands in the log, where it was kept.
	Line string `json:"line,omitempty"`
}

// Story is all that the log has about one connection.
type Story struct {
	Cookie string  `json:"cookie"`
	Peer   string  `json:"peer,omitempty"`
	Owner  string  `json:"owner,omitempty"`
	Lines  []Event `json:"lines"`
}

// Event is a line of a story.
type Event struct {
	Time time.Time `json:"time"`
	// Offset is the time since the story's first line.
	Offset float64 `json:"offset_ms"`
	// Text says it in words.
	Text string `json:"text"`
	Line string `json:"line"`
}
