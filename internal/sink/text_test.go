package sink

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/rendertest"
)

// start is 2026-11-23T04:00:00.123456789Z.
const start = 1795406400_123456789

func socket(local, peer string, pid uint32, comm string) event.Socket {
	s := event.Socket{Owner: event.Owner{PID: pid, Comm: comm}}
	if local != "" {
		s.Tuple.Local = netip.MustParseAddrPort(local)
	}
	if peer != "" {
		s.Tuple.Peer = netip.MustParseAddrPort(peer)
	}
	return s
}

// moments are what a tail shows in an eventful hour.
func moments() (moments [][]record.Record) {
	add := func(records ...record.Record) {
		for i := range records {
			records[i].Time = start + int64(len(moments))*1001*int64(time.Millisecond)
		}
		moments = append(moments, records)
	}
	state := func(s event.Socket, old, new event.State, in time.Duration) record.Record {
		return record.Record{Kind: record.State, Socket: s, State: record.StateFields{Old: old, New: new, Duration: in}}
	}
	// and makes the moment of a state change and what it meant.
	and := func(state, meaning record.Record) {
		meaning.Socket, meaning.State = state.Socket, state.State
		add(state, meaning)
	}
	connect := func(c record.ConnectFields) record.Record {
		return record.Record{Kind: record.Connect, Connect: c}
	}
	closed := func(c record.CloseFields) record.Record {
		return record.Record{Kind: record.Close, Close: c}
	}

	add(record.Record{Kind: record.Meta, Meta: &record.MetaFields{}})
	listener := socket("0.0.0.0:8080", "", 812, "nginx")
	add(state(listener, event.Close, event.Listen, 0))

	curl := socket("10.244.1.7:41988", "20.1.2.3:443", 4711, "curl")
	unbound := curl
	unbound.Tuple.Local = netip.MustParseAddrPort("0.0.0.0:0")
	add(state(unbound, event.Close, event.SynSent, 0))
	and(state(curl, event.SynSent, event.Established, 402*time.Microsecond),
		connect(record.ConnectFields{Outcome: record.Established, Duration: 402 * time.Microsecond}))
	add(state(curl, event.Established, event.FinWait1, 1204500*time.Microsecond))
	add(state(curl, event.FinWait1, event.FinWait2, 31*time.Microsecond))
	and(state(curl, event.FinWait2, event.Close, 9*time.Microsecond),
		closed(record.CloseFields{By: record.ByLocal, Duration: 1204540 * time.Microsecond, BytesSent: 73, BytesReceived: 1234}))

	served := socket("10.224.0.103:8080", "10.224.0.104:52774", 0, "")
	and(state(served, event.SynRecv, event.Established, 0),
		record.Record{Kind: record.Accept, Accept: record.AcceptFields{Duration: 187 * time.Microsecond}})
	served.Owner = listener.Owner
	add(state(served, event.Established, event.CloseWait, 61*time.Second))
	add(state(served, event.CloseWait, event.LastAck, 70500*time.Microsecond))
	and(state(served, event.LastAck, event.Close, 45*time.Microsecond),
		closed(record.CloseFields{By: record.ByPeer, Duration: 61 * time.Second, BytesSent: 98_765_432, BytesReceived: 999}))

	proxy := socket("192.168.100.201:41990", "192.168.100.202:15001", 4194304, "kube-controller")
	and(state(proxy, event.SynSent, event.Close, 100*time.Microsecond),
		connect(record.ConnectFields{Outcome: record.Refused, Errno: unix.ECONNREFUSED, Duration: 100 * time.Microsecond}))
	add(state(proxy, event.Established, event.CloseWait, time.Second))

	java := socket("10.244.1.7:50000", "52.168.117.174:443", 90210, "java")
	syn := func(attempt uint32) record.Record {
		return record.Record{Kind: record.SynRetransmit, Socket: java, SYN: record.SYNFields{Attempt: attempt}}
	}
	add(syn(1))
	add(syn(2))
	and(state(java, event.SynSent, event.Established, 3104*time.Millisecond),
		connect(record.ConnectFields{Outcome: record.Established, Duration: 3104 * time.Millisecond, Retransmits: 2}))
	add(record.Record{Kind: record.Reset, Socket: java, Reset: record.ResetFields{Received: true}})
	and(state(java, event.Established, event.Close, 5*time.Second),
		closed(record.CloseFields{By: record.ByResetReceived, Duration: 5 * time.Second, BytesSent: 517}))
	and(state(java, event.SynSent, event.Close, 127*time.Second),
		connect(record.ConnectFields{Outcome: record.TimedOut, Errno: unix.ETIMEDOUT, Duration: 127 * time.Second, Retransmits: 6}))
	and(state(java, event.SynSent, event.Close, 1500*time.Millisecond),
		connect(record.ConnectFields{Outcome: record.Abandoned, Duration: 1500 * time.Millisecond, Retransmits: 1}))

	curl.Tuple.Local = unbound.Tuple.Local
	and(state(curl, event.SynSent, event.Close, 0),
		connect(record.ConnectFields{Outcome: record.NoLocalPort, Errno: unix.EADDRNOTAVAIL}))
	direct := connect(record.ConnectFields{Outcome: record.Unreachable, Errno: unix.ENETUNREACH})
	direct.Socket = curl
	add(direct)
	direct.Connect = record.ConnectFields{Outcome: record.Denied, Errno: unix.EPERM}
	add(direct)
	direct.Connect = record.ConnectFields{Outcome: record.Failed, Errno: 524}
	add(direct)

	v6 := socket("[2001:db8:1:2::7]:41988", "[2001:db8:ffff:ffff:1234:5678:9abc:def0]:443", 4712, "curl")
	and(state(v6, event.SynSent, event.Established, 12345*time.Microsecond),
		connect(record.ConnectFields{Outcome: record.Established, Duration: 12345 * time.Microsecond}))
	add(record.Record{Kind: record.SynRetransmit, Socket: served, SYN: record.SYNFields{SynAck: true, Attempt: 1}})
	add(record.Record{Kind: record.Reset, Socket: served, Reset: record.ResetFields{Reason: "NO_SOCKET"}})

	for _, comm := range []string{"日本語-worker", "\x1b[2J\x1b[31mevil", "a\nb\xff\u202e\tc"} {
		add(state(socket("10.244.1.7:41992", "20.1.2.3:443", 66, comm), event.Close, event.SynSent, 0))
	}
	add(record.Record{Kind: record.Lost, Lost: record.LostFields{Count: 12, Since: start, Where: record.InKernel}})
	add(record.Record{Kind: record.Lost, Lost: record.LostFields{Count: 1, Since: start, Where: record.InOutput}})
	add(record.Record{Kind: record.Lost, Lost: record.LostFields{Count: 1708, Since: start, Where: record.InKernel, Kinds: &[record.Kinds]uint64{record.State: 1500, record.Close: 208}}})

	and(state(curl, event.LastAck, event.Close, 26*time.Hour),
		closed(record.CloseFields{By: record.ByTimeout, Duration: 26 * time.Hour, BytesSent: 1 << 60}))
	and(state(curl, event.Closing, event.Close, 0), closed(record.CloseFields{By: record.ByBoth}))
	return append(moments, portMoments()...)
}

