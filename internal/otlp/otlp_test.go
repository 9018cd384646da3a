package otlp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/otlp/otlptest"
	"github.com/twtrace/twtrace/internal/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

// lines are the golden lines of the log: every kind, in every shape.
const lines = "../record/testdata/lines.jsonl"

// readLines returns the records of the golden lines, numbered, and each line's JSON.
func readLines(t testing.TB) (records []record.Record, texts [][]byte) {
	t.Helper()
	file, err := os.Open(lines)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	reader, err := record.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for {
		var r record.Record
		if err := reader.Read(&r); err == io.EOF {
			return records, texts
		} else if err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
		texts = append(texts, bytes.Clone(reader.Raw()))
	}
}

// warnings collects what the user is told.
type warnings struct {
	mu    sync.Mutex
	lines []string
}

func (w *warnings) warn(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

func (w *warnings) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.lines)
}

func open(t testing.TB, config Config) (*Sender, *warnings) {
	t.Helper()
	var w warnings
	config.Warn = w.warn
	s, err := New(config)
	if err != nil || s == nil {
		t.Fatalf("sender %v, %v", s, err)
	}
	return s, &w
}

func finish(s *Sender) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	s.Close(ctx)
}

// TestRecords sends every kind of record in every shape, and finds all that its line
// has: by the names in testdata/attributes.txt, of the types there.
func TestRecords(t *testing.T) {
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=aks-1,k8s.cluster.name=prod,twtrace.egress.address=20.0.0.9")
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x")
	receiver := otlptest.New(t, otlptest.Accept)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.URL)
	s, w := open(t, Config{All: true, Version: "1.2.3"})
	records, texts := readLines(t)
	for i := range records {
		s.Observe(&records[i])
	}
	finish(s)
	if told := w.all(); len(told) > 0 {
		t.Errorf("told %q", told)
	}

	got := receiver.Records()
	if len(got) != len(records) {
		t.Fatalf("%d records came of %d", len(got), len(records))
	}
	names := make(map[string]bool) // with type and kind
	seen := make(map[record.Kind]bool)
	for i, text := range texts {
		r := &records[i]
		seen[r.Kind] = true
		attributes := otlptest.Attributes(got[i].Attributes)
		if want := "twtrace." + r.Kind.String(); got[i].EventName != want {
			t.Errorf("record %d is %s, want %s", i, got[i].EventName, want)
		}
		if got[i].TimeUnixNano != uint64(r.Time) || got[i].ObservedTimeUnixNano == 0 {
			t.Errorf("record %d is of %d, observed at %d, want %d", i, got[i].TimeUnixNano, got[i].ObservedTimeUnixNano, r.Time)
		}
		if got[i].SeverityNumber == 0 || got[i].SeverityText == "" {
			t.Errorf("record %d: no severity", i)
		}
		if diff := cmp.Diff(expected(t, text, r), attributes); diff != "" {
			t.Errorf("%s (-want +got):\n%s", text, diff)
		}
		for name, value := range attributes {
			names[fmt.Sprintf("%-16s %-40s %T", got[i].EventName[len("twtrace."):], name, value)] = true
		}
	}
	for kind := record.Meta; kind < record.Kinds; kind++ {
		if !seen[kind] {
			t.Errorf("no %s among the lines", kind)
		}
	}
	resource, headers := receiver.Resource()
	hostname, _ := os.Hostname()
	for name, want := range map[string]any{
		"service.name": "twtrace", "service.version": "1.2.3", "host.name": hostname,
		"k8s.node.name": "aks-1", "k8s.cluster.name": "prod", "twtrace.egress.address": "20.0.0.9",
	} {
		if resource[name] != want {
			t.Errorf("resource %s is %v, want %v", name, resource[name], want)
		}
	}
	if got := headers.Get("Authorization"); got != "Bearer x" {
		t.Errorf("OTEL_EXPORTER_OTLP_HEADERS came as %q", got)
	}

	sorted := slices.Sorted(func(yield func(string) bool) {
		for name := range names {
			if !yield(name) {
				return
			}
		}
	})
	golden(t, "testdata/attributes.txt", strings.Join(sorted, "\n")+"\n")
	var bodies strings.Builder
	for i, r := range got {
		if i == 0 || r.EventName != got[i-1].EventName || r.Body.GetStringValue() != got[i-1].Body.GetStringValue() {
			fmt.Fprintf(&bodies, "%-5s %-24s %s\n", r.SeverityText, r.EventName, r.Body.GetStringValue())
		}
	}
	golden(t, "testdata/bodies.txt", bodies.String())
}

