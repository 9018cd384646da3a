package sink

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// The colours, as a terminal wants them.
const (
	bold       = "\x1b[1m"
	dim        = "\x1b[2m"
	red        = "\x1b[31m"
	green      = "\x1b[32m"
	yellow     = "\x1b[33m"
	boldYellow = "\x1b[1;33m"
	plain      = "\x1b[0m"
)

// line is a line in the making.
type line struct {
	b []byte
	// start is where it begins in b, field where in the line, in columns,
	// the field that is being written should.
	start, field int
	// hidden is how many bytes more than columns it takes.
	hidden int
}

// column returns how many columns have been written.
func (l *line) column() int { return len(l.b) - l.start - l.hidden }

// pad fills up with spaces to width columns from where the field should begin.
func (l *line) pad(width int) {
	for l.column() < l.field+width {
		l.b = append(l.b, ' ')
	}
}

// next ends a field of that width and begins another. A field that was too
// long pushes those behind it only as far as their own room does not make up
// for it.
func (l *line) next(width int) {
	l.b = append(l.b, ' ')
	l.pad(width + 1)
	l.field += width + 1
}

func (l *line) text(s string) { l.b = append(l.b, s...) }

func (l *line) number(n uint64) { l.b = strconv.AppendUint(l.b, n, 10) }

// right writes s at the right end of a field of that width.
func (l *line) right(s []byte, width int) {
	l.pad(width - len(s))
	l.b = append(l.b, s...)
}

func (l *line) rightNumber(n uint64, width int) {
	var digits [20]byte
	l.right(strconv.AppendUint(digits[:0], n, 10), width)
}

func (l *line) rightMilliseconds(d time.Duration, width int) {
	var digits [24]byte
	l.right(strconv.AppendFloat(digits[:0], float64(d)/float64(time.Millisecond), 'f', 3, 64), width)
}

// name writes a name that others chose, in at most so many columns.
func (l *line) name(s string, columns int) {
	before := len(l.b)
	var width int
	l.b, width = AppendName(l.b, s, columns)
	l.hidden += len(l.b) - before - width
}

// AppendName appends a name that others chose, in at most so many columns, and
// returns in how many. What is not to be seen, or would do something to the
// terminal, becomes "?".
func AppendName(b []byte, s string, columns int) (_ []byte, width int) {
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		i += size
		if r == utf8.RuneError && size == 1 || !unicode.IsPrint(r) {
			r = '?'
		}
		if width+runeWidth(r) > columns {
			break
		}
		width += runeWidth(r)
		b = utf8.AppendRune(b, r)
	}
	return b, width
}

// runeWidth returns how many columns most terminals give to r.
func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me):
		return 0
	case unicode.In(r, unicode.Han, unicode.Hangul, unicode.Hiragana, unicode.Katakana),
		0x3000 <= r && r <= 0x303f,   // their punctuation
		0xff01 <= r && r <= 0xff60,   // Latin of their width
		0x1f300 <= r && r <= 0x1faff: // pictures
		return 2
	default:
		return 1
	}
}

// end writes one end of a connection, "-" for what is not known of it.
func (l *line) end(end netip.AddrPort) {
	addr := end.Addr().Unmap()
	if !addr.IsValid() || addr.IsUnspecified() && end.Port() == 0 {
		l.text("-")
		return
	}
	l.b = netip.AddrPortFrom(addr, end.Port()).AppendTo(l.b)
	if end.Port() == 0 {
		l.b[len(l.b)-1] = '-'
	}
}

func (l *line) time(ns int64, zone *time.Location, format string) {
	l.b = time.Unix(0, ns).In(zone).AppendFormat(l.b, format)
}

// spans tell how a duration shorter than below is best read; the last is for
// all others.
var spans = [...]struct {
	below, unit time.Duration
	digits      int
	name        string
}{
	{10 * time.Microsecond, time.Millisecond, 3, " ms"},
	{100 * time.Microsecond, time.Millisecond, 2, " ms"},
	{100 * time.Millisecond, time.Millisecond, 1, " ms"},
	{time.Second, time.Millisecond, 0, " ms"},
	{100 * time.Second, time.Second, 1, " s"},
	{10 * time.Minute, time.Second, 0, " s"},
	{2 * time.Hour, time.Minute, 0, " min"},
	{48 * time.Hour, time.Hour, 1, " h"},
	{0, 24 * time.Hour, 1, " d"},
}

// span writes a duration for reading.
func (l *line) span(d time.Duration) { l.b = AppendSpan(l.b, d) }

// AppendSpan appends a duration for reading: 0.4 ms, 3.1 s.
func AppendSpan(b []byte, d time.Duration) []byte {
	i := 0
	for i < len(spans)-1 && d >= spans[i].below {
		i++
	}
	s := &spans[i]
	b = strconv.AppendFloat(b, float64(d)/float64(s.unit), 'f', s.digits, 64)
	return append(b, s.name...)
}

