package record

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/event"
)

var update = flag.Bool("update", false, "write the golden files anew")

// start is 2026-11-23T04:00:00.123456789Z.
const start = 1795406400_123456789

var (
	ipv4 = event.Socket{
		Cookie: 4123,
		NetNS:  event.NetNS{Inode: 4026532785, Cookie: 4098},
		Tuple: event.Tuple{
			Local: netip.MustParseAddrPort("10.244.1.7:41988"),
			Peer:  netip.MustParseAddrPort("20.1.2.3:443"),
		},
		Owner: event.Owner{PID: 4711, TID: 4712, UID: 1000, Comm: "curl", Cgroup: 9123},
	}
	ipv6 = event.Socket{
		Cookie: 1<<64 - 1,
		NetNS:  event.NetNS{Inode: 1<<32 - 1, Cookie: 1<<64 - 1},
		Tuple: event.Tuple{
			Local: netip.MustParseAddrPort("[2001:db8::7]:41988"),
			Peer:  netip.MustParseAddrPort("[2001:db8:2::3]:443"),
		},
		Owner: event.Owner{PID: 1<<32 - 1, UID: 1<<32 - 1, Comm: "nginx", Cgroup: 1<<64 - 1},
	}
	listener = event.Socket{
		Cookie: 77,
		NetNS:  event.NetNS{Inode: 4026532785},
		Tuple:  event.Tuple{Local: netip.MustParseAddrPort("[::]:8080")},
		Owner:  event.Owner{PID: 1, Comm: "nginx"},
	}
	noOwner = event.Socket{Tuple: ipv4.Tuple}
	noPort  = event.Socket{
		Cookie: 5,
		Tuple: event.Tuple{
			Local: netip.MustParseAddrPort("0.0.0.0:0"),
			Peer:  netip.MustParseAddrPort("20.1.2.3:443"),
		},
		Owner: event.Owner{PID: 4711, UID: 1000},
	}
	established = StateFields{Old: event.SynSent, New: event.Established, Duration: 152344}
)

func ownedBy(comm string) event.Socket {
	s := ipv4
	s.Owner.Comm = comm
	return s
}

// inCgroup is ipv4, whose owner is in a control group.
func inCgroup(in event.Cgroup) event.Socket {
	s := ipv4
	s.Owner.In = &in
	return s
}

// inPod is a container of a pod whose names are known.
var inPod = event.Cgroup{
	Path:      "/kubepods.slice/kubepods-pod0c1f6b1e_8a3e_4a41_9d55_7f0a7f0f7a11.slice/cri-containerd-" + containerID + ".scope",
	Container: containerID, Runtime: "containerd", PodUID: "0c1f6b1e-8a3e-4a41-9d55-7f0a7f0f7a11",
	Name: "b", Pod: "api-x", Namespace: "shop", Node: "aks-nodepool1-0",
}

const containerID = "2f0c9f1d00000000000000000000000000000000000000000000000000000001"

