package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/twtrace/twtrace/internal/metrics"
	"github.com/twtrace/twtrace/internal/otlp"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
)

const (
	// hung is how long the reader of events may be silent, which looks at its
	// chores once a second.
	hung = 30 * time.Second
	// sampleWait is how long a scrape waits for the reader to look at its tables;
	// then it gets what was seen last.
	sampleWait = 2 * time.Second
)

// exports are where the records of serve go beside the lines.
type exports struct {
	metrics *metrics.Metrics
	otlp    *otlp.Sender // nil without
	// asked takes what is to be closed when the tables have been looked at.
	asked chan chan struct{}
	// turned is when the reader had its last turn, Unix nanoseconds: 0 before
	// the first.
	turned atomic.Int64
	ended  atomic.Bool
}

func newExports(flags *serveFlags, sender *otlp.Sender) *exports {
	e := &exports{otlp: sender, asked: make(chan chan struct{})}
	config := metrics.Config{
		Version: version(), Places: int(flags.containers), Destinations: int(flags.destinations), Sample: e.ask,
	}
	if sender != nil {
		config.Sent = sender.Counts
	}
	e.metrics = metrics.New(config)
	return e
}

// ask has the reader look at its tables, and waits, not for ever.
func (e *exports) ask() {
	timeout := time.After(sampleWait)
	done := make(chan struct{})
	select {
	case e.asked <- done:
	case <-timeout:
		return
	}
	select {
	case <-done:
	case <-timeout:
	}
}

// observe takes records: those that became lines, and those that were left out by
// a filter of lines.
func (e *exports) observe(moment []record.Record) {
	for i := range moment {
		e.metrics.Observe(&moment[i])
		if e.otlp != nil {
			e.otlp.Observe(&moment[i])
		}
	}
}

// answer looks at the tables if somebody asked. It is for a quiet moment.
func (e *exports) answer(s *source) {
	select {
	case done := <-e.asked:
		defer close(done)
	default:
		return
	}
	now := probe.Now()
	e.metrics.Take(metrics.Tables{
		Destinations: s.tracker.Destinations(now), Connections: s.connections(now),
		TimeWaits: s.tracer.SeesTimeWaits(), AllPorts: s.allPorts,
	}, time.Now().UnixNano())
}

// doChores notes that the reader is alive, what was lost so far, and that it is so
// late.
func (e *exports) doChores(now time.Time, lostKernel, lostOutput uint64) {
	e.turned.Store(now.UnixNano())
	e.metrics.Lost(record.InKernel, lostKernel)
	e.metrics.Lost(record.InOutput, lostOutput)
	if e.otlp != nil {
		e.otlp.Tick(now.UnixNano())
	}
}

// last is called before the summary: all other records have come.
func (e *exports) last(now time.Time) {
	e.ended.Store(true)
	if e.otlp != nil {
		e.otlp.Last(now.UnixNano())
	}
}

// close sends what is left.
func (e *exports) close() {
	if e.otlp == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), sendPatience)
	defer cancel()
	e.otlp.Close(ctx)
}

// serve answers requests until the function that it returns is called.
func (e *exports) serve(listener net.Listener, warn func(format string, args ...any)) (stop func()) {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(e.metrics.Registry, promhttp.HandlerOpts{
		MaxRequestsInFlight: 4, EnableOpenMetrics: true,
	}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if turned := e.turned.Load(); turned != 0 && !e.ended.Load() {
			if silent := time.Since(time.Unix(0, turned)); silent > hung {
				http.Error(w, fmt.Sprintf("no events were read for %s", silent.Round(time.Second)), http.StatusServiceUnavailable)
				return
			}
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		switch {
		case e.ended.Load():
			http.Error(w, "tracing has ended", http.StatusServiceUnavailable)
		case e.turned.Load() == 0:
			http.Error(w, "tracing has not begun", http.StatusServiceUnavailable)
		default:
			fmt.Fprintln(w, "ok")
		}
	})
	server := &http.Server{Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute, IdleTimeout: 2 * time.Minute}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			warn("serve metrics: %v: no more are served", err)
		}
	}()
	return func() { _ = server.Close() } // who still reads gets no more
}
