package sink

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"
)

var update = flag.Bool("update", false, "write the golden files anew")

// numbered returns the line with number i. Their lengths differ, so that they end
// anywhere in a page, and some are longer than what a pipe takes at once.
func numbered(i int) []byte {
	length := 1 + i*7919%300
	if i%500 == 499 {
		length = 10000
	}
	return fmt.Appendf(nil, "%d %s\n", i, strings.Repeat("x", length))
}

// offer writes n lines, and returns those that were taken.
func offer(o *Output, n int) (taken [][]byte) {
	for i := range n {
		if l := numbered(i); o.Write(l, 0) {
			taken = append(taken, l)
		}
	}
	return taken
}

// expired is a context that has ended already.
func expired(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

// checkWritten fails unless what reached the writer is the first of the lines
// that were taken, all but those that Close counted, and after them nothing
// but half of the next one.
func checkWritten(t *testing.T, written []byte, taken [][]byte, lost uint64) {
	t.Helper()
	if lost > uint64(len(taken)) {
		t.Fatalf("lost %d of %d lines", lost, len(taken))
	}
	whole := taken[:len(taken)-int(lost)]
	rest, ok := bytes.CutPrefix(written, bytes.Join(whole, nil))
	if !ok {
		t.Fatalf("the writer got %d lines (%d bytes), which are not the first %d = %d taken - %d lost",
			bytes.Count(written, []byte{'\n'}), len(written), len(whole), len(taken), lost)
	}
	if len(rest) > 0 && (lost == 0 || !bytes.HasPrefix(taken[len(whole)], rest)) {
		t.Errorf("behind the %d whole lines stands %q", len(whole), rest)
	}
}

// TestOutputAtOnce: a reader need not wait for a second line to see the first.
func TestOutputAtOnce(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	o := NewOutput("pipe", w, 1<<20)
	for i := range 3 {
		if !o.Write(numbered(i), 0) {
			t.Fatal("an idle output took no line")
		}
		got := make([]byte, len(numbered(i)))
		if _, err := io.ReadFull(r, got); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, numbered(i)) {
			t.Errorf("read %q, want %q", got, numbered(i))
		}
	}
	if lost, err := o.Close(t.Context()); lost != 0 || err != nil {
		t.Errorf("Close = %d, %v", lost, err)
	}
	if o.Write(numbered(0), 0) {
		t.Error("a closed output took a line")
	}
}

// TestOutputStalled: a reader that reads nothing costs lines, never time, and
// each of them is counted.
func TestOutputStalled(t *testing.T) {
	for name, flags := range map[string]int{
		"polled":   unix.O_NONBLOCK,
		"blocking": 0, // as stdout is, usually
	} {
		t.Run(name, func(t *testing.T) {
			var fds [2]int
			if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|flags); err != nil {
				t.Fatal(err)
			}
			r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
			defer r.Close() // Which also ends a write that still waits.
			defer w.Close()

			const offered = 5000
			o := NewOutput("stdout", w, 100_000)
			taken := offer(o, offered)
			if len(taken) == offered {
				t.Fatal("no line was dropped: the test shows nothing")
			}
			for !isFull(t, fds[1]) {
				runtime.Gosched()
			}
			lost, err := o.Close(expired(t))
			if lost == 0 || !errors.Is(err, context.Canceled) || !strings.HasPrefix(err.Error(), "stdout: ") {
				t.Errorf("Close = %d, %v", lost, err)
			}

			inPipe, err := unix.IoctlGetInt(fds[0], unix.TIOCINQ)
			if err != nil {
				t.Fatal(err)
			}
			kept := len(bytes.Join(taken, nil)) - inPipe
			if room := o.Room(); room != 100_000-kept {
				t.Errorf("room for %d bytes with %d of 100000 kept", room, kept)
			}
			written := make([]byte, inPipe)
			if _, err := io.ReadFull(r, written); err != nil {
				t.Fatal(err)
			}
			checkWritten(t, written, taken, lost)
			// None of the lines that a pipe holds is longer than PIPE_BUF.
			if !bytes.HasSuffix(written, []byte{'\n'}) {
				t.Errorf("the reader holds half a line, %q", written[len(written)-20:])
			}
		})
	}
}

// isFull reports whether a pipe takes nothing more.
func isFull(t *testing.T, pipe int) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(pipe), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	if err != nil && err != unix.EINTR {
		t.Fatal(err)
	}
	return err == nil && n == 0
}

// fullDisk returns a file on a file system of its own with little room, and a
// function that makes room for some KiB more.
func fullDisk(t *testing.T) (log *os.File, makeRoom func(kib int64)) {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("TWTRACE_TEST_REQUIRE") == "1" {
			t.Fatalf("mount tmpfs: %v", err)
		}
		t.Skipf("mount tmpfs: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount tmpfs: %v", err)
		}
	})
	other, otherSize := filepath.Join(dir, "other"), int64(200<<10)
	if err := os.WriteFile(other, make([]byte, otherSize), 0o600); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	return log, func(kib int64) {
		otherSize -= kib << 10
		if err := os.Truncate(other, otherSize); err != nil {
			t.Fatal(err)
		}
	}
}

