package thread

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

var (
	errFailed = errors.New("failed")
	threads   = make(map[int]bool)
	unlike    error // an error that was not the function's
)

// TestMain calls Run where it is likely to find itself on the process's first
// thread: in the main goroutine, before the tests have others.
func TestMain(m *testing.M) {
	for range 100 {
		err := Run(func() error {
			threads[unix.Gettid()] = true
			return errFailed
		})
		if err != errFailed {
			unlike = err
		}
	}
	os.Exit(m.Run())
}

// TestRun: f runs on threads that can end, and its error comes back.
func TestRun(t *testing.T) {
	if threads[unix.Getpid()] {
		t.Error("it ran on the first thread, which can't end")
	}
	if unlike != nil {
		t.Errorf("error %v, want that of the function", unlike)
	}
}
