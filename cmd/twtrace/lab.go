package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"charm.land/lipgloss/v2"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/twtrace/twtrace/internal/lab"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/sink"
)

const (
	// proseWidth is how wide the story is at most: the lines of the tail
	// may be wider.
	proseWidth = 80
	// placeWidth is that of the longest name of a network namespace, "nat".
	placeWidth = 3
)

func newLabCommand(stdout, stderr *os.File) *cobra.Command {
	var flags traceFlags
	var global bool
	command := &cobra.Command{
		Use:   "lab [SCENARIO]",
		Short: "Reproduce a failure in network namespaces of its own, and trace it",
		Long: `lab makes two clients, a router and a server, each in a network namespace of its
own, has them fail in the way of the scenario, and shows what twtrace sees of
that, step by step. Nothing leaves the machine, and nothing is left behind.
Without a scenario it lists them.`,
		Example: `  twtrace lab                              the scenarios
  sudo twtrace lab port-exhaustion         run one
  sudo twtrace lab nat-recycle`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("twtrace lab takes one scenario, got %q", args)}
			}
			return nil
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			var names []cobra.Completion
			for _, s := range lab.Scenarios() {
				names = append(names, cobra.CompletionWithDesc(s.Name, s.Title))
			}
			return names, cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listScenarios(stdout)
			}
			scenario, err := lab.Find(args[0])
			if err != nil {
				return usageError{err}
			}
			if scenario.Global && !global {
				return usageError{fmt.Errorf("%s changes a setting of the whole machine: --global permits that", scenario.Name)}
			}
			return runLab(cmd.Context(), scenario, flags.colored(stdout), stdout, stderr)
		},
	}
	command.Flags().BoolVar(&flags.noColor, "no-color", false, "no colours, not even on a terminal (so does NO_COLOR)")
	command.Flags().BoolVar(&global, "global", false, "permit a scenario that changes a setting of the whole machine while it runs")
	return command
}

func listScenarios(stdout io.Writer) error {
	table := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "NAME\tWHAT IT SHOWS")
	for _, s := range lab.Scenarios() {
		title := s.Title
		if s.Global {
			title += " (--global)"
		}
		fmt.Fprintf(table, "%s\t%s\n", s.Name, title)
	}
	return table.Flush()
}

// A labRun is a scenario that runs, and is traced.
type labRun struct {
	scenario lab.Scenario
	source   *source
	names    map[uint32]string // of its network namespaces
	text     *sink.Text
	color    bool
	width    int // of the prose

	out    io.Writer
	err    error // of out, the first
	buffer []byte
	lines  bool // of the tail, since the last prose
	// verdict is the last one with the scenario's cause.
	verdict *record.VerdictFields
}

// A step is what the scenario is about to do. It waits until told is closed.
type step struct {
	words string
	told  chan struct{}
}

func runLab(ctx context.Context, scenario lab.Scenario, color bool, stdout, stderr *os.File) (err error) {
	ctx, stop := notify(ctx)
	defer stop()
	source, err := openSource(probe.Config{}, func(format string, args ...any) { say(stderr, format, args...) })
	if err != nil {
		return err
	}
	defer source.close()
	network, err := lab.New(0)
	if err != nil {
		return err
	}
	// Later than the hooks: that the programs end is not part of the story.
	defer func() {
		err = errors.Join(err, source.tracer.Detach())
		network.Close()
	}()

	style := sink.TextOptions{Color: color}
	l := &labRun{scenario: scenario, source: source, color: color, width: proseWidth, out: stdout}
	if width, _, err := term.GetSize(int(stdout.Fd())); err == nil {
		style.Width = max(width-placeWidth-1, 1)
		l.width = min(l.width, width)
	}
	l.text = sink.NewText(style)
	// What was seen until now was others': their network namespaces may have
	// had the same inodes.
	if err := l.settle(); err != nil {
		return err
	}
	l.names = network.NetNS()
	l.prologue()
	if err := l.follow(ctx, network); err != nil {
		return err
	}
	if l.verdict == nil {
		return fmt.Errorf("scenario %s: twtrace did not find its cause, %s", scenario.Name, scenario.Verdict)
	}
	l.epilogue()
	return l.err
}