// samples are lines of every kind, in every shape that they come in.
func samples() []Record {
	samples := []Record{
		{Kind: Meta, Meta: &MetaFields{
			Version: "0.1.0", Kernel: "6.8.0-1018-azure", Arch: "amd64",
			BootID: "f2f3c0de-0000-4000-8000-000000000001", Node: "aks-nodepool1-0", Started: start, TSOffsetMode: "per_connection",
			Probes: []Probe{
				{Name: "inet_sock_set_state", Attached: true, Via: "tp_btf"},
				{Name: "tcp_v4_connect", WhyNot: "fexit: operation not permitted"},
			},
			BlindSpots: []string{"a connect that fails before its SYN leaves"},
			Filters:    []string{"-p 4711", `--comm "curl"`},
		}},
		{Kind: Meta, Meta: &MetaFields{}},
		{Kind: NetNS, Socket: event.Socket{NetNS: event.NetNS{Inode: 4026532785, Cookie: 4098}}, Sysctls: &event.Sysctls{
			Ports:    event.PortRange{Low: 32768, High: 60999},
			Reserved: []event.PortRange{{Low: 33000, High: 33000}, {Low: 40000, High: 40099}},
			Numbers:  [...]int64{2, 1000, 1, 60, 262144, 6, 4},
		}},
		{Kind: NetNS, Socket: event.Socket{NetNS: event.NetNS{Inode: 4026532785}}, Sysctls: &event.Sysctls{
			Ports:   event.PortRange{Low: 32768, High: 32768},
			Numbers: [...]int64{0, -1, 0, 1, 0, 127, -1},
		}},

		{Kind: State, Socket: ipv4, State: established},
		{Kind: State, Socket: ipv6, State: StateFields{Old: event.FinWait2, New: event.Close, Duration: time.Millisecond}},
		{Kind: State, Socket: listener, State: StateFields{Old: event.Close, New: event.Listen}},
		{Kind: State, Socket: noOwner, State: StateFields{Old: event.Close, New: event.SynSent}},
		{Kind: State, Socket: noPort, State: StateFields{Old: event.NewSynRecv, New: event.Close, Duration: 1<<63 - 1}},
		{Kind: State, Socket: ipv4, State: StateFields{Old: event.LastAck, New: event.Close, Duration: 1}},
		{Kind: State, Socket: ipv4, State: StateFields{Old: event.LastAck, New: event.Close, Duration: 61 * time.Second}},
		{Kind: State, Socket: ownedBy("\"\\/<&>\x00\x1b[31m\n\t\x7f"), State: established},
		{Kind: State, Socket: ownedBy("日本\u2028é\xff\xfe\xe6\x97"), State: established},
		{Kind: State, Socket: inCgroup(inPod), State: established},
		{Kind: State, Socket: inCgroup(event.Cgroup{Path: "/system.slice/ssh.service"}), State: established},
		{Kind: State, Socket: inCgroup(event.Cgroup{Path: "/docker/" + containerID, Container: containerID, Runtime: "docker", Name: "web"}), State: established},
		{Kind: State, Socket: inCgroup(event.Cgroup{Container: containerID, PodUID: inPod.PodUID}), State: established},
		{Kind: PortReuse, Socket: ipv4, Reuse: &ReuseFields{Scope: ScopeTuple, How: AfterClose, Previous: PreviousUse{Owner: inCgroup(inPod).Owner}}},
		{Kind: Connect, Socket: inCgroup(inPod), Connect: ConnectFields{Outcome: NoLocalPort, Errno: unix.EADDRNOTAVAIL}, Ports: &PortsFields{
			InUse: 1, TimeWait: 1, Usable: 1, Range: event.PortRange{Low: 1, High: 1}, Holder: &PortHolder{Port: 1, Owner: inCgroup(inPod).Owner}}},

		{Kind: Connect, Socket: ipv4, State: established, Connect: ConnectFields{
			Outcome: Established, Duration: 152344, TSVal: 1<<32 - 1, HasTSVal: true}},
		{Kind: Connect, Socket: ipv6, State: established, Connect: ConnectFields{
			Outcome: Established, Duration: 3*time.Second + 1, Retransmits: 2, HasTSVal: true}},
		{Kind: Connect, Socket: noPort, Connect: ConnectFields{Outcome: NoLocalPort, Errno: unix.EADDRNOTAVAIL}},
		{Kind: Connect, Socket: ipv4, Connect: ConnectFields{Outcome: Abandoned, Duration: 1500 * time.Millisecond, Retransmits: 1}},
		{Kind: Connect, Socket: noOwner, Connect: ConnectFields{Outcome: TimedOut, Errno: unix.ETIMEDOUT, Duration: 127 * time.Second, Retransmits: 6}},
		{Kind: Connect, Socket: ipv4, Connect: ConnectFields{Outcome: Failed, Errno: 524}},

		{Kind: Accept, Socket: ipv4, State: StateFields{Old: event.SynRecv, New: event.Established}, Accept: AcceptFields{Duration: 200 * time.Microsecond}},
		{Kind: Accept, Socket: ipv6},

		{Kind: Close, Socket: ipv4, Close: CloseFields{
			By: ByLocal, Duration: 1200 * time.Millisecond, BytesSent: 73, BytesReceived: 1<<64 - 1, TSValLast: 12, HasTSValLast: true}},

		{Kind: SynRetransmit, Socket: ipv4, SYN: SYNFields{Attempt: 1}},
		{Kind: SynRetransmit, Socket: ipv6, SYN: SYNFields{SynAck: true, Attempt: 2}},

		{Kind: Reset, Socket: ipv4, Reset: ResetFields{Reason: "NO_SOCKET"}},
		{Kind: Reset, Socket: noOwner, Reset: ResetFields{Received: true}},

		{Kind: Lost, Lost: LostFields{Count: 12, Since: start - 123456789, Where: InKernel}},
		{Kind: Lost, Lost: LostFields{Count: 1<<64 - 1, Since: 0, Where: InOutput}},
		{Kind: Lost, Lost: LostFields{Count: 1708, Since: start, Where: InKernel, Kinds: &[Kinds]uint64{State: 1500, Close: 200}}},

		{Kind: Summary, Summary: &SummaryFields{
			Duration:   90 * time.Second,
			Events:     [Kinds]uint64{Meta: 1, State: 400, Connect: 7, Lost: 1},
			Connects:   [Outcomes]uint64{Established: 5, TimedOut: 2},
			LostKernel: 12,
		}},
		{Kind: Summary, Summary: &SummaryFields{LostOutput: 3, Forgotten: 7, Verdicts: map[string]uint64{"refused": 2, "syn_unanswered": 1}}},
	}
	for _, failure := range []ConnectFields{
		{Outcome: Refused, Errno: unix.ECONNREFUSED},
		{Outcome: Unreachable, Errno: unix.EHOSTUNREACH},
		{Outcome: Denied, Errno: unix.EPERM},
		{Outcome: ConnectionReset, Errno: unix.ECONNRESET},
	} {
		failure.Duration = 70500
		samples = append(samples, Record{Kind: Connect, Socket: ipv4, Connect: failure})
	}
	for by := ByLocal; by <= ByTimeout; by++ {
		samples = append(samples, Record{Kind: Close, Socket: ipv4, Close: CloseFields{By: by}})
	}
	return slices.Concat(samples, portSamples(), verdictSamples())
}

// verdictSamples are lines about causes and what they rest on, in every shape.
func verdictSamples() []Record {
	netns := event.Socket{NetNS: ipv4.NetNS}
	silent := VerdictFields{
		ID: "syn_dropped_local", Confidence: Certain, Text: "the SYN was dropped", Advice: "nft list ruleset",
		Evidence: []Evidence{{Line: 13, Text: "1 SYN was sent again"}, {Text: "a fact without a line"}},
		RuledOut: []string{"syn_unanswered: this machine dropped packets of it"}, NotVisible: []string{"what happens beyond this machine"},
	}
	gaveUp := VerdictFields{ID: "app_gave_up", Confidence: Certain, Text: "the program closed the socket", Inner: &silent}
	possible := VerdictFields{ID: "cloud_snat_suspected", Confidence: Possible, Text: "silence"}
	return []Record{
		{Kind: Drop, Socket: ipv4, Drop: DropFields{Packet: event.SYN, Reason: "NETFILTER_DROP", Location: "nft_do_chain", NetNS: ipv4.NetNS}},
		{Kind: Drop, Socket: ipv6, Drop: DropFields{Packet: event.ACK, Location: "tcp_v6_rcv", NetNS: event.NetNS{Inode: 1}, Listener: true}},
		{Kind: Drop, Socket: noOwner, Drop: DropFields{Packet: event.SYNACK}},
		{Kind: Drop, Socket: noOwner, Drop: DropFields{Packet: event.RST, Reason: "IP_RPFILTER"}},
		{Kind: Counters, Socket: netns, Counters: &CountersFields{Interval: 3050 * time.Millisecond, Delta: map[string]uint64{"ListenOverflows": 3, "TCPTimeouts": 1<<64 - 1}}},
		{Kind: Counters, Socket: netns, Counters: &CountersFields{Delta: map[string]uint64{"nf_conntrack_insert_failed": 1}}},
		{Kind: Verdict, Socket: netns, Verdict: &VerdictFields{ID: "tw_overflow", Confidence: Certain, Text: "no room", Advice: "more", Evidence: []Evidence{{Line: 1, Text: "TCPTimeWaitOverflow"}}}},
		{Kind: Connect, Socket: ipv4, Connect: ConnectFields{Outcome: Abandoned, Duration: time.Second, Retransmits: 1}, Verdict: &gaveUp},
		{Kind: Connect, Socket: ipv4, Connect: ConnectFields{Outcome: TimedOut, Errno: unix.ETIMEDOUT, Duration: time.Second}, Verdict: &possible},
		{Kind: Close, Socket: ipv4, Close: CloseFields{By: ByResetReceived, Duration: time.Second}, Verdict: &silent},
	}
}

