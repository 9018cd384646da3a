// Package event holds what the kernel said: one Event for each thing that the
// BPF programs saw, in Go's types and in the kernel's words. It draws no
// conclusions; package track does.
package event

import (
	"net/netip"
	"slices"
	"syscall"
	"time"
)

// Kind says what happened.
type Kind uint8

// The kinds of events. Their numbers are those of enum event_kind in
// bpf/event.h.
const (
	// StateChange: a socket went from one TCP state to another.
	StateChange Kind = iota + 1
	// ConnectResult: a connect ended with an errno that the state changes
	// do not carry: the call failed before or while the SYN was built.
	ConnectResult
	// SynRetransmit: an unanswered SYN went out again.
	SynRetransmit
	// SynAckRetransmit: an unanswered SYN-ACK went out again.
	SynAckRetransmit
	// ResetSent: this machine sent a RST.
	ResetSent
	// ResetReceived: a RST came in for a socket of this machine.
	ResetReceived
	// TimeWaitEnter: what is left of a connection went to TIME_WAIT.
	TimeWaitEnter
	// TimeWaitRearm: a segment came in, and the TIME_WAIT begins again.
	TimeWaitRearm
	// TimeWaitEnd: a TIME_WAIT ended.
	TimeWaitEnd
	// Existing: a socket, in state New, that was there before the trace.
	Existing
	// Drop: the kernel threw away a packet of a handshake.
	Drop

	// Kinds is one more than the highest Kind.
	Kinds
)

var kindNames = [Kinds]string{
	StateChange:      "state_change",
	ConnectResult:    "connect_result",
	SynRetransmit:    "syn_retransmit",
	SynAckRetransmit: "syn_ack_retransmit",
	ResetSent:        "reset_sent",
	ResetReceived:    "reset_received",
	TimeWaitEnter:    "time_wait_enter",
	TimeWaitRearm:    "time_wait_rearm",
	TimeWaitEnd:      "time_wait_end",
	Existing:         "existing",
	Drop:             "drop",
}

func (k Kind) String() string {
	if k > 0 && k < Kinds {
		return kindNames[k]
	}
	return "invalid"
}

// Tells is what becomes of an event, in the words of the log. Events that are
// lost are known by that alone.
type Tells uint8

// What events tell. Their numbers are those of enum tells in bpf/event.h.
const (
	// TellsNothing: nothing by itself.
	TellsNothing Tells = iota
	// TellsState: no more than a change of state, which what comes later of
	// the same socket implies.
	TellsState
	TellsConnect
	TellsAccept
	TellsClose
	TellsTimeWaitEnter
	TellsTimeWaitEnd
	TellsSynRetransmit
	TellsDrop
	TellsReset

	// TellsKinds is one more than the highest Tells.
	TellsKinds
)

