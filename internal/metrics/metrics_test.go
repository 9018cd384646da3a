package metrics

import (
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

// start is 2026-11-23T04:00:00Z, in Unix nanoseconds.
const start = int64(1795406400_000000000)

func socket(local, peer string) event.Socket {
	return event.Socket{NetNS: event.NetNS{Inode: 7}, Tuple: event.Tuple{
		Local: netip.MustParseAddrPort(local), Peer: netip.MustParseAddrPort(peer),
	}}
}

// shop is a container that has names.
var shop = &event.Cgroup{Name: "b", Pod: "api-x", Namespace: "shop"}

// everything is a record of each thing that is counted.
func everything() []record.Record {
	here := socket("10.244.1.7:41988", "20.1.2.3:443")
	here.Owner.In = shop
	cause := &record.VerdictFields{ID: "late_success", Confidence: record.Likely,
		Inner: &record.VerdictFields{ID: "syn_unanswered", Confidence: record.Possible}}
	return []record.Record{
		{Kind: record.Meta}, {Kind: record.State, Socket: here},
		{Kind: record.Connect, Socket: here, Connect: record.ConnectFields{Outcome: record.Established, Duration: 3 * time.Millisecond}},
		{Kind: record.Connect, Socket: here, Verdict: cause, Connect: record.ConnectFields{Outcome: record.Established, Duration: 3 * time.Second}},
		{Kind: record.Connect, Socket: here, Connect: record.ConnectFields{Outcome: record.TimedOut, Errno: syscall.ETIMEDOUT}},
		{Kind: record.Connect, Socket: here, Connect: record.ConnectFields{Outcome: record.Failed, Errno: 524}},
		{Kind: record.TimeWaitEnd, Socket: here, TimeWait: record.TimeWaitFields{Ended: event.Expired}},
		{Kind: record.PortReuse, Socket: here, Reuse: &record.ReuseFields{How: record.TimeWaitReuse, After: 62 * time.Second}},
		{Kind: record.PortReuse, Socket: here, Reuse: &record.ReuseFields{How: record.ExplicitBind}},
		{Kind: record.SynRetransmit, Socket: here, SYN: record.SYNFields{SynAck: true}},
		{Kind: record.Drop, Socket: here, Drop: record.DropFields{Reason: "NETFILTER_DROP"}},
		{Kind: record.Drop, Socket: here},
		{Kind: record.Verdict, Verdict: &record.VerdictFields{ID: "tw_overflow", Confidence: record.Certain}},
	}
}

// tables are what the tracker would know: a destination at three quarters, with a
// connect and a TIME_WAIT, and a TIME_WAIT of an accept.
func tables() Tables {
	here := socket("10.244.1.7:41988", "20.1.2.3:443")
	here.Owner.In = shop
	toward := here
	toward.Tuple.Local = netip.MustParseAddrPort("10.244.1.7:0")
	return Tables{
		TimeWaits: true, AllPorts: true,
		Destinations: slices.Values([]track.Destination{{Socket: toward, Ports: record.PortsFields{InUse: 3, Usable: 4}}}),
		Connections: slices.Values([]track.Connection{
			{Socket: here, Active: true, HoldsPort: true},
			{Socket: here, TimeWait: true, Active: true, HoldsPort: true},
			{Socket: socket("10.244.1.7:80", "10.0.0.9:5000"), TimeWait: true},
		}),
	}
}

func TestMetrics(t *testing.T) {
	m := New(Config{Version: "1.2.3", Places: 10, Destinations: 10, Sent: func() (uint64, uint64) { return 5, 6 }})
	for _, r := range everything() {
		r.Time = start
		m.Observe(&r)
	}
	m.Lost(record.InKernel, 3)
	m.Lost(record.InKernel, 5)
	m.Lost(record.InOutput, 2)
	m.Take(tables(), start)
	const want = `
# HELP twtrace_connect_total Connects that ended, by outcome, errno and cause: "" where there is none.
# TYPE twtrace_connect_total counter
twtrace_connect_total{container="b",errno="",namespace="shop",outcome="established",pod="api-x",verdict=""} 1
twtrace_connect_total{container="b",errno="",namespace="shop",outcome="established",pod="api-x",verdict="syn_unanswered"} 1
twtrace_connect_total{container="b",errno="ERRNO_524",namespace="shop",outcome="failed",pod="api-x",verdict=""} 1
twtrace_connect_total{container="b",errno="ETIMEDOUT",namespace="shop",outcome="timed_out",pod="api-x",verdict=""} 1
# HELP twtrace_drops_total Packets of handshakes that the kernel threw away, by its own name for why: "" where it specifies none.
# TYPE twtrace_drops_total counter
twtrace_drops_total{container="b",namespace="shop",pod="api-x",reason=""} 1
twtrace_drops_total{container="b",namespace="shop",pod="api-x",reason="NETFILTER_DROP"} 1
# HELP twtrace_egress_connect_total Connects by destination, whatever became of them.
# TYPE twtrace_egress_connect_total counter
twtrace_egress_connect_total{container="b",destination="20.1.2.3:443",namespace="shop",pod="api-x"} 4
# HELP twtrace_egress_sockets Sockets of connects now, by destination and by whether they are open or in TIME_WAIT.
# TYPE twtrace_egress_sockets gauge
twtrace_egress_sockets{container="b",destination="20.1.2.3:443",namespace="shop",pod="api-x",state="open"} 1
twtrace_egress_sockets{container="b",destination="20.1.2.3:443",namespace="shop",pod="api-x",state="time_wait"} 1
# HELP twtrace_events_lost_total Events that were lost before they could be told (where="kernel"), and lines that no output took (where="output").
# TYPE twtrace_events_lost_total counter
twtrace_events_lost_total{where="kernel"} 5
twtrace_events_lost_total{where="output"} 2
# HELP twtrace_local_ports_used_ratio The share of the local port range that is taken toward one destination: of those that there are connects to, the fullest.
# TYPE twtrace_local_ports_used_ratio gauge
twtrace_local_ports_used_ratio{container="b",namespace="shop",pod="api-x"} 0.75
# HELP twtrace_otlp_records_total Log records that were made for OTLP, by what became of them.
# TYPE twtrace_otlp_records_total counter
twtrace_otlp_records_total{result="dropped"} 6
twtrace_otlp_records_total{result="sent"} 5
# HELP twtrace_syn_retransmits_total SYNs and SYN-ACKs that went out again.
# TYPE twtrace_syn_retransmits_total counter
twtrace_syn_retransmits_total{container="b",namespace="shop",packet="SYN-ACK",pod="api-x"} 1
# HELP twtrace_time_wait_end_total TIME_WAITs that ended, by how.
# TYPE twtrace_time_wait_end_total counter
twtrace_time_wait_end_total{container="b",how="expired",namespace="shop",pod="api-x"} 1
# HELP twtrace_time_wait_sockets Sockets in TIME_WAIT now, of connects and accepts.
# TYPE twtrace_time_wait_sockets gauge
twtrace_time_wait_sockets{container="",namespace="",pod=""} 1
twtrace_time_wait_sockets{container="b",namespace="shop",pod="api-x"} 1
# HELP twtrace_verdict_total Causes found, of connects and of others.
# TYPE twtrace_verdict_total counter
twtrace_verdict_total{confidence="certain",container="",namespace="",pod="",verdict="tw_overflow"} 1
twtrace_verdict_total{confidence="possible",container="b",namespace="shop",pod="api-x",verdict="syn_unanswered"} 1
`
	if err := testutil.GatherAndCompare(m.Registry, strings.NewReader(want),
		"twtrace_connect_total", "twtrace_drops_total", "twtrace_egress_connect_total", "twtrace_egress_sockets", "twtrace_events_lost_total",
		"twtrace_local_ports_used_ratio", "twtrace_otlp_records_total", "twtrace_syn_retransmits_total", "twtrace_time_wait_end_total",
		"twtrace_time_wait_sockets", "twtrace_verdict_total"); err != nil {
		t.Error(err)
	}
	histograms := gather(t, m)
	for name, want := range map[string]uint64{"twtrace_connect_duration_seconds": 2, "twtrace_port_reuse_gap_seconds": 1} {
		var count uint64
		for _, metric := range histograms[name].GetMetric() {
			h := metric.GetHistogram()
			count += h.GetSampleCount()
			if len(h.GetBucket()) == 0 || len(h.GetPositiveSpan()) == 0 {
				t.Errorf("%s is not both a classic and a native histogram", name)
			}
		}
		if count != want {
			t.Errorf("%s has %d observations, want %d", name, count, want)
		}
	}
	problems, err := testutil.GatherAndLint(m.Registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range slices.DeleteFunc(problems, func(p promlint.Problem) bool { return strings.HasPrefix(p.Metric, "go_") }) {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func gather(t *testing.T, m *Metrics) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	byName := make(map[string]*dto.MetricFamily)
	for _, f := range families {
		byName[f.GetName()] = f
	}
	return byName
}

// sum adds up a counter over all labels, and its series.
func sum(t *testing.T, m *Metrics, name string) (total float64, series int) {
	t.Helper()
	for _, metric := range gather(t, m)[name].GetMetric() {
		total += metric.GetCounter().GetValue()
		series++
	}
	return total, series
}

// TestDestinationsBounded: of more destinations than may have series, the others
// are one, and no connect is lost; idle ones give way to new ones.
func TestDestinationsBounded(t *testing.T) {
	const most, many = 20, 1000
	m := New(Config{Places: 1, Destinations: most})
	at := start
	for n := range many {
		r := record.Record{Kind: record.Connect, Time: at, Connect: record.ConnectFields{Outcome: record.Established},
			Socket: socket("10.244.1.7:41988", fmt.Sprintf("20.1.%d.%d:443", n/250, n%250))}
		m.Observe(&r)
	}
	total, series := sum(t, m, "twtrace_egress_connect_total")
	over, _ := sum(t, m, "twtrace_metrics_overflow_total")
	if total != many || series != most+1 || over != many-most {
		t.Errorf("%v connects in %d series, %v over; want %d, %d, %d", total, series, over, many, most+1, many-most)
	}
	// The gauge keeps to those that have series already.
	var connections []track.Connection
	for n := range many {
		connections = append(connections, track.Connection{Active: true, Socket: socket("10.244.1.7:41988", fmt.Sprintf("20.1.%d.%d:443", n/250, n%250))})
	}
	m.Take(Tables{Connections: slices.Values(connections), Destinations: iter.Seq[track.Destination](func(func(track.Destination) bool) {})}, at)
	if got := len(gather(t, m)["twtrace_egress_sockets"].GetMetric()); got != most+1 {
		t.Errorf("%d series of sockets, want %d", got, most+1)
	}

	at += idle
	r := record.Record{Kind: record.Connect, Time: at, Connect: record.ConnectFields{Outcome: record.Established}, Socket: socket("10.244.1.7:41988", "20.9.9.9:443")}
	m.Observe(&r)
	if _, series := sum(t, m, "twtrace_egress_connect_total"); series != 2 {
		t.Errorf("%d series after all but one were idle, want it and the others", series)
	}
}

// TestPlacesBounded: beyond the bound a container counts as "_other", until one
// that is idle gives way, with all its series.
func TestPlacesBounded(t *testing.T) {
	const most = 3
	m := New(Config{Places: most})
	count := func(n int, at int64) Place {
		place := m.place(Place{Namespace: "shop", Pod: fmt.Sprintf("api-%d", n), Container: "b"}, at)
		m.connects.of(key{place: place, first: "refused", second: "ECONNREFUSED"}).Inc()
		return place
	}
	for n := range 10 {
		if place := count(n, start); (place == otherPlace) != (n >= most) {
			t.Errorf("container %d counts for %v", n, place)
		}
	}
	if total, series := sum(t, m, "twtrace_connect_total"); total != 10 || series != most+1 {
		t.Errorf("%v connects in %d series, want 10 in %d", total, series, most+1)
	}
	if over, _ := sum(t, m, "twtrace_metrics_overflow_total"); over != 10-most {
		t.Errorf("%v over, want %d", over, 10-most)
	}
	count(0, start+idle/2) // it is seen again
	if place := count(20, start+idle); place == otherPlace {
		t.Error("no container gave way")
	}
	var pods []string
	for _, metric := range gather(t, m)["twtrace_connect_total"].GetMetric() {
		for _, label := range metric.GetLabel() {
			if label.GetName() == "pod" {
				pods = append(pods, label.GetValue())
			}
		}
	}
	slices.Sort(pods)
	if want := []string{Other, "api-0", "api-20"}; !slices.Equal(pods, want) {
		t.Errorf("series of %q, want %q", pods, want)
	}
}

// TestSample: who asks gets what is there at that moment; what can't be seen is not
// said to be none.
func TestSample(t *testing.T) {
	var m *Metrics
	asked := 0
	m = New(Config{Places: 1, Sample: func() {
		asked++
		s := tables()
		s.AllPorts, s.TimeWaits = false, asked == 1
		m.Take(s, start)
	}})
	if found := gather(t, m); found["twtrace_time_wait_sockets"] == nil || found["twtrace_local_ports_used_ratio"] != nil {
		t.Error("TIME_WAITs are seen, and who holds ports is not: told otherwise")
	}
	if found := gather(t, m); found["twtrace_time_wait_sockets"] != nil {
		t.Error("TIME_WAITs are told where none can be seen")
	}
	if asked != 2 {
		t.Errorf("asked %d times, want 2", asked)
	}
}

// TestAllocations: what is counted once more allocates nothing.
func TestAllocations(t *testing.T) {
	m := New(Config{Places: 10, Destinations: 10})
	for _, r := range everything() {
		r.Time = start
		if r.Connect.Errno == 524 {
			continue // the one errno whose name must be made
		}
		m.Observe(&r)
		if n := testing.AllocsPerRun(100, func() { m.Observe(&r) }); n > 0 {
			t.Errorf("%s: %v allocations", r.Kind, n)
		}
	}
}

func BenchmarkObserve(b *testing.B) {
	for _, r := range everything() {
		if r.Kind != record.Connect && r.Kind != record.State {
			continue
		}
		r.Time = start
		b.Run(fmt.Sprint(r.Kind, " ", r.Connect.Outcome), func(b *testing.B) {
			m := New(Config{Places: 10, Destinations: 10})
			b.ReportAllocs()
			for b.Loop() {
				m.Observe(&r)
			}
		})
	}
}

// BenchmarkTake is what a scrape costs the reader of events, with many sockets in
// TIME_WAIT.
func BenchmarkTake(b *testing.B) {
	m := New(Config{Places: 10, Destinations: 100})
	connections := make([]track.Connection, 100_000)
	for n := range connections {
		connections[n] = track.Connection{TimeWait: true, Active: true, HoldsPort: true,
			Socket: socket("10.244.1.7:41988", fmt.Sprintf("20.1.2.%d:443", n%100))}
	}
	t := Tables{TimeWaits: true, AllPorts: true, Destinations: tables().Destinations, Connections: slices.Values(connections)}
	b.ReportAllocs()
	for b.Loop() {
		m.Take(t, start)
	}
}