// portSamples are lines about TIME_WAITs and local ports, in every shape.
func portSamples() []Record {
	first, second := ipv4, ipv4
	first.Tuple.Local = netip.MustParseAddrPort("10.244.1.7:32768")
	second.Tuple.Local = first.Tuple.Local
	second.Cookie, second.Owner.PID, second.Owner.TID = 4124, 4715, 4715
	portless := second
	portless.Tuple.Local = netip.MustParseAddrPort("10.244.1.7:0")
	older := first
	older.Cookie, older.Owner = 0, event.Owner{}
	destination := event.Socket{NetNS: portless.NetNS, Tuple: portless.Tuple}
	destination6 := event.Socket{NetNS: ipv6.NetNS, Tuple: ipv6.Tuple}
	destination6.Tuple.Local = netip.AddrPortFrom(ipv6.Tuple.Local.Addr(), 0)

	entered := StateFields{Old: event.FinWait2, New: event.TimeWait, Duration: 28 * time.Microsecond}
	samples := []Record{
		{Kind: TimeWaitEnter, Socket: first, State: entered, TimeWait: TimeWaitFields{SameDestination: 1}},
		{Kind: TimeWaitEnter, Socket: ipv6, State: entered, TimeWait: TimeWaitFields{SameDestination: 1<<32 - 1}},
		{Kind: TimeWaitEnter, Socket: noOwner},
	}
	// How a TIME_WAIT ends.
	for ended := event.Expired; ended < event.Endings; ended++ {
		for _, r := range []Record{
			{Socket: first, TimeWait: TimeWaitFields{Duration: 60*time.Second + 379123456, Exact: true}},
			{Socket: older},
		} {
			r.Kind, r.TimeWait.Ended = TimeWaitEnd, ended
			r.State = StateFields{Old: event.TimeWait, New: event.Close, Duration: r.TimeWait.Duration}
			samples = append(samples, r)
		}
	}
	samples = append(samples,
		Record{Kind: TimeWaitEnd, Socket: ipv6, TimeWait: TimeWaitFields{Ended: event.Expired, Duration: 1, Exact: true}},
		Record{Kind: TimeWaitEnd, Socket: noOwner, TimeWait: TimeWaitFields{Ended: event.Expired}})

	// How ports come to be used again, and how their earlier use ended.
	const before = start - 2123594792
	reuse := func(s event.Socket, r ReuseFields) {
		samples = append(samples, Record{Kind: PortReuse, Socket: s, Reuse: &r})
	}
	by := func(s event.Socket) PreviousUse {
		return PreviousUse{Time: before - 10260490, Ended: before, Owner: s.Owner, NetNS: s.NetNS}
	}
	taken := ReuseFields{Scope: ScopeTuple, How: TimeWaitReuse, After: 2123594792, Previous: by(first)}
	taken.Previous.End.TimeWait = event.Reused
	for how := TimeWaitReuse; int(how) < len(reuseHowNames); how++ {
		taken.How = how
		reuse(second, taken)
	}
	again := taken
	for ended := event.Expired; ended < event.Endings; ended++ {
		again.How, again.Previous.End = AfterTimeWait, UseEnd{Outcome: Established, Close: ByLocal, TimeWait: ended}
		reuse(second, again)
	}
	for by := ByLocal; int(by) < len(closeByNames); by++ {
		again.How, again.Previous.End = AfterClose, UseEnd{Close: by}
		reuse(second, again)
	}
	for outcome := Refused; outcome < Outcomes; outcome++ {
		again.How, again.Previous.End = AfterClose, UseEnd{Outcome: outcome}
		reuse(second, again)
	}
	port := taken
	port.Scope, port.How, port.Previous = ScopePort, AfterTimeWait, by(first)
	port.Previous.Local = netip.MustParseAddr("10.244.1.9")
	port.Previous.End.Close = ByLocal
	reuse(second, port)
	port.After, port.Previous = 1, by(ipv6)
	port.Previous.Local = netip.MustParseAddr("2001:db8::8")
	reuse(ipv6, port)
	// Little is known of it, or nothing.
	reuse(noOwner, ReuseFields{Scope: ScopeTuple, How: TimeWaitReuse, Previous: PreviousUse{End: UseEnd{TimeWait: event.Reused}}})
	reuse(second, ReuseFields{Scope: ScopeTuple, How: AfterClose, After: time.Minute, Previous: PreviousUse{Ended: before, NetNS: event.NetNS{Inode: 1}}})
	reuse(ipv6, ReuseFields{Scope: ScopeTuple, How: ExplicitBind, Previous: PreviousUse{Owner: noPort.Owner}})
	reuse(second, ReuseFields{Scope: ScopeTuple, How: TimeWaitReuse})

	// No local port is left.
	all := event.PortRange{Low: 32768, High: 60999}
	none := func(s event.Socket, p PortsFields) {
		samples = append(samples, Record{Kind: Connect, Socket: s, Ports: &p,
			Connect: ConnectFields{Outcome: NoLocalPort, Errno: unix.EADDRNOTAVAIL, Duration: 99148}})
	}
	none(portless, PortsFields{InUse: 28231, TimeWait: 28230, Usable: 28231, Range: all, Reserved: 1, Exhausts: true,
		Holder: &PortHolder{Port: 32768, Owner: first.Owner, EndsIn: 58569754450}})
	none(portless, PortsFields{InUse: 1, TimeWait: 1, Usable: 1, Range: event.PortRange{Low: 1, High: 1}, Reserved: -1, Exhausts: true,
		Holder: &PortHolder{Port: 1, Owner: noPort.Owner}})
	none(destination6, PortsFields{InUse: 65535, TimeWait: 65535, Usable: 65535, Range: event.PortRange{Low: 1, High: 65535}, Exhausts: true,
		Holder: &PortHolder{Port: 65535, EndsIn: 1}})
	none(portless, PortsFields{InUse: 28232, Usable: 28232, Range: all, Exhausts: true})

	// Ports run out, and come back.
	for _, p := range []PortsFields{
		{InUse: 14116, TimeWait: 13900, Usable: 28232, Range: all, ExhaustedIn: 14200 * time.Millisecond, Exhausts: true},
		{InUse: 22586, TimeWait: 20000, Usable: 28232, Range: all, Reserved: -1, ExhaustedIn: 26 * time.Hour, Exhausts: true},
		{InUse: 26820, TimeWait: 26820, Usable: 28222, Range: all, Reserved: 10},
		{InUse: 28232, TimeWait: 28231, Usable: 28232, Range: all, Exhausts: true},
		{InUse: 12704, TimeWait: 12, Usable: 28232, Range: all},
		{Usable: 1, Range: event.PortRange{Low: 32768, High: 32768}},
	} {
		samples = append(samples, Record{Kind: PortPressure, Socket: destination, Ports: &p})
	}
	return append(samples, Record{Kind: PortPressure, Socket: destination6, Ports: &PortsFields{
		InUse: 1, TimeWait: 1, Usable: 2, Range: event.PortRange{Low: 65534, High: 65535}, ExhaustedIn: 100 * time.Millisecond, Exhausts: true}})
}

