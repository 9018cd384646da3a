package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/sink"
	"github.com/twtrace/twtrace/internal/top"
)

// topFlags are top's flags as the user gave them.
type topFlags struct {
	traceFlags
	delay      seconds
	batch      bool
	iterations uint64
	by, sort   string
}

// topOptions are the flags, understood.
type topOptions struct {
	probe probe.Config
	delay time.Duration
	batch bool
	view  top.View
	order top.Order
}

// seconds are a time as the user gives it: a number of seconds, as top takes
// them, or a duration, as all else does.
type seconds time.Duration

func (s *seconds) String() string { return time.Duration(*s).String() }
func (s *seconds) Type() string   { return "seconds" }

func (s *seconds) Set(text string) error {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	*s = seconds(d)
	return err
}

func newTopCommand(stdout, stderr *os.File) *cobra.Command {
	flags := topFlags{delay: seconds(2 * time.Second)}
	command := &cobra.Command{
		Use:   "top",
		Short: "Show who holds local ports, waits in TIME_WAIT, connects and fails",
		Long: `top shows a table of the destinations that connects go to, with the local ports
taken toward each, or of the processes, containers or network namespaces behind
them. Enter looks into a row, ? tells the keys. Where stdout is no terminal, or
with -b, it prints a table an interval instead.`,
		Example: `  sudo twtrace top                         destinations by pressure
  sudo twtrace top --by process --sort failures
  sudo twtrace top --netns pid:4711        one pod's network namespace
  sudo twtrace top -b -n 1 > ports.txt     one table, as text`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := flags.options(stdout)
			if err != nil {
				return usageError{err}
			}
			return runTop(cmd.Context(), &flags, options, stdout, stderr)
		},
	}
	f := command.Flags()
	flags.register(f)
	f.VarP(&flags.delay, "delay", "d", "time between two tables, in `seconds`: 2, 0.5; or 500ms, 1m")
	f.BoolVarP(&flags.batch, "batch", "b", false, "print a table an interval, as plain text")
	f.Uint64VarP(&flags.iterations, "iterations", "n", 0, "stop after this `number` of tables")
	f.StringVar(&flags.by, "by", top.ByDestination.String(), "a row for each `group`: destination, process, container or netns")
	f.StringVar(&flags.sort, "sort", top.ByPressure.String(), "the most of this `column` first: pressure, time_wait, failures or rate")
	for flag, values := range map[string][]string{"by": top.GroupNames, "sort": top.OrderNames, "probe-tier": probe.TierNames} {
		if err := command.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // no such flag
		}
	}
	return command
}

func (f *topFlags) options(stdout *os.File) (o topOptions, err error) {
	if o.probe, err = f.config(); err != nil {
		return o, err
	}
	const least = 100 * time.Millisecond
	if o.delay = time.Duration(f.delay); o.delay < least {
		return o, fmt.Errorf("delay %s: must be at least %s", o.delay, least)
	}
	if o.view.Group, err = top.ParseGroup(f.by); err != nil {
		return o, fmt.Errorf("by %w", err)
	}
	if o.order, err = top.ParseOrder(f.sort); err != nil {
		return o, fmt.Errorf("sort %w", err)
	}
	o.batch = f.batch || !term.IsTerminal(int(stdout.Fd())) || os.Getenv("TERM") == "dumb"
	return o, nil
}

// A topRun is a live run of top.
type topRun struct {
	options    topOptions
	source     *source
	collector  *top.Collector
	iterations uint64 // tables to show, 0: no end
	// notes stand above every table.
	notes []string

	// show takes each table, and does not wait.
	show func(*top.Snapshot)
	// views are those that the user changes to.
	views <-chan top.View
	// broken and full are those of the output, if it is one.
	broken, full <-chan error
}

func runTop(ctx context.Context, flags *topFlags, options topOptions, stdout, stderr *os.File) error {
	ctx, stop := notify(ctx)
	defer stop()
	t := &topRun{options: options, iterations: flags.iterations}
	source, err := openSource(options.probe, func(format string, args ...any) {
		// On a terminal stderr is under the table.
		if options.batch {
			say(stderr, format, args...)
		} else {
			t.notes = append(t.notes, fmt.Sprintf(format, args...))
		}
	})
	if err != nil {
		return err
	}
	defer source.close()
	t.source = source
	if !source.tracer.SeesTimeWaits() {
		t.notes = append(t.notes, "this kernel does not show TIME_WAITs: ports are taken that are not counted")
	}
	now := probe.Now()
	t.collector = top.NewCollector(now)
	if err := shed(); err != nil {
		return err
	}
	if err := flags.ready(); err != nil {
		return err
	}
	if options.batch {
		return t.print(ctx, stdout)
	}
	return t.display(ctx, flags.colored(stdout))
}

