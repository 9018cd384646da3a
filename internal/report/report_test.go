package report

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/rendertest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestText: a log of five scenarios of the lab, in words.
func TestText(t *testing.T) {
	log, err := os.ReadFile("testdata/incident.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	if err := collect(t, Options{}, log).WriteText(&text, 0); err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/incident.txt"
	if *update {
		if err := os.WriteFile(golden, text.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), text.String()); diff != "" {
		t.Errorf("%s, and the report:\n%s", golden, diff)
	}
}

// begin is when the runs of these tests began: 2026-11-23T04:00:00Z.
const begin = int64(1795406400_000000000)

// A writer writes the log of a run.
type writer struct {
	tb      testing.TB
	w       io.Writer
	buffer  []byte
	seq     uint64
	now     int64
	started int64
	summary record.SummaryFields
}

func newWriter(tb testing.TB, w io.Writer) *writer {
	l := &writer{tb: tb, w: w, now: begin, started: begin}
	l.summary.Verdicts = make(map[string]uint64)
	l.meta()
	return l
}

// meta stands at the head of each file of a run.
func (l *writer) meta() {
	l.write(record.Record{Kind: record.Meta, Meta: &record.MetaFields{
		Version: "test", Kernel: "6.18.0", Arch: "amd64", BootID: "b", Node: "n", Started: l.started,
	}})
}

func (l *writer) write(r record.Record) {
	l.now += 1000
	r.Time = l.now
	l.buffer = r.AppendJSON(l.buffer[:0], l.seq)
	l.seq++
	l.summary.Events[r.Kind]++
	if r.Kind == record.Connect {
		l.summary.Connects[r.Connect.Outcome]++
	}
	if r.Verdict != nil {
		l.summary.Verdicts[r.Verdict.Cause()]++
	}
	if _, err := l.w.Write(l.buffer); err != nil {
		l.tb.Fatal(err)
	}
}

func (l *writer) end() {
	l.summary.Duration = time.Duration(l.now - l.started)
	l.write(record.Record{Kind: record.Summary, Summary: &l.summary})
}

// socket is that of connection i, toward one of a few hundred destinations.
func socket(i int) event.Socket {
	return event.Socket{
		Cookie: uint64(i + 1), NetNS: event.NetNS{Inode: 4026532785, Cookie: 4098},
		Tuple: event.Tuple{
			Local: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 244, 1, 7}), uint16(32768+i%28000)),
			Peer:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{20, 1, 2, byte(i % 200)}), 443),
		},
		Owner: event.Owner{PID: 4711, TID: 4712, UID: 1000, Comm: fmt.Sprint("worker-", i%7), Cgroup: uint64(9000 + i%5)},
	}
}

// connection writes the whole life of one, and sometimes what stands in its way.
func (l *writer) connection(i int) {
	s := socket(i)
	state := func(old, new event.State) record.Record {
		return record.Record{Kind: record.State, Socket: s, State: record.StateFields{Old: old, New: new, Duration: 152344}}
	}
	l.write(state(event.Close, event.SynSent))
	if i%50 == 7 {
		l.write(record.Record{Kind: record.Drop, Socket: s, Drop: record.DropFields{Packet: event.SYN, Reason: "NETFILTER_DROP", NetNS: s.NetNS}})
		l.write(state(event.SynSent, event.Close))
		l.write(record.Record{
			Kind: record.Connect, Socket: s,
			Connect: record.ConnectFields{Outcome: record.TimedOut, Errno: syscall.ETIMEDOUT, Duration: 3 * time.Second, Retransmits: 1},
			Verdict: &record.VerdictFields{
				ID: "syn_dropped_local", Confidence: record.Certain, Text: "dropped here", Advice: "nft list ruleset",
				Evidence: []record.Evidence{{Line: l.seq - 1, Text: "a SYN was dropped"}},
			},
		})
		return
	}
	l.write(state(event.SynSent, event.Established))
	l.write(record.Record{Kind: record.Connect, Socket: s, Connect: record.ConnectFields{Outcome: record.Established, Duration: time.Duration(100+i%900) * time.Microsecond}})
	l.write(state(event.Established, event.FinWait1))
	l.write(state(event.FinWait1, event.FinWait2))
	l.write(state(event.FinWait2, event.Close))
	l.write(record.Record{Kind: record.Close, Socket: s, Close: record.CloseFields{By: record.ByLocal, Duration: time.Second, BytesSent: 74, BytesReceived: 150}})
	l.write(record.Record{Kind: record.TimeWaitEnter, Socket: s, TimeWait: record.TimeWaitFields{SameDestination: 1}})
	l.write(record.Record{Kind: record.TimeWaitEnd, Socket: s, TimeWait: record.TimeWaitFields{Ended: event.Expired, Duration: time.Minute, Exact: true}})
}

