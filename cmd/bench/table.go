package main

import (
	"fmt"
	"image/color"
	"io"
	"slices"
	"time"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"

	"github.com/twtrace/twtrace/internal/load"
)

// table prints the results as a table in Markdown.
func table(w io.Writer, results []*result) {
	fmt.Fprintln(w, "| tracer | slow-down | CPU ratio (min..max) | its CPU s a million state changes | ns in the kernel a state change | lost | peak MB | ms to the first event |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- |")
	for _, r := range results {
		changes := float64(r.connections * load.StateChanges)
		ratios := r.each(cpuRatio)
		kernel := "-"
		if r.kernel > 0 {
			kernel = fmt.Sprintf("%.0f", float64(r.kernel.Nanoseconds())/changes)
		}
		lost := "-"
		if each := r.tracer.perConnection; each > 0 {
			lines := float64(each*r.connections + r.tracer.perListener*load.Listeners*workers)
			lost = fmt.Sprintf("%.2g %%", 100*(1-median(r.each(func(_, with turn) float64 { return float64(with.lines) }))/lines))
		}
		fmt.Fprintf(w, "| %s | %.2f | %.2f (%.2f..%.2f) | %.2f | %s | %s | %.0f | %.0f |\n", r.tracer.name,
			median(r.each(func(without, with turn) float64 { return float64(with.Wall) / float64(without.Wall) })),
			median(ratios), slices.Min(ratios), slices.Max(ratios),
			median(r.each(func(_, with turn) float64 { return with.tracerCPU.Seconds() }))/changes*1e6,
			kernel, lost,
			median(r.each(func(_, with turn) float64 { return float64(with.peakMemory) }))/1e6,
			median(r.each(func(_, with turn) float64 { return float64(with.firstEvent) }))/float64(time.Millisecond))
	}
}

// cpuRatio is the CPU time of the load and its tracer, to that of the load alone.
func cpuRatio(without, with turn) float64 {
	return float64(with.CPU+with.tracerCPU) / float64(without.CPU)
}

// each returns a figure of each pair.
func (r *result) each(figure func(without, with turn) float64) (figures []float64) {
	for i := range r.with {
		figures = append(figures, figure(r.without[i], r.with[i]))
	}
	return figures
}

func median(figures []float64) float64 {
	figures = slices.Sorted(slices.Values(figures))
	n := len(figures)
	return (figures[(n-1)/2] + figures[n/2]) / 2
}

// draw draws the overheads, a bar a tracer, to the file.
func draw(file string, results []*result) error {
	var names []string
	var overheads plotter.Values
	for _, r := range slices.Backward(results) { // from below
		names = append(names, r.tracer.name)
		overheads = append(overheads, 100*(median(r.each(cpuRatio))-1))
	}
	bars, err := plotter.NewBarChart(overheads, vg.Points(12))
	if err != nil {
		return fmt.Errorf("plot: %w", err)
	}
	bars.Horizontal = true
	bars.Color = color.Gray{Y: 96}
	p := plot.New()
	p.Title.Text = "What tracing costs"
	p.X.Label.Text = "CPU time a connection, tracer included: % more than without"
	p.X.Min = 0
	p.Add(bars, plotter.NewGrid())
	p.NominalY(names...)
	if err := p.Save(7*vg.Inch, vg.Length(len(results)+3)*vg.Points(24), file); err != nil {
		return fmt.Errorf("plot %s: %w", file, err)
	}
	return nil
}
