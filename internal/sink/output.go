// Package sink is where lines go: Text renders records for a reader at a
// terminal, and Output writes lines without ever making the tracer wait.
package sink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// pause is how long a writer without room is left alone before it is
	// tried again.
	pause = 100 * time.Millisecond

	// pipeBuf is PIPE_BUF, and the most that one write takes, except for a
	// single line that is longer: a pipe takes that much whole or not at
	// all, so a reader that stalls holds no half of a line.
	pipeBuf = 4096

	// filePart is the most that one write to a regular file takes, which
	// stalls for nobody.
	filePart = 256 << 10

	// lineWait is how long a line waits for others where nobody would notice:
	// a wake-up for each takes longer than the line. batch is how much does
	// not wait.
	lineWait = 5 * time.Millisecond
	batch    = 256 << 10

	// burst is how long a regular file that takes lines may make the tracer
	// wait: after a moment without the processor there are more lines at once
	// than are kept. What lasts longer is a slow disk, and costs lines.
	burst = 200 * time.Millisecond
)

// Output writes lines to a terminal, a pipe or a file from a goroutine of its
// own. Whoever hands it a line never waits for a reader: lines that the
// writer can't take yet are kept, up to a limit, and beyond it they are
// dropped, whole, and the caller is told so. For a regular file it waits, but
// no longer than a burst.
//
// Every line that Write took either reaches the writer or is counted by Close.
// A line that the writer took half of, for want of room, is completed when
// there is room again, before any other. Only Close and a writer that is
// broken for good can leave half a line behind, as the very last thing.
type Output struct {
	name  string
	w     io.Writer
	limit int
	part  int           // the most that one write takes
	batch int           // so many bytes don't wait for others
	wait  time.Duration // how long lines wait for others, to be written together
	burst time.Duration // how long the caller waits for room

	full, broken chan error

	freed   chan struct{} // signalled when something was written
	enough  chan struct{} // signalled when a batch is pending: don't wait
	closing chan struct{} // closed by Close: don't wait or pause on my account
	stop    chan struct{} // closed when Close has waited long enough
	done    chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	tight   time.Time // since when there is no room, zero where half of it is free
	some    sync.Cond // signalled when pending, steps or closed changes
	pending [][]byte  // blocks of lines that the goroutine has not taken yet
	steps   []step    // in between
	kept    int       // bytes of these, and of those that it took and has not written yet
	fresh   int       // bytes of the pending ones
	lines   uint64    // lines that are kept
	free    [][]byte  // blocks to be used again
	closed  bool
	err     error // why nothing can be written: for now, or for good
	dead    bool  // for good
}

// A step is what is to be done when the pending blocks before it are written.
type step struct {
	at int
	do func()
}

