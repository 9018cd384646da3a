package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"gonum.org/v1/plot/vg"
	g "maragu.dev/gomponents"
)

// mostPlots is how many destinations' use of ports is drawn.
const mostPlots = 6

//go:embed report.css
var styleSheet string

// meanings are what the names in the log stand for.
var meanings = map[string]string{
	"established":   "connected",
	"refused":       "ECONNREFUSED",
	"timed_out":     "ETIMEDOUT: the kernel gave up",
	"unreachable":   "EHOSTUNREACH, ENETUNREACH and their like",
	"no_local_port": "EADDRNOTAVAIL",
	"abandoned":     "the program closed it, or ended, before an answer",
	"denied":        "EACCES or EPERM",
	"reset":         "reset by the peer",
	"failed":        "any other error",

	"expired":      "its 60 s were over",
	"reused":       "tcp_tw_reuse gave its port to a new connect",
	"syn_accepted": "the peer opened a new connection on it",
	"killed":       "its network namespace ended, or it was destroyed",
	"unknown":      "not seen",

	"tw_reuse":        "out of TIME_WAIT, by tcp_tw_reuse",
	"after_time_wait": "after a TIME_WAIT had ended",
	"after_close":     "after a close without TIME_WAIT",
	"explicit_bind":   "the program bound the port itself",
	"other_netns":     "the address moved to another network namespace",
}

// page is a report on its way to be HTML.
type page struct {
	*Report
	// drawn are the figures, nil where there is nothing to be drawn; the
	// ports' are those of the first of PortUse.
	drawn struct {
		timeline, latency, gaps g.Node
		ports                   []g.Node
	}
}

// WriteHTML renders the report as one page that needs nothing else: to be read in a
// browser, and on paper.
func (r *Report) WriteHTML(w io.Writer) error {
	p := page{Report: r}
	if err := p.draw(); err != nil {
		return err
	}
	var b bytes.Buffer
	if err := p.document().Render(&b); err != nil {
		return err
	}
	_, err := w.Write(visible(b.Bytes()))
	return err
}

func (p *page) draw() (err error) {
	t := &p.Timeline
	if len(t.Established) > 0 {
		desc := fmt.Sprintf("In slices of %s from %s to %s: %s established, %s of them late; %s failed, at most %s in one slice.",
			p.slice(), p.at(p.Window.From), p.at(p.Window.To), number(sum64(t.Established)), number(sum64(t.Late)),
			number(sum64(t.Failed)), number(slices.Max(t.Failed)))
		if p.drawn.timeline, err = figure("timeline", "Connects over time", desc, 380, t.draw); err != nil {
			return err
		}
	}
	if l := &p.Latency; l.Established.Count+l.Failed.Count > 0 {
		height := vg.Length(360)
		if l.Established.Count == 0 || l.Failed.Count == 0 {
			height = 200
		}
		desc := "How many connects took how long. " + sentence("Established", l.Established) + " " + sentence("Failed", l.Failed)
		p.drawn.latency, err = figure("latency", "How long connects took", strings.TrimSpace(desc), height,
			func(c *canvas) { drawLatency(c, &l.Established, &l.Failed) })
		if err != nil {
			return err
		}
	}
	if p.Gaps.Count > 0 {
		var timers []string
		for _, timer := range natTimers {
			timers = append(timers, timer.label)
		}
		desc := sentence("Reuses of ports", p.Gaps) + " Lines mark " + strings.Join(timers, ", ") + "."
		p.drawn.gaps, err = figure("gaps", "Time between two uses of the same ports", desc, 300, func(c *canvas) { drawGaps(c, &p.Gaps) })
		if err != nil {
			return err
		}
	}
	p.drawn.ports = make([]g.Node, min(len(p.PortUse), mostPlots))
	for i := range p.drawn.ports {
		u := &p.PortUse[i]
		if len(u.TimeWaits)+len(u.Open) == 0 {
			continue
		}
		title := "Local ports used toward " + u.Peer
		p.drawn.ports[i], err = figure(fmt.Sprint("ports-", i+1), title, u.sentence(), 240, func(c *canvas) { u.draw(c, t) })
		if err != nil {
			return err
		}
	}
	return nil
}

// sentence says a distribution in words.
func sentence(what string, d Distribution) string {
	if d.Count == 0 {
		return ""
	}
	return fmt.Sprintf("%s: %s, from %s to %s, half of them within %s, 99 %% within %s.",
		what, number(d.Count), ms(d.Min), ms(d.Max), ms(d.P50), ms(d.P99))
}

func (u *PortUse) sentence() string {
	text := fmt.Sprintf("At most %s, and %s in use", plural(u.PeakTimeWaits, "TIME_WAIT"), plural(u.PeakInUse, "port"))
	if u.Usable > 0 {
		text += fmt.Sprintf(", of %s usable: %s", number(u.Usable), per(u.PeakInUse, u.Usable))
	}
	return text + "."
}