// Event is one record of the ring buffer, decoded.
type Event struct {
	Kind Kind
	// Time is when the kernel saw it: nanoseconds since 1970, UTC.
	Time int64
	// Mono is the same moment on CLOCK_MONOTONIC, which nobody sets: 0 where
	// it is not known, as in a log.
	Mono int64
	Socket

	// Old and New are the states of a StateChange, a TimeWaitEnter and a
	// TimeWaitEnd; New is the state in which a RST came or was sent.
	Old, New State
	// Visited are the states that this connection has been in, New
	// included.
	Visited StateSet
	// InState is how long the socket was in Old: 0 where the beginning was
	// not seen.
	InState time.Duration
	// Began is how long ago the handshake began or, in a change from
	// ESTABLISHED on, how long ago the connection was established: 0 where
	// that was not seen.
	Began time.Duration
	// Handshake is, for a passive open, the time from the SYN-ACK to the
	// ACK that answered it: 0 where the kernel did not measure it.
	Handshake time.Duration

	// Errno is the socket's error (sk_err) at a StateChange, and the
	// call's result at a ConnectResult: 0 for none.
	Errno syscall.Errno
	// ResultFollows marks a SYN_SENT -> CLOSE that happened inside the
	// call: its errno comes with a ConnectResult.
	ResultFollows bool
	// Shutdown is set where the program itself had closed or shut down the
	// socket.
	Shutdown bool
	// Started is set on a ConnectResult whose attempt got as far as
	// SYN_SENT.
	Started bool

	// Retransmits counts the SYNs of this attempt (on SynAckRetransmit:
	// the SYN-ACKs) that were sent again so far.
	Retransmits uint32
	// TSVal is the TCP timestamp (RFC 7323) of the attempt's first SYN
	// when it leaves SYN_SENT, and of the last segment sent when it goes
	// to CLOSE.
	TSVal    uint32
	HasTSVal bool
	// BytesSent and BytesReceived count payload, retransmissions not
	// included, when the socket goes to CLOSE.
	BytesSent, BytesReceived uint64
	// Active is set on the TIME_WAIT of a connect, and not on that of an
	// accept, where it is known.
	Active bool
	// Bound is set where the socket had its local port before it connected.
	Bound bool
	// Lingers is set on a change to CLOSE that leaves a small socket in
	// FIN_WAIT2 or TIME_WAIT. One in FIN_WAIT2 goes on to TIME_WAIT, or ends
	// with a TimeWaitEnd whose Old is FIN_WAIT2.
	Lingers bool
	// Ended is how a TIME_WAIT ended.
	Ended Ended
	// Ports are the local ports that this connect may get: the network
	// namespace's ip_local_port_range at that moment, narrowed by the
	// socket's own IP_LOCAL_PORT_RANGE. Set on changes to and from SYN_SENT.
	Ports PortRange
	// Reason is the running kernel's own name for why it sent a RST (from
	// Linux 6.10) or dropped a packet (from 5.17), such as NO_SOCKET: ""
	// for none.
	Reason string
	// ISN is the sequence number of the SYN, on a change from SYN_SENT and on
	// a Drop: NAT leaves it as it is, and changes all else.
	ISN uint32
	// Packet is what a Drop is about. NetNS is where it was dropped, Old the
	// state of the socket that had sent it, where it was still that one's,
	// and New of the one that it was for, where it had met one. Address is
	// that of either, and Local its end; where it is 0 Local is the packet's
	// destination.
	Packet Packet
	// Location is the kernel's function that dropped it.
	Location string
}

// PortRange is a range of ports, both ends included; the zero PortRange is
// unknown.
type PortRange struct{ Low, High uint16 }

// Has reports whether the port lies in the range.
func (r PortRange) Has(port uint16) bool { return r.Low <= port && port <= r.High }

// Sysctls are the settings of a network namespace that decide on the ports and
// the timers of TCP. A new namespace has the kernel's own, not its parent's.
type Sysctls struct {
	Ports    PortRange   // ip_local_port_range
	Reserved []PortRange // ip_local_reserved_ports
	// Numbers are the values of SysctlNames, negative where this kernel has
	// none.
	Numbers [len(SysctlNames)]int64
}

// Equal reports whether all settings are the same.
func (s Sysctls) Equal(other Sysctls) bool {
	return s.Ports == other.Ports && s.Numbers == other.Numbers && slices.Equal(s.Reserved, other.Reserved)
}

// Usable counts the local ports that a connect may get.
func (s Sysctls) Usable() int {
	usable := int(s.Ports.High) - int(s.Ports.Low) + 1
	for _, reserved := range s.Reserved {
		low, high := max(reserved.Low, s.Ports.Low), min(reserved.High, s.Ports.High)
		usable -= max(int(high)-int(low)+1, 0)
	}
	return max(usable, 0)
}

// Number returns the setting of SysctlNames that is called name, negative where
// this kernel has none.
func (s Sysctls) Number(name string) int64 {
	i := slices.Index(SysctlNames[:], name)
	if i < 0 {
		return -1
	}
	return s.Numbers[i]
}

