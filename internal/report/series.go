package report

// maxSlices is how many slices the window is cut into at most: as many as a plot can
// show.
const maxSlices = 480

// A clock cuts the window into slices of equal length, which grow as the window does.
type clock struct {
	from, slice int64 // nanoseconds
	used        int   // slices so far
	counters    []*counter
	gauges      []*gauge
}

// A counter counts by slices.
type counter [maxSlices]uint64

// A gauge keeps the most that a number was in each slice.
type gauge struct {
	now  uint64
	last int // the slice that it was set in last
	most [maxSlices]uint32
}

func newClock() *clock { return &clock{slice: 10e6} }

// at returns the slice that a time is in.
func (c *clock) at(time int64) int {
	if c.used == 0 {
		c.from = time - time%c.slice
	}
	for {
		before := (c.from - time + c.slice - 1) / c.slice
		if before > 0 && int(min(before, maxSlices))+c.used > maxSlices || (time-c.from)/c.slice >= maxSlices {
			c.widen()
			continue
		}
		if before > 0 {
			c.shift(int(before))
		}
		i := int((time - c.from) / c.slice)
		c.used = max(c.used, i+1)
		return i
	}
}

// widen makes one slice of two.
func (c *clock) widen() {
	for _, n := range c.counters {
		for i := range maxSlices / 2 {
			n[i] = n[2*i] + n[2*i+1]
		}
		clear(n[maxSlices/2:])
	}
	for _, g := range c.gauges {
		for i := range maxSlices / 2 {
			g.most[i] = max(g.most[2*i], g.most[2*i+1])
		}
		clear(g.most[maxSlices/2:])
		g.last /= 2
	}
	c.slice *= 2
	c.used = (c.used + 1) / 2
}

// shift puts slices before the first.
func (c *clock) shift(by int) {
	for _, n := range c.counters {
		copy(n[by:], n[:])
		clear(n[:by])
	}
	for _, g := range c.gauges {
		copy(g.most[by:], g.most[:])
		clear(g.most[:by])
		g.last += by
	}
	c.from -= int64(by) * c.slice
	c.used += by
}

// set notes what the number is from slice i on.
func (g *gauge) set(i int, value uint64) {
	g.carry(i)
	g.now = value
	g.most[i] = max(g.most[i], uint32(value))
}

// carry notes that the number has stayed what it was, up to slice i.
func (g *gauge) carry(i int) {
	for ; g.last < i; g.last++ {
		g.most[g.last+1] = uint32(g.now)
	}
}
