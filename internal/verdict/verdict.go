// Package verdict tells why: why a connect failed or was late, why a connection was
// reset. It is a table of rules over what was seen, in the order in which they
// decide, and pure: the same facts give the same verdict, live or from a log.
package verdict

import (
	"fmt"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

// The ids. docs/verdicts.md tells what each means.
const (
	NoPortTimeWait   = "local_ports_exhausted_time_wait"
	NoPortLive       = "local_ports_exhausted_live"
	Refused          = "refused"
	Unanswered       = "syn_unanswered"
	SYNDropped       = "syn_dropped_local"
	SYNACKDropped    = "synack_dropped_local"
	NoRoute          = "unreachable_local"
	ICMP             = "unreachable_icmp"
	NoNeighbour      = "unreachable_neighbour"
	PerHostPAWS      = "peer_per_host_paws"
	TimeWaitAtPeer   = "peer_time_wait_collision"
	HalfOpenAtPeer   = "peer_half_open"
	SNATClash        = "node_snat_insert_failed"
	ConntrackFull    = "conntrack_table_full"
	CloudSNAT        = "cloud_snat_suspected"
	PortCooldown     = "nat_port_cooldown"
	ListenOverflow   = "listen_overflow"
	GaveUp           = "app_gave_up"
	LateSuccess      = "late_success"
	ResetEarly       = "reset_after_handshake"
	TimeWaitOverflow = "tw_overflow"
)

// Facts are all that a verdict can rest on.
type Facts struct {
	// Record is the connect, or the close.
	Record *record.Record
	track.Case
	// Sysctls are the settings of the network namespace of the connect, nil
	// where they could not be read, and SysctlsLine is where they stand.
	Sysctls     *event.Sysctls
	SysctlsLine uint64
	// Counters are those that moved, in the network namespaces of this
	// machine that have to do with it.
	Counters []Counters
	// Offsets is how this kernel chooses timestamp offsets: per_host,
	// per_connection, none; "" unknown.
	Offsets string
	// Backlog is the listener at the peer's end whose queue is full, where
	// that end is on this machine.
	Backlog *Backlog
	// DropsSeen is set where dropped packets can be seen, and DropReasons where
	// the kernel says why.
	DropsSeen, DropReasons bool
	// Lost is set where events were lost while the connect went on.
	Lost bool
}

// Counters are what moved in a network namespace.
type Counters struct {
	NetNS event.NetNS
	Line  uint64
	record.CountersFields
	// ConntrackCount and ConntrackMax are how full the table of connections
	// is: 0 where there is none.
	ConntrackCount, ConntrackMax uint64
}

// Backlog is a listener's queue of connections that nobody has accepted yet.
type Backlog struct {
	Port   uint16
	Length uint32
	Owner  event.Owner
}

// delta sums what a counter has moved, in all that were looked at or in one
// namespace.
func (f *Facts) delta(name string, in ...event.NetNS) (n uint64, line uint64) {
	for i := range f.Counters {
		c := &f.Counters[i]
		if len(in) > 0 && c.NetNS != in[0] {
			continue
		}
		if d := c.Delta[name]; d > 0 {
			n += d
			line = c.Line
		}
	}
	return n, line
}

// isLocal reports whether the peer's end is on this machine.
func (f *Facts) isLocal() bool { return f.There.Inode != 0 }

// sent returns the RST that we answered the peer with in the handshake.
func (f *Facts) sent() *track.Reset {
	for i := range f.Resets {
		if r := &f.Resets[i]; !r.Received && r.State == event.SynSent {
			return r
		}
	}
	return nil
}

func (f *Facts) received() *track.Reset {
	for i := range f.Resets {
		if f.Resets[i].Received {
			return &f.Resets[i]
		}
	}
	return nil
}

// dropOf returns the first drop of this kind of packet, on its way to the peer or
// back.
func (f *Facts) dropOf(packet event.Packet, reverse bool) *track.Drop {
	for i := range f.Drops {
		if d := &f.Drops[i]; d.Packet == packet && d.Reverse == reverse {
			return d
		}
	}
	return nil
}

// here reports whether a packet was dropped in the network namespace of the
// connect.
func (f *Facts) here(d *track.Drop) bool { return d.Sender || d.NetNS == f.Record.Socket.NetNS }

// silent reports whether the connect had no answer, or had to wait for one.
func (f *Facts) silent() bool {
	outcome := f.Record.Connect.Outcome
	return outcome == record.TimedOut || outcome == record.Abandoned || outcome == record.Established && f.Record.Connect.Retransmits > 0
}

// Concerns reports whether there is anything to explain about a record.
func Concerns(r *record.Record) bool {
	switch r.Kind {
	case record.Connect:
		return r.Connect.Outcome != record.Established || r.Connect.Retransmits > 0
	case record.Close:
		return r.Close.By == record.ByResetReceived && r.Close.Duration > 0 && r.Close.Duration <= soon
	}
	return false
}

// soon is how long after the handshake a RST still belongs to it.
const soon = 5 * time.Second

// A rule tells whether a cause stands, what for and how surely, and what to do.
type rule struct {
	id string
	// stands returns the verdict where the cause explains the facts, nil
	// where it does not.
	stands func(f *Facts) *record.VerdictFields
	// excluded says why it can't be this cause, "" where nothing excludes it.
	excluded func(f *Facts) string
	// confusedWith are the causes that look alike: a verdict says of each why
	// it is ruled out, where it is.
	confusedWith []string
}

// Of returns the verdict on a connect or a connection, nil where there is nothing
// to explain or nothing to say.
func Of(f *Facts) *record.VerdictFields {
	// That a client resets what it began is its business.
	if !Concerns(f.Record) || f.Record.Kind == record.Close && !f.Active {
		return nil
	}
	inner := cause(f)
	if f.Record.Kind == record.Connect {
		switch f.Record.Connect.Outcome {
		case record.Abandoned:
			return gaveUp(f, inner)
		case record.Established:
			return late(f, inner)
		}
	}
	return inner
}

// cause returns the verdict of the first rule that stands.
func cause(f *Facts) *record.VerdictFields {
	for _, r := range rules {
		v := r.stands(f)
		if v == nil {
			continue
		}
		v.ID = r.id
		for _, other := range r.confusedWith {
			if why := excluded(other, f); why != "" {
				v.RuledOut = append(v.RuledOut, other+": "+why)
			}
		}
		v.NotVisible = append(v.NotVisible, notVisible(f, v)...)
		return v
	}
	return nil
}

func excluded(id string, f *Facts) string {
	for _, r := range rules {
		if r.id == id && r.excluded != nil {
			return r.excluded(f)
		}
	}
	return ""
}

// notVisible is what could have told, and can't be seen on this machine.
func notVisible(f *Facts, v *record.VerdictFields) []string {
	var spots []string
	if v.Confidence == record.Certain {
		return nil
	}
	if f.silent() {
		if !f.DropsSeen {
			spots = append(spots, "packets that this machine drops")
		} else if !f.DropReasons {
			spots = append(spots, "why this machine drops a packet (needs Linux 5.17)")
		}
		if !f.isLocal() {
			spots = append(spots, "what happens beyond this machine")
		}
	}
	if f.Lost {
		spots = append(spots, "events that were lost meanwhile")
	}
	return spots
}

// gaveUp wraps the cause of a connect that the program did not wait for.
func gaveUp(f *Facts, inner *record.VerdictFields) *record.VerdictFields {
	c := &f.Record.Connect
	v := &record.VerdictFields{
		ID: GaveUp, Confidence: record.Certain, Inner: inner,
		Text:     "the program closed the socket" + after(c.Duration) + ", before there was an answer",
		Evidence: []record.Evidence{{Text: "the socket went from SYN_SENT to CLOSE without an error of its own"}},
		RuledOut: []string{"a timeout of the kernel's: that sets ETIMEDOUT"},
	}
	if step := programTimeout(c.Duration); step > 0 {
		v.Evidence = append(v.Evidence, record.Evidence{Text: fmt.Sprintf("it waited %s, a usual timeout of programs", step)})
	}
	v.Evidence = append(v.Evidence, retransmitted(f)...)
	v.Advice = "wait 3 s or longer for a connect, so that one lost SYN can be sent again; see the inner verdict for the cause"
	if inner == nil {
		v.Advice = "nothing was amiss before it gave up: see whether its timeout is shorter than the round trip"
	}
	return v
}

// late wraps the cause of a connect that succeeded late.
func late(f *Facts, inner *record.VerdictFields) *record.VerdictFields {
	c := &f.Record.Connect
	v := &record.VerdictFields{
		ID: LateSuccess, Confidence: record.Certain, Inner: inner,
		Text:     fmt.Sprintf("it connected only after %s%s", times(int(c.Retransmits), "SYN was sent again", "SYNs were sent again"), after(c.Duration)),
		Evidence: retransmitted(f),
		RuledOut: []string{"a slow network: without a lost SYN none is sent again within the first second"},
		Advice:   "see the inner verdict",
	}
	return v
}

// programTimeout returns the timeout of a program that waited so long, 0 where it is
// none of the usual ones.
func programTimeout(waited time.Duration) time.Duration {
	for _, usual := range []time.Duration{1, 2, 3, 5, 10, 15, 20, 30, 60} {
		if d := usual * time.Second; waited >= d && waited < d+d/20 {
			return d
		}
	}
	return 0
}

// retransmitted is the evidence that SYNs were sent again.
func retransmitted(f *Facts) []record.Evidence {
	n := f.Record.Connect.Retransmits
	if n == 0 {
		return nil
	}
	e := record.Evidence{Text: times(int(n), "SYN was sent again", "SYNs were sent again")}
	if len(f.Retransmits) > 0 {
		e.Line = f.Retransmits[len(f.Retransmits)-1]
	}
	return []record.Evidence{e}
}

func times(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

func after(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return " after " + span(d)
}

// span spells a duration for reading.
func span(d time.Duration) string {
	switch {
	case d < 10*time.Microsecond:
		return fmt.Sprintf("%.3f ms", d.Seconds()*1e3)
	case d < time.Second:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1e3)
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}
