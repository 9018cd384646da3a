package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/lab"
)

// A found verdict is one that a scenario got.
type found struct {
	line  line
	cause *verdictLine // the inner one, where there is one
}

func (f found) String() string {
	text := f.cause.ID + " " + f.cause.Confidence
	if f.cause != f.line.Verdict {
		text = f.line.Verdict.ID + "(" + text + ")"
	}
	return fmt.Sprintf("line %d, %s: %s: %s %v", f.line.Seq, f.line, text, f.cause.Text, f.cause.evidence())
}

func (v *verdictLine) evidence() (texts []string) {
	for _, e := range v.Evidence {
		texts = append(texts, e.Text)
	}
	return texts
}

// TestVerdicts: every scenario of the lab gets its verdict, as surely as can be, and
// nothing that is wrong. State changes alone do not show all of it.
func TestVerdicts(t *testing.T) {
	needRoot(t)
	tiers := slices.DeleteFunc(tiers(), func(tier string) bool { return tier == "state_only" })
	if testing.Short() {
		tiers = tiers[:1] // on many kernels, the best one
	}
	for _, tier := range tiers {
		t.Run(tier, func(t *testing.T) {
			needTier(t, tier)
			undisturbed(t, func(t testing.TB) { testVerdicts(t, tier) })
		})
	}
}

func testVerdicts(t testing.TB, tier string) {
	tr := trace(t, "-o", "json", "--probe-tier", tier)
	results := inLab(t, lab.Scenarios())
	// What the counters tell of a namespace comes a little later.
	tr.await("tw_overflow", func(l line) bool { return l.Verdict != nil && l.Verdict.ID == "tw_overflow" })
	lines := tr.stop()
	checkLog(t, lines)
	checkReport(t, tr.stdout, lines)
	for _, r := range results {
		checkVerdicts(t, r, lines)
	}
	if path := os.Getenv("TWTRACE_TEST_MATRIX"); path != "" {
		if err := os.WriteFile(path+"."+tier, []byte(matrix(tier, results, lines)), 0o644); err != nil {
			t.Error(err)
		}
	}
}

// A result is a scenario that has run, and where.
type result struct {
	lab.Scenario
	netns map[uint32]string
}

// inLab runs the scenarios side by side, and those that change the machine after
// the others.
func inLab(t testing.TB, scenarios []lab.Scenario) []result {
	t.Helper()
	results := make([]result, len(scenarios))
	run := func(i int) {
		s := scenarios[i]
		n, err := lab.New(byte(i))
		if err != nil {
			t.Errorf("%s: %v", s.Name, err)
			return
		}
		results[i] = result{s, n.NetNS()}
		if err := s.Run(t.Context(), n, func(string, ...any) {}); err != nil {
			t.Error(err)
		}
		// Others must not get these namespaces' inodes.
		t.Cleanup(n.Close)
	}
	var group sync.WaitGroup
	for i := range scenarios {
		if !scenarios[i].Global {
			group.Go(func() { run(i) })
		}
	}
	group.Wait()
	for i := range scenarios {
		if scenarios[i].Global && mustRun() {
			run(i)
		}
	}
	return slices.DeleteFunc(results, func(r result) bool { return r.netns == nil })
}

// verdictsOf returns the verdicts that the scenario got.
func (r result) verdictsOf(lines []line) []found {
	var all []found
	for _, l := range lines {
		if _, ours := r.netns[l.NetNS]; !ours || l.Verdict == nil {
			continue
		}
		f := found{l, l.Verdict}
		for f.cause.Inner != nil {
			f.cause = f.cause.Inner
		}
		all = append(all, f)
	}
	return all
}

func checkVerdicts(t testing.TB, r result, lines []line) {
	t.Helper()
	all := r.verdictsOf(lines)
	right := 0
	for _, f := range all {
		wrapper := ""
		if f.cause != f.line.Verdict {
			wrapper = f.line.Verdict.ID
		}
		switch isRight := f.cause.ID == r.Verdict; {
		case isRight && wrapper == r.Wrapper:
			right++
			fallthrough
		case isRight:
			if f.cause.Confidence == "certain" && !r.Certain && f.line.Event == "connect" {
				t.Errorf("%s: %s: more sure than can be", r.Name, f)
			}
		case f.cause.Confidence == "certain":
			t.Errorf("%s: %s: surely wrong", r.Name, f)
		}
		for _, v := range []*verdictLine{f.line.Verdict, f.cause} {
			for _, e := range v.Evidence {
				if e.Seq != nil && (*e.Seq >= uint64(len(lines)) || lines[*e.Seq].Time.After(f.line.Time.Add(time.Second))) {
					t.Errorf("%s: %s: the evidence %q is no line before it", r.Name, f, e.Text)
				}
			}
		}
	}
	if right == 0 {
		t.Errorf("%s: no verdict is %s %s: %v", r.Name, r.Wrapper, r.Verdict, all)
		for _, l := range of(lines, "connect", "close", "syn_retransmit", "reset", "drop", "counters", "lost") {
			if _, ours := r.netns[l.NetNS]; ours || l.Event == "lost" {
				t.Logf("line %d: %s %+v %+v %+v", l.Seq, l, l.Network, l.Connect, l.Drop)
			}
		}
	}
}