func size(t *testing.T, file *os.File) int64 {
	t.Helper()
	info, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// TestOutputBurst: more lines at once than are kept cost none, where they go to a
// file that takes them.
func TestOutputBurst(t *testing.T) {
	log, err := os.Create(filepath.Join(t.TempDir(), "events.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	o := NewOutput("events.jsonl", log, 100_000)
	const offered = 5000
	taken := offer(o, offered)
	if len(taken) != offered {
		t.Errorf("%d lines of %d were taken", len(taken), offered)
	}
	if lost, err := o.Close(t.Context()); lost != 0 || err != nil {
		t.Errorf("Close = %d, %v", lost, err)
	}
	written, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	checkWritten(t, written, taken, 0)
}

// TestOutputDiskGivesWay: a disk that was full for a while costs the lines
// that found no room in memory, and leaves no half line in the log, though it
// gave way bit by bit.
func TestOutputDiskGivesWay(t *testing.T) {
	log, makeRoom := fullDisk(t)
	o := NewOutput("events.jsonl", log, 100_000)
	const offered = 5000
	taken := offer(o, offered)
	if len(taken) == offered {
		t.Fatal("no line was dropped: the test shows nothing")
	}
	if err := <-o.Full(); err.Error() != "events.jsonl: no space left on device" {
		t.Errorf("Full delivers %q", err)
	}
	full := size(t, log)
	makeRoom(16)
	for size(t, log) < full+16<<10 {
		runtime.Gosched()
	}
	makeRoom(184)
	if lost, err := o.Close(t.Context()); lost != 0 || err != nil {
		t.Errorf("Close = %d, %v", lost, err)
	}
	written, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	checkWritten(t, written, taken, 0)
	select {
	case err := <-o.Full():
		t.Errorf("Full speaks twice of one full disk: %v", err)
	case err := <-o.Broken():
		t.Errorf("Broken delivers %v for a disk that was full", err)
	default:
	}
}

// TestOutputDiskStaysFull: what found no room at the end is counted.
func TestOutputDiskStaysFull(t *testing.T) {
	log, _ := fullDisk(t)
	o := NewOutput("events.jsonl", log, 100_000)
	taken := offer(o, 5000)
	<-o.Full()
	lost, err := o.Close(expired(t))
	if lost == 0 || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Close = %d, %v", lost, err)
	}
	written, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	checkWritten(t, written, taken, lost)
}

// TestOutputBroken: after the reader has gone nothing is taken any more, and
// the caller learns of it once.
func TestOutputBroken(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	o := NewOutput("pipe", w, 1<<20)
	if !o.Write(numbered(0), 0) {
		t.Fatal("a new output took no line")
	}
	if err := <-o.Broken(); !errors.Is(err, unix.EPIPE) || err.Error() != "pipe: broken pipe" {
		t.Errorf("Broken delivers %q", err)
	}
	if o.Write(numbered(1), 0) {
		t.Error("a broken output took a line")
	}
	if lost, err := o.Close(t.Context()); lost != 1 || !errors.Is(err, unix.EPIPE) {
		t.Errorf("Close = %d, %v; want 1 line and EPIPE", lost, err)
	}
}

// TestOutputMany: lines of several writers stay whole, and all are accounted
// for while a reader takes its time.
func TestOutputMany(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o := NewOutput("pipe", w, 20_000)

	var got atomic.Int64
	var reader sync.WaitGroup
	reader.Go(func() {
		written, err := io.ReadAll(r)
		if err != nil {
			t.Error(err)
		}
		for l := range bytes.Lines(written) {
			var i int
			if _, err := fmt.Sscanf(string(l), "%d ", &i); err != nil || !bytes.Equal(l, numbered(i)) {
				t.Errorf("torn line %.40q", l)
			}
			got.Add(1)
		}
	})

	var taken atomic.Int64
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() { taken.Add(int64(len(offer(o, 3000)))) })
	}
	writers.Wait()
	lost, err := o.Close(t.Context())
	if lost != 0 || err != nil {
		t.Errorf("Close = %d, %v", lost, err)
	}
	w.Close()
	reader.Wait()
	if got.Load() != taken.Load() {
		t.Errorf("%d lines arrived of %d taken", got.Load(), taken.Load())
	}
}

// BenchmarkOutput takes as long for a line as the disk, the copying and the
// compression do.
func BenchmarkOutput(b *testing.B) {
	for _, name := range []string{"events.jsonl", "events.jsonl.zst"} {
		b.Run(name, func(b *testing.B) {
			log, _, err := OpenFile(filepath.Join(b.TempDir(), name))
			if err != nil {
				b.Fatal(err)
			}
			defer log.Close()
			l := bytes.Repeat([]byte{'x'}, 400)
			l[399] = '\n'
			o := NewOutput(name, log, 8<<20)
			b.SetBytes(int64(len(l)))
			b.ReportAllocs()
			for b.Loop() {
				for !o.Write(l, 0) {
					runtime.Gosched()
				}
			}
			if _, err := o.Close(context.Background()); err != nil {
				b.Fatal(err)
			}
		})
	}
}