// NewOutput returns an Output that writes to w, called name in its errors, and
// keeps lines of at most limit bytes together for it. It does not close w.
//
// A process that writes to a pipe without a reader on descriptor 1 or 2 dies
// of SIGPIPE unless it asks for that signal with os/signal; then the Output is
// broken with EPIPE.
func NewOutput(name string, w io.Writer, limit int) *Output {
	o := &Output{
		name:    name,
		w:       w,
		limit:   limit,
		full:    make(chan error, 1),
		broken:  make(chan error, 1),
		freed:   make(chan struct{}, 1),
		enough:  make(chan struct{}, 1),
		closing: make(chan struct{}),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	o.portions(w)
	o.some.L = &o.mu
	go o.run()
	return o
}

// portions sets what suits w.
func (o *Output) portions(w io.Writer) {
	o.part, o.batch, o.wait, o.burst = pipeBuf, batch, lineWait, 0
	switch w := w.(type) {
	case *File:
		o.portions(w.file.Load())
		if w.encoder != nil {
			o.part, o.batch, o.wait, o.burst = frameLines, frameLines, frameWait, burst
		}
	case *os.File:
		if info, err := w.Stat(); err == nil && info.Mode().IsRegular() {
			o.part, o.burst = filePart, burst
		}
	}
}

// Full delivers an error each time that the writer begins to have no room: a
// full disk (ENOSPC), a used up quota (EDQUOT). Lines are kept and tried again
// until there is room. A reader that merely stalls gives no error; only Write
// tells.
func (o *Output) Full() <-chan error { return o.full }

// Broken delivers, once, the error after which nothing more can be written,
// such as EPIPE.
func (o *Output) Broken() <-chan error { return o.broken }

// Write takes one or more lines, each with its newline, all of them or none.
// It copies them. It returns false where it could not take them: there is no
// room for them with so many bytes to spare, the writer is broken, or Close was
// called.
func (o *Output) Write(lines []byte, spare int) (ok bool) {
	for {
		ok, wait := o.take(lines, spare)
		if ok || wait <= 0 {
			return ok
		}
		select {
		case <-o.freed:
		case <-time.After(wait):
		}
	}
}

// take is Write without waiting. Where there is no room, it returns for how long
// it is worth waiting for some.
func (o *Output) take(lines []byte, spare int) (ok bool, wait time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead || o.closed {
		return false, 0
	}
	if o.kept+len(lines)+spare > o.limit {
		if o.tight.IsZero() {
			o.tight = time.Now()
		}
		return false, o.burst - time.Since(o.tight)
	} else if o.kept < o.limit/2 {
		o.tight = time.Time{}
	}
	o.add(lines)
	o.kept += len(lines)
	o.fresh += len(lines)
	o.lines += countLines(lines)
	o.some.Signal()
	if o.fresh >= o.batch {
		select {
		case o.enough <- struct{}{}:
		default: // It was told already.
		}
	}
	return true, 0
}

// add puts lines into the last block that no step stands behind, or a new one.
// Blocks are small, so that the memory of those that are written while it is still
// in the processor's cache is the next to be filled.
func (o *Output) add(lines []byte) {
	last := len(o.pending) - 1
	sealed := len(o.steps) > 0 && o.steps[len(o.steps)-1].at > last
	if last < 0 || sealed || len(o.pending[last])+len(lines) > cap(o.pending[last]) {
		var block []byte
		if n := len(o.free); n > 0 {
			block, o.free = o.free[n-1], o.free[:n-1]
		}
		if len(lines) > cap(block) {
			block = make([]byte, 0, max(o.batch, len(lines)))
		}
		o.pending = append(o.pending, block)
		last++
	}
	o.pending[last] = append(o.pending[last], lines...)
}

// Do calls f when all lines that Write took before are written, and before any
// that it takes after: on the goroutine that writes. Where that never comes to
// pass, f is not called.
func (o *Output) Do(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.steps = append(o.steps, step{at: len(o.pending), do: f})
	o.some.Signal()
}

// Room returns how many bytes it can take now.
func (o *Output) Room() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return max(o.limit-o.kept, 0)
}

// Close writes what is left until ctx ends, and stops. It returns how many of
// the lines that Write took did not reach the writer whole, and why. Call it
// once.
//
// The count is exact unless the writer is stuck in the middle of a write that
// can neither be interrupted nor be atomic: a terminal held with Ctrl-S. Then
// the lines of that write, 4 KiB at most, count as lost.
func (o *Output) Close(ctx context.Context) (lost uint64, err error) {
	o.mu.Lock()
	o.closed = true
	o.some.Signal()
	o.mu.Unlock()
	close(o.closing)

	select {
	case <-o.done:
	case <-ctx.Done():
		close(o.stop)
		// The write under way may end by itself in a moment. One to a
		// stalled reader can be made to, if the runtime polls its
		// descriptor.
		if w, ok := o.w.(interface{ SetWriteDeadline(time.Time) error }); ok {
			_ = w.SetWriteDeadline(time.Now()) // An error: it does not.
		}
		select {
		case <-o.done:
		case <-time.After(pause):
		}
	}

	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case o.lines == 0:
		return 0, nil
	case o.err != nil:
		return o.lines, o.err
	default:
		return o.lines, fmt.Errorf("%s: %w", o.name, context.Cause(ctx))
	}
}

