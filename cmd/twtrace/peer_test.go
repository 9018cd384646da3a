package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
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

// envCgroup is the directory of the control group that a peer runs in.
const envCgroup = "TWTRACE_TEST_CGROUP"

// runPeer runs a peer under a comm of its own.
func runPeer(comm string, args []string) int {
	if cgroup := os.Getenv(envCgroup); cgroup != "" {
		if err := os.WriteFile(filepath.Join(cgroup, "cgroup.procs"), []byte("0"), 0); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
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
func (p *peer) owns(t *testing.T, l line) {
	t.Helper()
	if l.Process.PID != p.pid || l.Process.Comm != p.comm {
		t.Errorf("%s is of process %d (%s), want %d (%s)", l, l.Process.PID, l.Process.Comm, p.pid, p.comm)
	}
}
