package sink

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

const (
	// Compressed is how the name of a log ends that is written compressed.
	Compressed = ".zst"

	// frameLines is the most of lines that one frame holds, and frameWait how
	// long they wait for others: a log of small frames is a large log.
	frameLines = 256 << 10
	frameWait  = 500 * time.Millisecond

	// rotatedAt is the time in the name of a file that Rotate made. It has
	// no colons, which not every file system and shell likes.
	rotatedAt = "2006-01-02T15-04-05.000000000Z"
)

// ErrNotRegular is why a pipe or a device is not rotated.
var ErrNotRegular = errors.New("not a regular file")

// File is the event log on a disk: a file that an Output writes to, and that can
// make way for a new one. Where its name ends in .zst it is a sequence of zstd
// frames, each with whole lines.
//
// Write, Rotate, Reopen, Keep and Began are for one goroutine, the Output's.
type File struct {
	path    string
	file    atomic.Pointer[os.File]
	regular bool
	size    atomic.Int64

	encoder *zstd.Encoder // nil: not compressed
	frame   []byte        // the last one
	written int           // of it
}

// OpenFile opens a log for appending. Its lines tell who talks to whom: it is for
// its owner's eyes.
//
// Where a run was killed, the file can end in half a line or half a frame. The
// line is ended, so that only that one is damaged. Nothing can be put behind the
// frame: the file is renamed as Rotate does, to what is returned as aside.
func OpenFile(path string) (f *File, aside string, err error) {
	f = &File{path: path}
	if strings.HasSuffix(path, Compressed) {
		// An error would be one in the options.
		if f.encoder, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1)); err != nil {
			return nil, "", err
		}
	}
	file, info, aside, err := f.open()
	if err != nil {
		return nil, "", err
	}
	f.regular = info.Mode().IsRegular()
	f.goOn(file, info)
	return f, aside, nil
}

// Regular reports whether it can be rotated: it is no pipe and no device.
func (f *File) Regular() bool { return f.regular }

// Compresses reports whether it compresses what it writes.
func (f *File) Compresses() bool { return f.encoder != nil }

// Size is how large the file is.
func (f *File) Size() int64 { return f.size.Load() }

// Began is when the file was created, or now where its file system does not
// know.
func (f *File) Began() time.Time {
	if !f.regular {
		return time.Now() // Fd would make a pipe one that can't be waited for.
	}
	var info unix.Statx_t
	err := unix.Statx(int(f.file.Load().Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BTIME, &info)
	if err != nil || info.Mask&unix.STATX_BTIME == 0 {
		return time.Now()
	}
	return time.Unix(info.Btime.Sec, int64(info.Btime.Nsec))
}

// Write writes lines. Of a frame that found only half its room it writes the
// rest the next time: that must be for the same lines.
func (f *File) Write(lines []byte) (int, error) {
	if f.encoder == nil {
		n, err := f.file.Load().Write(lines)
		f.size.Add(int64(n))
		return n, err
	}
	if f.written == len(f.frame) {
		f.frame, f.written = f.encoder.EncodeAll(lines, f.frame[:0]), 0
	}
	n, err := f.file.Load().Write(f.frame[f.written:])
	f.size.Add(int64(n))
	f.written += n
	if f.written < len(f.frame) {
		return 0, err
	}
	return len(lines), err
}

// SetWriteDeadline is that of the file.
func (f *File) SetWriteDeadline(t time.Time) error { return f.file.Load().SetWriteDeadline(t) }

// Close closes the file.
func (f *File) Close() error { return f.file.Load().Close() }

// Rotate gives the file a name that tells when that was, and goes on in a new
// one. A file that somebody has moved keeps the name that it got. Where turned is
// false, it goes on in the file that it has.
func (f *File) Rotate() (turned bool, err error) {
	if f.there() {
		if _, err := f.setAside(); err != nil {
			return false, err
		}
	}
	return f.Reopen()
}

// Reopen opens the file anew by its name, since somebody has moved it. Where
// turned is false, it goes on in the file that it has.
func (f *File) Reopen() (turned bool, err error) {
	if !f.regular {
		return true, nil // Nobody moves it: it stays open.
	}
	file, info, _, err := f.open()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() {
		file.Close()
		return false, fmt.Errorf("open the log %s: %w", f.path, ErrNotRegular)
	}
	old := f.file.Load()
	f.goOn(file, info)
	if err := old.Close(); err != nil {
		return true, fmt.Errorf("close the old log: %w", bare(err))
	}
	return true, nil
}

// open opens the file for appending, behind what is whole.
func (f *File) open() (file *os.File, info fs.FileInfo, aside string, err error) {
	for {
		file, err = os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return nil, nil, "", fmt.Errorf("open the log %s: %w", f.path, bare(err))
		}
		whole, err := f.mend(file)
		if err == nil {
			info, err = file.Stat()
		}
		if err == nil && whole {
			return file, info, aside, nil
		}
		file.Close()
		if err != nil {
			return nil, nil, "", fmt.Errorf("open the log %s: %w", f.path, bare(err))
		}
		if aside, err = f.setAside(); err != nil {
			return nil, nil, "", err
		}
	}
}

