package report

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

const (
	// maxRows bounds a table; half of them give way where there are more.
	maxRows = 1000
	// maxShares bounds with whom a row was seen.
	maxShares = 16
	// shownShares is how many of these the report has.
	shownShares = 5
)

// A tally counts by some key.
type tally[K comparable] struct {
	rows   map[K]*row
	others *row
	gone   uint64
	name   func(K) (name string, accepted bool)
}

// A row is a Row in the making.
type row struct {
	Row
	latency *histogram
	waited  time.Duration // in TIME_WAIT, those that were seen whole
	waits   uint64
	longest time.Duration
	with    map[string]uint64
}

func newTally[K comparable](name func(K) (string, bool)) *tally[K] {
	return &tally[K]{rows: make(map[K]*row), name: name}
}

func newRow() *row {
	return &row{with: make(map[string]uint64), Row: Row{Outcomes: make(map[string]uint64), TimeWait: RowTimeWait{Ended: make(map[string]uint64)}}}
}

// of returns the key's row, a new one where it has none.
func (t *tally[K]) of(key K) *row {
	if r, ok := t.rows[key]; ok {
		return r
	}
	if len(t.rows) >= maxRows {
		t.prune()
	}
	r := newRow()
	r.Name, r.Accepted = t.name(key)
	t.rows[key] = r
	return r
}

// prune hands the half that was used least to the others.
func (t *tally[K]) prune() {
	if t.others == nil {
		t.others = newRow()
		t.others.Name = "others"
	}
	keys := slices.SortedFunc(maps.Keys(t.rows), func(a, b K) int { return byUse(&t.rows[a].Row, &t.rows[b].Row) })
	for _, key := range keys[maxRows/2:] {
		t.others.add(t.rows[key])
		t.gone++
		delete(t.rows, key)
	}
}

// byUse sorts the most failures first, then the most connects.
func byUse(a, b *Row) int {
	return cmp.Or(
		cmp.Compare(b.Failed, a.Failed), cmp.Compare(b.Connects, a.Connects),
		cmp.Compare(b.Accepts+b.TimeWait.Entered, a.Accepts+a.TimeWait.Entered), cmp.Compare(a.Name, b.Name),
	)
}

func (r *row) add(other *row) {
	r.Connects += other.Connects
	r.Failed += other.Failed
	r.Late += other.Late
	r.Accepts += other.Accepts
	r.Reuses += other.Reuses
	r.Drops += other.Drops
	r.TimeWait.Entered += other.TimeWait.Entered
	for name, n := range other.Outcomes {
		r.Outcomes[name] += n
	}
	for name, n := range other.TimeWait.Ended {
		r.TimeWait.Ended[name] += n
	}
	r.waited += other.waited
	r.waits += other.waits
	r.longest = max(r.longest, other.longest)
}

// seen notes with whom, of a few the most frequent.
func (r *row) seen(name string) {
	if name == "" {
		return
	}
	if _, ok := r.with[name]; ok || len(r.with) < maxShares {
		r.with[name]++
	}
}

func (r *row) ended(how string, after time.Duration) {
	r.TimeWait.Ended[how]++
	if after > 0 {
		r.waited += after
		r.waits++
		r.longest = max(r.longest, after)
	}
}

func (r *row) finish() Row {
	out := r.Row
	if r.latency != nil {
		d := r.latency.distribution(false)
		out.Latency = &d
	}
	if r.waits > 0 {
		out.TimeWait.Mean = milliseconds(r.waited / time.Duration(r.waits))
		out.TimeWait.Max = milliseconds(r.longest)
	}
	out.With = shares(r.with, shownShares)
	return out
}

// finish returns the table, sorted.
func (t *tally[K]) finish() Table {
	out := Table{Rows: []Row{}, Gone: t.gone}
	for _, r := range t.rows {
		out.Rows = append(out.Rows, r.finish())
	}
	slices.SortFunc(out.Rows, func(a, b Row) int { return byUse(&a, &b) })
	if t.others != nil {
		others := t.others.finish()
		out.Others = &others
	}
	return out
}

// shares returns the most frequent, the most of them first.
func shares(counts map[string]uint64, most int) []Share {
	var all []Share
	for name, n := range counts {
		all = append(all, Share{Name: name, Count: n})
	}
	slices.SortFunc(all, func(a, b Share) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), cmp.Compare(a.Name, b.Name))
	})
	return all[:min(len(all), most)]
}

// A histogram holds durations: from a microsecond to two hours with two digits, which
// is finer than a plot and than any timer of the kernel.
type histogram struct {
	values   *hdrhistogram.Histogram
	min, max time.Duration // exact
}

const longest = 2 * time.Hour

func newHistogram() *histogram {
	return &histogram{values: hdrhistogram.New(1, longest.Microseconds(), 2)}
}

func (h *histogram) add(d time.Duration) {
	if h.values.TotalCount() == 0 || d < h.min {
		h.min = d
	}
	h.max = max(h.max, d)
	// What is out of its range is not: the value is put into it.
	_ = h.values.RecordValue(min(max(d, time.Microsecond), longest).Microseconds())
}

func (h *histogram) distribution(withBuckets bool) Distribution {
	d := Distribution{Count: uint64(h.values.TotalCount())}
	if d.Count == 0 {
		return d
	}
	at := func(quantile float64) float64 {
		value := time.Duration(h.values.ValueAtQuantile(quantile)) * time.Microsecond
		return milliseconds(min(max(value, h.min), h.max))
	}
	d.Min, d.P50, d.P90, d.P99, d.P999, d.Max = milliseconds(h.min), at(50), at(90), at(99), at(99.9), milliseconds(h.max)
	if withBuckets {
		d.Buckets = h.buckets()
	}
	return d
}

// steps are where the buckets of a power of ten begin.
var steps = [...]float64{1, 1.6, 2.5, 4, 6.3}

// bound is where bucket i begins, in milliseconds; the first at a microsecond.
func bound(i int) float64 { return steps[i%len(steps)] * math.Pow10(i/len(steps)-3) }

// buckets returns those from the first value to the last.
func (h *histogram) buckets() []Bucket {
	var buckets []Bucket
	bars := h.values.Distribution()
	bars = slices.DeleteFunc(bars, func(bar hdrhistogram.Bar) bool { return bar.Count == 0 })
	for i := 0; len(bars) > 0; i++ {
		b := Bucket{From: bound(i), To: bound(i + 1)}
		for len(bars) > 0 && float64(bars[0].From) < 1000*b.To {
			b.Count += uint64(bars[0].Count)
			bars = bars[1:]
		}
		if b.Count > 0 || len(buckets) > 0 {
			buckets = append(buckets, b)
		}
	}
	return buckets
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