// logOf is the log of a run with so many connections.
func logOf(tb testing.TB, connections int) ([]byte, *writer) {
	var log bytes.Buffer
	l := newWriter(tb, &log)
	for i := range connections {
		l.connection(i)
	}
	l.end()
	return log.Bytes(), l
}

// collect reads logs that lie in files.
func collect(tb testing.TB, options Options, logs ...[]byte) *Report {
	tb.Helper()
	var paths []string
	dir := tb.TempDir()
	for i, log := range logs {
		path := filepath.Join(dir, fmt.Sprintf("%d.jsonl", i))
		if err := os.WriteFile(path, log, 0o600); err != nil {
			tb.Fatal(err)
		}
		paths = append(paths, path)
	}
	opened, err := Open(paths, nil)
	if err != nil {
		tb.Fatal(err)
	}
	c := NewCollector(options)
	if err := opened.Collect(c, func(int) {}); err != nil {
		tb.Fatal(err)
	}
	return c.Report()
}

// sameAsSummary asserts that the report has the figures of the run's own summary.
func sameAsSummary(t *testing.T, r *Report, s *record.SummaryFields) {
	t.Helper()
	events, connects := make(map[string]uint64), make(map[string]uint64)
	for kind, n := range s.Events {
		if n > 0 && record.Kind(kind) != record.Summary {
			events[record.Kind(kind).String()] = n
		}
	}
	for outcome, n := range s.Connects {
		if n > 0 {
			connects[record.Outcome(outcome).String()] = n
		}
	}
	if diff := cmp.Diff(events, r.Events); diff != "" {
		t.Errorf("events of the summary, and of the report:\n%s", diff)
	}
	if diff := cmp.Diff(connects, r.Connects); diff != "" {
		t.Errorf("connects of the summary, and of the report:\n%s", diff)
	}
	if diff := cmp.Diff(s.Verdicts, r.Verdicts); diff != "" {
		t.Errorf("verdicts of the summary, and of the report:\n%s", diff)
	}
}