// follow runs the scenario and tells its steps, and in between what is seen of
// them.
func (l *labRun) follow(ctx context.Context, network *lab.Network) error {
	ctx, cancel := context.WithCancel(ctx)
	steps, ended := make(chan step), make(chan error, 1)
	go func() {
		ended <- l.scenario.Run(ctx, network, func(format string, args ...any) {
			s := step{words: fmt.Sprintf(format, args...), told: make(chan struct{})}
			select {
			case steps <- s:
				<-s.told
			case <-ctx.Done():
			}
		})
	}()
	for {
		var s step
		var outcome error
		over := false
		select {
		case s = <-steps:
		case outcome = <-ended:
			over = true
		default:
		}
		err := l.settle()
		if s.told != nil {
			l.step(s.words)
			close(s.told)
		}
		if over {
			cancel()
			return errors.Join(outcome, err, l.finish())
		}
		if err = errors.Join(err, l.err); err != nil {
			cancel()
			return errors.Join(err, <-ended)
		}
	}
}

// settle tells what has happened until now. Once the ring was empty twice,
// nothing of that is on its way any more.
func (l *labRun) settle() error {
	for quiet := 0; quiet < 2; {
		empty, err := l.source.next(l.write)
		if err != nil {
			return err
		}
		if empty {
			quiet++
		} else {
			quiet = 0
		}
	}
	return nil
}

// finish tells what the tracker still held back, and what was lost.
func (l *labRun) finish() error {
	l.source.flush(l.write)
	lost, err := l.source.lost()
	if err != nil {
		return err
	}
	if fields, ok := inKernel(lost, probe.Loss{}); ok {
		fields.Since = l.source.began.UnixNano()
		l.write([]record.Record{{Kind: record.Lost, Time: time.Now().UnixNano(), Lost: fields}})
	}
	return nil
}

// write tells a moment, if it is one of the scenario's namespaces. Their name
// stands before each line.
func (l *labRun) write(moment []record.Record) {
	name, ours := l.names[moment[0].Socket.NetNS.Inode]
	if !ours && moment[0].Kind != record.Lost {
		return
	}
	// Each change of state would hide what they come to.
	if moment[len(moment)-1].Kind == record.State {
		return
	}
	for i := range moment {
		if v := moment[i].Verdict; v != nil && v.Cause() == l.scenario.Verdict {
			l.verdict = v
		}
	}
	l.buffer = l.text.AppendMoment(l.buffer[:0], moment)
	for line := range bytes.Lines(l.buffer) {
		l.lines = true
		l.print("%-*s %s", placeWidth, name, line)
	}
}

// prologue tells what is going to happen.
func (l *labRun) prologue() {
	l.prose(l.scenario.Name + ": " + l.scenario.Title)
	for _, paragraph := range l.scenario.Story {
		l.prose(paragraph)
	}
	l.prose("The network namespaces are a and b, the clients, with 10.77.1.2 and 10.77.2.2; nat, the router between; and srv, the server, 10.88.0.2.")
	l.print("%-*s %s", placeWidth, "IN", l.text.AppendHeader(nil))
	l.lines = true
}

// epilogue tells what there was to learn.
func (l *labRun) epilogue() {
	l.print("\n")
	l.explain()
	l.prose(l.scenario.Learned)
	l.print("To see it where it is not made on purpose:\n  %s\n", l.scenario.Live)
}

// explain tells what the verdict rests on, which the tail has no room for.
func (l *labRun) explain() {
	v := l.verdict
	for v.Inner != nil {
		v = v.Inner
	}
	l.prose("twtrace says " + v.ID + ", " + v.Confidence.String() + ", since:")
	for _, e := range v.Evidence {
		l.item(e.Text)
	}
	for _, other := range v.RuledOut {
		l.item("not " + other)
	}
	for _, spot := range v.NotVisible {
		l.item("not to be seen from here: " + spot)
	}
	l.print("\n")
}

func (l *labRun) item(text string) {
	mark := "- "
	for line := range strings.Lines(lipgloss.Wrap(text, l.width-len(mark), "")) {
		l.print("%s%s\n", mark, strings.TrimSuffix(line, "\n"))
		mark = "  "
	}
}

func (l *labRun) prose(paragraph string) {
	l.print("%s\n\n", lipgloss.Wrap(paragraph, l.width, ""))
}

// step tells what is about to happen, in lines that no event has.
func (l *labRun) step(words string) {
	const mark = "> "
	if l.lines {
		l.print("\n")
		l.lines = false
	}
	for line := range strings.Lines(lipgloss.Wrap(words, l.width-len(mark), "")) {
		line = mark + strings.TrimSuffix(line, "\n")
		if l.color {
			line = lipgloss.NewStyle().Bold(true).Render(line)
		}
		l.print("%s\n", line)
	}
}

func (l *labRun) print(format string, args ...any) {
	if l.err != nil {
		return
	}
	if _, err := fmt.Fprintf(l.out, format, args...); err != nil {
		l.err = fmt.Errorf("standard output: %w", errors.Unwrap(err))
	}
}
