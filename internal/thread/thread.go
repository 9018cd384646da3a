// Package thread gives threads to functions that change what the kernel keeps
// for each thread, such as its network namespace.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Run runs f on a thread of its own, which ends with it, and returns its error.
//
// It is never the process's first thread. That one can't end before the process:
// it would stay in the network namespace that f went to, and keep it alive; and
// it is the one that /proc/PID/ns shows.
func Run(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked, so the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the first thread, f gets another.
			defer runtime.UnlockOSThread()
			done <- Run(f)
			return
		}
		done <- f()
	}()
	return <-done
}
