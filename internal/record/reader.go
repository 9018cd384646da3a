package record

import (
	"bufio"
	"bytes"

	"errors"
	"fmt"
	"io"
	"maps"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

const (
	// maxLine is the longest line that is read: four times as long as any
	// that is written.
	maxLine = 64 << 10
	// maxWindow bounds what unpacking takes of memory.
	maxWindow = 64 << 20
)

// Reader reads a log, plain or packed by gzip or zstd, which it tells by its first
// bytes. A line that is damaged costs no other, and neither does the lack of an end.
type Reader struct {
	source  *bufio.Reader // as stored
	packed  bool
	close   func()
	lines   *bufio.Reader
	decoder *decoder
	kinds   map[string]uint64
	raw     []byte
	number  uint64
	torn    error
}

// DamagedError is returned for a line that can't be read. The next may be fine.
type DamagedError struct {
	// Line is its number in this log, from 1.
	Line uint64
	Why  string
}

func (e *DamagedError) Error() string { return fmt.Sprintf("line %d: %s", e.Line, e.Why) }

// NewReader returns a Reader of what r holds. It reads a few bytes already. An error is
// r's own, or tells why it can't be unpacked.
func NewReader(r io.Reader) (*Reader, error) {
	reader := &Reader{
		source: bufio.NewReaderSize(r, 64<<10), decoder: newDecoder(), kinds: make(map[string]uint64),
		close: func() {},
	}
	head, err := reader.source.Peek(4)
	if err != nil && err != io.EOF {
		return nil, err
	}
	var unpacked io.Reader = reader.source
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		reader.packed = true
		unzipped, err := gzip.NewReader(reader.source)
		if err != nil { // cut within its header
			reader.tear(err)
			unpacked = bytes.NewReader(nil)
			break
		}
		unpacked = unzipped
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		decoder, err := zstd.NewReader(reader.source, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		unpacked, reader.packed, reader.close = decoder, true, decoder.Close
	}
	reader.lines = bufio.NewReaderSize(unpacked, maxLine)
	return reader, nil
}

// Close frees what unpacking takes. It does not close the Reader's source.
func (r *Reader) Close() { r.close() }

// Read reads the next line into record, and its number: record.Line is one more than
// it. It returns a *DamagedError for a line that can't be read, and io.EOF at the end,
// wherever that is; Torn tells. The Kind of a line of an unknown kind is 0.
func (r *Reader) Read(record *Record) error {
	line, err := r.next()
	if err != nil {
		return err
	}
	if err := r.decoder.decode(line, record); err != nil {
		return r.damaged(err.Error())
	}
	if record.Kind == 0 {
		r.kinds[r.decoder.line.kind]++
	}
	return nil
}

// Raw returns the line that Read read last, without its end, and at the end of the log
// what is left of a line that was cut: valid until the next.
func (r *Reader) Raw() []byte { return r.raw }

// Packed reports whether the log is packed.
func (r *Reader) Packed() bool { return r.packed }

// Torn returns why the log has no proper end, nil where it has one: it ends within a
// line, or can't be unpacked any further. Ask after the end.
func (r *Reader) Torn() error { return r.torn }

// Strange counts kinds of lines that are not known, and keys and values, by their
// paths.
func (r *Reader) Strange() (kinds, keys map[string]uint64) {
	return maps.Clone(r.kinds), maps.Clone(r.decoder.unknown)
}

func (r *Reader) damaged(why string) error { return &DamagedError{Line: r.number, Why: why} }

// next returns the next line that is not empty.
func (r *Reader) next() ([]byte, error) {
	for {
		line, err := r.lines.ReadSlice('\n')
		switch {
		case err == nil:
			r.number++
			if r.raw = bytes.TrimRight(line, "\r\n"); len(r.raw) > 0 {
				return r.raw, nil
			}
		case errors.Is(err, bufio.ErrBufferFull):
			r.number++
			if err := r.skip(); err != nil {
				r.tear(err)
			}
			r.raw = nil
			return nil, r.damaged(fmt.Sprintf("longer than %d KiB", maxLine>>10))
		default:
			if r.raw = line; len(line) > 0 {
				r.tear(errors.New("it ends within a line"))
			}
			if err != io.EOF {
				r.tear(err)
			}
			return nil, io.EOF
		}
	}
}

// skip reads to the end of the line.
func (r *Reader) skip() error {
	for {
		switch _, err := r.lines.ReadSlice('\n'); {
		case err == nil:
			return nil
		case err == io.EOF:
			return errors.New("it ends within a line")
		case !errors.Is(err, bufio.ErrBufferFull):
			return err
		}
	}
}

func (r *Reader) tear(err error) {
	if r.torn == nil {
		r.torn = err
	}
}
