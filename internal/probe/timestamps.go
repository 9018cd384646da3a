package probe

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// TSOffsetMode is how the kernel chooses what it adds to the clock in the TCP
// timestamps of a connection, where net.ipv4.tcp_timestamps is 1. It is as the
// event log spells it; "" where it is not known. No version number tells:
// 165573e41f2f "tcp: secure_seq: add back ports to TS offset" went to 7.0 and
// back into older series.
type TSOffsetMode string

// The modes.
const (
	// TSPerHost: by the addresses, so that timestamps grow from connection to
	// connection between two hosts.
	TSPerHost TSOffsetMode = "per_host"
	// TSPerConnection: by the ports as well.
	TSPerConnection TSOffsetMode = "per_connection"
	// TSNoOffset: the clock as it is.
	TSNoOffset TSOffsetMode = "none"
)

// TSOffsets finds out how this kernel chooses timestamp offsets. It tries, by
// connects in a network namespace that nobody else is in, where neither sysctls
// nor firewalls interfere, and leaves nothing behind.
func TSOffsets() (mode TSOffsetMode, err error) {
	err = thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("set up loopback: %w", err)
		}
		mode, err = tryTSOffsets()
		return err
	})
	if err != nil {
		return "", fmt.Errorf("try TCP timestamps: %w", err)
	}
	return mode, nil
}

func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, lo)
}

// tryTSOffsets compares the timestamps of two connections between the same
// addresses, and of one to another address.
func tryTSOffsets() (TSOffsetMode, error) {
	var clients [3]int
	for i := range clients {
		client, err := tcpSocket()
		if err != nil {
			return "", err
		}
		defer unix.Close(client)
		clients[i] = client
	}
	// It is closed before the clients are, which resets all connections: none
	// goes to TIME_WAIT.
	listener, err := tcpSocket()
	if err != nil {
		return "", err
	}
	defer unix.Close(listener)
	if err := errors.Join(unix.Bind(listener, &unix.SockaddrInet4{}), unix.Listen(listener, len(clients))); err != nil {
		return "", err
	}
	address, err := unix.Getsockname(listener)
	if err != nil {
		return "", err
	}
	to, ok := address.(*unix.SockaddrInet4)
	if !ok {
		return "", errors.New("the listener has no IPv4 address")
	}
	for i, host := range [len(clients)]byte{1, 1, 2} {
		to.Addr = [4]byte{127, 0, 0, host}
		if err := unix.Connect(clients[i], to); err != nil {
			return "", err
		}
	}
	same, err := sameTSOffset(clients[0], clients[1])
	if err != nil || !same {
		return TSPerConnection, err
	}
	same, err = sameTSOffset(clients[0], clients[2])
	if err != nil || !same {
		return TSPerHost, err
	}
	return TSNoOffset, nil
}

// tcpSocket returns a socket whose connect does not take for ever: a cgroup's BPF
// program can send it elsewhere even here.
func tcpSocket() (int, error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return -1, err
	}
	if err := unix.SetsockoptTimeval(s, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 1}); err != nil {
		unix.Close(s)
		return -1, err
	}
	return s, nil
}

// sameTSOffset reports whether the timestamps of two sockets are of the same
// offset: in milliseconds, they are then no further apart than their readings.
func sameTSOffset(a, b int) (bool, error) {
	began := time.Now()
	first, err := unix.GetsockoptInt(a, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
	if err != nil {
		return false, err
	}
	second, err := unix.GetsockoptInt(b, unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
	if err != nil {
		return false, err
	}
	apart := time.Duration(uint32(second)-uint32(first)) * time.Millisecond
	return apart <= time.Since(began)+time.Millisecond, nil
}
