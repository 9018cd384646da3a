package top

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/sink"
	"github.com/twtrace/twtrace/internal/track"
)

// A column of a table of T.
type column[T any] struct {
	title string
	// least and most are its width: no wider than its cells want, beyond
	// least.
	least, most int
	left        bool // aligned
	// spare is how well the table can do without it where there is no room:
	// the highest goes first, 0 never.
	spare int
	cell  func(*T) string
}

// What the groups' columns have in common.
var (
	commsColumn    = column[Row]{title: "COMM", least: 12, most: 40, left: true, cell: commCell}
	netnsColumn    = column[Row]{title: "NETNS", least: 10, most: 10, cell: func(r *Row) string { return idText(uint64(r.Key.NetNS.Inode)) }}
	useColumn      = column[Row]{title: "USE%", least: 4, most: 4, cell: useCell}
	liveColumn     = column[Row]{title: "LIVE", least: 5, most: 7, spare: 3, cell: func(r *Row) string { return strconv.Itoa(r.Live) }}
	timeWaitColumn = column[Row]{title: "TIME_WAIT", least: 9, most: 9, cell: func(r *Row) string { return strconv.Itoa(r.TimeWait) }}
	rateColumn     = column[Row]{title: "CONN/s", least: 6, most: 9, spare: 2, cell: func(r *Row) string { return rateText(r.Rate) }}
	failuresColumn = column[Row]{title: "FAIL", least: 5, most: 9, cell: func(r *Row) string { return strconv.FormatUint(r.Failures, 10) }}
	fullColumn     = column[Row]{title: "FULL IN", least: 7, most: 7, spare: 5, cell: fullCell}
	lastColumn     = column[Row]{title: "LAST FAILURE", least: 13, most: 13, left: true, spare: 8, cell: lastCell}
)

// columns are those of a group.
func (g Group) columns() []column[Row] {
	id := netnsColumn
	switch g {
	case ByDestination:
		netnsColumn, commsColumn := netnsColumn, commsColumn
		netnsColumn.spare, commsColumn.spare = 7, 9
		return []column[Row]{
			{title: "RADDR:RPORT", least: 21, most: 47, left: true, cell: peerCell},
			{title: "LADDR", least: 15, most: 39, left: true, spare: 1, cell: func(r *Row) string { return addrText(r.Key.Local.Addr()) }},
			netnsColumn,
			{title: "PORTS", least: 11, most: 11, spare: 6, cell: portsCell},
			useColumn, liveColumn, timeWaitColumn, rateColumn, failuresColumn, fullColumn, lastColumn, commsColumn,
		}
	case ByProcess:
		id = column[Row]{title: "PID", least: 7, most: 10, cell: func(r *Row) string { return idText(uint64(r.Key.PID)) }}
	case ByContainer:
		id = column[Row]{title: "CONTAINER", least: 14, most: 47, left: true, cell: func(r *Row) string {
			return containerText(r.In.LongString(), r.Key.Cgroup)
		}}
	}
	return []column[Row]{
		id, commsColumn, useColumn, liveColumn, timeWaitColumn, rateColumn, failuresColumn, fullColumn, lastColumn,
		{title: "FULLEST DESTINATION", least: 21, most: 47, left: true, spare: 9, cell: fullestCell},
	}
}

func peerCell(r *Row) string {
	if r.Key.anyPeer() {
		return "any, on :" + strconv.Itoa(int(r.Key.Local.Port()))
	}
	return endText(r.Key.Peer)
}

func commCell(r *Row) string {
	if len(r.Comms) == 0 {
		return "-"
	}
	return strings.Join(r.Comms, ",")
}

func portsCell(r *Row) string {
	if r.Ports.Usable == 0 {
		return "-"
	}
	return fmt.Sprintf("%d/%d", r.Ports.InUse, r.Ports.Usable)
}

// useCell rounds down: at 100% no port is left.
func useCell(r *Row) string {
	if r.Ports.Usable == 0 {
		return "-"
	}
	return fmt.Sprintf("%d%%", uint64(r.Ports.InUse)*100/uint64(r.Ports.Usable))
}

// foreseeable is how far ahead a rate of seconds tells anything.
const foreseeable = time.Hour

func fullCell(r *Row) string {
	switch {
	case r.Ports.Usable > 0 && r.Ports.InUse >= r.Ports.Usable:
		return "full"
	case r.Ports.Exhausts && r.Ports.ExhaustedIn <= foreseeable:
		return string(sink.AppendSpan(nil, r.Ports.ExhaustedIn))
	default:
		return "-"
	}
}

func lastCell(r *Row) string {
	if r.Last == 0 {
		return "-"
	}
	return r.Last.String()
}

func fullestCell(r *Row) string {
	if r.Ports.Usable == 0 {
		return "-"
	}
	return endText(r.Fullest.Peer)
}

// idText is a number that 0 is none of.
func idText(n uint64) string {
	if n == 0 {
		return "-"
	}
	return strconv.FormatUint(n, 10)
}

