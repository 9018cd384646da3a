package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// peers are what the test binary does as a second process. Each is called with
// its arguments in the network namespace of the thread that started it.
var peers = map[string]func(args []string) error{
	// connect and end at once, without waiting for the outcome.
	"connect-and-exit": func(args []string) error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := unix.SetNonblock(int(s), true); err != nil {
			return err
		}
		return expect(s.connect(args[0]), unix.EINPROGRESS)
	},
	// ask and take the answer, as curl does, and exit as it does where it
	// could not connect.
	"curl": func(args []string) error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := s.connect(args[0]); err != nil {
			os.Exit(7)
		}
		if err := s.write(10); err != nil {
			return err
		}
		_, err = unix.Read(int(s), make([]byte, 3))
		return errors.Join(err, s.close())
	},
	// connect and hold the connection until stdin ends.
	"connect-and-hold": func(args []string) error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := s.connect(args[0]); err != nil {
			return err
		}
		return hold()
	},
	// listen with SO_REUSEPORT until stdin ends.
	"listen-and-hold": func(args []string) error {
		_, err := listen(unix.AF_INET, args[0], reusePort)
		if err != nil {
			return err
		}
		return hold()
	},
	// listen on so many ports of an address, and hold them until stdin ends.
	"listen-many": func(args []string) error {
		ports, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		for port := range ports {
			if _, err := listen(unix.AF_INET, fmt.Sprintf("%s:%d", args[0], 1024+port)); err != nil {
				return err
			}
		}
		return hold()
	},
	// be refused, in a child of this process.
	"refused-in-child": func(args []string) error {
		cmd := peerCommand("grandchild", "refused", args[0])
		cmd.Stderr = os.Stderr
		return cmd.Run()
	},
	"refused": func(args []string) error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		return expect(s.connect(args[0]), unix.ECONNREFUSED)
	},
	// connect once in each of so many children, child-0 and on, which exit at
	// once, and tell their pids. They stay zombies until all are there.
	"connect-in-children": func(args []string) error {
		port, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		children, err := strconv.Atoi(args[2])
		if err != nil {
			return err
		}
		to := unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: netip.MustParseAddr(args[0]).As4()}
		binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&to.Port))[:], uint16(port))
		for i := range children {
			name := fmt.Appendf(nil, "child-%d\x00", i)
			pid, errno := forkAndConnect(name, &to)
			if errno != 0 {
				return os.NewSyscallError("clone", errno)
			}
			fmt.Println(pid)
		}
		for range children {
			if _, err := unix.Wait4(-1, nil, 0, nil); err != nil {
				return err
			}
		}
		return nil
	},
	// be forbidden to connect, by a cgroup's program or by Landlock.
	"denied": func(args []string) error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		return expect(s.connect(args[0]), unix.EPERM)
	},
	"landlocked": func(args []string) error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := landlockConnect(); err != nil {
			return err
		}
		return expect(s.connect(args[0]), unix.EACCES)
	},
	"pod": func([]string) error { return beat() },
	"exit-7": func([]string) error {
		os.Exit(7)
		return nil
	},
}

// forkAndConnect forks a child without Go: it does nothing but raw system calls.
//
//go:norace
func forkAndConnect(name []byte, to *unix.RawSockaddrInet4) (pid uintptr, errno unix.Errno) {
	pid, _, errno = unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if pid != 0 || errno != 0 {
		return pid, errno
	}
	unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0)
	fd, _, _ := unix.RawSyscall(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_TCP)
	unix.RawSyscall(unix.SYS_CONNECT, fd, uintptr(unsafe.Pointer(to)), unsafe.Sizeof(*to))
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

func reusePort(s socket) error { return s.set(unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }

// hold tells that it is ready, and waits.
func hold() error {
	fmt.Println("ready")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

func init() {
	if os.Getenv(envPeer) != "" {
		// A process has the name of its first thread, which is this.
		runtime.LockOSThread()
	}
}

// runPeer runs a peer under a comm of its own.
func runPeer(comm string, args []string) int {
	name := append([]byte(comm), 0)
	if err := unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := peers[args[0]](args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", args[0], err)
		return 1
	}
	return 0
}

func peerCommand(comm string, args ...string) *exec.Cmd {
	cmd := exec.Command(self(), append([]string{comm}, args...)...)
	cmd.Env = append(os.Environ(), envPeer+"=1")
	return cmd
}

// A peer is a second process that holds a socket.
type peer struct {
	pid   uint32
	comm  string
	cmd   *exec.Cmd
	stdin io.WriteCloser
}

// startPeer starts a peer in the caller's network namespace and waits until it
// holds its socket.
func startPeer(comm string, args ...string) (*peer, error) {
	cmd := peerCommand(comm, args...)
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ready := make([]byte, len("ready\n"))
	if _, err := io.ReadFull(stdout, ready); err != nil {
		return nil, fmt.Errorf("%s: %w", comm, err)
	}
	return &peer{pid: uint32(cmd.Process.Pid), comm: comm, cmd: cmd, stdin: stdin}, nil
}

func (p *peer) end() error {
	p.stdin.Close()
	return p.cmd.Wait()
}

// owns reports, as a test failure, a line that names another owner.
func (p *peer) owns(t testing.TB, l line) {
	t.Helper()
	if l.Process.PID != p.pid || l.Process.Comm != p.comm {
		t.Errorf("%s is of process %d (%s), want %d (%s)", l, l.Process.PID, l.Process.Comm, p.pid, p.comm)
	}
}
