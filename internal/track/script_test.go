package track

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

var update = flag.Bool("update", false, "write the golden files anew")

// TestScripts plays what the kernel does in each of the scripts, and finds the
// records that must come of it. A script says in a line or two what happens;
// its events are lines of
//
//	TIME SOCKET OLD>NEW [KEY=VALUE | FLAG]...
//
// TIME counts from the start. SOCKET is the socket's address, 0 for none. In
// place of OLD>NEW stands result, syn, syn-ack, rst-sent or rst-received for
// the other kinds of events; time_wait.enter, time_wait.rearm, time_wait.end or
// fin_wait2.end for what happens to the small socket that is left of it; and
// existing for one, in state=STATE, that was there before the trace. "connects"
// is short for a connect that succeeds in a millisecond, "closes" for a close
// whose FIN the peer answers at once, with TIME_WAIT.
//
// "TIME tick" lets that much time pass, and "TIME reserve netns=N LOW-HIGH..."
// tells the reserved ports of a network namespace. The first lines can be
// "filtered", the kernel filters by peer, and "quiet", changes of states are not
// told.
//
// The keys local, peer, comm and netns hold for the socket from then on; errno,
// handshake, tsval, sent, received, attempt, reason, ended, ports (LOW-HIGH) and
// state for their line; entered is when a TIME_WAIT began whose beginning is not
// among the lines. The flags are those of event.Event: shutdown, follows,
// started, lingers; and three of the socket's: bound, older than the trace, and
// full, the table of sockets was when it came. The history that a socket's
// events carry is what its lines before have told, as in bpf/state.h and
// bpf/time_wait.h; one that begins in the middle has none.
//
// In the records a line that is indented belongs to the moment of the line
// above, and is about the same socket at the same time unless it says
// otherwise.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(archive.Files) != 2 || archive.Files[0].Name != "events" || archive.Files[1].Name != "records" {
				t.Fatalf("%s: want a file of events and one of records", file)
			}
			got := play(t, string(archive.Files[0].Data), 0, 0)
			if *update {
				archive.Files[1].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(archive), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want := string(archive.Files[1].Data)
			if diff := cmp.Diff(strings.Split(want, "\n"), strings.Split(got, "\n")); diff != "" {
				t.Errorf("%s(-want +got):\n%s", archive.Comment, diff)
			}
		})
	}
}

// TestWallClockIsSet: a wall clock that is set in the middle of a script changes
// nothing. Times are told on the new one, earlier ones too.
func TestWallClockIsSet(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		archive, err := txtar.ParseFile(file)
		if err != nil {
			t.Fatal(err)
		}
		script := string(archive.Files[0].Data)
		want := play(t, script, 0, 0)
		for _, step := range []time.Duration{time.Hour, -time.Hour} {
			for at := range strings.Count(script, "\n") {
				if diff := cmp.Diff(want, play(t, script, step, at)); diff != "" {
					t.Errorf("%s, set by %v at line %d (-want +got):\n%s", file, step, at, diff)
				}
			}
		}
	}
}

// player plays a script.
type player struct {
	tracker *Tracker
	told    strings.Builder
	quiet   bool
	wall    int64 // what the wall clock is ahead of the script's
	sockets map[uint64]*history
}

// play runs a script and returns its records. Before line setAt the wall clock
// is set by step, if anything.
func play(t *testing.T, script string, step time.Duration, setAt int) string {
	t.Helper()
	script, filtered := strings.CutPrefix(script, "filtered\n")
	p := player{
		tracker: New(Config{PeersFiltered: filtered, AllPorts: !filtered}),
		wall:    int64(24 * time.Hour),
		sockets: make(map[uint64]*history),
	}
	script, p.quiet = strings.CutPrefix(script, "quiet\n")
	n := 0
	for line := range strings.Lines(script) {
		if n++; n == setAt {
			p.set(step)
		}
		if err := p.play(t, line); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
	}
	const end = "end\n"
	p.told.WriteString(end)
	p.tracker.Flush(p.tell)
	return strings.TrimSuffix(p.told.String(), end)
}

// set sets the wall clock. What waits to be told was seen on the one before.
func (p *player) set(step time.Duration) {
	p.wall += int64(step)
	for address, held := range p.tracker.held {
		held.Time += int64(step)
		p.tracker.held[address] = held
	}
}

func (p *player) tell(moment []record.Record) {
	var told []record.Record
	for _, r := range moment {
		if p.quiet && r.Kind == record.State {
			continue
		}
		r.Time -= p.wall
		if r.Reuse != nil {
			reuse := *r.Reuse
			for _, time := range []*int64{&reuse.Previous.Time, &reuse.Previous.Ended} {
				if *time != 0 {
					*time -= p.wall
				}
			}
			r.Reuse = &reuse
		}
		told = append(told, r)
	}
	if len(told) > 0 {
		writeMoment(&p.told, told)
	}
}