func appendSamples() []byte {
	var log []byte
	for i, r := range samples() {
		r.Time = start + int64(i)*int64(time.Millisecond)
		log = r.AppendJSON(log, uint64(i))
	}
	return log
}

func TestGolden(t *testing.T) {
	const golden = "testdata/lines.jsonl"
	got := appendSamples()
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
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// TestRoundTrip reads every line with encoding/json and finds all that the
// record held: nothing invented, nothing left out, nothing rounded.
func TestRoundTrip(t *testing.T) {
	for i, want := range samples() {
		want.Time = start + int64(i)
		b := want.AppendJSON(nil, uint64(i))
		got, seq := parse(t, b)
		if seq != uint64(i) {
			t.Errorf("%s: seq = %d, want %d", b, seq, i)
		}
		if want.Kind != State {
			want.State = StateFields{} // It is for the text tail.
		}
		want.Socket.Owner.Comm = string([]rune(want.Socket.Owner.Comm))
		if diff := cmp.Diff(want, got, compareAddresses, compareEnds, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s(-want +got):\n%s", b, diff)
		}
	}
}

var (
	compareAddresses = cmp.Options{
		cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
		cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	}
	// A line has one word for how an earlier use ended.
	compareEnds = cmp.Comparer(func(a, b UseEnd) bool { return a.String() == b.String() })
)

// verdict is what a reader finds of one.
type verdict struct {
	ID, Confidence, Text, Advice string
	Evidence                     []struct {
		Seq  *uint64
		Text string
	}
	RuledOut   []string `json:"ruled_out"`
	NotVisible []string `json:"not_visible"`
	Inner      *verdict
}

func (v *verdict) fields() *VerdictFields {
	if v == nil {
		return nil
	}
	f := &VerdictFields{
		ID: v.ID, Confidence: number[Confidence](v.Confidence), Text: v.Text, Advice: v.Advice,
		RuledOut: v.RuledOut, NotVisible: v.NotVisible, Inner: v.Inner.fields(),
	}
	for _, e := range v.Evidence {
		evidence := Evidence{Text: e.Text}
		if e.Seq != nil {
			evidence.Line = *e.Seq + 1
		}
		f.Evidence = append(f.Evidence, evidence)
	}
	return f
}

// parse makes the record again that a line was made from. It is what a reader
// would write who knows docs/event-log.md and not AppendJSON.
func parse(t *testing.T, b []byte) (r Record, seq uint64) {
	t.Helper()
	type end struct {
		Address netip.Addr
		Port    uint16
	}
	type netNS struct {
		NetNS       uint32
		NetNSCookie uint64 `json:"netns_cookie,string"`
	}
	type owner struct {
		Process struct {
			PID, TID, UID uint32
			Comm          string
		}
		Cgroup struct {
			ID   uint64 `json:",string"`
			Path string
		}
		Container struct{ ID, Name, Runtime string }
		K8s       struct {
			Node, Namespace, Container struct{ Name string }
			Pod                        struct{ Name, UID string }
		}
	}
	var line struct {
		Schema  string
		Time    time.Time
		Seq     uint64
		Event   string
		Network *struct {
			Type  string
			Local *end
			Peer  *end
		}
		netNS
		owner
		Socket struct {
			Cookie uint64 `json:",string"`
		}
		Meta *struct {
			Version, Kernel, Arch, Node string
			BootID                      string `json:"boot_id"`
			TSOffsetMode                string `json:"ts_offset_mode"`
			Started                     time.Time
			Probes                      []struct {
				Name     string
				Attached bool
				Via      string
				WhyNot   string `json:"why_not"`
			}
			BlindSpots []string `json:"blind_spots"`
			Filters    []string
		}
		State struct {
			Old, New string
			Duration json.Number `json:"duration_ms"`
		}
		Connect struct {
			Outcome     string
			Duration    json.Number `json:"duration_ms"`
			Retransmits uint32      `json:"syn_retransmits"`
			TSVal       *uint32
		}
		Error  struct{ Type string }
		Accept struct {
			Duration json.Number `json:"duration_ms"`
		}
		Close struct {
			By            string
			Duration      json.Number `json:"duration_ms"`
			BytesSent     uint64      `json:"bytes_sent"`
			BytesReceived uint64      `json:"bytes_received"`
			TSValLast     *uint32     `json:"tsval_last"`
		}
		TimeWait struct {
			SameDestination uint32 `json:"same_destination"`
			Ended           string
			Duration        json.Number `json:"duration_ms"`
			Exact           bool
		} `json:"time_wait"`
		Reuse *struct {
			Scope, How string
			After      json.Number `json:"after_ms"`
			Previous   struct {
				Time  time.Time
				Local end
				netNS
				owner
				Ended struct {
					Time time.Time
					How  string
				}
			}
		}
		Ports *struct {
			InUse       uint32 `json:"in_use"`
			TimeWait    uint32 `json:"time_wait"`
			Range       [2]uint16
			Reserved    *int
			UsedRatio   float32     `json:"used_ratio"`
			ExhaustedIn json.Number `json:"exhausted_in_s"`
			Holder      *struct {
				Port uint16
				owner
				EndsIn json.Number `json:"ends_in_ms"`
			}
		}
		Sysctl *struct {
			Ports      [2]uint16   `json:"ip_local_port_range"`
			Reserved   [][2]uint16 `json:"ip_local_reserved_ports"`
			Reuse      *int64      `json:"tcp_tw_reuse"`
			Delay      *int64      `json:"tcp_tw_reuse_delay"`
			Timestamps *int64      `json:"tcp_timestamps"`
			FinTimeout *int64      `json:"tcp_fin_timeout"`
			MaxBuckets *int64      `json:"tcp_max_tw_buckets"`
			SynRetries *int64      `json:"tcp_syn_retries"`
			Linear     *int64      `json:"tcp_syn_linear_timeouts"`
		}
		SYN struct {
			Packet  string
			Attempt uint32
		}
		Drop struct {
			Packet, Reason, Location string
			netNS
			Listener bool
		}
		Counters *struct {
			Interval json.Number `json:"interval_ms"`
			Delta    map[string]uint64
		}
		Verdict *verdict
		Reset   struct{ Direction, Reason string }
		Lost    struct {
			Count uint64
			Since time.Time
			Where string
			Kinds map[string]uint64
		}
		Summary *struct {
			Duration  json.Number `json:"duration_ms"`
			Events    map[string]uint64
			Connects  map[string]uint64
			Verdicts  map[string]uint64
			Lost      struct{ Kernel, Output uint64 }
			Forgotten uint64
		}
	}
	if err := json.Unmarshal(b, &line); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if line.Schema != Version {
		t.Errorf("%s: schema = %q, want %q", b, line.Schema, Version)
	}

	addrPort := func(e *end) netip.AddrPort {
		if e == nil {
			return netip.AddrPort{}
		}
		if is4 := line.Network.Type == "ipv4"; is4 != e.Address.Is4() {
			t.Errorf("%s: %v is no %s", b, e.Address, line.Network.Type)
		}
		return netip.AddrPortFrom(e.Address, e.Port)
	}
	netns := func(n netNS) event.NetNS { return event.NetNS{Inode: n.NetNS, Cookie: n.NetNSCookie} }
	ownerOf := func(o owner) event.Owner {
		owner := event.Owner{PID: o.Process.PID, TID: o.Process.TID, UID: o.Process.UID, Comm: o.Process.Comm, Cgroup: o.Cgroup.ID}
		in := event.Cgroup{
			Path: o.Cgroup.Path, Container: o.Container.ID, Runtime: o.Container.Runtime, Name: o.Container.Name,
			PodUID: o.K8s.Pod.UID, Pod: o.K8s.Pod.Name, Namespace: o.K8s.Namespace.Name, Node: o.K8s.Node.Name,
		}
		if in != (event.Cgroup{}) {
			owner.In = &in
		}
		if name := o.K8s.Container.Name; in.Pod != "" && name != in.Name {
			t.Errorf("%s: the container is %q, and %q in its pod", b, in.Name, name)
		}
		return owner
	}
	unixNano := func(at time.Time) int64 {
		if at.IsZero() {
			return 0
		}
		return at.UnixNano()
	}
	r.Kind, _ = ParseKind(line.Event)
	r.Time = line.Time.UnixNano()
	if line.Network != nil {
		r.Socket.Tuple = event.Tuple{Local: addrPort(line.Network.Local), Peer: addrPort(line.Network.Peer)}
	}
	r.Socket.Cookie = line.Socket.Cookie
	r.Socket.NetNS = netns(line.netNS)
	r.Socket.Owner = ownerOf(line.owner)

	r.State = StateFields{Old: number[event.State](line.State.Old), New: number[event.State](line.State.New), Duration: duration(t, line.State.Duration)}
	r.Connect = ConnectFields{Outcome: number[Outcome](line.Connect.Outcome), Duration: duration(t, line.Connect.Duration), Retransmits: line.Connect.Retransmits}
	r.Connect.TSVal, r.Connect.HasTSVal = deref(line.Connect.TSVal)
	for errno := range syscall.Errno(1024) {
		if name := line.Error.Type; name != "" && (name == unix.ErrnoName(errno) || name == fmt.Sprintf("ERRNO_%d", errno)) {
			r.Connect.Errno = errno
		}
	}
	r.Accept.Duration = duration(t, line.Accept.Duration)
	r.Close = CloseFields{By: number[CloseBy](line.Close.By), Duration: duration(t, line.Close.Duration), BytesSent: line.Close.BytesSent, BytesReceived: line.Close.BytesReceived}
	r.Close.TSValLast, r.Close.HasTSValLast = deref(line.Close.TSValLast)
	r.TimeWait = TimeWaitFields{
		SameDestination: line.TimeWait.SameDestination,
		Ended:           number[event.Ended](line.TimeWait.Ended), Duration: duration(t, line.TimeWait.Duration), Exact: line.TimeWait.Exact,
	}
	if u := line.Reuse; u != nil {
		p := &u.Previous
		r.Reuse = &ReuseFields{
			Scope: number[ReuseScope](u.Scope), How: number[ReuseHow](u.How), After: duration(t, u.After),
			Previous: PreviousUse{
				Time: unixNano(p.Time), Ended: unixNano(p.Ended.Time), Owner: ownerOf(p.owner), NetNS: netns(p.netNS), Local: p.Local.Address,
				End: UseEnd{TimeWait: number[event.Ended](p.Ended.How), Close: number[CloseBy](p.Ended.How), Outcome: number[Outcome](p.Ended.How)},
			},
		}
	}
	if s := line.Sysctl; s != nil {
		r.Sysctls = &event.Sysctls{Ports: event.PortRange{Low: s.Ports[0], High: s.Ports[1]}}
		for _, reserved := range s.Reserved {
			r.Sysctls.Reserved = append(r.Sysctls.Reserved, event.PortRange{Low: reserved[0], High: reserved[1]})
		}
		for i, value := range []*int64{s.Reuse, s.Delay, s.Timestamps, s.FinTimeout, s.MaxBuckets, s.SynRetries, s.Linear} {
			r.Sysctls.Numbers[i] = -1
			if value != nil {
				r.Sysctls.Numbers[i] = *value
			}
		}
	}
	if p := line.Ports; p != nil {
		r.Ports = &PortsFields{
			InUse: p.InUse, TimeWait: p.TimeWait, Range: event.PortRange{Low: p.Range[0], High: p.Range[1]}, Reserved: -1,
			Usable: uint32(p.Range[1]) - uint32(p.Range[0]) + 1, Exhausts: p.ExhaustedIn != "",
		}
		if p.Reserved != nil {
			r.Ports.Reserved = *p.Reserved
			r.Ports.Usable -= uint32(*p.Reserved)
		}
		if ratio := float32(p.InUse) / float32(r.Ports.Usable); ratio != p.UsedRatio {
			t.Errorf("%s: used_ratio is not %v", b, ratio)
		}
		if r.Ports.Exhausts {
			seconds, err := p.ExhaustedIn.Float64()
			if err != nil {
				t.Errorf("%s: %v", b, err)
			}
			r.Ports.ExhaustedIn = time.Duration(seconds * float64(time.Second))
		}
		if h := p.Holder; h != nil {
			r.Ports.Holder = &PortHolder{Port: h.Port, Owner: ownerOf(h.owner), EndsIn: duration(t, h.EndsIn)}
		}
	}
	r.SYN = SYNFields{SynAck: line.SYN.Packet == "SYN-ACK", Attempt: line.SYN.Attempt}
	r.Drop = DropFields{
		Packet: number[event.Packet](line.Drop.Packet), Reason: line.Drop.Reason, Location: line.Drop.Location,
		NetNS: netns(line.Drop.netNS), Listener: line.Drop.Listener,
	}
	if c := line.Counters; c != nil {
		r.Counters = &CountersFields{Interval: duration(t, c.Interval), Delta: c.Delta}
	}
	r.Verdict = line.Verdict.fields()
	r.Reset = ResetFields{Received: line.Reset.Direction == "received", Reason: line.Reset.Reason}
	if line.Lost.Count != 0 {
		r.Lost = LostFields{Count: line.Lost.Count, Since: line.Lost.Since.UnixNano(), Where: number[LostWhere](line.Lost.Where)}
		if line.Lost.Kinds != nil {
			r.Lost.Kinds = new([Kinds]uint64)
			for kind, n := range line.Lost.Kinds {
				r.Lost.Kinds[number[Kind](kind)] = n
			}
		}
	}
	if m := line.Meta; m != nil {
		r.Meta = &MetaFields{Version: m.Version, Kernel: m.Kernel, Arch: m.Arch, Node: m.Node, BootID: m.BootID, BlindSpots: m.BlindSpots, Filters: m.Filters, Started: unixNano(m.Started), TSOffsetMode: m.TSOffsetMode}
		for _, p := range m.Probes {
			r.Meta.Probes = append(r.Meta.Probes, Probe(p))
		}
	}
	if s := line.Summary; s != nil {
		r.Summary = &SummaryFields{Duration: duration(t, s.Duration), Verdicts: s.Verdicts, LostKernel: s.Lost.Kernel, LostOutput: s.Lost.Output, Forgotten: s.Forgotten}
		for name, n := range s.Events {
			r.Summary.Events[number[Kind](name)] = n
		}
		for name, n := range s.Connects {
			r.Summary.Connects[number[Outcome](name)] = n
		}
	}
	return r, line.Seq
}

// number returns the number that is spelled name, 0 where there is none.
func number[T interface {
	~uint8
	fmt.Stringer
}](name string) T {
	for n := T(1); n < 32; n++ {
		if name != "" && n.String() == name {
			return n
		}
	}
	return 0
}

func deref(n *uint32) (uint32, bool) {
	if n == nil {
		return 0, false
	}
	return *n, true
}

// duration reads milliseconds without passing through a float.
func duration(t *testing.T, ms json.Number) time.Duration {
	t.Helper()
	if ms == "" {
		return 0
	}
	whole, fraction, _ := strings.Cut(ms.String(), ".")
	ns, err := strconv.ParseInt(whole+(fraction + "000000")[:6], 10, 64)
	if err != nil || len(fraction) > 6 || strings.HasSuffix(fraction, "0") {
		t.Errorf("duration_ms: %s", ms)
	}
	return time.Duration(ns)
}

func TestDuration(t *testing.T) {
	for ns, want := range map[time.Duration]string{
		152344:              `0.152344`,
		0:                   `0`,
		1:                   `0.000001`,
		100:                 `0.0001`,
		1000000:             `1`,
		1000001:             `1.000001`,
		120500000:           `120.5`,
		50 * 24 * time.Hour: `4320000000`,
		1<<63 - 1:           `9223372036854.775807`,
		90*24*time.Hour + 1: `7776000000.000001`,
	} {
		if got := string(appendDuration(nil, ns)); got != `"duration_ms":`+want {
			t.Errorf("%d ns: %s, want %s", ns, got, want)
		}
	}
}

// TestMapped: a socket of both families shows its IPv4 peers as IPv4.
func TestMapped(t *testing.T) {
	r := Record{Kind: State, Socket: event.Socket{Tuple: event.Tuple{
		Local: netip.MustParseAddrPort("[::ffff:10.0.0.1]:80"),
		Peer:  netip.MustParseAddrPort("[::ffff:10.0.0.2]:1025"),
	}}}
	want := `"network":{"type":"ipv4","local":{"address":"10.0.0.1","port":80},"peer":{"address":"10.0.0.2","port":1025}}`
	if got := r.AppendJSON(nil, 0); !bytes.Contains(got, []byte(want)) {
		t.Errorf("%s has no %s", got, want)
	}
}

// TestLineLength: container runtimes split a line of 16 KiB, which no JSON
// reader survives.
func TestLineLength(t *testing.T) {
	validator := compileSchema(t)
	for _, text := range []string{strings.Repeat("x", 1<<20), strings.Repeat("\x01", 1<<20), strings.Repeat("\xff", 1<<20), strings.Repeat("日", 1<<20)} {
		socket := ownedBy(text)
		socket.Owner.In = &event.Cgroup{Path: text, Container: containerID, Runtime: text, PodUID: text, Name: text, Pod: text, Namespace: text, Node: text}
		probe := Probe{Name: text, Via: "kprobe", WhyNot: text}
		for _, r := range []Record{
			{Kind: Meta, Socket: ownedBy(text), Meta: &MetaFields{
				Version: text, Kernel: text, Arch: text, BootID: text, Node: text, Started: start,
				Probes:     slices.Repeat([]Probe{probe}, 1000),
				BlindSpots: slices.Repeat([]string{text}, 1000),
				Filters:    slices.Repeat([]string{text}, 1000),
			}},
			{Kind: Reset, Socket: socket, Reset: ResetFields{Reason: text}},
			{Kind: PortReuse, Socket: socket, Reuse: &ReuseFields{Scope: ScopeTuple, How: AfterClose, Previous: PreviousUse{Owner: socket.Owner}}},
			{Kind: Connect, Socket: socket, Connect: ConnectFields{Outcome: NoLocalPort}, Ports: &PortsFields{
				InUse: 1, Usable: 1, Range: event.PortRange{Low: 1, High: 1}, Holder: &PortHolder{Port: 1, Owner: socket.Owner}}},
		} {
			b := r.AppendJSON(nil, 1<<64-1)
			if len(b) >= 16<<10 {
				t.Errorf("a %s line of %d bytes", r.Kind, len(b))
			}
			checkLine(t, validator, b)
			got, _ := parse(t, b)
			if comm := got.Socket.Owner.Comm; !strings.HasSuffix(comm, "…") {
				t.Errorf("a cut comm does not say so: %q", comm)
			}
			if r.Kind == Meta {
				for _, list := range [][]string{got.Meta.BlindSpots, got.Meta.Filters, {got.Meta.Probes[len(got.Meta.Probes)-1].Name}} {
					if last := list[len(list)-1]; last != "…" {
						t.Errorf("a cut list does not say so: it ends in %q", last)
					}
				}
			}
		}
	}
}

// TestAllocations: the writer runs once for every event of a busy machine.
func TestAllocations(t *testing.T) {
	b := make([]byte, 0, 16<<10)
	var e Encoder
	for _, r := range samples() {
		if r.Kind == Meta || r.Kind == Counters || r.Kind == Summary {
			continue // at most a few a second
		}
		if n := testing.AllocsPerRun(100, func() { b = e.AppendJSON(b[:0], &r, 1) }); n != 0 {
			t.Errorf("%v allocations for %s", n, b)
		}
	}
}

// FuzzString: whatever a process calls itself, the log stays JSON.
func FuzzString(f *testing.F) {
	for _, s := range []string{"", "curl", "\"\\", "\x00\x1f\x7f\n\r\t", "\u2028\u2029…", "\xff\xc3\xe6\x97", "日本語"} {
		f.Add(s, 100)
	}
	f.Fuzz(func(t *testing.T, s string, limit int) {
		var got string
		b := appendString(nil, s)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %s: %v", s, b, err)
		}
		if !utf8.Valid(b) || bytes.ContainsFunc(b, func(r rune) bool { return r < ' ' }) {
			t.Errorf("%q: %q is not printable", s, b)
		}
		if want := string([]rune(s)); got != want && len(b) < maxText-20 {
			t.Errorf("%q: got %q", s, got)
		}

		limit = 8 + int(uint(limit)%maxText)
		cut := appendQuoted(nil, s, limit)
		if len(cut) > limit {
			t.Errorf("%q: %d bytes, want %d or less", s, len(cut), limit)
		}
		var short string
		if err := json.Unmarshal(cut, &short); err != nil {
			t.Fatalf("%q: %s: %v", s, cut, err)
		}
		if whole, isCut := strings.CutSuffix(short, "…"); short != string([]rune(s)) && !(isCut && strings.HasPrefix(string([]rune(s)), whole)) {
			t.Errorf("%q: cut to %q", s, short)
		}
	})
}

