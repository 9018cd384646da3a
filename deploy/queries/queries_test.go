// Package queries_test checks the queries that no engine is needed for.
package queries_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/twtrace/twtrace/internal/metrics"
	"github.com/twtrace/twtrace/internal/record"
)

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func files(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	if err != nil || len(paths) == 0 {
		t.Fatalf("%s: %d files, %v", pattern, len(paths), err)
	}
	return paths
}

// TestComplete: each question is asked of Loki and of Log Analytics, and stands in
// the list.
func TestComplete(t *testing.T) {
	list := read(t, "README.md")
	for _, path := range files(t, "*.logql") {
		if _, err := os.Stat(strings.TrimSuffix(path, ".logql") + ".kql"); err != nil {
			t.Error(err)
		}
	}
	for _, path := range files(t, "*.*ql") {
		if !strings.Contains(list, "("+path+")") {
			t.Errorf("%s is not in README.md", path)
		}
	}
	for _, link := range regexp.MustCompile(`\]\(([a-z-]+\.[a-z]+)\)`).FindAllStringSubmatch(list, -1) {
		if _, err := os.Stat(link[1]); err != nil {
			t.Error(err)
		}
	}
}

// known are the names of all metrics, with all that is optional.
func known() map[string]bool {
	m := metrics.New(metrics.Config{Places: 1, Destinations: 1, Sent: func() (uint64, uint64) { return 0, 0 }})
	descriptions := make(chan *prometheus.Desc)
	go func() {
		m.Registry.Describe(descriptions)
		close(descriptions)
	}()
	names := make(map[string]bool)
	for d := range descriptions {
		if found := regexp.MustCompile(`fqName: "(\w+)"`).FindStringSubmatch(d.String()); found != nil {
			for _, part := range []string{"", "_bucket", "_sum", "_count"} {
				names[found[1]+part] = true
			}
		}
	}
	return names
}

// TestMetrics: every metric that a query, an alert or the dashboard asks for is there.
func TestMetrics(t *testing.T) {
	names := known()
	paths := append(files(t, "*.promql"), files(t, "../prometheus/alerts.yaml")...)
	asked := 0
	for _, path := range append(paths, files(t, "../grafana/*.json")...) {
		for _, name := range regexp.MustCompile(`\btwtrace_\w+`).FindAllString(read(t, path), -1) {
			asked++
			if !names[name] {
				t.Errorf("%s asks for %s, which is no metric", path, name)
			}
		}
	}
	if asked < 30 {
		t.Errorf("only %d metrics are asked for", asked)
	}
}

// TestPromQL: the queries parse, and so do the dashboard's.
func TestPromQL(t *testing.T) {
	if _, err := exec.LookPath("promtool"); err != nil {
		t.Skip("promtool is not installed: .ci/deps does that")
	}
	var queries []string
	for _, path := range files(t, "*.promql") {
		queries = append(queries, read(t, path))
	}
	for _, path := range files(t, "../grafana/*.json") {
		queries = append(queries, dashboard(t, path)...)
	}
	var rules strings.Builder
	rules.WriteString("groups: [{name: queries, rules: [\n")
	for i, query := range queries {
		quoted, err := json.Marshal(query)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&rules, "{record: query:%d, expr: %s},\n", i, quoted)
	}
	rules.WriteString("]}]\n")
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("promtool", "check", "rules", path).CombinedOutput(); err != nil {
		t.Errorf("promtool: %v\n%s", err, out)
	}
}

// dashboard returns the queries of a Grafana dashboard, its variables filled in. Each
// panel has a title, a place of its own, and queries.
func dashboard(t *testing.T, path string) (queries []string) {
	t.Helper()
	var d struct {
		Title, UID    string
		SchemaVersion int
		Panels        []struct {
			ID          int
			Title, Type string
			GridPos     struct{ X, Y, W, H int }
			Targets     []struct{ Expr, LegendFormat string }
		}
		Templating struct {
			List []struct{ Name, Type, Query string }
		}
	}
	decoder := json.NewDecoder(strings.NewReader(read(t, path)))
	if err := decoder.Decode(&d); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	if d.Title == "" || d.UID == "" || d.SchemaVersion == 0 || len(d.Panels) == 0 {
		t.Errorf("%s: %q, uid %q, schema %d, %d panels", path, d.Title, d.UID, d.SchemaVersion, len(d.Panels))
	}
	fill := strings.NewReplacer("$__rate_interval", "5m", "$__range", "1h", "$instance", ".*", "$namespace", ".*")
	ids, taken := make(map[int]bool), make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] || p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("%s: panel %d, %q, has %d queries, or its number twice", path, p.ID, p.Title, len(p.Targets))
		}
		ids[p.ID] = true
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := taken[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s: %q lies over %q, or beyond the edge", path, p.Title, other)
				}
				taken[[2]int{x, y}] = p.Title
			}
		}
		for _, target := range p.Targets {
			query := fill.Replace(target.Expr)
			if strings.Contains(query, "$") {
				t.Errorf("%s: %q has a variable that is not known: %s", path, p.Title, target.Expr)
			}
			queries = append(queries, query)
		}
	}
	return queries
}

// TestKQL: what the queries ask for is in the schema of the log; what Kubernetes calls
// things has a fixed name there, too.
func TestKQL(t *testing.T) {
	var schema any
	if err := json.Unmarshal([]byte(record.Schema()), &schema); err != nil {
		t.Fatal(err)
	}
	properties := make(map[string]bool)
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if own, ok := v["properties"].(map[string]any); ok {
				for name := range own {
					properties[name] = true
				}
			}
			for _, item := range v {
				walk(item)
			}
		case []any:
			for _, item := range v {
				walk(item)
			}
		}
	}
	walk(schema)
	for _, path := range files(t, "*.kql") {
		for _, asked := range regexp.MustCompile(`\bd((?:\.[a-z0-9_]+)+)`).FindAllStringSubmatch(read(t, path), -1) {
			for _, name := range strings.Split(asked[1][1:], ".") {
				switch name {
				case "k8s", "namespace", "pod", "container", "name":
					// They are added with the names of containers.
				default:
					if !properties[name] {
						t.Errorf("%s asks for d%s: the schema has no %s", path, asked[1], name)
					}
				}
			}
		}
	}
}
