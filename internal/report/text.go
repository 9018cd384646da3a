package report

import (
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"charm.land/lipgloss/v2"
	"charm.land/lipgloss/v2/table"
	"github.com/charmbracelet/x/ansi"
)

const (
	// shown is how many rows of a table are shown.
	shown = 20
	// textWidth is for paragraphs where there is no terminal to ask.
	textWidth = 100
)

// text writes a report in words.
type text struct {
	strings.Builder
	width int
}

// WriteText writes the report as text, in lines of at most width columns as far as
// words permit; 0 is a default. It names the figures that matter, the causes first.
func (r *Report) WriteText(w io.Writer, width int) error {
	if width == 0 {
		width = textWidth
	}
	t := &text{width: max(width, 40)}
	t.head(r)
	if r.Connection != nil {
		t.story(r.Connection)
	}
	t.incidents(r)
	t.connects(r)
	t.table("Destinations", "to", r.Destinations)
	t.table("Processes", "process", r.Processes)
	t.table("Containers", "container", r.Containers)
	t.timeWaits(r)
	t.reuses(r)
	t.ports(r)
	t.counts("Drops", r.Drops)
	t.log(r)
	_, err := io.WriteString(w, t.String())
	return err
}

func (t *text) head(r *Report) {
	if r.Window.From.IsZero() {
		t.line("no lines")
		return
	}
	t.line("%s to %s UTC, %s", clockTime(r.Window.From), clockTime(r.Window.To), span(r.Window.To.Sub(r.Window.From)))
	for i, run := range r.Runs {
		if i == 5 && len(r.Runs) > 6 {
			t.line("and %d further runs", len(r.Runs)-i)
			break
		}
		t.line("%s", run)
	}
	if len(r.Filters) > 0 {
		t.line("narrowed to %s", strings.Join(r.Filters, " "))
	}
	t.line("")
	t.paragraph("", r.Headline())
}

// String tells where a run was.
func (run Run) String() string {
	if run.Started.IsZero() {
		return "a run whose beginning is missing"
	}
	end := ""
	if !run.Complete {
		end = ", without its end"
	}
	return fmt.Sprintf("node %s, Linux %s %s, twtrace %s, from %s%s",
		run.Node, run.Kernel, run.Arch, run.Version, clockTime(run.Started), end)
}

// Headline says in a sentence or two what it comes to.
func (r *Report) Headline() string {
	total := sum(r.Connects)
	failed := total - r.Connects["established"]
	var b strings.Builder
	switch {
	case total == 0:
		b.WriteString("No connect.")
	case failed == 0:
		fmt.Fprintf(&b, "None of %s failed.", plural(total, "connect"))
	default:
		fmt.Fprintf(&b, "%s of %s failed.", number(failed), plural(total, "connect"))
	}
	if late := sum64(r.Timeline.Late); late > 0 {
		fmt.Fprintf(&b, " %s established late.", number(late))
	}
	if len(r.Incidents) > 0 {
		first := &r.Incidents[0] // that with the most failed connects
		what := "First of the incidents"
		if sum(first.Outcomes) > first.Outcomes["established"] {
			what = "The main cause"
		}
		fmt.Fprintf(&b, " %s: %s (%s)%s.", what, first.Cause, first.Confidence, first.Where())
	}
	return b.String()
}

// Where is the place of an incident, as words that follow its cause.
func (in *Incident) Where() string {
	switch {
	case in.Peer == "":
		return " in a network namespace"
	case in.Accepted:
		return " at " + in.Peer
	default:
		return " toward " + in.Peer
	}
}

func (t *text) story(s *Story) {
	t.title("Connection " + s.Cookie)
	if len(s.Lines) == 0 {
		t.line("the log has no line about it")
		return
	}
	t.line("%s to %s", orDash(s.Owner), orDash(s.Peer))
	for _, e := range s.Lines {
		offset := fmt.Sprintf("%+13.3f ms", e.Offset)
		for line := range strings.Lines(e.Text) {
			t.line("%s  %s", offset, strings.TrimRight(line, "\n"))
			offset = strings.Repeat(" ", len(offset))
		}
	}
}

