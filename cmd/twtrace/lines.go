package main

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/term"

	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/sink"
)

const (
	// maxPending bounds the bytes that wait for an output.
	maxPending = 8 << 20
	// lastWords is how long the end of a run waits for an output that takes
	// nothing, and longestWords for one that does.
	lastWords    = 500 * time.Millisecond
	longestWords = 10 * time.Second
)

// lines are the run's outputs: stdout, as text or JSON, and the log. Every line
// has one number and one form, whatever it is written to.
type lines struct {
	stdout     *sink.Output
	log        *logFile // nil without --log
	stdoutFile *os.File
	stderr     *os.File
	text       *sink.Text // nil for JSON
	style      sink.TextOptions
	patience   time.Duration                // the end of a run waits so long for an output that takes nothing
	export     func(moment []record.Record) // takes what becomes lines, too; nil for none
	printed    uint64                       // to stdout, what is about sockets

	meta     record.Record // the run's first line, and that of each file of its log
	begun    uint64        // the line that the present file began with
	seq      uint64
	events   [record.Kinds]uint64
	connects [record.Outcomes]uint64
	verdicts map[string]uint64
	lost     uint64               // lines that an output did not take
	told     uint64               // of these, in a line
	kinds    [record.Kinds]uint64 // of those that are not told yet
	lossless int64                // until when none was lost, Unix nanoseconds
	encoder  record.Encoder
	buffer   []byte
	closed   bool
}

func openLines(flags *tailFlags, options tailOptions, stdout, stderr *os.File) (*lines, error) {
	l := &lines{stdoutFile: stdout, stderr: stderr, patience: lastWords, verdicts: make(map[string]uint64)}
	if flags.log != "" {
		var err error
		if l.log, err = openLog(flags.log, options.rotation, stderr); err != nil {
			return nil, err
		}
	}
	l.stdout = sink.NewOutput("standard output", stdout, maxPending)
	if !options.json {
		l.style = sink.TextOptions{Color: flags.colored(stdout), Timestamps: flags.timestamps}
		l.text = sink.NewText(l.style)
		l.resize()
	}
	return l, nil
}

// resize follows the terminal's width.
func (l *lines) resize() {
	if l.text == nil {
		return
	}
	if width, _, err := term.GetSize(int(l.stdoutFile.Fd())); err == nil && width != l.style.Width {
		l.style.Width = width
		l.text = sink.NewText(l.style)
	}
}

// begin writes the first line of the run and, in the tail, the names of its
// columns. containers is set where there may be some.
func (l *lines) begin(meta record.Record, containers bool) {
	l.meta = meta
	if l.text != nil {
		l.style.Containers = containers
		l.text = sink.NewText(l.style)
		l.stdout.Write(l.text.AppendHeader(nil), 0)
	}
	l.write([]record.Record{meta})
}

// turn has the log go on in another file where it is time for that. The file's
// first line is one of the run like any other.
func (l *lines) turn() {
	if l.log == nil {
		return
	}
	if err := l.log.settle(); err != nil {
		say(l.stderr, "%v: the log goes on, and it is tried again", err)
	}
	if l.log.turn() {
		l.meta.Time = time.Now().UnixNano()
		l.begun = l.seq
		l.offer([]record.Record{l.meta})
	}
}

// reopen has the log go on in the file that its name leads to now.
func (l *lines) reopen() {
	l.log.reopen()
	l.turn()
}

// doChores follows the terminal's width and the log's age.
func (l *lines) doChores(now time.Time) {
	l.resize()
	if l.log != nil && l.seq > l.begun+1 { // more than its meta
		l.log.age(now)
	}
	l.turn()
}

// upTo cuts a moment so that no more than count lines are printed in all. In
// the tail a moment is one line.
func (l *lines) upTo(moment []record.Record, count uint64) []record.Record {
	left := count - l.printed
	if left == 0 {
		return nil
	}
	if l.text == nil && uint64(len(moment)) > left {
		return moment[:left]
	}
	return moment
}

// write writes a moment, all of it at once.
func (l *lines) write(moment []record.Record) {
	l.turn()
	if l.lost > l.told && l.haveRoom() {
		l.tellLoss(moment[0].Time)
	}
	before := l.lost
	l.offer(moment)
	switch {
	case l.lost == before:
		l.lossless = moment[0].Time
	case before == l.told:
		say(l.stderr, "an output is not read, or has no room: lines are lost, and counted")
	}
}

// haveRoom reports whether no output is behind.
func (l *lines) haveRoom() bool {
	return l.stdout.Room() > maxPending/2 && (l.log == nil || l.log.Room() > maxPending/2)
}

func (l *lines) tellLoss(now int64) {
	count, kinds := l.lost-l.told, l.kinds
	l.told, l.kinds = l.lost, [record.Kinds]uint64{}
	l.offer([]record.Record{{Kind: record.Lost, Time: now, Lost: record.LostFields{
		Count: count, Since: l.lossless, Where: record.InOutput, Kinds: &kinds,
	}}})
}

