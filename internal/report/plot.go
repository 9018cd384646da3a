package report

import (
	"bytes"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/font/liberation"
	"gonum.org/v1/plot/plotter"
	gonumtext "gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
	g "maragu.dev/gomponents"
	h "maragu.dev/gomponents/html"
)

// paint is a colour or pattern that the page's style sheet defines: what is drawn
// follows the reader's choice of light or dark. To the plotting library it is a
// colour that nothing else has; figure puts the style sheet's in its place.
type paint uint32

const (
	inkPaint paint = iota + 1 // 0 would be black, which the library leaves out
	mutedPaint
	rulePaint
	goodPaint
	badPaint
	latePaint
	waitPaint
	waitAreaPaint
	hatchPaint
	dotsPaint
	lastPaint
)

var paints = [lastPaint]string{
	inkPaint: "var(--ink)", mutedPaint: "var(--muted)", rulePaint: "var(--rule)",
	goodPaint: "var(--good)", badPaint: "var(--bad)", latePaint: "var(--late)",
	waitPaint: "var(--wait)", waitAreaPaint: "var(--wait-area)",
	hatchPaint: "url(#%s-hatch)", dotsPaint: "url(#%s-dots)",
}

// RGBA makes a paint a color.Color. The half keeps the way back from being rounded
// down.
func (p paint) RGBA() (r, g, b, a uint32) { return 0, 0, uint32(p)*0x101 + 0x80, 0xffff }

// natTimers are how long a gateway, and Linux, keep a port from the same
// destination: what is used again sooner may meet what is left of the earlier use.
var natTimers = []struct {
	label  string
	ms     float64
	dashes []vg.Length
}{
	{"NAT after RST 16 s", 16e3, []vg.Length{2, 2}},
	{"NAT half-open 30 s", 30e3, []vg.Length{6, 2}},
	{"Linux TIME_WAIT 60 s", 60e3, nil},
	{"NAT after FIN 65 s", 65e3, []vg.Length{8, 2, 2, 2}},
}

const (
	textSize   = 13
	lineHeight = 17
)

// typeface has the widths of the page's font: where labels are put is reckoned here.
var typeface = sync.OnceValue(func() *font.Cache { return font.NewCache(liberation.Collection()) })

func textStyle(p paint, x draw.XAlignment) gonumtext.Style {
	return gonumtext.Style{
		Color: p, XAlign: x, YAlign: draw.YBottom,
		Font:    font.Font{Typeface: "Liberation", Variant: "Sans", Size: textSize},
		Handler: gonumtext.Plain{Fonts: typeface()},
	}
}

// canvas is what a figure is drawn on, twice: as wide as the page of a desk or of
// paper, and as that of a phone.
type canvas struct {
	draw.Canvas
	narrow bool
}

// figure draws an SVG of a height for each width, of which the style sheet shows one.
// desc says in words what is to be seen.
func figure(id, title, desc string, height vg.Length, plots func(*canvas)) (g.Node, error) {
	var both g.Group
	for _, width := range []vg.Length{960, 360} {
		svg := vgsvg.New(width, height)
		c := &canvas{draw.New(svg), width < 500}
		plots(c)
		var drawn bytes.Buffer
		if _, err := svg.WriteTo(&drawn); err != nil {
			return nil, fmt.Errorf("draw %s: %w", id, err)
		}
		class := "wide"
		if c.narrow {
			class = "narrow"
		}
		id := id + "-" + class
		both = append(both, h.SVG(
			h.Class(class), h.Role("img"), h.Aria("labelledby", id+"-title "+id+"-desc"),
			g.Attr("viewBox", fmt.Sprintf("0 0 %v %v", width, height)), g.Attr("xmlns", "http://www.w3.org/2000/svg"),
			g.El("title", h.ID(id+"-title"), g.Text(title)),
			g.El("desc", h.ID(id+"-desc"), g.Text(desc)),
			g.Rawf(patterns, id),
			g.Raw(restyle(drawn.String(), id)),
		))
	}
	return both, nil
}