// play plays one line.
func (p *player) play(t *testing.T, line string) error {
	t.Helper()
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return fmt.Errorf("want a time and what happens")
	}
	at, err := time.ParseDuration(fields[0])
	if err != nil {
		return err
	}
	observe := func(at time.Duration, fields ...string) error {
		e, err := parseEvent(int64(at), fields, p.sockets)
		if err != nil {
			return err
		}
		// The machine has been up for an hour.
		e.Mono, e.Time = e.Time+int64(time.Hour), e.Time+p.wall
		p.tracker.Observe(&e, p.tell)
		checkInvariants(t, p.tracker)
		return nil
	}
	what := fields[1]
	if len(fields) > 2 {
		what = fields[2]
	}
	switch {
	case fields[1] == "tick":
		p.tracker.Tick(int64(at)+int64(time.Hour), p.tell)
	case fields[1] == "reserve":
		return p.reserve(fields[2:])
	case what == "connects":
		first := append([]string{fields[1], "CLOSE>SYN_SENT"}, fields[3:]...)
		for i, field := range first {
			if local, isLocal := strings.CutPrefix(field, "local="); isLocal && !slices.Contains(first, "bound") {
				// The kernel chooses the port after this change.
				first[i] = "local=" + local[:strings.LastIndex(local, ":")] + ":0"
			}
		}
		if err := observe(at, first...); err != nil {
			return err
		}
		return observe(at+time.Millisecond, append([]string{fields[1], "SYN_SENT>ESTABLISHED"}, fields[3:]...)...)
	case what == "closes":
		for i, step := range [][]string{
			{"ESTABLISHED>FIN_WAIT1"}, {"FIN_WAIT1>FIN_WAIT2"},
			{"FIN_WAIT2>CLOSE", "shutdown", "lingers"}, {"time_wait.enter"},
		} {
			if err := observe(at+time.Duration(i)*time.Microsecond, append([]string{fields[1]}, step...)...); err != nil {
				return err
			}
		}
	default:
		return observe(at, fields[1:]...)
	}
	return nil
}

func (p *player) reserve(fields []string) error {
	var netns event.NetNS
	var reserved []event.PortRange
	for _, field := range fields {
		if inode, ok := strings.CutPrefix(field, "netns="); ok {
			n, err := strconv.ParseUint(inode, 10, 32)
			if err != nil {
				return err
			}
			netns.Inode = uint32(n)
			continue
		}
		r, err := parseRange(field)
		if err != nil {
			return err
		}
		reserved = append(reserved, r)
	}
	p.tracker.Describe(netns, reserved)
	return nil
}

// history is what the kernel programs keep of a socket.
type history struct {
	socket       event.Socket
	known        bool  // it has an entry in the table
	since, began int64 // -1: unknown
	visited      event.StateSet
	bound        bool
	// What is left of it: the state that it was in last, and since when; and
	// when its TIME_WAIT began, -1 unknown.
	last     event.State
	lastFrom int64
	entered  int64
}

var otherKinds = map[string]event.Kind{
	"result":       event.ConnectResult,
	"syn":          event.SynRetransmit,
	"syn-ack":      event.SynAckRetransmit,
	"rst-sent":     event.ResetSent,
	"rst-received": event.ResetReceived,

	"time_wait.enter": event.TimeWaitEnter,
	"time_wait.rearm": event.TimeWaitRearm,
	"time_wait.end":   event.TimeWaitEnd,
	"fin_wait2.end":   event.TimeWaitEnd,
	"existing":        event.Existing,
}

func parseEvent(now int64, fields []string, sockets map[uint64]*history) (event.Event, error) {
	e := event.Event{Time: now}
	address, err := strconv.ParseUint(fields[0], 10, 64)
	if err != nil || len(fields) < 2 {
		return e, fmt.Errorf("want a socket and what happens to it: %w", err)
	}
	var isOther bool
	if e.Kind, isOther = otherKinds[fields[1]]; !isOther {
		e.Kind = event.StateChange
		from, to, _ := strings.Cut(fields[1], ">")
		if e.Old, e.New = parseState(from), parseState(to); e.Old == 0 || e.New == 0 {
			return e, fmt.Errorf("%s is no change of states", fields[1])
		}
	}

	h := sockets[address]
	if h == nil || e.Kind == event.StateChange && begins(&e) {
		h = &history{
			socket: event.Socket{Address: address},
			known:  e.Kind == event.StateChange && begins(&e),
			since:  -1, began: now, last: event.FinWait2, lastFrom: -1, entered: -1,
		}
		sockets[address] = h
	}
	for _, field := range fields[2:] {
		if err := parseField(&e, h, field); err != nil {
			return e, fmt.Errorf("%s: %w", field, err)
		}
	}
	e.Socket = h.socket
	switch e.Kind {
	case event.StateChange:
		e.Bound = h.bound
	case event.ConnectResult:
		e.InState = time.Duration(now - h.began)
	default:
		h.timeWait(&e, fields[1], now)
	}
	if e.Kind != event.StateChange || !h.known {
		return e, nil
	}

	if h.since >= 0 {
		e.InState = time.Duration(now - h.since)
	}
	if h.began >= 0 {
		e.Began = time.Duration(now - h.began)
	}
	if e.Lingers {
		h.last, h.lastFrom = e.Old, h.since
	}
	if e.New == event.Established {
		h.began = now
	}
	h.since = now
	h.visited = h.visited.With(e.New)
	e.Visited = h.visited
	return e, nil
}