func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// expected are the attributes that a line should have, by another way than the one
// under test.
func expected(t *testing.T, text []byte, r *record.Record) map[string]any {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var line map[string]any
	if err := decoder.Decode(&line); err != nil {
		t.Fatal(err)
	}
	delete(line, "schema")
	delete(line, "time")
	delete(line, "event")
	all := make(map[string]any)
	if line["network"] != nil {
		all["network.transport"] = "tcp"
	}
	if r.Line == 0 {
		delete(line, "seq")
	}
	if r.Verdict != nil {
		all["twtrace.verdict.cause"] = r.Verdict.Cause()
	}
	var walk func(path string, v any)
	walk = func(path string, v any) {
		if members, ok := v.(map[string]any); ok {
			for key, v := range members {
				walk(path+"."+key, v)
			}
			return
		}
		path = path[1:]
		switch first, _, _ := strings.Cut(path, "."); {
		case path == "process.uid":
			path = "process.user.id"
		case path == "container.runtime":
			path = "container.runtime.name"
		case path == "process.pid", first == "network", first == "error", first == "k8s", first == "container":
		default:
			path = "twtrace." + path
		}
		number := func(v any) any {
			n := v.(json.Number)
			if strings.HasSuffix(path, "_ms") || strings.HasSuffix(path, "_s") || strings.HasSuffix(path, "_ratio") {
				f, err := n.Float64()
				if err != nil {
					t.Fatal(err)
				}
				return f
			}
			i, err := n.Int64()
			if err != nil {
				return int64(math.MaxInt64) // there is nothing larger
			}
			return i
		}
		switch v := v.(type) {
		case json.Number:
			all[path] = number(v)
		case []any:
			items := []any{}
			for _, item := range v {
				switch item := item.(type) {
				case string:
					items = append(items, item)
				case json.Number:
					items = append(items, number(item))
				default:
					items = append(items, compact(text, item))
				}
			}
			if len(items) > 0 {
				all[path] = items
			}
		default:
			all[path] = v
		}
	}
	walk("", line)
	return all
}

// compact is the JSON of an item, as the line has it: encoding/json sorts members.
func compact(text []byte, item any) string {
	var find func(decoder *json.Decoder) string
	want, _ := json.Marshal(item)
	find = func(*json.Decoder) string {
		for i := range text {
			if text[i] != '{' && text[i] != '[' {
				continue
			}
			var raw json.RawMessage
			if json.NewDecoder(bytes.NewReader(text[i:])).Decode(&raw) != nil {
				continue
			}
			decoder := json.NewDecoder(bytes.NewReader(raw))
			decoder.UseNumber()
			var v any
			if decoder.Decode(&v) != nil {
				continue
			}
			if got, _ := json.Marshal(v); bytes.Equal(got, want) {
				return string(raw)
			}
		}
		return ""
	}
	return find(nil)
}

