package sink

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"
	"testing"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// noise returns n bytes that nothing compresses, others for another seed.
func noise(n, seed int) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b) // fails never
	return b
}

// TestEndsWhole: wherever a compressed log is cut, it is known whether that was
// between two frames.
func TestEndsWhole(t *testing.T) {
	encoder, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	bare, err := zstd.NewWriter(nil, zstd.WithEncoderCRC(false))
	if err != nil {
		t.Fatal(err)
	}
	var log []byte
	ends := map[int]bool{0: true}
	for _, frame := range [][]byte{
		encoder.EncodeAll([]byte("a line\n"), nil),
		encoder.EncodeAll(noise(300<<10, 0), nil),     // several blocks, as they are
		encoder.EncodeAll(make([]byte, 300<<10), nil), // one byte, so many times
		encoder.EncodeAll(bytes.Repeat(noise(99, 0), 9), nil),
		[]byte("\x50\x2a\x4d\x18\x05\x00\x00\x00hello"), // to be skipped
		bare.EncodeAll([]byte("without a checksum\n"), nil),
	} {
		log = append(log, frame...)
		ends[len(log)] = true
	}
	// The first block that is as it is, is long: a few of its bytes will do.
	for n := 0; n <= len(log); n++ {
		if n == 4<<10 {
			n = 299 << 10
		}
		whole, err := endsWhole(bytes.NewReader(log[:n]))
		if err != nil || whole != ends[n] {
			t.Fatalf("cut after %d of %d bytes: whole %t, want %t (%v)", n, len(log), whole, ends[n], err)
		}
	}
	if whole, _ := endsWhole(bytes.NewReader([]byte(`{"schema":"twtrace/1"}` + "\n"))); whole {
		t.Error("what is not compressed counts as whole")
	}
}

// TestCompressedDiskGivesWay: a frame that found half its room is completed when
// there is more.
func TestCompressedDiskGivesWay(t *testing.T) {
	disk, makeRoom := fullDisk(t)
	name := disk.Name() + Compressed
	log, _, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	o := NewOutput(name, log, 200_000)
	var taken [][]byte
	for i := range 300 {
		line := fmt.Appendf(nil, "%d %x\n", i, noise(1000+i, i))
		if o.Write(line, 0) {
			taken = append(taken, line)
		}
	}
	if len(taken) == 300 {
		t.Fatal("no line was dropped: the test shows nothing")
	}
	<-o.Full()
	full := log.Size()
	makeRoom(16)
	for log.Size() < full+16<<10 {
		runtime.Gosched()
	}
	makeRoom(184)
	if lost, err := o.Close(t.Context()); lost != 0 || err != nil {
		t.Errorf("Close = %d, %v", lost, err)
	}
	checkWritten(t, decoded(t, name), taken, 0)
}

// TestCompressedDiskStaysFull: the lines of a frame that was not completed count
// as lost; those of the frames before can be read.
func TestCompressedDiskStaysFull(t *testing.T) {
	disk, _ := fullDisk(t)
	name := disk.Name() + Compressed
	log, _, err := OpenFile(name)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	o := NewOutput(name, log, 1<<20)
	var taken [][]byte
	for i := range 300 {
		line := fmt.Appendf(nil, "%d %x\n", i, noise(1000+i, i))
		if o.Write(line, 0) {
			taken = append(taken, line)
		}
		if i == 20 { // a frame of its own
			for log.Size() == 0 {
				runtime.Gosched()
			}
		}
	}
	<-o.Full()
	lost, err := o.Close(expired(t))
	if lost == 0 || lost > 280 {
		t.Errorf("Close = %d, %v", lost, err)
	}
	checkWritten(t, decoded(t, name), taken, lost)
}

// decoded returns what can be read of a compressed file.
func decoded(t *testing.T, path string) []byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	decoder, err := zstd.NewReader(file)
	if err != nil {
		t.Fatal(err)
	}
	defer decoder.Close()
	data, _ := io.ReadAll(decoder) // as far as it goes
	return data
}

// TestOutputDo: what is to be done comes between the lines before and those
// after, and at the end too.
func TestOutputDo(t *testing.T) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	o := NewOutput("pipe", w, 1<<20)
	for i := range 100 {
		o.Write(fmt.Appendf(nil, "line %d\n", i), 0)
		o.Do(func() { fmt.Fprintf(w, "done %d\n", i) })
	}
	if lost, err := o.Close(context.Background()); lost != 0 || err != nil {
		t.Errorf("Close = %d, %v", lost, err)
	}
	w.Close()
	got, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	var want []byte
	for i := range 100 {
		want = fmt.Appendf(want, "line %d\ndone %d\n", i, i)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("written: %s", got)
	}
}
