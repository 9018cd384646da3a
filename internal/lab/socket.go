package lab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errGaveUp: there was no answer in the time that the client waited.
var errGaveUp = errors.New("no answer in time")

// bytePointer is a name as prctl wants it.
func bytePointer(name string) unsafe.Pointer {
	p, err := unix.BytePtrFromString(name)
	if err != nil {
		p = new(byte)
	}
	return unsafe.Pointer(p)
}

// A client says how to connect.
type client struct {
	port    uint16        // to bind to, 0: the kernel chooses
	timeout time.Duration // 0: as long as the kernel tries
}

// dial connects. Nothing but the kernel's own errno, or errGaveUp, comes back.
func (c client) dial(to string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := c.connect(fd, to); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, unix.SetNonblock(fd, true)
}

func (c client) connect(fd int, to string) error {
	address, err := netip.ParseAddrPort(to)
	if err != nil {
		return err
	}
	if c.port != 0 {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(c.port)}); err != nil {
			return os.NewSyscallError("bind", err)
		}
	}
	timeout := c.timeout
	if timeout == 0 {
		timeout = time.Minute
	} else if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(address.Port()), Addr: address.Addr().As4()})
	if err != unix.EINPROGRESS && err != unix.EINTR {
		return err
	}
	if err := await(fd, unix.POLLOUT, timeout); err != nil {
		return err
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

// await waits until the socket is ready.
func await(fd int, events int16, timeout time.Duration) error {
	for end := time.Now().Add(timeout); ; {
		left := time.Until(end)
		if left <= 0 {
			return errGaveUp
		}
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && err != unix.EINTR {
			return os.NewSyscallError("poll", err)
		}
	}
}

// awaitEnd reads until the peer's FIN or RST.
func awaitEnd(fd int) error {
	buffer := make([]byte, 512)
	for {
		if err := await(fd, unix.POLLIN, 10*time.Second); err != nil {
			return err
		}
		switch n, err := unix.Read(fd, buffer); {
		case err == unix.EAGAIN, err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return nil
		}
	}
}

// retransmitted returns how many segments of a connection were sent again.
func retransmitted(fd int) (uint32, error) {
	info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return 0, os.NewSyscallError("getsockopt TCP_INFO", err)
	}
	return info.Total_retrans, nil
}

// A mode is how a server treats its connections.
type mode int

const (
	clientFirst mode = iota // waits for the client's FIN
	serverFirst             // answers, and closes first
	reset                   // answers the first data with a RST
	noAccept                // never accepts
)

// serve listens in srv on the port, until the scenario is over.
func (n *Network) serve(port uint16, mode mode) error {
	var fd int
	err := n.srv.as("server", func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return os.NewSyscallError("socket", err)
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		backlog := 128
		if mode == noAccept {
			backlog = 1
		}
		return os.NewSyscallError("listen", unix.Listen(fd, backlog))
	})
	if err != nil {
		return fmt.Errorf("serve port %d: %w", port, err)
	}
	// Only a shutdown wakes up who waits in accept.
	n.later(func() { _ = unix.Shutdown(fd, unix.SHUT_RDWR) })
	if mode == noAccept {
		n.later(func() { unix.Close(fd) })
		return nil
	}
	n.threads.Go(func() {
		defer unix.Close(fd)
		_ = n.srv.as("server", func() error {
			for {
				conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
				if err == unix.EINTR {
					continue
				}
				if err != nil {
					return err
				}
				n.threads.Go(func() { treat(conn, mode) })
			}
		})
	})
	return nil
}

// treat does with a connection what the mode says, and closes it.
func treat(conn int, mode mode) {
	switch mode {
	case clientFirst:
		_ = awaitEnd(conn)
	case serverFirst:
		_ = unix.Shutdown(conn, unix.SHUT_WR)
		_ = awaitEnd(conn)
	case reset:
		_ = await(conn, unix.POLLIN, 10*time.Second)
		_ = unix.SetsockoptLinger(conn, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	}
	unix.Close(conn)
}