// patterns are what a figure's paints refer to, by its id.
const patterns = `<defs>
<pattern id="%[1]s-hatch" width="5" height="5" patternUnits="userSpaceOnUse" patternTransform="rotate(45)"><rect class="ground" width="5" height="5"/><rect class="hatch" width="2.5" height="5"/></pattern>
<pattern id="%[1]s-dots" width="4" height="4" patternUnits="userSpaceOnUse"><rect class="ground" width="4" height="4"/><circle class="dots" cx="2" cy="2" r="1.2"/></pattern>
</defs>`

// restyle takes what is between <svg> and </svg>, with the page's colours and font.
func restyle(svg, id string) string {
	_, svg, _ = strings.Cut(svg, "<g ")
	svg = "<g " + strings.TrimSuffix(strings.TrimSpace(svg), "</svg>")
	replace := []string{
		"font-family:Liberation Sans;font-variant:normal;font-weight:normal;font-style:normal;", "",
		"\n\tstyle=", " style=",
	}
	for p, css := range paints {
		if strings.Contains(css, "%s") {
			css = fmt.Sprintf(css, id)
		}
		replace = append(replace, fmt.Sprintf(":#%06X", p), ":"+css)
	}
	return strings.NewReplacer(replace...).Replace(svg)
}

// newPlot returns a plot in the page's style.
func newPlot() *plot.Plot {
	p := plot.New()
	p.BackgroundColor = nil
	p.TextHandler = gonumtext.Plain{Fonts: typeface()}
	for _, axis := range []*plot.Axis{&p.X, &p.Y} {
		axis.Color, axis.Tick.Color = mutedPaint, mutedPaint
		axis.Padding, axis.Tick.Length = 0, 4
		align := axis.Tick.Label
		axis.Tick.Label = textStyle(inkPaint, align.XAlign)
		axis.Tick.Label.YAlign = align.YAlign
	}
	grid := plotter.NewGrid()
	grid.Vertical.Color = nil
	grid.Horizontal.Color = rulePaint
	grid.Horizontal.Width = 0.75
	p.Add(grid)
	return p
}

// stack draws plots below each other with one horizontal axis, and lift free above
// each, for its key.
func (c *canvas) stack(lift vg.Length, plots ...*plot.Plot) {
	rows := make([][]*plot.Plot, len(plots))
	for i, p := range plots {
		rows[i] = []*plot.Plot{p}
		if i < len(plots)-1 {
			p.X.Tick.Marker = bare{p.X.Tick.Marker}
		}
	}
	tiles := draw.Tiles{Rows: len(rows), Cols: 1, PadTop: lift, PadY: lift, PadRight: 8, PadBottom: 4}
	for i, at := range plot.Align(rows, tiles, c.Canvas) {
		plots[i].Draw(at[0])
	}
}

// key tells above a plot what is drawn in it.
type key struct {
	lift    vg.Length
	entries []entry
}

type entry struct {
	label        string
	fill, stroke paint
	dashes       []vg.Length // a line, where fill is 0
	glyph        draw.GlyphDrawer
}

func (k key) Plot(c draw.Canvas, _ *plot.Plot) {
	const size = 10
	x, y := vg.Length(1), c.Max.Y+k.lift
	style := textStyle(inkPaint, draw.XLeft)
	for _, e := range k.entries {
		line := draw.LineStyle{Color: e.stroke, Width: 1.5, Dashes: e.dashes}
		switch {
		case e.glyph != nil:
			c.DrawGlyphNoClip(draw.GlyphStyle{Color: e.stroke, Radius: 5, Shape: e.glyph}, vg.Point{X: x + size/2, Y: y + size/2})
			x += size + 4
		case e.fill != 0:
			swatch := rectangle(x, y, x+size, y+size)
			c.SetColor(e.fill)
			c.Fill(swatch)
			line.Width = 1
			c.SetLineStyle(line)
			c.Stroke(swatch)
			x += size + 5
		case e.stroke != 0:
			c.StrokeLine2(line, x, y+size/2, x+2*size, y+size/2)
			x += 2*size + 5
		}
		c.FillText(style, vg.Point{X: x, Y: y - 1}, e.label)
		x += style.Width(e.label) + 14
	}
}