// lasting writes how long it took, behind the word, if that is known.
func (l *line) lasting(word string, d time.Duration) {
	if d > 0 {
		l.text(word)
		l.span(d)
	}
}

// bytes writes a size for reading: 73 B, 1.2 kB.
func (l *line) bytes(n uint64) {
	if n < 1000 {
		l.number(n)
		l.text(" B")
		return
	}
	size, units := float64(n), " kMGTPE"
	for size >= 999.95 {
		size /= 1000
		units = units[1:]
	}
	l.b = strconv.AppendFloat(l.b, size, 'f', 1, 64)
	l.b = append(l.b, ' ', units[0], 'B')
}

// count writes n of what: 1 event, 2 events.
func (l *line) count(n uint64, what string) {
	l.number(n)
	l.text(" ")
	l.text(what)
	if n != 1 {
		l.text("s")
	}
}

func (l *line) lost(n uint64, where record.LostWhere) {
	if where == record.InOutput {
		l.count(n, "line")
		l.text(" in the output")
	} else {
		l.count(n, "event")
		l.text(" in the kernel")
	}
}

// lostKinds writes of which kinds these are, as far as that is known.
func (l *line) lostKinds(kinds *[record.Kinds]uint64) {
	if kinds == nil {
		return
	}
	separator := ": "
	for kind, n := range kinds {
		if n == 0 {
			continue
		}
		l.text(separator)
		l.number(n)
		l.text(" ")
		l.text(record.Kind(kind).String())
		separator = ", "
	}
}

// share writes how many ports of how many are taken.
func (l *line) share(p *record.PortsFields) {
	l.number(uint64(p.InUse))
	l.text(" of ")
	l.number(uint64(p.Usable))
}

// waiting writes how many of them TIME_WAITs take.
func (l *line) waiting(p *record.PortsFields) {
	if p.TimeWait == 0 {
		l.text("none")
	} else {
		l.number(uint64(p.TimeWait))
	}
	l.text(" in TIME_WAIT")
}

// commWidth is that of the longest name that the kernel gives a thread.
const commWidth = 15

// process names a process.
func (l *line) process(o event.Owner) {
	switch {
	case !o.Known():
		l.text("an unknown process")
	case o.Comm == "":
		l.text("process ")
		l.number(uint64(o.PID))
	default:
		l.name(o.Comm, commWidth)
		l.text(" (")
		l.number(uint64(o.PID))
		l.text(")")
	}
	if in := o.In.String(); in != "" {
		l.text(" in ")
		l.name(in, len(in))
	}
}

// percent writes the share of the ports that are taken. It is rounded down: 100 %
// is all.
func (l *line) percent(p *record.PortsFields) {
	l.number(100 * uint64(p.InUse) / max(uint64(p.Usable), 1))
	l.text(" %")
}

// row begins a row of the summary.
func (l *line) row(title string) {
	l.b = append(l.b, '\n')
	l.start, l.hidden = len(l.b), 0
	l.text(title)
}

// counts writes the sum and the parts: 7: 5 established, 2 timed_out. A row that
// is longer than width, if that is not 0, goes on in the next.
func (l *line) counts(counts []uint64, name func(int) string, width int) {
	var sum uint64
	for _, n := range counts {
		sum += n
	}
	indent := l.column()
	l.number(sum)
	separator := ":"
	for i, n := range counts {
		if n == 0 {
			continue
		}
		l.text(separator)
		at := len(l.b)
		l.text(" ")
		l.number(n)
		l.text(" ")
		what := name(i)
		l.name(what, len(what))
		if width > 0 && l.column()+len(separator) > width {
			part := string(l.b[at+1:])
			l.b = l.b[:at]
			l.row("")
			l.pad(indent)
			l.text(part)
		}
		separator = ","
	}
}

// trim takes away the spaces at the end.
func (l *line) trim() {
	l.b = l.b[:l.start+len(bytes.TrimRight(l.b[l.start:], " "))]
}

// cut makes the line fit into width columns, and shows that it is cut: half a
// number must not look like a whole one.
func (l *line) cut(width int) {
	if l.column() <= width {
		return
	}
	at, columns := l.start, 0
	for {
		r, size := utf8.DecodeRune(l.b[at:])
		if columns += runeWidth(r); columns >= width {
			break
		}
		at += size
	}
	l.b = append(l.b[:at], '>')
}

// paint gives a colour to all from b[at] on.
func (l *line) paint(at int, color string) {
	if color != "" && at < len(l.b) {
		l.b = append(slices.Insert(l.b, at, []byte(color)...), plain...)
	}
}
