package top

import (
	"strings"

	tea "charm.land/bubbletea/v2"
	"charm.land/lipgloss/v2"
)

// Model is the table on a terminal.
type Model struct {
	snapshots <-chan *Snapshot
	ask       func(View)
	styles    styles

	width, height int
	view          View      // asked for
	snapshot      *Snapshot // shown; nil before the first
	order         Order
	// selected is the number of the row under the cursor, which goes where
	// the row goes if following is set.
	selected  int
	following bool
	top       int // the first row, or connection, on the screen
	outside   int // what top was before a row was looked into
	paused    bool
	help      bool
}

// styles are those of lines. They say nothing that the words don't say.
type styles struct{ plain, title, cursor, warning, alarm lipgloss.Style }

// NewModel returns a Model that shows what comes in by snapshots, and calls ask,
// which must not wait, when it wants another view.
func NewModel(view View, order Order, color bool, snapshots <-chan *Snapshot, ask func(View)) Model {
	m := Model{view: view, order: order, snapshots: snapshots, ask: ask}
	m.styles.title = lipgloss.NewStyle().Bold(true)
	m.styles.cursor = lipgloss.NewStyle().Reverse(true)
	if color {
		m.styles.warning = lipgloss.NewStyle().Foreground(lipgloss.Yellow)
		m.styles.alarm = lipgloss.NewStyle().Foreground(lipgloss.Red)
	}
	return m
}

// Init waits for the first snapshot.
func (m Model) Init() tea.Cmd { return m.wait }

// wait is a command: the next snapshot.
func (m Model) wait() tea.Msg { return <-m.snapshots }

// Update takes a key, a snapshot or the terminal's new size.
func (m Model) Update(message tea.Msg) (tea.Model, tea.Cmd) {
	switch message := message.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = message.Width, message.Height
	case *Snapshot:
		m.take(message)
		return m, m.wait
	case tea.KeyPressMsg:
		return m.press(message.String())
	}
	m.scroll()
	return m, nil
}

// take shows a snapshot, but not one of a view that was left, nor a newer one
// while the table is paused.
func (m *Model) take(s *Snapshot) {
	if s.View != m.view || m.paused && m.snapshot != nil && m.snapshot.View == s.View {
		return
	}
	before := m.snapshot
	key := m.cursor()
	switch {
	case before == nil || before.View == s.View:
	case s.View.Inside:
		m.outside, m.top = m.top, 0
	case before.View.Group == s.View.Group:
		m.top = m.outside
		key = &before.View.Row
	default:
		m.selected, m.following, m.top = 0, false, 0
		key = nil
	}
	sortConnections(s.Connections)
	m.snapshot = s
	m.sort(key)
	m.scroll()
}

// cursor is the row that the cursor follows, nil for none.
func (m *Model) cursor() *Key {
	if !m.following || m.snapshot == nil || m.selected >= len(m.snapshot.Rows) {
		return nil
	}
	key := m.snapshot.Rows[m.selected].Key
	return &key
}

// sort puts the rows in order, and the cursor on the row with this key, if there
// is one.
func (m *Model) sort(cursor *Key) {
	m.order.sort(m.snapshot.Rows)
	if cursor == nil {
		return
	}
	for i := range m.snapshot.Rows {
		if m.snapshot.Rows[i].Key == *cursor {
			m.selected = i
			return
		}
	}
}

// press obeys a key, as tea.KeyPressMsg spells it.
func (m Model) press(key string) (tea.Model, tea.Cmd) {
	switch {
	case key == "ctrl+c":
		return m, tea.Quit
	case key == "ctrl+z":
		return m, tea.Suspend
	case m.help:
		m.help = false // whichever it is
		return m, nil
	case key == "?", key == "h", key == "f1":
		m.help = true
		return m, nil
	case m.snapshot == nil:
		if key == "q" {
			return m, tea.Quit
		}
		return m, nil
	}
	shown := m.snapshot.View
	switch key {
	case "q", "esc":
		if shown.Inside {
			m.look(View{Group: shown.Group})
		} else if key == "q" {
			return m, tea.Quit
		}
	case "enter":
		if !shown.Inside && m.selected < len(m.snapshot.Rows) {
			m.following = true // so as to find it again
			m.look(View{Group: shown.Group, Inside: true, Row: *m.cursor()})
		}
	case "space":
		m.paused = !m.paused
	case "P":
		m.choose(ByPressure)
	case "T":
		m.choose(ByTimeWait)
	case "F":
		m.choose(ByFailures)
	case "R":
		m.choose(ByRate)
	case "d":
		m.look(View{Group: ByDestination})
	case "p":
		m.look(View{Group: ByProcess})
	case "c":
		m.look(View{Group: ByContainer})
	case "n":
		m.look(View{Group: ByNetNS})
	default:
		m.move(key)
	}
	m.scroll()
	return m, nil
}

// look asks for another view. Until it comes the present one stands.
func (m *Model) look(view View) {
	m.view = view
	m.ask(view)
}

func (m *Model) choose(order Order) {
	m.order = order
	m.sort(m.cursor())
}

// move moves the cursor or, inside a row, the screen.
func (m *Model) move(key string) {
	at, most := &m.selected, len(m.snapshot.Rows)-1
	if m.snapshot.View.Inside {
		at, most = &m.top, len(m.snapshot.Connections)-m.room()
	}
	switch key {
	case "up", "k":
		*at--
	case "down", "j":
		*at++
	case "pgup", "ctrl+b":
		*at -= m.room()
	case "pgdown", "ctrl+f":
		*at += m.room()
	case "home", "g":
		*at = 0
	case "end", "G":
		*at = most
	default:
		return
	}
	*at = max(min(*at, most), 0)
	// At the top it stays there, whatever comes to be first.
	m.following = m.selected > 0
}

