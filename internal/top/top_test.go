package top

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/rendertest"
	"github.com/twtrace/twtrace/internal/track"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// A world is what a tracker knows.
type world struct {
	destinations []track.Destination
	connections  []track.Connection
}

var (
	pod   = event.NetNS{Inode: 4026532246, Cookie: 7}
	host  = event.NetNS{Inode: 4026531840, Cookie: 1}
	web   = &event.Cgroup{Container: "9001000000000000", Name: "web", Pod: "api-x", Namespace: "shop"}
	curl  = event.Owner{PID: 4711, Comm: "curl", Cgroup: 9001, In: web}
	java  = event.Owner{PID: 1234567, UID: 1000, Comm: "http-nio-8080-e", Cgroup: 123456}
	nginx = event.Owner{PID: 80, UID: 33, Comm: "nginx", Cgroup: 9001, In: web}
	evil  = event.Owner{PID: 666, Comm: "\x1b[2J名前\n", Cgroup: 666, In: &event.Cgroup{Container: "6660000000000000", Name: "\x1b[2J名\n"}}
)

func socketOf(netns event.NetNS, local, peer string, owner event.Owner) event.Socket {
	return event.Socket{NetNS: netns, Owner: owner, Tuple: event.Tuple{
		Local: netip.MustParseAddrPort(local), Peer: netip.MustParseAddrPort(peer),
	}}
}

// hold adds n connections of owner, on ports from that of local on.
func (w *world) hold(n int, c track.Connection, netns event.NetNS, local, peer string, owner event.Owner) {
	first := netip.MustParseAddrPort(local)
	for i := range n {
		c.Socket = socketOf(netns, local, peer, owner)
		c.Socket.Tuple.Local = netip.AddrPortFrom(first.Addr(), first.Port()+uint16(i))
		w.connections = append(w.connections, c)
	}
}

// aWorld has something of everything.
func aWorld() *world {
	var w world
	waits := track.Connection{TimeWait: true, HoldsPort: true, EndsIn: 42*time.Second + 1}
	live := track.Connection{HoldsPort: true}

	w.destinations = append(w.destinations, track.Destination{
		Socket: socketOf(pod, "10.244.0.12:0", "20.50.2.7:443", event.Owner{}),
		Ports:  record.PortsFields{InUse: 98, TimeWait: 95, Usable: 100, ExhaustedIn: 12300 * time.Millisecond, Exhausts: true},
	})
	w.hold(90, waits, pod, "10.244.0.12:40000", "20.50.2.7:443", java)
	old := waits
	old.EndsIn = 0
	w.hold(5, old, pod, "10.244.0.12:40100", "20.50.2.7:443", event.Owner{})
	w.hold(3, live, pod, "10.244.0.12:40200", "20.50.2.7:443", curl)

	w.destinations = append(w.destinations, track.Destination{
		Socket: socketOf(host, "127.0.0.1:0", "127.0.0.1:80", event.Owner{}),
		Ports:  record.PortsFields{InUse: 1, TimeWait: 1, Usable: 1, Exhausts: true},
	})
	waits.EndsIn = 3 * time.Second
	w.hold(1, waits, host, "127.0.0.1:32768", "127.0.0.1:80", curl)

	w.destinations = append(w.destinations, track.Destination{
		Socket: socketOf(host, "[2001:db8:85a3:1111:2222:8a2e:370:7334]:0", "[2001:db8:85a3:1111:2222:8a2e:370:9999]:65535", event.Owner{}),
		Ports:  record.PortsFields{InUse: 2, Usable: 28232, ExhaustedIn: 100 * time.Hour, Exhausts: true},
	})
	w.hold(2, live, host, "[2001:db8:85a3:1111:2222:8a2e:370:7334]:50000", "[2001:db8:85a3:1111:2222:8a2e:370:9999]:65535", evil)

	for i := range 20 {
		w.hold(1, track.Connection{TimeWait: true, EndsIn: time.Minute}, pod, "10.244.0.12:8080", fmt.Sprintf("10.244.0.%d:50000", i+20), nginx)
	}
	return &w
}

// second is the events' clock's, where the tests begin.
const second = int64(time.Second)

func connects(c *Collector, n int, netns event.NetNS, local, peer string, owner event.Owner, outcome record.Outcome) {
	for range n {
		c.Observe([]record.Record{
			{Kind: record.State},
			{Kind: record.Connect, Time: c.now, Socket: socketOf(netns, local, peer, owner), Connect: record.ConnectFields{Outcome: outcome}},
		})
	}
}

