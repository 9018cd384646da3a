package main

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/load"
)

// These tests break something under a run. A run that goes on tells everything,
// or counts what it could not tell.

// needMachine skips a test that changes the whole machine where the machine is
// not the test's own, as the virtual ones are.
func needMachine(t *testing.T) {
	t.Helper()
	needRoot(t)
	if os.Getenv("TWTRACE_TEST_MACHINE") == "" {
		t.Skip("it changes the whole machine, which is not the test's own")
	}
}

// TestTwoAtOnce: two runs side by side tell the same, and the end of one leaves
// the other alone.
func TestTwoAtOnce(t *testing.T) {
	needRoot(t)
	undisturbed(t, func(t testing.TB) {
		n := newNetNS(t)
		filter := strconv.Itoa(int(n.inode))
		first := trace(t, "-o", "json", "--netns", filter)
		second := trace(t, "-o", "json", "--netns", filter)
		const each = 200
		if err := churn(n, each); err != nil {
			t.Fatal(err)
		}
		lines := first.stop()
		checkLog(t, lines)
		if lost := checkSum(t, lines, each, n); lost > 0 {
			t.Errorf("lost %d", lost)
		}
		if got := len(of(lines, "connect")); got != each {
			t.Errorf("the first tells %d connects, want %d", got, each)
		}
		if err := churn(n, each); err != nil {
			t.Fatal(err)
		}
		lines = second.stop()
		checkLog(t, lines)
		if got := len(of(lines, "connect")); got != 2*each {
			t.Errorf("the second tells %d connects, want %d", got, 2*each)
		}
	})
}

// TestNoFilesLeft: a run that may open no file any more goes on. It can't look
// anything up, and tells what the kernel sends all the same.
func TestNoFilesLeft(t *testing.T) {
	needRoot(t)
	undisturbed(t, func(t testing.TB) {
		n := newNetNS(t)
		tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
		none := unix.Rlimit{Cur: 0, Max: 0}
		if err := unix.Prlimit(tr.cmd.Process.Pid, unix.RLIMIT_NOFILE, &none, nil); err != nil {
			t.Fatal(err)
		}
		if err := n.do(refused); err != nil {
			t.Fatal(err)
		}
		const connections = 100
		if err := churn(n, connections); err != nil {
			t.Fatal(err)
		}
		lines := tr.stop()
		checkLog(t, lines)
		outcomes := make(map[string]int)
		for _, l := range of(lines, "connect") {
			outcomes[l.Connect.Outcome]++
		}
		if outcomes["established"] != connections || outcomes["refused"] != 1 || len(outcomes) != 2 {
			t.Errorf("outcomes %v, want %d established and one refused", outcomes, connections)
		}
	})
}