// scroll keeps the cursor on the screen, and the screen full.
func (m *Model) scroll() {
	if m.snapshot == nil {
		return
	}
	n := len(m.snapshot.Connections)
	if !m.snapshot.View.Inside {
		n = len(m.snapshot.Rows)
		m.selected = max(min(m.selected, n-1), 0)
		m.top = max(min(m.top, m.selected), m.selected-m.room()+1)
	}
	m.top = max(min(m.top, n-m.room()), 0)
}

// room is how many rows the screen has room for.
func (m *Model) room() int {
	const titlesAndFooter = 2
	return max(m.height-len(m.heading())-titlesAndFooter, 1)
}

// heading is what stands above the rows.
func (m *Model) heading() []string {
	lines := m.snapshot.heading(m.order, m.width)
	if m.paused {
		lines[0] = cut(lines[0]+"  PAUSED", m.width)
	}
	return lines
}

// View draws the screen.
func (m Model) View() tea.View {
	view := tea.NewView(strings.Join(m.lines(), "\n"))
	view.AltScreen = true
	return view
}

// lines are the screen's, from the first to the last.
func (m *Model) lines() []string {
	if m.width == 0 || m.height == 0 {
		return nil // before the terminal has told its size
	}
	var lines []string
	footer := "Enter look into  PTFR sort  dpcn group  Space pause  ? help  q quit"
	switch {
	case m.help:
		for _, line := range strings.Split(help, "\n") {
			lines = append(lines, cut(line, m.width))
		}
		footer = "any key goes back"
	case m.snapshot == nil:
		lines = []string{cut("twtrace top: waiting for the first numbers", m.width)}
	case m.snapshot.View.Inside:
		lines = m.connections()
		footer = "q Esc back  j k g G move  Space pause  ? help"
	default:
		lines = m.table()
	}
	for len(lines) < m.height {
		lines = append(lines, "")
	}
	return append(lines[:m.height-1], m.styles.title.Render(cut(footer, m.width)))
}

// table draws the rows that the screen has room for.
func (m *Model) table() []string {
	lines := m.styledHeading()
	rows := m.snapshot.Rows[m.top:min(m.top+m.room(), len(m.snapshot.Rows))]
	titles, texts := render(m.snapshot.View.Group.columns(), rows, m.width-1)
	lines = append(lines, m.styles.title.Render(cut(" "+titles, m.width)))
	for i, text := range texts {
		if m.top+i == m.selected {
			cursor := string(appendCell(nil, ">"+text, m.width, true))
			lines = append(lines, m.styles.cursor.Render(cursor))
			continue
		}
		lines = append(lines, m.styleOf(&rows[i]).Render(cut(" "+text, m.width)))
	}
	if len(rows) == 0 {
		lines = append(lines, cut(" "+nothing, m.width))
	}
	return lines
}

func (m *Model) styledHeading() []string {
	lines := m.heading()
	for i := range lines {
		switch {
		case i == 0:
			lines[i] = m.styles.title.Render(lines[i])
		case strings.HasPrefix(lines[i], noteSign):
			lines[i] = m.styles.warning.Render(lines[i])
		}
	}
	return lines
}

// styleOf is how to paint a row: by how few ports are left, and whether connects
// fail.
func (m *Model) styleOf(r *Row) lipgloss.Style {
	const scarce, few = 0.95, 0.80
	switch {
	case share(&r.Ports) >= scarce:
		return m.styles.alarm
	case share(&r.Ports) >= few, r.Failures > 0:
		return m.styles.warning
	default:
		return m.styles.plain
	}
}

// connections draws the connections behind a row, as many as the screen has room
// for.
func (m *Model) connections() []string {
	lines := m.styledHeading()
	s := m.snapshot
	shown := s.Connections[m.top:min(m.top+m.room(), len(s.Connections))]
	titles, texts := render(connectionColumns(s.View), shown, m.width)
	lines = append(lines, m.styles.title.Render(cut(titles, m.width)))
	for _, text := range texts {
		lines = append(lines, cut(text, m.width))
	}
	if len(shown) == 0 {
		lines = append(lines, cut("no connection and no TIME_WAIT now", m.width))
	}
	return lines
}

const help = `twtrace top: who holds local ports, waits in TIME_WAIT, connects and fails

  Up Down j k  PgUp PgDn  g G   move           Enter   the TIME_WAITs of a row
  P  sort by pressure           d  by destination      q Esc   back
  T  sort by TIME_WAIT          p  by process          q       quit
  F  sort by failures           c  by container        Space   pause
  R  sort by rate               n  by netns            Ctrl-Z  suspend

  PORTS      local ports taken toward a destination, of those that connects
             from that address may choose from; USE% is their share. A row of
             other groups tells of its fullest destination.
  LIVE       connects that are not over
  TIME_WAIT  connections in TIME_WAIT, of connects and of accepts; those that
             take none of these ports are "any, on" their own
  CONN/s     connects that ended, well or not, in the last interval
  FAIL       connects that failed in the last minute
  FULL IN    until no port is left, at the rate of the last 10 to 20 s; "-"
             for more than an hour
  ENDS IN    until a TIME_WAIT ends by itself; "<60 s" where it is older than
             this run`
