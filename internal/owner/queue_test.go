package owner

import (
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestParseQueue(t *testing.T) {
	const (
		listener    = "   0: 00000000:0050 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 12345 1 0000000000000000 100 0 0 10 0"
		established = "   1: 0100007F:0050 0100007F:A000 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0000000000000000 20 4 30 10 -1"
	)
	if q, ok := parseQueue(listener); !ok || q != (Queue{Port: 80, Length: 2, Inode: 12345}) {
		t.Errorf("%+v, %v", q, ok)
	}
	for _, line := range []string{established, "", "  sl  local_address rem_address   st", listener[:40], "0: x:zz y 0A 0:zz a b c d e"} {
		if q, ok := parseQueue(line); ok {
			t.Errorf("%q is %+v", line, q)
		}
	}
}

// FuzzQueue: no line makes the parser panic.
func FuzzQueue(f *testing.F) {
	f.Add("   0: 00000000:0050 00000000:0000 0A 00000000:00000002 00:00000000 00000000     0        0 12345 1")
	f.Fuzz(func(t *testing.T, line string) {
		if q, ok := parseQueue(line); !ok && q != (Queue{}) {
			t.Errorf("%q is none, and %+v", line, q)
		}
	})
}

// TestQueues: a listener that accepts nobody has its connections in the queue.
func TestQueues(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("entering a network namespace takes root")
	}
	listener, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(listener)
	if err := unix.Bind(listener, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(listener, 8); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(listener)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(client)
		if err := unix.Connect(client, name); err != nil {
			t.Fatal(err)
		}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(listener, &stat); err != nil {
		t.Fatal(err)
	}
	want := Queue{Port: uint16(name.(*unix.SockaddrInet4).Port), Length: 3, Inode: stat.Ino}
	// The last ACK may be on its way.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		queues, err := Queues(fmt.Sprintf("/proc/%d/ns/net", os.Getpid()))
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range queues {
			if q == want {
				return
			}
		}
		if time.Now().After(end) {
			t.Fatalf("%+v, want %+v among them", queues, want)
		}
	}
}
