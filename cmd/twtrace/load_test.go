package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/load"
	"github.com/twtrace/twtrace/internal/thread"
)

const churners = 2

// churn makes connections by two workers, and waits until they are over.
func churn(n *netns, connections int) error {
	results := make(chan error)
	for worker := range churners {
		go func() { results <- n.inside(func() error { return load.Work(worker, connections/churners, 80) }) }()
	}
	var errs []error
	for range churners {
		errs = append(errs, <-results)
	}
	return errors.Join(append(errs, n.inside(load.Settle))...)
}

// inside runs f in the network namespace on a thread of its own.
func (n *netns) inside(f func() error) error {
	var ns *os.File
	if err := n.do(func() (err error) {
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		return err
	}
	defer ns.Close()
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return err
		}
		return f()
	})
}

// connections is how many the load tests make: fewer where the processor is
// emulated.
func connections(t testing.TB) int {
	if n, err := strconv.Atoi(os.Getenv("TWTRACE_TEST_CONNECTIONS")); err == nil {
		return n
	}
	return 10_000
}

// TestLoad: at full speed every attempt is one connect line in the log, and
// nothing is lost.
func TestLoad(t *testing.T) {
	needRoot(t)
	undisturbed(t, testLoad)
}

func testLoad(t testing.TB) {
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr := trace(t, "--netns", strconv.Itoa(int(n.inode)), "--log", log)
	want := connections(t)
	if err := churn(n, want); err != nil {
		t.Fatal(err)
	}
	tr.end()
	lines := readLines(t, log)
	checkLog(t, lines)
	if lost := checkSum(t, lines, want, n); lost > 0 {
		t.Errorf("lost %d", lost)
	}
	attempts := make(map[string]bool)
	for _, l := range of(lines, "connect") {
		if l.Connect.Outcome != "established" || l.Process.PID != uint32(os.Getpid()) {
			t.Fatalf("line %d: %s of process %d", l.Seq, l, l.Process.PID)
		}
		key := fmt.Sprint(l.Network.Local, l.Network.Peer, l.Socket.Cookie, l.Time.UnixNano())
		if attempts[key] {
			t.Fatalf("line %d is a duplicate: %s %+v", l.Seq, l, l.Network)
		}
		attempts[key] = true
	}
	if len(attempts) != want {
		t.Errorf("%d connect lines, want %d", len(attempts), want)
	}
	for event, factor := range map[string]int{"connect": 1, "accept": 1, "close": 2} {
		if got := len(of(lines, event)); got != factor*want {
			t.Errorf("%d %s lines, want %d", got, event, factor*want)
		}
	}
}

// TestLoss: what a ring of one page has no room for, while nobody reads it, is
// counted exactly.
func TestLoss(t *testing.T) {
	needRoot(t)
	undisturbed(t, testLoss)
}

func testLoss(t testing.TB) {
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--ring-size", strconv.Itoa(os.Getpagesize()))
	want := connections(t) / 10
	tr.signal(unix.SIGSTOP)
	err := churn(n, want)
	tr.signal(unix.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	lines := tr.stop()
	checkLog(t, lines)
	if checkSum(t, lines, want, n) == 0 {
		t.Error("nothing is counted as lost")
	}
}

// TestShedding: where there is no room for all events, those go first that later
// ones tell as well, and the user learns which. No connect is lost, and none that
// failed.
func TestShedding(t *testing.T) {
	needRoot(t)
	undisturbed(t, testShedding)
}

func testShedding(t testing.TB) {
	n := newNetNS(t)
	// For some 300 events, the last eighth of which is for connects and failures:
	// those below make 600, and after three quarters 30 of that kind.
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--ring-size", "64K")
	const established, failed = 48, 5
	tr.signal(unix.SIGSTOP)
	err := churn(n, established)
	for range failed {
		err = errors.Join(err, n.inside(refused))
	}
	tr.signal(unix.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	lines := tr.stop()
	checkLog(t, lines)
	lost := checkLost(t, lines)
	for _, kind := range []string{"state", "accept", "close", "time_wait.enter"} {
		if lost[kind] == 0 {
			t.Errorf("of %s nothing is lost, which was to go first", kind)
		}
		delete(lost, kind)
	}
	if len(lost) > 0 {
		t.Errorf("lost %v", lost)
	}
	outcomes := make(map[string]int)
	for _, l := range of(lines, "connect") {
		outcomes[l.Connect.Outcome]++
	}
	if outcomes["established"] != established || outcomes["refused"] != failed {
		t.Errorf("connects %v, want %d established and %d refused", outcomes, established, failed)
	}
}

// checkLost checks that all that was lost is known by its kind, and returns that.
func checkLost(t testing.TB, lines []line) map[string]uint64 {
	t.Helper()
	kinds := make(map[string]uint64)
	for _, l := range of(lines, "lost") {
		var sum uint64
		for kind, count := range l.Lost.Kinds {
			kinds[kind] += count
			sum += count
		}
		if sum != l.Lost.Count {
			t.Errorf("line %d: %d lost, and of known kinds %v", l.Seq, l.Lost.Count, l.Lost.Kinds)
		}
	}
	return kinds
}

// TestMeetings: state changes that meet the programs at work, on the same
// processor, are told too, or else counted.
func TestMeetings(t *testing.T) {
	needRoot(t)
	undisturbed(t, testMeetings)
}

func testMeetings(t testing.TB) {
	namespaces := make([]*netns, 8)
	for i := range namespaces {
		namespaces[i] = newNetNS(t)
	}
	tr := trace(t, "-o", "json", "--events", "state,time_wait.enter")
	each := connections(t) / 10
	var group sync.WaitGroup
	for _, n := range namespaces {
		group.Go(func() {
			if err := churn(n, each); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	checkSum(t, tr.stop(), each, namespaces...)
}

// checkSum checks that the events that were read and those that were lost are
// those that churn made, with so many connections in each namespace.
func checkSum(t testing.TB, lines []line, connections int, namespaces ...*netns) (lost int) {
	t.Helper()
	for _, l := range of(lines, "lost") {
		lost += int(l.Lost.Count)
	}
	if said := lines[len(lines)-1].Summary.Lost; int(said.Kernel+said.Output) != lost {
		t.Errorf("the summary says %d lost in the kernel and %d in the output, the lines %d", said.Kernel, said.Output, lost)
	}
	read := 0
	for _, n := range namespaces {
		read += len(of(about(lines, n), "state", "time_wait.enter"))
	}
	made := ((load.StateChanges+1)*connections + 2*churners*load.Listeners) * len(namespaces)
	if read+lost != made {
		t.Errorf("read %d + lost %d = %d, want %d", read, lost, read+lost, made)
	}
	return lost
}