// portMoments are about TIME_WAITs and local ports.
func portMoments() (moments [][]record.Record) {
	add := func(records ...record.Record) {
		for i := range records {
			records[i].Time = start + int64(60+len(moments))*1001*int64(time.Millisecond)
		}
		moments = append(moments, records)
	}
	const second = time.Second
	curl := socket("10.244.1.7:32768", "20.1.2.3:443", 4711, "curl")
	later := socket("10.244.1.7:32768", "20.1.2.3:443", 4715, "python3")
	portless := later
	portless.Tuple.Local = netip.MustParseAddrPort("10.244.1.7:0")
	v6 := socket("[2001:db8:1:2::7]:41988", "[2001:db8:ffff:ffff:1234:5678:9abc:def0]:443", 4712, "curl")
	busy := socket("192.168.100.201:41990", "192.168.100.202:15001", 4194304, "kube-controller")
	nobody := socket("10.244.1.7:32770", "20.1.2.3:443", 0, "")
	served := socket("10.224.0.103:8080", "10.224.0.104:52774", 812, "nginx")

	// From beginning to end.
	wait := func(s event.Socket, old event.State, in time.Duration, n uint32) {
		add(record.Record{Kind: record.TimeWaitEnter, Socket: s,
			State: record.StateFields{Old: old, New: event.TimeWait, Duration: in}, TimeWait: record.TimeWaitFields{SameDestination: n}})
	}
	wait(curl, event.FinWait2, 28*time.Microsecond, 1)
	wait(curl, event.FinWait2, 28*time.Microsecond, 2)
	wait(busy, event.Closing, 0, 28231)
	wait(v6, event.FinWait2, 12*second, 0)
	end := func(s event.Socket, ended event.Ended, after time.Duration) {
		add(record.Record{Kind: record.TimeWaitEnd, Socket: s,
			State:    record.StateFields{Old: event.TimeWait, New: event.Close, Duration: after},
			TimeWait: record.TimeWaitFields{Ended: ended, Duration: after, Exact: after > 0}})
	}
	end(curl, event.Expired, 61379*time.Millisecond)
	end(nobody, event.Expired, 0)
	end(v6, event.Expired, 60*second)
	end(curl, event.Reused, 2124*time.Millisecond)
	end(served, event.SynAccepted, 12345*time.Millisecond)
	end(served, event.TimeWaitReset, 700*time.Millisecond)
	end(busy, event.Killed, 3*second)
	end(curl, event.EndedUnknown, 9*second)

	// A connection's ports were used before.
	by := func(s event.Socket) record.PreviousUse {
		return record.PreviousUse{Owner: s.Owner, NetNS: event.NetNS{Inode: 4026532785}, End: record.UseEnd{Close: record.ByLocal}}
	}
	reuse := func(s event.Socket, fields record.ReuseFields) record.Record {
		return record.Record{Kind: record.PortReuse, Socket: s, Reuse: &fields}
	}
	connected := func(s event.Socket, in time.Duration) (state, connect record.Record) {
		state = record.Record{Kind: record.State, Socket: s, State: record.StateFields{Old: event.SynSent, New: event.Established, Duration: in}}
		connect = state
		connect.Kind = record.Connect
		connect.Connect = record.ConnectFields{Outcome: record.Established, Duration: in}
		return state, connect
	}
	again := func(s event.Socket, fields record.ReuseFields) {
		state, connect := connected(s, 106*time.Microsecond)
		add(state, connect, reuse(s, fields))
	}
	taken := record.ReuseFields{Scope: record.ScopeTuple, How: record.TimeWaitReuse, After: 2124 * time.Millisecond, Previous: by(curl)}
	again(later, taken)
	over := record.ReuseFields{Scope: record.ScopeTuple, How: record.AfterTimeWait, After: 61400 * time.Millisecond, Previous: by(curl)}
	over.Previous.End = record.UseEnd{TimeWait: event.Expired}
	again(curl, over)
	again(later, record.ReuseFields{Scope: record.ScopeTuple, How: record.AfterClose, After: 153 * time.Millisecond, Previous: by(curl)})
	again(later, record.ReuseFields{Scope: record.ScopeTuple, How: record.ExplicitBind, Previous: by(nobody)})
	again(v6, record.ReuseFields{Scope: record.ScopeTuple, How: record.TimeWaitReuse, After: second, Previous: by(busy)})
	again(busy, record.ReuseFields{Scope: record.ScopeTuple, How: record.TimeWaitReuse, After: 1004 * time.Millisecond, Previous: by(busy)})
	moved := record.ReuseFields{Scope: record.ScopeTuple, How: record.OtherNetNS, After: 7 * second, Previous: by(curl)}
	again(later, moved)
	moved.Previous.NetNS = event.NetNS{}
	again(curl, moved)
	port := record.ReuseFields{Scope: record.ScopePort, How: record.AfterTimeWait, After: 1700 * time.Millisecond, Previous: by(curl)}
	port.Previous.Local = netip.MustParseAddr("10.244.1.9")
	again(later, port)
	port.How, port.Previous.Owner.Comm = record.ExplicitBind, ""
	again(later, port)
	accepted := record.Record{Kind: record.Accept, Socket: served,
		State: record.StateFields{Old: event.SynRecv, New: event.Established, Duration: 14 * time.Microsecond}, Accept: record.AcceptFields{Duration: 187 * time.Microsecond}}
	add(accepted, reuse(served, record.ReuseFields{Scope: record.ScopeTuple, How: record.AfterSynAccepted, After: 12345 * time.Millisecond, Previous: by(served)}))

	// A filter wants only some of the lines.
	state, _ := connected(later, 106*time.Microsecond)
	add(state, reuse(later, taken))
	add(reuse(later, taken))
	add(reuse(later, port))

	// A connect that failed has it beneath.
	timedOut := record.Record{Kind: record.Connect, Socket: later,
		State:   record.StateFields{Old: event.SynSent, New: event.Close, Duration: 127 * second},
		Connect: record.ConnectFields{Outcome: record.TimedOut, Errno: unix.ETIMEDOUT, Duration: 127 * second, Retransmits: 6}}
	add(timedOut, reuse(later, taken))
	add(timedOut, reuse(later, port))

	// No port was left.
	none := func(ports record.PortsFields) {
		ports.InUse = ports.Usable
		add(record.Record{Kind: record.Connect, Socket: portless, Ports: &ports,
			State:   record.StateFields{Old: event.SynSent, New: event.Close, Duration: 99 * time.Microsecond},
			Connect: record.ConnectFields{Outcome: record.NoLocalPort, Errno: unix.EADDRNOTAVAIL, Duration: 99 * time.Microsecond}})
	}
	none(record.PortsFields{TimeWait: 1, Usable: 1, Holder: &record.PortHolder{Port: 32768, Owner: curl.Owner, EndsIn: 58570 * time.Millisecond}})
	none(record.PortsFields{TimeWait: 28231, Usable: 28232, Holder: &record.PortHolder{Port: 32768, Owner: busy.Owner, EndsIn: 1}})
	none(record.PortsFields{TimeWait: 3, Usable: 4, Holder: &record.PortHolder{Port: 60999}})
	none(record.PortsFields{Usable: 28232})
	for _, comm := range []string{"日本語-worker", "\x1b[2J\x1b[31mevil", "a\nb\xff\u202e\tc", strings.Repeat("long", 99)} {
		none(record.PortsFields{TimeWait: 1, Usable: 1, Holder: &record.PortHolder{Port: 32768, Owner: event.Owner{PID: 66, Comm: comm}, EndsIn: 59800 * time.Millisecond}})
		evil := taken
		evil.Previous.Owner = event.Owner{PID: 66, Comm: comm}
		again(later, evil)
	}

	// Ports run out, and come back.
	pressure := func(s event.Socket, ports record.PortsFields) {
		s.Owner, s.Tuple.Local = event.Owner{}, netip.AddrPortFrom(s.Tuple.Local.Addr(), 0)
		add(record.Record{Kind: record.PortPressure, Socket: s, Ports: &ports})
	}
	pressure(curl, record.PortsFields{InUse: 14116, TimeWait: 13900, Usable: 28232, ExhaustedIn: 6 * time.Hour, Exhausts: true})
	pressure(curl, record.PortsFields{InUse: 22586, TimeWait: 20000, Usable: 28232, ExhaustedIn: 14200 * time.Millisecond, Exhausts: true})
	pressure(v6, record.PortsFields{InUse: 28231, TimeWait: 28000, Usable: 28232})
	pressure(curl, record.PortsFields{InUse: 28232, TimeWait: 28232, Usable: 28232, Exhausts: true})
	pressure(curl, record.PortsFields{InUse: 12704, TimeWait: 12, Usable: 28232, ExhaustedIn: time.Hour, Exhausts: true})
	pressure(busy, record.PortsFields{InUse: 1, Usable: 1, Exhausts: true})
	pressure(busy, record.PortsFields{Usable: 1})
	return moments
}

