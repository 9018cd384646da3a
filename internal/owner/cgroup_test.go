package owner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

func TestParseHierarchy(t *testing.T) {
	for _, test := range []struct {
		name, text string
		want       Hierarchy
	}{
		{"v2", "0::/user.slice\n", Hierarchy{}},
		{"v1", "12:pids:/\n4:memory:/docker/x\n1:name=systemd:/\n", Hierarchy{ID: 4, Controller: "memory"}},
		{"both", "4:memory:/\n1:name=systemd:/\n0::/x\n", Hierarchy{ID: 4, Controller: "memory"}},
		{"v1 without memory", "9:cpu,cpuacct,pids:/\n0::/\n", Hierarchy{ID: 9, Controller: "pids"}},
		{"v1 for systemd alone", "1:name=systemd:/\n2:net_cls,net_prio:/\n0::/\n", Hierarchy{}},
		{"nothing", "", Hierarchy{}},
	} {
		if got := parseHierarchy(test.text); got != test.want {
			t.Errorf("%s: %+v, want %+v", test.name, got, test.want)
		}
	}
}

// cgroups opens the control groups of this machine, and makes one for the test.
func cgroups(t testing.TB, made func(uint64) (string, error)) (c *Cgroups, dir string) {
	t.Helper()
	if os.Geteuid() != 0 {
		skip(t, "making control groups needs root")
	}
	h, err := FindHierarchy("/proc")
	if err != nil {
		t.Fatal(err)
	}
	c = OpenCgroups("/proc", h, made)
	t.Cleanup(func() { c.Close() })
	if c.root == nil {
		skip(t, "no mount of the control groups can be opened")
	}
	dir, err = os.MkdirTemp(c.root.Name(), "twtrace-test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Remove(dir) })
	return c, dir
}

func skip(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("TWTRACE_TEST_REQUIRE") != "" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// pathOf is the path of a control group, "" where it is not known.
func pathOf(c *Cgroups, id uint64) string {
	if in := c.Find(id); in != nil {
		return in.Path
	}
	return ""
}

func nothing(uint64) (string, error) { return "", nil }

// TestCgroups: a control group is known by its id, and stays known when it is gone;
// one that was gone before is what the programs say, or unknown.
func TestCgroups(t *testing.T) {
	asked := 0
	remembered := map[uint64]string{}
	var failure error
	c, dir := cgroups(t, func(id uint64) (string, error) {
		asked++
		return remembered[id], failure
	})
	make := func(name string) (id uint64, path string) {
		path = filepath.Join(dir, name)
		if err := os.Mkdir(path, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.Remove(path) })
		id, err := Inode(path)
		if err != nil {
			t.Fatal(err)
		}
		return id, "/" + filepath.Base(dir) + "/" + name
	}
	remove := func(name string) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}

	id, want := make("here")
	if got := pathOf(c, id); got != want {
		t.Errorf("path %q, want %q", got, want)
	}
	remove("here")
	if got := pathOf(c, id); got != want {
		t.Errorf("when it is gone: path %q, want %q", got, want)
	}
	if asked > 0 {
		t.Error("the programs were asked for what the kernel knew")
	}

	id, want = make("short-lived")
	remove("short-lived")
	remembered[id] = want
	if got := pathOf(c, id); got != want {
		t.Errorf("gone before: path %q, want %q", got, want)
	}
	id, _ = make("unknown")
	remove("unknown")
	failure = errors.New("for now")
	if got := pathOf(c, id); got != "" {
		t.Errorf("not known: path %q", got)
	}
	failure, remembered[id] = nil, want
	if got := pathOf(c, id); got != want {
		t.Errorf("known later: path %q, want %q", got, want)
	}
	id, _ = make("never")
	remove("never")
	for range 3 {
		if got := pathOf(c, id); got != "" {
			t.Errorf("never known: path %q", got)
		}
	}
	if asked != 4 {
		t.Errorf("the programs were asked %d times, want 4", asked)
	}
	if got := pathOf(c, rootInode); got != "/" {
		t.Errorf("the root's path is %q", got)
	}
}

// TestCgroupOf: a process's control group is the one that the kernel says.
func TestCgroupOf(t *testing.T) {
	c, _ := cgroups(t, nothing)
	id := c.Of(uint32(os.Getpid()))
	path := pathOf(c, id)
	text, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	if id == 0 || !strings.Contains(string(text), fmt.Sprintf("%d:%s:%s\n", c.ID, c.Controller, path)) {
		t.Errorf("control group %d, %q, and the kernel says:\n%s", id, path, text)
	}
	if id := c.Of(1 << 31); id != 0 {
		t.Errorf("a process that is none is in control group %d", id)
	}
}

// TestCgroupNamespace: in a namespace of control groups /proc/PID/cgroup counts from
// elsewhere. Ids are known as before; where a process is, is right or not known.
func TestCgroupNamespace(t *testing.T) {
	outside, dir := cgroups(t, nothing)
	pid := uint32(os.Getpid())
	want := outside.Of(pid)
	id, err := Inode(dir)
	if err != nil {
		t.Fatal(err)
	}
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
			return err
		}
		c := OpenCgroups("/proc", outside.Hierarchy, nothing)
		defer c.Close()
		if got := c.Of(pid); got != want && got != 0 {
			t.Errorf("the process is in %d, want %d", got, want)
		}
		if got := pathOf(c, id); got != "/"+filepath.Base(dir) {
			t.Errorf("path %q, want /%s", got, filepath.Base(dir))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestCgroupsNoMount: where no mount is to be seen, what the programs know stands.
func TestCgroupsNoMount(t *testing.T) {
	c := OpenCgroups(t.TempDir(), Hierarchy{}, func(id uint64) (string, error) { return fmt.Sprint("/", id), nil })
	defer c.Close()
	if got := pathOf(c, 7); got != "/7" {
		t.Errorf("path %q, want /7", got)
	}
	if got := c.Of(1); got != 0 {
		t.Errorf("process 1 is in %d", got)
	}
}

// BenchmarkCgroups: what a look-up costs with 1000 containers, each new one, and
// where 10000 others come and go beside them. The memory that it takes is bounded.
func BenchmarkCgroups(b *testing.B) {
	c, dir := cgroups(b, nothing)
	ids := make([]uint64, 1000)
	for i := range ids {
		path := filepath.Join(dir, fmt.Sprint(i))
		if err := os.Mkdir(path, 0o755); err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { os.Remove(path) })
		var err error
		if ids[i], err = Inode(path); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("new", func(b *testing.B) {
		n := 0
		for b.Loop() {
			if n++; n%len(ids) == 0 {
				c.known.Purge()
			}
			if pathOf(c, ids[n%len(ids)]) == "" {
				b.Fatal("a control group is not found")
			}
		}
	})
	b.Run("known", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n++
			pathOf(c, ids[n%len(ids)])
		}
	})
	b.Run("churn", func(b *testing.B) {
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		looked := 0
		for b.Loop() {
			for i := range 10000 {
				path := filepath.Join(dir, fmt.Sprint("gone", i))
				if err := os.Mkdir(path, 0o755); err != nil {
					b.Fatal(err)
				}
				id, err := Inode(path)
				if err != nil {
					b.Fatal(err)
				}
				pathOf(c, id)
				if err := os.Remove(path); err != nil {
					b.Fatal(err)
				}
				pathOf(c, ids[i%len(ids)])
				looked++
			}
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if c.known.Len() > maxCgroups {
			b.Errorf("%d paths are kept", c.known.Len())
		}
		b.ReportMetric((float64(after.HeapAlloc)-float64(before.HeapAlloc))/1e6, "MB")
	})
}
