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
	filePart = 64 << 10

	// lineWait is how long a line waits for others where nobody would notice:
	// a wake-up for each takes longer than the line. batch is how much does
	// not wait.
	lineWait = 5 * time.Millisecond
	batch    = 64 << 10
)

// Output writes lines to a terminal, a pipe or a file from a goroutine of its
// own. Whoever hands it a line never waits for the writer: lines that the
// writer can't take yet are kept, up to a limit, and beyond it they are
// dropped, whole, and the caller is told so.
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

	full, broken chan error

	enough  chan struct{} // signalled when a batch is pending: don't wait
	closing chan struct{} // closed by Close: don't wait or pause on my account
	stop    chan struct{} // closed when Close has waited long enough
	done    chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	some    sync.Cond // signalled when pending, steps or closed changes
	pending []byte    // not taken by the goroutine yet
	steps   []step    // in between
	taken   int       // bytes that it took and has not written yet
	lines   uint64    // lines in both of these
	closed  bool
	err     error // why nothing can be written: for now, or for good
	dead    bool  // for good
}

// A step is what is to be done when the pending bytes before it are written.
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
		enough:  make(chan struct{}, 1),
		closing: make(chan struct{}),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
	}
	o.part, o.batch, o.wait = portions(w)
	o.some.L = &o.mu
	go o.run()
	return o
}

// portions returns the most that one write to w takes, and how long less than a
// batch waits for more.
func portions(w io.Writer) (part, batchSize int, wait time.Duration) {
	switch w := w.(type) {
	case *File:
		if w.encoder != nil {
			return frameLines, frameLines, frameWait
		}
		return portions(w.file.Load())
	case *os.File:
		if info, err := w.Stat(); err == nil && info.Mode().IsRegular() {
			return filePart, batch, lineWait
		}
	}
	return pipeBuf, batch, lineWait
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
// It copies them, and does not wait. It returns false where it could not take
// them: there is no room, the writer is broken, or Close was called.
func (o *Output) Write(lines []byte) (ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead || o.closed || o.taken+len(o.pending)+len(lines) > o.limit {
		return false
	}
	o.pending = append(o.pending, lines...)
	o.lines += countLines(lines)
	o.some.Signal()
	if len(o.pending) >= o.batch {
		select {
		case o.enough <- struct{}{}:
		default: // It was told already.
		}
	}
	return true
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
	return max(o.limit-o.taken-len(o.pending), 0)
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
	var chunk []byte
	for {
		o.gather()
		o.mu.Lock()
		steps := o.steps
		chunk, o.pending, o.steps = o.pending, chunk[:0], nil
		o.taken = len(chunk)
		o.mu.Unlock()

		if len(chunk) == 0 && len(steps) == 0 {
			return
		}
		begin := 0
		for _, s := range steps {
			if !o.writeAll(chunk[begin:s.at]) {
				return
			}
			s.do()
			begin = s.at
		}
		if !o.writeAll(chunk[begin:]) {
			return
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
	o.taken -= len(written)
	o.lines -= countLines(written)

	if err == nil {
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