var summaries = []record.SummaryFields{
	{
		Duration: 90 * time.Second,
		Events:   [record.Kinds]uint64{record.Meta: 1, record.State: 400, record.Connect: 47, record.SynRetransmit: 9, record.Lost: 2},
		Connects: [record.Outcomes]uint64{record.Established: 40, record.TimedOut: 5, record.NoLocalPort: 2},
	},
	{Duration: 3 * time.Second, LostKernel: 12, LostOutput: 1},
	{
		Duration: 26 * time.Hour,
		Events: [record.Kinds]uint64{
			record.Meta: 1, record.State: 68000, record.Connect: 10000, record.Accept: 6000, record.Close: 12000,
			record.TimeWaitEnter: 6001, record.TimeWaitEnd: 5999, record.PortReuse: 300, record.SynRetransmit: 4, record.Reset: 1, record.PortPressure: 5,
		},
		Connects: [record.Outcomes]uint64{
			record.Established: 9000, record.Refused: 100, record.TimedOut: 200, record.Unreachable: 1, record.NoLocalPort: 698, record.Abandoned: 1,
		},
	},
	{Duration: 12 * time.Minute, LostOutput: 3},
}

func TestTextGolden(t *testing.T) {
	// No daylight saving, and not UTC.
	zone := time.FixedZone("IST", (5*60+30)*60)
	for name, options := range map[string]TextOptions{
		"0":         {},
		"80":        {Width: 80},
		"100":       {Width: 100},
		"120":       {Width: 120},
		"160":       {Width: 160},
		"80-time":   {Width: 80, Timestamps: true},
		"120-color": {Width: 120, Color: true},
		"0-color":   {Color: true, Timestamps: true},
		"133-time":  {Width: 133, Timestamps: true},
	} {
		t.Run(name, func(t *testing.T) {
			options.Location = zone
			text := NewText(options)
			got := text.AppendHeader(nil)
			for _, moment := range moments() {
				got = text.AppendMoment(got, moment)
			}
			for line := range bytes.Lines(got) {
				if !options.Color && options.Width > 0 && columns(line) > options.Width {
					t.Errorf("%d columns: %s", columns(line), line)
				}
			}
			for _, s := range summaries {
				got = text.AppendSummary(got, &record.Record{Kind: record.Summary, Summary: &s})
			}

			checkGolden(t, fmt.Sprintf("testdata/tail-%s.txt", name), got)
		})
	}
}

