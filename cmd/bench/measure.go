package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

// A turn is what one run of the load cost, with a tracer or without.
type turn struct {
	cost
	tracerCPU  time.Duration
	peakMemory int64         // bytes
	firstEvent time.Duration // from the tracer's start; 0: not seen
	lines      int           // about the load
	kernel     time.Duration // in the BPF programs that it loaded, while the kernel counts that
}

// A result is what was measured of a tracer: each turn with it, and the one without
// just before.
type result struct {
	tracer        tracer
	connections   int // a turn
	without, with []turn
	kernel        time.Duration
}

// measure makes the connections once, under the tracer if there is one.
func measure(t *tracer, connections int) (m turn, err error) {
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	args := []string{"load", "--connections", strconv.Itoa(connections)}
	if t != nil && t.tracked {
		args = append(args, "--tracked")
	}
	cmd := exec.Command(self, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return m, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return m, err
	}
	if err := cmd.Start(); err != nil {
		return m, err
	}
	defer func() {
		in.Close()
		if waitErr := cmd.Wait(); waitErr != nil {
			err = errors.Join(err, fmt.Errorf("load: %w: %s", waitErr, &stderr))
		}
	}()
	lines := bufio.NewReader(out)
	if _, err := lines.ReadBytes('\n'); err != nil {
		return m, fmt.Errorf("the load is not ready: %w", err)
	}
	begin := func() error {
		if _, err := io.WriteString(in, "\n"); err != nil {
			return err
		}
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return err
		}
		return json.Unmarshal(line, &m.cost)
	}
	if t == nil {
		return m, begin()
	}
	return m, t.trace(cmd.Process.Pid, &m, begin)
}

// trace runs the tracer round the load, which runs in the process pid.
func (t *tracer) trace(pid int, m *turn, load func() error) error {
	dir, err := os.MkdirTemp("/dev/shm", "bench-") // memory: no disk is measured
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "output")
	cmd := exec.Command(t.command[0], t.command[1:]...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if i := slices.Index(cmd.Args, "OUT"); i >= 0 {
		cmd.Args[i] = path
	} else {
		stdout, err := os.Create(path)
		if err != nil {
			return err
		}
		defer stdout.Close()
		cmd.Stdout = stdout
	}
	others, err := programs()
	if err != nil {
		return err
	}
	began := time.Now()
	if t.local {
		err = within(pid, cmd.Start)
	} else {
		err = cmd.Start()
	}
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	end := func() error {
		if err := cmd.Process.Signal(unix.SIGINT); err != nil {
			return err
		}
		<-ended // whatever its status: some end with one of their own on SIGINT
		return nil
	}
	if err := t.untilItTraces(path, began, m, ended); err != nil {
		return errors.Join(fmt.Errorf("%w: %s", err, &stderr), end())
	}
	if err := m.weigh(cmd.Process.Pid, others, func() error {
		err := load()
		settled(path)
		return err
	}); err != nil {
		return errors.Join(err, end())
	}
	if err := end(); err != nil {
		return err
	}
	if t.perConnection > 0 {
		output, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		m.lines = t.count(output)
	}
	return nil
}

// weigh measures what the tracer, the process pid, and the BPF programs that are not
// others' take while the load runs.
func (m *turn) weigh(pid int, others map[ebpf.ProgramID]time.Duration, load func() error) error {
	ran, err := programs()
	if err != nil {
		return err
	}
	worked, err := cpuOf(pid)
	if err != nil {
		return err
	}
	if err := load(); err != nil {
		return err
	}
	m.tracerCPU, err = cpuOf(pid)
	if err != nil {
		return err
	}
	m.tracerCPU -= worked
	runs, err := programs()
	if err != nil {
		return err
	}
	for id, took := range runs {
		if _, other := others[id]; !other {
			m.kernel += took - ran[id]
		}
	}
	m.peakMemory, err = peakMemory(pid)
	return err
}

// untilItTraces waits until the tracer has shown an event.
func (t *tracer) untilItTraces(path string, began time.Time, m *turn, ended <-chan error) error {
	const patience = 30 * time.Second
	for time.Since(began) < patience {
		select {
		case err := <-ended:
			return fmt.Errorf("ended before it traced: %w", err)
		default:
		}
		output, err := os.ReadFile(path)
		if err == nil && t.hasBegun(output) {
			m.firstEvent = time.Since(began)
			return nil
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
	return fmt.Errorf("shows no event within %s", patience)
}

// settled waits until the output at path grows no more.
func settled(path string) {
	last := int64(-1)
	for {
		info, err := os.Stat(path)
		if err != nil || info.Size() == last {
			return
		}
		last = info.Size()
		time.Sleep(300 * time.Millisecond)
	}
}

// within runs f in the network namespace of the process pid.
func within(pid int, f func() error) error {
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil {
		return err
	}
	defer ns.Close()
	return thread.Run(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// cpuOf returns the CPU time of a process, that of threads that have ended included,
// by its clock (clock_getcpuclockid(3)): the ticks of /proc/PID/stat are too coarse for
// what the frugal ones take.
func cpuOf(pid int) (time.Duration, error) {
	const process = 2 // CPUCLOCK_SCHED, include/linux/posix-timers.h
	var used unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|process), &used); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(used.Nano()), nil
}

func peakMemory(pid int) (bytes int64, err error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(text), "VmHWM:")
	kilobytes, _, _ := strings.Cut(strings.TrimSpace(rest), " ")
	bytes, err = strconv.ParseInt(kilobytes, 10, 64)
	return bytes << 10, err
}

// programs returns how long each BPF program ran, by its id. The kernel counts only
// while its statistics are on.
func programs() (map[ebpf.ProgramID]time.Duration, error) {
	took := make(map[ebpf.ProgramID]time.Duration)
	var id ebpf.ProgramID
	for {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			return took, nil
		} else if err != nil {
			return nil, fmt.Errorf("BPF programs: %w", err)
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if errors.Is(err, os.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("BPF program %d: %w", id, err)
		}
		stats, err := program.Stats()
		program.Close()
		if err != nil {
			return nil, fmt.Errorf("BPF program %d: %w", id, err)
		}
		took[id] = stats.Runtime
	}
}