// TestDefault: without All it sends failures, causes, what is about the run, and
// sums.
func TestDefault(t *testing.T) {
	receiver := otlptest.New(t, otlptest.Accept)
	s, _ := open(t, Config{URL: receiver.URL})
	records, _ := readLines(t)
	var wanted, failed int
	connects := make(map[string]int)
	for i := range records {
		r := &records[i]
		switch {
		case r.Kind == record.Meta, r.Kind == record.Lost, r.Kind == record.Summary, r.Kind == record.PortPressure, r.Kind == record.Verdict, r.Verdict != nil:
			wanted++
		case r.Kind == record.Connect && r.Connect.Outcome != record.Established:
			wanted, failed = wanted+1, failed+1
		}
		if r.Kind == record.Connect {
			connects[r.Connect.Outcome.String()]++
		}
		s.Observe(r)
	}
	s.Last(time.Now().UnixNano())
	finish(s)
	got := receiver.Records()
	summed := make(map[string]int)
	var sums int
	for _, r := range got {
		attributes := otlptest.Attributes(r.Attributes)
		if r.EventName != sumEvent {
			continue
		}
		sums++
		summed[attributes["twtrace.connect.outcome"].(string)] += int(attributes["twtrace.connects.count"].(int64))
	}
	if failed == 0 || len(got)-sums != wanted {
		t.Errorf("%d records came that are no sums, want %d", len(got)-sums, wanted)
	}
	if diff := cmp.Diff(connects, summed); diff != "" {
		t.Errorf("connects in the sums (-want +got):\n%s", diff)
	}
}

// connect is a connect of the n-th peer.
func connect(n int, at int64) record.Record {
	r := record.Record{
		Kind: record.Connect, Time: at, Line: 1,
		Socket: event.Socket{
			Cookie: uint64(n), NetNS: event.NetNS{Inode: 4026532785},
			Owner: event.Owner{PID: uint32(1000 + n), TID: uint32(1000 + n), UID: 7, Comm: "curl", Cgroup: 12},
		},
		Connect: record.ConnectFields{Outcome: record.Established, Duration: time.Duration(n) * time.Millisecond, Retransmits: 1},
	}
	r.Socket.Tuple.Local = parse("10.244.1.7", 40000+n)
	r.Socket.Tuple.Peer = parse("20.1.2.3", 443)
	return r
}

