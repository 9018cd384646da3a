package metrics

import (
	"iter"
	"net/netip"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/track"
)

// Tables are what the tracker knows at a moment.
type Tables struct {
	Destinations iter.Seq[track.Destination]
	Connections  iter.Seq[track.Connection]
	// TimeWaits is set where TIME_WAITs are seen, and AllPorts where every
	// holder of a local port is. What is not seen is not said to be none.
	TimeWaits, AllPorts bool
}

// A sample is what was in the tables when they were last looked at.
type sample struct {
	timeWaits, allPorts bool
	waiting             map[Place]int
	used                map[Place]float64
	sockets             map[egressState]int
}

type egressState struct {
	pair
	state string
}

// Take looks at the tables, at the time now in Unix nanoseconds.
func (m *Metrics) Take(t Tables, now int64) {
	s := &sample{
		timeWaits: t.TimeWaits, allPorts: t.AllPorts,
		waiting: make(map[Place]int), used: make(map[Place]float64), sockets: make(map[egressState]int),
	}
	type toward struct {
		netns event.NetNS
		local netip.Addr
		peer  netip.AddrPort
	}
	of := func(s *event.Socket) toward {
		return toward{s.NetNS, s.Tuple.Local.Addr(), s.Tuple.Peer}
	}
	ratios := make(map[toward]float64)
	for d := range t.Destinations {
		if d.Ports.Usable > 0 {
			ratios[of(&d.Socket)] = float64(d.Ports.InUse) / float64(d.Ports.Usable)
		}
	}
	// What goes to one destination is counted first: there can be a million
	// sockets, and the reader of events waits. Those of accepts have none.
	type group struct {
		place Place
		toward
	}
	type count struct {
		open, waiting int
		holdsPort     bool
	}
	counts := make(map[group]*count)
	for c := range t.Connections {
		g := group{place: placeOf(&c.Socket.Owner)}
		if c.Active {
			g.toward = of(&c.Socket)
		}
		n := counts[g]
		if n == nil {
			n = new(count)
			counts[g] = n
		}
		if c.TimeWait {
			n.waiting++
		} else {
			n.open++
		}
		n.holdsPort = n.holdsPort || c.HoldsPort
	}
	for g, n := range counts {
		place := g.place
		if !m.places.admit(place, now) {
			place = otherPlace
		}
		s.waiting[place] += n.waiting
		if ratio, ok := ratios[g.toward]; ok && n.holdsPort {
			s.used[place] = max(s.used[place], ratio)
		}
		if m.config.Destinations == 0 || !g.peer.IsValid() {
			continue
		}
		p := pair{place, g.peer}
		if !m.pairs.admit(p, now) {
			p.destination = netip.AddrPort{}
		}
		if n.open > 0 {
			s.sockets[egressState{p, "open"}] += n.open
		}
		if n.waiting > 0 {
			s.sockets[egressState{p, "time_wait"}] += n.waiting
		}
	}
	m.sample.Store(s)
}

// sampled is the collector of what Take finds.
type sampled struct {
	*Metrics
	waiting, used, sockets *prometheus.Desc
}

func newSampled(m *Metrics) *sampled {
	describe := func(name, help string, own ...string) *prometheus.Desc {
		return prometheus.NewDesc("twtrace_"+name, help, append(own, placeLabels...), nil)
	}
	return &sampled{
		Metrics: m,
		waiting: describe("time_wait_sockets", "Sockets in TIME_WAIT now, of connects and accepts."),
		used:    describe("local_ports_used_ratio", "The share of the local port range that is taken toward one destination: of those that there are connects to, the fullest."),
		sockets: describe("egress_sockets", "Sockets of connects now, by destination and by whether they are open or in TIME_WAIT.", "destination", "state"),
	}
}

// Describe is prometheus.Collector's.
func (s *sampled) Describe(descriptions chan<- *prometheus.Desc) {
	descriptions <- s.waiting
	descriptions <- s.used
	descriptions <- s.sockets
}

// Collect is prometheus.Collector's.
func (s *sampled) Collect(metrics chan<- prometheus.Metric) {
	if s.config.Sample != nil {
		s.config.Sample()
	}
	found := s.sample.Load()
	if found == nil {
		return
	}
	gauge := func(d *prometheus.Desc, value float64, place Place, own ...string) {
		metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append(own, place.Namespace, place.Pod, place.Container)...)
	}
	if found.timeWaits {
		for place, n := range found.waiting {
			gauge(s.waiting, float64(n), place)
		}
		if len(found.waiting) == 0 {
			gauge(s.waiting, 0, Place{})
		}
	}
	if found.allPorts {
		for place, ratio := range found.used {
			gauge(s.used, ratio, place)
		}
	}
	for e, n := range found.sockets {
		gauge(s.sockets, float64(n), e.place, egressLabels(e.pair)[0], e.state)
	}
}
