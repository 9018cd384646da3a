// Command twtrace tells why a TCP connect failed or stalled, and who did it.
//
// This file is wiring; each command has a file of its own.
package main

import (
	"errors"
	"os"

	"github.com/spf13/cobra"
)

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole program: its result is the exit status.
func run(args []string, stdout, stderr *os.File) int {
	root := newTailCommand(stdout, stderr)
	root.AddCommand(newTopCommand(stdout, stderr), newServeCommand(stdout, stderr), newLabCommand(stdout, stderr), newDoctorCommand(stdout), newReportCommand(stdout, stderr), newSchemaCommand(), newVersionCommand(), newManCommand())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })

	err := root.Execute()
	var status exitStatus
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, new(usageError)):
		complain(stderr, err)
		return 2
	default:
		complain(stderr, err)
		return 1
	}
}

// exitStatus is the status of the command that was traced, handed on.
type exitStatus int

func (exitStatus) Error() string { return "the command failed" }

// usageError is the user's: wrong flags or arguments.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }
