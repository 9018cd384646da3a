package main

import (
	"bytes"
	"fmt"
	"io"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/lab"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/rendertest"
)

// given are flags as a command has understood them.
type given struct {
	peer *peerFlags
	line *lineFlags // nil: top has none
	set  *pflag.FlagSet
	narrowed
	rotation rotation
	ringSize int
}

// narrowed is what they leave of the lines.
type narrowed struct {
	filter       probe.Filter
	lines        lineOptions
	since, until int64
}

// understand has a command understand its flags, but for the network namespace of one
// that would look for it.
func understand(command byte, args ...string) (g given, err error) {
	g.set = pflag.NewFlagSet("", pflag.ContinueOnError)
	g.set.SetOutput(io.Discard)
	switch command % 3 {
	case 0:
		var f tailFlags
		f.register(g.set)
		if err := g.set.Parse(args); err != nil {
			return g, err
		}
		f.netns, f.log = "", "events.jsonl"
		g.peer, g.line = &f.peerFlags, &f.lineFlags
		options, err := f.options(false)
		g.filter, g.lines = options.probe.Filter, options.lineOptions
		g.rotation, g.ringSize = options.rotation, options.probe.RingSize
		return g, err
	case 1:
		f := topFlags{by: "destination", sort: "pressure", delay: seconds(time.Second)}
		f.register(g.set)
		g.set.Var(&f.delay, "delay", "")
		g.set.StringVar(&f.by, "by", f.by, "")
		g.set.StringVar(&f.sort, "sort", f.sort, "")
		if err := g.set.Parse(args); err != nil {
			return g, err
		}
		f.netns = ""
		g.peer = &f.peerFlags
		options, err := f.options(os.Stdout)
		g.filter, g.ringSize = options.probe.Filter, options.probe.RingSize
		return g, err
	}
	var f reportFlags
	f.register(g.set)
	if err := g.set.Parse(args); err != nil {
		return g, err
	}
	g.peer, g.line = &f.peerFlags, &f.lineFlags
	options, err := f.options(nil)
	if err != nil {
		return g, err
	}
	g.since, g.until = options.Since, options.Until
	if g.filter, err = f.filter(); err != nil {
		return g, err
	}
	g.lines, err = f.lineFlags.options(&g.filter)
	return g, err
}

// checkComplaint checks that an error is told in one line, with a hint in another,
// both harmless.
func checkComplaint(t *testing.T, err error) {
	t.Helper()
	var b bytes.Buffer
	complain(&b, usageError{err})
	rendertest.Check(t, b.String())
	if lines := strings.Split(b.String(), "\n"); len(lines) != 3 || !strings.HasPrefix(lines[0], "twtrace: ") || !strings.HasPrefix(lines[1], "hint: ") {
		t.Errorf("%q is told as %q", err, &b)
	}
}

