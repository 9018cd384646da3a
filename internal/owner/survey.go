package owner

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/thread"
)

// A Namespace is a network namespace as it is at one moment.
type Namespace struct {
	Inode uint64
	// Name is what ip netns calls it, "" where it doesn't.
	Name string
	// Oldest is its oldest process; PID 0 where there is none.
	Oldest event.Owner

	Sysctls event.Sysctls
	// Recycle is tcp_tw_recycle, which went with Linux 4.12; -1 without it.
	Recycle  int64
	Counters Counters
	// Busiest is set where the TIME_WAITs are as many as a quarter of the local
	// ports. Else no destination can have so many.
	Busiest Destination
}

// A Destination is what local ports are taken toward.
type Destination struct {
	Local    netip.Addr
	Peer     netip.AddrPort
	TimeWait int // TIME_WAITs with a local port of the range
}

// Survey looks at each network namespace that a process is in or that is mounted.
// It returns those that it could look at, and an error for the others.
func Survey(proc string) ([]Namespace, error) {
	paths, err := NetNS(proc)
	if err != nil {
		return nil, err
	}
	oldest, err := oldestProcesses(proc)
	if err != nil {
		return nil, err
	}
	names := mountNames(proc)
	own, err := Inode(filepath.Join(proc, "self/ns/net"))
	if err != nil {
		return nil, fmt.Errorf("find the own network namespace: %w", err)
	}

	var found []Namespace
	var errs []error
	look := func(inode uint64) {
		n := Namespace{Inode: inode, Name: names[inode], Oldest: oldest[inode].Owner}
		if err := n.read("/proc"); err != nil {
			errs = append(errs, fmt.Errorf("network namespace %d: %w", inode, err))
			return
		}
		found = append(found, n)
	}
	_ = thread.Run(func() error {
		// Our own takes no privileges, as long as we are in it.
		look(own)
		for _, path := range paths {
			if inode, err := Inode(path); err != nil || inode == own {
				continue // gone, or done
			}
			if err := enter(path); err != nil {
				if !errors.Is(err, fs.ErrNotExist) {
					errs = append(errs, err)
				}
				continue
			}
			inode, err := Inode("/proc/thread-self/ns/net") // what path was a moment ago may be another now
			if err != nil {
				errs = append(errs, err)
				continue
			}
			look(inode)
		}
		return nil
	})
	return found, errors.Join(errs...)
}

// read reads how the thread's network namespace is.
func (n *Namespace) read(proc string) (err error) {
	settings := filepath.Join(proc, "sys/net/ipv4")
	if n.Sysctls, err = readSysctls(settings); err != nil {
		return err
	}
	n.Recycle = -1
	if text, err := os.ReadFile(filepath.Join(settings, "tcp_tw_recycle")); err == nil {
		if n.Recycle, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
			return fmt.Errorf("read sysctl tcp_tw_recycle: %w", err)
		}
	}
	if n.Counters, err = readCounters(proc); err != nil {
		return err
	}
	// The table of sockets is long, so it is read only where it matters.
	if n.Counters.TimeWaits*4 < uint64(n.Sysctls.Usable()) {
		return nil
	}
	waiting := make(map[string]int)
	for _, name := range []string{"tcp", "tcp6"} {
		file, err := os.Open(filepath.Join(proc, "thread-self/net", name))
		if errors.Is(err, fs.ErrNotExist) {
			continue // no IPv6
		}
		if err != nil {
			return fmt.Errorf("read the sockets: %w", err)
		}
		err = countTimeWaits(file, n.Sysctls.Ports, waiting)
		file.Close()
		if err != nil {
			return fmt.Errorf("read the sockets: %w", err)
		}
	}
	n.Busiest, err = busiest(waiting)
	return err
}

