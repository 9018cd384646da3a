package report

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/sink"
)

// maxStory bounds the lines of a story.
const maxStory = 10_000

// A story gathers what the log has of one connection.
type story struct {
	cookie uint64 // 0: none is asked for
	tuple  event.Tuple
	owner  event.Owner
	moment []record.Record // that is not told yet
	raw    []string
	lines  []Event
	text   *sink.Text
	seen   map[uint64]bool
}

func newStory(cookie uint64) story {
	return story{cookie: cookie, text: sink.NewText(sink.TextOptions{}), seen: make(map[uint64]bool)}
}

// add takes a line if it is about the connection: by its socket, or by its two ends
// where the kernel knew none, or as what its verdict rests on.
func (s *story) add(r *record.Record, raw []byte, before *recent) {
	if s.cookie == 0 || len(s.lines) >= maxStory || s.seen[r.Line] {
		return
	}
	mine := r.Socket.Cookie == s.cookie
	if !mine && !(r.Socket.Cookie == 0 && s.tuple.Peer.IsValid() && s.sameEnds(r.Socket.Tuple)) {
		return
	}
	if mine {
		if r.Socket.Tuple.Local.Port() != 0 {
			s.tuple = r.Socket.Tuple
		}
		if r.Socket.Owner.Known() {
			s.owner = r.Socket.Owner
		}
	}
	if len(s.moment) > 0 && (s.moment[0].Time != r.Time || s.moment[0].Socket.Cookie != r.Socket.Cookie) {
		s.tell()
	}
	s.seen[r.Line] = true
	for v := r.Verdict; v != nil; v = v.Inner {
		for _, e := range v.Evidence {
			s.witness(e.Line, before)
		}
	}
	s.moment = append(s.moment, *r)
	s.raw = append(s.raw, string(raw))
}

// witness tells a line that a verdict rests on, and that is not the connection's own.
func (s *story) witness(number uint64, before *recent) {
	if number == 0 || s.seen[number] {
		return
	}
	line := before.line(number - 1)
	if line == "" {
		return
	}
	reader, err := record.NewReader(strings.NewReader(line + "\n"))
	if err != nil {
		return
	}
	var r record.Record
	if reader.Read(&r) != nil {
		return
	}
	s.seen[number] = true
	text := s.words([]record.Record{r})
	s.lines = append(s.lines, Event{Time: utc(r.Time), Text: text, Line: line})
}

// sameEnds reports whether a line about no socket is about the same two ends.
func (s *story) sameEnds(t event.Tuple) bool {
	return t == s.tuple || t.Local == s.tuple.Peer && t.Peer == s.tuple.Local
}

// tell ends the moment: in the words of the tail.
func (s *story) tell() {
	if len(s.moment) == 0 {
		return
	}
	last := &s.moment[len(s.moment)-1]
	if first := &s.moment[0]; first.Kind == record.State && last.State.New == 0 {
		last.State = first.State
	}
	if n := len(s.moment); n > 1 && last.Kind == record.PortReuse {
		s.moment[n-2].State = s.moment[0].State
	}
	s.lines = append(s.lines, Event{Time: utc(last.Time), Text: s.words(s.moment), Line: strings.Join(s.raw, "\n")})
	s.moment, s.raw = s.moment[:0], nil
}

func (s *story) words(moment []record.Record) string {
	r := &moment[len(moment)-1]
	if r.Kind == record.Counters {
		return "counters of network namespace " + strconv.Itoa(int(r.Socket.NetNS.Inode)) + ": " + list(r.Counters.Delta)
	}
	text := strings.TrimRight(string(s.text.AppendMoment(nil, moment)), "\n")
	return cmp.Or(text, r.Kind.String())
}

func (s *story) finish() *Story {
	if s.cookie == 0 {
		return nil
	}
	s.tell()
	out := &Story{Cookie: strconv.FormatUint(s.cookie, 10), Owner: ownerName(s.owner), Lines: s.lines}
	if s.tuple.Peer.IsValid() {
		out.Peer = s.tuple.Peer.String()
	}
	slices.SortStableFunc(out.Lines, func(a, b Event) int { return a.Time.Compare(b.Time) })
	for i := range out.Lines {
		out.Lines[i].Offset = float64(out.Lines[i].Time.Sub(out.Lines[0].Time)) / float64(time.Millisecond)
	}
	out.Lines = orEmpty(out.Lines)
	return out
}