// FuzzFlags: a flag is understood as it is given, or refused in one harmless line.
// What the log's head says of the flags means the same to who gives it again.
func FuzzFlags(f *testing.F) {
	for _, flag := range []struct{ name, value string }{
		{"remote-port", "80,8000-8099"}, {"remote-port", "1-65535"}, {"remote-port", "9-1"}, {"remote-port", "+1"}, {"local-port", "0080"},
		{"addr", "10.0.0.0/8,2001:db8::1"}, {"addr", "::ffff:10.0.0.0/104"}, {"addr", "fe80::1%eth0"}, {"addr", "10.0.0.1\n10.0.0.2"}, {"addr", `"10.0.0.1"`}, {"addr", "::/0"},
		{"events", "connect,close"}, {"events", "connect\nclose"}, {"events", "meta"}, {"events", ""},
		{"failures", "true"}, {"ipv4", "1"}, {"pid", "0"}, {"pid", "-1"}, {"comm", "kube-controller-manager"}, {"pod", "shop/api"}, {"netns", "4026531840"},
		{"ring-size", "64K"}, {"ring-size", "1G"}, {"ring-size", "5000"}, {"ring-size", "KM"}, {"probe-tier", "kprobe"}, {"output", "html"},
		{"log-max-size", "1M"}, {"log-max-age", "1h"}, {"log-keep", "3"}, {"duration", "-1s"}, {"delay", "0.5"}, {"delay", "1e3"}, {"delay", "inf"}, {"delay", "1m"}, {"by", "netns"}, {"sort", "rate"},
		{"since", "2026-11-23T04:00:00Z"}, {"since", "2026-11-23 04:00"}, {"until", "9999-12-31"}, {"until", "2026-11-23T04:00:00.123456789+02:00"}, {"connection", "4123"}, {"connection", "0"},
		{"help", ""}, {"nonsense", "x"}, {"", ""}, {"\x1b[2J", "\x1b[2J"},
	} {
		for command := range byte(3) {
			f.Add(command, flag.name, flag.value)
		}
	}
	f.Fuzz(func(t *testing.T, command byte, name, value string) {
		if _, err := lab.Find(value); err != nil {
			checkComplaint(t, err)
		}
		args := []string{"--" + name + "=" + value}
		g, err := understand(command, args...)
		if err != nil {
			checkComplaint(t, err)
			return
		}
		said := setFlags(g.set)
		again, err := understand(command, said...)
		if err != nil || !reflect.DeepEqual(g.narrowed, again.narrowed) {
			t.Errorf("%q is told as %q, which means %+v, not %+v: %v", args, said, again.narrowed, g.narrowed, err)
		}
		if flag := g.set.Lookup(name); flag != nil {
			if list, ok := flag.Value.(pflag.SliceValue); ok && strings.Join(list.GetSlice(), ",") != value {
				t.Errorf("%q is taken for %q", args, list.GetSlice())
			}
		}
		g.check(t)
		if size, ok := parseSize(value); ok {
			if again, ok := parseSize(strconv.FormatInt(size, 10)); !ok || again != size || size < 0 {
				t.Errorf("size %q is %d, and that is %d", value, size, again)
			}
		}
		if ns, err := parseTime(value); err == nil && value != "" {
			// A zone can move it to the next year.
			year, _ := strconv.Atoi(value[:4])
			if got := time.Unix(0, ns).UTC(); got.Year()-year > 1 || year-got.Year() > 1 {
				t.Errorf("time %q is %s", value, got)
			}
		}
	})
}

// check checks that what was given passes, and that the rest is in its bounds.
func (g *given) check(t *testing.T) {
	t.Helper()
	if again, err := parsePorts(spell(g.filter.PeerPorts)); err != nil || !reflect.DeepEqual(again, g.filter.PeerPorts) {
		t.Errorf("ports %q are %s: %v", g.peer.peerPorts, spell(g.filter.PeerPorts), err)
	}
	for _, network := range g.filter.Networks {
		s := event.Socket{Tuple: event.Tuple{Peer: netip.AddrPortFrom(network.Addr().Unmap(), 80)}}
		if only := (probe.Filter{Networks: g.filter.Networks}); !only.Has(s) {
			t.Errorf("networks %q leave out %v", g.peer.addresses, s.Tuple.Peer)
		}
	}
	if g.line != nil {
		// The kernel keeps 15 bytes of a name.
		s := event.Socket{Owner: event.Owner{PID: g.line.pid, Comm: g.line.comm[:min(len(g.line.comm), 15)]}}
		if only := (probe.Filter{PID: g.filter.PID, Comm: g.filter.Comm}); !only.Has(s) {
			t.Errorf("--comm %q leaves out %q", g.line.comm, s.Owner.Comm)
		}
	}
	if r := g.rotation; r.keep < 0 || r.maxSize != 0 && r.maxSize < minLogSize || r.maxAge != 0 && r.maxAge < time.Second {
		t.Errorf("the log is rotated by %+v", r)
	}
	if n := g.ringSize; n != 0 && (n&(n-1) != 0 || n < os.Getpagesize() || n > 1<<30) {
		t.Errorf("the ring has %d bytes", n)
	}
}

// spell spells a set of ports as a user may.
func spell(ports *probe.Ports) string {
	if ports == nil {
		return ""
	}
	var items []string
	for port := 1; port < 1<<16; port++ {
		if first := port; ports.Has(uint16(port)) {
			for port < 1<<16-1 && ports.Has(uint16(port+1)) {
				port++
			}
			items = append(items, fmt.Sprintf("%d-%d", first, port))
		}
	}
	return strings.Join(items, ",")
}