func (t *text) incidents(r *Report) {
	if len(r.Incidents) == 0 {
		return
	}
	t.title("Incidents")
	for i := range r.Incidents {
		if i == shown {
			t.line("and %s", plural(uint64(len(r.Incidents)-i)+r.MoreIncidents, "further incident"))
			break
		}
		t.incident(i+1, &r.Incidents[i])
	}
}

func (t *text) incident(n int, in *Incident) {
	t.line("%d. %s (%s), %s%s", n, in.Cause, in.Confidence, times(in.Count), in.Where())
	when := clockTime(in.From)
	if in.Count > 1 {
		when += " to " + clockTime(in.To) + ", " + span(in.To.Sub(in.From))
	}
	t.field("when", when)
	t.field("what", in.Text)
	if len(in.Outcomes)+len(in.Wrappers) > 0 {
		t.field("seen as", list(in.Outcomes)+list(in.Wrappers, "; "))
	}
	t.field("hit", listShares(in.Processes))
	if len(in.NetNS) > 0 {
		t.field("netns", listShares(in.NetNS))
	}
	for _, e := range in.Evidence {
		text := e.Text
		if e.Seq != nil {
			text += fmt.Sprintf(" [seq %d]", *e.Seq)
		}
		t.field("because", text)
	}
	for _, s := range in.RuledOut {
		t.field("not", s)
	}
	for _, s := range in.NotVisible {
		t.field("unseen", s)
	}
	if in.Advice != "" {
		t.field("do", in.Advice)
	}
	t.line("")
}

func (t *text) connects(r *Report) {
	if len(r.Connects) == 0 {
		return
	}
	t.counts("Connects", r.Connects)
	rows := [][]string{}
	for _, l := range []struct {
		name string
		d    Distribution
	}{{"established", r.Latency.Established}, {"failed", r.Latency.Failed}} {
		if l.d.Count > 0 {
			rows = append(rows, append([]string{l.name}, quantiles(l.d)...))
		}
	}
	t.line("")
	t.grid([]string{"took", "p50", "p90", "p99", "p99.9", "max"}, rows)
	if r.Unexplained > 0 {
		t.line("%s failed without a verdict", plural(r.Unexplained, "connect"))
	}
}

func quantiles(d Distribution) []string {
	return []string{ms(d.P50), ms(d.P90), ms(d.P99), ms(d.P999), ms(d.Max)}
}

func (t *text) table(title, what string, table Table) {
	if len(table.Rows) == 0 {
		return
	}
	t.title(title)
	header := []string{what, "connects", "failed", "late", "accepts"}
	latencies := slices.ContainsFunc(table.Rows, func(r Row) bool { return r.Latency != nil })
	if latencies {
		header = append(header, "p50", "p99")
	}
	header = append(header, "TIME_WAITs", "with")
	var rows [][]string
	for i := range table.Rows {
		if i == shown {
			break
		}
		rows = append(rows, row2text(&table.Rows[i], latencies))
	}
	t.grid(header, rows)
	if more := uint64(max(len(table.Rows)-shown, 0)) + table.Gone; more > 0 {
		t.line("and %s more", number(more))
	}
}

func row2text(r *Row, latencies bool) []string {
	name := r.Name
	if r.Accepted {
		name = "at " + name
	}
	failed := number(r.Failed)
	if r.Failed > 0 {
		failed += ": " + listShares(failures(r.Outcomes))
	}
	cells := []string{name, number(r.Connects), failed, number(r.Late), number(r.Accepts)}
	if latencies {
		p50, p99 := "", ""
		if r.Latency != nil {
			p50, p99 = ms(r.Latency.P50), ms(r.Latency.P99)
		}
		cells = append(cells, p50, p99)
	}
	return append(cells, number(r.TimeWait.Entered), listShares(r.With))
}

