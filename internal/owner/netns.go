package owner

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// NetNS returns a path for each network namespace that a process is in, or that
// is mounted somewhere, as ip netns and container runtimes do. proc is where
// procfs is mounted. The paths are not held open: an open namespace would live
// on after its pod.
func NetNS(proc string) ([]string, error) {
	pids, err := processes(proc)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, pid := range pids {
		paths = append(paths, filepath.Join(proc, strconv.Itoa(pid), "ns/net"))
	}
	// Ours and, from within a container, the host's.
	for _, pid := range []string{"self", "1"} {
		for _, mount := range mounted(filepath.Join(proc, pid, "mountinfo")) {
			paths = append(paths, filepath.Join(proc, pid, "root", mount))
		}
	}
	seen := make(map[uint64]bool)
	var distinct []string
	for _, path := range paths {
		inode, err := Inode(path)
		if err != nil || seen[inode] {
			continue // gone, not ours to see, or known
		}
		seen[inode] = true
		distinct = append(distinct, path)
	}
	return distinct, nil
}

// mounted returns where network namespaces are mounted, by a mountinfo file
// (proc(5)).
func mounted(mountinfo string) []string {
	text, err := os.ReadFile(mountinfo)
	if err != nil {
		return nil
	}
	return parseMounts(string(text))
}

func parseMounts(text string) (mounts []string) {
	for line := range strings.Lines(text) {
		fields := strings.Split(line, " ")
		if len(fields) > 5 && strings.HasPrefix(fields[3], "net:[") {
			mounts = append(mounts, unescape(fields[4]))
		}
	}
	return mounts
}

// unescape undoes the octal escapes of mountinfo.
func unescape(path string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(path)
}

// Inode returns the inode of the network namespace at path.
func Inode(path string) (uint64, error) {
	info, err := os.Stat(path)
	if err != nil {
		return 0, err
	}
	sys, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, fmt.Errorf("stat %s: no inode", path)
	}
	return sys.Ino, nil
}

// FindNetNS returns the inode of the network namespace that a user names: by
// its inode as lsns shows it, by its name as ip netns does, by a path, or as
// the one of a process ("pid:4711").
func FindNetNS(proc, name string) (uint32, error) {
	if inode, err := strconv.ParseUint(name, 10, 32); err == nil && inode != 0 {
		return uint32(inode), nil
	}
	path := filepath.Join("/run/netns", name)
	if pid, ok := strings.CutPrefix(name, "pid:"); ok {
		path = filepath.Join(proc, pid, "ns/net")
	} else if strings.Contains(name, "/") {
		path = name
	}
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // not to wait at a FIFO
	if err != nil {
		return 0, fmt.Errorf("network namespace %q: %w", name, err)
	}
	defer file.Close()
	if kind, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return 0, fmt.Errorf("network namespace %q: %s is none", name, path)
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return 0, fmt.Errorf("network namespace %q: %w", name, err)
	}
	return uint32(stat.Ino), nil
}
