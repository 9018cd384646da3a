package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
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

// TestStopped: of a run that is stopped for so long that TIME_WAITs expire
// meanwhile each is ended once: by its event where the ring had room, else by
// the kernel's tables.
func TestStopped(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("a TIME_WAIT takes a minute")
	}
	undisturbed(t, testStopped)
}

func testStopped(t testing.TB) {
	n := newNetNS(t)
	filter := strconv.Itoa(int(n.inode))
	roomy := trace(t, "-o", "json", "--netns", filter)
	narrow := trace(t, "-o", "json", "--netns", filter, "--ring-size", strconv.Itoa(64<<10))
	if err := n.do(func() error { return sysctl("ipv4/tcp_tw_reuse", "0") }); err != nil {
		t.Fatal(err)
	}
	const before = 10
	for i := range before {
		if err := n.do(func() error { return connected(closeInTurn) }); err != nil {
			t.Fatal(err)
		}
		for _, tr := range []*tracer{roomy, narrow} {
			until(t, "the TIME_WAIT is told", func() bool { return len(of(tr.sofar(), "time_wait.enter")) > i })
		}
	}
	roomy.signal(unix.SIGSTOP)
	narrow.signal(unix.SIGSTOP)
	const during = 500
	err := churn(n, during)
	for waiting := 1; err == nil && waiting > 0; time.Sleep(100 * time.Millisecond) {
		err = n.do(func() error {
			a, err := kernelAccount()
			waiting = a.waiting
			return err
		})
	}
	roomy.signal(unix.SIGCONT)
	narrow.signal(unix.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	// A connection's state changes, and how its TIME_WAIT begins and ends.
	made := (load.StateChanges+2)*(before+during) + 2*(before+churners*load.Listeners)
	for tr, all := range map[*tracer]bool{roomy: true, narrow: false} {
		lines := tr.stop()
		checkLog(t, lines)
		read, lost := len(of(lines, "state", "time_wait.enter", "time_wait.end")), 0
		for _, l := range of(lines, "lost") {
			lost += int(l.Lost.Count)
		}
		ends := make(map[string]int)
		for _, l := range of(lines, "time_wait.end") {
			ends[fmt.Sprint(l.Network)]++
			switch w := l.TimeWait; {
			case w.Ended == "unknown" && !all && w.Duration == 0 && !w.Exact:
				read-- // from the tables
			case w.Ended != "expired" || !w.Exact || w.Duration < 60_000 || w.Duration > 66_000:
				t.Errorf("%s after %v ms, exact %v", l, w.Duration, w.Exact)
			}
		}
		enters := of(lines, "time_wait.enter")
		for _, l := range enters {
			if got := ends[fmt.Sprint(l.Network)]; got != 1 {
				t.Errorf("%d ends of the TIME_WAIT of %+v", got, l.Network)
			}
		}
		if len(enters) < before || all && len(enters) != before+during {
			t.Errorf("%d began, want %d, and %d while it was stopped", len(enters), before, during)
		}
		// What is lost can be dropped packets of other network namespaces, too.
		if read+lost < made || all && read != made {
			t.Errorf("read %d + lost %d = %d, want %d", read, lost, read+lost, made)
		}
	}
}

// TestNetNSDeleted: a network namespace goes during a run, with the connections and
// TIME_WAITs in it. All ends are told, and so is what goes on elsewhere. twtrace
// has been in there, and does not keep it: its TIME_WAITs would expire, then.
func TestNetNSDeleted(t *testing.T) {
	needRoot(t)
	for _, older := range []bool{true, false} {
		t.Run(map[bool]string{true: "older than the trace", false: "younger"}[older], func(t *testing.T) {
			pod, web := newNetNS(t), newNetNS(t)
			if err := joinNetNS(pod, web); err != nil {
				t.Fatal(err)
			}
			const address, network = "10.244.1.9:80", "10.244.1.0/24"
			var tr *tracer
			if !older {
				tr = trace(t, "-o", "json", "--addr", network)
			}
			var listener socket
			if err := web.do(func() (err error) {
				listener, err = listen(unix.AF_INET, address)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			var killed *peer
			if err := pod.do(func() (err error) {
				killed, err = startPeer("killed", "connect-and-hold", address)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if older {
				tr = trace(t, "-o", "json", "--addr", network)
			}
			var left [2]socket // the servers' ends
			err := pod.do(func() (err error) {
				if left[0], err = listener.accept(); err != nil {
					return err
				}
				for i := range 3 {
					client, server, err := listener.join(address)
					if err != nil {
						return err
					}
					if i == 0 { // stays in FIN_WAIT2
						left[1], err = server, client.close()
					} else {
						err = closeInTurn(client, server)
					}
					if err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if err := killed.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = killed.end()
			pod.end()
			until(t, "the TIME_WAITs end", func() bool { return len(of(about(tr.sofar(), pod), "time_wait.end")) == 2 })
			if err := web.do(func() error {
				return errors.Join(
					left[0].resetOnClose(), left[0].close(), left[1].resetOnClose(), left[1].close(), listener.close(),
					attempt(unix.AF_INET, address, unix.ENETUNREACH))
			}); err != nil {
				t.Fatal(err)
			}
			lines := tr.stop()
			checkLog(t, lines)
			gone := scenario{
				kinds: []string{"close", "time_wait.enter", "time_wait.end"},
				want: []string{
					"close local 0/0", "close local 0/0", "close local 0/0", "close local 0/0",
					"time_wait.enter", "time_wait.enter", "time_wait.end killed", "time_wait.end killed",
				},
			}
			gone.judge(t, "", about(lines, pod))
			other := scenario{
				kinds: []string{"connect", "close"},
				want:  []string{"close peer 0/0", "close peer 0/0", "close reset_sent 0/0", "close reset_sent 0/0", "connect unreachable ENETUNREACH"},
			}
			other.judge(t, "", about(lines, web))
			for _, l := range of(about(lines, pod), "time_wait.end") {
				if l.Process.PID != uint32(os.Getpid()) || !l.TimeWait.Exact {
					t.Errorf("%s is of process %d, exact %v", l, l.Process.PID, l.TimeWait.Exact)
				}
			}
		})
	}
}

// TestEmptied: what bpftool lets root do to a run. The kernel lets nobody detach
// its programs, and what takes all out of its tables costs what they knew of
// sockets that are there, and nothing else.
func TestEmptied(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	for _, id := range heldIDs(t, tr, "link_id") {
		l, err := link.NewFromID(link.ID(id))
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Detach(); err == nil {
			t.Errorf("link %d is detached", id)
		}
		l.Close()
	}
	err := n.do(func() error {
		if err := connected(closeInTurn); err != nil {
			return err
		}
		return connected(func(client, server socket) error {
			empty(t, tr)
			return closeInTurn(client, server)
		})
	})
	if err == nil {
		err = n.do(refused)
	}
	if err != nil {
		t.Fatal(err)
	}
	n.end()
	until(t, "the TIME_WAITs end", func() bool { return len(of(tr.sofar(), "time_wait.end")) >= 2 })
	lines := tr.stop()
	checkLog(t, lines)
	// Another network namespace can have the inode by now.
	ours := lines[slices.IndexFunc(lines, func(l line) bool { return l.Event == "state" })].NetNSCookie
	lines = slices.DeleteFunc(lines, func(l line) bool { return l.NetNSCookie != ours })
	s := scenario{
		kinds: []string{"connect", "close", "time_wait.enter", "time_wait.end"},
		want: []string{
			"close local 0/0", "close local 0/0", "close peer 0/0", "close peer 0/0",
			"connect established", "connect established", "connect refused ECONNREFUSED",
			"time_wait.end killed", "time_wait.end killed", "time_wait.enter", "time_wait.enter",
		},
	}
	s.judge(t, "", lines)
	forgotten := 0
	for _, l := range of(lines, "connect", "close", "time_wait.enter", "time_wait.end") {
		switch l.Process.PID {
		case uint32(os.Getpid()):
		case 0:
			forgotten++
			if l.Event == "connect" || l.State.Duration+l.Close.Duration != 0 {
				t.Errorf("%s of nobody: %+v %+v", l, l.State, l.Close)
			}
		default:
			t.Errorf("%s is of process %d", l, l.Process.PID)
		}
	}
	// The second connection, both its ends and its TIME_WAIT.
	if forgotten < 3 {
		t.Errorf("%d lines have no owner: the tables were not emptied", forgotten)
	}
}

// heldIDs lists the ids of the links, programs or maps that a run holds.
func heldIDs(t *testing.T, tr *tracer, what string) (ids []int) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", tr.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, _ := os.ReadFile(file) // it can be closed by now
		for line := range strings.Lines(string(text)) {
			if id, found := strings.CutPrefix(line, what+":"); found {
				number, err := strconv.Atoi(strings.TrimSpace(id))
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, number)
			}
		}
	}
	if len(ids) == 0 {
		t.Fatalf("no %s in %v", what, files)
	}
	return ids
}

// empty deletes all entries of a run's tables.
func empty(t *testing.T, tr *tracer) {
	t.Helper()
	for _, id := range heldIDs(t, tr, "map_id") {
		m, err := ebpf.NewMapFromID(ebpf.MapID(id))
		if err != nil {
			t.Fatal(err)
		}
		if m.Type() == ebpf.Hash || m.Type() == ebpf.LRUHash {
			for {
				key, err := m.NextKeyBytes(nil)
				if err != nil {
					t.Fatal(err)
				}
				if key == nil {
					break
				}
				if err := m.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					t.Fatal(err)
				}
			}
		}
		m.Close()
	}
}

// TestSuspended: a machine that is suspended and resumes. The time of day has gone
// on, and the clock of the events has not: lines have the right time again, and no
// duration has the time that the machine slept.
func TestSuspended(t *testing.T) {
	needMachine(t)
	const control, alarm = "/sys/power/state", "/sys/class/rtc/rtc0/wakealarm"
	// In s2idle, all that some have, an emulated processor's clock goes on.
	modes, err := os.ReadFile("/sys/power/mem_sleep")
	if err != nil || !strings.Contains(string(modes), "[deep]") {
		t.Skipf("this machine can't be suspended to memory: %q, %v", modes, err)
	}
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	began := time.Now()
	const asleep = 5 * time.Second
	var suspended, held time.Duration
	err = n.do(func() error {
		return connected(func(client, server socket) error {
			if err := os.WriteFile(alarm, fmt.Appendf(nil, "+%d", int(asleep.Seconds())), 0); err != nil {
				return err
			}
			before := time.Now()
			if err := os.WriteFile(control, []byte("mem"), 0); err != nil {
				return err
			}
			held = time.Since(before) // by a clock that stands still meanwhile
			suspended = time.Now().Round(0).Sub(before.Round(0)) - held
			return closeInTurn(client, server)
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	if suspended < asleep/2 {
		t.Fatalf("the machine slept for %s", suspended)
	}
	// What comes before the reader looks at the clock again has the old time.
	until(t, "a connect has the time of after", func() bool {
		before := time.Now()
		if err := n.do(refused); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(of(tr.sofar(), "connect"), func(l line) bool {
			return l.Connect.Outcome == "refused" && l.Time.Sub(before).Abs() < time.Second
		})
	})
	lines := tr.stop()
	checkLog(t, lines)
	for _, l := range of(lines, "state", "connect", "close") {
		for _, ms := range []float64{l.State.Duration, l.Connect.Duration, l.Close.Duration} {
			if ms < 0 || ms > milliseconds(time.Since(began)) {
				t.Errorf("%s after %v ms, in a test of %s", l, ms, time.Since(began))
			}
		}
	}
	ends := of(lines, "close")
	if len(ends) != 2 || ends[0].Close.Duration < milliseconds(held) {
		t.Errorf("%d ends of a connection of at least %s: %+v", len(ends), held, ends)
	}
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
