package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/lab"
	"github.com/twtrace/twtrace/internal/otlp/otlptest"
)

// freeAddress is one on loopback that nobody listens on, a moment ago.
func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// noKernels skips what one kernel is enough for.
func noKernels(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("does not depend on the kernel")
	}
}

// get returns the status and the body of a page.
func get(t *testing.T, address string) (status int, body []byte) {
	t.Helper()
	response, err := http.Get("http://" + address)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err = io.ReadAll(response.Body); err != nil {
		t.Fatal(err)
	}
	return response.StatusCode, body
}

// scraped are the metrics of a serve, by their names.
type scraped map[string]*dto.MetricFamily

func scrape(t *testing.T, address string) scraped {
	t.Helper()
	status, body := get(t, address+"/metrics")
	if status != http.StatusOK {
		t.Fatalf("/metrics: %d: %s", status, body)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(body))
	if err != nil {
		t.Fatalf("/metrics: %v", err)
	}
	return families
}

// by adds up a metric by the values of some labels; of a histogram, what it has
// counted.
func (s scraped) by(name string, labels ...string) map[string]uint64 {
	sums := make(map[string]uint64)
	for _, m := range s[name].GetMetric() {
		var values []string
		for _, label := range labels {
			for _, l := range m.Label {
				if l.GetName() == label && l.GetValue() != "" {
					values = append(values, l.GetValue())
				}
			}
		}
		value := m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		if value != 0 {
			sums[strings.Join(values, " ")] += uint64(math.Round(value))
		}
	}
	return sums
}

func (s scraped) total(name string) (total uint64) {
	for _, n := range s.by(name) {
		total += n
	}
	return total
}

// tally counts lines by what is said of them, but for those of which that is "".
func tally(lines []line, say func(line) string) map[string]uint64 {
	counts := make(map[string]uint64)
	for _, l := range lines {
		if said := say(l); said != "" {
			counts[said]++
		}
	}
	return counts
}

func cause(v *verdictLine) string {
	if v == nil {
		return ""
	}
	for v.Inner != nil {
		v = v.Inner
	}
	return v.ID
}

// on is say, of lines of one event.
func on(event string, say func(line) string) func(line) string {
	return func(l line) string {
		if l.Event != event {
			return ""
		}
		return say(l)
	}
}

// checkMetrics asserts that the metrics say what the lines do.
func checkMetrics(t *testing.T, m scraped, lines []line) {
	t.Helper()
	for _, c := range []struct {
		metric string
		labels []string
		say    func(line) string
	}{
		{"twtrace_events_total", []string{"event"}, func(l line) string { return l.Event }},
		{"twtrace_connect_total", []string{"outcome", "errno", "verdict"}, on("connect", func(l line) string {
			return strings.Join(slices.DeleteFunc([]string{l.Connect.Outcome, l.Error.Type, cause(l.Verdict)}, func(s string) bool { return s == "" }), " ")
		})},
		{"twtrace_connect_duration_seconds", []string{"outcome"}, on("connect", func(l line) string {
			if l.Connect.Duration == 0 {
				return ""
			}
			return l.Connect.Outcome
		})},
		{"twtrace_time_wait_end_total", []string{"how"}, on("time_wait.end", func(l line) string { return l.TimeWait.Ended })},
		{"twtrace_port_reuse_gap_seconds", []string{"how"}, on("port_reuse", func(l line) string {
			if l.Reuse.After == 0 {
				return ""
			}
			return l.Reuse.How
		})},
		{"twtrace_syn_retransmits_total", []string{"packet"}, on("syn_retransmit", func(l line) string { return l.SYN.Packet })},
		{"twtrace_verdict_total", []string{"verdict"}, func(l line) string { return cause(l.Verdict) }},
		{"twtrace_egress_connect_total", []string{"destination"}, on("connect", func(l line) string {
			return net.JoinHostPort(l.Network.Peer.Address, strconv.Itoa(l.Network.Peer.Port))
		})},
	} {
		if diff := cmp.Diff(tally(lines, c.say), m.by(c.metric, c.labels...)); diff != "" {
			t.Errorf("%s (-log +metrics):\n%s", c.metric, diff)
		}
	}
	drops := tally(lines, on("drop", func(l line) string { return "dropped " + l.Drop.Reason }))
	counted := make(map[string]uint64)
	for reason, n := range m.by("twtrace_drops_total", "reason") {
		counted["dropped "+reason] = n
	}
	if diff := cmp.Diff(drops, counted); diff != "" {
		t.Errorf("drops (-log +metrics):\n%s", diff)
	}
}