// SysctlNames are the names of Sysctls.Numbers, under net.ipv4.
var SysctlNames = [...]string{
	"tcp_tw_reuse", "tcp_tw_reuse_delay", "tcp_timestamps", "tcp_fin_timeout",
	"tcp_max_tw_buckets", "tcp_syn_retries", "tcp_syn_linear_timeouts",
}

// Ended is how a TIME_WAIT ended.
type Ended uint8

// How a TIME_WAIT ends. Their numbers are those of enum ended in bpf/event.h.
const (
	// Expired: its time was over.
	Expired Ended = iota + 1
	// Reused: a connect took its four-tuple, by tcp_tw_reuse or on a bound
	// socket.
	Reused
	// SynAccepted: the peer opened a new connection on it.
	SynAccepted
	// TimeWaitReset: the peer sent a RST.
	TimeWaitReset
	// Killed: its network namespace went, or somebody destroyed it, as by
	// ss -K.
	Killed
	// EndedUnknown: the kernel ended it in a way that is not known.
	EndedUnknown

	// Endings is one more than the highest Ended.
	Endings
)

var endedNames = [Endings]string{
	Expired:       "expired",
	Reused:        "reused",
	SynAccepted:   "syn_accepted",
	TimeWaitReset: "reset",
	Killed:        "killed",
	EndedUnknown:  "unknown",
}

func (e Ended) String() string {
	if e > 0 && e < Endings {
		return endedNames[e]
	}
	return "invalid"
}

// Packet is a packet of a handshake.
type Packet uint8

// The packets. Their numbers are those of enum packet in bpf/event.h.
const (
	SYN Packet = iota + 1
	SYNACK
	ACK // the handshake's last
	RST

	// Packets is one more than the highest Packet.
	Packets
)

var packetNames = [Packets]string{SYN: "SYN", SYNACK: "SYN-ACK", ACK: "ACK", RST: "RST"}

func (p Packet) String() string {
	if p > 0 && p < Packets {
		return packetNames[p]
	}
	return "invalid"
}

// Clock is the time to reckon with: Mono or else Time.
func (e *Event) Clock() int64 {
	if e.Mono != 0 {
		return e.Mono
	}
	return e.Time
}

// Socket tells which connection an event is about, and whose it is.
type Socket struct {
	// Address is where the kernel keeps the struct sock. The kernel uses
	// the memory again within milliseconds: it tells sockets apart at one
	// moment, and is no identity. 0 where there is no full socket.
	Address uint64
	// Cookie is the kernel's lasting identity of a socket, as ss -e shows
	// it: 0 where it is not known (before Linux 5.12).
	Cookie uint64
	NetNS  NetNS
	Tuple  Tuple
	Owner  Owner
}

// NetNS is a network namespace.
type NetNS struct {
	// Inode is what lsns shows. The kernel uses inodes again.
	Inode uint32
	// Cookie is never used again: 0 where it is not known (before Linux
	// 5.12).
	Cookie uint64
}

// Tuple is a connection's two ends. An IPv4 connection on an IPv6 socket is
// IPv4.
type Tuple struct {
	// Local is this machine's end. Its port is 0 while the kernel has
	// chosen none.
	Local netip.AddrPort
	// Peer is the zero AddrPort where there is none (a listener).
	Peer netip.AddrPort
}

// Owner is the process whose socket it is: who connected, listened or
// accepted, never the task that happened to run.
type Owner struct {
	// PID is the process (the kernel's tgid) as the host sees it, TID the
	// thread. PID is 0 where the owner is not known, TID where only the
	// process is.
	PID, TID uint32
	UID      uint32
	// Comm is the thread's name at that moment.
	Comm string
	// Cgroup is the id of the control group that the process was in, 0 where
	// it is not known: of version 2, or where the controllers are those of
	// version 1, of the first of memory, pids, devices and cpuset that is.
	Cgroup uint64
	// In is what is known of that one, nil for nothing.
	In *Cgroup
}

// Known reports whether the owner is known.
func (o Owner) Known() bool { return o.PID != 0 }