func checkGolden(t *testing.T, golden string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", golden, diff)
	}
}

// columns returns how many columns a line of the samples takes.
func columns(line []byte) (n int) {
	for _, r := range strings.TrimSuffix(string(line), "\n") {
		if n++; unicode.In(r, unicode.Han) {
			n++
		}
	}
	return n
}

// TestTextFiltered: where a filter has taken the state record away, the line
// is the same.
func TestTextFiltered(t *testing.T) {
	text := NewText(TextOptions{})
	for _, moment := range moments() {
		whole := text.AppendMoment(nil, moment)
		rest := moment
		if len(moment) > 1 && moment[0].Kind == record.State && moment[1].Kind != record.PortReuse {
			rest = moment[1:]
		}
		last := text.AppendMoment(nil, rest)
		if diff := cmp.Diff(string(whole), string(last)); diff != "" {
			t.Errorf("(-whole moment +without its state)\n%s", diff)
		}
	}
}

// TestTextPlain: colour is never the only sign.
func TestTextPlain(t *testing.T) {
	uncolored := NewText(TextOptions{Width: 100})
	colored := NewText(TextOptions{Width: 100, Color: true})
	for _, moment := range moments() {
		want := string(uncolored.AppendMoment(nil, moment))
		got := string(colored.AppendMoment(nil, moment))
		for _, color := range []string{bold, dim, red, green, yellow, boldYellow, plain} {
			got = strings.ReplaceAll(got, color, "")
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-uncolored +colored, without its colour)\n%s", diff)
		}
	}
}

