package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/schollz/progressbar/v3"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/term"

	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/report"
)

// reportFlags are report's flags as the user gave them.
type reportFlags struct {
	peerFlags
	lineFlags
	output     string
	since      string
	until      string
	connection string
}

func (f *reportFlags) register(flags *pflag.FlagSet) {
	f.peerFlags.register(flags)
	f.lineFlags.register(flags)
	flags.StringVar(&f.netns, "netns", "", "only this network `namespace`, by its inode")
	flags.StringVarP(&f.output, "output", "o", "text", "what to write: `text|html|json`")
	flags.StringVar(&f.since, "since", "", "only from this `time` on, in UTC: 2026-11-23T04:00:00Z, 2026-11-23 04:00, 2026-11-23")
	flags.StringVar(&f.until, "until", "", "only before this `time`, in UTC")
	flags.StringVar(&f.connection, "connection", "", "tell the story of one connection, too, by its socket's `cookie`")
}

// reportOutputs are the forms of a report.
var reportOutputs = map[string]func(r *report.Report, w io.Writer, width int) error{
	"text": (*report.Report).WriteText,
	"html": func(r *report.Report, w io.Writer, _ int) error { return r.WriteHTML(w) },
	"json": func(r *report.Report, w io.Writer, _ int) error {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(r)
	},
}

func (f *reportFlags) options(set []string) (o report.Options, err error) {
	if reportOutputs[f.output] == nil {
		return o, fmt.Errorf("output %q: must be text, html or json", f.output)
	}
	filter, err := f.filter()
	if err != nil {
		return o, err
	}
	lines, err := f.lineFlags.options(&filter)
	if err != nil {
		return o, err
	}
	if f.netns != "" {
		inode, err := strconv.ParseUint(f.netns, 10, 32)
		if err != nil {
			return o, fmt.Errorf("network namespace %q: must be its inode, as the log has it", f.netns)
		}
		filter.NetNS = uint32(inode)
	}
	if o.Since, err = parseTime(f.since); err != nil {
		return o, fmt.Errorf("since %w", err)
	}
	if o.Until, err = parseTime(f.until); err != nil {
		return o, fmt.Errorf("until %w", err)
	}
	if f.connection != "" {
		if o.Connection, err = strconv.ParseUint(f.connection, 10, 64); err != nil || o.Connection == 0 {
			return o, fmt.Errorf("connection %q: must be a number, the log's socket.cookie", f.connection)
		}
	}
	o.Filters = set
	o.Wants = func(r *record.Record) bool { return lines.wants(r) && has(&filter, r) }
	return o, nil
}

// has reports whether a line passes the filter. Which end of a packet that was dropped
// is this machine's is not always known.
func has(filter *probe.Filter, r *record.Record) bool {
	if filter.Has(r.Socket) {
		return true
	}
	if r.Kind != record.Drop {
		return false
	}
	turned := r.Socket
	turned.Tuple.Local, turned.Tuple.Peer = turned.Tuple.Peer, turned.Tuple.Local
	return filter.Shows(r.Socket) && filter.Has(turned)
}

// timeForms are how a time can be given. Without a zone it is UTC, as in the log.
var timeForms = []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"}

// parseTime returns Unix nanoseconds, 0 for no time.
func parseTime(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	for _, form := range timeForms {
		// What has no number of nanoseconds in 64 bits is in no log.
		if t, err := time.Parse(form, text); err == nil && time.Unix(0, t.UnixNano()).Equal(t) {
			return t.UnixNano(), nil
		}
	}
	return 0, fmt.Errorf("%q: must be a time such as 2026-11-23T04:00:00Z", text)
}

func newReportCommand(stdout, stderr *os.File) *cobra.Command {
	var flags reportFlags
	command := &cobra.Command{
		Use:   "report [flags] FILE...",
		Short: "Turn event logs into a postmortem",
		Long: `report reads event logs, plain or packed by gzip or zstd, and tells what failed and
why, who it was, and what TIME_WAIT and the local ports had to do with it. The
files of a rotated log may come in any order; - is standard input. A log that is
cut or damaged is read as far as it goes, and the report says so. It needs
neither root nor Linux's BTF, and any machine will do.`,
		Example: `  twtrace report events.jsonl
  twtrace report -o html events*.jsonl.zst > postmortem.html
  twtrace report -o json - < events.jsonl | jq .incidents
  twtrace report --connection 4123 events.jsonl`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usageError{errors.New("no FILE: name the event logs, or - for standard input")}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			options, err := flags.options(setFlags(cmd.Flags()))
			if err != nil {
				return usageError{err}
			}
			return runReport(args, options, flags.output, stdout, stderr)
		},
	}
	flags.register(command.Flags())
	for flag, values := range map[string][]string{"output": {"text", "html", "json"}, "events": socketEvents} {
		if err := command.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // no such flag
		}
	}
	return command
}

func runReport(paths []string, options report.Options, output string, stdout, stderr *os.File) error {
	logs, err := report.Open(paths, os.Stdin)
	if err != nil {
		return err
	}
	collector := report.NewCollector(options)
	progress, done := showProgress(logs.Size(), stderr)
	err = logs.Collect(collector, progress)
	done()
	if err != nil {
		return err
	}
	width, _, err := term.GetSize(int(stdout.Fd()))
	if err != nil {
		width = 0
	}
	w := bufio.NewWriter(stdout)
	if err := reportOutputs[output](collector.Report(), w, width); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// worthWatching is how many bytes take long enough for somebody to wonder.
const worthWatching = 64 << 20

// showProgress shows how much of a long log is read, where a terminal watches.
func showProgress(size int64, stderr *os.File) (read func(bytes int), done func()) {
	if size < worthWatching || !term.IsTerminal(int(stderr.Fd())) {
		return func(int) {}, func() {}
	}
	bar := progressbar.NewOptions64(size,
		progressbar.OptionSetWriter(stderr), progressbar.OptionShowBytes(true), progressbar.OptionFullWidth(),
		progressbar.OptionSetDescription("reading"), progressbar.OptionClearOnFinish(), progressbar.OptionThrottle(100*time.Millisecond))
	return func(bytes int) { _ = bar.Add(bytes) }, func() { _ = bar.Finish() } // a bar that fails tells nothing
}