// spare is the room that an output must have left beside a moment. What shows in
// later lines as well leaves the last of it to what does not, as in the kernel
// (room_for in bpf/emit.h).
func spare(moment []record.Record) int {
	spare := maxPending / 4
	for i := range moment {
		switch r := &moment[i]; {
		case r.Kind == record.State:
		case r.Kind == record.Accept, r.Kind == record.Close && r.Verdict == nil, r.Kind == record.TimeWaitEnter:
			spare = maxPending / 8
		default:
			return 0
		}
	}
	return spare
}

// lose counts lines that an output did not take.
func (l *lines) lose(lines []record.Record) {
	l.lost += uint64(len(lines))
	for i := range lines {
		l.kinds[lines[i].Kind]++
	}
}

// offer numbers and counts the lines and offers them to the outputs; what an
// output can't take is lost.
func (l *lines) offer(moment []record.Record) {
	l.buffer = l.buffer[:0]
	for i := range moment {
		if l.log != nil || l.text == nil {
			l.buffer = l.encoder.AppendJSON(l.buffer, &moment[i], l.seq)
		}
		l.seq++
		moment[i].Line = l.seq
		l.events[moment[i].Kind]++
		if moment[i].Kind == record.Connect {
			l.connects[moment[i].Connect.Outcome]++
		}
		if v := moment[i].Verdict; v != nil {
			l.verdicts[v.Cause()]++
		}
	}
	spare := spare(moment)
	if l.log != nil && !l.log.Write(l.buffer, spare) {
		l.lose(moment)
	}
	made := moment
	if l.text != nil {
		l.buffer = l.text.AppendMoment(l.buffer[:0], moment)
		made = sink.Headline(moment)
	}
	if len(l.buffer) > 0 && !l.stdout.Write(l.buffer, spare) {
		l.lose(made)
	}
	if moment[0].Kind.AboutSocket() {
		l.printed += uint64(len(made))
	}
	if l.export != nil {
		l.export(moment)
	}
}

// failed returns an error once an output can take nothing any more; for one
// that is merely full it says so, once.
func (l *lines) failed() error {
	outputs := []*sink.Output{l.stdout}
	if l.log != nil {
		outputs = append(outputs, l.log.Output)
	}
	for _, output := range outputs {
		select {
		case err := <-output.Broken():
			return err
		case err := <-output.Full():
			say(l.stderr, "%v: lines wait for room, then are lost, and counted", err)
		default:
		}
	}
	return nil
}

// close writes the summary and waits, not for ever, until all is written.
// summary has what the lines can't know.
func (l *lines) close(now time.Time, summary record.SummaryFields) error {
	if l.lost > l.told {
		l.tellLoss(now.UnixNano())
	}
	summary.Events, summary.Connects, summary.Verdicts, summary.LostOutput = l.events, l.connects, l.verdicts, l.lost
	last := record.Record{Kind: record.Summary, Time: now.UnixNano(), Summary: &summary}
	l.offer([]record.Record{last})
	lost, err := l.flush(l.patience)
	summary.LostOutput = l.lost + lost
	if l.text != nil {
		_, _ = l.stderr.Write(l.text.AppendSummary(nil, &last)) // nowhere left to say that this failed
	} else if summary.LostOutput > 0 {
		say(l.stderr, "%d lines could not be written", summary.LostOutput)
	}
	return unread(err)
}

// unread puts in plainer words that an output could not be closed in time.
func unread(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("an output is not read: what it had not taken is lost")
	}
	return err
}

// abandon stops the outputs of a run that failed for a reason of its own, unless
// they are closed already.
func (l *lines) abandon() {
	if l.closed {
		return
	}
	_, _ = l.flush(lastWords)
}

// flush closes the outputs side by side: one that is stalled must not use up
// the other's time.
func (l *lines) flush(patience time.Duration) (lost uint64, err error) {
	l.closed = true
	if l.log == nil {
		return closeOutput(l.stdout, patience)
	}
	type result struct {
		lost uint64
		err  error
	}
	log := make(chan result)
	go func() {
		lost, err := closeOutput(l.log.Output, patience)
		log <- result{lost, errors.Join(err, l.log.file.Close())}
	}()
	lost, err = closeOutput(l.stdout, patience)
	r := <-log
	return lost + r.lost, errors.Join(err, r.err)
}

// closeOutput closes an output, as soon as it has taken all or, for the length of
// the patience, nothing.
func closeOutput(o *sink.Output, patience time.Duration) (lost uint64, err error) {
	longest, cancel := context.WithTimeout(context.Background(), longestWords)
	defer cancel()
	ctx, stop := context.WithCancelCause(longest)
	defer stop(nil)
	go func() {
		room := o.Room()
		for {
			select {
			case <-ctx.Done():
				return
			case <-time.After(patience):
			}
			before := room
			if room = o.Room(); room == before {
				stop(context.DeadlineExceeded)
				return
			}
		}
	}()
	return o.Close(ctx)
}