// run writes whatever is pending, until there is nothing and Close was called,
// or nothing more can be written.
func (o *Output) run() {
	defer close(o.done)
	var blocks [][]byte
	for {
		o.gather()
		o.mu.Lock()
		steps := o.steps
		blocks, o.pending, o.steps, o.fresh = o.pending, blocks[:0], nil, 0
		o.mu.Unlock()

		if len(blocks) == 0 && len(steps) == 0 {
			return
		}
		for i := 0; i <= len(blocks); i++ {
			for len(steps) > 0 && steps[0].at == i {
				steps[0].do()
				steps = steps[1:]
			}
			if i == len(blocks) {
				break
			}
			if !o.writeAll(blocks[i]) {
				return
			}
			o.mu.Lock()
			o.free = append(o.free, blocks[i][:0])
			o.mu.Unlock()
		}
	}
}

// gather waits until there is something to do, and for what may come to be
// written with it.
func (o *Output) gather() {
	o.mu.Lock()
	for len(o.pending) == 0 && len(o.steps) == 0 && !o.closed {
		o.some.Wait()
	}
	o.mu.Unlock()
	select {
	case <-o.enough:
	case <-o.closing:
	case <-time.After(o.wait):
	}
}

// writeAll writes the chunk, as often as it takes. It reports whether there is
// any use in going on.
func (o *Output) writeAll(chunk []byte) bool {
	closing := o.closing
	for len(chunk) > 0 {
		select {
		case <-o.stop:
			return false
		default:
		}

		part := firstPart(chunk, o.part)
		n, err := o.w.Write(part)
		if n < len(part) && err == nil {
			err = io.ErrShortWrite
		}
		if !o.wrote(chunk[:n], err) {
			return false
		}
		chunk = chunk[n:]
		if err == nil {
			continue
		}

		select {
		case <-closing:
			closing = nil // Once is enough: the disk is still full.
		case <-o.stop:
		case <-time.After(pause):
		}
	}
	return true
}

// firstPart returns what to write next: as many whole lines as fit into size, or
// one longer line.
func firstPart(chunk []byte, size int) []byte {
	if len(chunk) <= size {
		return chunk
	}
	if end := bytes.LastIndexByte(chunk[:size], '\n'); end >= 0 {
		return chunk[:end+1]
	}
	line, _, _ := bytes.Cut(chunk, []byte{'\n'})
	return chunk[:min(len(line)+1, len(chunk))]
}

// wrote notes what became of a write. It reports whether another one may
// succeed.
func (o *Output) wrote(written []byte, err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.kept -= len(written)
	o.lines -= countLines(written)

	if err == nil {
		select {
		case o.freed <- struct{}{}:
		default: // It was told already.
		}
		if o.lines == 0 {
			// Not before: where a full disk gives way bit by bit,
			// Full speaks once.
			o.err = nil
		}
		return true
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false // Close has set it, and knows why.
	}
	err = bare(err)
	wasFull := o.err != nil
	o.err = fmt.Errorf("%s: %w", o.name, err)
	if !slices.ContainsFunc(noRoom, func(target error) bool { return errors.Is(err, target) }) {
		o.dead = true
		o.broken <- o.err
		return false
	}
	if !wasFull {
		select {
		case o.full <- o.err:
		default: // Nobody has read the one before.
		}
	}
	return true
}

// noRoom are the errors that pass when somebody makes room.
var noRoom = []error{unix.ENOSPC, unix.EDQUOT, unix.EAGAIN, io.ErrShortWrite}

func countLines(b []byte) uint64 { return uint64(bytes.Count(b, []byte{'\n'})) }