// matrix is what the scenarios were told as, a row each: the verdicts that they should
// get, and all others. The matrix of scenarios and ids has little else than noughts.
func matrix(tier string, results []result, lines []line) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nLinux %s, probe tier %s:\n\n| scenario | its verdict | others |\n| --- | --- | --- |\n", kernelRelease(), tier)
	for _, r := range results {
		right, others := make(map[string]int), make(map[string]int)
		for _, f := range r.verdictsOf(lines) {
			text := fmt.Sprintf("`%s` %s", f.cause.ID, f.cause.Confidence)
			if f.cause != f.line.Verdict {
				text += fmt.Sprintf(" in `%s`", f.line.Verdict.ID)
			}
			if f.cause.ID == r.Verdict {
				right[text]++
			} else {
				others[text]++
			}
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", r.Name, times(right), times(others))
	}
	return b.String()
}

func times(counts map[string]int) string {
	var texts []string
	for _, text := range slices.Sorted(maps.Keys(counts)) {
		if n := counts[text]; n > 1 {
			text += fmt.Sprintf(" × %d", n)
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, ", ")
}

func kernelRelease() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(name.Release[:])
}

// TestLastCounters: what overflowed a moment before the end is told, too.
func TestLastCounters(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	var holder *peer // by a process the namespace is found again
	err := n.do(func() (err error) {
		holder, err = startPeer("holder", "listen-and-hold", "127.0.0.1:81")
		return errors.Join(err, sysctl("ipv4/tcp_max_tw_buckets", "1"))
	})
	if err != nil {
		t.Fatal(err)
	}
	defer holder.end()
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	// The counters are looked at first when the namespace is.
	for i, event := range []string{"netns", "close"} {
		for range 1 + 2*i {
			if err := n.do(func() error { return connected(closeInTurn) }); err != nil {
				t.Fatal(err)
			}
		}
		tr.await(event, func(l line) bool { return l.Event == event })
	}
	lines := tr.stop()
	if !slices.ContainsFunc(of(lines, "verdict"), func(l line) bool { return l.Verdict.ID == "tw_overflow" }) {
		t.Errorf("no verdict is tw_overflow, and %d TIME_WAITs began", len(of(lines, "time_wait.enter")))
	}
}

// TestVerdictsInNoise: the same verdicts while healthy connections come and go in
// other network namespaces, 2,000 a second where the processor is not emulated.
func TestVerdictsInNoise(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("an emulated processor has no time for noise")
	}
	undisturbed(t, testVerdictsInNoise)
}

func testVerdictsInNoise(t testing.TB) {
	tr := trace(t, "-o", "json")
	var noise sync.WaitGroup
	stop := make(chan struct{})
	made := new(atomic.Uint64)
	for range 2 {
		n := newNetNS(t)
		noise.Go(func() {
			// A second's worth at a time, and then what is left of the second.
			for tick := time.NewTicker(time.Second); ; <-tick.C {
				select {
				case <-stop:
					tick.Stop()
					return
				default:
				}
				each := min(connections(t)/10, 1000)
				if err := churn(n, each); err != nil {
					t.Error(err)
					return
				}
				made.Add(uint64(each))
			}
		})
	}
	began := time.Now()
	results := inLab(t, lab.Scenarios())
	close(stop)
	noise.Wait()
	t.Logf("%.0f healthy connections a second", float64(made.Load())/time.Since(began).Seconds())
	tr.await("tw_overflow", func(l line) bool { return l.Verdict != nil && l.Verdict.ID == "tw_overflow" })
	lines := tr.stop()
	for _, r := range results {
		checkVerdicts(t, r, lines)
	}
	if made.Load() == 0 {
		t.Error("there was no noise")
	}
}
