package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
)

// child is the command that is traced.
type child struct {
	cmd *exec.Cmd
	// ended is closed when it has ended and been waited for.
	ended  chan struct{}
	status int
}

// startChild starts a command. The hooks are there already: what it does is
// traced from its first instruction on.
func startChild(argv []string, stdout, stderr *os.File) (*child, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, stdout, stderr
	if err := cmd.Start(); err != nil {
		if cause := errors.Unwrap(err); cause != nil {
			err = cause // it names the program once more
		}
		return nil, fmt.Errorf("run %s: %w", argv[0], err)
	}
	c := &child{cmd: cmd, ended: make(chan struct{})}
	go c.wait()
	return c, nil
}

func (c *child) wait() {
	_ = c.cmd.Wait() // the state tells
	c.status = c.cmd.ProcessState.ExitCode()
	if status, ok := c.cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		c.status = 128 + int(status.Signal()) // as a shell says it
	}
	close(c.ended)
}

// signal hands a signal on. One that comes from the terminal the command has
// got already, and does not mind again.
func (c *child) signal(s os.Signal) {
	_ = c.cmd.Process.Signal(s) // gone is as good
}