func BenchmarkAppendJSON(b *testing.B) {
	benchmarked := make(map[string]bool)
	for _, r := range append([]Record{
		{Kind: State, Socket: ipv4, State: established},
		{Kind: Connect, Socket: ipv4, Connect: ConnectFields{Outcome: TimedOut, Errno: unix.ETIMEDOUT, Duration: 127 * time.Second, Retransmits: 6, TSVal: 1, HasTSVal: true}},
	}, portSamples()...) {
		// The first of each kind, and of a connect also one without a port.
		name := r.Kind.String()
		if r.Kind == Connect && r.Ports != nil {
			name += " without a port"
		}
		if benchmarked[name] {
			continue
		}
		benchmarked[name] = true
		r.Time = start
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			var line []byte
			var encoder Encoder
			for seq := uint64(0); b.Loop(); seq++ {
				line = encoder.AppendJSON(line[:0], &r, seq)
			}
			b.SetBytes(int64(len(line)))
		})
	}
}

func compileSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	document, err := jsonschema.UnmarshalJSON(strings.NewReader(Schema()))
	if err != nil {
		t.Fatal(err)
	}
	compiler := jsonschema.NewCompiler()
	compiler.AssertFormat()
	if err := compiler.AddResource("schema.json", document); err != nil {
		t.Fatal(err)
	}
	compiled, err := compiler.Compile("schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return compiled
}

