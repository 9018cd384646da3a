package track

import (
	"net/netip"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

const (
	// maxPeers bounds the destinations of which something is known.
	maxPeers = 16 << 10
	// pawsMemory is how long a peer remembers a TSval: TCP_PAWS_MSL of the
	// tcp_metrics.c that had tcp_tw_recycle (up to Linux 4.11).
	pawsMemory = int64(60 * time.Second)
	// pawsWindow is by how much a TSval may be older: TCP_PAWS_WINDOW.
	pawsWindow = 1
	// tableAge is how long the count of predictions goes on without a connect.
	tableAge = int64(10 * time.Minute)
)

// A stamp is a TSval that a peer was sent.
type stamp struct {
	tsval uint32
	at    int64 // 0: none
	netns event.NetNS
	local netip.Addr
	line  uint64
}

// A peer is what is known of a destination: an address and a port.
type peer struct {
	// newest is the newest TSval that it was sent within its memory, and
	// before the one before that.
	newest, before stamp
	predicted      [2][2]int
	last           int64 // when something was heard of it last
	// silent are network namespaces that had no answer, and when.
	silent [4]struct {
		netns event.NetNS
		at    int64
	}
	answered int64
	// connects counts those of this minute and of the one before.
	connects [2]int
	minute   int64
}

// answer is where a network namespace had its last two answers from.
type answer struct {
	from [2]netip.AddrPort
	at   [2]int64
}

func (t *Tracker) peer(address netip.AddrPort, now int64) *peer {
	p := t.peers[address]
	if p == nil {
		if len(t.peers) >= maxPeers {
			t.forgetPeers(now)
		}
		p = &peer{}
		t.peers[address] = p
	}
	if now-p.last > tableAge {
		*p = peer{}
	}
	p.last = now
	return p
}

// forgetPeers lets go of those of which nothing was heard for a while, or else of
// all.
func (t *Tracker) forgetPeers(now int64) {
	for address, p := range t.peers {
		if now-p.last > window {
			delete(t.peers, address)
		}
	}
	if len(t.peers) >= maxPeers {
		clear(t.peers)
	}
}

// note keeps a TSval where it is newer than those that the peer remembers.
func (p *peer) note(s stamp) {
	if p.newest.at != 0 && s.at-p.newest.at <= pawsMemory && int32(s.tsval-p.newest.tsval) < 0 {
		return
	}
	p.before, p.newest = p.newest, s
}

// newestBefore is the newest TSval of those before the time at.
func (p *peer) newestBefore(at int64) stamp {
	if p.newest.at <= at {
		return p.newest
	}
	if p.before.at <= at {
		return p.before
	}
	return stamp{}
}

// refuses reports whether a peer that remembers s would leave a SYN unanswered
// that has this TSval and is sent at the time at.
func (s *stamp) refuses(tsval uint32, at int64) bool {
	return s.at != 0 && at-s.at <= pawsMemory && int32(tsval-s.tsval) < -pawsWindow
}

// isSilent reports whether a connect ended without a word of the peer.
func isSilent(outcome record.Outcome) bool {
	return outcome == record.TimedOut || outcome == record.Abandoned
}

// heard notes what became of a connect.
func (t *Tracker) heard(e *event.Event, r *record.Record) {
	if !e.Tuple.Peer.IsValid() || r.Connect.Outcome == record.NoLocalPort {
		return
	}
	now := e.Clock()
	p := t.peer(e.Tuple.Peer, now)
	if minute := now / int64(time.Minute); minute != p.minute {
		if minute == p.minute+1 {
			p.connects[1] = p.connects[0]
		} else {
			p.connects[1] = 0
		}
		p.connects[0], p.minute = 0, minute
	}
	p.connects[0]++
	silent := isSilent(r.Connect.Outcome)
	switch {
	case silent:
		oldest := 0
		for i := range p.silent {
			if p.silent[i].netns == e.NetNS || p.silent[i].at == 0 {
				oldest = i
				break
			}
			if p.silent[i].at < p.silent[oldest].at {
				oldest = i
			}
		}
		p.silent[oldest].netns, p.silent[oldest].at = e.NetNS, now
	case r.Connect.Outcome == record.Established, r.Connect.Outcome == record.Refused:
		p.answered = now
		a := t.answers[e.NetNS]
		if a.from[0] != e.Tuple.Peer {
			a.from[1], a.at[1] = a.from[0], a.at[0]
		}
		if len(t.answers) >= maxPlaces {
			clear(t.answers)
		}
		a.from[0], a.at[0] = e.Tuple.Peer, now
		t.answers[e.NetNS] = a
	}
	if !r.Connect.HasTSVal || !silent && r.Connect.Outcome != record.Established {
		return
	}
	began := now - int64(e.Began)
	known := p.newestBefore(began)
	if a := t.attempts[e.Address]; a != nil {
		known = a.newest
	}
	p.predicted[index(known.refuses(r.Connect.TSVal, began))][index(silent)]++
	if !silent {
		p.note(stamp{r.Connect.TSVal, now, e.NetNS, e.Tuple.Local.Addr(), r.Line})
	}
}

func index(b bool) int {
	if b {
		return 1
	}
	return 0
}

// lastHeard notes the last TSval that a peer was sent.
func (t *Tracker) lastHeard(e *event.Event, r *record.Record) {
	if !isActive(e) || !r.Close.HasTSValLast || !e.Tuple.Peer.IsValid() {
		return
	}
	t.peer(e.Tuple.Peer, e.Clock()).note(stamp{r.Close.TSValLast, e.Clock(), e.NetNS, e.Tuple.Local.Addr(), r.Line})
}

// peerOf tells what is known of the destination of r, a connect that is being told.
func (t *Tracker) peerOf(r *record.Record) Peer {
	var told Peer
	now := t.now
	if a, ok := t.answers[r.Socket.NetNS]; ok {
		for i, from := range a.from {
			if from.IsValid() && from != r.Socket.Tuple.Peer && now-a.at[i] <= window {
				told.ElsewhereAnswered = time.Duration(max(now-a.at[i], 1))
				break
			}
		}
	}
	p := t.peers[r.Socket.Tuple.Peer]
	if p == nil {
		return told
	}
	began := now - int64(r.Connect.Duration)
	known := p.newestBefore(began)
	if a := t.attempts[r.Socket.Address]; a != nil {
		known = a.newest
	}
	if known.at != 0 && began-known.at <= pawsMemory {
		told.Newest = Stamp{known.tsval, time.Duration(max(began-known.at, 1)), known.netns, known.local, known.line}
	}
	told.Predicted = p.predicted
	if r.Connect.HasTSVal && (isSilent(r.Connect.Outcome) || r.Connect.Outcome == record.Established) {
		// This one, too, which is not counted before it is told.
		told.Predicted[index(known.refuses(r.Connect.TSVal, began))][index(isSilent(r.Connect.Outcome))]++
	}
	isHere := false
	for _, s := range p.silent {
		if s.at != 0 && now-s.at <= int64(time.Minute) {
			told.SilentFrom++
			isHere = isHere || s.netns == r.Socket.NetNS
		}
	}
	if isSilent(r.Connect.Outcome) && !isHere {
		told.SilentFrom++
	}
	if p.answered != 0 && now-p.answered <= window {
		told.Answered = time.Duration(max(now-p.answered, 1))
	}
	passed := now % int64(time.Minute)
	earlier := 0
	switch now / int64(time.Minute) {
	case p.minute:
		earlier = p.connects[1]
		told.Rate = float64(p.connects[0])
	case p.minute + 1:
		earlier = p.connects[0]
	}
	told.Rate = (told.Rate + float64(earlier)*(1-float64(passed)/float64(time.Minute))) / 60
	return told
}