func addrText(a netip.Addr) string {
	if !a.IsValid() || a.IsUnspecified() {
		return "-"
	}
	return a.String()
}

func endText(end netip.AddrPort) string {
	if !end.IsValid() {
		return "-"
	}
	return end.String()
}

func rateText(rate float64) string {
	switch {
	case rate == 0:
		return "0"
	case rate < 99.95:
		return strconv.FormatFloat(rate, 'f', 1, 64)
	default:
		return strconv.FormatFloat(rate, 'f', 0, 64)
	}
}

// connectionColumns are those of the connections behind a row. What all of them
// share stands in the heading.
func connectionColumns(v View) []column[track.Connection] {
	local := column[track.Connection]{title: "LADDR:LPORT", least: 21, most: 47, left: true, cell: func(c *track.Connection) string {
		return endText(c.Socket.Tuple.Local)
	}}
	peer := column[track.Connection]{title: "RADDR:RPORT", least: 21, most: 47, left: true, cell: func(c *track.Connection) string {
		return endText(c.Socket.Tuple.Peer)
	}}
	state := column[track.Connection]{title: "STATE", least: 9, most: 9, left: true, cell: func(c *track.Connection) string {
		if c.TimeWait {
			return "TIME_WAIT"
		}
		return "live"
	}}
	ends := column[track.Connection]{title: "ENDS IN", least: 7, most: 7, cell: endsCell}
	pid := column[track.Connection]{title: "PID", least: 7, most: 10, cell: func(c *track.Connection) string {
		return idText(uint64(c.Socket.Owner.PID))
	}}
	comm := column[track.Connection]{title: "COMM", least: 8, most: 15, left: true, cell: func(c *track.Connection) string {
		if c.Socket.Owner.Comm == "" {
			return "-"
		}
		return c.Socket.Owner.Comm
	}}
	uid := column[track.Connection]{title: "UID", least: 5, most: 10, spare: 2, cell: func(c *track.Connection) string {
		if !c.Socket.Owner.Known() {
			return "-"
		}
		return strconv.FormatUint(uint64(c.Socket.Owner.UID), 10)
	}}
	container := column[track.Connection]{title: "CONTAINER", least: 12, most: 47, left: true, spare: 3, cell: func(c *track.Connection) string {
		return containerText(c.Socket.Owner.In.String(), c.Socket.Owner.Cgroup)
	}}
	netns := column[track.Connection]{title: "NETNS", least: 10, most: 10, spare: 4, cell: func(c *track.Connection) string {
		return idText(uint64(c.Socket.NetNS.Inode))
	}}
	switch {
	case v.Group == ByProcess:
		return []column[track.Connection]{local, peer, state, ends, comm, uid, container, netns}
	case v.Group == ByContainer:
		return []column[track.Connection]{local, peer, state, ends, pid, comm, uid, netns}
	case v.Group == ByNetNS:
		return []column[track.Connection]{local, peer, state, ends, pid, comm, uid, container}
	case v.Row.anyPeer():
		return []column[track.Connection]{peer, state, ends, pid, comm, uid, container}
	default:
		return []column[track.Connection]{local, state, ends, pid, comm, uid, container}
	}
}

// endsCell rounds up to seconds, which is as well as the kernel's timers keep
// time. A TIME_WAIT whose beginning was not seen began before.
func endsCell(c *track.Connection) string {
	switch {
	case !c.TimeWait:
		return "-"
	case c.EndsIn == 0:
		return "<60 s"
	default:
		return fmt.Sprintf("%d s", (c.EndsIn+time.Second-1)/time.Second)
	}
}

// render makes the line with the columns' titles and a line for each row, with
// as many columns as the width has room for. Width 0 has room for all.
func render[T any](columns []column[T], rows []T, width int) (titles string, lines []string) {
	columns = fitting(columns, width)
	cells := make([][]string, len(rows))
	wants := make([]int, len(columns))
	for i := range rows {
		cells[i] = make([]string, len(columns))
		for j := range columns {
			cells[i][j] = columns[j].cell(&rows[i])
			wants[j] = max(wants[j], columnsIn(cells[i][j]))
		}
	}
	widths := widen(columns, wants, width)
	line := func(cell func(int) string) string {
		var b []byte
		for j, c := range columns {
			if j > 0 {
				b = append(b, ' ')
			}
			b = appendCell(b, cell(j), widths[j], c.left)
		}
		return strings.TrimRight(string(b), " ")
	}
	for i := range rows {
		lines = append(lines, line(func(j int) string { return cells[i][j] }))
	}
	return line(func(j int) string { return columns[j].title }), lines
}

// fitting leaves out columns until the others have room.
func fitting[T any](columns []column[T], width int) []column[T] {
	for width > 0 {
		last := 0
		for i := range columns {
			if columns[i].spare > columns[last].spare {
				last = i
			}
		}
		if needs(columns) <= width || columns[last].spare == 0 {
			break
		}
		columns = append(columns[:last:last], columns[last+1:]...)
	}
	return columns
}

