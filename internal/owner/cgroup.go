package owner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// A Hierarchy is the one of control groups that tells containers apart: version 2
// or, where the controllers are those of version 1, a controller's.
type Hierarchy struct {
	// ID is its number in /proc/PID/cgroup, 0 for version 2.
	ID uint32
	// Controller is one of version 1 that it has: "memory". "" for version 2.
	Controller string
}

// controllers are those of version 1 that every runtime puts containers under.
var controllers = []string{"memory", "pids", "devices", "cpuset"}

// FindHierarchy finds the hierarchy that container runtimes use on this machine.
// proc is where procfs is mounted.
func FindHierarchy(proc string) (Hierarchy, error) {
	text, err := os.ReadFile(filepath.Join(proc, "self/cgroup"))
	if err != nil {
		return Hierarchy{}, fmt.Errorf("find the hierarchy of control groups: %w", err)
	}
	return parseHierarchy(string(text)), nil
}

// parseHierarchy reads /proc/PID/cgroup (cgroups(7)): a line for each hierarchy, with
// its number, its controllers and the process's path.
func parseHierarchy(text string) Hierarchy {
	for _, controller := range controllers {
		for line := range strings.Lines(text) {
			number, rest, _ := strings.Cut(line, ":")
			list, _, _ := strings.Cut(rest, ":")
			id, err := strconv.ParseUint(number, 10, 32)
			if err == nil && slices.Contains(strings.Split(list, ","), controller) {
				return Hierarchy{ID: uint32(id), Controller: controller}
			}
		}
	}
	return Hierarchy{}
}

// Cgroups tells control groups by their ids. Its methods are not safe for
// concurrent use.
type Cgroups struct {
	Hierarchy
	proc string
	// root is a mount of the hierarchy, whole, nil where none can be opened, and
	// prefix is what the paths of what is opened there begin with.
	root   *os.File
	prefix string
	// own is where the paths in /proc/PID/cgroup begin, "" where that is not known.
	own string
	// made returns the path of one that is gone, "" where it does not know.
	made func(id uint64) (string, error)
	// known holds nil for one that nobody will ever know: an id is not used again
	// before 2^64 others were.
	known *simplelru.LRU[uint64, *event.Cgroup]
}

const (
	// maxCgroups bounds those that are kept; the ones longest unused go.
	maxCgroups = 16 << 10
	// rootInode is the inode of the root of a hierarchy (fs/kernfs/dir.c,
	// kernfs_create_root: the first of its ids).
	rootInode = 1
)

// OpenCgroups opens the hierarchy. Where no mount of it can be opened, paths are
// those that made knows: of control groups that were made during the trace. proc is
// where procfs is mounted.
func OpenCgroups(proc string, h Hierarchy, made func(id uint64) (string, error)) *Cgroups {
	known, err := simplelru.NewLRU[uint64, *event.Cgroup](maxCgroups, nil)
	if err != nil {
		panic(err) // no size
	}
	c := &Cgroups{Hierarchy: h, proc: proc, made: made, known: known}
	// Process 1 is the host's, where twtrace runs in a container that may see it.
	for _, pid := range []string{"1", "self"} {
		base := ""
		if pid != "self" {
			base = filepath.Join(proc, pid, "root")
		}
		for mount := range cgroupMounts(filepath.Join(proc, pid, "mountinfo"), h) {
			if c.open(filepath.Join(base, mount), mount) {
				c.own = c.ownRoot()
				return c
			}
		}
	}
	return c
}

// open opens a mount if it shows the whole hierarchy. mount is its path as
// readlink(2) will tell it.
func (c *Cgroups) open(path, mount string) bool {
	root, err := os.Open(path)
	if err != nil {
		return false
	}
	inode, err := inodeOf(root)
	if err != nil || inode != rootInode {
		root.Close()
		return false
	}
	c.root, c.prefix = root, mount
	// From another mount namespace its paths look different.
	if seen, err := os.Readlink(fmt.Sprintf("%s/self/fd/%d", c.proc, root.Fd())); err == nil {
		c.prefix = strings.TrimSuffix(seen, "/")
	}
	return true
}

