package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// These tests let a run go short of something, or give it too much of it.

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
	if want := "no room for more sockets"; !strings.Contains(tr.stderr.String(), want) {
		t.Errorf("stderr does not tell that %s: %s", want, &tr.stderr)
	}
}

// controlled makes a control group that goes with the test, in the hierarchy that
// has a controller, which version 1 may call by another name. Until release is
// called all processes that the test starts are in it.
func controlled(t *testing.T, v2, v1 string) (dir string, isV1 bool, release func()) {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for mount := range strings.Lines(string(mounts)) {
		before, after, _ := strings.Cut(mount, " - ")
		root := strings.Fields(before)[4]
		fields := strings.Fields(after)
		switch fields[0] {
		case "cgroup":
			isV1 = slices.Contains(strings.Split(fields[2], ","), v1)
		case "cgroup2":
			isV1 = false
			has, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
			if err != nil || !slices.Contains(strings.Fields(string(has)), v2) {
				continue
			}
			if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+v2), 0); err != nil {
				skip(t, "control %s: %v", v2, err)
			}
		}
		if !isV1 && fields[0] != "cgroup2" {
			continue
		}
		dir, err := os.MkdirTemp(root, "twtrace-test")
		if err != nil {
			skip(t, "make a control group: %v", err)
		}
		t.Cleanup(func() {
			if err := removeCgroup(dir); err != nil {
				t.Error(err)
			}
		})
		t.Setenv(envCgroup, dir)
		return dir, isV1, func() { os.Unsetenv(envCgroup) }
	}
	skip(t, "no control groups with %s", v2)
	return "", false, nil
}

// TestOutOfMemory: a run whose control group has no memory left for it is killed by
// the kernel. Its log can be read to the last whole line, the next run goes on
// behind that, and nothing of it is left in the kernel.
func TestOutOfMemory(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("so many connections take an emulated processor too long")
	}
	dir, isV1, release := controlled(t, "memory", "memory")
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr := trace(t, "--netns", strconv.Itoa(int(n.inode)), "--log", log)
	release()
	if err := n.do(refused); err != nil {
		t.Fatal(err)
	}
	until(t, "the connect is in the log", func() bool {
		data, err := os.ReadFile(log)
		return err == nil && bytes.Contains(data, []byte(`"outcome":"refused"`))
	})
	usage, limit := "memory.current", "memory.max"
	if isV1 {
		usage, limit = "memory.usage_in_bytes", "memory.limit_in_bytes"
	}
	text, err := os.ReadFile(filepath.Join(dir, usage))
	if err != nil {
		t.Fatal(err)
	}
	used, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, limit), []byte(strconv.Itoa(used+4<<20)), 0); err != nil {
		t.Fatal(err)
	}
	held := heldIDs(t, tr, "prog_id")
	ended := make(chan error, 1)
	go func() { ended <- tr.wait() }()
	until(t, "it has no memory left", func() bool {
		if err := churn(n, 500); err != nil {
			t.Fatal(err)
		}
		return len(ended) > 0
	})
	if err := <-ended; err == nil || err.Error() != "signal: killed" {
		t.Errorf("twtrace ended with %v", err)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	left := data[:bytes.LastIndexByte(data, '\n')+1]
	if lines := parseLines(t, log, left); len(of(lines, "connect")) == 0 {
		t.Errorf("%d lines are left, and no connect", len(lines))
	}
	until(t, "its programs are gone", func() bool {
		return !slices.ContainsFunc(held, func(id int) bool {
			program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
			if err == nil {
				program.Close()
			}
			return err == nil
		})
	})
	if code, stderr := status(t, twtrace("--log", log, "--duration", "1ms")); code != 0 {
		t.Fatal(stderr)
	}
	if data, err = os.ReadFile(log); err != nil || !bytes.HasPrefix(data, left) {
		t.Errorf("the next run has changed what was there: %v", err)
	}
}