// checkLine holds one line against the schema. The schema lets a reader meet
// keys that it doesn't know; twtrace itself writes none.
func checkLine(t *testing.T, schema *jsonschema.Schema, line []byte) {
	t.Helper()
	value, err := jsonschema.UnmarshalJSON(bytes.NewReader(line))
	if err != nil {
		t.Fatalf("%s: %v", line, err)
	}
	if err := schema.Validate(value); err != nil {
		t.Errorf("%s: %v", line, err)
	}
	for _, path := range undescribed(schema, "", value) {
		t.Errorf("%sthe schema does not describe %s", line, path)
	}
}

// undescribed lists the keys in value that the schema says nothing about.
func undescribed(schema *jsonschema.Schema, path string, value any) (paths []string) {
	for schema.Ref != nil && schema.Properties == nil {
		schema = schema.Ref
	}
	switch value := value.(type) {
	case []any:
		for _, item := range value {
			paths = append(paths, undescribed(schema.Items2020, path+"[]", item)...)
		}
	case map[string]any:
		for key, member := range value {
			if property := schema.Properties[key]; property != nil {
				paths = append(paths, undescribed(property, path+"."+key, member)...)
			} else if schema.AdditionalProperties == nil {
				paths = append(paths, path+"."+key)
			}
		}
	}
	return paths
}

