package report

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"github.com/twtrace/twtrace/internal/record"
)

// Stdin is the path that stands for standard input.
const Stdin = "-"

// A Log is one file, or standard input, and where it belongs among others.
type Log struct {
	path   string
	reader io.Reader // nil: to be opened
	head   []byte    // what was read of it already, where it can't be read again

	run  runID
	seq  uint64
	time int64
	size int64
}

// Logs are files to be read as one log.
type Logs []*Log

// Open looks at the head of each file and sorts them: the parts of a rotated log may
// come in any order. stdin is read where a path is Stdin. An error names the file that
// is no log.
func Open(paths []string, stdin io.Reader) (Logs, error) {
	var logs Logs
	for _, path := range paths {
		l := &Log{path: path}
		if path == Stdin {
			l.path, l.reader = "standard input", stdin
		}
		if err := l.peek(); err != nil {
			return nil, fmt.Errorf("read %s: %w", l.path, plain(err))
		}
		logs = append(logs, l)
	}
	slices.SortStableFunc(logs, func(a, b *Log) int {
		return cmp.Or(
			cmp.Compare(a.run.started, b.run.started), cmp.Compare(a.run.node, b.run.node),
			cmp.Compare(a.time, b.time), cmp.Compare(a.seq, b.seq),
		)
	})
	return logs, nil
}

// Size is how many bytes there are to be read, 0 where that is not known.
func (logs Logs) Size() (total int64) {
	for _, l := range logs {
		if l.size == 0 {
			return 0
		}
		total += l.size
	}
	return total
}

// plain takes off what repeats the path.
func plain(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// headSize is enough for the first lines of a log.
const headSize = 256 << 10

// peek reads the first line that can be read, to see where the log belongs.
func (l *Log) peek() error {
	source, err := l.open()
	if err != nil {
		return err
	}
	if l.reader == nil {
		defer source.Close()
	}
	if l.head, err = io.ReadAll(io.LimitReader(source, headSize)); err != nil {
		return err
	}
	reader, err := record.NewReader(bytes.NewReader(l.head))
	if err != nil {
		return fmt.Errorf("not an event log: %w", err)
	}
	defer reader.Close()
	var r record.Record
	var damage, first *record.DamagedError
	for err = reader.Read(&r); errors.As(err, &damage); err = reader.Read(&r) {
		first = cmp.Or(first, damage)
	}
	if err == io.EOF {
		return l.noLine(first, reader)
	}
	if err != nil {
		return err
	}
	l.seq, l.time = r.Line-1, r.Time
	l.run = runID{started: r.Time}
	if r.Meta != nil {
		l.run = runID{r.Meta.Node, r.Meta.BootID, r.Meta.Started}
	}
	if l.reader == nil {
		l.head = nil
	}
	return nil
}

// noLine tells a log that was cut within its first line from what is no log at all.
func (l *Log) noLine(damage *record.DamagedError, reader *record.Reader) error {
	const begin = `{"schema":"` + record.Version + `"`
	rest := bytes.TrimLeft(reader.Raw(), " ")
	switch {
	case len(l.head) == 0, reader.Packed():
		return nil
	case damage == nil && (bytes.HasPrefix(rest, []byte(begin)) || bytes.HasPrefix([]byte(begin), rest)):
		return nil
	case damage != nil:
		return fmt.Errorf("not an event log: %w", damage)
	}
	return errors.New("not an event log: it does not begin with " + begin)
}

func (l *Log) open() (io.ReadCloser, error) {
	if l.reader != nil {
		return io.NopCloser(l.reader), nil
	}
	file, err := os.Open(l.path)
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err == nil && info.IsDir() {
		err = errors.New("it is a directory: name the files in it")
	}
	if err != nil {
		file.Close()
		return nil, err
	}
	if info.Mode().IsRegular() {
		l.size = info.Size()
	} else {
		l.reader = file // a pipe gives what it has once
	}
	return file, nil
}

// Collect has the collector read all logs. read is told how many bytes were read
// since it was told last.
func (logs Logs) Collect(c *Collector, read func(bytes int)) error {
	for _, l := range logs {
		if err := l.collect(c, read); err != nil {
			return fmt.Errorf("read %s: %w", l.path, plain(err))
		}
	}
	return nil
}

func (l *Log) collect(c *Collector, read func(bytes int)) error {
	source, err := l.open()
	if err != nil {
		return err
	}
	defer source.Close()
	reader, err := record.NewReader(counted{io.MultiReader(bytes.NewReader(l.head), source), read})
	if err != nil {
		return err
	}
	defer reader.Close()
	var r record.Record
	for {
		err := reader.Read(&r)
		var damage *record.DamagedError
		switch {
		case err == io.EOF:
			kinds, keys := reader.Strange()
			c.EndFile(reader.Torn(), kinds, keys)
			return nil
		case errors.As(err, &damage):
			c.Damage(l.path, damage.Line, damage.Why)
		case err != nil:
			return err
		default:
			c.Add(&r, reader.Raw())
		}
	}
}

// counted tells how much is read.
type counted struct {
	io.Reader
	read func(bytes int)
}

func (c counted) Read(b []byte) (int, error) {
	n, err := c.Reader.Read(b)
	c.read(n)
	return n, err
}
