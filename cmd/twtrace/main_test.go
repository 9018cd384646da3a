package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is twtrace itself when it is told so, and a program with
// sockets of its own for the tests that need a second process.
const (
	envMain = "TWTRACE_TEST_MAIN"
	envPeer = "TWTRACE_TEST_PEER"
	// envCgroup is the directory of the control group that either runs in.
	envCgroup = "TWTRACE_TEST_CGROUP"
)

func TestMain(m *testing.M) {
	if cgroup := os.Getenv(envCgroup); cgroup != "" {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	switch {
	case os.Getenv(envMain) != "":
		os.Unsetenv(envMain)
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	case os.Getenv(envPeer) != "":
		os.Exit(runPeer(os.Args[1], os.Args[2:]))
	}
	os.Exit(m.Run())
}

// twtrace returns the command that runs twtrace with args.
func twtrace(args ...string) *exec.Cmd {
	cmd := exec.Command(self(), args...)
	cmd.Env = append(os.Environ(), envMain+"=1")
	return cmd
}

func self() string {
	path, err := os.Executable()
	if err != nil {
		panic(err)
	}
	return path
}

// skip skips a test for a reason that this machine has; where every test must
// run, as in the VMs, it fails.
func skip(t testing.TB, format string, args ...any) {
	t.Helper()
	if mustRun() {
		t.Fatalf("may not be skipped here: "+format, args...)
	}
	t.Skipf(format, args...)
}

func mustRun() bool { return os.Getenv("TWTRACE_TEST_REQUIRE") != "" }

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "tracing needs root")
	}
}

// A tracer is a twtrace that runs beside the test.
type tracer struct {
	t      testing.TB
	cmd    *exec.Cmd
	stdout string // a file's path, for trace
	stderr bytes.Buffer
	wait   func() error // until it has ended
}

// trace starts twtrace, with stdout in a file, and waits until it traces.
func trace(t testing.TB, args ...string) *tracer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "stdout")
	stdout, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer stdout.Close()
	tr := traceTo(t, stdout, args...)
	tr.stdout = path
	return tr
}

// tracePiped is trace with a pipe for stdout, which nobody reads but who calls it.
func tracePiped(t testing.TB, args ...string) (tr *tracer, stdout *os.File) {
	t.Helper()
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	defer writer.Close()
	return traceTo(t, writer, args...), reader
}

// traceTo is trace with another stdout.
func traceTo(t testing.TB, stdout *os.File, args ...string) *tracer {
	t.Helper()
	ready := filepath.Join(t.TempDir(), "ready")
	tr := &tracer{t: t, cmd: twtrace(append(args, "--ready-file", ready)...)}
	tr.cmd.Stdout = stdout
	tr.cmd.Stderr = &tr.stderr
	if err := tr.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	tr.cmd.WaitDelay = 10 * time.Second // for what it started and did not end
	ended := make(chan struct{})
	var failure error
	go func() {
		failure = tr.cmd.Wait()
		close(ended)
	}()
	tr.wait = func() error {
		<-ended
		return failure
	}
	t.Cleanup(func() {
		_ = tr.cmd.Process.Kill() // where the test did not get to end it
		_ = tr.wait()
		if t.Failed() {
			t.Logf("stderr: %s", &tr.stderr)
		}
	})
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(ready); err == nil {
			return tr
		}
		select {
		case <-ended:
			t.Fatalf("twtrace %q ended before it was ready: %v: %s", args, failure, &tr.stderr)
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("twtrace %q does not get ready: %s", args, &tr.stderr)
		}
	}
}

// sofar returns the JSON lines that it has written to stdout by now.
func (tr *tracer) sofar() []line {
	tr.t.Helper()
	data, err := os.ReadFile(tr.stdout)
	if err != nil {
		tr.t.Fatal(err)
	}
	return parseLines(tr.t, tr.stdout, data[:bytes.LastIndexByte(data, '\n')+1])
}

// await waits until it has printed a line that is wanted.
func (tr *tracer) await(what string, wanted func(line) bool) {
	tr.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if slices.ContainsFunc(tr.sofar(), wanted) {
			return
		}
		if time.Now().After(deadline) {
			tr.t.Fatalf("%s: no such line", what)
		}
	}
}

// stop ends it and returns the JSON lines that it wrote to stdout.
func (tr *tracer) stop() []line {
	tr.t.Helper()
	tr.end()
	return readLines(tr.t, tr.stdout)
}

func (tr *tracer) signal(s unix.Signal) {
	tr.t.Helper()
	if err := tr.cmd.Process.Signal(s); err != nil {
		tr.t.Fatal(err)
	}
}

// end ends it as Ctrl-C does.
func (tr *tracer) end() {
	tr.t.Helper()
	began := time.Now()
	tr.signal(unix.SIGINT)
	if err := tr.wait(); err != nil {
		tr.t.Fatalf("twtrace: %v: %s", err, &tr.stderr)
	}
	if took := time.Since(began); took > time.Minute {
		tr.t.Errorf("SIGINT took %s", took)
	}
}

