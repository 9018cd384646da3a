package otlp

import (
	"iter"
	"net/netip"
	"strconv"
	"syscall"
	"time"

	"go.opentelemetry.io/otel/attribute"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/sink"
)

const (
	// sumEvent is what a sum is called, which is in no log.
	sumEvent = "twtrace.connects"
	// every is how often sums are sent, Unix nanoseconds.
	every = int64(10 * time.Second)
	// maxSums bounds them; one more is for all others.
	maxSums = 4096
)

// sums are the connects of ten seconds, by who connected, where to, and what became
// of it.
type sums struct {
	of    map[sumKey]*sum
	began int64 // Unix nanoseconds
}

type sumKey struct {
	netns   event.NetNS
	cgroup  uint64
	uid     uint32
	comm    string
	local   netip.Addr
	peer    netip.AddrPort
	outcome record.Outcome
	errno   syscall.Errno
}

type sum struct {
	socket      event.Socket // what they have in common, and the first one's process
	connects    int64
	retransmits int64
	interval    time.Duration
	first, last int64 // Unix nanoseconds
	timed       int64 // of connects, how many took a time that is known
	took        time.Duration
	longest     time.Duration
}

func newSums() sums { return sums{of: make(map[sumKey]*sum), began: time.Now().UnixNano()} }

// add counts a connect.
func (s *sums) add(r *record.Record) {
	if r.Kind != record.Connect {
		return
	}
	socket := r.Socket
	socket.Address, socket.Cookie = 0, 0
	socket.Tuple.Local = netip.AddrPortFrom(socket.Tuple.Local.Addr(), 0)
	k := sumKey{
		socket.NetNS, socket.Owner.Cgroup, socket.Owner.UID, socket.Owner.Comm,
		socket.Tuple.Local.Addr(), socket.Tuple.Peer, r.Connect.Outcome, r.Connect.Errno,
	}
	of := s.of[k]
	if of == nil && len(s.of) >= maxSums {
		k = sumKey{outcome: r.Connect.Outcome, errno: r.Connect.Errno}
		socket = event.Socket{}
		of = s.of[k]
	}
	if of == nil {
		of = &sum{socket: socket, first: r.Time}
		s.of[k] = of
	}
	of.connects++
	of.retransmits += int64(r.Connect.Retransmits)
	of.first, of.last = min(of.first, r.Time), max(of.last, r.Time)
	if d := r.Connect.Duration; d > 0 {
		of.timed++
		of.took += d
		of.longest = max(of.longest, d)
	}
}

// due reports whether it is time to send them.
func (s *sums) due(now int64) bool { return now-s.began >= every }

// take returns the sums, each with a record that it stands for, and begins anew.
func (s *sums) take(now int64) iter.Seq2[*record.Record, *sum] {
	return func(yield func(*record.Record, *sum) bool) {
		for k, of := range s.of {
			of.interval = time.Duration(now - s.began)
			r := record.Record{
				Kind: record.Connect, Time: now, Socket: of.socket,
				Connect: record.ConnectFields{Outcome: k.outcome, Errno: k.errno},
			}
			if !yield(&r, of) {
				return
			}
		}
		clear(s.of)
		s.began = now
	}
}

// sum adds the attributes of a sum.
func (f *flattener) sum(of *sum) {
	ms := func(d time.Duration) attribute.Value {
		return attribute.Float64Value(float64(d) / float64(time.Millisecond))
	}
	f.add("twtrace.connects.count", attribute.Int64Value(of.connects))
	f.add("twtrace.connects.interval_ms", ms(of.interval))
	f.add("twtrace.connects.syn_retransmits", attribute.Int64Value(of.retransmits))
	f.add("twtrace.connects.first", moment(of.first))
	f.add("twtrace.connects.last", moment(of.last))
	if of.timed > 0 {
		f.add("twtrace.connects.duration_mean_ms", ms(of.took/time.Duration(of.timed)))
		f.add("twtrace.connects.duration_max_ms", ms(of.longest))
	}
}

// appendSentence appends a sum in words.
func (of *sum) appendSentence(b []byte, r *record.Record) []byte {
	b = strconv.AppendInt(b, of.connects, 10)
	if of.connects == 1 {
		b = append(b, " connect"...)
	} else {
		b = append(b, " connects"...)
	}
	if comm := of.socket.Owner.Comm; comm != "" {
		b = append(b, " of "...)
		b, _ = sink.AppendName(b, comm, len(comm))
	}
	if peer := of.socket.Tuple.Peer; peer.IsValid() {
		b = append(b, " to "...)
		b = netip.AddrPortFrom(peer.Addr().Unmap(), peer.Port()).AppendTo(b)
	}
	b = append(b, " in "...)
	b = sink.AppendSpan(b, of.interval)
	b = append(b, ": "...)
	return append(b, r.Connect.Outcome.String()...)
}