func (w *world) snapshot(c *Collector, view View) *Snapshot {
	s := c.Snapshot(view, slices.Values(w.destinations), slices.Values(w.connections))
	s.Time = time.Date(2026, 1, 2, 13, 4, 5, 0, time.UTC)
	s.Every = 2 * time.Second
	return s
}

// aCollector has counted connects for two seconds.
func aCollector() *Collector {
	c := NewCollector(second)
	c.Advance(2 * second)
	connects(c, 301, pod, "10.244.0.12:40000", "20.50.2.7:443", java, record.Established)
	connects(c, 7, pod, "10.244.0.12:40000", "20.50.2.7:443", java, record.NoLocalPort)
	connects(c, 3, host, "0.0.0.0:0", "192.0.2.1:443", curl, record.Unreachable)
	c.Advance(3 * second)
	connects(c, 1, pod, "10.244.0.12:40000", "20.50.2.7:443", java, record.TimedOut)
	c.EndInterval()
	return c
}

// TestTable: every group, as wide as it likes and at 80, 120 and 160 columns.
func TestTable(t *testing.T) {
	for _, width := range []int{0, 80, 120, 160} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			var text []byte
			for group := range GroupNames {
				s := aWorld().snapshot(aCollector(), View{Group: Group(group)})
				s.Notes = append(s.Notes, "17 events lost in the kernel: the numbers may be wrong")
				text = s.AppendTable(text, ByPressure, width)
			}
			text = (&Snapshot{}).AppendTable(text, ByPressure, width)
			golden(t, fmt.Sprintf("table-%d.txt", width), string(text))
			checkText(t, string(text), width)
		})
	}
}

// checkText checks that nothing is wider than the screen, or moves the cursor.
func checkText(t *testing.T, text string, width int) {
	t.Helper()
	for _, line := range strings.Split(text, "\n") {
		if n := columnsIn(line); width > 0 && n > width {
			t.Errorf("%d columns: %q", n, line)
		}
		if strings.ContainsAny(line, "\x1b\r\t") {
			t.Errorf("not plain: %q", line)
		}
	}
}

func TestNarrow(t *testing.T) {
	for width := 1; width < 250; width += 3 {
		for group := range GroupNames {
			s := aWorld().snapshot(aCollector(), View{Group: Group(group)})
			checkText(t, string(s.AppendTable(nil, ByRate, width)), width)
		}
	}
}

// TestTotals: the header's numbers are those of all rows, whatever the group.
func TestTotals(t *testing.T) {
	for group := range GroupNames {
		s := aWorld().snapshot(aCollector(), View{Group: Group(group)})
		var sum Row
		for _, r := range s.Rows {
			sum.Live += r.Live
			sum.TimeWait += r.TimeWait
			sum.Failures += r.Failures
			sum.Rate += r.Rate
		}
		if s.Live != 5 || s.TimeWait != 116 || s.Failures != 11 || s.Rate != 312/2. {
			t.Errorf("%s: %d live, %d TIME_WAIT, %d failures, %g/s", s.View.Group, s.Live, s.TimeWait, s.Failures, s.Rate)
		}
		if sum.Live != s.Live || sum.TimeWait != s.TimeWait || sum.Failures != s.Failures || sum.Rate != s.Rate {
			t.Errorf("%s: the rows have %+v", s.View.Group, sum)
		}
	}
}

func TestSort(t *testing.T) {
	row := func(pid uint32, used uint32, timeWait int, failures uint64, rate float64) Row {
		return Row{
			Key: Key{PID: pid}, Ports: record.PortsFields{InUse: used, Usable: 100},
			TimeWait: timeWait, Failures: failures, Rate: rate,
		}
	}
	rows := []Row{
		row(5, 0, 0, 0, 0), row(1, 50, 3, 0, 9), row(2, 90, 1, 4, 1), row(3, 10, 2, 4, 8), row(4, 0, 0, 0, 0),
	}
	for order, want := range [][]uint32{
		ByPressure: {2, 1, 3, 4, 5},
		ByTimeWait: {1, 3, 2, 4, 5},
		ByFailures: {2, 3, 1, 4, 5},
		ByRate:     {1, 3, 2, 4, 5},
	} {
		for range 3 { // from any order to the same
			Order(order).sort(rows)
			var got []uint32
			for _, r := range rows {
				got = append(got, r.Key.PID)
			}
			if !slices.Equal(got, want) {
				t.Errorf("by %s: %v, want %v", Order(order), got, want)
			}
			slices.Reverse(rows)
		}
	}
}

func TestParse(t *testing.T) {
	for i, name := range GroupNames {
		if g, err := ParseGroup(name); err != nil || int(g) != i || g.String() != name {
			t.Errorf("%s: %v, %v", name, g, err)
		}
	}
	for i, name := range OrderNames {
		if o, err := ParseOrder(name); err != nil || int(o) != i || o.String() != name {
			t.Errorf("%s: %v, %v", name, o, err)
		}
	}
	if _, err := ParseOrder("pid"); err == nil {
		t.Error("pid is an order")
	}
}