// TestServe: what serve tells by its lines, by OTLP and by its metrics is the same,
// to the last line, also when it is stopped as Kubernetes does.
func TestServe(t *testing.T) {
	needRoot(t)
	noKernels(t)
	quick := slices.DeleteFunc(lab.Scenarios(), func(s lab.Scenario) bool {
		return !slices.Contains([]string{"refused", "no-route", "port-exhaustion", "tw-reuse", "reset", "half-open", "tw-overflow"}, s.Name)
	})
	receiver := otlptest.New(t, otlptest.Accept)
	address := freeAddress(t)
	// Not those that the test itself makes.
	tr := trace(t, "serve", "--listen", address, "--addr", "10.0.0.0/8", "--metrics-destinations", "1000",
		"--otlp", receiver.URL, "--otlp-all")
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := get(t, address+path); status != http.StatusOK {
			t.Errorf("%s: %d: %s", path, status, body)
		}
	}
	// Those of before, of others on this machine.
	older := int(scrape(t, address).total("twtrace_time_wait_sockets")) + len(of(tr.sofar(), "time_wait.end")) - len(of(tr.sofar(), "time_wait.enter"))
	inLab(t, quick)
	tr.await("tw_overflow", func(l line) bool { return cause(l.Verdict) == "tw_overflow" })

	var m scraped
	var lines []line
	until(t, "the metrics are of all lines", func() bool {
		before := len(tr.sofar())
		m = scrape(t, address)
		lines = tr.sofar()
		return len(lines) == before && m.total("twtrace_events_total") == uint64(before)
	})
	checkMetrics(t, m, lines)
	// The lab's namespaces are still there, with their TIME_WAITs.
	entered, ended := len(of(lines, "time_wait.enter")), len(of(lines, "time_wait.end"))
	if got := int(m.total("twtrace_time_wait_sockets")); got != older+entered-ended {
		t.Errorf("%d sockets in TIME_WAIT, %d were there before, %d have come and %d gone", got, older, entered, ended)
	}
	if got := m["twtrace_local_ports_used_ratio"].GetMetric()[0].GetGauge().GetValue(); got != 1 {
		t.Errorf("the fullest range of ports is full to %v, and one is used up", got)
	}
	if _, err := exec.LookPath("promtool"); err == nil {
		_, body := get(t, address+"/metrics")
		check := exec.Command("promtool", "check", "metrics")
		check.Stdin = bytes.NewReader(body)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("promtool: %v\n%s", err, out)
		}
	}

	tr.signal(unix.SIGTERM)
	if err := tr.wait(); err != nil {
		t.Fatalf("it ended by %v", err)
	}
	lines = readLines(t, tr.stdout)
	checkLog(t, lines)
	if tr.stderr.Len() > 0 {
		t.Errorf("it said %s", &tr.stderr)
	}
	data, err := os.ReadFile(tr.stdout)
	if err != nil {
		t.Fatal(err)
	}
	texts := bytes.Split(bytes.TrimSuffix(data, []byte("\n")), []byte("\n"))
	records := receiver.Records()
	if last := records[len(records)-1]; last.EventName != "twtrace.summary" {
		t.Errorf("the last record is %s", last.EventName)
	}
	summed, sent := uint64(0), 0
	for _, r := range records {
		attributes := otlptest.Attributes(r.Attributes)
		if r.EventName == "twtrace.connects" {
			summed += uint64(attributes["twtrace.connects.count"].(int64))
			continue
		}
		seq := int(attributes["twtrace.seq"].(int64))
		l := lines[seq]
		sent++
		if r.EventName != "twtrace."+l.Event || r.TimeUnixNano != uint64(l.Time.UnixNano()) {
			t.Fatalf("record %d is %s of %d, the line %s", seq, r.EventName, r.TimeUnixNano, texts[seq])
		}
		for name, want := range map[string]any{
			"network.peer.address": l.Network.Peer.Address, "network.local.address": l.Network.Local.Address,
			"process.pid": int64(l.Process.PID), "twtrace.process.comm": l.Process.Comm, "twtrace.netns": int64(l.NetNS),
			"error.type": l.Error.Type, "twtrace.connect.outcome": l.Connect.Outcome, "twtrace.verdict.cause": cause(l.Verdict),
			"twtrace.state.new": l.State.New, "twtrace.time_wait.ended": l.TimeWait.Ended, "twtrace.reuse.how": l.Reuse.How,
		} {
			got := attributes[name]
			if got == nil && (want == "" || want == int64(0)) {
				continue
			}
			if got != want {
				t.Errorf("%s is %v, and the line is %s", name, got, texts[seq])
			}
		}
	}
	if sent != len(lines) {
		t.Errorf("%d records came of %d lines", sent, len(lines))
	}
	if connects := uint64(len(of(lines, "connect"))); summed != connects {
		t.Errorf("the sums are of %d connects, of %d", summed, connects)
	}
}