// mend ends a torn line, and reports whether what follows it can be read, which
// it can't behind a torn frame.
func (f *File) mend(file *os.File) (ok bool, err error) {
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return true, err
	}
	if f.encoder != nil {
		return endsWhole(file)
	}
	var last [1]byte
	if _, err := file.ReadAt(last[:], info.Size()-1); err != nil && err != io.EOF {
		return false, err
	}
	if last[0] != '\n' {
		_, err = file.Write([]byte("\n"))
	}
	return err == nil, err
}

// endsWhole reports whether compressed data end with a whole frame.
func endsWhole(data io.Reader) (bool, error) {
	r := bufio.NewReaderSize(data, filePart)
	for {
		head, err := r.Peek(zstd.HeaderMaxSize)
		if len(head) == 0 && err == io.EOF {
			return true, nil
		}
		if err != nil && err != io.EOF {
			return false, err
		}
		var frame zstd.Header
		if err := frame.Decode(head); err != nil {
			return false, nil // Torn, or no frame at all.
		}
		if err := skipFrame(r, &frame); err == io.EOF {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
}

// repeated is the type of a block that is one byte, so many times.
const repeated = 1

// skipFrame reads what the header is followed by, without a look at it.
func skipFrame(r *bufio.Reader, frame *zstd.Header) error {
	if _, err := r.Discard(frame.HeaderSize + int(frame.SkippableSize)); err != nil || frame.Skippable {
		return err
	}
	for last := false; !last; {
		// RFC 8878, 3.1.1.2: 24 bits, of which the last is 1 bit, the type 2.
		head, err := r.Peek(3)
		if err != nil {
			return err
		}
		block := int(head[0]) | int(head[1])<<8 | int(head[2])<<16
		last = block&1 == 1
		size := block >> 3
		if block>>1&3 == repeated {
			size = 1
		}
		if _, err := r.Discard(3 + size); err != nil {
			return err
		}
	}
	if frame.HasCheckSum {
		_, err := r.Discard(4)
		return err
	}
	return nil
}

func (f *File) goOn(file *os.File, info fs.FileInfo) {
	f.size.Store(info.Size())
	f.file.Store(file)
}

// there reports whether the file still has its name.
func (f *File) there() bool {
	named, err := os.Stat(f.path)
	if err != nil {
		return false
	}
	open, err := f.file.Load().Stat()
	return err == nil && os.SameFile(named, open)
}

// setAside gives the file at the log's name a name with the time in it, which
// nothing else has.
func (f *File) setAside() (aside string, err error) {
	path, err := filepath.EvalSymlinks(f.path)
	if err != nil {
		return "", fmt.Errorf("rotate the log: %w", err)
	}
	dir, prefix, suffix := split(path)
	aside = filepath.Join(dir, prefix+time.Now().UTC().Format(rotatedAt)+suffix)
	err = unix.Renameat2(unix.AT_FDCWD, path, unix.AT_FDCWD, aside, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) {
		// A file system that can't promise it, NFS: the nanosecond does.
		err = os.Rename(path, aside)
	}
	if err != nil {
		return "", fmt.Errorf("rename the log to %s: %w", aside, bare(err))
	}
	return aside, nil
}

// split returns what stands before and behind the time in the name of a rotated
// file.
func split(path string) (dir, prefix, suffix string) {
	dir, name := filepath.Split(path)
	stem := strings.TrimSuffix(name, Compressed)
	stem = strings.TrimSuffix(stem, filepath.Ext(stem))
	return dir, stem + "-", name[len(stem):]
}

// Keep removes the files that Rotate made, all but the newest n.
func (f *File) Keep(n int) error {
	path, err := filepath.EvalSymlinks(f.path)
	if err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	dir, prefix, suffix := split(path)
	entries, err := os.ReadDir(filepath.Clean(dir)) // sorted: the oldest first
	if err != nil {
		return fmt.Errorf("remove old logs: %w", err)
	}
	var old []string
	for _, entry := range entries {
		rest, ours := strings.CutPrefix(entry.Name(), prefix)
		at, too := strings.CutSuffix(rest, suffix)
		if _, err := time.Parse(rotatedAt, at); ours && too && err == nil {
			old = append(old, entry.Name())
		}
	}
	var errs []error
	for _, name := range old[:max(len(old)-n, 0)] {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			errs = append(errs, fmt.Errorf("remove an old log: %w", err))
		}
	}
	return errors.Join(errs...)
}

// bare is an error without the name of the file, which stands before it.
func bare(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	var link *os.LinkError
	if errors.As(err, &link) {
		return link.Err
	}
	return err
}