// nodes and kernels are those of the runs, each once.
func (p *page) nodes() string {
	return p.each(func(r *Run) string { return r.Node })
}

func (p *page) kernels() string {
	return p.each(func(r *Run) string { return strings.TrimSpace("Linux " + r.Kernel + " " + r.Arch) })
}

func (p *page) each(of func(*Run) string) string {
	var all []string
	for i := range p.Runs {
		if s := of(&p.Runs[i]); s != "" && !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return strings.Join(all, ", ")
}

// days are those of the window.
func (p *page) days() string {
	const day = "2 January 2006"
	from, to := p.Window.From.UTC().Format(day), p.Window.To.UTC().Format(day)
	if from == to {
		return from
	}
	return from + " to " + to
}

// lostLines says what was lost.
func (p *page) lostLines() string {
	var parts []string
	if n := p.Lost.Kernel; n > 0 {
		parts = append(parts, plural(n, "event")+" in the kernel")
	}
	if n := p.Lost.Output; n > 0 {
		parts = append(parts, plural(n, "line")+" in the output")
	}
	return strings.Join(parts, " and ")
}

// lasted is how long the window is.
func (p *page) lasted() string {
	return span(p.Window.To.Sub(p.Window.From))
}

// slice is how long a slice of the timeline is.
func (p *page) slice() string {
	return span(time.Duration(p.Timeline.Slice * float64(time.Millisecond)))
}

type namedTable struct {
	id, title, of, with string
	rows                []Row
	gone                uint64
	timed               bool // it has latencies
}

// tables are those that are alike, and have rows.
func (p *page) tables() []namedTable {
	tables := []namedTable{
		{id: "destinations", title: "Destinations", of: "Destination", with: "processes"},
		{id: "processes", title: "Processes", of: "Process", with: "destinations"},
		{id: "containers", title: "Containers", of: "Container", with: "processes"},
	}
	for i, t := range []Table{p.Destinations, p.Processes, p.Containers} {
		named := &tables[i]
		named.rows, named.gone = t.Rows, t.Gone
		named.timed = slices.ContainsFunc(t.Rows, func(r Row) bool { return r.Latency != nil })
		if t.Others != nil {
			named.rows = append(slices.Clip(t.Rows), *t.Others)
		}
	}
	return slices.DeleteFunc(tables, func(t namedTable) bool { return len(t.rows) == 0 })
}

// at tells a time of day, with the date where the window has more than one.
func (p *page) at(t time.Time) string {
	from, to := p.Window.From.UTC(), p.Window.To.UTC()
	if from.YearDay() == to.YearDay() && from.Year() == to.Year() {
		return t.UTC().Format("15:04:05.000")
	}
	return t.UTC().Format("2 Jan 15:04:05.000")
}

// percent writes a ratio: neither nothing as something, nor nearly all as all.
func percent(ratio float64) string {
	switch {
	case 0 < ratio && ratio < 0.001:
		return "<0.1 %"
	case 0.999 < ratio && ratio < 1:
		return ">99.9 %"
	case 0 < ratio && ratio < 0.1 || 0.99 < ratio && ratio < 1:
		return strconv.FormatFloat(ratio*100, 'f', 1, 64) + " %"
	}
	return strconv.FormatFloat(ratio*100, 'f', 0, 64) + " %"
}

func per(part, whole uint64) string {
	if whole == 0 {
		return ""
	}
	return percent(float64(part) / float64(whole))
}

// failures are the outcomes that are none of a connection.
func failures(outcomes map[string]uint64) []Share {
	return slices.DeleteFunc(sorted(outcomes), func(s Share) bool { return s.Name == "established" })
}

// logLines are the line with the verdict and those that show it, each once.
func logLines(incident Incident) (lines []string) {
	add := func(line string) {
		if line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	add(incident.Line)
	for _, e := range incident.Evidence {
		add(e.Line)
	}
	return lines
}

// visible spells out what can't be seen and could do something to what is beside it:
// names are chosen by others, and a direction of writing is enough to tell another
// story. The page's own text has nothing of the kind but its newlines.
func visible(page []byte) []byte {
	out := make([]byte, 0, len(page))
	for len(page) > 0 {
		r, size := utf8.DecodeRune(page)
		switch {
		case r == utf8.RuneError && size == 1:
			out = fmt.Appendf(out, `\x%02x`, page[0])
		case r == '\n' || r == utf8.RuneError || unicode.IsPrint(r):
			out = append(out, page[:size]...)
		default:
			out = append(out, strings.Trim(strconv.QuoteRuneToASCII(r), "'")...)
		}
		page = page[size:]
	}
	return out
}
