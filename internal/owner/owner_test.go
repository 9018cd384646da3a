package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/twtrace/twtrace/internal/event"
)

// A tree is a procfs of the test's own: files and symbolic links by their path.
// What begins with "-> " is a link, to what follows.
type tree map[string]string

func (files tree) write(t *testing.T) (root string) {
	t.Helper()
	root = t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, path)
		} else {
			err = os.WriteFile(path, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// stat returns a /proc/PID/stat, as Linux 6.12 writes it.
func stat(pid int, comm string, started uint64) string {
	return fmt.Sprintf("%d (%s) S 1 %[1]d %[1]d 0 -1 4194560 1094 0 0 0 1 2 0 0 20 0 4 0 %[3]d 1270284288 2013 18446744073709551615 1 1 0 0 0 0 0 0 2143420159 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n", pid, comm, started)
}

// status returns the head of a /proc/PID/status. The kernel escapes the name.
func status(comm string, uid uint32) string {
	comm = strings.NewReplacer("\n", `\n`, `\`, `\\`).Replace(comm)
	return fmt.Sprintf("Name:\t%s\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t1\nUid:\t%d\t0\t0\t0\nGid:\t5\t5\t5\t5\n", comm, uid)
}

// add adds a process that holds fds open.
func (files tree) add(pid int, comm string, uid uint32, started uint64, fds ...string) {
	dir := strconv.Itoa(pid) + "/"
	files[dir+"stat"] = stat(pid, comm, started)
	files[dir+"status"] = status(comm, uid)
	files[dir+"fd/0"] = "-> /dev/null"
	for i, target := range fds {
		files[fmt.Sprintf("%sfd/%d", dir, i+3)] = "-> " + target
	}
}

func TestHolders(t *testing.T) {
	proc := tree{"meminfo": "", "self": "-> 100", "sys/net": "", "net": "-> self/net"}
	proc.add(100, "curl", 1000, 500, "socket:[11]", "anon_inode:[eventpoll]", "pipe:[12]", "socket:[13]", "/tmp/socket:[14]")
	// Names that look like something else.
	proc.add(101, "a) R (b", 1, 500, "socket:[21]")
	proc.add(102, "x\nUid:\t0\t0\t0\t0\n", 2, 500, "socket:[22]")
	proc.add(103, ") S 1 1 1", 3, 500, "socket:[23]")
	proc.add(104, "", 4, 500, "socket:[24]")
	proc.add(105, "nginx: worker", 1<<32-2, 500, "socket:[18446744073709551615]")
	// Shared by a parent, whose pid is the highest, and its two children.
	proc.add(202, "parent", 0, 1000, "socket:[31]")
	proc.add(200, "child", 0, 3000, "socket:[31]", "socket:[32]")
	proc.add(201, "child 2", 0, 2000, "socket:[31]", "socket:[32]")
	// One that has ended but for its directory, one that ends while it is
	// looked at, and ones that may not be looked at.
	proc["300/cmdline"] = ""
	proc.add(301, "gone", 0, 1, "socket:[41]")
	delete(proc, "301/stat")
	proc.add(302, "gone", 0, 1, "socket:[41]")
	delete(proc, "302/status")
	proc["303/stat"], proc["303/status"], proc["303/fd"] = stat(303, "hidden", 1), status("hidden", 0), "no directory"
	proc.add(304, "damaged", 0, 1, "socket:[41]")
	proc["304/stat"] = "304 (damaged) S 1"
	proc.add(305, "damaged", 0, 1, "socket:[41]")
	proc["305/status"] = "Name:\tdamaged\n"
	// Descriptors that are no links to a socket.
	proc.add(400, "odd", 7, 500, "socket:[]", "socket:[x]", "socket:[-1]", "socket:", "[42]", "socket:[43]")
	proc["400/fd/9"] = "closed meanwhile"

	dir := proc.write(t)
	got, err := Holders(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := map[uint64]event.Owner{
		11:        {PID: 100, UID: 1000, Comm: "curl"},
		13:        {PID: 100, UID: 1000, Comm: "curl"},
		21:        {PID: 101, UID: 1, Comm: "a) R (b"},
		22:        {PID: 102, UID: 2, Comm: "x\nUid:\t0\t0\t0\t0\n"},
		23:        {PID: 103, UID: 3, Comm: ") S 1 1 1"},
		24:        {PID: 104, UID: 4},
		1<<64 - 1: {PID: 105, UID: 1<<32 - 2, Comm: "nginx: worker"},
		31:        {PID: 202, Comm: "parent"},
		32:        {PID: 201, Comm: "child 2"},
		43:        {PID: 400, UID: 7, Comm: "odd"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}

	got, err = Holders(dir, 32, 99)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[uint64]event.Owner{32: want[32]}, got); diff != "" {
		t.Errorf("of two that are given (-want +got):\n%s", diff)
	}
}

func TestHoldersWithoutProc(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "proc")
	if _, err := Holders(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("Holders: %v", err)
	}
	if _, err := NetNS(missing); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("NetNS: %v", err)
	}
}

// TestOwnSocket asks the real /proc.
func TestOwnSocket(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	file, err := listener.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	holders, err := Holders("/proc")
	if err != nil {
		t.Fatal(err)
	}
	want := event.Owner{PID: uint32(os.Getpid()), UID: uint32(os.Getuid()), Comm: strings.TrimSuffix(string(comm), "\n")}
	if diff := cmp.Diff(want, holders[info.Sys().(*syscall.Stat_t).Ino]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestParseStatErrors(t *testing.T) {
	whole := stat(1, "init", 7)
	for _, text := range []string{
		"", "1", "1 init S", "1 (init", "1 )init(", "1 (init)", "1 (init) S 1 1 1",
		strings.Replace(whole, " 7 ", " x ", 1),
		strings.Replace(whole, " 7 ", " -7 ", 1),
	} {
		if comm, started, err := parseStat([]byte(text)); err == nil {
			t.Errorf("%q: %q, %d and no error", text, comm, started)
		}
	}
}

func TestParseUIDErrors(t *testing.T) {
	for _, text := range []string{"", "Name:\tx\n", "Name:\tx\nUid:", "Name:\tx\nUid:\n", "Name:\tx\nUid:\t-1\t0", "Name:\tx\nUid:\t4294967296\t0"} {
		if uid, err := parseUID([]byte(text)); err == nil {
			t.Errorf("%q: %d and no error", text, uid)
		}
	}
}

// FuzzParseStat: whatever a process calls itself, it is read as that, and its
// start is read past it.
func FuzzParseStat(f *testing.F) {
	for _, comm := range []string{"curl", "", "a) R (b", ") S 1 1 1 1", "\n", "(((", ")))"} {
		f.Add(comm, uint64(1))
	}
	f.Fuzz(func(t *testing.T, comm string, started uint64) {
		gotComm, gotStarted, err := parseStat([]byte(stat(4711, comm, started)))
		if err != nil || gotComm != comm || gotStarted != started {
			t.Errorf("%q, %d: %v; want %q, %d", gotComm, gotStarted, err, comm, started)
		}
		_, _, _ = parseStat([]byte(comm)) // no panic
	})
}

// FuzzParseUID: no name passes for another uid.
func FuzzParseUID(f *testing.F) {
	for _, comm := range []string{"curl", "", "\nUid:\t0", "Uid:\t0", `\nUid:`} {
		f.Add(comm, uint32(1000))
	}
	f.Fuzz(func(t *testing.T, comm string, uid uint32) {
		if got, err := parseUID([]byte(status(comm, uid))); err != nil || got != uid {
			t.Errorf("%d: %v; want %d", got, err, uid)
		}
		_, _ = parseUID([]byte(comm)) // no panic
	})
}
