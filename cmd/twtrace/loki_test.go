package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/lab"
)

// envLoki is the path of a Loki; make loki builds one and sets it.
const envLoki = "TWTRACE_LOKI"

// TestLoki: two pods on two nodes connect to one server behind one address, and one of
// them gets no answer. Neither node's twtrace can see why; Loki, which has the records
// of both, finds the pair. All questions of deploy/queries are asked.
func TestLoki(t *testing.T) {
	program := os.Getenv(envLoki)
	if program == "" {
		t.Skip("make loki builds a Loki, and runs this")
	}
	needRoot(t)
	loki := startLoki(t, program)

	run := func(scenario string, n *lab.Network) {
		t.Helper()
		s, err := lab.Find(scenario)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Run(t.Context(), n, func(string, ...any) {}); err != nil {
			t.Fatal(err)
		}
	}
	networks := make([]*lab.Network, 2)
	for i := range networks {
		var err error
		if networks[i], err = lab.New(byte(i)); err != nil {
			t.Fatal(err)
		}
		defer networks[i].Close()
	}
	began := time.Now()
	var nodes []*tracer
	for i, place := range []struct {
		network *lab.Network
		name    string
	}{{networks[0], "a"}, {networks[0], "b"}, {networks[1], "a"}} {
		for inode, name := range place.network.NetNS() {
			if name != place.name {
				continue
			}
			t.Setenv("OTEL_RESOURCE_ATTRIBUTES", fmt.Sprintf("k8s.node.name=node-%d,k8s.cluster.name=lab", i+1))
			nodes = append(nodes, trace(t, "serve", "--listen", "", "--netns", strconv.Itoa(int(inode)), "--otlp", loki+"/otlp/v1/logs"))
		}
	}
	run("nat-recycle", networks[0])
	run("port-exhaustion", networks[1])
	for _, node := range nodes {
		node.signal(unix.SIGTERM)
	}
	for i, node := range nodes {
		if err := node.wait(); err != nil || node.stderr.Len() > 0 {
			t.Fatalf("node %d: %v: %s", i+1, err, &node.stderr)
		}
	}
	ended := time.Now()

	answers := make(map[string][]string)
	queries, err := filepath.Glob("../../deploy/queries/*.logql")
	if err != nil || len(queries) < 5 {
		t.Fatalf("%d queries, %v", len(queries), err)
	}
	for _, path := range queries {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimSuffix(filepath.Base(path), ".logql")
		answers[name] = askLoki(t, loki, string(text), began.Add(-time.Minute), ended.Add(30*time.Second))
		t.Logf("%s:\n\t%s", name, strings.Join(answers[name], "\n\t"))
	}
	for name, wants := range map[string][]string{
		// Either can be the one that gets no answer: it depends on their clocks.
		"one-works-another-fails": {"connects=failed", "connects=established", "node-1", "node-2", "network_peer_address=10.88.0.2"},
		"nat-gateway-budget":      {"network_peer_address=10.88.0.2 network_peer_port=80"},
		"load-balancer-budget":    {"k8s_node_name=node-1 network_peer_address=10.88.0.2", "k8s_node_name=node-3 network_peer_address=10.88.1.2"},
		"who-takes-the-ports":     {"twtrace_process_comm=client-a ", "network_peer_address=10.88.0.2"},
		"verdicts-by-pod":         {"k8s_node_name=node-3 twtrace_verdict_cause=local_ports_exhausted_time_wait"},
		"ports-nearly-used-up":    {"k8s_node_name=node-3", "10.88.1.2:80: ports at 100 %, 1 of 1"},
		"what-was-lost":           nil,
	} {
		answer, ok := answers[name]
		if !ok {
			t.Errorf("%s is not asked", name)
		}
		for _, want := range wants {
			if !slices.ContainsFunc(answer, func(row string) bool { return strings.Contains(row, want) }) {
				t.Errorf("%s: no %q", name, want)
			}
		}
		if wants == nil && len(answer) > 0 {
			t.Errorf("%s: %q", name, answer)
		}
	}
	// The pair: one destination, and what failed on one node worked on the other.
	pair := answers["one-works-another-fails"]
	found := false
	for _, row := range pair {
		for failed, worked := range map[string]string{"node-1": "node-2", "node-2": "node-1"} {
			found = found || strings.Contains(row, "connects=failed k8s_node_name="+failed+" ") &&
				slices.ContainsFunc(pair, func(row string) bool {
					return strings.Contains(row, "connects=established k8s_node_name="+worked+" ")
				})
		}
		if strings.Contains(row, "node-3") {
			t.Errorf("node 3 has another destination: %s", row)
		}
	}
	if !found {
		t.Errorf("no pair in %q", pair)
	}
}

// startLoki starts a Loki on loopback, with its data in a directory of the test, and
// returns its URL.
func startLoki(t *testing.T, program string) string {
	t.Helper()
	dir := t.TempDir()
	_, port, err := net.SplitHostPort(freeAddress(t))
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(dir, "loki.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, `
auth_enabled: false
analytics: {reporting_enabled: false}
server: {http_listen_address: 127.0.0.1, http_listen_port: %[2]s, grpc_listen_address: 127.0.0.1, grpc_listen_port: 0, log_level: warn}
common:
  instance_addr: 127.0.0.1
  path_prefix: %[1]s
  replication_factor: 1
  ring: {kvstore: {store: inmemory}, instance_addr: 127.0.0.1}
  storage: {filesystem: {chunks_directory: %[1]s/chunks, rules_directory: %[1]s/rules}}
memberlist: {bind_addr: [127.0.0.1], bind_port: 0}
schema_config: {configs: [{from: 2024-01-01, store: tsdb, object_store: filesystem, schema: v13, index: {prefix: index_, period: 24h}}]}
`, dir, port), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-config.file", config)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it has nothing to lose
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("loki: %s", &said)
		}
	})
	loki := "http://127.0.0.1:" + port
	until(t, "Loki is ready", func() bool {
		response, err := http.Get(loki + "/ready")
		if err != nil {
			return false
		}
		response.Body.Close()
		return response.StatusCode == http.StatusOK
	})
	return loki
}

// askLoki returns the answers to a query over a time: labels and the highest value of
// a series, or labels and a line.
func askLoki(t *testing.T, loki, query string, from, to time.Time) (rows []string) {
	t.Helper()
	response, err := http.Get(loki + "/loki/api/v1/query_range?" + url.Values{
		"query": {query}, "step": {"5"},
		"start": {strconv.FormatInt(from.UnixNano(), 10)}, "end": {strconv.FormatInt(to.UnixNano(), 10)},
	}.Encode())
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Data struct {
			Result []struct {
				Metric, Stream map[string]string
				Values         [][2]any
			}
		}
	}
	if err := json.Unmarshal(body, &answer); err != nil || response.StatusCode != http.StatusOK {
		t.Fatalf("%s\n%d: %s", query, response.StatusCode, body)
	}
	for _, r := range answer.Data.Result {
		var labels []string
		for name, value := range r.Metric {
			labels = append(labels, name+"="+value)
		}
		if node := r.Stream["k8s_node_name"]; node != "" {
			labels = append(labels, "k8s_node_name="+node)
		}
		slices.Sort(labels)
		highest := slices.MaxFunc(r.Values, func(a, b [2]any) int {
			return strings.Compare(fmt.Sprint(a[1]), fmt.Sprint(b[1]))
		})
		rows = append(rows, fmt.Sprint(strings.Join(labels, " "), " ", highest[1]))
	}
	slices.Sort(rows)
	return rows
}