// TestServeFilters: a filter of lines narrows the lines, and neither the metrics nor
// what is sent.
func TestServeFilters(t *testing.T) {
	needRoot(t)
	receiver := otlptest.New(t, otlptest.Accept)
	address := freeAddress(t)
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr := trace(t, "serve", "--listen", address, "--netns", strconv.Itoa(int(n.inode)), "--failures", "--otlp", receiver.URL, "--log", log)
	if err := churn(n, 20); err != nil {
		t.Fatal(err)
	}
	if err := n.do(refused); err != nil {
		t.Fatal(err)
	}
	until(t, "all connects are counted", func() bool { return scrape(t, address).total("twtrace_connect_total") >= 21 })
	m := scrape(t, address)
	if diff := cmp.Diff(map[string]uint64{"established": 20, "refused": 1}, m.by("twtrace_connect_total", "outcome")); diff != "" {
		t.Errorf("connects (-want +got):\n%s", diff)
	}
	tr.end()
	if printed := tr.sofar(); len(printed) > 0 {
		t.Errorf("%d lines on stdout, beside the log", len(printed))
	}
	lines := readLines(t, log)
	if connects := of(lines, "connect"); len(connects) != 1 || connects[0].Connect.Outcome != "refused" || len(of(lines, "state", "close")) > 0 {
		t.Errorf("the lines are %v", lines)
	}
	counts := make(map[string]int64)
	for _, r := range receiver.Records() {
		attributes := otlptest.Attributes(r.Attributes)
		outcome, _ := attributes["twtrace.connect.outcome"].(string)
		if r.EventName == "twtrace.connects" {
			counts["sum "+outcome] += attributes["twtrace.connects.count"].(int64)
		} else if r.EventName == "twtrace.connect" {
			counts[outcome]++
		}
	}
	if diff := cmp.Diff(map[string]int64{"refused": 1, "sum refused": 1, "sum established": 20}, counts); diff != "" {
		t.Errorf("records of connects (-want +got):\n%s", diff)
	}
}