func TestSchema(t *testing.T) {
	schema := compileSchema(t)
	for line := range bytes.Lines(appendSamples()) {
		checkLine(t, schema, line)
	}

	// The schema can fail, and the walk finds what it tolerates.
	for _, line := range []string{
		`{}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.1Z","seq":0,"event":"accept"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"connect"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"accept","socket":{"cookie":12}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"accept","process":{"pid":1,"uid":0,"comm":""}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"time_wait.enter","time_wait":{}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"time_wait.end"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"time_wait.end","time_wait":{"ended":"expired"}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"time_wait.end","time_wait":{"ended":"expired","exact":true}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"time_wait.end","time_wait":{"ended":"timeout","exact":false}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_reuse"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_reuse","reuse":{"scope":"tuple","how":"tw_reuse"}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_reuse","reuse":{"scope":"tuple","how":"tw_reuse","previous":{"netns":0}}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_reuse","reuse":{"scope":"tuple","how":"tw_reuse","previous":{"ended":{"how":"later"}}}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_pressure"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_pressure","ports":{"in_use":1,"time_wait":0,"range":[1]}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_pressure","ports":{"in_use":1,"time_wait":0,"range":[1,1],"used_ratio":1.1}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"port_pressure","ports":{"in_use":1,"time_wait":0,"range":[1,1],"holder":{}}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"drop"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"drop","drop":{"packet":"FIN"}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"counters","counters":{"delta":{"ListenDrops":1}}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"counters","netns":1,"counters":{"delta":{}}}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"verdict"}`,
		`{"schema":"twtrace/1","time":"2026-11-23T04:00:00.123456789Z","seq":0,"event":"verdict","verdict":{"id":"refused","confidence":"sure","text":"no","evidence":[],"ruled_out":[],"not_visible":[]}}`,
	} {
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(line))
		if err != nil {
			t.Fatal(err)
		}
		if schema.Validate(value) == nil {
			t.Errorf("the schema accepts %s", line)
		}
	}
	later := map[string]any{"socket": map[string]any{"cookie": "1", "later": 1}}
	if got, want := undescribed(schema, "", later), []string{".socket.later"}; !slices.Equal(got, want) {
		t.Errorf("undescribed keys: %v, want %v", got, want)
	}
}

