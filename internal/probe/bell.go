package probe

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A bell rings when the programs wake the reader of a ring buffer. Waiting for it
// parks a goroutine: a thread that blocks in epoll_wait has the scheduler look for
// it every 20 microseconds, a tenth of what tracing costs.
type bell struct {
	file *os.File
	raw  syscall.RawConn
}

// newBell returns the bell of the ring buffer behind a descriptor, which stays the
// caller's.
func newBell(ring int) (*bell, error) {
	fd, err := unix.FcntlInt(uintptr(ring), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate its descriptor: %w", err)
	}
	// Only what does not block is polled.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("have it polled: %w", err)
	}
	b := &bell{file: os.NewFile(uintptr(fd), "ring buffer")}
	if b.raw, err = b.file.SyscallConn(); err == nil {
		err = b.file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		b.file.Close()
		return nil, fmt.Errorf("have it polled: %w", err)
	}
	return b, nil
}

// wait waits until the bell rings, no longer than that.
func (b *bell) wait(atMost time.Duration) {
	_ = b.file.SetReadDeadline(time.Now().Add(atMost)) // newBell has tried that it can.
	again := false
	_ = b.raw.Read(func(uintptr) bool {
		rang := again
		again = true
		return rang
	})
}

func (b *bell) Close() error { return b.file.Close() }
