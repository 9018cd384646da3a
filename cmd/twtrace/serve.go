package main

import (
	"fmt"
	"net"
	"os"
	"time"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/otlp"
)

const (
	// servePatience is how long the end of serve waits for the outputs of its
	// lines, and sendPatience for what takes OTLP: both, and what else there is to
	// do, within the 30 s that Kubernetes gives a pod.
	servePatience = 5 * time.Second
	sendPatience  = 15 * time.Second
)

// serveFlags are serve's flags as the user gave them. Of the tail's it has those
// that make sense for a run without an end.
type serveFlags struct {
	tailFlags
	listen       string
	otlp         string
	otlpAll      bool
	containers   uint
	destinations uint
}

func newServeCommand(stdout, stderr *os.File) *cobra.Command {
	var flags serveFlags
	command := &cobra.Command{
		Use:   "serve",
		Short: "Trace as a daemon: JSON lines, Prometheus metrics, OTLP",
		Long: `serve traces until it is stopped. It writes the event log to stdout, or with
--log to a file instead, serves metrics to Prometheus, and sends logs by OTLP to
whom --otlp or the OTEL_EXPORTER_OTLP_* variables name: failures, causes and
sums of ten seconds, unless --otlp-all asks for every event.

--events and --failures narrow the lines; all other filters narrow all three.`,
		Example: `  sudo twtrace serve                                     lines on stdout, metrics on ` + defaultListen + `
  sudo twtrace serve --failures --otlp http://127.0.0.1:4318
  sudo twtrace serve --log /var/log/twtrace/events.jsonl.zst --log-max-size 100M --log-keep 10
  sudo twtrace serve --listen :9435 --metrics-destinations 500
                                                         to all, with sockets by destination`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			options, err := flags.options()
			if err != nil {
				return err
			}
			return runServe(cmd, &flags, options, stdout, stderr)
		},
	}
	f := command.Flags()
	flags.traceFlags.register(f)
	flags.lineFlags.register(f)
	flags.registerLog(f)
	f.Lookup("log").Usage = "write the event log to this `file` instead of stdout; compressed where it ends in .zst; SIGHUP opens it anew"
	f.StringVar(&flags.listen, "listen", defaultListen, "serve /metrics, /healthz and /readyz on this `address`; none where it is empty")
	f.StringVar(&flags.otlp, "otlp", "", "send logs by OTLP (http/protobuf) to this `URL`, as http://127.0.0.1:4318; the OTEL_* variables hold besides")
	f.BoolVar(&flags.otlpAll, "otlp-all", false, "send every event by OTLP, not only failures, causes and sums")
	f.UintVar(&flags.containers, "metrics-containers", 1000, "series of their own for this `number` of containers, one more for all others")
	f.UintVar(&flags.destinations, "metrics-destinations", 0, "sockets and connects by destination, for this `number` of pairs of container and destination (default none)")
	for _, name := range []string{"events", "probe-tier"} {
		if err := command.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(completions[name], cobra.ShellCompDirectiveNoFileComp)); err != nil {
			panic(err) // no such flag
		}
	}
	return command
}

// defaultListen is for this machine alone: the metrics name its programs' pods.
const defaultListen = "127.0.0.1:9435"

func (f *serveFlags) options() (tailOptions, error) {
	f.output = "json"
	options, err := f.tailFlags.options(false)
	if err != nil {
		return options, err
	}
	if f.containers == 0 {
		return options, usageError{fmt.Errorf("metrics containers %d: must be 1 or more", f.containers)}
	}
	if f.otlpAll {
		options.probe.Filter.ConnectionsOnly = false
	}
	return options, nil
}

func runServe(cmd *cobra.Command, flags *serveFlags, options tailOptions, stdout, stderr *os.File) error {
	if flags.log != "" {
		// The lines go there.
		var err error
		if stdout, err = os.OpenFile(os.DevNull, os.O_WRONLY, 0); err != nil {
			return fmt.Errorf("write no lines: %w", err)
		}
		defer stdout.Close()
	}
	warn := func(format string, args ...any) { say(stderr, format, args...) }
	sender, err := otlp.New(otlp.Config{URL: flags.otlp, All: flags.otlpAll, Version: version(), Warn: warn})
	if err != nil {
		return usageError{err}
	}
	if sender == nil && flags.otlpAll {
		return usageError{fmt.Errorf("--otlp-all without a place to send to: add --otlp URL or set OTEL_EXPORTER_OTLP_ENDPOINT")}
	}
	var listener net.Listener
	if flags.listen != "" {
		if listener, err = net.Listen("tcp", flags.listen); err != nil {
			return fmt.Errorf("serve metrics: %w", err)
		}
	}
	exports := newExports(flags, sender)
	if listener != nil {
		defer exports.serve(listener, warn)()
	}
	return runTail(cmd.Context(), &flags.tailFlags, options, setFlags(cmd.Flags()), nil, exports, stdout, stderr)
}
