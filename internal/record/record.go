// Package record is the event log, twtrace/1: the lines that users, report and
// other programs read, with the JSON that they are written as and its schema.
package record

import (
	"net/netip"
	"syscall"
	"time"

	"github.com/twtrace/twtrace/internal/event"
)

// Kind is the line's "event".
type Kind uint8

// The kinds of lines.
const (
	Meta Kind = iota + 1
	State
	Connect
	Accept
	Close
	TimeWaitEnter
	TimeWaitEnd
	PortReuse
	SynRetransmit
	Drop
	Reset
	PortPressure
	NetNS
	Counters
	Verdict
	Lost
	Summary

	// Kinds is one more than the highest Kind.
	Kinds
)

var kindNames = [Kinds]string{
	Meta:          "meta",
	State:         "state",
	Connect:       "connect",
	Accept:        "accept",
	Close:         "close",
	TimeWaitEnter: "time_wait.enter",
	TimeWaitEnd:   "time_wait.end",
	PortReuse:     "port_reuse",
	SynRetransmit: "syn_retransmit",
	Drop:          "drop",
	Reset:         "reset",
	PortPressure:  "port_pressure",
	NetNS:         "netns",
	Counters:      "counters",
	Verdict:       "verdict",
	Lost:          "lost",
	Summary:       "summary",
}

func (k Kind) String() string {
	if k > 0 && k < Kinds {
		return kindNames[k]
	}
	return "invalid"
}

// AboutSocket reports whether lines of this kind are about sockets; the others
// are about the run or a network namespace, and no filter leaves them out.
func (k Kind) AboutSocket() bool { return k >= State && k <= PortPressure }

// ParseKind returns the kind that is spelled name.
func ParseKind(name string) (Kind, bool) {
	for k := Meta; k < Kinds; k++ {
		if kindNames[k] == name {
			return k, true
		}
	}
	return 0, false
}

// Record is one line of the log. Kind says which of the fields below Socket
// are meant; the others are zero.
type Record struct {
	Kind Kind
	// Time is when the kernel saw it: nanoseconds since 1970, UTC.
	Time int64
	// Line is one more than the number that the line has in the log, set by
	// whoever writes it: 0 where it is in none.
	Line uint64
	// Socket is what the line is about. Meta, Lost and Summary have none.
	Socket event.Socket

	// State is set on State lines. On Connect, Accept, Close and TIME_WAIT
	// lines it holds the change that made them, for the text tail, which
	// tells both in one line; their JSON has no state. It is zero on a
	// Connect whose socket never changed state.
	State    StateFields
	Connect  ConnectFields
	Accept   AcceptFields
	Close    CloseFields
	TimeWait TimeWaitFields
	SYN      SYNFields
	Reset    ResetFields
	Drop     DropFields
	Lost     LostFields
	Reuse    *ReuseFields
	// Ports is set on PortPressure lines, and on a Connect that found no
	// local port where it is known who holds them.
	Ports *PortsFields
	// Sysctls is set on NetNS lines.
	Sysctls  *event.Sysctls
	Counters *CountersFields
	// Verdict is set on Verdict lines, on a Connect that failed or was late,
	// and on a Close by a RST soon after the handshake.
	Verdict *VerdictFields
	Meta    *MetaFields
	Summary *SummaryFields
}

// StateFields: a socket went from one TCP state to another.
type StateFields struct {
	Old, New event.State
	// Duration is how long the socket was in Old, 0 where that is not
	// known.
	Duration time.Duration
}

// ConnectFields: an active open ended.
type ConnectFields struct {
	Outcome Outcome
	// Errno is 0 where the attempt ended without one.
	Errno syscall.Errno
	// Duration runs from connect to the outcome, 0 where its beginning was
	// not seen.
	Duration time.Duration
	// Retransmits counts the SYNs that were sent again.
	Retransmits uint32
	// TSVal is the TCP timestamp of the first SYN.
	TSVal    uint32
	HasTSVal bool
}