// ownRoot is the control group that the paths in /proc/PID/cgroup count from, as this
// process reads them: in a container often its own (cgroup_namespaces(7)). A mount of
// it has the root "/" in mountinfo, which counts from there as well. "" where there
// is none.
func (c *Cgroups) ownRoot() string {
	for mount, root := range cgroupMounts(filepath.Join(c.proc, "self/mountinfo"), c.Hierarchy) {
		if root != "/" {
			continue
		}
		if inode, err := Inode(mount); err == nil {
			if path, err := c.path(inode); err == nil {
				return path
			}
		}
	}
	return ""
}

// Close closes the hierarchy.
func (c *Cgroups) Close() error {
	if c.root == nil {
		return nil
	}
	return c.root.Close()
}

// Find returns what is known of a control group: nil where it is gone, and was made
// before the trace.
func (c *Cgroups) Find(id uint64) *event.Cgroup {
	if id == 0 {
		return nil
	}
	if in, ok := c.known.Get(id); ok {
		return in
	}
	path, err := c.path(id)
	if err != nil {
		var madeErr error
		if path, madeErr = c.made(id); madeErr != nil {
			return nil // it may be known later
		}
		// Only that it is gone stays true.
		if path == "" && c.root != nil && !errors.Is(err, unix.ESTALE) {
			return nil
		}
	}
	var in *event.Cgroup
	if path != "" {
		parsed := ParseCgroup(path)
		in = &parsed
	}
	c.known.Add(id, in)
	return in
}

// Learn puts what more is known of a control group in place of what was.
func (c *Cgroups) Learn(id uint64, in *event.Cgroup) { c.known.Add(id, in) }

// path asks the kernel: the id is all of a file handle (fs/kernfs/mount.c,
// kernfs_fh_to_dentry).
func (c *Cgroups) path(id uint64) (string, error) {
	if c.root == nil {
		return "", errors.New("no mount of the control groups is to be seen")
	}
	const kernfsID = 0xfe // FILEID_KERNFS
	handle := unix.NewFileHandle(kernfsID, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(c.root.Fd()), handle, unix.O_PATH|unix.O_CLOEXEC)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	path, err := os.Readlink(fmt.Sprintf("%s/self/fd/%d", c.proc, fd))
	if err != nil {
		return "", err
	}
	path, ok := strings.CutPrefix(path, c.prefix)
	// It can go between the two.
	if !ok || strings.HasSuffix(path, " (deleted)") {
		return "", unix.ESTALE
	}
	return filepath.Clean("/" + path), nil
}

// Of returns the id of the control group that a process is in, 0 where it can't be
// found.
func (c *Cgroups) Of(pid uint32) uint64 {
	if c.root == nil || c.own == "" {
		return 0
	}
	text, err := os.ReadFile(filepath.Join(c.proc, strconv.Itoa(int(pid)), "cgroup"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		number, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ":")
		_, path, _ := strings.Cut(rest, ":")
		if number != strconv.Itoa(int(c.ID)) || strings.HasSuffix(path, " (deleted)") {
			continue
		}
		var stat unix.Stat_t
		path = filepath.Join(".", c.own, path)
		if unix.Fstatat(int(c.root.Fd()), path, &stat, unix.AT_SYMLINK_NOFOLLOW) != nil {
			return 0
		}
		return stat.Ino
	}
	return 0
}

// cgroupMounts gives where the hierarchy is mounted, and the root of each mount, by a
// mountinfo file (proc(5)).
func cgroupMounts(mountinfo string, h Hierarchy) iter.Seq2[string, string] {
	return func(yield func(mount, root string) bool) {
		text, err := os.ReadFile(mountinfo)
		if err != nil {
			return
		}
		for line := range strings.Lines(string(text)) {
			mount, super, ok := strings.Cut(strings.TrimSpace(line), " - ")
			where, is := strings.Fields(mount), strings.Fields(super)
			if !ok || len(where) < 5 || len(is) < 3 {
				continue
			}
			isOurs := is[0] == "cgroup2"
			if h.Controller != "" {
				isOurs = is[0] == "cgroup" && slices.Contains(strings.Split(is[2], ","), h.Controller)
			}
			if isOurs && !yield(unescape(where[4]), where[3]) {
				return
			}
		}
	}
}

func inodeOf(file *os.File) (uint64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("stat %s: no inode", file.Name())
	}
	return sys.Ino, nil
}