// needs is the least width of a table.
func needs[T any](columns []column[T]) int {
	n := len(columns) - 1
	for i := range columns {
		n += columns[i].least
	}
	return n
}

// widen gives the columns what is left of the width, as far as their cells want
// it: numbers first, which are worth nothing cut.
func widen[T any](columns []column[T], wants []int, width int) []int {
	widths := make([]int, len(columns))
	left := width - needs(columns)
	for _, names := range []bool{false, true} {
		for j, c := range columns {
			if c.left != names {
				continue
			}
			more := min(wants[j], c.most) - c.least
			if width > 0 {
				more = min(more, left)
			}
			widths[j] = c.least + max(more, 0)
			left -= max(more, 0)
		}
	}
	return widths
}

// appendCell appends a cell. One that is too long is cut, and shows that it is:
// half a number must not look like a whole one.
func appendCell(b []byte, cell string, width int, left bool) []byte {
	pad := width - columnsIn(cell)
	if !left {
		b = appendSpaces(b, pad)
	}
	b = appendCut(b, cell, width)
	if left {
		b = appendSpaces(b, pad)
	}
	return b
}

func appendSpaces(b []byte, n int) []byte {
	for ; n > 0; n-- {
		b = append(b, ' ')
	}
	return b
}

// appendCut appends a text, made harmless, in at most so many columns.
func appendCut(b []byte, text string, width int) []byte {
	if columnsIn(text) <= width {
		b, _ = sink.AppendName(b, text, width)
		return b
	}
	b, _ = sink.AppendName(b, text, width-1)
	return append(b, '>')
}

// columnsIn is how many columns a text takes.
func columnsIn(text string) int {
	_, n := sink.AppendName(nil, text, math.MaxInt)
	return n
}

// cut is a line that fits into the width, 0 for any.
func cut(line string, width int) string {
	if width == 0 {
		return line
	}
	return string(appendCut(nil, line, width))
}

// noteSign begins what the numbers must be read with.
const noteSign = "! "

// heading is what stands above the table.
func (s *Snapshot) heading(order Order, width int) []string {
	first := "twtrace top  " + s.Time.Format(time.TimeOnly)
	var lines []string
	if s.View.Inside {
		lines = []string{first + "  " + s.inside(), s.insideCounts()}
	} else {
		lines = []string{
			fmt.Sprintf("%s  every %s  by %s, sorted by %s", first, s.Every, s.View.Group, order),
			fmt.Sprintf("LIVE %d  TIME_WAIT %d  CONN/s %s  FAIL %d in the last 60 s", s.Live, s.TimeWait, rateText(s.Rate), s.Failures),
		}
	}
	for _, note := range s.Notes {
		lines = append(lines, noteSign+note)
	}
	for i := range lines {
		lines[i] = cut(lines[i], width)
	}
	return lines
}

// inside names the row that is looked into.
func (s *Snapshot) inside() string {
	k := &s.View.Row
	switch s.View.Group {
	case ByProcess:
		return "process " + idText(uint64(k.PID))
	case ByContainer:
		for i := range s.Connections {
			if name := s.Connections[i].Socket.Owner.In.LongString(); name != "" {
				return name
			}
		}
		return "cgroup " + idText(k.Cgroup)
	case ByNetNS:
		return "netns " + idText(uint64(k.NetNS.Inode))
	}
	if k.anyPeer() {
		return fmt.Sprintf("port %s in netns %d", k.Local, k.NetNS.Inode)
	}
	return fmt.Sprintf("%s from %s in netns %d", endText(k.Peer), addrText(k.Local.Addr()), k.NetNS.Inode)
}

// insideCounts tells the numbers of the row that is looked into.
func (s *Snapshot) insideCounts() string {
	row := Row{Key: s.View.Row}
	for i := range s.Rows {
		if s.Rows[i].Key == row.Key {
			row = s.Rows[i]
		}
	}
	text := fmt.Sprintf("PORTS %s  LIVE %d  TIME_WAIT %d  CONN/s %s  FAIL %d in the last 60 s",
		portsCell(&row), row.Live, row.TimeWait, rateText(row.Rate), row.Failures)
	if s.Omitted > 0 {
		text += fmt.Sprintf("  %d not listed", s.Omitted)
	}
	return text
}

// nothing stands where there are no rows.
const nothing = "no connect holds a local port, no TIME_WAIT, no connect in the last minute"

// AppendTable appends the whole table as plain text of that width, 0 for any.
func (s *Snapshot) AppendTable(b []byte, order Order, width int) []byte {
	order.sort(s.Rows)
	lines := s.heading(order, width)
	titles, rows := render(s.View.Group.columns(), s.Rows, width)
	lines = append(lines, "", cut(titles, width))
	for _, row := range rows {
		lines = append(lines, cut(row, width))
	}
	if len(rows) == 0 {
		lines = append(lines, cut(nothing, width))
	}
	for _, line := range lines {
		b = append(append(b, line...), '\n')
	}
	return append(b, '\n')
}