// Outcome is how a connect ended.
type Outcome uint8

// The outcomes; docs/event-log.md tells which errno gives which.
const (
	Established Outcome = iota + 1
	Refused
	TimedOut
	Unreachable
	NoLocalPort
	Abandoned
	Denied
	ConnectionReset
	Failed

	// Outcomes is one more than the highest Outcome.
	Outcomes
)

var outcomeNames = [Outcomes]string{
	Established:     "established",
	Refused:         "refused",
	TimedOut:        "timed_out",
	Unreachable:     "unreachable",
	NoLocalPort:     "no_local_port",
	Abandoned:       "abandoned",
	Denied:          "denied",
	ConnectionReset: "reset",
	Failed:          "failed",
}

func (o Outcome) String() string {
	if o > 0 && o < Outcomes {
		return outcomeNames[o]
	}
	return "invalid"
}

// AcceptFields: a passive open is established.
type AcceptFields struct {
	// Duration is the time from the SYN-ACK to the ACK that answered it, 0
	// where the kernel did not measure it.
	Duration time.Duration
}

// CloseFields: an established connection ended.
type CloseFields struct {
	By CloseBy
	// Duration runs from ESTABLISHED to CLOSE, 0 where its beginning was
	// not seen.
	Duration time.Duration
	// BytesSent and BytesReceived count payload, retransmissions not
	// included.
	BytesSent, BytesReceived uint64
	// TSValLast is the TCP timestamp of the last segment sent.
	TSValLast    uint32
	HasTSValLast bool
}

// CloseBy tells who ended a connection.
type CloseBy uint8

// Who ended it.
const (
	ByLocal CloseBy = iota + 1
	ByPeer
	// ByBoth: both sent their FIN before they saw the other's.
	ByBoth
	ByResetSent
	ByResetReceived
	// ByTimeout: the kernel gave up on a peer that stopped answering.
	ByTimeout
)

var closeByNames = [...]string{
	ByLocal:         "local",
	ByPeer:          "peer",
	ByBoth:          "both",
	ByResetSent:     "reset_sent",
	ByResetReceived: "reset_received",
	ByTimeout:       "timeout",
}

func (by CloseBy) String() string {
	if by > 0 && int(by) < len(closeByNames) {
		return closeByNames[by]
	}
	return "invalid"
}

// TimeWaitFields: a TIME_WAIT began or ended.
type TimeWaitFields struct {
	// SameDestination, of one that began, is how many now wait for the same
	// network namespace, local address, peer address and peer port, this one
	// included: 0 where others are filtered out.
	SameDestination uint32
	// Ended is how it ended.
	Ended event.Ended
	// Duration is how long it lasted, 0 where its beginning was not seen.
	Duration time.Duration
	// Exact is false where its beginning was not seen.
	Exact bool
}

// ReuseFields: a connection or attempt got ports that were used before.
type ReuseFields struct {
	Scope ReuseScope
	How   ReuseHow
	// After is the time from the end of the earlier use (its entry to
	// TIME_WAIT, or its CLOSE) to the beginning of this one, 0 where that end
	// was not seen.
	After    time.Duration
	Previous PreviousUse
}

// PreviousUse is the earlier use.
type PreviousUse struct {
	// Time is when it began, 0 unknown, and Ended when it ended: Unix
	// nanoseconds.
	Time, Ended int64
	End         UseEnd
	Owner       event.Owner
	NetNS       event.NetNS
	// Local is its local address, where the scope is the port.
	Local netip.Addr
}

// UseEnd is how a use of a four-tuple ended: its TIME_WAIT, if it had one that
// ended; else the connection; else the connect that failed.
type UseEnd struct {
	TimeWait event.Ended
	Close    CloseBy
	Outcome  Outcome
}

