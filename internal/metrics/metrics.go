// Package metrics counts the records of a run for Prometheus. What counts, it
// counts as the records come; what is, such as the sockets in TIME_WAIT, it asks
// the tracker for, when somebody asks.
//
// How many series there can be is bounded: by the kernel's and the log's own
// words, and by Config for everything that others choose.
package metrics

import (
	"net/netip"
	"runtime"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
)

// Other stands for the namespace, pod, container and destination of what there
// was no room for. No Kubernetes name has an underscore.
const Other = "_other"

// A Place is whose a socket is. What is not known is "".
type Place struct{ Namespace, Pod, Container string }

// placeOf is the place of an owner. All whose container has no name that is known are
// in one.
func placeOf(o *event.Owner) Place {
	if o.In == nil {
		return Place{}
	}
	return Place{Namespace: o.In.Namespace, Pod: o.In.Pod, Container: o.In.Name}
}

// Config bounds the series.
type Config struct {
	Version string
	// Places is how many places have series of their own, 1 at least.
	Places int
	// Destinations is how many pairs of a place and a destination have, 0 for
	// no series by destination.
	Destinations int
	// Sample is called when somebody asks, by another goroutine than that of
	// Observe. It has that one call Take, and returns once it has, or once it
	// is clear that it won't.
	Sample func()
	// Sent tells how many records were sent by OTLP and how many were dropped,
	// to any goroutine; nil without OTLP.
	Sent func() (sent, dropped uint64)
}

// A key is a set of labels.
type key struct {
	place Place
	// first to third are the metric's own.
	first, second, third string
}

// vec is one metric with labels. It finds the metric of a key without allocating,
// once it is known.
type vec[M any] struct {
	known map[key]M
	make  func(labels ...string) M
	drop  func(labels ...string) bool
	own   int // labels, beside the place's
}

func (v *vec[M]) of(k key) M {
	m, ok := v.known[k]
	if !ok {
		m = v.make(v.labels(k)...)
		v.known[k] = m
	}
	return m
}

func (v *vec[M]) labels(k key) []string {
	own := [...]string{k.first, k.second, k.third}
	return append(own[:v.own:v.own], k.place.Namespace, k.place.Pod, k.place.Container)
}

// forget gives up what is about a place.
func (v *vec[M]) forget(place Place) {
	for k := range v.known {
		if k.place == place {
			v.drop(v.labels(k)...)
			delete(v.known, k)
		}
	}
}

// Metrics are those of one run. Observe, Lost, Take and what it calls are for one
// goroutine, and Registry is for any.
type Metrics struct {
	Registry *prometheus.Registry
	config   Config

	events        [record.Kinds]prometheus.Counter
	connects      vec[prometheus.Counter]
	durations     vec[prometheus.Observer]
	timeWaitEnds  vec[prometheus.Counter]
	reuseGaps     vec[prometheus.Observer]
	retransmits   vec[prometheus.Counter]
	drops         vec[prometheus.Counter]
	verdicts      vec[prometheus.Counter]
	egress        *prometheus.CounterVec // connects, by destination
	egressOf      map[pair]prometheus.Counter
	lost          [record.InOutput + 1]prometheus.Counter
	lostSoFar     [record.InOutput + 1]uint64
	overflow      prometheus.Counter
	overflowPairs prometheus.Counter

	places bound[Place]
	pairs  bound[pair]
	sample atomic.Pointer[sample]
}

// A pair is a place and a destination.
type pair struct {
	place       Place
	destination netip.AddrPort
}

// durationBuckets are for scrapers that take no native histograms. The steps of
// SYN retransmission are 1, 3, 7, 15, 31, 63 and 127 s, or from Linux 6.5 on every
// second up to 5.
var durationBuckets = []float64{0.001, 0.005, 0.025, 0.1, 0.5, 0.95, 1.5, 3.5, 8, 16, 35, 70, 140}

