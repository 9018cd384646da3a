// Bench measures what tracing costs: it makes the same connections without a tracer,
// under twtrace and under other tracers, in turn, and prints what each made of it.
//
// All figures are of one run on one machine. Ratios carry over to others, times do not.
package main

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

func main() {
	if err := command().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// A plan is what to measure, and how often.
type plan struct {
	twtrace     string
	connections int
	pairs       int
	only        string
	peers       []string
	plot        string
}

func command() *cobra.Command {
	var p plan
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure what tracing costs, with twtrace and with other tracers",
		Long: `Bench makes the same connections without a tracer, under twtrace and under other
tracers, in turn, and prints a table of what each costs and what it loses. Tracers
that are not installed are left out.`,
		Example: `  sudo go run ./cmd/bench --twtrace ./twtrace
  sudo go run ./cmd/bench --twtrace ./twtrace --only twtrace --pairs 3
  sudo go run ./cmd/bench --twtrace ./twtrace --peer 'ig=ig run trace_tcp'`,
		Args:          cobra.NoArgs,
		SilenceUsage:  true,
		SilenceErrors: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return fmt.Errorf("tracing needs root: try sudo")
			}
			return p.run(cmd)
		},
	}
	f := cmd.Flags()
	f.StringVar(&p.twtrace, "twtrace", "twtrace", "the twtrace to measure, a `path` or a name in $PATH")
	f.IntVar(&p.connections, "connections", 40_000, "make this `number` of connections in each turn")
	f.IntVar(&p.pairs, "pairs", 5, "measure each tracer this `number` of times, each beside a turn without")
	f.StringVar(&p.only, "only", "", "only the tracers with this `text` in their names")
	f.StringArrayVar(&p.peers, "peer", nil, "measure this tracer as well: `name=command`, which writes its events to stdout")
	f.StringVar(&p.plot, "plot", "", "draw the overheads, SVG, to this `file`")
	cmd.AddCommand(loadCommand())
	return cmd
}

func (p *plan) run(cmd *cobra.Command) error {
	tracers := known(p.twtrace)
	for _, peer := range p.peers {
		name, command, found := strings.Cut(peer, "=")
		if !found {
			return fmt.Errorf("--peer %q: want name=command", peer)
		}
		tracers = append(tracers, tracer{name: name, command: strings.Fields(command)})
	}
	var results []*result
	for _, t := range tracers {
		if !strings.Contains(t.name, p.only) {
			continue
		}
		path, err := exec.LookPath(t.command[0])
		if err != nil {
			fmt.Fprintf(cmd.ErrOrStderr(), "%s is left out: %v\n", t.name, err)
			continue
		}
		t.command[0] = path
		results = append(results, &result{tracer: t, connections: p.connections})
	}
	if len(results) == 0 {
		return fmt.Errorf("no tracer is left to measure: see --only and --twtrace")
	}
	for turn := range p.pairs {
		for _, r := range results {
			fmt.Fprintf(cmd.ErrOrStderr(), "%d of %d: %s\n", turn+1, p.pairs, r.tracer.name)
			without, err := measure(nil, p.connections)
			if err != nil {
				return err
			}
			with, err := measure(&r.tracer, p.connections)
			if err != nil {
				return fmt.Errorf("%s: %w", r.tracer.name, err)
			}
			r.without, r.with = append(r.without, without), append(r.with, with)
		}
	}
	// The kernel's statistics cost something themselves: not in the turns that are timed.
	on, err := ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME))
	if err != nil {
		return fmt.Errorf("statistics of BPF programs: %w", err)
	}
	defer on.Close()
	for _, r := range results {
		fmt.Fprintf(cmd.ErrOrStderr(), "in the kernel: %s\n", r.tracer.name)
		counted, err := measure(&r.tracer, p.connections)
		if err != nil {
			return fmt.Errorf("%s: %w", r.tracer.name, err)
		}
		r.kernel = counted.kernel
	}
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s, Linux %s, %d processors; %d times %d connections a tracer; medians\n\n",
		time.Now().Format("January 2006"), unix.ByteSliceToString(name.Release[:]), runtime.NumCPU(), p.pairs, p.connections)
	table(cmd.OutOrStdout(), results)
	if p.plot == "" {
		return nil
	}
	return draw(p.plot, results)
}