func rectangle(x0, y0, x1, y1 vg.Length) vg.Path {
	return vg.Rectangle{Min: vg.Point{X: x0, Y: y0}, Max: vg.Point{X: x1, Y: y1}}.Path()
}

// bar is a count from From to To on the horizontal axis, on top of Base.
type bar struct{ from, to, base, count float64 }

// bars draws all of one kind as one shape.
type bars struct {
	bars         []bar
	fill, stroke paint
}

func (b bars) DataRange() (xmin, xmax, ymin, ymax float64) {
	xmin, xmax = math.Inf(1), math.Inf(-1)
	for _, v := range b.bars {
		xmin, xmax = min(xmin, v.from), max(xmax, v.to)
		ymax = max(ymax, v.base+v.count)
	}
	return xmin, xmax, 0, ymax
}

func (b bars) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	var path vg.Path
	for _, v := range b.bars {
		if v.count == 0 {
			continue
		}
		from, to := x(v.from), x(v.to)
		if to-from > 4 {
			from, to = from+0.75, to-0.75
		}
		to = max(to, from+1.5) // that a lone one is not overlooked
		path = append(path, rectangle(from, y(max(v.base, p.Y.Min)), to, y(v.base+v.count))...)
	}
	if path == nil {
		return
	}
	c.SetColor(b.fill)
	c.Fill(path)
	c.SetLineStyle(draw.LineStyle{Color: b.stroke, Width: 0.75})
	c.Stroke(path)
}

// bare has the ticks without their labels.
type bare struct{ plot.Ticker }

func (b bare) Ticks(from, to float64) []plot.Tick {
	ticks := b.Ticker.Ticks(from, to)
	for i := range ticks {
		ticks[i].Label = ""
	}
	return ticks
}

// countTicks are at whole numbers.
func countTicks(_, to float64) (ticks []plot.Tick) {
	step := 1.0
	for factors := []float64{2, 2.5, 2}; to/step > 5; factors = append(factors[1:], factors[0]) {
		step *= factors[0]
	}
	for v := 0.0; v <= to; v += step {
		ticks = append(ticks, plot.Tick{Value: v, Label: number(uint64(v))})
	}
	return ticks
}

// logCountTicks are at powers of ten, and between them where there are few.
func logCountTicks(_, to float64) (ticks []plot.Tick) {
	steps := []float64{1, 2, 5}
	if to > 50 {
		steps = steps[:1]
	}
	for power := 1.0; power <= to; power *= 10 {
		for _, step := range steps {
			ticks = append(ticks, plot.Tick{Value: power * step, Label: number(uint64(power * step))})
		}
	}
	return ticks
}

// spanTicks are at powers of ten of a millisecond, every second one labelled where
// there is little room.
type spanTicks struct{ narrow bool }

func (t spanTicks) Ticks(from, to float64) (ticks []plot.Tick) {
	first, last := int(math.Ceil(math.Log10(from)-1e-9)), int(math.Floor(math.Log10(to)+1e-9))
	for power := first - 1; power <= last; power++ {
		unit := math.Pow10(power)
		label := fmt.Sprintf("%g ms", unit)
		if power >= 3 {
			label = fmt.Sprintf("%g s", unit/1e3)
		}
		if t.narrow && last-first > 4 && power&1 != 0 {
			label = ""
		}
		ticks = append(ticks, plot.Tick{Value: unit, Label: label})
		for step := 2.0; step < 10; step++ {
			ticks = append(ticks, plot.Tick{Value: unit * step})
		}
	}
	return slices.DeleteFunc(ticks, func(tick plot.Tick) bool {
		return tick.Value < from*(1-1e-9) || tick.Value > to*(1+1e-9)
	})
}