// TestSum: a sum says what its connects have in common, and nothing that only one
// of them has.
func TestSum(t *testing.T) {
	receiver := otlptest.New(t, otlptest.Accept)
	s, _ := open(t, Config{URL: receiver.URL})
	began := time.Now().UnixNano()
	s.sums.began = began
	for n := 1; n <= 3; n++ {
		r := connect(n, began+int64(n))
		s.Observe(&r)
	}
	s.Tick(began + every - 1) // not yet
	s.Tick(began + every)
	finish(s)
	got := receiver.Records()
	if len(got) != 1 {
		t.Fatalf("%d records came, want one", len(got))
	}
	at := func(n int64) string { return time.Unix(0, n).UTC().Format("2006-01-02T15:04:05.000000000Z") }
	want := map[string]any{
		"network.transport": "tcp", "network.type": "ipv4",
		"network.local.address": "10.244.1.7", "network.peer.address": "20.1.2.3", "network.peer.port": int64(443),
		"twtrace.netns": int64(4026532785), "twtrace.process.comm": "curl", "process.user.id": int64(7), "twtrace.cgroup.id": "12",
		"twtrace.connect.outcome": "established",
		"twtrace.connects.count":  int64(3), "twtrace.connects.interval_ms": 10000.0, "twtrace.connects.syn_retransmits": int64(3),
		"twtrace.connects.first": at(began + 1), "twtrace.connects.last": at(began + 3),
		"twtrace.connects.duration_mean_ms": 2.0, "twtrace.connects.duration_max_ms": 3.0,
	}
	if diff := cmp.Diff(want, otlptest.Attributes(got[0].Attributes)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if body, want := got[0].Body.GetStringValue(), "3 connects of curl to 20.1.2.3:443 in 10.0 s: established"; body != want {
		t.Errorf("body %q, want %q", body, want)
	}
	if got[0].EventName != "twtrace.connects" || got[0].TimeUnixNano != uint64(began+every) {
		t.Errorf("it is %s of %d", got[0].EventName, got[0].TimeUnixNano)
	}
}

// TestSumsBounded: of more destinations than there may be sums, none is lost.
func TestSumsBounded(t *testing.T) {
	s := newSums()
	const connects = 3 * maxSums
	for n := range connects {
		r := connect(1, 1)
		r.Socket.Tuple.Peer = parse(fmt.Sprintf("20.1.%d.%d", n/256, n%256), 443)
		s.add(&r)
	}
	var sum int64
	var sums int
	for _, of := range s.take(2) {
		sum += of.connects
		sums++
	}
	if sum != connects || sums != maxSums+1 {
		t.Errorf("%d connects in %d sums, want %d in %d", sum, sums, connects, maxSums+1)
	}
}

// TestBackends: whatever the other side does, handing over records takes no time,
// what waits is bounded, and each record is sent or counted as dropped.
func TestBackends(t *testing.T) {
	const many = 3 * maxRecords
	release := make(chan struct{})
	for _, test := range []struct {
		name   string
		answer otlptest.Answer
		close  time.Duration
		check  func(t *testing.T, sent, dropped uint64)
		told   string
	}{
		{"takes all", otlptest.Accept, time.Minute, nil, ""},
		{"takes nothing", func(*http.Request, int) (int, int) { return http.StatusBadRequest, 0 }, time.Minute,
			func(t *testing.T, sent, _ uint64) {
				if sent != 0 {
					t.Errorf("%d sent", sent)
				}
			}, "400 Bad Request"},
		{"is overloaded", func(*http.Request, int) (int, int) { return http.StatusServiceUnavailable, 0 }, 3 * time.Second,
			func(t *testing.T, sent, _ uint64) {
				if sent != 0 {
					t.Errorf("%d sent", sent)
				}
			}, "records come faster than they are taken"},
		{"never answers", func(r *http.Request, _ int) (int, int) {
			select {
			case <-release:
			case <-r.Context().Done():
			}
			return http.StatusOK, 0
		}, time.Second, nil, "records come faster than they are taken"},
		{"takes half", func(_ *http.Request, n int) (int, int) { return http.StatusOK, n / 2 }, time.Minute,
			func(t *testing.T, sent, dropped uint64) {
				if sent == 0 || dropped < sent {
					t.Errorf("%d sent, %d dropped", sent, dropped)
				}
			}, "too old"},
	} {
		t.Run(test.name, func(t *testing.T) {
			receiver := otlptest.New(t, test.answer)
			s, w := open(t, Config{URL: receiver.URL, All: true})
			now := time.Now().UnixNano()
			for n := range many {
				r := connect(n%1000, now)
				s.Observe(&r)
				if s.mu.Lock(); len(s.sizes) > maxRecords || s.bytes > maxBytes {
					t.Fatalf("%d records, %d bytes wait", len(s.sizes), s.bytes)
				}
				s.mu.Unlock()
			}
			ctx, cancel := context.WithTimeout(context.Background(), test.close)
			defer cancel()
			s.Close(ctx)
			s.mu.Lock()
			sent, dropped, left := s.sent, s.refused+s.failed, uint64(len(s.sizes))
			s.mu.Unlock()
			if sent+dropped+left != many {
				t.Errorf("%d sent + %d dropped + %d left is not %d", sent, dropped, left, many)
			}
			if got := uint64(len(receiver.Records())); got != sent {
				t.Errorf("%d came, and %d count as sent", got, sent)
			}
			if test.check != nil {
				test.check(t, sent, dropped)
			}
			told := strings.Join(w.all(), "\n")
			if !strings.Contains(told, test.told) || len(w.all()) > 3 {
				t.Errorf("told %q, want %q", told, test.told)
			}
			if n := dropped + left; n > 0 != strings.Contains(told, "could not be sent") ||
				n > 0 && !strings.Contains(told, fmt.Sprintf("%d of %d records could not be sent", n, many)) {
				t.Errorf("%d were not sent, told %q", n, told)
			}
		})
	}
	close(release)
}

// TestAway: what is not there for a while gets all that there was room for, and is
// told how much there was not.
func TestAway(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	listener.Close()

	s, w := open(t, Config{URL: "http://" + address, All: true})
	now := time.Now().UnixNano()
	const many = maxRecords + 1000
	for n := range many {
		r := connect(n%1000, now)
		s.Observe(&r)
	}
	for deadline := time.Now().Add(time.Minute); !slices.ContainsFunc(w.all(), func(line string) bool { return strings.Contains(line, "connection refused") }); {
		if time.Now().After(deadline) {
			t.Fatalf("it is not told: %q", w.all())
		}
		time.Sleep(time.Millisecond)
	}
	if listener, err = net.Listen("tcp", address); errors.Is(err, unix.EADDRINUSE) {
		t.Skipf("somebody else has taken the port: %v", err)
	} else if err != nil {
		t.Fatal(err)
	}
	receiver := otlptest.Serve(listener, otlptest.Accept)
	t.Cleanup(receiver.Close)
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if sent, _ := s.Counts(); sent >= maxRecords {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not sent again")
		}
	}
	s.Tick(now + 1)
	finish(s)
	got := receiver.Records()
	last := got[len(got)-1]
	attributes := otlptest.Attributes(last.Attributes)
	if last.EventName != "twtrace.lost" || attributes["twtrace.lost.where"] != "otlp" {
		t.Fatalf("the last is %s %v", last.EventName, attributes)
	}
	if n := int(attributes["twtrace.lost.count"].(int64)); n+len(got)-1 != many {
		t.Errorf("%d came, and %d are told as lost, of %d", len(got)-1, n, many)
	}
}