// follow reads events and shows a table an interval, and one at once where the
// user changes to another view, until ctx ends.
func (t *topRun) follow(ctx context.Context) error {
	now := probe.Now()
	view, due, shown := t.options.view, now+int64(t.options.delay), uint64(0)
	for n := 1; ; n++ {
		quiet, err := t.source.next(t.collector.Observe)
		if err != nil {
			return err
		}
		// A ring that never runs empty must not starve the rest.
		if !quiet && n%4096 != 0 {
			continue
		}
		now = probe.Now()
		t.collector.Advance(now)
		isDue, changed := now >= due, false
		select {
		case <-ctx.Done():
			return nil
		case err := <-t.broken:
			return err
		case err := <-t.full:
			t.source.warn("%v: tables wait for room, then are left out", err)
		case view = <-t.views:
			changed = true
		default:
		}
		if isDue {
			t.collector.EndInterval()
			due = now + int64(t.options.delay)
			shown++
		}
		if isDue || changed {
			s, err := t.snapshot(view, now)
			if err != nil {
				return err
			}
			t.show(s)
		}
		if t.iterations > 0 && shown >= t.iterations {
			return nil
		}
	}
}

func (t *topRun) snapshot(view top.View, now int64) (*top.Snapshot, error) {
	s := t.collector.Snapshot(view, t.source.tracker.Destinations(now), t.source.connections(now))
	s.Time, s.Every = time.Now(), t.options.delay
	lost, err := t.source.lost()
	if err != nil {
		return nil, err
	}
	if n := lost.Total(); n > 0 {
		s.Notes = append(s.Notes, fmt.Sprintf("%d events lost in the kernel: the numbers may be wrong", n))
	}
	s.Notes = append(s.Notes, t.notes...)
	return s, nil
}

// print writes each table as text.
func (t *topRun) print(ctx context.Context, stdout *os.File) error {
	output := sink.NewOutput("standard output", stdout, maxPending)
	t.broken, t.full = output.Broken(), output.Full()
	var buffer []byte
	var said bool
	t.show = func(s *top.Snapshot) {
		width, _, err := term.GetSize(int(stdout.Fd()))
		if err != nil {
			width = 0 // no terminal
		}
		buffer = s.AppendTable(buffer[:0], t.options.order, width)
		if !output.Write(buffer, 0) && !said {
			said = true
			t.source.warn("standard output is not read: tables are left out")
		}
	}
	err := t.follow(ctx)
	if _, closeErr := closeOutput(output, lastWords); err == nil {
		err = unread(closeErr)
	}
	return err
}

// display shows the table on the terminal until the user quits, or ctx ends.
func (t *topRun) display(ctx context.Context, color bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// The reader of events waits for no terminal, nor that for it: each takes
	// the other's latest word.
	snapshots := make(latest[*top.Snapshot], 1)
	views := make(latest[top.View], 1)
	views.put(t.options.view) // a first table at once
	t.show, t.views = snapshots.put, views
	program := tea.NewProgram(
		top.NewModel(t.options.view, t.options.order, color, snapshots, views.put),
		// notify takes them, and ends ctx.
		tea.WithoutSignalHandler(),
		// What is drawn more often costs more than it shows.
		tea.WithFPS(20),
	)
	ended := make(chan error, 1)
	go func() {
		err := t.follow(ctx)
		program.Quit()
		ended <- err
	}()
	_, err := program.Run()
	if err != nil {
		err = fmt.Errorf("show the table: %w", err)
	}
	cancel()
	return errors.Join(<-ended, err)
}

// latest hands on the last value put, and forgets one that nobody took. There
// is room for one; only one goroutine may put.
type latest[T any] chan T

func (l latest[T]) put(value T) {
	select {
	case <-l:
	default:
	}
	l <- value
}
