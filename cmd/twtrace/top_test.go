package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestTop: what top prints is what was done, before it began and since.
func TestTop(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	netns := strconv.Itoa(int(n.inode))
	do := func(f func() error) {
		t.Helper()
		if err := n.do(f); err != nil {
			t.Fatal(err)
		}
	}
	do(func() error {
		return errors.Join(
			sysctl("ipv4/ip_local_port_range", "40000 40099"),
			sysctl("ipv4/tcp_tw_reuse", "0"), // not from one TIME_WAIT to the next
		)
	})
	// A process in the namespace, by which it is found.
	var inside *peer
	do(func() (err error) {
		inside, err = startPeer("inside", "listen-and-hold", "127.0.0.9:80")
		return err
	})
	began := time.Now()
	do(func() error { return use("127.0.0.1:80", 3, 4, 0) })

	out, err := twtrace("top", "-b", "-n", "2", "-d", "0.1", "--netns", netns).Output()
	if err != nil {
		t.Fatal(err)
	}
	tables := tablesOf(out)
	if len(tables) != 2 {
		t.Fatalf("%d tables, want 2:\n%s", len(tables), out)
	}
	want := "127.0.0.1:80 127.0.0.1 " + netns + " 7/100 7% 3 4 0 0"
	if time.Since(began) > 55*time.Second { // a slow machine: some may be over
		want = "127.0.0.1:80 127.0.0.1 " + netns
	}
	for _, table := range tables {
		if missing := table.lacks(want); missing != "" {
			t.Errorf("no %q in\n%s", missing, table)
		}
	}

	tr := trace(t, "top", "-b", "-d", "100ms", "--netns", netns)
	do(func() error {
		return errors.Join(
			use("127.0.0.2:80", 2, 5, 3),
			attempt(unix.AF_INET, "127.0.0.2:1", unix.ECONNREFUSED),
			attempt(unix.AF_INET, "127.0.0.2:1", unix.ECONNREFUSED),
		)
	})
	tr.awaitTable(
		"127.0.0.2:80 127.0.0.1 "+netns+" 7/100 7% 2 5 0 0",
		"any, on :80 127.0.0.2 "+netns+" - - 0 3 0 0",
		"127.0.0.2:1 127.0.0.1 "+netns+" - - 0 0 0 2",
	)
	tr.end()
	if err := inside.end(); err != nil {
		t.Error(err)
	}
}