// timeWait sets what events of what is left of a socket carry.
func (h *history) timeWait(e *event.Event, what string, now int64) {
	switch e.Kind {
	case event.TimeWaitEnter:
		e.Old, e.New = h.last, event.TimeWait
		if h.lastFrom >= 0 {
			e.InState = time.Duration(now - h.lastFrom)
		}
		h.entered = now
	case event.TimeWaitEnd:
		e.Old, e.New = event.TimeWait, event.Close
		if what == "fin_wait2.end" {
			e.Old = event.FinWait2
		}
		fallthrough
	case event.TimeWaitRearm:
		if h.entered >= 0 {
			e.InState = time.Duration(now - h.entered)
		}
	}
	e.Active = h.visited.Has(event.SynSent)
}

func parseRange(text string) (event.PortRange, error) {
	var r event.PortRange
	_, err := fmt.Sscanf(text, "%d-%d", &r.Low, &r.High)
	return r, err
}

// begins reports whether a socket's history begins anew.
func begins(e *event.Event) bool {
	return e.New == event.SynSent || e.New == event.Listen || e.Old == event.Listen && e.New == event.SynRecv
}

func parseState(name string) event.State {
	for s := event.Established; s <= event.NewSynRecv; s++ {
		if s.String() == name {
			return s
		}
	}
	return 0
}

func parseErrno(name string) (syscall.Errno, error) {
	for errno := range syscall.Errno(1024) {
		if unix.ErrnoName(errno) == name {
			return errno, nil
		}
	}
	return 0, fmt.Errorf("no such errno")
}

func parseField(e *event.Event, h *history, field string) (err error) {
	key, value, _ := strings.Cut(field, "=")
	var number uint64
	switch key {
	case "tsval", "sent", "received", "attempt", "netns":
		if number, err = strconv.ParseUint(value, 10, 32); err != nil {
			return err
		}
	}
	switch key {
	case "local":
		h.socket.Tuple.Local, err = netip.ParseAddrPort(value)
	case "peer":
		h.socket.Tuple.Peer, err = netip.ParseAddrPort(value)
	case "comm":
		h.socket.Owner = event.Owner{PID: 4711, Comm: value}
	case "errno":
		e.Errno, err = parseErrno(value)
	case "handshake":
		e.Handshake, err = time.ParseDuration(value)
	case "tsval":
		e.TSVal, e.HasTSVal = uint32(number), true
	case "sent":
		e.BytesSent = number
	case "received":
		e.BytesReceived = number
	case "attempt":
		e.Retransmits = uint32(number)
	case "reason":
		e.Reason = value
	case "netns":
		h.socket.NetNS.Inode = uint32(number)
	case "ports":
		e.Ports, err = parseRange(value)
	case "entered":
		var at time.Duration
		at, err = time.ParseDuration(value)
		h.entered = int64(at)
	case "state":
		if e.New = parseState(value); e.New == 0 {
			return fmt.Errorf("no such state")
		}
	case "ended":
		for e.Ended = event.Expired; e.Ended.String() != value; e.Ended++ {
			if e.Ended == event.Endings {
				return fmt.Errorf("no such end")
			}
		}
	case "bound":
		h.bound = true
	case "lingers":
		e.Lingers = true
	case "shutdown":
		e.Shutdown = true
	case "follows":
		e.ResultFollows = true
	case "started":
		e.Started = true
	case "older":
		h.known, h.began, h.visited = true, -1, event.StateSet(0).With(e.Old)
	case "full":
		h.known = false
	default:
		return fmt.Errorf("no such key")
	}
	return err
}

func writeMoment(b *strings.Builder, moment []record.Record) {
	first := &moment[0]
	for i := range moment {
		r := &moment[i]
		if i > 0 {
			b.WriteString("  ")
		}
		if i == 0 || r.Time != first.Time {
			fmt.Fprintf(b, "%v ", time.Duration(r.Time))
		}
		b.WriteString(r.Kind.String())
		if i == 0 || socketText(r) != socketText(first) {
			b.WriteString(socketText(r))
		}
		if i == 0 || r.State != first.State {
			b.WriteString(stateText(r.State))
		}
		b.WriteString(meaning(r) + "\n")
	}
}