// gapBuckets have the times that ports are held down: 16 s by NAT gateways after a
// RST, 60 s by the kernel, 65 s by NAT gateways after a FIN, and 120 s, which is
// what is remembered.
var gapBuckets = []float64{0.001, 0.01, 0.1, 1, 5, 16, 30, 60, 65, 90, 120}

// New returns Metrics.
func New(config Config) *Metrics {
	m := &Metrics{Registry: prometheus.NewRegistry(), config: config}
	m.places = newBound(config.Places, m.forgetPlace)
	m.pairs = newBound(config.Destinations, m.forgetPair)
	m.Registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))

	build := m.gauge("build_info", "A 1, with what this twtrace is as labels.", "version", "goversion", "goarch")
	build.WithLabelValues(config.Version, runtime.Version(), runtime.GOARCH).Set(1)

	events := m.counter("events_total", "Events by kind: the lines of the log, had no filter of lines left any out.", "event")
	for kind := record.Meta; kind < record.Kinds; kind++ {
		m.events[kind] = events.WithLabelValues(kind.String())
	}
	lost := m.counter("events_lost_total", "Events that were lost before they could be told (where=\"kernel\"), and lines that no output took (where=\"output\").", "where")
	for where := record.InKernel; where <= record.InOutput; where++ {
		m.lost[where] = lost.WithLabelValues(where.String())
	}
	overflow := m.counter("metrics_overflow_total", "Records counted under \""+Other+"\", since there is a bound on containers, and on destinations.", "of")
	m.overflow, m.overflowPairs = overflow.WithLabelValues("container"), overflow.WithLabelValues("destination")

	m.connects = m.counters("connect_total", "Connects that ended, by outcome, errno and cause: \"\" where there is none.", "outcome", "errno", "verdict")
	m.durations = m.histograms("connect_duration_seconds", "How long connects took until their outcome.", durationBuckets, "outcome")
	m.timeWaitEnds = m.counters("time_wait_end_total", "TIME_WAITs that ended, by how.", "how")
	m.reuseGaps = m.histograms("port_reuse_gap_seconds", "The time from the end of a use of ports to the next use of the same, where both were seen.", gapBuckets, "how")
	m.retransmits = m.counters("syn_retransmits_total", "SYNs and SYN-ACKs that went out again.", "packet")
	m.drops = m.counters("drops_total", "Packets of handshakes that the kernel threw away, by its own name for why: \"\" where it specifies none.", "reason")
	m.verdicts = m.counters("verdict_total", "Causes found, of connects and of others.", "verdict", "confidence")
	if config.Destinations > 0 {
		m.egress = m.counter("egress_connect_total", "Connects by destination, whatever became of them.", append([]string{"destination"}, placeLabels...)...)
		m.egressOf = make(map[pair]prometheus.Counter)
	}
	m.Registry.MustRegister(newSampled(m))
	if config.Sent != nil {
		for result, count := range map[string]func() float64{
			"sent":    func() float64 { sent, _ := config.Sent(); return float64(sent) },
			"dropped": func() float64 { _, dropped := config.Sent(); return float64(dropped) },
		} {
			m.Registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
				Namespace: "twtrace", Name: "otlp_records_total", Help: "Log records that were made for OTLP, by what became of them.",
				ConstLabels: prometheus.Labels{"result": result},
			}, count))
		}
	}
	return m
}

// placeLabels are every metric's about sockets.
var placeLabels = []string{"namespace", "pod", "container"}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	v := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "twtrace", Name: name, Help: help}, labels)
	m.Registry.MustRegister(v)
	return v
}

func (m *Metrics) gauge(name, help string, labels ...string) *prometheus.GaugeVec {
	v := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: "twtrace", Name: name, Help: help}, labels)
	m.Registry.MustRegister(v)
	return v
}

func (m *Metrics) counters(name, help string, own ...string) vec[prometheus.Counter] {
	v := m.counter(name, help, append(own, placeLabels...)...)
	return vec[prometheus.Counter]{make(map[key]prometheus.Counter), v.WithLabelValues, v.DeleteLabelValues, len(own)}
}