// TestDocs: the examples in the documentation are lines of the log.
func TestDocs(t *testing.T) {
	docs, err := os.ReadFile("../../docs/event-log.md")
	if err != nil {
		t.Fatal(err)
	}
	schema := compileSchema(t)
	events := make(map[string]bool)
	for line := range bytes.Lines(docs) {
		if !bytes.HasPrefix(line, []byte(`{"schema"`)) {
			continue
		}
		checkLine(t, schema, line)
		var example struct{ Event string }
		if err := json.Unmarshal(line, &example); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		events[example.Event] = true
	}
	for kind := Meta; kind < Kinds; kind++ {
		if !events[kind.String()] {
			t.Errorf("there is no example of %s", kind)
		}
	}
}

// TestSchemaEnums: what the code can write and what the schema allows are the
// same words.
func TestSchemaEnums(t *testing.T) {
	var document struct {
		Defs map[string]struct{ Enum []string } `json:"$defs"`
	}
	if err := json.Unmarshal([]byte(Schema()), &document); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string][]string{
		"event":   names(Kinds),
		"outcome": names(Outcomes),
		"by":      names(CloseBy(len(closeByNames))),
		"state":   names(event.NewSynRecv + 1),
		"where":   names(InOutput + 1),
		"ended":   names(event.Endings),
		"scope":   names(ScopePort + 1),
		"how":     names(ReuseHow(len(reuseHowNames))),
	} {
		if diff := cmp.Diff(want, document.Defs[name].Enum); diff != "" {
			t.Errorf("%s (-code +schema):\n%s", name, diff)
		}
	}
}

// names spells the numbers from 1 to end, end not included.
func names[T interface {
	~uint8
	fmt.Stringer
}](end T) (names []string) {
	for n := T(1); n < end; n++ {
		names = append(names, n.String())
	}
	return names
}