func socketText(r *record.Record) string {
	text := fmt.Sprintf(" %d", r.Socket.Address)
	if r.Kind == record.PortPressure {
		text = "" // it is of no single socket
	}
	for _, end := range []netip.AddrPort{r.Socket.Tuple.Local, r.Socket.Tuple.Peer} {
		if end == (netip.AddrPort{}) {
			text += " -"
		} else {
			text += " " + end.String()
		}
	}
	if r.Socket.Owner.Known() {
		text += " " + r.Socket.Owner.Comm
	}
	return text + netnsText(r.Socket.NetNS)
}

func netnsText(netns event.NetNS) string {
	if netns == (event.NetNS{}) {
		return ""
	}
	return fmt.Sprintf(" netns=%d", netns.Inode)
}

func stateText(s record.StateFields) string {
	if s == (record.StateFields{}) {
		return ""
	}
	return fmt.Sprintf(" %v>%v", s.Old, s.New) + durationText(s.Duration)
}

// durationText leaves an unknown duration out.
func durationText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return " " + d.String()
}

// meaning tells the fields of a record's own kind.
func meaning(r *record.Record) string {
	var text string
	tsval, hasTSVal := r.Connect.TSVal, r.Connect.HasTSVal
	switch r.Kind {
	case record.Connect:
		text = " " + r.Connect.Outcome.String()
		if r.Connect.Errno != 0 {
			text += " " + unix.ErrnoName(r.Connect.Errno)
		}
		text += durationText(r.Connect.Duration)
		if r.Connect.Retransmits != 0 {
			text += fmt.Sprintf(" retransmits=%d", r.Connect.Retransmits)
		}
	case record.TimeWaitEnter:
		text = fmt.Sprintf(" same_destination=%d", r.TimeWait.SameDestination)
	case record.TimeWaitEnd:
		text = " " + r.TimeWait.Ended.String() + durationText(r.TimeWait.Duration)
		if !r.TimeWait.Exact {
			text += " inexact"
		}
	case record.PortReuse:
		text = reuseText(r.Reuse)
	case record.Accept:
		text = durationText(r.Accept.Duration)
	case record.Close:
		text = fmt.Sprintf(" %v%s sent=%d received=%d", r.Close.By, durationText(r.Close.Duration), r.Close.BytesSent, r.Close.BytesReceived)
		tsval, hasTSVal = r.Close.TSValLast, r.Close.HasTSValLast
	case record.SynRetransmit:
		text = fmt.Sprintf(" syn-ack=%v attempt=%d", r.SYN.SynAck, r.SYN.Attempt)
	case record.Reset:
		text = fmt.Sprintf(" received=%v", r.Reset.Received)
		if r.Reset.Reason != "" {
			text += " " + r.Reset.Reason
		}
	}
	if r.Ports != nil {
		text += portsText(r.Ports)
	}
	if hasTSVal {
		text += fmt.Sprintf(" tsval=%d", tsval)
	}
	return text
}

// reuseText tells a reuse: what was used before, how it is used again, how long
// after, whose it was, from when to when, and how it ended.
func reuseText(r *record.ReuseFields) string {
	text := fmt.Sprintf(" %v %v", r.Scope, r.How)
	if r.After != 0 {
		text += " " + r.After.String() + " after"
	} else {
		text += " of"
	}
	for _, t := range []int64{r.Previous.Time, r.Previous.Ended} {
		if t == 0 {
			text += " ?"
		} else {
			text += " " + time.Duration(t).String()
		}
	}
	if end := r.Previous.End.String(); end != "" {
		text += " " + end
	}
	if r.Previous.Owner.Known() {
		text += " " + r.Previous.Owner.Comm
	}
	if r.Previous.Local.IsValid() {
		text += " " + r.Previous.Local.String()
	}
	return text + netnsText(r.Previous.NetNS)
}

func portsText(p *record.PortsFields) string {
	text := fmt.Sprintf(" in_use=%d time_wait=%d of %d (%d-%d)", p.InUse, p.TimeWait, p.Usable, p.Range.Low, p.Range.High)
	if p.Reserved >= 0 {
		text += fmt.Sprintf(" reserved=%d", p.Reserved)
	}
	if p.Exhausts {
		text += " exhausted_in=" + p.ExhaustedIn.String()
	}
	if p.Holder != nil {
		text += fmt.Sprintf(" holder=%d", p.Holder.Port)
		if p.Holder.Owner.Known() {
			text += " " + p.Holder.Owner.Comm
		}
		if p.Holder.EndsIn != 0 {
			text += " ends_in=" + p.Holder.EndsIn.String()
		}
	}
	return text
}