func (m *Metrics) histograms(name, help string, buckets []float64, own ...string) vec[prometheus.Observer] {
	v := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: "twtrace", Name: name, Help: help, Buckets: buckets,
		NativeHistogramBucketFactor: 1.1, NativeHistogramMaxBucketNumber: 100,
	}, append(own, placeLabels...))
	m.Registry.MustRegister(v)
	return vec[prometheus.Observer]{make(map[key]prometheus.Observer), v.WithLabelValues, v.DeleteLabelValues, len(own)}
}

// place is the one that a record is counted for.
func (m *Metrics) place(p Place, now int64) Place {
	if m.places.admit(p, now) {
		return p
	}
	m.overflow.Inc()
	return otherPlace
}

var otherPlace = Place{Other, Other, Other}

func (m *Metrics) forgetPlace(p Place) {
	for _, v := range []interface{ forget(Place) }{
		&m.connects, &m.durations, &m.timeWaitEnds, &m.reuseGaps, &m.retransmits, &m.drops, &m.verdicts,
	} {
		v.forget(p)
	}
}

func (m *Metrics) forgetPair(p pair) {
	m.egress.DeleteLabelValues(egressLabels(p)...)
	delete(m.egressOf, p)
}

// egressLabels are those of a pair: of one that there was no room for, the
// destination is invalid.
func egressLabels(p pair) []string {
	destination := Other
	if p.destination.IsValid() {
		destination = p.destination.String()
	}
	return []string{destination, p.place.Namespace, p.place.Pod, p.place.Container}
}

// Observe counts a record.
func (m *Metrics) Observe(r *record.Record) {
	m.events[r.Kind].Inc()
	if r.Verdict == nil && !counted[r.Kind] {
		return
	}
	place := m.place(placeOf(&r.Socket.Owner), r.Time)
	cause := ""
	if v := r.Verdict; v != nil {
		for v.Inner != nil {
			v = v.Inner
		}
		cause = v.ID
		m.verdicts.of(key{place: place, first: v.ID, second: v.Confidence.String()}).Inc()
	}
	switch r.Kind {
	case record.Connect:
		c := &r.Connect
		outcome := c.Outcome.String()
		m.connects.of(key{place, outcome, record.ErrnoName(c.Errno), cause}).Inc()
		if c.Duration > 0 {
			m.durations.of(key{place: place, first: outcome}).Observe(c.Duration.Seconds())
		}
		if m.config.Destinations > 0 && r.Socket.Tuple.Peer.IsValid() {
			m.countEgress(pair{place, r.Socket.Tuple.Peer}, r.Time)
		}
	case record.TimeWaitEnd:
		m.timeWaitEnds.of(key{place: place, first: r.TimeWait.Ended.String()}).Inc()
	case record.PortReuse:
		if r.Reuse.After > 0 {
			m.reuseGaps.of(key{place: place, first: r.Reuse.How.String()}).Observe(r.Reuse.After.Seconds())
		}
	case record.SynRetransmit:
		packet := "SYN"
		if r.SYN.SynAck {
			packet = "SYN-ACK"
		}
		m.retransmits.of(key{place: place, first: packet}).Inc()
	case record.Drop:
		m.drops.of(key{place: place, first: r.Drop.Reason}).Inc()
	}
}

func (m *Metrics) countEgress(p pair, now int64) {
	if !m.pairs.admit(p, now) {
		m.overflowPairs.Inc()
		p.destination = netip.AddrPort{}
	}
	c, ok := m.egressOf[p]
	if !ok {
		c = m.egress.WithLabelValues(egressLabels(p)...)
		m.egressOf[p] = c
	}
	c.Inc()
}

// counted are the kinds that have more than their number.
var counted = [record.Kinds]bool{
	record.Connect: true, record.TimeWaitEnd: true, record.PortReuse: true, record.SynRetransmit: true, record.Drop: true,
}

// Lost tells how many events and lines have been lost so far.
func (m *Metrics) Lost(where record.LostWhere, total uint64) {
	m.lost[where].Add(float64(total - m.lostSoFar[where]))
	m.lostSoFar[where] = total
}