// String spells it as the log does, "" for the zero UseEnd.
func (e UseEnd) String() string {
	switch {
	case e.TimeWait != 0:
		return e.TimeWait.String()
	case e.Close != 0:
		return e.Close.String()
	case e.Outcome != 0:
		return e.Outcome.String()
	}
	return ""
}

// ReuseScope is what was used before.
type ReuseScope uint8

// The scopes.
const (
	// ScopeTuple: the same four-tuple.
	ScopeTuple ReuseScope = iota + 1
	// ScopePort: the same local port toward the same peer address and port,
	// in the same network namespace, from another local address.
	ScopePort
)

func (s ReuseScope) String() string {
	if s == ScopePort {
		return "port"
	}
	return "tuple"
}

// ReuseHow is how ports came to be used again.
type ReuseHow uint8

// How ports come to be used again.
const (
	// TimeWaitReuse: tcp_tw_reuse took it from a TIME_WAIT.
	TimeWaitReuse ReuseHow = iota + 1
	// AfterTimeWait: the earlier use's TIME_WAIT had ended otherwise.
	AfterTimeWait
	// AfterClose: the earlier use had no TIME_WAIT here.
	AfterClose
	// AfterSynAccepted: a SYN of the peer ended the TIME_WAIT.
	AfterSynAccepted
	// ExplicitBind: the program had bound its socket to the port.
	ExplicitBind
	// OtherNetNS: the address has moved to another network namespace.
	OtherNetNS
)

var reuseHowNames = [...]string{
	TimeWaitReuse:    "tw_reuse",
	AfterTimeWait:    "after_time_wait",
	AfterClose:       "after_close",
	AfterSynAccepted: "syn_accepted",
	ExplicitBind:     "explicit_bind",
	OtherNetNS:       "other_netns",
}

func (h ReuseHow) String() string {
	if h > 0 && int(h) < len(reuseHowNames) {
		return reuseHowNames[h]
	}
	return "invalid"
}

// PortsFields: the use of the local ports toward a destination.
type PortsFields struct {
	// InUse are taken, TimeWait of them by TIME_WAITs, of Usable.
	InUse, TimeWait, Usable uint32
	Range                   event.PortRange
	// Reserved are those of the range in ip_local_reserved_ports, negative
	// where that is not known.
	Reserved int
	// ExhaustedIn is when none will be left at the rate of the last seconds,
	// where Exhausts is set.
	ExhaustedIn time.Duration
	Exhausts    bool
	// Holder is the TIME_WAIT that will free its port first, nil for none.
	Holder *PortHolder
}

// PortHolder is a TIME_WAIT that holds a local port.
type PortHolder struct {
	Port  uint16
	Owner event.Owner
	// EndsIn is the time until it ends by itself, give or take the
	// coarseness of the kernel's timers; 0 where its beginning was not seen.
	EndsIn time.Duration
}

// SYNFields: a SYN or SYN-ACK went out again.
type SYNFields struct {
	// SynAck is set for a SYN-ACK.
	SynAck bool
	// Attempt is 1 for the first retransmission, 0 where the socket is not
	// known.
	Attempt uint32
}

// ResetFields: a RST was sent or received.
type ResetFields struct {
	Received bool
	// Reason is the running kernel's own name for why it was sent, such as
	// NO_SOCKET; "" where it has none (before Linux 6.10).
	Reason string
}

// DropFields: the kernel threw away a packet of a handshake.
type DropFields struct {
	Packet event.Packet
	// Reason is the running kernel's own name for why, such as
	// NETFILTER_DROP; "" where it specifies none (and before Linux 5.17).
	Reason string
	// Location is the kernel's function that dropped it, "" where the
	// kernel doesn't tell.
	Location string
	// NetNS is where it was dropped: a packet can have left its socket's
	// network namespace.
	NetNS event.NetNS
	// Listener is set where the packet had met a listener.
	Listener bool
}

