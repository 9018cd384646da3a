package top

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

const (
	// recent is how long a connect counts. It is forgotten up to a step
	// later.
	recent = int64(time.Minute)
	step   = int64(time.Second)
	// maxTallies bounds the counters: one for each process and destination
	// that have met within the last minute, half a kilobyte with its key.
	maxTallies = 1 << 16
	// maxConnections bounds what is shown of the connections behind a row:
	// as many as a destination can have.
	maxConnections = 1 << 16
	// maxComms bounds the names of a row, of which a line has room for few.
	maxComms = 16
)

// Collector counts connects, and puts them together with what the tracker
// knows.
type Collector struct {
	now     int64 // time on the events' clock
	stepped int64 // the present step began
	step    int   // its number among tally.failures
	began   int64 // the interval
	lasted  int64 // the last interval
	// tallies are by all that connects can be grouped by.
	tallies map[Key]*tally
	// rest counts the connects that there was no room for.
	rest tally
}

type tally struct {
	comm     string
	in       *event.Cgroup
	seen     int64  // the last connect
	connects uint32 // in this interval
	before   uint32 // in the last one
	// failures are those of each step.
	failures [recent/step + 1]uint32
	last     record.Outcome // of the failures
	lastAt   int64
}

// NewCollector returns a Collector that begins at the time now, on the events'
// clock.
func NewCollector(now int64) *Collector {
	return &Collector{now: now, stepped: now, began: now, tallies: make(map[Key]*tally)}
}

// Advance tells that it is now so late.
func (c *Collector) Advance(now int64) {
	c.now = now
	for ; now-c.stepped >= step; c.stepped += step {
		c.step = (c.step + 1) % len(c.rest.failures)
		c.rest.failures[c.step] = 0
		for key, t := range c.tallies {
			t.failures[c.step] = 0
			if now-t.seen > recent {
				delete(c.tallies, key)
			}
		}
	}
}

// Observe counts the connect of a moment, if it has one.
func (c *Collector) Observe(moment []record.Record) {
	for i := range moment {
		if moment[i].Kind == record.Connect {
			c.count(&moment[i])
		}
	}
}

func (c *Collector) count(r *record.Record) {
	key := keyOf(&r.Socket, true)
	t := c.tallies[key]
	switch {
	case t != nil:
	case len(c.tallies) < maxTallies:
		t = new(tally)
		c.tallies[key] = t
	default:
		t = &c.rest
	}
	t.comm, t.in = r.Socket.Owner.Comm, r.Socket.Owner.In
	t.seen = c.now
	t.connects++
	if r.Connect.Outcome != record.Established {
		t.failures[c.step]++
		t.last, t.lastAt = r.Connect.Outcome, r.Time
	}
}

// EndInterval ends the interval that rates are of.
func (c *Collector) EndInterval() {
	c.lasted, c.began = c.now-c.began, c.now
	c.rest.endInterval()
	for _, t := range c.tallies {
		t.endInterval()
	}
}

func (t *tally) endInterval() { t.before, t.connects = t.connects, 0 }

func (t *tally) failed() (n uint64) {
	for _, count := range t.failures {
		n += uint64(count)
	}
	return n
}

// rate is the connects in a second of the last interval.
func (c *Collector) rate(t *tally) float64 {
	if c.lasted == 0 {
		return 0
	}
	return float64(t.before) / time.Duration(c.lasted).Seconds()
}

// Snapshot makes the table of view from what the tracker knows now.
func (c *Collector) Snapshot(view View, destinations iter.Seq[track.Destination], connections iter.Seq[track.Connection]) *Snapshot {
	s := &Snapshot{View: view, Rate: c.rate(&c.rest), Failures: c.rest.failed()}
	rows := make(map[Key]*Row)
	row := func(key Key) *Row {
		r := rows[key]
		if r == nil {
			r = &Row{Key: key}
			rows[key] = r
		}
		return r
	}
	ports := make(map[Key]record.PortsFields)
	for d := range destinations {
		key := keyOf(&d.Socket, true)
		ports[key] = d.Ports
		if view.Group == ByDestination {
			row(key).fill(key, &d.Ports)
		}
	}
	for connection := range connections {
		full := keyOf(&connection.Socket, connection.HoldsPort || !connection.TimeWait)
		key := view.Group.of(full)
		r := row(key)
		r.name(connection.Socket.Owner.Comm)
		r.contain(view.Group, connection.Socket.Owner.In)
		if connection.TimeWait {
			r.TimeWait++
			s.TimeWait++
		} else {
			r.Live++
			s.Live++
		}
		if connection.HoldsPort {
			destination := ByDestination.of(full)
			ports := ports[destination]
			r.fill(destination, &ports)
		}
		if view.Inside && key == view.Row {
			if len(s.Connections) < maxConnections {
				s.Connections = append(s.Connections, connection)
			} else {
				s.Omitted++
			}
		}
	}
	for key, t := range c.tallies {
		r := row(view.Group.of(key))
		r.name(t.comm)
		r.contain(view.Group, t.in)
		rate, failed := c.rate(t), t.failed()
		r.Rate += rate
		r.Failures += failed
		s.Rate += rate
		s.Failures += failed
		if failed > 0 && t.lastAt > r.lastAt {
			r.Last, r.lastAt = t.last, t.lastAt
		}
	}
	for _, r := range rows {
		slices.Sort(r.Comms)
		s.Rows = append(s.Rows, *r)
	}
	if n := c.rest.before; n > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("more than %d pairs of process and destination: %d connects are in no row", maxTallies, n))
	}
	return s
}
