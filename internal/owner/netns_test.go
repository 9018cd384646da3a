package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// mountLine returns a line of mountinfo for a network namespace that is
// mounted at path. The kernel escapes these four characters and no others.
func mountLine(path string) string {
	path = strings.NewReplacer(" ", `\040`, "\t", `\011`, "\n", `\012`, `\`, `\134`).Replace(path)
	return fmt.Sprintf("412 29 0:4 net:[4026532785] %s rw shared:196 - nsfs nsfs rw\n", path)
}

const rootLine = "29 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n"

func TestMounted(t *testing.T) {
	paths := []string{
		"/run/netns/blue", "/run/netns/with space", "/run/netns/tab\tand\nline", `/run/netns/back\slash`, `/run/netns/\040`,
		"/run/netns/no-break\u00a0space\u2003\v", "/run/netns/日本語",
	}
	text := rootLine
	for _, path := range paths {
		text += mountLine(path)
	}
	text += "413 29 0:4 mnt:[4026532785] /run/mnt rw - nsfs nsfs rw\n"
	// A container's root may have hundreds of layers.
	text += "414 29 0:50 / /var/lib/x rw - overlay overlay rw,lowerdir=" + strings.Repeat("/layer:", 20000) + "\n"
	text += mountLine("/run/netns/last")
	text += "415 29 0:4 net:[4026532785]" // torn
	proc := tree{"1/mountinfo": text}.write(t)

	if diff := cmp.Diff(append(paths, "/run/netns/last"), mounted(filepath.Join(proc, "1/mountinfo"))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := mounted(filepath.Join(proc, "2/mountinfo")); got != nil {
		t.Errorf("%q from no file", got)
	}
}

// FuzzUnescape: a path is read as what the kernel was told, and no text hangs
// or panics.
func FuzzUnescape(f *testing.F) {
	for _, path := range []string{"/run/netns/a", "/a b", `/\040`, `\`, "\t\n", `\13`, "\u00a0"} {
		f.Add(path)
	}
	f.Fuzz(func(t *testing.T, path string) {
		line := mountLine(path)
		fields := strings.Split(line, " ")
		if got := unescape(fields[4]); got != path {
			t.Errorf("%q is read as %q", path, got)
		}
		_ = unescape(path)
		if strings.Contains(path, "\x00") || path == "" {
			return
		}
		if got := parseMounts(rootLine + line); !slices.Equal(got, []string{path}) {
			t.Errorf("%q is found as %q", path, got)
		}
	})
}

// TestNetNS finds each namespace once, whoever is in it and wherever it is
// mounted.
func TestNetNS(t *testing.T) {
	proc := tree{
		"1/ns/net":                  "host",
		"1/mountinfo":               rootLine + mountLine("/run/netns/empty") + mountLine("/run/netns/gone"),
		"1/root/run/netns/empty":    "nobody is in it",
		"20/ns/net":                 "pod",
		"30/cmdline":                "has ended",
		"self":                      "-> 40",
		"40/mountinfo":              mountLine("/run/netns/my own"),
		"40/root/run/netns/my own":  "nobody is in it either",
		"50/mountinfo":              mountLine("/elsewhere"), // not looked at
		"50/root/elsewhere":         "of another mount namespace",
		"sys/kernel/random/boot_id": "",
	}.write(t)
	// Both share a namespace with another process.
	for link, to := range map[string]string{"21/ns/net": "20/ns/net", "40/ns/net": "1/ns/net"} {
		link = filepath.Join(proc, link)
		if err := errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.Link(filepath.Join(proc, to), link)); err != nil {
			t.Fatal(err)
		}
	}

	paths, err := NetNS(proc)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, path := range paths {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(content))
	}
	slices.Sort(got)
	if diff := cmp.Diff([]string{"host", "nobody is in it", "nobody is in it either", "pod"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestOwnNetNS asks the real /proc.
func TestOwnNetNS(t *testing.T) {
	own := inode(t, "/proc/self/ns/net")
	paths, err := NetNS("/proc")
	if err != nil {
		t.Fatal(err)
	}
	found := 0
	for _, path := range paths {
		// A process may have ended since.
		if info, err := os.Stat(path); err == nil && info.Sys().(*syscall.Stat_t).Ino == own {
			found++
		}
	}
	if found != 1 {
		t.Errorf("our own namespace is found %d times", found)
	}
	for _, name := range []string{fmt.Sprint(own), fmt.Sprintf("pid:%d", os.Getpid()), "/proc/self/ns/net"} {
		if got, err := FindNetNS("/proc", name); err != nil || uint64(got) != own {
			t.Errorf("%s: %d, %v; want %d", name, got, err, own)
		}
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Sys().(*syscall.Stat_t).Ino
}

func TestFindNetNS(t *testing.T) {
	if got, err := FindNetNS("/proc", "4026532785"); err != nil || got != 4026532785 {
		t.Errorf("by inode: %d, %v", got, err)
	}
	fifo := filepath.Join(t.TempDir(), "fifo") // where nobody writes
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/proc/self/ns/mnt", "/etc/passwd", "/", fifo} {
		if got, err := FindNetNS("/proc", name); err == nil || !strings.HasSuffix(err.Error(), name+" is none") {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
	for _, name := range []string{"pid:4194305", "pid:", "no such namespace", "/no/such/path", "4294967296", "-1", "0"} {
		got, err := FindNetNS("/proc", name)
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
			t.Errorf("%s: %d, %v", name, got, err)
		}
	}
}

// TestFindNetNSByName looks where ip netns mounts, in a /run of its own.
func TestFindNetNSByName(t *testing.T) {
	var got uint32
	var want uint64
	// Its mounts end with the thread.
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := os.MkdirAll("/run", 0o755); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("run", "/run", "tmpfs", 0, ""); err != nil {
			return err
		}
		if err := errors.Join(os.Mkdir("/run/netns", 0o755), os.WriteFile("/run/netns/blue", nil, 0o644),
			unix.Mount("/proc/self/ns/net", "/run/netns/blue", "", unix.MS_BIND, "")); err != nil {
			return err
		}
		var info unix.Stat_t
		if err := unix.Stat("/run/netns/blue", &info); err != nil {
			return err
		}
		want = info.Ino
		var err error
		got, err = FindNetNS("/proc", "blue")
		return err
	})
	if errors.Is(err, unix.EPERM) && os.Getenv("TWTRACE_TEST_REQUIRE") == "" {
		t.Skip("a mount namespace needs root")
	}
	if err != nil || uint64(got) != want {
		t.Errorf("%d, %v; want %d", got, err, want)
	}
}