// clockTicks are at round times of day, of Unix seconds.
type clockTicks struct{ most int }

func (t clockTicks) Ticks(from, to float64) (ticks []plot.Tick) {
	steps := []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800,
		3600, 7200, 10800, 21600, 43200, 86400}
	i, _ := slices.BinarySearch(steps, (to-from)/float64(t.most))
	step, layout := 86400*math.Ceil((to-from)/float64(t.most)/86400), "2 Jan"
	if i < len(steps) {
		step = steps[i]
	}
	switch {
	case step < 1:
		layout = "15:04:05.000"
	case step < 60:
		layout = "15:04:05"
	case step < 86400:
		layout = "15:04"
	}
	for n := math.Ceil(from / step); n*step <= to; n++ {
		at := time.UnixMicro(int64(math.Round(n * step * 1e6))).UTC()
		label := at.Format(layout)
		if step >= 3600 && label == "00:00" {
			label = at.Format("2 Jan")
		}
		ticks = append(ticks, plot.Tick{Value: n * step, Label: label})
	}
	return ticks
}

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// clockAxis lets the horizontal axis of a plot be that of the timeline.
func (t *Timeline) clockAxis(c *canvas, p *plot.Plot) {
	p.X.Min = seconds(t.From)
	p.X.Max = p.X.Min + float64(len(t.Established))*t.Slice/1e3
	p.X.Tick.Marker = clockTicks{8}
	if c.narrow {
		p.X.Tick.Marker = clockTicks{3}
	}
	p.Y.Tick.Marker = plot.TickerFunc(countTicks)
}

// bars returns a list of the timeline as bars on top of others.
func (t *Timeline) bars(counts, below []uint64) []bar {
	all := make([]bar, len(counts))
	for i, n := range counts {
		from := seconds(t.From) + float64(i)*t.Slice/1e3
		all[i] = bar{from: from, to: from + t.Slice/1e3, count: float64(n)}
		if below != nil {
			all[i].base = float64(below[i])
		}
	}
	return all
}

func (t *Timeline) draw(c *canvas) {
	const lift = 24
	good := newPlot()
	good.Add(bars{t.bars(t.Established, nil), goodPaint, goodPaint})
	good.Add(key{6, []entry{{label: "established", fill: goodPaint, stroke: goodPaint}}})
	bad := newPlot()
	bad.Add(bars{t.bars(t.Failed, nil), hatchPaint, badPaint}, bars{t.bars(t.Late, t.Failed), dotsPaint, latePaint})
	entries := []entry{
		{label: "failed", fill: hatchPaint, stroke: badPaint},
		{label: "established late", fill: dotsPaint, stroke: latePaint},
	}
	if sum64(t.Lost) > 0 {
		bad.Add(lostMarks{t})
		entries = append(entries, entry{label: "events lost", stroke: inkPaint, glyph: cross{}})
	}
	bad.Add(key{6, entries})
	for _, p := range []*plot.Plot{good, bad} {
		t.clockAxis(c, p)
		p.Y.Max = max(p.Y.Max, 1)
	}
	c.stack(lift, good, bad)
}

// lostMarks marks the slices in which events were lost, on the axis.
type lostMarks struct{ *Timeline }

func (t lostMarks) Plot(c draw.Canvas, p *plot.Plot) {
	x, _ := p.Transforms(&c)
	style := draw.GlyphStyle{Color: inkPaint, Radius: 5, Shape: cross{}}
	for i, n := range t.Lost {
		if n > 0 {
			at := seconds(t.From) + (float64(i)+0.5)*t.Slice/1e3
			c.DrawGlyphNoClip(style, vg.Point{X: x(at), Y: c.Min.Y + style.Radius})
		}
	}
}

// cross is the library's, in lines that can be seen.
type cross struct{}