// FuzzText: a process can call itself what it likes, and so can a container; the tail
// stays lines of harmless text, and no more of them.
func FuzzText(f *testing.F) {
	for _, name := range rendertest.Names {
		for kind := record.Meta; kind < record.Kinds; kind++ {
			f.Add(name, byte(kind), true, 80)
		}
	}
	whole := NewText(TextOptions{Containers: true, Location: time.UTC})
	f.Fuzz(func(t *testing.T, name string, kind byte, reused bool, width int) {
		named := func(name string) (moment []record.Record) {
			moment = append(moment, rendertest.Record(record.Meta+record.Kind(kind)%(record.Kinds-record.Meta), name))
			if reused {
				moment = append(moment, rendertest.Record(record.PortReuse, name))
			}
			return moment
		}
		lines := bytes.Count(whole.AppendMoment(nil, named("")), []byte("\n"))
		moment := named(name)
		if lines > 0 && moment[0].Kind != record.Lost && strings.TrimSpace(name) != "" {
			lines++ // the advice
		}
		got := whole.AppendMoment([]byte("before"), moment)
		rest, ok := bytes.CutPrefix(got, []byte("before"))
		if !ok {
			t.Fatalf("%q: what stood before is gone: %q", name, got)
		}
		if n := bytes.Count(rest, []byte("\n")); n != lines {
			t.Errorf("%q: %d lines, want %d: %q", name, n, lines, got)
		}
		narrow := NewText(TextOptions{Width: width, Timestamps: true, Containers: true, Location: time.UTC}).AppendMoment(nil, moment)
		for _, text := range [][]byte{rest, narrow} {
			rendertest.Check(t, string(text))
			if len(text) > 0 && text[len(text)-1] != '\n' {
				t.Errorf("%q: no line: %q", name, text)
			}
		}
		for line := range bytes.Lines(narrow) {
			if _, n := AppendName(nil, string(line[:len(line)-1]), math.MaxInt); width > 0 && n > width {
				t.Errorf("%q, %d columns: %d: %q", name, width, n, line)
			}
		}
		sentence := string(AppendSentence(nil, &moment[0]))
		if rendertest.Check(t, sentence); strings.Contains(sentence, "\n") {
			t.Errorf("%q: more than a line: %q", name, sentence)
		}
		if moment[0].Kind == record.Summary {
			rendertest.Check(t, string(whole.AppendSummary(nil, &moment[0])))
		}
	})
}