func TestReport(t *testing.T) {
	const connections = 2000
	log, l := logOf(t, connections)
	r := collect(t, Options{}, log)
	sameAsSummary(t, r, &l.summary)
	const failed = connections / 50
	switch {
	case r.Truncated, r.DamagedLines+r.MissingLines+r.RepeatedLines != 0, len(r.Runs) != 1, !r.Runs[0].Complete:
		t.Errorf("a whole log is truncated (%t) or has damage: %+v", r.Truncated, r.Runs)
	case r.TimeWait.Entered != connections-failed, r.TimeWait.Ended["expired"] != connections-failed:
		t.Errorf("TIME_WAITs: %+v", r.TimeWait)
	case r.Drops["NETFILTER_DROP"] != failed:
		t.Errorf("drops: %v", r.Drops)
	case r.Latency.Established.Count != connections-failed, r.Latency.Failed.P50 != 3000, r.Latency.Established.Max != 0.999:
		t.Errorf("latency: %+v", r.Latency)
	case len(r.Destinations.Rows) != 200, r.Destinations.Rows[0].Failed != 10, r.Destinations.Rows[0].Outcomes["timed_out"] != 10:
		t.Errorf("%d destinations, the first is %+v", len(r.Destinations.Rows), r.Destinations.Rows[0])
	case len(r.Processes.Rows) != 7, len(r.Containers.Rows) != 5:
		t.Errorf("%d processes, %d containers", len(r.Processes.Rows), len(r.Containers.Rows))
	case sum64(r.Timeline.Established) != connections-failed, sum64(r.Timeline.Failed) != failed:
		t.Errorf("timeline: %+v", r.Timeline)
	case len(r.Incidents) != 4, r.Incidents[0].Count != 10:
		t.Errorf("%d incidents, the first %+v", len(r.Incidents), r.Incidents[0])
	}
	in := r.Incidents[0]
	if e := in.Evidence[0]; in.Cause != "syn_dropped_local" || in.Peer == "" || e.Seq == nil ||
		!strings.Contains(e.Line, `"event":"drop"`) || !strings.Contains(e.Line, fmt.Sprintf(`"seq":%d,`, *e.Seq)) {
		t.Errorf("incident %+v", in)
	}
}

// TestCut: a log that is cut anywhere is reported to its last whole line, as truncated.
func TestCut(t *testing.T) {
	small, _ := logOf(t, 1)
	large, _ := logOf(t, 100)
	for i := range len(small) + 1000 {
		log, cut := small, i
		if i >= len(small) {
			log, cut = large, rand.IntN(len(large))
		}
		r := collect(t, Options{}, log[:cut])
		if want := uint64(bytes.Count(log[:cut], []byte("\n"))); r.Lines != want || !r.Truncated || r.DamagedLines > 0 {
			t.Fatalf("cut at %d: %d lines, truncated %t, %d damaged; want %d, true, 0", cut, r.Lines, r.Truncated, r.DamagedLines, want)
		}
	}
}

// TestRotated: the files of a run make the same report in any order, and a file that is
// there twice counts once.
func TestRotated(t *testing.T) {
	var whole bytes.Buffer
	l := newWriter(t, &whole)
	parts := [][]byte{}
	for i := range 500 {
		if i > 0 && i%100 == 0 {
			parts = append(parts, bytes.Clone(whole.Bytes()))
			whole.Reset()
			l.meta()
		}
		l.connection(i)
	}
	l.end()
	parts = append(parts, bytes.Clone(whole.Bytes()))
	want := collect(t, Options{}, parts...)
	sameAsSummary(t, want, &l.summary)
	if want.Truncated || want.MissingLines > 0 {
		t.Errorf("truncated %t, %d lines missing", want.Truncated, want.MissingLines)
	}
	for range 5 {
		rand.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		if diff := cmp.Diff(want, collect(t, Options{}, parts...)); diff != "" {
			t.Fatalf("in another order:\n%s", diff)
		}
	}
	twice := collect(t, Options{}, append(parts, parts[0])...)
	if twice.Lines != want.Lines || twice.RepeatedLines == 0 {
		t.Errorf("with a file twice: %d lines and %d repeated, want %d and some", twice.Lines, twice.RepeatedLines, want.Lines)
	}
	sort := func(a, b []byte) int { return bytes.Compare(a[:200], b[:200]) }
	slices.SortFunc(parts, sort)
	if r := collect(t, Options{}, parts[1:]...); r.MissingLines == 0 || len(r.NotShown) == len(want.NotShown) {
		t.Errorf("without the first file: %d lines are missing, and it is not said", r.MissingLines)
	}
	if r := collect(t, Options{}, parts[0], parts[2], parts[3], parts[4]); r.MissingLines == 0 || r.Truncated {
		t.Errorf("without a file: %d lines are missing, truncated %t", r.MissingLines, r.Truncated)
	}
}

