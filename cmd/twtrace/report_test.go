package main

import (
	"encoding/json"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/lab"
)

// checkReport asserts that report tells the same figures of the log at path as the run
// that wrote it.
func checkReport(t testing.TB, path string, lines []line) {
	t.Helper()
	var r struct {
		Events, Connects, Reuses, Verdicts, Drops map[string]uint64
		TimeWait                                  struct {
			Entered uint64
			Ended   map[string]uint64
		} `json:"time_wait"`
		Lost         struct{ Kernel, Output uint64 }
		Truncated    bool
		DamagedLines uint64            `json:"damaged_lines"`
		MissingLines uint64            `json:"missing_lines"`
		UnknownKeys  map[string]uint64 `json:"unknown_keys"`
	}
	text, err := twtrace("report", "-o", "json", path).Output()
	if err == nil {
		err = json.Unmarshal(text, &r)
	}
	if err != nil {
		t.Fatalf("twtrace report: %v", err)
	}
	s := lines[len(lines)-1].Summary
	total := func(counts map[string]uint64) (sum uint64) {
		for _, n := range counts {
			sum += n
		}
		return sum
	}
	for _, c := range []struct {
		what      string
		want, got any
	}{
		{"events", s.Events, r.Events}, {"connects", s.Connects, r.Connects}, {"verdicts", total(s.Verdicts), total(r.Verdicts)},
		{"causes", slices.Sorted(maps.Keys(s.Verdicts)), slices.Sorted(maps.Keys(r.Verdicts))},
		{"lost", []uint64{s.Lost.Kernel, s.Lost.Output}, []uint64{r.Lost.Kernel, r.Lost.Output}},
		{"reuses", s.Events["port_reuse"], total(r.Reuses)}, {"drops", s.Events["drop"], total(r.Drops)},
		{"entered", s.Events["time_wait.enter"], r.TimeWait.Entered},
		{"ended", s.Events["time_wait.end"], total(r.TimeWait.Ended)},
		{"truncated", false, r.Truncated}, {"damaged and missing", uint64(0), r.DamagedLines + r.MissingLines},
		{"not understood", 0, len(r.UnknownKeys)},
	} {
		if diff := cmp.Diff(c.want, c.got); diff != "" {
			t.Errorf("%s of the live run, and of the report:\n%s", c.what, diff)
		}
	}
}

// TestReport: the report of a log is the summary of the run that wrote it, whatever
// came together in it.
func TestReport(t *testing.T) {
	needRoot(t)
	noKernels(t)
	quick := slices.DeleteFunc(lab.Scenarios(), func(s lab.Scenario) bool {
		return !slices.Contains([]string{"refused", "no-route", "port-exhaustion", "port-leak", "reset", "half-open", "tw-overflow"}, s.Name)
	})
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			needTier(t, tier)
			for range 10 {
				rand.Shuffle(len(quick), func(i, j int) { quick[i], quick[j] = quick[j], quick[i] })
				mix := quick[:1+rand.IntN(4)]
				undisturbed(t, func(t testing.TB) {
					tr := trace(t, "-o", "json", "--probe-tier", tier)
					inLab(t, mix)
					lines := tr.stop()
					checkReport(t, tr.stdout, lines)
					if t.Failed() {
						var names []string
						for _, s := range mix {
							names = append(names, s.Name)
						}
						t.Fatalf("it was %s", strings.Join(names, ", "))
					}
				})
			}
		})
	}
}