// TestSlowDisk: a disk that takes less than there is to log costs the log lines,
// which are counted, and the tail and the kernel's ring none.
func TestSlowDisk(t *testing.T) {
	needDisk(t)
	dir, isV1, release := controlled(t, "io", "blkio")
	defer release()
	mount, device := slowDisk(t)
	file, slow, fast := "io.max", device+" wbps=131072", device+" wbps=max"
	if isV1 {
		file, slow, fast = "blkio.throttle.write_bps_device", device+" 131072", device+" 0"
	}
	throttle := func(limit string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, file), []byte(limit), 0); err != nil {
			t.Fatal(err)
		}
	}
	n := newNetNS(t)
	log := filepath.Join(mount, "events.jsonl")
	tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--log", log)
	release()
	throttle(slow)
	// More than waits, and more than the disk takes meanwhile; each round is read
	// before the next.
	for rounds, size := 1, 0; size < 16<<20; rounds++ {
		if err := errors.Join(churn(n, 500), n.do(refused)); err != nil {
			t.Fatal(err)
		}
		until(t, "the round is read", func() bool {
			data, err := os.ReadFile(tr.stdout)
			size = len(data)
			return err == nil && bytes.Count(data, []byte(`"outcome":"refused"`)) == rounds
		})
	}
	throttle(fast)
	until(t, "the loss is told in the log", func() bool {
		if err := n.do(refused); err != nil { // It is told before another line.
			t.Fatal(err)
		}
		data, err := os.ReadFile(log)
		return err == nil && bytes.Contains(data, []byte(`"where":"output"`))
	})
	printed := tr.stop()
	checkLog(t, printed)
	if lost := printed[len(printed)-1].Summary.Lost; lost.Kernel != 0 {
		t.Errorf("%d events are lost in the kernel", lost.Kernel)
	}
	lines := readLines(t, log)
	missing, lost := len(printed)-len(lines), 0
	for _, l := range of(lines, "lost") {
		lost += int(l.Lost.Count)
	}
	if lost == 0 || lost != missing {
		t.Errorf("%d lines are missing, %d counted as lost", missing, lost)
	}
}

// slowDisk mounts a disk where a write takes as long as the disk does.
func slowDisk(t *testing.T) (mount, device string) {
	t.Helper()
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	if err := errors.Join(os.WriteFile(image, nil, 0o600), os.Truncate(image, 256<<20)); err != nil {
		t.Fatal(err)
	}
	mount = filepath.Join(dir, "mount")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"mkfs.ext4", "-q", image}, {"mount", "-o", "loop,sync", image, mount}} {
		if out, err := exec.Command(args[0], args[1:]...).CombinedOutput(); err != nil {
			skip(t, "%s: %v: %s", args[0], err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mount, 0); err != nil {
			t.Error(err)
		}
	})
	var stat unix.Stat_t
	if err := unix.Stat(mount, &stat); err != nil {
		t.Fatal(err)
	}
	return mount, fmt.Sprintf("%d:%d", unix.Major(stat.Dev), unix.Minor(stat.Dev))
}

// TestManyProcesses: thousands of processes that connect once and are gone, in
// containers that go with them. Each has its connection told, with its own pid and
// name, and its container.
func TestManyProcesses(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("so many processes take an emulated processor too long")
	}
	parent := "/kubepods/burstable/pod" + podUID
	pod := newCgroup(t, parent)
	undisturbed(t, func(t testing.TB) {
		const containers = 10
		each := connections(t) / 50
		n := newNetNS(t)
		var listener socket
		if err := n.do(func() (err error) {
			listener, err = listen(unix.AF_INET, "127.0.0.1:80")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		served := make(chan error, 1)
		go func() {
			for range containers * each {
				s, err := listener.accept()
				if err == nil {
					_, err = s.read()
					err = errors.Join(err, s.close())
				}
				if err != nil {
					served <- err
					return
				}
			}
			served <- listener.close()
		}()
		tr := trace(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--events", "connect")
		want := make(map[string]int)
		for c := range containers {
			id := fmt.Sprintf("%064x", c+1)
			dir := filepath.Join(pod, id)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Remove(dir) }) // where it does not get to
			cmd := peerCommand("parent", "connect-in-children", "127.0.0.1", "80", strconv.Itoa(each))
			cmd.Env = append(cmd.Env, envCgroup+"="+dir)
			var pids []byte
			if err := n.do(func() (err error) {
				pids, err = cmd.Output()
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if err := removeCgroup(dir); err != nil {
				t.Fatal(err)
			}
			for i, pid := range strings.Fields(string(pids)) {
				want[fmt.Sprintf("connect of child-%d, %s in %s", i, pid, id)]++
			}
		}
		if err := <-served; err != nil {
			t.Fatal(err)
		}
		lines := tr.stop()
		checkLog(t, lines)
		got := make(map[string]int)
		for _, l := range of(lines, "connect") {
			got[fmt.Sprintf("%s of %s, %d in %s", l.Event, l.Process.Comm, l.Process.PID, l.Container.ID)]++
		}
		if diff := cmp.Diff(want, got); len(want) != containers*each || diff != "" {
			t.Errorf("%d lines wanted (-want +got):\n%s", len(want), diff)
		}
	})
}