func TestTextAllocations(t *testing.T) {
	text := NewText(TextOptions{Width: 120, Color: true, Timestamps: true})
	b := make([]byte, 0, 4096)
	for _, moment := range moments() {
		if n := testing.AllocsPerRun(100, func() { b = text.AppendMoment(b[:0], moment) }); n != 0 {
			t.Errorf("%v allocations for %s", n, b)
		}
	}
}

func BenchmarkText(b *testing.B) {
	text := NewText(TextOptions{Width: 120, Color: true, Timestamps: true})
	benchmarked := make(map[string]bool)
	for _, moment := range moments() {
		// One of each kind, and of a connect also one with a line beneath.
		last := &moment[len(moment)-1]
		name := last.Kind.String()
		if last.Kind == record.Connect && last.Ports != nil {
			name += " without a port"
		}
		if last.Kind == record.Meta || benchmarked[name] {
			continue
		}
		benchmarked[name] = true
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var line []byte
			for b.Loop() {
				line = text.AppendMoment(line[:0], moment)
			}
		})
	}
}

// TestTextWords: every outcome, every end of a connection or a TIME_WAIT and every
// reuse has its words.
func TestTextWords(t *testing.T) {
	for outcome := record.Established; outcome < record.Outcomes; outcome++ {
		if connectWords[outcome] == "" {
			t.Errorf("no words for a connect that is %s", outcome)
		}
	}
	for by := record.ByLocal; by.String() != "invalid"; by++ {
		if int(by) >= len(closeWords) || closeWords[by] == "" {
			t.Errorf("no words for a close by %s", by)
		}
	}
	for ended := event.Expired; ended < event.Endings; ended++ {
		if endedWords[ended] == "" {
			t.Errorf("no words for a TIME_WAIT that ended by %s", ended)
		}
	}
	for how := record.TimeWaitReuse; how.String() != "invalid"; how++ {
		if int(how) >= len(reuseWords) || reuseWords[how] == "" {
			t.Errorf("no words for a reuse by %s", how)
		}
	}
}

