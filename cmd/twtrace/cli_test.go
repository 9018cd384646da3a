package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// TestScripts runs the command lines of testdata/script: what needs no kernel.
// "twtrace STATUS ARG..." runs it and wants that exit status.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"twtrace": func(ts *testscript.TestScript, _ bool, args []string) {
				cmd := twtrace(args[1:]...)
				var stdout, stderr bytes.Buffer
				cmd.Dir, cmd.Stdout, cmd.Stderr = ts.Getenv("WORK"), &stdout, &stderr
				_ = cmd.Run() // the state tells
				fmt.Fprint(ts.Stdout(), &stdout)
				fmt.Fprint(ts.Stderr(), &stderr)
				if got := strconv.Itoa(cmd.ProcessState.ExitCode()); got != args[0] {
					ts.Fatalf("twtrace %q: exit status %s, want %s", args[1:], got, args[0])
				}
			},
		},
	})
}

// status runs a command and returns its exit status and what it said.
func status(t *testing.T, cmd *exec.Cmd) (int, string) {
	t.Helper()
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), stderr.String()
}

// wantError asserts one line of error, and perhaps one of hint.
func wantError(t *testing.T, cmd *exec.Cmd, want string) {
	t.Helper()
	code, stderr := status(t, cmd)
	if code != 1 {
		t.Errorf("exit status %d, want 1", code)
	}
	if stderr != want {
		t.Errorf("stderr (-want +got):\n%s", cmp.Diff(want, stderr))
	}
}

func TestWithoutPrivilege(t *testing.T) {
	needRoot(t)
	// Where nobody may go: the test's own file lies in root's directories.
	binary := copySelf(t)
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), envMain+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	wantError(t, cmd, "twtrace: create the maps: not permitted (EPERM)\nhint: tracing the kernel takes root: sudo twtrace\n")
}

// copySelf copies the test binary to where every user may run it.
func copySelf(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "twtrace-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	data, err := os.ReadFile(self())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "twtrace")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(path, data, 0o755)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWithoutBTF(t *testing.T) {
	needRoot(t)
	if err := inNewMounts(func() error {
		if err := unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, ""); err != nil {
			return err
		}
		wantError(t, twtrace(), "twtrace: this kernel carries no BTF\n"+
			"hint: give the kernel's types by --btf FILE, or run a kernel built with CONFIG_DEBUG_INFO_BTF\n")
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestBTFFile: the types may come from a file instead.
func TestBTFFile(t *testing.T) {
	needRoot(t)
	types, err := os.ReadFile("/sys/kernel/btf/vmlinux")
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "vmlinux.btf")
	if err := os.WriteFile(path, types, 0o600); err != nil {
		t.Fatal(err)
	}
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--btf", path)
	if err := n.do(func() error { return attempt(unix.AF_INET, "127.0.0.1:1", unix.ECONNREFUSED) }); err != nil {
		t.Fatal(err)
	}
	if got := of(about(tr.stop(), n), "connect"); len(got) != 1 {
		t.Errorf("connects: %v, want one", got)
	}
	wantError(t, twtrace("--btf", "/nonexistent"), "twtrace: read BTF: open /nonexistent: no such file or directory\n")
}

// inNewMounts runs f on a thread with a mount namespace of its own.
func inNewMounts(f func() error) error {
	return thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		return f()
	})
}

