package main

import (
	"bytes"
	"fmt"
	"regexp"

	"github.com/twtrace/twtrace/internal/load"
)

// Ports that the connections go to, told apart in what the tracers print.
const (
	firstPort = 8081 // of the connections before the turn, that show when it traces
	loadPort  = 8080
)

// A tracer is a program that traces connections, and how to read what it prints.
type tracer struct {
	name string
	// command runs it, until SIGINT. Its output is taken from the file that replaces OUT,
	// or else from stdout.
	command []string
	// perConnection is how many lines, with loadPort and of these kinds, it prints of a
	// connection that lost nothing; 0: they are not counted.
	perConnection int
	perListener   int            // the same of a listener
	kinds         *regexp.Regexp // nil: all
	// silent tracers make OUT when they trace, and no other output.
	silent bool
	// header is the length of its output before the first event, where that is not text.
	header int
	// local tracers see one network namespace only, and run in that of the load.
	local bool
	// tracked needs connection tracking in the network namespace of the load.
	tracked bool
}

var (
	ofFirst = regexp.MustCompile(fmt.Sprintf(`\b%d\b`, firstPort))
	ofLoad  = regexp.MustCompile(fmt.Sprintf(`\b%d\b`, loadPort))
)

// hasBegun tells whether an event of a first connection stands in the output.
func (t *tracer) hasBegun(output []byte) bool {
	switch {
	case t.silent:
		return true
	case t.header > 0:
		return len(output) > t.header
	}
	return ofFirst.Match(output)
}

// count returns how many lines of the output are about the load.
func (t *tracer) count(output []byte) (lines int) {
	for line := range bytes.Lines(output) {
		if ofLoad.Match(line) && (t.kinds == nil || t.kinds.Match(line)) {
			lines++
		}
	}
	return lines
}

const script = `
tracepoint:sock:inet_sock_set_state /args->protocol == 6 %s/ {
	printf("%%llu %%d %%s %%d %%d %%d %%d %%s %%s\n", nsecs, pid, comm, args->sport, args->dport,
		args->oldstate, args->newstate, ntop(args->saddr), ntop(args->daddr));
}`

// known returns the tracers that are known.
func known(twtrace string) []tracer {
	// Those that every connection has, the close twice. A reused port is chance.
	kinds := regexp.MustCompile(`"event":"(state|connect|accept|close|time_wait.enter)"`)
	const everyLine, everyState = load.StateChanges + 5, 2
	return []tracer{
		{name: "twtrace, the tail to /dev/null", command: []string{twtrace, "--ready-file", "OUT"}, silent: true},
		{name: "twtrace, every kind as JSON", command: []string{twtrace, "-o", "json"}, perConnection: everyLine, perListener: everyState, kinds: kinds},
		{name: "twtrace, a log and the tail", command: []string{twtrace, "--log", "OUT"}, perConnection: everyLine, perListener: everyState, kinds: kinds},
		{
			name:          "twtrace, no state lines, JSON",
			command:       []string{twtrace, "-o", "json", "--events", "connect,accept,close,time_wait.enter,time_wait.end,port_reuse,syn_retransmit,drop,reset,port_pressure"},
			perConnection: everyLine - load.StateChanges, kinds: kinds,
		},
		{name: "twtrace serve", command: []string{twtrace, "serve", "--listen", ""}, perConnection: everyLine, perListener: everyState, kinds: kinds},
		{name: "tcpstates (libbpf-tools)", command: []string{"tcpstates"}, perConnection: load.StateChanges, perListener: everyState},
		{name: "tcplife (libbpf-tools)", command: []string{"tcplife"}, perConnection: 2},
		{name: "bpftrace, a line a state change", command: []string{"bpftrace", "-e", fmt.Sprintf(script, "")}, perConnection: load.StateChanges, perListener: everyState},
		{name: "bpftrace, a line a connection", command: []string{"bpftrace", "-e", fmt.Sprintf(script, "&& args->newstate == 7")}, perConnection: 2, perListener: 1},
		{name: "conntrack -E", command: []string{"conntrack", "-E", "-p", "tcp", "-o", "timestamp"}, local: true, tracked: true},
		{name: "tcpdump -w, SYN, FIN and RST", command: []string{"tcpdump", "-i", "lo", "-U", "-w", "OUT", "tcp[tcpflags] & (tcp-syn|tcp-fin|tcp-rst) != 0"}, header: 24, local: true},
	}
}