// TestTextVerdict: a cause stands in full beneath what it explains, in as many lines as
// it takes; packets that were dropped say why and where.
func TestTextVerdict(t *testing.T) {
	curl := socket("10.244.1.7:41988", "20.1.2.3:443", 4711, "curl")
	curl.NetNS.Inode = 10
	silent := &record.VerdictFields{
		ID: "syn_unanswered", Confidence: record.Likely, Advice: "do other ports or hosts answer this pod?",
		Text: "nothing came back, and this machine dropped nothing of it: the packets were lost beyond it, or the peer keeps silent",
	}
	gaveUp := &record.VerdictFields{ID: "app_gave_up", Confidence: record.Certain, Text: "the program closed the socket after 1.5 s, before there was an answer", Inner: silent}
	drop := record.Record{Kind: record.Drop, Socket: curl, Drop: record.DropFields{
		Packet: event.SYN, Reason: "NETFILTER_DROP", Location: "nft_do_chain", NetNS: event.NetNS{Inode: 10},
	}}
	elsewhere := drop
	elsewhere.Drop.Reason, elsewhere.Drop.NetNS.Inode = "", 12
	var got []byte
	text := NewText(TextOptions{Width: 80})
	for _, moment := range [][]record.Record{
		{{
			Kind: record.Connect, Socket: curl, State: record.StateFields{Old: event.SynSent, New: event.Close, Duration: 1500 * time.Millisecond},
			Connect: record.ConnectFields{Outcome: record.Abandoned, Duration: 1500 * time.Millisecond, Retransmits: 1}, Verdict: gaveUp,
		}},
		{drop},
		{elsewhere},
		{{Kind: record.Counters, Socket: curl, Counters: &record.CountersFields{}}},
		{{Kind: record.Verdict, Socket: event.Socket{NetNS: event.NetNS{Inode: 10}}, Verdict: &record.VerdictFields{ID: "tw_overflow", Confidence: record.Certain, Text: "no room", Advice: "more"}}},
	} {
		got = text.AppendMoment(got, moment)
	}
	want := `
 4711 curl     10.244.1.7:41988 20.1.2.3:443    SYN_SENT -> CLOSE  abandoned by>
      why app_gave_up (certain): the program closed the socket after 1.5 s,
          before there was an answer
      why syn_unanswered (likely): nothing came back, and this machine dropped
          nothing of it: the packets were lost beyond it, or the peer keeps
          silent
      do  do other ports or hosts answer this pod?
 4711 curl     10.244.1.7:41988 20.1.2.3:443    SYN dropped  NETFILTER_DROP in >
 4711 curl     10.244.1.7:41988 20.1.2.3:443    SYN dropped  in nft_do_chain, n>
    - -        -                -               netns 10
      why tw_overflow (certain): no room
      do  more
`
	if diff := cmp.Diff(strings.TrimPrefix(want, "\n"), string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestTextContainers: the container stands behind the process, as short as tells it
// from its neighbours, in every width.
func TestTextContainers(t *testing.T) {
	const id = "2f0c9f1d00000000000000000000000000000000000000000000000000000001"
	pod := event.Cgroup{Container: id, Name: "a", Pod: "api-7c9f6b5d8-x2x1z", Namespace: "shop", PodUID: "0c1f6b1e-8a3e-4a41-9d55-7f0a7f0f7a11"}
	in := func(c *event.Cgroup) event.Socket {
		s := socket("10.244.1.7:41988", "20.1.2.3:443", 4711, "curl")
		s.Owner.In = c
		return s
	}
	change := record.StateFields{Old: event.Close, New: event.SynSent}
	moments := []record.Record{
		{Kind: record.State, Socket: in(nil), State: change},
		{Kind: record.State, Socket: in(&event.Cgroup{Path: "/system.slice/ssh.service"}), State: change},
		{Kind: record.State, Socket: in(&pod), State: change},
		{Kind: record.State, Socket: in(&event.Cgroup{Container: id, Name: "web"}), State: change},
		{Kind: record.State, Socket: in(&event.Cgroup{Container: id, PodUID: pod.PodUID}), State: change},
		{Kind: record.State, Socket: in(&event.Cgroup{Container: id, Name: "\x1b[2Jevil"}), State: change},
		{Kind: record.Connect, Socket: in(&event.Cgroup{Container: id, Name: "b", Pod: pod.Pod, Namespace: "shop"}),
			State:   record.StateFields{Old: event.SynSent, New: event.Close},
			Connect: record.ConnectFields{Outcome: record.NoLocalPort, Errno: unix.EADDRNOTAVAIL},
			Ports: &record.PortsFields{InUse: 1, TimeWait: 1, Usable: 1, Holder: &record.PortHolder{
				Port: 32768, Owner: in(&pod).Owner, EndsIn: 58 * time.Second}}},
	}
	var got []byte
	for _, width := range []int{80, 120, 0} {
		text := NewText(TextOptions{Width: width, Containers: true})
		got = text.AppendHeader(got)
		for i := range moments {
			got = text.AppendMoment(got, moments[i:i+1])
		}
		got = append(got, '\n')
	}
	checkGolden(t, "testdata/tail-containers.txt", got)
}