// TestMinute: a connect counts for a minute, and then its row is gone.
func TestMinute(t *testing.T) {
	c := NewCollector(0)
	fails := func(n int) {
		connects(c, n, pod, "10.0.0.1:40000", "10.0.0.2:80", curl, record.Refused)
	}
	failures := func() uint64 {
		s := (&world{}).snapshot(c, View{})
		if len(s.Rows) == 0 {
			return 0
		}
		return s.Rows[0].Failures
	}
	fails(3)
	c.Advance(30 * second)
	fails(2)
	c.EndInterval()
	for _, at := range []struct{ second, failures int64 }{{31, 5}, {60, 5}, {61, 2}, {90, 2}, {91, 0}, {5000, 0}} {
		c.Advance(at.second * second)
		if got := failures(); got != uint64(at.failures) {
			t.Errorf("%d failures after %d s, want %d", got, at.second, at.failures)
		}
	}
	if len(c.tallies) > 0 {
		t.Errorf("%d counters are left", len(c.tallies))
	}
}

// TestBounds: what there is no room for is counted, and said.
func TestBounds(t *testing.T) {
	c := NewCollector(0)
	const more = 10
	for i := range maxTallies + more {
		owner := curl
		owner.PID = uint32(i + 1)
		connects(c, 1, pod, "10.0.0.1:40000", "10.0.0.2:80", owner, record.Refused)
	}
	c.Advance(second)
	c.EndInterval()
	s := (&world{}).snapshot(c, View{})
	if s.Failures != maxTallies+more || s.Rows[0].Failures != maxTallies || len(s.Notes) != 1 {
		t.Errorf("%d failures, %d of them in a row, %q", s.Failures, s.Rows[0].Failures, s.Notes)
	}

	var w world
	for range maxConnections/1000 + 1 {
		w.hold(1000, track.Connection{TimeWait: true, HoldsPort: true}, pod, "10.0.0.1:40000", "10.0.0.2:80", curl)
	}
	s = w.snapshot(c, View{Group: ByNetNS, Inside: true, Row: Key{NetNS: pod}})
	if len(s.Connections) != maxConnections || s.Omitted != len(w.connections)-maxConnections {
		t.Errorf("%d connections and %d not, of %d", len(s.Connections), s.Omitted, len(w.connections))
	}
}

// A screen is a Model with somebody before it.
type screen struct {
	t     *testing.T
	model tea.Model
	asked []View
	world *world
	count *Collector
}

func newScreen(t *testing.T, width, height int) *screen {
	s := &screen{t: t, world: aWorld(), count: aCollector()}
	s.model = NewModel(View{}, ByPressure, false, nil, func(v View) { s.asked = append(s.asked, v) })
	s.send(tea.WindowSizeMsg{Width: width, Height: height})
	s.send(s.world.snapshot(s.count, View{}))
	return s
}

func (s *screen) send(message tea.Msg) tea.Cmd {
	var command tea.Cmd
	s.model, command = s.model.Update(message)
	return command
}

// press presses keys, and hands over the views that they ask for.
func (s *screen) press(keys ...string) {
	for _, key := range keys {
		model := s.model.(Model)
		s.model, _ = model.press(key)
		for _, view := range s.asked {
			s.send(s.world.snapshot(s.count, view))
		}
		s.asked = nil
	}
}