// TestServeBackends: whatever becomes of those who should take the records, all is
// traced and written, memory stays bounded, and what can't be sent is counted.
func TestServeBackends(t *testing.T) {
	needRoot(t)
	noKernels(t)
	released := make(chan struct{})
	t.Cleanup(func() { close(released) })
	silent := func(r *http.Request, _ int) (int, int) {
		select {
		case <-released:
		case <-r.Context().Done():
		}
		return http.StatusServiceUnavailable, 0
	}
	overloaded := func(*http.Request, int) (int, int) { return http.StatusServiceUnavailable, 0 }
	away := otlptest.New(t, otlptest.Accept)
	type backend struct {
		name, url, told string
		*tracer
		address string
	}
	backends := []*backend{
		{name: "refuses", url: "http://" + freeAddress(t), told: "connection refused"},
		{name: "overloaded", url: otlptest.New(t, overloaded).URL, told: "context deadline exceeded"},
		{name: "silent", url: otlptest.New(t, silent).URL, told: "context deadline exceeded"},
		{name: "goes away", url: away.URL, told: "connection refused"},
	}
	n := newNetNS(t)
	for _, b := range backends {
		b.address = freeAddress(t)
		b.tracer = trace(t, "serve", "--listen", b.address, "--netns", strconv.Itoa(int(n.inode)), "--otlp", b.url, "--otlp-all")
	}
	// More records than may wait, ten or so a connection.
	const many = 2000
	if err := churn(n, many/2); err != nil {
		t.Fatal(err)
	}
	until(t, "it gets something", func() bool { return len(away.Records()) > 0 })
	away.Close()
	if err := churn(n, many/2); err != nil {
		t.Fatal(err)
	}
	for _, b := range backends {
		until(t, "all connects are counted", func() bool { return scrape(t, b.address).total("twtrace_connect_total") >= many })
		until(t, "what there was no room for is counted", func() bool {
			return scrape(t, b.address).by("twtrace_otlp_records_total", "result")["dropped"] > 0
		})
		if status, body := get(t, b.address+"/healthz"); status != http.StatusOK {
			t.Errorf("%s: /healthz: %d: %s", b.name, status, body)
		}
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", b.cmd.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		peak, err := strconv.Atoi(string(regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(status)[1]))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d MiB at most", b.name, peak>>10)
		if peak > 512<<10 {
			t.Errorf("%s: it took %d MiB of memory", b.name, peak>>10)
		}
		b.signal(unix.SIGTERM)
	}
	for _, b := range backends {
		if err := b.wait(); err != nil {
			t.Errorf("%s: it ended by %v", b.name, err)
		}
		lines := readLines(t, b.stdout)
		checkLog(t, lines)
		if connects := len(of(lines, "connect")); connects != many {
			t.Errorf("%s: %d connects, want %d", b.name, connects, many)
		}
		said := b.stderr.String()
		last := regexp.MustCompile(`twtrace: otlp: (\d+) of (\d+) records could not be sent: .*` + regexp.QuoteMeta(b.told)).FindStringSubmatch(said)
		if last == nil {
			t.Errorf("%s: it said %q, want %q", b.name, said, b.told)
			continue
		}
		unsent, _ := strconv.Atoi(last[1])
		made, _ := strconv.Atoi(last[2])
		if made < len(lines) || unsent == 0 || b.name != "goes away" && unsent != made {
			t.Errorf("%s: %d of %d were not sent, of %d lines", b.name, unsent, made, len(lines))
		}
		// Of the last batch the answer may not have come.
		if extra := len(away.Records()) - (made - unsent); b.name == "goes away" && (extra < 0 || extra > 512) {
			t.Errorf("%s: %d were sent, and %d came", b.name, made-unsent, len(away.Records()))
		}
		if told := strings.Count(said, "twtrace: otlp:"); told > 3 {
			t.Errorf("%s: it said %d lines: %s", b.name, told, said)
		}
	}
}