func (cross) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	line := draw.LineStyle{Color: style.Color, Width: 1.75}
	r := style.Radius * 0.8
	c.StrokeLine2(line, at.X-r, at.Y-r, at.X+r, at.Y+r)
	c.StrokeLine2(line, at.X-r, at.Y+r, at.X+r, at.Y-r)
}

// arrow points up where pressure rose, and down where it fell.
type arrow struct{ down bool }

func (a arrow) DrawGlyph(c *draw.Canvas, style draw.GlyphStyle, at vg.Point) {
	r := style.Radius
	if a.down {
		r = -r
	}
	var path vg.Path
	path.Move(vg.Point{X: at.X, Y: at.Y + r})
	path.Line(vg.Point{X: at.X - r, Y: at.Y - r})
	path.Line(vg.Point{X: at.X + r, Y: at.Y - r})
	path.Close()
	c.SetColor(style.Color)
	c.Fill(path)
}

// pressureMarks are the crossings, each with how much was used.
type pressureMarks []Pressure

func (marks pressureMarks) Plot(c draw.Canvas, p *plot.Plot) {
	x, y := p.Transforms(&c)
	free := vg.Length(math.Inf(-1))
	for _, m := range marks {
		at := vg.Point{X: x(seconds(m.Time)), Y: y(min(float64(m.InUse), p.Y.Max))}
		label, fell := percent(m.Ratio), m.Ratio < 0.5
		if fell {
			label = "under 50 %"
		}
		c.DrawGlyphNoClip(draw.GlyphStyle{Color: inkPaint, Radius: 5, Shape: arrow{fell}}, at)
		// Where the use rises there is room to the left of it, and to the
		// right where it falls, or can rise no more.
		style := textStyle(inkPaint, draw.XRight)
		from, to := at.X-8-style.Width(label), at.X-8
		if fell || m.Ratio >= 1 {
			style.XAlign = draw.XLeft
			from, to = at.X+8, at.X+8+style.Width(label)
			at.X += 16
		}
		if m.Ratio >= 1 {
			at.Y -= lineHeight // below the line of what is usable
		}
		// One that would stand on another is left out: the marks are in
		// the table, too.
		if from > free && from > c.Min.X && to < c.Max.X {
			c.FillText(style, vg.Point{X: at.X - 8, Y: at.Y - 6}, label)
			free = to
		}
	}
}

func (u *PortUse) draw(c *canvas, t *Timeline) {
	steps := func(counts []uint64) (xys plotter.XYs) {
		for i, n := range counts {
			xys = append(xys, plotter.XY{X: seconds(t.From) + float64(i)*t.Slice/1e3, Y: float64(n)})
		}
		if n := len(xys); n > 0 {
			xys = append(xys, plotter.XY{X: xys[n-1].X + t.Slice/1e3, Y: xys[n-1].Y})
		}
		return xys
	}
	p := newPlot()
	waits := &plotter.Line{XYs: steps(u.TimeWaits), StepStyle: plotter.PostStep, FillColor: waitAreaPaint,
		LineStyle: draw.LineStyle{Color: waitPaint, Width: 1.5}}
	open := &plotter.Line{XYs: steps(u.Open), StepStyle: plotter.PostStep,
		LineStyle: draw.LineStyle{Color: goodPaint, Width: 2, Dashes: []vg.Length{5, 3}}}
	p.Add(waits, open)
	entries := []entry{
		{label: "TIME_WAIT", fill: waitAreaPaint, stroke: waitPaint},
		{label: "open", stroke: goodPaint, dashes: open.Dashes},
	}
	t.clockAxis(c, p)
	p.Y.Min, p.Y.Max = 0, max(1, float64(u.PeakInUse), p.Y.Max)
	if u.near() {
		limit := draw.LineStyle{Color: badPaint, Width: 1.5, Dashes: []vg.Length{8, 2, 2, 2}}
		line := plotter.NewFunction(func(float64) float64 { return float64(u.Usable) })
		line.LineStyle, line.Samples = limit, 2
		p.Add(line)
		p.Y.Max = max(p.Y.Max, float64(u.Usable))
		label := "usable"
		if !c.narrow {
			label = number(u.Usable) + " usable"
		}
		entries = append(entries, entry{label: label, stroke: badPaint, dashes: limit.Dashes})
	}
	p.Y.Max *= 1.05
	if len(u.Pressure) > 0 {
		p.Add(pressureMarks(u.Pressure))
		entries = append(entries, entry{label: "pressure", stroke: inkPaint, glyph: arrow{}})
	}
	p.Add(key{6, entries})
	c.stack(24, p)
}

