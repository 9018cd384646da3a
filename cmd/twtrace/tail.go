package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
)

const tailExample = `  sudo twtrace                              every state change and connect of the machine
  sudo twtrace --failures                   only connects that failed
  sudo twtrace -D 443 --log events.jsonl    keep a log beside the tail
  sudo twtrace --log /var/log/twtrace/events.jsonl.zst --log-max-size 100M --log-keep 10
                                            the last gigabyte of it, compressed
  sudo twtrace -- curl http://10.0.0.7/     what one command does, and its children
  sudo twtrace -o json | jq .connect        JSON lines, as the log has them`

func newTailCommand(stdout, stderr *os.File) *cobra.Command {
	var flags tailFlags
	tail := &cobra.Command{
		Use:   "twtrace [flags] [-- COMMAND ARG...]",
		Short: "Tell why a TCP connect failed or stalled, and who did it",
		Long: `twtrace tails every TCP state change, every connect and every TIME_WAIT of the
machine, in all network namespaces, with the process that owns the socket. With
a COMMAND it runs that, traces what it and its children do, and ends with it.`,
		Example:           tailExample,
		SilenceUsage:      true,
		SilenceErrors:     true,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 && cmd.ArgsLenAtDash() != 0 {
				return usageError{fmt.Errorf("unknown command %q: to trace a program, write twtrace -- %s", args[0], args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			options, err := flags.options(len(args) > 0)
			if err != nil {
				return err
			}
			return runTail(cmd.Context(), &flags, options, setFlags(cmd.Flags()), args, nil, stdout, stderr)
		},
	}
	flags.register(tail.Flags())
	for flag, values := range completions {
		if err := tail.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // no such flag: completions is wrong
		}
	}
	return tail
}

// setFlags lists the flags that narrow the log, as the user gave them.
func setFlags(flags *pflag.FlagSet) []string {
	var set []string
	flags.Visit(func(flag *pflag.Flag) {
		switch flag.Name {
		case "output", "log", "log-max-size", "log-max-age", "log-keep", "ready-file", "no-color", "timestamps", "ring-size", "btf", "connection",
			"listen", "otlp", "otlp-all", "metrics-containers", "metrics-destinations":
		default:
			value := flag.Value.String()
			if list, ok := flag.Value.(pflag.SliceValue); ok {
				value = strings.Join(list.GetSlice(), ",")
			}
			set = append(set, "--"+flag.Name+"="+value)
		}
	})
	return set
}

// tail is a live run.
type tail struct {
	options tailOptions
	source  *source
	lines   *lines
	exports *exports // nil but in serve
	command *child
	moved   <-chan os.Signal // somebody has moved the log; nil without one
	count   uint64           // lines to print, 0: no end
	wanted  []record.Record
	until   time.Time

	lost     probe.Loss // in the kernel, as far as it is told
	lossless int64      // until when nothing was lost, Unix nanoseconds
	started  time.Time
}

func runTail(ctx context.Context, flags *tailFlags, options tailOptions, filters, command []string, exports *exports, stdout, stderr *os.File) (err error) {
	ctx, stop := notify(ctx)
	defer stop()

	lines, err := openLines(flags, options, stdout, stderr)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			lines.abandon()
		}
	}()
	var moved chan os.Signal
	if flags.log != "" {
		// Without a log it ends the run, as it does every program's.
		moved = make(chan os.Signal, 1)
		signal.Notify(moved, unix.SIGHUP)
		defer signal.Stop(moved)
	}
	source, err := openSource(options.probe, func(format string, args ...any) { say(stderr, format, args...) })
	if err != nil {
		return err
	}
	defer source.close()
	t := &tail{options: options, source: source, lines: lines, exports: exports, moved: moved, count: flags.count, started: source.began}
	if exports != nil {
		lines.patience, lines.export = servePatience, exports.observe
	}
	t.begin(filters, command)
	if len(command) > 0 {
		if t.command, err = startChild(command, stdout, stderr); err != nil {
			return err
		}
	}
	if err := shed(); err != nil {
		return err
	}
	if err := flags.ready(); err != nil {
		return err
	}
	if exports != nil {
		exports.turned.Store(time.Now().UnixNano())
	}
	if flags.duration > 0 {
		t.until = time.Now().Add(flags.duration)
	}
	err = t.follow(ctx)
	// Whatever ended the run, an output that still works gets all of it.
	if endErr := t.end(); err == nil {
		err = endErr
	}
	if err != nil {
		return err
	}
	if t.command == nil {
		return nil
	}
	select {
	case <-t.command.ended:
		if t.command.status != 0 {
			return exitStatus(t.command.status)
		}
	default:
		say(stderr, "the command still runs, as process %d", t.command.cmd.Process.Pid)
	}
	return nil
}

// notify returns a context that ends at SIGINT or SIGTERM, with the signal as
// its cause, and keeps a broken pipe from killing the process unheard.
func notify(ctx context.Context) (context.Context, func()) {
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM)
	// Not ignored, which the traced command would inherit.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	go func() {
		if s, ok := <-signals; ok {
			cancel(stopped{s})
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel(nil)
	}
}

// stopped is the signal that ended the run.
type stopped struct{ os.Signal }

func (s stopped) Error() string { return "stopped by " + s.Signal.String() }

