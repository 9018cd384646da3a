package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// A netns is a network namespace with a goroutine inside, which the test hands
// its work to.
type netns struct {
	inode uint32
	work  chan func()
	// end lets go of it. Unless something else holds it, it goes.
	end func()
}

// newNetNS makes a network namespace with loopback up. It lives until the test
// ends, so that no other gets its inode.
func newNetNS(t testing.TB) *netns {
	t.Helper()
	n := &netns{work: make(chan func())}
	n.end = sync.OnceFunc(func() { close(n.work) })
	ready := make(chan error)
	go thread.Run(func() error {
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			err = loopbackUp()
		}
		if err == nil {
			// On a slow machine a FIN comes twice, and its second answer finds no
			// socket: the RST for that would end the TIME_WAIT.
			err = sysctl("ipv4/tcp_rfc1337", "1")
		}
		if err == nil {
			n.inode, err = currentNetNS()
		}
		ready <- err
		for f := range n.work {
			f()
		}
		return nil
	})
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.end)
	return n
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

func currentNetNS() (uint32, error) {
	var stat unix.Stat_t
	err := unix.Stat("/proc/thread-self/ns/net", &stat)
	return uint32(stat.Ino), err
}

// do runs f inside and returns its error.
func (n *netns) do(f func() error) error {
	done := make(chan error)
	n.work <- func() { done <- f() }
	return <-done
}

// sysctl sets a value of the current network namespace.
func sysctl(name, value string) error {
	return os.WriteFile(filepath.Join("/proc/sys/net", name), []byte(value), 0)
}

// silence makes a network, 10.77.1.0/24, where 10.77.1.1 takes every packet and
// never answers.
func silence() error {
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "v0"}, PeerName: "v1"}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("make a veth pair: %w", err)
	}
	for _, name := range []string{"v0", "v1"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
	}
	v0, err := netlink.LinkByName("v0")
	if err != nil {
		return err
	}
	address, err := netlink.ParseAddr("10.77.1.2/24")
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(v0, address); err != nil {
		return err
	}
	return netlink.NeighAdd(&netlink.Neigh{
		LinkIndex:    v0.Attrs().Index,
		State:        netlink.NUD_PERMANENT,
		IP:           net.IPv4(10, 77, 1, 1),
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1},
	})
}

// joinNetNS makes a network, 10.244.1.0/24, of two namespaces: a has .7 and b .9.
func joinNetNS(a, b *netns) error {
	var there *os.File
	if err := b.do(func() (err error) {
		there, err = os.Open("/proc/thread-self/ns/net")
		return err
	}); err != nil {
		return err
	}
	defer there.Close()
	up := func(name, cidr string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		address, err := netlink.ParseAddr(cidr)
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(link, address), netlink.LinkSetUp(link))
	}
	err := a.do(func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a"}, PeerName: "b", PeerNamespace: netlink.NsFd(there.Fd())}
		if err := netlink.LinkAdd(pair); err != nil {
			return fmt.Errorf("make a veth pair: %w", err)
		}
		return up("a", "10.244.1.7/24")
	})
	if err != nil {
		return err
	}
	return b.do(func() error { return up("b", "10.244.1.9/24") })
}

func routeOfType(network string, kind int) error {
	_, destination, err := net.ParseCIDR(network)
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Dst: destination, Type: kind})
}

// A socket is one of the kernel's, without Go's poller around it.
type socket int

func newSocket(family int) (socket, error) {
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	return socket(fd), os.NewSyscallError("socket", err)
}

func (s socket) connect(to string) error {
	address, err := sockaddr(s, to)
	if err != nil {
		return err
	}
	if err := unix.Connect(int(s), address); !errors.Is(err, unix.EINTR) {
		return err
	}
	// The attempt goes on without the call: wait for its end.
	if err := s.wait(unix.POLLOUT); err != nil {
		return err
	}
	return s.error()
}

// error is the result of an attempt that goes on in the background.
func (s socket) error() error {
	errno, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err
	}
	if errno != 0 {
		return unix.Errno(errno)
	}
	return nil
}

func (s socket) wait(events int16) error {
	for {
		fds := []unix.PollFd{{Fd: int32(s), Events: events}}
		if _, err := unix.Poll(fds, -1); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

func (s socket) bind(to string) error {
	if err := unix.SetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	address, err := sockaddr(s, to)
	if err != nil {
		return err
	}
	return unix.Bind(int(s), address)
}

func (s socket) accept() (socket, error) {
	for {
		fd, _, err := unix.Accept4(int(s), unix.SOCK_CLOEXEC)
		if !errors.Is(err, unix.EINTR) {
			return socket(fd), os.NewSyscallError("accept", err)
		}
	}
}

// join connects to a listener, at its address, and accepts that.
func (s socket) join(address string) (client, server socket, err error) {
	if client, err = newSocket(unix.AF_INET); err != nil {
		return client, server, err
	}
	if err = client.connect(address); err != nil {
		return client, server, err
	}
	server, err = s.accept()
	return client, server, err
}

// disconnect takes an attempt back: connect to AF_UNSPEC.
func (s socket) disconnect() error {
	unspec := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(s), uintptr(unsafe.Pointer(&unspec)), unsafe.Sizeof(unspec))
	return expect(errno, 0)
}

func (s socket) close() error { return unix.Close(int(s)) }

func (s socket) set(level, option, value int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(s), level, option, value))
}

// resetOnClose makes close send a RST.
func (s socket) resetOnClose() error {
	return unix.SetsockoptLinger(int(s), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// read reads until the peer's end.
func (s socket) read() (n int, err error) {
	buffer := make([]byte, 4096)
	for {
		m, err := unix.Read(int(s), buffer)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if m <= 0 || err != nil {
			return n, err
		}
		n += m
	}
}

func (s socket) write(n int) error {
	_, err := unix.Write(int(s), make([]byte, n))
	return err
}

// sockaddr reads "127.0.0.1:80" for the socket's family: for IPv6 an IPv4
// address is mapped.
func sockaddr(s socket, text string) (unix.Sockaddr, error) {
	address, err := net.ResolveTCPAddr("tcp", text)
	if err != nil {
		return nil, err
	}
	family, err := unix.GetsockoptInt(int(s), unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, err
	}
	if family == unix.AF_INET {
		return &unix.SockaddrInet4{Port: address.Port, Addr: [4]byte(address.IP.To4())}, nil
	}
	return &unix.SockaddrInet6{Port: address.Port, Addr: [16]byte(address.IP.To16())}, nil
}

func listen(family int, on string, options ...func(socket) error) (socket, error) {
	s, err := newSocket(family)
	if err != nil {
		return 0, err
	}
	for _, option := range options {
		if err := option(s); err != nil {
			return 0, err
		}
	}
	if err := s.bind(on); err != nil {
		return 0, fmt.Errorf("bind %s: %w", on, err)
	}
	return s, unix.Listen(int(s), 128)
}

// expect is an error unless err is want.
func expect(err error, want syscall.Errno) error {
	if errors.Is(err, want) || want == 0 && err == nil {
		return nil
	}
	return fmt.Errorf("got %v, want %v", err, want)
}