func (t *text) timeWaits(r *Report) {
	if r.TimeWait.Entered == 0 && len(r.TimeWait.Ended) == 0 {
		return
	}
	t.title("TIME_WAIT")
	t.line("%s began; ended: %s", number(r.TimeWait.Entered), orDash(list(r.TimeWait.Ended)))
	if d := r.TimeWait.Duration; d.Count > 0 {
		t.line("lasted %s (median), %s (p99), %s at most", ms(d.P50), ms(d.P99), ms(d.Max))
	}
}

func (t *text) reuses(r *Report) {
	if len(r.Reuses) == 0 {
		return
	}
	t.counts("Port reuse", r.Reuses)
	if len(r.ShortestReuses) == 0 {
		return
	}
	var rows [][]string
	for i, s := range r.ShortestReuses {
		if i == 5 {
			break
		}
		by := s.Owner
		if s.Previous != "" && s.Previous != s.Owner {
			by += " after " + s.Previous
		}
		rows = append(rows, []string{ms(s.After), s.How, s.Local, s.Peer, by})
	}
	t.line("")
	t.grid([]string{"shortest", "how", "from", "to", "by"}, rows)
}

func (t *text) ports(r *Report) {
	var rows [][]string
	for _, u := range r.PortUse {
		if len(rows) == shown || u.PeakInUse == 0 {
			break
		}
		of := "-"
		if u.Usable > 0 {
			of = number(u.Usable)
		}
		full := 0
		for _, p := range u.Pressure {
			if p.Ratio >= 1 {
				full++
			}
		}
		rows = append(rows, []string{
			orDash(u.Local), strconv.Itoa(int(u.NetNS)), u.Peer, number(u.PeakInUse), number(u.PeakTimeWaits), of, strconv.Itoa(full),
		})
	}
	if len(rows) == 0 {
		return
	}
	t.title("Local ports in use, at most")
	t.grid([]string{"from", "netns", "to", "in use", "TIME_WAITs", "of", "times full"}, rows)
}

func (t *text) log(r *Report) {
	t.title("This log")
	t.line("%s, lost: %s in the kernel, %s on their way out", plural(r.Lines, "line"), number(r.Lost.Kernel), number(r.Lost.Output))
	if r.Truncated {
		t.line("truncated: its end is missing")
	}
	for _, c := range []struct {
		n    uint64
		what string
	}{
		{r.DamagedLines, "damaged line"}, {r.MissingLines, "missing line"}, {r.RepeatedLines, "repeated line"},
	} {
		if c.n > 0 {
			t.line("%s", plural(c.n, c.what))
		}
	}
	for _, d := range r.Damaged {
		t.paragraph("  ", fmt.Sprintf("%s, line %d: %s", d.File, d.Line, d.Why))
	}
	if len(r.UnknownKinds)+len(r.UnknownKeys) > 0 {
		t.paragraph("", "from a newer twtrace, and not understood: "+list(r.UnknownKinds)+list(r.UnknownKeys, "; "))
	}
	if len(r.NotShown) > 0 {
		t.title("What this log can't show")
		for _, s := range r.NotShown {
			t.paragraph("- ", s)
		}
	}
}

func (t *text) title(s string) {
	t.line("")
	t.line("%s", s)
	t.line("%s", strings.Repeat("-", len(s)))
}

func (t *text) line(format string, args ...any) {
	t.WriteString(printable(fmt.Sprintf(format, args...)))
	t.WriteByte('\n')
}

// field writes a named text, wrapped.
func (t *text) field(name, value string) {
	if value != "" {
		t.paragraph(fmt.Sprintf("   %-9s", name), value)
	}
}

