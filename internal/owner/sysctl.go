package owner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/thread"
)

// Sysctls reads the settings of the network namespace at path, as far as this
// kernel has them, and its cookie: 0 before Linux 5.14, which doesn't tell. It
// holds the namespace open no longer than it takes to enter.
func Sysctls(path string) (sysctls event.Sysctls, cookie uint64, err error) {
	err = inside(path, func() (err error) {
		sysctls, err = readSysctls("/proc/sys/net/ipv4")
		cookie = netnsCookie()
		return err
	})
	return sysctls, cookie, err
}

// inside runs f in the network namespace at path, which it holds open no longer
// than it takes to enter.
func inside(path string, f func() error) error {
	return thread.Run(func() error {
		if err := enter(path); err != nil {
			return err
		}
		return f()
	})
}

// netnsCookie returns the cookie of the thread's network namespace, 0 where the
// kernel doesn't tell.
func netnsCookie() uint64 {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	defer unix.Close(s)
	cookie, err := unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err != nil {
		return 0
	}
	return cookie
}

// enter moves the thread into the network namespace at path.
func enter(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open network namespace: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	return nil
}

func readSysctls(dir string) (event.Sysctls, error) {
	var s event.Sysctls
	text, err := os.ReadFile(filepath.Join(dir, "ip_local_port_range"))
	if err != nil {
		return s, fmt.Errorf("read sysctl: %w", err)
	}
	if _, err := fmt.Sscan(string(text), &s.Ports.Low, &s.Ports.High); err != nil {
		return s, fmt.Errorf("read sysctl ip_local_port_range: %w", err)
	}
	text, err = os.ReadFile(filepath.Join(dir, "ip_local_reserved_ports"))
	if err != nil {
		return s, fmt.Errorf("read sysctl: %w", err)
	}
	if s.Reserved, err = parsePortRanges(strings.TrimSpace(string(text))); err != nil {
		return s, fmt.Errorf("read sysctl ip_local_reserved_ports: %w", err)
	}
	for i := range s.Numbers {
		s.Numbers[i] = -1
		text, err := os.ReadFile(filepath.Join(dir, event.SysctlNames[i]))
		if errors.Is(err, fs.ErrNotExist) {
			continue // this kernel has none
		}
		if err != nil {
			return s, fmt.Errorf("read sysctl: %w", err)
		}
		if s.Numbers[i], err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return s, fmt.Errorf("read sysctl %s: %w", event.SysctlNames[i], err)
		}
	}
	return s, nil
}

// parsePortRanges reads "80,8000-8099", as the kernel writes it.
func parsePortRanges(text string) ([]event.PortRange, error) {
	if text == "" {
		return nil, nil
	}
	var ranges []event.PortRange
	for item := range strings.SplitSeq(text, ",") {
		low, high, isRange := strings.Cut(item, "-")
		if !isRange {
			high = low
		}
		first, err := strconv.ParseUint(low, 10, 16)
		if err != nil {
			return nil, err
		}
		last, err := strconv.ParseUint(high, 10, 16)
		if err != nil {
			return nil, err
		}
		ranges = append(ranges, event.PortRange{Low: uint16(first), High: uint16(last)})
	}
	return ranges, nil
}

// PathOf returns a path of the network namespace with this inode: by a thread or a
// process that may be in it, else by looking everywhere. "" where there is none.
func PathOf(proc string, inode uint32, maybe ...uint32) (string, error) {
	for _, id := range maybe {
		path := filepath.Join(proc, strconv.FormatUint(uint64(id), 10), "ns/net")
		if found, err := Inode(path); err == nil && found == uint64(inode) {
			return path, nil
		}
	}
	paths, err := NetNS(proc)
	if err != nil {
		return "", err
	}
	for _, path := range paths {
		if found, err := Inode(path); err == nil && found == uint64(inode) {
			return path, nil
		}
	}
	return "", nil
}
