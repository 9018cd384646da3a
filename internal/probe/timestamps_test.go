package probe

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/thread"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("TWTRACE_TEST_REQUIRE") != "" {
			t.Fatal("not root")
		}
		t.Skip("making a network namespace needs root")
	}
}

// TestTSOffsets: every kernel that twtrace runs on chooses offsets, one of two
// ways; which does not change, and does not depend on the caller's namespace.
func TestTSOffsets(t *testing.T) {
	needRoot(t)
	mode, err := TSOffsets()
	if err != nil {
		t.Fatal(err)
	}
	if mode != TSPerHost && mode != TSPerConnection {
		t.Errorf("mode %q", mode)
	}
	t.Log(mode)
	for range 20 {
		if again, err := TSOffsets(); err != nil || again != mode {
			t.Fatalf("mode %q, %v; it was %q", again, err, mode)
		}
	}
}

// TestTSNoOffset: tcp_timestamps=2 takes the offsets away, which shows as none.
func TestTSNoOffset(t *testing.T) {
	needRoot(t)
	err := thread.Run(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		if err := loopbackUp(); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/tcp_timestamps", []byte("2"), 0); err != nil {
			return err
		}
		mode, err := tryTSOffsets()
		if mode != TSNoOffset {
			t.Errorf("mode %q, want %q", mode, TSNoOffset)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func BenchmarkTSOffsets(b *testing.B) {
	for b.Loop() {
		if _, err := TSOffsets(); err != nil {
			b.Skip(err)
		}
	}
}