// TestKernelTooOld: the personality of old programs makes every kernel say
// 2.6, and is inherited.
func TestKernelTooOld(t *testing.T) {
	needRoot(t)
	const uname26 = 0x0020000
	err := thread.Run(func() error {
		if _, _, errno := unix.Syscall(unix.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
			return errno
		}
		code, stderr := status(t, twtrace())
		if code != 1 || !strings.HasPrefix(stderr, "twtrace: linux 2.6.") || !strings.HasSuffix(stderr, " is too old: needs 5.10 or newer\n") {
			t.Errorf("exit status %d, %q", code, stderr)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestClosedPipe: twtrace | head ends, by itself and with a word.
func TestClosedPipe(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr, reader := tracePiped(t, "--log", log)
	reader.Close()
	if err := n.do(func() error { return attempt(unix.AF_INET, "127.0.0.1:1", unix.ECONNREFUSED) }); err != nil {
		t.Fatal(err)
	}
	_ = tr.wait()
	if code := tr.cmd.ProcessState.ExitCode(); code != 1 || !strings.HasSuffix(tr.stderr.String(), "twtrace: standard output: broken pipe\n") {
		t.Errorf("exit status %d, %q", code, &tr.stderr)
	}
	if lines := readLines(t, log); len(of(about(lines, n), "connect")) != 1 {
		t.Errorf("the log has %d lines and not the connect", len(lines))
	}
}

// TestSlowReader: who reads slowly gets everything, also what is left when the run
// ends: that may take longer than a reader who takes nothing is waited for.
func TestSlowReader(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("does not depend on the kernel")
	}
	n := newNetNS(t)
	tr, reader := tracePiped(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)))
	const want = 500 // connections: some megabytes, less than are kept
	if err := churn(n, want); err != nil {
		t.Fatal(err)
	}
	tr.signal(unix.SIGINT)
	var printed []byte
	part := make([]byte, 64<<10)
	for {
		time.Sleep(20 * time.Millisecond) // The reader is slow: this is what is tested.
		got, err := reader.Read(part)
		printed = append(printed, part[:got]...)
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := tr.wait(); err != nil {
		t.Errorf("twtrace: %v: %s", err, &tr.stderr)
	}
	lines := parseLines(t, "stdout", printed)
	checkLog(t, lines)
	if got := len(of(lines, "connect")); got != want {
		t.Errorf("%d connects of %d", got, want)
	}
}

// TestStalledReader: who does not read loses lines, which are counted; the log
// loses none, and Ctrl-C works.
func TestStalledReader(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr, reader := tracePiped(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--log", log)
	want := connections(t)
	if err := churn(n, want); err != nil {
		t.Fatal(err)
	}
	tr.signal(unix.SIGINT)
	if err := tr.wait(); tr.cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want exit status 1", err)
	}
	lines := readLines(t, log)
	checkSummary(t, lines)
	if got := len(of(lines, "connect")); got != want {
		t.Errorf("the log has %d connects, want %d", got, want)
	}
	printed, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	// The log's lines are those that stdout would have had.
	read := bytes.Count(printed, []byte("\n"))
	var lost int
	for _, text := range strings.Split(tr.stderr.String(), "\n") {
		if _, err := fmt.Sscanf(text, "twtrace: %d lines could not be written", &lost); err == nil {
			break
		}
	}
	if read+lost != len(lines) || lost == 0 {
		t.Errorf("read %d lines + %d not written = %d, want %d: %s", read, lost, read+lost, len(lines), &tr.stderr)
	}
}

// TestLateReader: a reader that was away finds every connect all the same: what it
// has lost are lines that others imply, and it is told which.
func TestLateReader(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("does not depend on the kernel")
	}
	n := newNetNS(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	tr, reader := tracePiped(t, "-o", "json", "--netns", strconv.Itoa(int(n.inode)), "--log", log)
	// More than is kept; the connects among it are less.
	const want = 1_600
	if err := churn(n, want); err != nil {
		t.Fatal(err)
	}
	until(t, "the log has all of it", func() bool {
		text, err := os.ReadFile(log)
		return err == nil && bytes.Count(text, []byte(`"event":"time_wait.enter"`)) == want
	})
	tr.signal(unix.SIGINT)
	printed, err := io.ReadAll(reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := tr.wait(); tr.cmd.ProcessState.ExitCode() != 0 {
		t.Errorf("twtrace: %v: %s", err, &tr.stderr)
	}
	lines := parseLines(t, "stdout", printed)
	if got := len(of(lines, "connect")); got != want {
		t.Errorf("%d connects of %d", got, want)
	}
	lost := checkLost(t, lines)
	if lost["state"] == 0 || lost["connect"] > 0 {
		t.Errorf("lost %v, want states, and no connects", lost)
	}
}

// TestKilled: after SIGKILL nothing of twtrace is left in the kernel.
func TestKilled(t *testing.T) {
	needRoot(t)
	tr := trace(t, "-o", "json")
	ours := programs(t)
	if len(ours) == 0 {
		t.Fatal("no program is loaded while twtrace runs")
	}
	if err := tr.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = tr.wait()
	// The kernel frees programs after a grace period.
	deadline := time.Now().Add(30 * time.Second)
	for left := programs(t); len(left) > 0; left = programs(t) {
		if time.Now().After(deadline) {
			t.Fatalf("left in the kernel: %v", left)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestCommand: what a command and its children do, and nothing else; its exit
// status.
func TestCommand(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	var out bytes.Buffer
	err := n.inside(func() error {
		if err := attempt(unix.AF_INET, "127.0.0.1:2", unix.ECONNREFUSED); err != nil {
			return err
		}
		cmd := twtrace("-o", "json", "--events", "connect", "--", self(), "parent", "refused-in-child", "127.0.0.1:1")
		cmd.Env = append(cmd.Env, envPeer+"=1")
		cmd.Stdout = &out
		cmd.Stderr = os.Stderr
		return cmd.Run()
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "out")
	if err := os.WriteFile(path, out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	connects := of(readLines(t, path), "connect")
	if len(connects) != 1 || connects[0].Process.Comm != "grandchild" || connects[0].Network.Peer.Port != 1 {
		t.Errorf("connects: %+v, want one by the grandchild", connects)
	}
}

func TestCommandStatus(t *testing.T) {
	needRoot(t)
	cmd := twtrace("--", self(), "parent", "exit-7")
	cmd.Env = append(cmd.Env, envPeer+"=1")
	if code, stderr := status(t, cmd); code != 7 {
		t.Errorf("exit status %d, want the command's, 7: %s", code, stderr)
	}
	wantError(t, twtrace("--", "/nonexistent"), "twtrace: run /nonexistent: no such file or directory\n")
}

type filterTest struct {
	short bool
	flags []string
	want  []string
}

// TestFilters: each flag keeps what it names and leaves out the rest.
func TestFilters(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	traffic := func() error {
		return errors.Join(
			attempt(unix.AF_INET, "127.0.0.1:1", unix.ECONNREFUSED),
			attempt(unix.AF_INET, "127.0.0.2:2", unix.ECONNREFUSED),
			attempt(unix.AF_INET6, "[::1]:1", unix.ECONNREFUSED),
			attempt(unix.AF_INET6, "127.0.0.1:3", unix.ECONNREFUSED),
			converse(unix.AF_INET, "127.0.0.1:80", "127.0.0.1:80"),
			peerCommand("other", "refused", "127.0.0.1:9").Run(),
		)
	}
	all := []string{
		"127.0.0.1:1 refused", "127.0.0.2:2 refused", "::1:1 refused", "127.0.0.1:3 refused", "127.0.0.1:80 established", "127.0.0.1:9 refused",
	}
	tests := []filterTest{
		{flags: nil, want: all},
		{flags: []string{"-D", "1"}, want: []string{all[0], all[2]}},
		{short: true, flags: []string{"-D", "2-3,80"}, want: []string{all[1], all[3], all[4]}},
		{flags: []string{"-L", "80"}, want: nil},
		{short: true, flags: []string{"--addr", "127.0.0.2"}, want: []string{all[1]}},
		{flags: []string{"--addr", "127.0.0.0/30,::1"}, want: all},
		{flags: []string{"--addr", "10.0.0.0/8"}, want: nil},
		{short: true, flags: []string{"-4"}, want: []string{all[0], all[1], all[3], all[4], all[5]}},
		{flags: []string{"-6"}, want: []string{all[2]}},
		{flags: []string{"--failures"}, want: []string{all[0], all[1], all[2], all[3], all[5]}},
		{short: true, flags: []string{"--comm", "other"}, want: []string{all[5]}},
		{flags: []string{"-p", strconv.Itoa(os.Getpid())}, want: all[:5]},
		{flags: []string{"-p", "1"}, want: nil},
		{flags: []string{"--events", "accept,close"}, want: nil},
		{flags: []string{"--netns", "pid:" + strconv.Itoa(os.Getpid())}, want: nil},
	}
	if testing.Short() {
		// Each takes a tracer of its own: those that the kernel knows.
		tests = slices.DeleteFunc(tests, func(test filterTest) bool { return !test.short })
	}
	for _, test := range tests {
		t.Run(strings.Join(test.flags, " "), func(t *testing.T) {
			tr := trace(t, append(test.flags, "-o", "json")...)
			if err := n.do(traffic); err != nil {
				t.Fatal(err)
			}
			var got []string
			lines := about(tr.stop(), n)
			for _, l := range of(lines, "connect") {
				got = append(got, fmt.Sprintf("%s:%d %s", l.Network.Peer.Address, l.Network.Peer.Port, l.Connect.Outcome))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("connects (-want +got):\n%s", diff)
			}
			switch test.flags = append(test.flags, ""); test.flags[0] {
			case "-L":
				for _, event := range []string{"accept", "close"} {
					if n := len(of(lines, event)); n != 1 {
						t.Errorf("%d %s lines, want 1", n, event)
					}
				}
			case "--events", "--failures":
				if n := len(of(lines, "state")); n != 0 {
					t.Errorf("%d state lines, want none", n)
				}
			}
		})
	}
}

// TestCount: --count ends the run after as many lines, in text and in JSON.
func TestCount(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	for _, output := range []string{"text", "json"} {
		tr := trace(t, "--count", "3", "-o", output, "--netns", strconv.Itoa(int(n.inode)))
		if err := n.do(func() error { return converse(unix.AF_INET, "127.0.0.1:80", "127.0.0.1:80") }); err != nil {
			t.Fatal(err)
		}
		if err := tr.wait(); err != nil {
			t.Fatal(err)
		}
		printed, err := os.ReadFile(tr.stdout)
		if err != nil {
			t.Fatal(err)
		}
		want := 3 + 1 // the header
		if output == "json" {
			want = 3 + 3 // meta, netns and summary
		}
		if got := bytes.Count(printed, []byte("\n")); got != want {
			t.Errorf("%s: %d lines, want %d:\n%s", output, got, want, printed)
		}
	}
}

// TestAppendsToLog: a log that a killed run left torn goes on after it.
func TestAppendsToLog(t *testing.T) {
	needRoot(t)
	log := filepath.Join(t.TempDir(), "events.jsonl")
	if err := os.WriteFile(log, []byte(`{"schema":"twtra`), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, stderr := status(t, twtrace("--log", log, "--duration", "1ms")); code != 0 {
		t.Fatal(stderr)
	}
	data, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	torn, rest, _ := bytes.Cut(data, []byte("\n"))
	if string(torn) != `{"schema":"twtra` {
		t.Errorf("the torn line became %s", torn)
	}
	var meta line
	if err := json.NewDecoder(bytes.NewReader(rest)).Decode(&meta); err != nil || meta.Event != "meta" {
		t.Errorf("after it comes %s: %v", rest, err)
	}
}