// text is what is on the screen, without how it is painted.
func (s *screen) text() string {
	s.t.Helper()
	text := s.model.View().Content
	for {
		before, after, found := strings.Cut(text, "\x1b[")
		if !found {
			break
		}
		_, after, _ = strings.Cut(after, "m")
		text = before + after
	}
	model := s.model.(Model)
	if n := strings.Count(text, "\n") + 1; n != model.height {
		s.t.Errorf("%d lines on a screen of %d", n, model.height)
	}
	checkText(s.t, text, model.width)
	var trimmed strings.Builder
	for line := range strings.Lines(text + "\n") {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return trimmed.String()
}

// TestScreens: what a user sees who looks around.
func TestScreens(t *testing.T) {
	for _, size := range [][2]int{{80, 24}, {160, 20}} {
		t.Run(fmt.Sprint(size[0]), func(t *testing.T) {
			s := newScreen(t, size[0], size[1])
			var all strings.Builder
			for _, step := range [][]string{
				nil, {"down", "F"}, {"enter"}, {"pgdown"}, {"q", "space", "p"}, {"space", "c", "T", "G"}, {"n", "enter"}, {"esc", "?"},
			} {
				s.press(step...)
				fmt.Fprintf(&all, "--- %s\n%s", strings.Join(step, " "), s.text())
			}
			golden(t, fmt.Sprintf("screens-%d.txt", size[0]), all.String())
		})
	}
}

func (s *screen) selected() Key {
	m := s.model.(Model)
	return m.snapshot.Rows[m.selected].Key
}

// TestCursor: it follows its row, stays at the top where it was put there, and
// finds its row again.
func TestCursor(t *testing.T) {
	s := newScreen(t, 80, 24)
	first := s.selected()
	s.press("j")
	second := s.selected()
	if first == second {
		t.Fatal("j moves nowhere")
	}
	s.press("T", "R", "F", "P")
	if s.selected() != second {
		t.Error("the cursor did not go with its row")
	}
	s.press("enter", "G", "q")
	if s.selected() != second {
		t.Error("the cursor is elsewhere after a look into its row")
	}
	s.press("g", "T")
	if top := s.model.(Model).selected; top != 0 {
		t.Errorf("the cursor left the top for row %d", top)
	}
	s.world = &world{}
	s.count = NewCollector(0)
	s.send(s.world.snapshot(s.count, View{}))
	s.press("G", "k", "enter", "P", "pgdown")
	if !strings.Contains(s.text(), nothing) {
		t.Errorf("an empty table:\n%s", s.text())
	}
}

// TestSmall: no screen is too small for any key.
func TestSmall(t *testing.T) {
	for width := 1; width < 12; width += 5 {
		for height := 1; height < 8; height++ {
			s := newScreen(t, width, height)
			for _, key := range []string{"G", "enter", "G", "pgup", "q", "pgdown", "?", "x", "n", "down", "enter", "esc"} {
				s.press(key)
				s.text()
			}
		}
	}
}

// TestPause: a paused table stands still, but lets the user look elsewhere.
func TestPause(t *testing.T) {
	s := newScreen(t, 80, 24)
	s.press("space")
	before := s.text()
	s.world = &world{}
	s.send(s.world.snapshot(s.count, View{}))
	if got := s.text(); got != before {
		t.Errorf("it changed while paused: %s", cmp.Diff(before, got))
	}
	s.press("n")
	if got := s.text(); !strings.Contains(got, "by netns") || !strings.Contains(got, "PAUSED") {
		t.Errorf("another view while paused:\n%s", got)
	}
	// A table that was on its way when the user went elsewhere.
	s.send(s.world.snapshot(s.count, View{Group: ByProcess}))
	if got := s.text(); !strings.Contains(got, "by netns") {
		t.Errorf("a view that was left came back:\n%s", got)
	}
}

func TestQuit(t *testing.T) {
	for _, keys := range [][]string{{"q"}, {"ctrl+c"}, {"enter", "q", "q"}, {"?", "ctrl+c"}} {
		s := newScreen(t, 80, 24)
		s.press(keys[:len(keys)-1]...)
		_, command := s.model.(Model).press(keys[len(keys)-1])
		if command == nil {
			t.Fatalf("%q does not quit", keys)
		}
		if _, quits := command().(tea.QuitMsg); !quits {
			t.Errorf("%q does not quit", keys)
		}
	}
}

// FuzzScreens: whatever processes and containers call themselves, the table and the
// screen stay harmless, and as large as they are.
func FuzzScreens(f *testing.F) {
	for _, name := range rendertest.Names {
		for group := range GroupNames {
			f.Add(name, byte(group), 80)
		}
	}
	f.Fuzz(func(t *testing.T, name string, group byte, width int) {
		view := View{Group: Group(int(group) % len(GroupNames))}
		owner := event.Owner{PID: 666, Cgroup: 666, In: &event.Cgroup{}}
		rendertest.Fill(&owner, name)
		c, w := NewCollector(second), new(world)
		w.hold(1, track.Connection{TimeWait: true}, host, "127.0.0.1:1", "127.0.0.1:2", owner)
		connects(c, 1, pod, "127.0.0.1:1", "127.0.0.1:2", owner, record.Refused)

		width = int(uint(width) % 300)
		text := string(w.snapshot(c, view).AppendTable(nil, ByPressure, width))
		rendertest.Check(t, text)
		checkText(t, text, width)

		s := &screen{t: t, world: w, count: c}
		s.model = NewModel(view, ByPressure, false, nil, func(v View) { s.asked = append(s.asked, v) })
		s.send(tea.WindowSizeMsg{Width: width + 1, Height: 24})
		s.send(w.snapshot(c, view))
		rendertest.Check(t, s.text())
		s.press("enter")
		rendertest.Check(t, s.text())
	})
}