// A line of the log, as its reader sees it.
type line struct {
	Schema  string    `json:"schema"`
	Time    time.Time `json:"time"`
	Seq     uint64    `json:"seq"`
	Event   string    `json:"event"`
	Network struct {
		Type        string
		Local, Peer endpoint
	}
	NetNS       uint32 `json:"netns"`
	NetNSCookie string `json:"netns_cookie"`
	Socket      struct{ Cookie string }
	Process     struct {
		PID, TID, UID uint32
		Comm          string
	}
	place
	State struct {
		Old, New string
		Duration float64 `json:"duration_ms"`
	}
	Connect struct {
		Outcome     string
		Duration    float64 `json:"duration_ms"`
		Retransmits int     `json:"syn_retransmits"`
		TSVal       *uint32
	}
	Error  struct{ Type string }
	Accept struct {
		Duration *float64 `json:"duration_ms"`
	}
	Close struct {
		By       string
		Duration float64 `json:"duration_ms"`
		Sent     uint64  `json:"bytes_sent"`
		Received uint64  `json:"bytes_received"`
		TSVal    *uint32 `json:"tsval_last"`
	}
	SYN struct {
		Packet  string
		Attempt int
	}
	TimeWait struct {
		SameDestination int `json:"same_destination"`
		Ended           string
		Duration        float64 `json:"duration_ms"`
		Exact           bool
	} `json:"time_wait"`
	Reuse struct {
		Scope, How string
		After      float64 `json:"after_ms"`
		Previous   struct {
			Time    time.Time
			Process struct {
				PID  uint32
				Comm string
			}
			place
			NetNS uint32 `json:"netns"`
			Ended struct {
				Time time.Time
				How  string
			}
		}
	}
	Ports struct {
		InUse     int `json:"in_use"`
		TimeWait  int `json:"time_wait"`
		Range     []int
		UsedRatio float64 `json:"used_ratio"`
		Reserved  *int
		Holder    struct {
			Port    int
			Process struct {
				PID  uint32
				Comm string
			}
			place
			EndsIn float64 `json:"ends_in_ms"`
		}
	}
	Drop struct {
		Packet, Reason, Location string
		NetNS                    uint32
		Listener                 bool
	}
	Counters struct{ Delta map[string]uint64 }
	Verdict  *verdictLine
	Reset    struct{ Direction, Reason string }
	Lost     struct {
		Count uint64
		Where string
		Kinds map[string]uint64
	}
	Meta struct {
		TSOffsetMode string `json:"ts_offset_mode"`
		Probes       []struct {
			Name, Via string
			Attached  bool
			WhyNot    string `json:"why_not"`
		}
		BlindSpots []string `json:"blind_spots"`
		Filters    []string
	}
	Summary struct {
		Events, Connects, Verdicts map[string]uint64
		Lost                       struct{ Kernel, Output uint64 }
	}
}

// A place is what an owner is in.
type place struct {
	Cgroup    struct{ ID, Path string }
	Container struct{ ID, Name, Runtime string }
	K8s       struct {
		Node, Namespace, Container struct{ Name string }
		Pod                        struct{ Name, UID string }
	}
}

type verdictLine struct {
	ID, Confidence, Text, Advice string
	Evidence                     []struct {
		Seq  *uint64
		Text string
	}
	RuledOut   []string `json:"ruled_out"`
	NotVisible []string `json:"not_visible"`
	Inner      *verdictLine
}

type endpoint struct {
	Address string
	Port    int
}

func readLines(t testing.TB, path string) []line {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return parseLines(t, path, data)
}

func parseLines(t testing.TB, path string, data []byte) []line {
	t.Helper()
	lines := make([]line, bytes.Count(data, []byte("\n"))+1) // never moved: that takes long under the race detector
	decoder := json.NewDecoder(bytes.NewReader(data))
	for i := range lines {
		if err := decoder.Decode(&lines[i]); err == io.EOF {
			return lines[:i]
		} else if err != nil {
			t.Fatalf("%s, line %d: %v", path, i+1, err)
		}
	}
	return lines
}

// of returns the lines of these events.
func of(lines []line, events ...string) []line {
	var found []line
	for _, l := range lines {
		for _, event := range events {
			if l.Event == event {
				found = append(found, l)
			}
		}
	}
	return found
}

// String is what the tests compare.
func (l line) String() string {
	words := []string{l.Event}
	switch l.Event {
	case "state":
		words = append(words, l.State.Old, l.State.New)
	case "connect":
		words = append(words, l.Connect.Outcome)
		if l.Error.Type != "" {
			words = append(words, l.Error.Type)
		}
	case "close":
		words = append(words, l.Close.By, fmt.Sprintf("%d/%d", l.Close.Sent, l.Close.Received))
	case "syn_retransmit":
		words = append(words, l.SYN.Packet, strconv.Itoa(l.SYN.Attempt))
	case "reset":
		words = append(words, l.Reset.Direction)
	case "time_wait.end":
		words = append(words, l.TimeWait.Ended)
	case "port_reuse":
		words = append(words, l.Reuse.Scope, l.Reuse.How)
	}
	return strings.Join(words, " ")
}
