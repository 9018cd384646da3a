package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/twtrace/twtrace/internal/sink"
)

const (
	// maxLine is more than any line has.
	maxLine = 16 << 10
	// minLogSize is the least that --log-max-size takes: each file begins
	// with a meta line.
	minLogSize = 4 * maxLine
	// turnPause is how long a log that could not go on in another file is
	// left alone before that is tried again.
	turnPause = 10 * time.Second
)

// rotation says when the log goes on in a new file, and what becomes of the old
// ones.
type rotation struct {
	maxSize int64         // 0: whatever the size
	maxAge  time.Duration // 0: whatever the age
	keep    int           // 0: all
}

func (r rotation) rotates() bool { return r.maxSize > 0 || r.maxAge > 0 }

// A logFile is the output to the log, which knows when it is time to go on in
// another file. The change itself is made where the lines are written.
type logFile struct {
	*sink.Output
	file     *sink.File
	rotation rotation
	began    time.Time // when its present file did
	bytes    int64     // what that will have when all is written, unless compressed

	wanted change // nil: none
	making int    // changes on their way
	made   chan turned
	failed bool // the last one, and it was said
	resume time.Time
}

// A change goes on in another file, or does not.
type change func() (done bool, err error)

// turned is what became of a change.
type turned struct {
	change change
	done   bool
	err    error // of the change, or of what it brought with it
	size   int64 // of the file that it went on in
	began  time.Time
}

func openLog(path string, r rotation, stderr *os.File) (*logFile, error) {
	file, aside, err := sink.OpenFile(path)
	if err != nil {
		return nil, err
	}
	if aside != "" {
		say(stderr, "%s did not end in a whole frame, and is now %s", path, aside)
	}
	if r.rotates() && !file.Regular() {
		return nil, fmt.Errorf("rotate the log %s: %w", path, sink.ErrNotRegular)
	}
	l := &logFile{file: file, rotation: r, made: make(chan turned, maxPending/minLogSize)}
	if r.maxSize > 0 && file.Size() >= r.maxSize {
		if _, err := l.rotate(); err != nil {
			return nil, err
		}
	}
	l.began, l.bytes = file.Began(), file.Size()
	l.Output = sink.NewOutput(path, file, maxPending)
	return l, nil
}

// Write is that of the Output.
func (l *logFile) Write(lines []byte, spare int) (ok bool) {
	if ok = l.Output.Write(lines, spare); ok {
		l.bytes += int64(len(lines))
	}
	return ok
}

// reopen wants the log to go on in the file that its name leads to, since
// somebody has moved it.
func (l *logFile) reopen() {
	l.wanted = l.file.Reopen
	l.resume = time.Time{}
}

// age wants a new file where this one is too old.
func (l *logFile) age(now time.Time) {
	if l.rotation.maxAge > 0 && l.wanted == nil && l.making == 0 && now.Sub(l.began) >= l.rotation.maxAge {
		l.wanted = l.rotate
	}
}

// grown reports whether the file is large enough. How large it will be when it
// is compressed is known only once it is.
func (l *logFile) grown() bool {
	switch {
	case l.rotation.maxSize == 0:
		return false
	case l.file.Compresses():
		return l.making == 0 && l.file.Size() >= l.rotation.maxSize
	default:
		return l.bytes >= l.rotation.maxSize
	}
}

// turn begins a change where it is time for one: what is written from then on
// goes to the other file.
func (l *logFile) turn() bool {
	if l.wanted == nil && l.grown() {
		l.wanted = l.rotate
	}
	// The new file's first line must find room.
	if l.wanted == nil || l.Room() < maxLine || l.making == cap(l.made) || time.Now().Before(l.resume) {
		return false
	}
	change := l.wanted
	l.wanted, l.bytes = nil, 0
	l.making++
	l.Do(func() {
		done, err := change()
		l.made <- turned{change, done, err, l.file.Size(), l.file.Began()}
	})
	return true
}

// settle looks what became of the changes. One that failed is tried again, and
// its error is returned, unless the one before it failed, too.
func (l *logFile) settle() error {
	for l.making > 0 {
		var t turned
		select {
		case t = <-l.made:
		default:
			return nil
		}
		l.making--
		l.began = t.began
		if l.making == 0 {
			l.bytes += t.size
		}
		if !t.done {
			l.resume = time.Now().Add(turnPause)
			if l.wanted == nil {
				l.wanted = t.change
			}
		}
		said := l.failed
		l.failed = t.err != nil
		if l.failed && !said {
			return t.err
		}
	}
	return nil
}

func (l *logFile) rotate() (done bool, err error) {
	done, err = l.file.Rotate()
	if done && l.rotation.keep > 0 {
		err = errors.Join(err, l.file.Keep(l.rotation.keep))
	}
	return done, err
}