// paragraph writes a text behind its title, wrapped.
func (t *text) paragraph(title, value string) {
	wrapped := ansi.Wordwrap(printable(value), t.width-len(title), " ")
	for line := range strings.Lines(wrapped) {
		t.line("%s%s", title, strings.TrimRight(line, "\n"))
		title = strings.Repeat(" ", len(title))
	}
}

func (t *text) counts(title string, counts map[string]uint64) {
	if len(counts) == 0 {
		return
	}
	t.title(title)
	var rows [][]string
	for _, s := range sorted(counts) {
		rows = append(rows, []string{s.Name, number(s.Count)})
	}
	t.grid(nil, rows)
}

// isNumber is what number, ms and "-" write.
var isNumber = regexp.MustCompile(`^([0-9][0-9,]*(\.[0-9]+)?( m?s)?|-)$`)

// grid writes a table: columns of numbers are aligned at their end.
func (t *text) grid(header []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	for _, row := range rows {
		for i := range row {
			row[i] = printable(row[i])
		}
	}
	numeric := make([]bool, len(rows[0]))
	for i := range numeric {
		numeric[i] = !slices.ContainsFunc(rows, func(row []string) bool {
			return row[i] != "" && !isNumber.MatchString(row[i])
		})
	}
	grid := table.New().Border(lipgloss.HiddenBorder()).
		BorderTop(false).BorderBottom(false).BorderLeft(false).BorderRight(false).BorderHeader(false).BorderColumn(false).BorderRow(false).
		Wrap(false).Rows(rows...).
		StyleFunc(func(_, column int) lipgloss.Style {
			style := lipgloss.NewStyle().PaddingRight(2)
			if numeric[column] {
				style = style.Align(lipgloss.Right)
			}
			return style
		})
	if header != nil {
		grid = grid.Headers(header...)
	}
	for line := range strings.Lines(grid.String()) {
		t.line("%s", strings.TrimRight(line, " \n"))
	}
}

// sorted returns the counts, the highest first.
func sorted(counts map[string]uint64) []Share { return shares(counts, len(counts)) }

// list writes counts in a line, behind a separator where there are any.
func list(counts map[string]uint64, before ...string) string {
	text := listShares(sorted(counts))
	if text == "" {
		return ""
	}
	return strings.Join(before, "") + text
}

func listShares(shares []Share) string {
	var texts []string
	for _, s := range shares {
		texts = append(texts, number(s.Count)+" "+s.Name)
	}
	return strings.Join(texts, ", ")
}

func times(n uint64) string {
	if n == 1 {
		return "once"
	}
	return number(n) + " times"
}

func plural(n uint64, what string) string {
	if n != 1 {
		what += "s"
	}
	return number(n) + " " + what
}

// number puts commas between thousands.
func number(n uint64) string {
	digits := strconv.FormatUint(n, 10)
	for i := len(digits) - 3; i > 0; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

// ms writes milliseconds, or seconds.
func ms(value float64) string {
	switch {
	case value >= 1000:
		return fmt.Sprintf("%.1f s", value/1000)
	case value >= 100:
		return fmt.Sprintf("%.0f ms", value)
	case value >= 1:
		return fmt.Sprintf("%.1f ms", value)
	default:
		return fmt.Sprintf("%.3f ms", value)
	}
}

// span writes a length of time as it is said.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return ms(milliseconds(d))
	default:
		text := d.Round(time.Second).String()
		for _, none := range []string{"m0s", "h0m"} {
			if strings.HasSuffix(text, none) {
				text = text[:len(text)-2]
			}
		}
		return text
	}
}

func clockTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05.000") }

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// printable makes harmless what comes from processes and from logs: nothing in it can
// move a cursor or turn the direction of a line.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '�'
	}, s)
}

func sum(counts map[string]uint64) (total uint64) {
	for _, n := range counts {
		total += n
	}
	return total
}

func sum64(counts []uint64) (total uint64) {
	for _, n := range counts {
		total += n
	}
	return total
}