// begin writes what stands at the head of a run.
func (t *tail) begin(filters, command []string) {
	if len(command) > 0 {
		filters = append(filters, "-- "+command[0]) // arguments can be secrets
	}
	meta := record.MetaFields{
		Version:      version(),
		Arch:         runtime.GOARCH,
		Started:      t.started.UnixNano(),
		TSOffsetMode: string(t.source.tracer.TSOffsets()),
		BlindSpots:   t.source.blindSpots,
		Filters:      filters,
	}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		meta.Kernel = unix.ByteSliceToString(name.Release[:])
		meta.Node = cmp.Or(os.Getenv(envNode), unix.ByteSliceToString(name.Nodename[:]))
	}
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		meta.BootID = strings.TrimSpace(string(id))
	}
	for _, hook := range t.source.tracer.Hooks() {
		meta.Probes = append(meta.Probes, record.Probe(hook))
	}
	t.lossless = t.started.UnixNano()
	t.lines.begin(record.Record{Kind: record.Meta, Time: t.lossless, Meta: &meta}, t.source.who.names.Any())
}

// follow reads events until something ends the run.
func (t *tail) follow(ctx context.Context) error {
	chores := time.Now()
	var ended <-chan struct{}
	if t.command != nil {
		ended = t.command.ended
	}
	var signalled time.Time
	for n := 1; ; n++ {
		quiet, err := t.source.next(t.write)
		if err != nil {
			return err
		}
		if t.count > 0 && t.lines.printed >= t.count {
			return nil
		}
		// A ring that never runs empty must not starve the rest.
		if !quiet && n%4096 != 0 {
			continue
		}
		now := time.Now()
		if now.Sub(chores) >= time.Second {
			chores = now
			if err := t.doChores(now); err != nil {
				return err
			}
		}
		if err := t.lines.failed(); err != nil {
			return err
		}
		if t.exports != nil {
			t.exports.answer(t.source)
		}
		select {
		case <-ended:
			return nil
		case <-t.moved:
			t.lines.reopen()
		case <-ctx.Done():
			if t.command == nil {
				return nil
			}
			// The command decides, but not for ever.
			if signalled.IsZero() {
				signalled = now
				t.forward(context.Cause(ctx))
			} else if now.Sub(signalled) > 800*time.Millisecond {
				return nil
			}
		default:
		}
		if !t.until.IsZero() && now.After(t.until) {
			return nil
		}
	}
}

// forward hands on the signal that twtrace got.
func (t *tail) forward(cause error) {
	var s stopped
	if errors.As(cause, &s) {
		t.command.signal(s.Signal)
	}
}

// write hands on those records of a moment that the user wants.
func (t *tail) write(moment []record.Record) {
	if !slices.ContainsFunc(moment, func(r record.Record) bool { return !t.wants(&r) }) {
		t.writeWanted(moment)
		return
	}
	t.wanted = t.wanted[:0]
	for i := range moment {
		if t.wants(&moment[i]) {
			t.wanted = append(t.wanted, moment[i])
		} else if t.exports != nil && t.shows(&moment[i]) {
			t.exports.observe(moment[i : i+1])
		}
	}
	t.writeWanted(t.wanted)
	// Whoever told them learns which lines they have become.
	for i, j := 0, 0; j < len(t.wanted); i++ {
		if t.wants(&moment[i]) {
			moment[i].Line = t.wanted[j].Line
			j++
		}
	}
}

func (t *tail) writeWanted(moment []record.Record) {
	if t.count > 0 {
		moment = t.lines.upTo(moment, t.count)
	}
	if len(moment) > 0 {
		t.lines.write(moment)
	}
}

// wants reports whether a record becomes a line.
func (t *tail) wants(r *record.Record) bool {
	return !r.Kind.AboutSocket() || t.shows(r) && t.options.wants(r)
}

// shows reports whether a record about a socket is of one that is traced. The
// kernel does not know which connection a dropped packet is of.
func (t *tail) shows(r *record.Record) bool {
	return r.Kind != record.Drop || t.options.probe.Filter.Shows(r.Socket)
}

// doChores looks after the outputs, and tells what was lost.
func (t *tail) doChores(now time.Time) error {
	t.lines.doChores(now)
	if err := t.tellLoss(now.UnixNano()); err != nil {
		return err
	}
	if t.exports != nil {
		t.exports.doChores(now, t.lost.Total(), t.lines.lost)
	}
	return nil
}

func (t *tail) tellLoss(now int64) error {
	lost, err := t.source.lost()
	if err != nil {
		return err
	}
	if fields, ok := inKernel(lost, t.lost); ok {
		fields.Since = t.lossless
		t.lines.write([]record.Record{{Kind: record.Lost, Time: now, Lost: fields}})
		t.lost = lost
	}
	t.lossless = now
	return nil
}

// end reads what is left and writes the summary.
func (t *tail) end() error {
	if err := t.source.tracer.Detach(); err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	for quiet := false; !quiet; {
		var err error
		if quiet, err = t.source.next(t.write); err != nil {
			return err
		}
	}
	t.source.flush(t.write)
	now := time.Now()
	if err := t.tellLoss(now.UnixNano()); err != nil {
		return err
	}
	if t.exports != nil {
		t.exports.last(now)
		defer t.exports.close()
	}
	return t.lines.close(now, record.SummaryFields{
		Duration: now.Sub(t.started), LostKernel: t.lost.Total(), Forgotten: t.source.tracker.Forgotten(),
	})
}
