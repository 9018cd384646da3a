// Package load makes TCP connections of which every event is known in number, for
// the tests and for bench, and tells when connections are over, for the lab as well.
package load

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Of a connection that Work makes, and of the listeners of one Work.
const (
	StateChanges = 10 // five an end; and one TIME_WAIT, the client's
	Listeners    = 2  // each with two state changes
)

// Work makes connections one after the other, over two destinations of its own in
// 127.0.0.0/8, and closes the client's end first, in the calling thread's network
// namespace. worker tells Works that run side by side apart, and is less than 256.
func Work(worker, connections int, port int) error {
	var listeners [Listeners]int
	var addresses [Listeners]unix.SockaddrInet4
	for i := range listeners {
		addresses[i] = unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, byte(worker), byte(i + 1)}}
		var err error
		if listeners[i], err = listen(&addresses[i]); err != nil {
			return err
		}
		defer unix.Close(listeners[i])
	}
	for i := range connections {
		if err := connect(listeners[i%Listeners], &addresses[i%Listeners]); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	return nil
}

func listen(address unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return 0, os.NewSyscallError("socket", err)
	}
	if err := errors.Join(
		os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)),
		os.NewSyscallError("bind", unix.Bind(fd, address)),
		os.NewSyscallError("listen", unix.Listen(fd, 128)),
	); err != nil {
		unix.Close(fd)
		return 0, err
	}
	return fd, nil
}

// connect makes one connection from end to end.
func connect(listener int, address unix.Sockaddr) error {
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	if err := retry(func() error { return unix.Connect(client, address) }); err != nil {
		unix.Close(client)
		return os.NewSyscallError("connect", err)
	}
	var server int
	err = retry(func() (err error) {
		server, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		return err
	})
	unix.Close(client)
	if err != nil {
		return os.NewSyscallError("accept", err)
	}
	defer unix.Close(server)
	// The peer's FIN is here before ours leaves.
	var buffer [1]byte
	return os.NewSyscallError("read", retry(func() error {
		_, err := unix.Read(server, buffer[:])
		return err
	}))
}

// retry repeats what a signal interrupted. A connect goes on meanwhile: asked again
// it waits, or is done.
func retry(call func() error) error {
	for again := false; ; again = true {
		switch err := call(); {
		case errors.Is(err, unix.EINTR):
		case again && errors.Is(err, unix.EISCONN):
			return nil
		default:
			return err
		}
	}
}

// States as numbered in /proc/net/tcp.
const (
	FinWait2  = "05"
	TimeWait  = "06"
	Listening = "0A"
)

// Settle waits until the last ACK has been taken: until the calling thread's network
// namespace has no IPv4 connections but those in TIME_WAIT.
func Settle() error {
	return Until("the connections are over", func(state string) bool { return state == TimeWait })
}

// Until waits, a minute at most, until every IPv4 socket of the calling thread's
// network namespace is in a state, as numbered in /proc/net/tcp, that is fine.
func Until(what string, fine func(state string) bool) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		table, err := os.ReadFile("/proc/thread-self/net/tcp")
		if err != nil {
			return err
		}
		busy := false
		for _, row := range strings.Split(strings.TrimSpace(string(table)), "\n")[1:] {
			busy = busy || !fine(strings.Fields(row)[3])
		}
		if !busy {
			return nil
		}
	}
	return fmt.Errorf("%s: not within a minute", what)
}