// countTimeWaits counts the TIME_WAITs of /proc/net/tcp or tcp6 that hold a local
// port of the range, by the other three parts of their four-tuple, as the file
// spells them: "LOCALADDRESS PEERADDRESS:PORT".
func countTimeWaits(file io.Reader, ports event.PortRange, counts map[string]int) error {
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		// "  12: 0100007F:1388 0100007F:0050 06 00000000:00000000 ..."
		fields := bytes.Fields(lines.Bytes())
		const timeWait = "06"
		if len(fields) < 4 || string(fields[3]) != timeWait {
			continue
		}
		address, digits, _ := bytes.Cut(fields[1], []byte(":"))
		port, err := strconv.ParseUint(string(digits), 16, 16)
		if err != nil {
			return fmt.Errorf("local address %q: %w", fields[1], err)
		}
		if ports.Has(uint16(port)) {
			counts[string(address)+" "+string(fields[2])]++
		}
	}
	return lines.Err()
}

// busiest is the destination with the most TIME_WAITs, of several the first by
// its spelling.
func busiest(counts map[string]int) (Destination, error) {
	var most string
	for key, n := range counts {
		if n > counts[most] || n == counts[most] && key < most {
			most = key
		}
	}
	if most == "" {
		return Destination{}, nil
	}
	local, peer, _ := strings.Cut(most, " ")
	address, digits, _ := strings.Cut(peer, ":")
	port, err := strconv.ParseUint(digits, 16, 16)
	if err != nil {
		return Destination{}, fmt.Errorf("peer %q: %w", peer, err)
	}
	d := Destination{TimeWait: counts[most]}
	if d.Local, err = parseAddress(local); err != nil {
		return Destination{}, err
	}
	remote, err := parseAddress(address)
	if err != nil {
		return Destination{}, err
	}
	d.Peer = netip.AddrPortFrom(remote, uint16(port))
	return d, nil
}

// parseAddress reads an address as /proc/net/tcp spells it: words of 32 bits, each
// a number in hexadecimal.
func parseAddress(text string) (netip.Addr, error) {
	words, err := hex.DecodeString(text)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("address %q: %w", text, err)
	}
	for i := 0; i+4 <= len(words); i += 4 {
		binary.NativeEndian.PutUint32(words[i:], binary.BigEndian.Uint32(words[i:]))
	}
	address, ok := netip.AddrFromSlice(words)
	if !ok {
		return netip.Addr{}, fmt.Errorf("address %q: neither IPv4 nor IPv6", text)
	}
	return address.Unmap(), nil
}

// A tenant is a process in a network namespace.
type tenant struct {
	event.Owner
	started uint64
}

// oldestProcesses returns the oldest process in each network namespace, by inode.
func oldestProcesses(proc string) (map[uint64]tenant, error) {
	pids, err := processes(proc)
	if err != nil {
		return nil, err
	}
	oldest := make(map[uint64]tenant)
	for _, pid := range pids {
		dir := filepath.Join(proc, strconv.Itoa(pid))
		inode, err := Inode(filepath.Join(dir, "ns/net"))
		if err != nil {
			continue // gone, or not ours to see
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		comm, started, err := parseStat(stat)
		if err != nil {
			continue
		}
		before, ok := oldest[inode]
		if !ok || started < before.started || started == before.started && uint32(pid) < before.PID {
			oldest[inode] = tenant{event.Owner{PID: uint32(pid), Comm: comm}, started}
		}
	}
	return oldest, nil
}

// mountNames returns the names of network namespaces that are mounted where ip
// netns mounts them, by inode.
func mountNames(proc string) map[uint64]string {
	names := make(map[uint64]string)
	for _, pid := range []string{"1", "self"} {
		for _, mount := range mounted(filepath.Join(proc, pid, "mountinfo")) {
			if dir := filepath.Dir(mount); dir != "/run/netns" && dir != "/var/run/netns" {
				continue
			}
			if inode, err := Inode(filepath.Join(proc, pid, "root", mount)); err == nil {
				names[inode] = filepath.Base(mount)
			}
		}
	}
	return names
}