// TestAlert: Prometheus scrapes a serve, and the alert fires when a program finds no
// local port.
func TestAlert(t *testing.T) {
	needRoot(t)
	noKernels(t)
	if _, err := exec.LookPath("prometheus"); err != nil {
		t.Skip("prometheus is not installed: .ci/deps does that")
	}
	rules, err := filepath.Abs("../../deploy/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	address, api, dir := freeAddress(t), freeAddress(t), t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
global: {scrape_interval: 1s, evaluation_interval: 1s}
rule_files: [%s]
scrape_configs:
  - {job_name: twtrace, honor_labels: true, static_configs: [{targets: [%s]}]}
`, rules, address), 0o600); err != nil {
		t.Fatal(err)
	}
	tr := trace(t, "serve", "--listen", address, "--addr", "10.0.0.0/8")
	prometheus := exec.Command("prometheus", "--config.file", config, "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--web.listen-address", api, "--enable-feature=native-histograms")
	var said bytes.Buffer
	prometheus.Stderr = &said
	if err := prometheus.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = prometheus.Process.Kill() // it has nothing to lose
		_ = prometheus.Wait()
		if t.Failed() {
			t.Logf("prometheus: %s", &said)
		}
	})
	ask := func(query string) []map[string]string {
		var answer struct {
			Data struct {
				Result []struct{ Metric map[string]string }
			}
		}
		response, err := http.Get("http://" + api + "/api/v1/query?query=" + url.QueryEscape(query))
		if err != nil {
			return nil // not yet
		}
		defer response.Body.Close()
		if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
			return nil
		}
		var metrics []map[string]string
		for _, r := range answer.Data.Result {
			metrics = append(metrics, r.Metric)
		}
		return metrics
	}
	until(t, "Prometheus scrapes", func() bool { return len(ask(`up{job="twtrace"} == 1`)) == 1 })
	if firing := ask(`ALERTS{alertname="TwtraceNoLocalPort"}`); len(firing) > 0 {
		t.Fatalf("before anything happened: %v", firing)
	}
	inLab(t, slices.DeleteFunc(lab.Scenarios(), func(s lab.Scenario) bool { return s.Name != "port-exhaustion" }))
	until(t, "the alert fires", func() bool { return len(ask(`ALERTS{alertname="TwtraceNoLocalPort", alertstate="firing"}`)) == 1 })
	if n := len(ask(`histogram_count(twtrace_connect_duration_seconds{outcome="no_local_port"}) > 0`)); n != 1 {
		t.Errorf("%d native histograms of it", n)
	}
	tr.end()
}

// TestServeUsage: what is wrong is told before anything begins.
func TestServeUsage(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	for _, test := range []struct {
		args []string
		env  string
		want string
		code int
	}{
		{[]string{"--otlp", "localhost:4318"}, "", `otlp "localhost:4318": must be a URL such as http://127.0.0.1:4318`, 2},
		{[]string{"--otlp-all"}, "", `--otlp-all without a place to send to`, 2},
		{[]string{"--metrics-containers", "0"}, "", `metrics containers 0: must be 1 or more`, 2},
		{[]string{"--listen", listener.Addr().String()}, "", `serve metrics: listen tcp ` + listener.Addr().String() + `: bind: address already in use`, 1},
		{nil, "OTEL_EXPORTER_OTLP_PROTOCOL=grpc", `OTEL_EXPORTER_OTLP_PROTOCOL=grpc: only http/protobuf is spoken`, 2},
		{[]string{"-o", "json"}, "", `unknown shorthand flag: 'o'`, 2},
		{[]string{"now"}, "", `twtrace serve takes no arguments, got "now"`, 2},
	} {
		cmd := twtrace(append([]string{"serve"}, test.args...)...)
		if test.env != "" {
			cmd.Env = append(cmd.Env, test.env)
		}
		out, err := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); err == nil || code != test.code || !strings.Contains(string(out), test.want) {
			t.Errorf("%v %s: exit status %d: %s", test.args, test.env, code, out)
		}
	}
}