// TestPIDReused: what a process has left behind stays its own when another gets
// its pid.
func TestPIDReused(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	var listener *peer
	if err := n.do(func() (err error) {
		listener, err = startPeer("listener", "listen-and-hold", "127.0.0.1:80")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer listener.end()
	hold := func(comm string) (p *peer) {
		t.Helper()
		if err := n.do(func() (err error) {
			p, err = startPeer(comm, "connect-and-hold", "127.0.0.1:80")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return p
	}
	before := hold("before")
	if err := before.end(); err != nil {
		t.Fatal(err)
	}
	var after *peer
	for range 100 { // Another process of the machine can come first.
		last := strconv.Itoa(int(before.pid) - 1)
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(last), 0); err != nil {
			skip(t, "choose the next pid: %v", err)
		}
		after = hold("after")
		if after.pid == before.pid {
			break
		}
		if err := after.end(); err != nil {
			t.Fatal(err)
		}
	}
	if after.pid != before.pid {
		skip(t, "another process always got the pid %d", before.pid)
	}
	if err := after.end(); err != nil {
		t.Fatal(err)
	}
	comms := make(map[string][]string)
	for _, l := range tr.stop() {
		if l.Process.PID == before.pid && (l.Event == "connect" || l.Event == "close") {
			comms[l.Process.Comm] = append(comms[l.Process.Comm], l.Event)
		}
	}
	for _, comm := range []string{"before", "after"} {
		if want := []string{"connect", "close"}; !slices.Equal(comms[comm], want) {
			t.Errorf("pid %d, %s: %q, want %q", before.pid, comm, comms[comm], want)
		}
	}
}

// TestTableFull: where the kernel's table of sockets is full, further connects
// are told too, without what it would know of them, and the user learns of it.
func TestTableFull(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("so many sockets take more memory than the virtual machines have")
	}
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--events", "connect", "--netns", strconv.Itoa(int(n.inode)))
	// The table of bpf/maps.h, by processes that each may open a few files only.
	const sockets, each = 256 << 10, 15_000
	for i := range sockets/each + 1 {
		var p *peer
		err := n.do(func() (err error) {
			p, err = startPeer("many", "listen-many", fmt.Sprintf("127.0.1.%d", i+1), strconv.Itoa(each))
			return err
		})
		if err != nil {
			skip(t, "listen %d times: %v", each, err)
		}
		defer p.end()
	}
	if err := n.do(refused); err != nil {
		t.Fatal(err)
	}
	tr.await("the connect", func(l line) bool { return l.Event == "connect" && l.Connect.Outcome == "refused" })
	checkLog(t, tr.stop())
	if want := "the table of sockets is full"; !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("stderr does not tell that %s: %s", want, &tr.stderr)
	}
}

// TestClockSet: a clock that is set during a run moves the times of day, and no
// duration.
func TestClockSet(t *testing.T) {
	needMachine(t)
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	set := func(by time.Duration) {
		t.Helper()
		var now unix.Timespec
		if err := unix.ClockGettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
		now = unix.NsecToTimespec(now.Nano() + by.Nanoseconds())
		if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
			t.Fatal(err)
		}
	}
	made := 0
	for _, by := range []time.Duration{time.Hour, -time.Hour} {
		set(by)
		// What comes before the reader looks at the clock again has the old time.
		until(t, "a connect has the time that was set", func() bool {
			if err := n.do(refused); err != nil {
				t.Fatal(err)
			}
			made++
			now := time.Now()
			return slices.ContainsFunc(of(tr.sofar(), "connect"), func(l line) bool {
				return l.Time.Sub(now).Abs() < time.Minute
			})
		})
	}
	lines := tr.stop()
	checkLog(t, lines)
	connects := of(lines, "connect")
	if len(connects) != made {
		t.Errorf("%d connect lines, want %d", len(connects), made)
	}
	for _, l := range connects {
		if l.Connect.Duration <= 0 || l.Connect.Duration > 60_000 {
			t.Errorf("line %d: a connect of %v ms", l.Seq, l.Connect.Duration)
		}
	}
}

// TestHotplug: what happens while a processor goes and comes back is told.
func TestHotplug(t *testing.T) {
	needMachine(t)
	const control = "/sys/devices/system/cpu/cpu1/online"
	if _, err := os.Stat(control); err != nil {
		t.Skipf("no second processor that could be unplugged: %v", err)
	}
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	const each = 100
	changes := []string{"0", "1"}
	for _, online := range changes {
		if err := os.WriteFile(control, []byte(online), 0); err != nil {
			t.Fatal(err)
		}
		if err := churn(n, each); err != nil {
			t.Fatal(err)
		}
	}
	lines := tr.stop()
	checkLog(t, lines)
	rounds := len(changes)
	if got := len(of(lines, "connect")); got != rounds*each {
		t.Errorf("%d connect lines, want %d", got, rounds*each)
	}
	made := (load.StateChanges*each + 2*churners*load.Listeners) * rounds
	if got := len(of(about(lines, n), "state")); got != made {
		t.Errorf("%d state lines, want %d; lost %+v", got, made, lines[len(lines)-1].Summary.Lost)
	}
}
