package probe

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/thread"
)

// TestBell: the first event after a rest wakes the reader, which does not rest then.
func TestBell(t *testing.T) {
	needRoot(t)
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		info, err := os.Stat("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		tracer, err := Open(Config{Filter: Filter{NetNS: uint32(info.Sys().(*syscall.Stat_t).Ino)}})
		if err != nil {
			return err
		}
		defer tracer.Close()

		bell := tracer.filled
		bell.inVain, bell.longest = restAfter, time.Hour
		waits, rang := make(chan struct{}), make(chan struct{})
		looks := 0
		go func() {
			defer close(rang)
			bell.wait(func() bool {
				if looks++; looks == 1 {
					close(waits) // and what comes now is not seen by this look
					return false
				}
				return tracer.pending()
			})
		}()
		<-waits
		listener, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			return err
		}
		defer listener.Close()
		select {
		case <-rang:
		case <-time.After(time.Minute):
			_ = bell.file.SetReadDeadline(time.Now())
			<-rang
			return errors.New("nobody woke the reader within a minute")
		}
		if bell.rests {
			t.Error("it still rests")
		}
		var e event.Event
		if err := tracer.Read(&e); err != nil || e.New != event.Listen {
			t.Errorf("it got %+v, %v; want a listener", e, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