// near: the ports that there are can stand in one picture with those in use.
func (u *PortUse) near() bool { return u.Usable > 0 && u.Usable <= 8*max(u.PeakInUse, u.PeakTimeWaits) }

// spanPlot is a histogram of durations, both axes logarithmic: what is rare is the
// point.
func (d *Distribution) spanPlot(c *canvas, from, to float64, b bars, label string, lift vg.Length) *plot.Plot {
	for _, bucket := range d.Buckets {
		b.bars = append(b.bars, bar{from: max(bucket.From, from), to: bucket.To, count: float64(bucket.Count)})
	}
	p := newPlot()
	p.Add(b, key{lift, []entry{{label: label, fill: b.fill, stroke: b.stroke}}})
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Min, p.X.Max = from, to
	p.X.Tick.Marker = spanTicks{c.narrow}
	p.Y.Min, p.Y.Max = 0.7, max(p.Y.Max*1.2, 2)
	p.Y.Tick.Marker = plot.TickerFunc(logCountTicks)
	return p
}

// extent is from the first bucket to the last of both.
func extent(all ...*Distribution) (from, to float64) {
	from, to = math.Inf(1), math.Inf(-1)
	for _, d := range all {
		if n := len(d.Buckets); n > 0 {
			from, to = min(from, d.Buckets[0].From), max(to, d.Buckets[n-1].To)
		}
	}
	// A logarithmic axis can't begin at 0.
	return max(from, 1e-4), max(to, from*10, 1e-3)
}

func drawLatency(c *canvas, established, failed *Distribution) {
	const lift = 24
	from, to := extent(established, failed)
	var plots []*plot.Plot
	if established.Count > 0 {
		plots = append(plots, established.spanPlot(c, from, to, bars{fill: goodPaint, stroke: goodPaint}, "established, logarithmic", 6))
	}
	if failed.Count > 0 {
		plots = append(plots, failed.spanPlot(c, from, to, bars{fill: hatchPaint, stroke: badPaint}, "failed, logarithmic", 6))
	}
	c.stack(lift, plots...)
}

func drawGaps(c *canvas, gaps *Distribution) {
	from, to := extent(gaps)
	from, to = min(from, 1e3), max(to, 120e3)
	above := vg.Length(len(natTimers) * lineHeight)
	p := gaps.spanPlot(c, from, to, bars{fill: waitAreaPaint, stroke: waitPaint}, "reuses, logarithmic", 8+above)
	p.Add(timerLines{})
	c.stack(28+above, p)
}

// timerLines draws natTimers, each to its label above the plot: the longer the
// higher, so that no line goes through the label of another.
type timerLines struct{}

func (timerLines) Plot(c draw.Canvas, p *plot.Plot) {
	x, _ := p.Transforms(&c)
	style := textStyle(inkPaint, draw.XRight)
	for i, timer := range natTimers {
		at := x(timer.ms)
		top := c.Max.Y + vg.Length(i+1)*lineHeight - 2
		c.StrokeLine2(draw.LineStyle{Color: inkPaint, Width: 1.25, Dashes: timer.dashes}, at, c.Min.Y, at, top)
		c.FillText(style, vg.Point{X: at - 5, Y: top - textSize + 1}, timer.label)
	}
}