// CountersFields: counters of a network namespace have moved.
type CountersFields struct {
	// Interval is the time since they were looked at before.
	Interval time.Duration
	// Delta has what moved, by the kernel's names.
	Delta map[string]uint64
}

// VerdictFields are why a connect failed or was late.
type VerdictFields struct {
	// ID is one of those in docs/verdicts.md.
	ID         string
	Confidence Confidence
	// Text is the cause in one sentence, Advice what to do about it.
	Text, Advice string
	Evidence     []Evidence
	// RuledOut are other ids, each with why it is none of them; NotVisible
	// is what could have told, and can't be seen here.
	RuledOut, NotVisible []string
	// Inner is the cause beneath, of one that gave up or was late.
	Inner *VerdictFields
}

// Cause is the id of the cause itself: the inner one, where there is one.
func (v *VerdictFields) Cause() string {
	if v.Inner != nil {
		return v.Inner.Cause()
	}
	return v.ID
}

// Evidence is a fact, and the line that shows it.
type Evidence struct {
	// Line is one more than that line's number in the log, 0 where it is in
	// none.
	Line uint64
	Text string
}

// Confidence is how sure a verdict is.
type Confidence uint8

// How sure it is.
const (
	// Possible: merely consistent.
	Possible Confidence = iota + 1
	// Likely: two independent facts agree, and the alternatives are
	// excluded.
	Likely
	// Certain: the kernel said so of this very socket.
	Certain
)

var confidenceNames = [...]string{Possible: "possible", Likely: "likely", Certain: "certain"}

func (c Confidence) String() string {
	if c > 0 && int(c) < len(confidenceNames) {
		return confidenceNames[c]
	}
	return "invalid"
}

// LostFields: events or lines were lost.
type LostFields struct {
	// Count is how many, exactly.
	Count uint64
	// Since is when the loss began, at the earliest: the last moment at
	// which nothing had been lost since the line before. Unix nanoseconds.
	Since int64
	Where LostWhere
	// Kinds are how many of each kind of line these are, or would have told;
	// nil, or fewer than Count, where that is not known.
	Kinds *[Kinds]uint64
}

// LostWhere is the place of a loss.
type LostWhere uint8

// The places.
const (
	// InKernel: the ring buffer had no room for an event.
	InKernel LostWhere = iota + 1
	// InOutput: a line could not be written.
	InOutput
)

func (w LostWhere) String() string {
	if w == InOutput {
		return "output"
	}
	return "kernel"
}

// MetaFields stands at the head of every log: what a reader must know of the
// machine and of the tracer to believe the rest.
type MetaFields struct {
	Version string
	Kernel  string // uname -r
	Arch    string // GOARCH
	BootID  string
	Node    string // the Kubernetes node's name where that is told, else the host name
	Started int64  // Unix nanoseconds
	// TSOffsetMode is how the kernel chooses the offsets of TCP timestamps:
	// per_host, per_connection or none.
	TSOffsetMode string
	Probes       []Probe
	BlindSpots   []string
	// Filters are the flags that narrow this log, as given.
	Filters []string
}

// Probe is a hook, and how it fared.
type Probe struct {
	Name     string
	Attached bool
	// Via is tp_btf, raw_tp, tracepoint, fentry, fexit, kprobe, kretprobe
	// or iter.
	Via string
	// WhyNot is one line, where it is not attached.
	WhyNot string
}

// SummaryFields stands at the end of a run that ended by itself, by SIGINT or
// by SIGTERM.
type SummaryFields struct {
	Duration time.Duration
	// Events counts the lines before this one.
	Events [Kinds]uint64
	// Connects counts the Connect lines among them.
	Connects [Outcomes]uint64
	// Verdicts counts the causes that were found, by their ids: of one that
	// is wrapped round another, the inner one.
	Verdicts   map[string]uint64
	LostKernel uint64
	LostOutput uint64
	// Forgotten counts the uses of ports that were forgotten early.
	Forgotten uint64
}
