package probe

import (
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	// pollInterval bounds how long an event lies in the ring: the programs do not
	// wake the reader, a wake-up an event would double what tracing costs.
	pollInterval = 50 * time.Millisecond
	// restAfter is after how many looks in vain the reader rests until the next
	// event wakes it: each look has Go's scheduler wake up, too.
	restAfter = 10
	// restInterval bounds a rest, for whatever else there is to do, and for the
	// event that came when it began.
	restInterval = 100 * time.Millisecond
)

// A bell rings when the programs wake the reader of a ring buffer. Waiting for it
// parks a goroutine: a thread that blocks in epoll_wait has the scheduler look for
// it every 20 microseconds, a tenth of what tracing costs.
type bell struct {
	file *os.File
	raw  syscall.RawConn
	// resting tells the programs to ring for the next event.
	resting *ebpf.Map
	rests   bool // as it says
	// longest bounds a rest: restInterval.
	longest time.Duration
	inVain  int // waits in a row that ended with nothing in the ring
}

// newBell returns the bell of a ring buffer. Both maps stay the caller's.
func newBell(ring, resting *ebpf.Map) (*bell, error) {
	fd, err := unix.FcntlInt(uintptr(ring.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate its descriptor: %w", err)
	}
	// Only what does not block is polled.
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("have it polled: %w", err)
	}
	b := &bell{file: os.NewFile(uintptr(fd), "ring buffer"), resting: resting, longest: restInterval}
	if b.raw, err = b.file.SyscallConn(); err == nil {
		err = b.file.SetReadDeadline(time.Time{})
	}
	if err != nil {
		b.file.Close()
		return nil, fmt.Errorf("have it polled: %w", err)
	}
	return b, nil
}

// wait waits for something in the ring, which pending reports, and not for long.
func (b *bell) wait(pending func() bool) {
	atMost := pollInterval
	if b.inVain >= restAfter && b.rest(true) {
		atMost = b.longest
	}
	b.inVain++
	_ = b.file.SetReadDeadline(time.Now().Add(atMost)) // newBell has tried that it can.
	again := false
	_ = b.raw.Read(func(uintptr) bool {
		// To look here misses nothing: what rings from now on is heard.
		rang := again || pending()
		again = true
		return rang
	})
	if pending() {
		b.inVain = 0
		b.rest(false)
	}
}

// stir has the next wait be a short one.
func (b *bell) stir() { b.inVain = 0 }

// rest tells the programs whether the reader rests, and reports whether they know.
func (b *bell) rest(rests bool) bool {
	if b.rests != rests {
		var value uint32
		if rests {
			value = 1
		}
		if b.resting.Put(uint32(0), value) != nil {
			return false // They ring too often, or it is looked for all the time.
		}
		b.rests = rests
	}
	return true
}

func (b *bell) Close() error { return b.file.Close() }
