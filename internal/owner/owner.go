// Package owner tells who: the processes that hold sockets which are older than
// the trace, the control groups that processes are in, with the containers and pods
// that their paths tell, and the network namespaces of the machine. It reads /proc and
// the control groups, and nothing else.
package owner

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

// Holders returns, for the inodes of open sockets, a process that holds each: of
// those given, and of all where none is. Of several processes the oldest is taken:
// who opened it, where it did not pass it on and end. Processes that end meanwhile,
// and those that may not be looked at, are passed over. proc is where procfs is
// mounted.
func Holders(proc string, given ...uint64) (map[uint64]event.Owner, error) {
	pids, err := processes(proc)
	if err != nil {
		return nil, err
	}
	holders := make(map[uint64]event.Owner)
	since := make(map[uint64]uint64)
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		inodes := sockets(dir, given)
		if len(inodes) == 0 {
			continue
		}
		owner, started, err := process(dir, pid)
		if err != nil {
			continue // it has ended
		}
		for _, inode := range inodes {
			if before, ok := since[inode]; ok && before <= started {
				continue
			}
			holders[inode], since[inode] = owner, started
		}
	}
	return holders, nil
}

func processes(proc string) ([]int, error) {
	dir, err := os.Open(proc)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// sockets returns the inodes of the sockets that a process holds open, and of those
// given alone where there are any.
func sockets(dir string, given []uint64) []uint64 {
	fds, err := os.Open(filepath.Join(dir, "fd"))
	if err != nil {
		return nil
	}
	defer fds.Close()
	names, err := fds.Readdirnames(-1)
	if err != nil {
		return nil
	}
	var inodes []uint64
	var target [64]byte // enough for what is looked for
	for _, name := range names {
		n, err := unix.Readlinkat(int(fds.Fd()), name, target[:])
		if err != nil {
			continue
		}
		if inode, ok := bracketed(string(target[:n]), "socket:["); ok && (len(given) == 0 || slices.Contains(given, inode)) {
			inodes = append(inodes, inode)
		}
	}
	return inodes
}

// bracketed reads the number of "socket:[123]" or "net:[123]".
func bracketed(s, prefix string) (uint64, bool) {
	s, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(s, "]"), 10, 64)
	return n, err == nil
}

// process reads who a process is, and when it started, in clock ticks since
// the boot.
func process(dir string, pid int) (event.Owner, uint64, error) {
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return event.Owner{}, 0, err
	}
	comm, started, err := parseStat(stat)
	if err != nil {
		return event.Owner{}, 0, err
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return event.Owner{}, 0, err
	}
	uid, err := parseUID(status)
	if err != nil {
		return event.Owner{}, 0, err
	}
	return event.Owner{PID: uint32(pid), UID: uid, Comm: comm}, started, nil
}

// parseUID reads the real user id of /proc/PID/status (proc(5)).
func parseUID(status []byte) (uint32, error) {
	_, rest, _ := bytes.Cut(status, []byte("\nUid:"))
	fields := bytes.Fields(rest)
	if len(fields) == 0 {
		return 0, errors.New("read the process's status: no uid in it")
	}
	uid, err := strconv.ParseUint(string(fields[0]), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("read the process's status: %w", err)
	}
	return uint32(uid), nil
}

// parseStat reads the name and the start time of /proc/PID/stat (proc(5)). The
// name stands in parentheses and may hold some of its own.
func parseStat(stat []byte) (comm string, started uint64, err error) {
	open, shut := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || shut < open {
		return "", 0, errors.New("read the process's stat: no name in it")
	}
	const startTime = 22 - 3 // field 22, counted from the one after the name
	fields := bytes.Fields(stat[shut+1:])
	if len(fields) <= startTime {
		return "", 0, errors.New("read the process's stat: too short")
	}
	started, err = strconv.ParseUint(string(fields[startTime]), 10, 64)
	if err != nil {
		return "", 0, fmt.Errorf("read the process's stat: %w", err)
	}
	return string(stat[open+1 : shut]), started, nil
}