// TestConfig: flags and the standard's variables.
func TestConfig(t *testing.T) {
	for _, test := range []struct {
		url  string
		env  map[string]string
		on   bool
		fail string
	}{
		{},
		{url: "http://127.0.0.1:1", on: true},
		{url: "127.0.0.1:4318", fail: "must be a URL"},
		{url: "ftp://127.0.0.1", fail: "must be a URL"},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, on: true},
		{env: map[string]string{"OTEL_EXPORTER_OTLP_LOGS_ENDPOINT": "http://127.0.0.1:1/x"}, on: true},
		{env: map[string]string{"OTEL_LOGS_EXPORTER": "otlp"}, on: true},
		{env: map[string]string{"OTEL_LOGS_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}},
		{env: map[string]string{"OTEL_LOGS_EXPORTER": "console"}, fail: "must be otlp or none"},
		{url: "http://127.0.0.1:1", env: map[string]string{"OTEL_SDK_DISABLED": "true"}},
		{url: "http://127.0.0.1:1", env: map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, fail: "only http/protobuf"},
		{url: "http://127.0.0.1:1", on: true, env: map[string]string{
			"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc", "OTEL_EXPORTER_OTLP_LOGS_PROTOCOL": "http/protobuf"}},
	} {
		t.Run(fmt.Sprint(test.url, test.env), func(t *testing.T) {
			for name, value := range test.env {
				t.Setenv(name, value)
			}
			var w warnings
			s, err := New(Config{URL: test.url, Warn: w.warn})
			if s != nil {
				finish(s)
			}
			if (s != nil) != test.on || (err != nil) != (test.fail != "") || err != nil && !strings.Contains(err.Error(), test.fail) {
				t.Errorf("sender %v, error %v", s != nil, err)
			}
		})
	}
}

// BenchmarkObserve is what a record costs whom it comes from: one that is merely
// summed up, and one that is sent.
func BenchmarkObserve(b *testing.B) {
	for _, all := range []bool{false, true} {
		b.Run(fmt.Sprintf("all=%v", all), func(b *testing.B) {
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			receiver := otlptest.Serve(listener, otlptest.Accept)
			defer receiver.Close()
			s, _ := open(b, Config{URL: receiver.URL, All: all})
			defer finish(s)
			r := connect(1, time.Now().UnixNano())
			b.ReportAllocs()
			for b.Loop() {
				s.Observe(&r)
			}
		})
	}
}

func parse(address string, port int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr(address), uint16(port))
}