// use makes connections to a listener of its own: so many that stay, whose client
// ends in TIME_WAIT, whose server does.
func use(address string, live, clients, servers int) error {
	listener, err := listen(unix.AF_INET, address)
	if err != nil {
		return err
	}
	for i := range live + clients + servers {
		client, server, err := listener.join(address)
		switch {
		case err != nil:
		case i < live:
			continue
		case i < live+clients:
			err = closeInTurn(client, server)
		default:
			err = closeInTurn(server, client)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// A table is one that top printed, line by line, with single spaces.
type table []string

func (t table) String() string { return strings.Join(t, "\n") }

func tablesOf(out []byte) []table {
	var tables []table
	for part := range strings.SplitSeq(string(out), "twtrace top ") {
		if !strings.Contains(part, "\n\n") {
			continue
		}
		var lines table
		for line := range strings.Lines(part) {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
		tables = append(tables, lines)
	}
	return tables
}

// lacks returns the first of the beginnings of rows that the table does not have.
func (t table) lacks(rows ...string) string {
	for _, row := range rows {
		if !slices.ContainsFunc(t, func(line string) bool { return strings.HasPrefix(line, row) }) {
			return row
		}
	}
	return ""
}

// awaitTable waits for a table that has rows which begin so.
func (tr *tracer) awaitTable(rows ...string) {
	tr.t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		out, err := os.ReadFile(tr.stdout)
		if err != nil {
			tr.t.Fatal(err)
		}
		tables := tablesOf(out)
		if slices.ContainsFunc(tables, func(t table) bool { return t.lacks(rows...) == "" }) {
			return
		}
		if time.Now().After(deadline) {
			last := tables[len(tables)-1]
			tr.t.Fatalf("no %q in\n%s", last.lacks(rows...), last)
		}
	}
}

func TestTopUsage(t *testing.T) {
	for _, test := range [][]string{
		{"delay 1ms: must be at least 100ms", "-d", "1ms"},
		{`invalid argument "soon" for "-d, --delay" flag: time: invalid duration "soon"`, "-d", "soon"},
		{`by "pid": must be one of destination, process, container, netns`, "--by", "pid"},
		{`sort "pid": must be one of pressure, time_wait, failures, rate`, "--sort", "pid"},
		{`twtrace top takes no arguments, got "now"`, "now"},
	} {
		code, stderr := status(t, twtrace(append([]string{"top"}, test[1:]...)...))
		if want := "twtrace: " + test[0] + "\nhint: twtrace --help lists the flags\n"; code != 2 || stderr != want {
			t.Errorf("%q: exit status %d, %q, want 2, %q", test[1:], code, stderr, want)
		}
	}
}

// TestTopClosedPipe: twtrace top | head ends as the tail does.
func TestTopClosedPipe(t *testing.T) {
	needRoot(t)
	if testing.Short() {
		t.Skip("it is no kernel's business")
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	tr := traceTo(t, writer, "top", "-d", "0.1")
	writer.Close()
	reader.Close()
	_ = tr.wait()
	if code := tr.cmd.ProcessState.ExitCode(); code != 1 || tr.stderr.String() != "twtrace: standard output: broken pipe\n" {
		t.Errorf("exit status %d, %q", code, &tr.stderr)
	}
}

// TestTopTerminal: on a terminal there is a live table, and afterwards the
// terminal is as it was before, however top ends.
func TestTopTerminal(t *testing.T) {
	needRoot(t)
	for name, end := range map[string]func(top *os.Process, user *os.File) error{
		"q":       func(_ *os.Process, user *os.File) error { _, err := user.WriteString("q"); return err },
		"SIGTERM": func(top *os.Process, _ *os.File) error { return top.Signal(unix.SIGTERM) },
		"SIGINT":  func(top *os.Process, _ *os.File) error { return top.Signal(unix.SIGINT) },
	} {
		if testing.Short() && name != "SIGTERM" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			terminal, user := openTerminal(t)
			before, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			top := twtrace("top")
			top.Env = append(top.Env, "TERM=xterm-256color")
			var stderr bytes.Buffer
			top.Stdin, top.Stdout, top.Stderr = terminal, terminal, &stderr
			if err := top.Start(); err != nil {
				t.Fatal(err)
			}
			defer top.Process.Kill()
			screen := readUntil(t, user, "sorted by pressure")
			if err := end(top.Process, user); err != nil {
				t.Fatal(err)
			}
			screen = append(screen, readUntil(t, user, "\x1b[?1049l")...)
			if err := top.Wait(); err != nil {
				t.Errorf("%v: %s", err, &stderr)
			}
			after, err := unix.IoctlGetTermios(int(terminal.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			if *after != *before {
				t.Errorf("the terminal was\n%+v\nand is\n%+v", *before, *after)
			}
			if hidden, shown := bytes.LastIndex(screen, []byte("\x1b[?25l")), bytes.LastIndex(screen, []byte("\x1b[?25h")); hidden > shown {
				t.Error("the cursor is hidden")
			}
		})
	}
}

// openTerminal opens a terminal, and the user's end of it.
func openTerminal(t *testing.T) (terminal, user *os.File) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("devpts", dir, "devpts", 0, "ptmxmode=0600"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	fd, err := unix.Open(filepath.Join(dir, "ptmx"), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	user = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { user.Close() })
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
	}
	if err == nil {
		terminal, err = os.OpenFile(filepath.Join(dir, fmt.Sprint(number)), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { terminal.Close() })
	return terminal, user
}

// readUntil reads what is written on the terminal, until that comes.
func readUntil(t *testing.T, user *os.File, what string) []byte {
	t.Helper()
	if err := user.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var all []byte
	buffer := make([]byte, 4096)
	for !bytes.Contains(all, []byte(what)) {
		n, err := user.Read(buffer)
		if err != nil {
			t.Fatalf("no %q: %v: %q", what, err, all)
		}
		all = append(all, buffer[:n]...)
	}
	return all
}