// TestDamaged: a line that can't be read costs no other, and is told by its number.
func TestDamaged(t *testing.T) {
	log, _ := logOf(t, 100)
	lines := bytes.SplitAfter(log, []byte("\n"))
	lines[7] = append(bytes.Repeat([]byte("x"), 3<<20), '\n')
	lines[9] = lines[9][:len(lines[9])/2] // torn in the middle of the log
	r := collect(t, Options{}, bytes.Join(lines, nil))
	if r.DamagedLines != 2 || r.Damaged[0].Line != 8 || r.Damaged[1].Line != 10 || r.Lines != uint64(len(lines)-1-3) || r.Truncated {
		t.Errorf("%d lines, damaged: %+v, truncated %t", r.Lines, r.Damaged, r.Truncated)
	}
}

// TestNoLog: what is no log is refused in one line.
func TestNoLog(t *testing.T) {
	dir := t.TempDir()
	random := make([]byte, 1<<20)
	if _, err := rand.NewChaCha8([32]byte{}).Read(random); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		content []byte
		want    string
	}{
		"random":   {random, "not an event log: line "},
		"json":     {[]byte("{\"a\":1}\n"), `not an event log: line 1: no schema "twtrace/1"`},
		"text":     {[]byte("hello"), `not an event log: it does not begin with {"schema":"twtrace/1"`},
		"one line": {bytes.Repeat([]byte("x"), 100<<20), "not an event log: line 1: longer than 64 KiB"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, c.content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open([]string{path}, nil)
		if err == nil || !strings.HasPrefix(err.Error(), "read "+path+": "+c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
	for path, want := range map[string]string{dir: "it is a directory: name the files in it", dir + "/none": "no such file or directory"} {
		if _, err := Open([]string{path}, nil); err == nil || err.Error() != "read "+path+": "+want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestNarrowed: only the lines count that are asked for.
func TestNarrowed(t *testing.T) {
	log, l := logOf(t, 100)
	half := begin + (l.now-begin)/2
	before, after := collect(t, Options{Until: half}, log), collect(t, Options{Since: half}, log)
	if before.Lines+after.Lines != l.seq || !before.Window.To.Before(after.Window.From) {
		t.Errorf("%d lines before and %d after, of %d", before.Lines, after.Lines, l.seq)
	}
	failures := collect(t, Options{Wants: func(r *record.Record) bool {
		return r.Kind == record.Connect && r.Connect.Outcome != record.Established
	}}, log)
	if len(failures.Events) != 2 || failures.Connects["timed_out"] != 2 || failures.Events["meta"] != 1 {
		t.Errorf("failures only: %v, %v", failures.Events, failures.Connects)
	}
	story := collect(t, Options{Connection: 8}, log).Connection // the first that fails
	if len(story.Lines) != 4 || story.Peer != "20.1.2.7:443" || story.Lines[3].Offset <= 0 ||
		!strings.Contains(story.Lines[1].Text, "SYN dropped") || !strings.Contains(story.Lines[3].Text, "why syn_dropped_local (certain)") {
		t.Errorf("its story: %+v", story)
	}
}

// TestNewer: what only a newer twtrace knows is counted once, as unknown.
func TestNewer(t *testing.T) {
	var log bytes.Buffer
	l := newWriter(t, &log)
	log.WriteString(`{"schema":"twtrace/1","time":"2026-11-23T04:00:01.000000000Z","seq":1,"event":"migration"}
{"schema":"twtrace/1","time":"2026-11-23T04:00:02.000000000Z","seq":2,"event":"connect","connect":{"outcome":"teleported","syn_retransmits":0}}
`)
	l.seq, l.now = 3, begin+3e9
	l.end()
	r := collect(t, Options{}, log.Bytes())
	want := map[string]uint64{"meta": 1, "unknown": 1, "connect": 1}
	if !cmp.Equal(r.Events, want) || !cmp.Equal(r.Connects, map[string]uint64{"unknown": 1}) ||
		r.UnknownKinds["migration"] != 1 || r.UnknownKeys["connect.outcome=teleported"] != 1 || r.MissingLines > 0 {
		t.Errorf("events %v, connects %v, kinds %v, keys %v", r.Events, r.Connects, r.UnknownKinds, r.UnknownKeys)
	}
}

// TestLost: states that are lost and imply themselves are told apart from events
// whose loss leaves something out.
func TestLost(t *testing.T) {
	for _, test := range []struct {
		lost   uint64
		states uint64
		want   []string
	}{
		{5, 5, []string{"5 changes of state were lost"}},
		{5, 3, []string{"3 changes of state were lost", "2 events were lost"}},
		{5, 0, []string{"5 events were lost"}},
	} {
		var log bytes.Buffer
		l := newWriter(t, &log)
		l.write(record.Record{Kind: record.Lost, Lost: record.LostFields{
			Count: test.lost, Since: begin, Where: record.InKernel, Kinds: &[record.Kinds]uint64{record.State: test.states},
		}})
		l.summary.LostKernel = test.lost
		l.end()
		r := collect(t, Options{}, log.Bytes())
		if want := (Lost{Kernel: test.lost, States: test.states}); r.Lost != want {
			t.Errorf("lost %+v, want %+v", r.Lost, want)
		}
		var told []string
		for _, spot := range r.NotShown {
			if strings.Contains(spot, "were lost") {
				told = append(told, strings.SplitAfter(spot, "were lost")[0])
			}
		}
		if !slices.Equal(told, test.want) {
			t.Errorf("%d lost, %d of them states: told %q, want %q", test.lost, test.states, told, test.want)
		}
	}
}

// TestClock: however the window grows, nothing is lost, and all lies in its slice.
func TestClock(t *testing.T) {
	for range 200 {
		c := newClock()
		var n counter
		var g gauge
		c.counters, c.gauges = []*counter{&n}, []*gauge{&g}
		times := make([]int64, 300)
		at := begin
		for i := range times {
			at += rand.Int64N(1 << rand.IntN(50))
			times[i] = at
		}
		if rand.IntN(2) == 0 {
			rand.Shuffle(len(times), func(i, j int) { times[i], times[j] = times[j], times[i] })
		}
		for _, at := range times {
			n[c.at(at)]++
		}
		total := uint64(0)
		for i, count := range n {
			if i >= c.used && count > 0 {
				t.Fatalf("slice %d of %d has %d", i, c.used, count)
			}
			total += count
		}
		want := make(map[int]uint64)
		for _, at := range times {
			want[int((at-c.from)/c.slice)]++
		}
		for i, count := range want {
			if n[i] != count {
				t.Fatalf("slice %d has %d, want %d", i, n[i], count)
			}
		}
		if total != uint64(len(times)) {
			t.Fatalf("%d of %d are counted", total, len(times))
		}
	}
}

// TestBounded: many destinations, processes and incidents take no more room than some.
func TestBounded(t *testing.T) {
	var log bytes.Buffer
	l := newWriter(t, &log)
	for i := range 3 * maxRows {
		s := socket(i)
		s.Tuple.Peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{30, 1, byte(i >> 8), byte(i)}), 443)
		s.Owner.Comm = fmt.Sprint("p", i)
		s.Owner.Cgroup = uint64(i + 1)
		r := record.Record{Kind: record.Connect, Socket: s, Connect: record.ConnectFields{Outcome: record.Established, Duration: time.Millisecond}}
		if i%2 == 0 {
			r.Connect.Outcome = record.Refused
			r.Verdict = &record.VerdictFields{ID: "refused", Confidence: record.Certain}
		}
		l.write(r)
	}
	l.end()
	r := collect(t, Options{}, log.Bytes())
	for name, table := range map[string]Table{"destinations": r.Destinations, "processes": r.Processes, "containers": r.Containers} {
		total, failed := table.Others.Connects, table.Others.Failed
		for _, row := range table.Rows {
			total, failed = total+row.Connects, failed+row.Failed
		}
		if total != 3*maxRows || failed != 3*maxRows/2 || len(table.Rows) > maxRows || table.Gone+uint64(len(table.Rows)) != 3*maxRows {
			t.Errorf("%s: %d rows, %d gone, %d connects, %d failed", name, len(table.Rows), table.Gone, total, failed)
		}
	}
	if len(r.Incidents) != maxIncidents || r.MoreIncidents != 3*maxRows/2-maxIncidents || r.Verdicts["refused"] != 3*maxRows/2 || len(r.PortUse) > maxUses {
		t.Errorf("%d incidents and %d more, %d verdicts, %d uses of ports", len(r.Incidents), r.MoreIncidents, r.Verdicts["refused"], len(r.PortUse))
	}
}

// named is the report of a log with a line of a kind whose every text is this one.
func named(t testing.TB, kind record.Kind, name string) *Report {
	t.Helper()
	var log []byte
	for i, kind := range []record.Kind{record.Meta, kind, record.Summary} {
		r := rendertest.Record(kind, name)
		log = r.AppendJSON(log, uint64(i))
	}
	reader, err := record.NewReader(bytes.NewReader(log))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	c := NewCollector(Options{Connection: 1, Filters: []string{name}})
	for {
		var r record.Record
		if err := reader.Read(&r); err == io.EOF {
			break
		} else if err == nil { // else it is damaged: a cause without a name
			c.Add(&r, reader.Raw())
		}
	}
	c.Damage(name, 1, name)
	c.EndFile(nil, map[string]uint64{name: 1}, map[string]uint64{name: 1})
	return c.Report()
}

// FuzzText: no text in a log can move the cursor of who reads the report, or forge a
// line of it.
func FuzzText(f *testing.F) {
	for _, name := range rendertest.Names {
		for kind := record.Meta; kind < record.Kinds; kind++ {
			f.Add(name, byte(kind-record.Meta))
		}
	}
	text := func(r *Report) string {
		var b strings.Builder
		if err := r.WriteText(&b, math.MaxInt16); err != nil {
			f.Fatal(err)
		}
		return b.String()
	}
	var most [record.Kinds]int // lines
	for kind := record.Meta; kind < record.Kinds; kind++ {
		most[kind] = strings.Count(text(named(f, kind, "x")), "\n")
	}
	f.Fuzz(func(t *testing.T, name string, kind byte) {
		of := record.Meta + record.Kind(kind)%(record.Kinds-record.Meta)
		got := text(named(t, of, name))
		rendertest.Check(t, got)
		if n := strings.Count(got, "\n"); n > most[of] {
			t.Errorf("%q: %d lines, want at most %d:\n%s", name, n, most[of], got)
		}
	})
}

func BenchmarkCollect(b *testing.B) {
	log, l := logOf(b, 10_000)
	b.SetBytes(int64(len(log)))
	b.ReportAllocs()
	for b.Loop() {
		logs, err := Open([]string{Stdin}, bytes.NewReader(log))
		if err != nil {
			b.Fatal(err)
		}
		c := NewCollector(Options{})
		if err := logs.Collect(c, func(int) {}); err != nil {
			b.Fatal(err)
		}
		if c.Report().Lines != l.seq {
			b.Fatal("not all lines were read")
		}
	}
	b.ReportMetric(float64(l.seq)*float64(b.N)/b.Elapsed().Seconds(), "lines/s")
}

func TestSpan(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"59.9 s": 59900 * time.Millisecond, "1m": time.Minute, "12m30s": 750 * time.Second, "10m": 10 * time.Minute,
		"1h": time.Hour, "1h0m30s": time.Hour + 30*time.Second, "20h10m": 20*time.Hour + 10*time.Minute,
	} {
		if got := span(d); got != want {
			t.Errorf("%s, not %s", got, want)
		}
	}
}
