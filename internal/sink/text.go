package sink

import (
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// TextOptions say what the tail looks like.
type TextOptions struct {
	// Width is the terminal's, in columns. A line that is longer is cut
	// and ends in ">". 0 cuts nothing.
	Width int
	// Color paints what failed red, what succeeded green and what deserves
	// a look yellow. It says nothing that the words don't say.
	Color bool
	// Timestamps puts the time of day before each line.
	Timestamps bool
	// Containers puts the container after the process.
	Containers bool
	// Location is the time zone of all times, nil for the local one.
	Location *time.Location
}

// Text renders records as the live tail: one line a moment, in columns, the
// owner first. What comes from the traced processes is made harmless: no name
// can move the cursor or forge a line.
type Text struct {
	options TextOptions
	layout  layout
}

// layout holds the widths of the columns that depend on the terminal's.
type layout struct {
	pid, comm, local, peer int
	// container is 0 where it is not shown.
	container int
	// table is set where there is room for OLDSTATE, NEWSTATE and MS in
	// columns of their own. Else MS stands only where there is no note,
	// which tells a time too.
	table bool
}

// layouts are for terminals of so many columns or more. The narrowest shows
// both states of most IPv4 connections in 80 columns.
var layouts = []struct {
	columns int
	layout  layout
}{
	{150, layout{pid: 7, comm: 15, container: 24, local: 21, peer: 21, table: true}},
	{120, layout{pid: 7, comm: 12, container: 16, local: 18, peer: 18, table: true}},
	{0, layout{pid: 5, comm: 8, container: 12, local: 16, peer: 15}},
}

// The other columns.
const (
	timeOfDay  = "15:04:05.000"
	stateWidth = 11 // ESTABLISHED
	msWidth    = 10 // 127000.000, after which a connect times out
)

// NewText returns a Text.
func NewText(options TextOptions) *Text {
	if options.Location == nil {
		options.Location = time.Local
	}
	t := &Text{options: options, layout: layouts[0].layout}
	if columns := options.Width; columns > 0 {
		if options.Timestamps {
			columns -= len(timeOfDay) + 1
		}
		for _, l := range layouts {
			t.layout = l.layout
			if columns >= l.columns {
				break
			}
		}
	}
	if !options.Containers {
		t.layout.container = 0
	}
	return t
}

// AppendHeader appends the line with the columns' names.
func (t *Text) AppendHeader(b []byte) []byte {
	l := line{b: b, start: len(b)}
	if t.options.Timestamps {
		l.text("TIME")
		l.next(len(timeOfDay))
	}
	l.right([]byte("PID"), t.layout.pid)
	l.next(t.layout.pid)
	l.text("COMM")
	l.next(t.layout.comm)
	if t.layout.container > 0 {
		l.text("CONTAINER")
		l.next(t.layout.container)
	}
	l.text("LADDR:LPORT")
	l.next(t.layout.local)
	l.text("RADDR:RPORT")
	l.next(t.layout.peer)
	l.text("OLDSTATE")
	if t.layout.table {
		l.next(stateWidth)
		l.text("-> NEWSTATE")
		l.next(len("-> ") + stateWidth)
		l.right([]byte("MS"), msWidth)
	} else {
		l.text(" -> NEWSTATE")
	}
	return t.finish(&l, l.start, bold)
}

// Headline is the record of a moment that its line tells: the last says the most,
// and has the state change too; that its ports were used before is only more about
// it.
func Headline(moment []record.Record) []record.Record {
	last := len(moment) - 1
	if moment[last].Kind == record.PortReuse && last > 0 {
		last--
	}
	return moment[last : last+1]
}

// AppendMoment appends the line for the records that one event of the kernel
// gave: a state change, and what it meant, or either. A connect that failed has
// further lines beneath, where more is known of it, and so has whatever has a
// verdict. Meta, NetNS, Counters and Summary give no line.
func (t *Text) AppendMoment(b []byte, moment []record.Record) []byte {
	if len(moment) == 0 {
		return b
	}
	r := &Headline(moment)[0]
	var reuse *record.ReuseFields
	if last := &moment[len(moment)-1]; last != r {
		reuse = last.Reuse
	}
	switch r.Kind {
	case record.Meta, record.NetNS, record.Counters, record.Summary:
		return b
	}

	l := line{b: b, start: len(b)}
	if t.options.Timestamps {
		l.time(r.Time, t.options.Location, timeOfDay)
		l.next(len(timeOfDay))
	}
	if r.Kind == record.Lost {
		painted := len(l.b)
		l.text("*** lost ")
		l.lost(r.Lost.Count, r.Lost.Where)
		l.text(" since ")
		l.time(r.Lost.Since, t.options.Location, time.TimeOnly)
		l.lostKinds(r.Lost.Kinds)
		l.text(" ***")
		return t.finish(&l, painted, boldYellow)
	}

	t.owner(&l, r.Socket.Owner)
	l.end(r.Socket.Tuple.Local)
	l.next(t.layout.local)
	l.end(r.Socket.Tuple.Peer)
	l.next(t.layout.peer)

	painted := len(l.b)
	t.change(&l, r)
	l.text("  ")
	failed := r.Kind == record.Connect && r.Connect.Outcome != record.Established
	unnoted := len(l.b)
	if reuse != nil && !failed {
		// Before what the states say as well: there may be no room for
		// both.
		if reuse.Scope == record.ScopePort {
			l.text("port ")
		}
		l.text("reused ")
		noteReuse(&l, reuse, r.Socket.Owner)
		if r.Kind != record.State {
			l.text("; ")
		}
	}
	note(&l, r)
	if len(l.b) == unnoted && !t.layout.table && r.State.Duration > 0 {
		l.span(r.State.Duration)
	}
	b = t.finish(&l, painted, color(r))

	if failed && r.Ports != nil {
		l, painted := t.beneath(b)
		noteTaken(&l, r.Ports)
		b = t.finish(&l, painted, yellow)
	}
	if failed && reuse != nil {
		l, painted := t.beneath(b)
		l.text(reused(reuse))
		l.text(" ")
		noteReuse(&l, reuse, r.Socket.Owner)
		b = t.finish(&l, painted, yellow)
	}
	if r.Verdict != nil {
		b = t.verdict(b, r.Verdict)
	}
	return b
}

// verdict writes the cause and what to do about it, beneath what they explain. Where
// one is wrapped round another, the inner one has more to say.
func (t *Text) verdict(b []byte, v *record.VerdictFields) []byte {
	b = t.paragraph(b, "why ", v.ID+" ("+v.Confidence.String()+"): "+v.Text)
	if v.Inner != nil {
		return t.verdict(b, v.Inner)
	}
	return t.paragraph(b, "do  ", v.Advice)
}

// paragraph writes a text under a title, in as many lines as it takes: half a cause
// is none.
func (t *Text) paragraph(b []byte, title, text string) []byte {
	for words := strings.Fields(text); len(words) > 0; title = "    " {
		l, painted := t.beneath(b)
		l.text(title)
		l.name(words[0], len(words[0]))
		words = words[1:]
		for len(words) > 0 && (t.options.Width == 0 || l.column()+1+utf8.RuneCountInString(words[0]) <= t.options.Width) {
			l.text(" ")
			l.name(words[0], len(words[0]))
			words = words[1:]
		}
		b = t.finish(&l, painted, yellow)
	}
	return b
}

// beneath begins a line that belongs to the one before, where the names begin.
func (t *Text) beneath(b []byte) (l line, painted int) {
	l = line{b: b, start: len(b)}
	if t.options.Timestamps {
		l.next(len(timeOfDay))
	}
	l.next(t.layout.pid)
	return l, len(l.b)
}

// noteTaken writes by whom the ports are taken that a connect found none of.
func noteTaken(l *line, p *record.PortsFields) {
	l.share(p)
	l.text(" taken, ")
	l.waiting(p)
	h := p.Holder
	if h == nil {
		return
	}
	l.text("; next free")
	switch {
	case h.EndsIn >= time.Second:
		l.text(" in ")
		l.span(h.EndsIn)
	case h.EndsIn > 0:
		// The kernel's timers are coarser than what is left.
		l.text(" any moment")
	}
	l.text(": ")
	if h.Owner.Known() {
		l.process(h.Owner)
		l.text(", ")
	}
	l.text("port ")
	l.number(uint64(h.Port))
	if !h.Owner.Known() {
		l.text(" of an unknown process")
	}
}

// notePressure writes how many of the ports toward a destination are taken, and
// first when all will be.
func notePressure(l *line, p *record.PortsFields) {
	if p.Exhausts && p.InUse < p.Usable && !fell(p) {
		l.text("full in ")
		l.span(p.ExhaustedIn)
		l.text(": ")
	}
	l.share(p)
	l.text(", ")
	l.waiting(p)
}

// fell reports whether ports are told of since fewer are taken. That they are
// less than half is told of nothing else.
func fell(p *record.PortsFields) bool { return 2*p.InUse < p.Usable }

// reused names what was used before.
func reused(r *record.ReuseFields) string {
	if r.Scope == record.ScopePort {
		return "local port reused"
	}
	return "four-tuple reused"
}

// noteReuse writes how long ago the ports were used before, by whom if that was
// another process, and how they came to be used again.
func noteReuse(l *line, r *record.ReuseFields, owner event.Owner) {
	p := &r.Previous
	same := p.Owner.Known() && p.Owner.PID == owner.PID && r.Scope == record.ScopeTuple && r.How != record.OtherNetNS
	if same && r.After > 0 {
		l.text("after ")
		l.span(r.After)
	} else {
		if r.After > 0 {
			l.span(r.After)
			l.text(" ")
		}
		l.text("after ")
		l.process(p.Owner)
	}
	if r.Scope == record.ScopePort && p.Local.IsValid() {
		l.text(" on ")
		l.b = p.Local.Unmap().AppendTo(l.b)
	}
	switch {
	case r.How == record.OtherNetNS && p.NetNS.Inode != 0:
		l.text(" in netns ")
		l.number(uint64(p.NetNS.Inode))
	case r.How == record.AfterTimeWait && p.End.TimeWait == 0:
		l.text(", still in TIME_WAIT")
	default:
		l.text(reuseWords[r.How])
	}
}

var reuseWords = [...]string{
	record.TimeWaitReuse:    " by tcp_tw_reuse",
	record.AfterTimeWait:    ", its TIME_WAIT over",
	record.AfterClose:       ", no TIME_WAIT here",
	record.AfterSynAccepted: " by a new SYN",
	record.ExplicitBind:     " by bind",
	record.OtherNetNS:       " in another netns",
}

var endedWords = [event.Endings]string{
	event.Expired:       "expired",
	event.Reused:        "reused",
	event.SynAccepted:   "new SYN",
	event.TimeWaitReset: "reset by peer",
	event.Killed:        "killed",
	event.EndedUnknown:  "ended",
}

// owner writes the columns PID and COMM, and CONTAINER if there is one.
func (t *Text) owner(l *line, owner event.Owner) {
	if owner.Known() {
		l.rightNumber(uint64(owner.PID), t.layout.pid)
	} else {
		l.right([]byte("-"), t.layout.pid)
	}
	l.next(t.layout.pid)
	if owner.Known() && owner.Comm != "" {
		l.name(owner.Comm, t.layout.comm)
	} else {
		l.text("-")
	}
	l.next(t.layout.comm)
	if t.layout.container == 0 {
		return
	}
	if in := owner.In.String(); in != "" {
		l.name(in, t.layout.container)
	} else {
		l.text("-")
	}
	l.next(t.layout.container)
}

// change writes OLDSTATE -> NEWSTATE, or what happened instead, and MS where
// it is a column.
func (t *Text) change(l *line, r *record.Record) {
	switch {
	case r.Kind == record.SynRetransmit:
		if r.SYN.SynAck {
			l.text("SYN-ACK retransmit")
		} else {
			l.text("SYN retransmit")
		}
		if r.SYN.Attempt > 0 {
			l.text(" ")
			l.number(uint64(r.SYN.Attempt))
		}
	case r.Kind == record.Drop:
		l.text(r.Drop.Packet.String())
		l.text(" dropped")
	case r.Kind == record.Verdict:
		l.text("netns ")
		l.number(uint64(r.Socket.NetNS.Inode))
	case r.Kind == record.PortReuse:
		l.text(reused(r.Reuse))
	case r.Kind == record.PortPressure:
		if t.layout.table {
			l.text("local ")
		}
		if fell(r.Ports) {
			l.text("ports fell to ")
		} else {
			l.text("ports at ")
		}
		l.percent(r.Ports)
	case r.Kind == record.Reset && r.Reset.Received:
		l.text("RST received")
	case r.Kind == record.Reset:
		l.text("RST sent")
	case r.State.New == 0 && r.Kind == record.Connect:
		l.text("no SYN sent")
	case r.State.New == 0:
		l.text("-")
	default:
		l.text(r.State.Old.String())
		if t.layout.table {
			l.pad(stateWidth)
		}
		l.text(" -> ")
		l.text(r.State.New.String())
	}
	if !t.layout.table {
		return
	}
	l.next(stateWidth + len(" -> ") + stateWidth)
	if r.State.Duration > 0 {
		l.rightMilliseconds(r.State.Duration, msWidth)
	} else {
		l.right([]byte("-"), msWidth)
	}
}

// note writes what the moment meant, in words; nothing where that is plain.
func note(l *line, r *record.Record) {
	switch r.Kind {
	case record.Connect:
		noteConnect(l, &r.Connect)
	case record.Accept:
		l.text("accepted")
		l.lasting(" in ", r.Accept.Duration)
	case record.Close:
		l.text(closeWords[r.Close.By])
		l.lasting(" after ", r.Close.Duration)
		l.text(", sent ")
		l.bytes(r.Close.BytesSent)
		l.text(", received ")
		l.bytes(r.Close.BytesReceived)
	case record.TimeWaitEnter:
		if n := r.TimeWait.SameDestination; n > 1 {
			l.number(uint64(n))
			l.text(" to this destination")
		}
	case record.TimeWaitEnd:
		l.text(endedWords[r.TimeWait.Ended])
		l.lasting(" after ", r.TimeWait.Duration)
		if r.TimeWait.Ended == event.EndedUnknown {
			l.text(", cause unknown")
		}
	case record.PortReuse:
		noteReuse(l, r.Reuse, r.Socket.Owner)
	case record.PortPressure:
		notePressure(l, r.Ports)
	case record.Drop:
		noteDrop(l, r)
	case record.Reset:
		l.name(r.Reset.Reason, len(r.Reset.Reason))
	}
}

// noteDrop writes why and by what a packet was dropped, and where, unless that is
// where its socket is.
func noteDrop(l *line, r *record.Record) {
	d := &r.Drop
	l.name(d.Reason, len(d.Reason))
	if d.Location != "" {
		if d.Reason != "" {
			l.text(" ")
		}
		l.text("in ")
		l.name(d.Location, len(d.Location))
	}
	if d.NetNS != r.Socket.NetNS {
		l.text(", netns ")
		l.number(uint64(d.NetNS.Inode))
	}
}

func noteConnect(l *line, c *record.ConnectFields) {
	l.text(connectWords[c.Outcome])
	retransmits := ", "
	if c.Outcome == record.Established {
		l.lasting(" in ", c.Duration)
		retransmits = " after "
	} else {
		if c.Errno != 0 {
			l.text(": ")
			l.b = record.AppendErrno(l.b, c.Errno)
		}
		l.lasting(" after ", c.Duration)
	}
	if c.Retransmits > 0 {
		l.text(retransmits)
		l.count(uint64(c.Retransmits), "SYN retransmit")
	}
}

var connectWords = [record.Outcomes]string{
	record.Established:     "connected",
	record.Refused:         "refused",
	record.TimedOut:        "timed out",
	record.Unreachable:     "unreachable",
	record.NoLocalPort:     "no local port",
	record.Abandoned:       "abandoned by the program",
	record.Denied:          "denied",
	record.ConnectionReset: "reset",
	record.Failed:          "failed",
}

var closeWords = [...]string{
	record.ByLocal:         "closed by us",
	record.ByPeer:          "closed by peer",
	record.ByBoth:          "closed by both at once",
	record.ByResetSent:     "reset by us",
	record.ByResetReceived: "reset by peer",
	record.ByTimeout:       "timed out",
}

// color returns how to paint what r says.
func color(r *record.Record) string {
	switch {
	case r.Kind == record.Connect && r.Connect.Outcome != record.Established:
		return red
	case r.Kind == record.Connect, r.Kind == record.Accept:
		return green
	case r.Kind == record.Close && r.Close.By >= record.ByResetSent,
		r.Kind == record.SynRetransmit, r.Kind == record.Drop, r.Kind == record.Reset, r.Kind == record.Verdict,
		r.Kind == record.PortPressure && !fell(r.Ports):
		return yellow
	case r.Kind == record.State, r.Kind == record.TimeWaitEnter, r.Kind == record.TimeWaitEnd:
		return dim
	default:
		return ""
	}
}

// AppendSummary appends a few lines on the whole run that r, a Summary, tells
// of. They are wrapped, not cut.
func (t *Text) AppendSummary(b []byte, r *record.Record) []byte {
	s := r.Summary
	l := line{b: append(b, '\n'), start: len(b) + 1}
	l.text("traced    ")
	l.span(s.Duration)

	l.row("events    ")
	// Not the lines that the tail does not show, and losses stand below.
	events := s.Events
	events[record.Meta], events[record.NetNS], events[record.Counters], events[record.Lost] = 0, 0, 0, 0
	l.counts(events[:], func(i int) string { return record.Kind(i).String() }, t.options.Width)

	l.row("connects  ")
	l.counts(s.Connects[:], func(i int) string { return record.Outcome(i).String() }, t.options.Width)

	if len(s.Verdicts) > 0 {
		ids := slices.Sorted(maps.Keys(s.Verdicts))
		counts := make([]uint64, len(ids))
		for i, id := range ids {
			counts[i] = s.Verdicts[id]
		}
		l.row("causes    ")
		l.counts(counts, func(i int) string { return ids[i] }, t.options.Width)
	}

	l.row("lost      ")
	painted, paint := len(l.b), boldYellow
	switch {
	case s.LostKernel > 0 && s.LostOutput > 0:
		l.lost(s.LostKernel, record.InKernel)
		l.text(", ")
		l.lost(s.LostOutput, record.InOutput)
	case s.LostKernel > 0:
		l.lost(s.LostKernel, record.InKernel)
	case s.LostOutput > 0:
		l.lost(s.LostOutput, record.InOutput)
	default:
		l.text("nothing")
		paint = ""
	}
	if t.options.Color {
		l.paint(painted, paint)
	}
	return append(l.b, '\n')
}

// finish cuts the line to the terminal, paints it from b[painted] on, and ends
// it.
func (t *Text) finish(l *line, painted int, paint string) []byte {
	l.trim()
	if t.options.Width > 0 {
		l.cut(t.options.Width)
	}
	if t.options.Color {
		l.paint(painted, paint)
	}
	return append(l.b, '\n')
}
