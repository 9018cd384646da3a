package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/load"
	"github.com/twtrace/twtrace/internal/probe"
	"github.com/twtrace/twtrace/internal/thread"
)

// A scenario is something that happens to TCP, alone in a network namespace,
// and what twtrace must say of it.
type scenario struct {
	name string
	run  func() error
	// want are the lines of these kinds, by default connect, accept and
	// close, in any order.
	kinds, want []string
	// blind are those of them that --probe-tier state_only can't see.
	blind []string
	// check looks further; lines are all that are about this namespace.
	check func(t testing.TB, lines []line)
}

var scenarios = []scenario{
	{
		name: "IPv4, the client closes first",
		run:  func() error { return converse(unix.AF_INET, "127.0.0.1:80", "127.0.0.1:80") },
		want: []string{"connect established", "accept", "close local 10/3", "close peer 3/10"},
		check: func(t testing.TB, lines []line) {
			want := []string{
				"CLOSE LISTEN", "CLOSE SYN_SENT", "SYN_SENT ESTABLISHED", "LISTEN SYN_RECV", "SYN_RECV ESTABLISHED",
				"ESTABLISHED FIN_WAIT1", "ESTABLISHED CLOSE_WAIT", "FIN_WAIT1 FIN_WAIT2", "FIN_WAIT2 CLOSE",
				"CLOSE_WAIT LAST_ACK", "LAST_ACK CLOSE", "LISTEN CLOSE",
			}
			var got []string
			for _, l := range of(lines, "state") {
				got = append(got, l.State.Old+" "+l.State.New)
			}
			slices.Sort(want)
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("states (-want +got):\n%s", diff)
			}
			for _, l := range lines {
				if l.Network.Type != "ipv4" || l.Network.Local.Address != "127.0.0.1" {
					t.Errorf("%s is about %+v", l, l.Network)
				}
				if l.Process.PID != uint32(os.Getpid()) {
					t.Errorf("%s is of process %d, want %d", l, l.Process.PID, os.Getpid())
				}
			}
			for _, l := range of(lines, "connect", "accept", "close") {
				if l.Network.Local.Port == 0 || l.Network.Peer.Port == 0 {
					t.Errorf("%s is about %+v", l, l.Network)
				}
			}
		},
	},
	{
		name: "IPv6",
		run:  func() error { return converse(unix.AF_INET6, "[::1]:80", "[::1]:80") },
		want: []string{"connect established", "accept", "close local 10/3", "close peer 3/10"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "connect", "accept", "close") {
				if l.Network.Type != "ipv6" || l.Network.Local.Address != "::1" || l.Network.Peer.Address != "::1" {
					t.Errorf("%s is about %+v", l, l.Network)
				}
			}
		},
	},
	{
		name: "IPv4 on IPv6 sockets",
		run:  func() error { return converse(unix.AF_INET6, "[::]:80", "127.0.0.1:80") },
		want: []string{"connect established", "accept", "close local 10/3", "close peer 3/10"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "connect", "accept", "close") {
				if l.Network.Type != "ipv4" || l.Network.Local.Address != "127.0.0.1" {
					t.Errorf("%s is about %+v", l, l.Network)
				}
			}
		},
	},
	{
		name: "refused",
		run:  func() error { return attempt(unix.AF_INET, "127.0.0.1:1", unix.ECONNREFUSED) },
		want: []string{"connect refused ECONNREFUSED"},
		check: func(t testing.TB, lines []line) {
			if n := len(of(lines, "reset")); n == 0 {
				t.Error("no RST was seen")
			}
		},
	},
	{
		name: "refused, IPv6",
		run:  func() error { return attempt(unix.AF_INET6, "[::1]:1", unix.ECONNREFUSED) },
		want: []string{"connect refused ECONNREFUSED"},
	},
	{
		name: "refused, IPv4 on an IPv6 socket",
		run:  func() error { return attempt(unix.AF_INET6, "127.0.0.1:1", unix.ECONNREFUSED) },
		want: []string{"connect refused ECONNREFUSED"},
	},
	{
		name: "refused, non-blocking, asked for by a second connect",
		run: func() error {
			s, err := nonblocking("127.0.0.1:1")
			if err != nil {
				return err
			}
			defer s.close()
			if err := s.wait(unix.POLLOUT); err != nil {
				return err
			}
			return expect(s.connect("127.0.0.1:1"), unix.ECONNREFUSED)
		},
		want: []string{"connect refused ECONNREFUSED"},
	},
	{
		name:  "no route",
		run:   func() error { return attempt(unix.AF_INET, "10.99.0.1:80", unix.ENETUNREACH) },
		want:  []string{"connect unreachable ENETUNREACH"},
		blind: []string{"connect unreachable ENETUNREACH"},
		check: func(t testing.TB, lines []line) {
			for _, l := range lines {
				if l.Network.Peer.Address != "10.99.0.1" || l.Network.Peer.Port != 80 || l.Process.PID != uint32(os.Getpid()) {
					t.Errorf("%s is about %+v, of process %d", l, l.Network, l.Process.PID)
				}
			}
		},
	},
	{
		name:  "no route, IPv6",
		run:   func() error { return attempt(unix.AF_INET6, "[2001:db8::1]:80", unix.ENETUNREACH) },
		want:  []string{"connect unreachable ENETUNREACH"},
		blind: []string{"connect unreachable ENETUNREACH"},
	},
	{
		name:  "no route, IPv4 on an IPv6 socket",
		run:   func() error { return attempt(unix.AF_INET6, "10.99.0.1:80", unix.ENETUNREACH) },
		want:  []string{"connect unreachable ENETUNREACH"},
		blind: []string{"connect unreachable ENETUNREACH"},
		check: func(t testing.TB, lines []line) {
			for _, l := range lines {
				if l.Network.Type != "ipv4" || l.Network.Peer.Address != "10.99.0.1" {
					t.Errorf("%s is about %+v", l, l.Network)
				}
			}
		},
	},
	{
		name: "a prohibited route",
		run: func() error {
			if err := routeOfType("10.99.0.0/24", unix.RTN_PROHIBIT); err != nil {
				return err
			}
			return attempt(unix.AF_INET, "10.99.0.1:80", unix.EACCES)
		},
		want:  []string{"connect denied EACCES"},
		blind: []string{"connect denied EACCES"},
	},
	{
		name: "a blackhole route",
		run: func() error {
			if err := routeOfType("10.99.0.0/24", unix.RTN_BLACKHOLE); err != nil {
				return err
			}
			return attempt(unix.AF_INET, "10.99.0.1:80", unix.EINVAL)
		},
		want:  []string{"connect failed EINVAL"},
		blind: []string{"connect failed EINVAL"},
	},
	{
		name:  "forbidden by a cgroup's program",
		run:   func() error { return inForbiddingCgroup("denied", "127.0.0.1:80") },
		want:  []string{"connect denied EPERM"},
		blind: []string{"connect denied EPERM"},
		check: func(t testing.TB, lines []line) {
			for _, l := range lines {
				if l.Process.Comm != "denied" || l.Network.Peer.Address != "127.0.0.1" || l.Network.Peer.Port != 80 {
					t.Errorf("%s is about %+v, of process %d (%s)", l, l.Network, l.Process.PID, l.Process.Comm)
				}
			}
		},
	},
	{
		name: "nobody answers",
		run: func() error {
			if err := errors.Join(silence(), sysctl("ipv4/tcp_syn_retries", "1")); err != nil {
				return err
			}
			return attempt(unix.AF_INET, "10.77.1.1:80", unix.ETIMEDOUT)
		},
		want: []string{"connect timed_out ETIMEDOUT"},
		check: func(t testing.TB, lines []line) {
			// 1 with tcp_syn_retries alone, 2 with tcp_syn_linear_timeouts
			// (6.5).
			sent := len(of(lines, "syn_retransmit"))
			for _, l := range of(lines, "connect") {
				if l.Connect.Retransmits != sent || sent < 1 || sent > 2 {
					t.Errorf("%d SYN retransmits on the connect, %d lines", l.Connect.Retransmits, sent)
				}
				if l.Connect.Duration < 2900 {
					t.Errorf("timed out after %v ms, want 3 s", l.Connect.Duration)
				}
			}
			for i, l := range of(lines, "syn_retransmit") {
				if l.SYN.Attempt != i+1 || l.SYN.Packet != "SYN" || l.Process.PID != uint32(os.Getpid()) {
					t.Errorf("line %d: %s of process %d", i, l, l.Process.PID)
				}
			}
		},
	},
	{
		name: "the program gives up",
		run: func() error {
			if err := silence(); err != nil {
				return err
			}
			s, err := nonblocking("10.77.1.1:80")
			if err != nil {
				return err
			}
			return s.close()
		},
		want: []string{"connect abandoned"},
	},
	{
		name: "the program takes it back",
		run: func() error {
			if err := silence(); err != nil {
				return err
			}
			s, err := nonblocking("10.77.1.1:80")
			if err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond) // longer than sameCall in internal/track
			defer s.close()
			return s.disconnect()
		},
		want: []string{"connect abandoned"},
	},
	{
		name: "the program ends at once",
		run: func() error {
			if err := silence(); err != nil {
				return err
			}
			return peerCommand("goodbye", "connect-and-exit", "10.77.1.1:80").Run()
		},
		want: []string{"connect abandoned"},
		check: func(t testing.TB, lines []line) {
			for _, l := range lines {
				if l.Process.Comm != "goodbye" || l.Process.PID == uint32(os.Getpid()) {
					t.Errorf("%s is of process %d (%s)", l, l.Process.PID, l.Process.Comm)
				}
			}
		},
	},
	{
		name: "no local port",
		run: func() error {
			return onePort(func() error { return attempt(unix.AF_INET, "127.0.0.1:80", unix.EADDRNOTAVAIL) })
		},
		want: []string{"connect established", "accept", "connect no_local_port EADDRNOTAVAIL", "close local 0/0", "close peer 0/0"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "connect") {
				if l.Error.Type != "" && (l.Network.Local.Port != 0 || l.Network.Local.Address != "127.0.0.1" || l.Network.Peer.Port != 80) {
					t.Errorf("%s is about %+v", l, l.Network)
				}
			}
		},
	},
	{
		name: "no local port, on a socket that had one before",
		run: func() error {
			return onePort(func() error {
				s, err := newSocket(unix.AF_INET)
				if err != nil {
					return err
				}
				defer s.close()
				return errors.Join(
					expect(s.connect("127.0.0.1:1"), unix.ECONNREFUSED),
					expect(s.connect("127.0.0.1:80"), unix.EADDRNOTAVAIL),
				)
			})
		},
		want: []string{
			"connect established", "accept", "connect refused ECONNREFUSED", "connect no_local_port EADDRNOTAVAIL",
			"close local 0/0", "close peer 0/0",
		},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "connect") {
				if l.Connect.Outcome == "no_local_port" && l.Network.Local.Port != 0 {
					t.Errorf("%s has the port %d", l, l.Network.Local.Port)
				}
			}
		},
	},
	{
		name: "no local port, bound to one that is taken",
		run: func() error {
			listener, err := listen(unix.AF_INET, "127.0.0.1:80")
			if err != nil {
				return err
			}
			defer listener.close()
			first, err := boundConnect("127.0.0.1:5000", 0)
			if err != nil {
				return err
			}
			second, err := boundConnect("127.0.0.1:5000", unix.EADDRNOTAVAIL)
			if err != nil {
				return err
			}
			accepted, err := listener.accept()
			return errors.Join(err, second.close(), closeInTurn(first, accepted))
		},
		want: []string{"connect established", "accept", "connect no_local_port EADDRNOTAVAIL", "close local 0/0", "close peer 0/0"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "connect", "port_pressure") {
				if l.Ports.InUse != 0 {
					t.Errorf("%s: not for want of ports, but %+v", l, l.Ports)
				}
			}
		},
	},
	{
		name: "the same socket connects twice",
		run: func() error {
			listener, err := listen(unix.AF_INET, "127.0.0.1:80")
			if err != nil {
				return err
			}
			defer listener.close()
			s, err := newSocket(unix.AF_INET)
			if err != nil {
				return err
			}
			if err := errors.Join(expect(s.connect("127.0.0.1:1"), unix.ECONNREFUSED), s.connect("127.0.0.1:80")); err != nil {
				return err
			}
			accepted, err := listener.accept()
			return errors.Join(err, closeInTurn(s, accepted))
		},
		want: []string{"connect refused ECONNREFUSED", "connect established", "accept", "close local 0/0", "close peer 0/0"},
	},
	{
		name: "non-blocking, asked for by a second connect",
		run: func() error {
			listener, err := listen(unix.AF_INET, "127.0.0.1:80")
			if err != nil {
				return err
			}
			defer listener.close()
			s, err := nonblocking("127.0.0.1:80")
			if err != nil {
				return err
			}
			if err := errors.Join(s.wait(unix.POLLOUT), s.connect("127.0.0.1:80"), expect(s.connect("127.0.0.1:80"), unix.EISCONN)); err != nil {
				return err
			}
			accepted, err := listener.accept()
			return errors.Join(err, closeInTurn(s, accepted))
		},
		want: []string{"connect established", "accept", "close local 0/0", "close peer 0/0"},
	},
	{
		name: "reset by the client",
		run: func() error {
			return connected(func(client, server socket) error {
				if err := errors.Join(client.resetOnClose(), client.close()); err != nil {
					return err
				}
				_, err := server.read()
				return errors.Join(expect(err, unix.ECONNRESET), server.close())
			})
		},
		want: []string{"connect established", "accept", "close reset_sent 0/0", "close reset_received 0/0"},
		check: func(t testing.TB, lines []line) {
			var got []string
			for _, l := range of(lines, "reset") {
				got = append(got, l.String())
			}
			slices.Sort(got)
			if diff := cmp.Diff([]string{"reset received", "reset sent"}, got); diff != "" {
				t.Errorf("resets (-want +got):\n%s", diff)
			}
		},
	},
	{
		name: "a socket connects to itself",
		run: func() error {
			s, err := boundSelf("127.0.0.1:5000")
			if err != nil {
				return err
			}
			return s.close()
		},
		want: []string{"connect established", "close both 0/0"},
	},
	{
		name: "Fast Open, by connect",
		run: func() error {
			return fastOpen(func(s socket) error {
				if err := s.set(unix.IPPROTO_TCP, unix.TCP_FASTOPEN_CONNECT, 1); err != nil {
					return err
				}
				return errors.Join(s.connect("127.0.0.1:80"), s.write(10))
			})
		},
		want: []string{"connect established", "connect established", "accept", "accept", "close local 10/0", "close local 10/0", "close peer 0/10", "close peer 0/10"},
	},
	{
		name: "Fast Open, by sendto",
		run: func() error {
			return fastOpen(func(s socket) error {
				return unix.Sendto(int(s), make([]byte, 10), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: 80, Addr: [4]byte{127, 0, 0, 1}})
			})
		},
		want: []string{"connect established", "connect established", "accept", "accept", "close local 10/0", "close local 10/0", "close peer 0/10", "close peer 0/10"},
	},
	{
		name: "the first SYN's timestamp",
		run: func() error {
			return connected(func(client, server socket) error {
				now, err := unix.GetsockoptInt(int(client), unix.IPPROTO_TCP, unix.TCP_TIMESTAMP)
				timestamp = uint32(now)
				return errors.Join(err, closeInTurn(client, server))
			})
		},
		want: []string{"connect established", "accept", "close local 0/0", "close peer 0/0"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "connect") {
				// Of two clocks of a millisecond one may tick first; the test may have
				// been slow to ask.
				if l.Connect.TSVal == nil {
					t.Error("connect.tsval is absent")
				} else if timestamp-*l.Connect.TSVal+1 > 5000 {
					t.Errorf("connect.tsval is %d, a little later the socket's was %d", *l.Connect.TSVal, timestamp)
				}
			}
			for _, l := range of(lines, "close") {
				if l.Close.TSVal == nil {
					t.Error("close.tsval_last is absent")
				} else if l.Close.By == "local" && *l.Close.TSVal-timestamp > 5000 {
					t.Errorf("close.tsval_last is %d, a little earlier the socket's was %d", *l.Close.TSVal, timestamp)
				}
			}
		},
	},
	{
		name: "timestamps are off",
		run: func() error {
			if err := sysctl("ipv4/tcp_timestamps", "0"); err != nil {
				return err
			}
			return connected(closeInTurn)
		},
		want: []string{"connect established", "accept", "close local 0/0", "close peer 0/0"},
		check: func(t testing.TB, lines []line) {
			for _, l := range lines {
				if l.Connect.TSVal != nil || l.Close.TSVal != nil {
					t.Errorf("%s has a timestamp", l)
				}
			}
		},
	},
	{
		name: "two processes share a local port",
		run: func() error {
			if err := sysctl("ipv4/ip_local_port_range", "32768 32768"); err != nil {
				return err
			}
			one, err := listen(unix.AF_INET, "127.0.0.1:8080")
			if err != nil {
				return err
			}
			two, err := listen(unix.AF_INET, "127.0.0.1:8081")
			if err != nil {
				return err
			}
			defer one.close()
			defer two.close()
			if sharers[0], err = startPeer("sharer-0", "connect-and-hold", "127.0.0.1:8080"); err != nil {
				return err
			}
			if sharers[1], err = startPeer("sharer-1", "connect-and-hold", "127.0.0.1:8081"); err != nil {
				return err
			}
			if err := errors.Join(sharers[1].end(), sharers[0].end()); err != nil {
				return err
			}
			for _, listener := range []socket{one, two} {
				s, err := listener.accept()
				if err != nil {
					return err
				}
				if _, err := s.read(); err != nil {
					return err
				}
				if err := s.close(); err != nil {
					return err
				}
			}
			return nil
		},
		want: []string{"connect established", "connect established", "accept", "accept", "close local 0/0", "close local 0/0", "close peer 0/0", "close peer 0/0"},
		check: func(t testing.TB, lines []line) {
			for _, l := range lines {
				if l.Network.Local.Port == 32768 && l.Network.Peer.Port >= 8080 {
					sharers[l.Network.Peer.Port-8080].owns(t, l)
				}
			}
		},
	},
	{
		name: "two listeners share a port",
		run: func() (err error) {
			for i := range listeners {
				if listeners[i], err = startPeer(fmt.Sprintf("listener-%d", i), "listen-and-hold", "127.0.0.1:80"); err != nil {
					return err
				}
			}
			// Enough for each to get some; which gets which the kernel
			// knows by a hash of the ports.
			for range 32 {
				s, err := newSocket(unix.AF_INET)
				if err != nil {
					return err
				}
				if err := errors.Join(s.connect("127.0.0.1:80"), s.resetOnClose(), s.close()); err != nil {
					return err
				}
			}
			return errors.Join(listeners[0].end(), listeners[1].end())
		},
		want: slices.Repeat([]string{"connect established", "accept", "close reset_sent 0/0", "close reset_received 0/0"}, 32),
		check: func(t testing.TB, lines []line) {
			// What the kernel says of whose connection it is: the cookie
			// of the listener is not in the log, but each listener has
			// one LISTEN line, and its children are its.
			seen := make(map[uint32]int)
			for _, l := range of(lines, "accept") {
				seen[l.Process.PID]++
			}
			if len(seen) != 2 || seen[listeners[0].pid] == 0 || seen[listeners[1].pid] == 0 {
				t.Errorf("accepts by process: %v, want some of %d and of %d", seen, listeners[0].pid, listeners[1].pid)
			}
		},
	},
}

// Left by a scenario for its check.
var (
	timestamp uint32
	sharers   [2]*peer
	listeners [2]*peer
)

// tiers are those to test. The VMs name those that their kernel has; elsewhere
// one that is refused is skipped.
func tiers() []string {
	if names := os.Getenv("TWTRACE_TEST_TIERS"); names != "" {
		return strings.Split(names, ",")
	}
	return probe.TierNames
}

// TestScenarios runs every scenario under every tier, all at once under one
// twtrace: each is known by its network namespace.
func TestScenarios(t *testing.T) {
	needRoot(t)
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			needTier(t, tier)
			undisturbed(t, func(t testing.TB) { testScenarios(t, tier) })
		})
	}
}

func testScenarios(t testing.TB, tier string) {
	old := olderThanTrace(t)
	tr := trace(t, "-o", "json", "--probe-tier", tier)
	namespaces := runScenarios(t, scenarios)
	old.end(t)
	lines := tr.stop()
	checkLog(t, lines)
	for _, hook := range lines[0].Meta.Probes {
		if strings.Contains(hook.WhyNot, "verifier") {
			t.Errorf("%s by %s: %s", hook.Name, hook.Via, hook.WhyNot)
		}
	}
	for i, s := range scenarios {
		part(t, s.name, func(t testing.TB) { s.judge(t, tier, about(lines, namespaces[i])) })
	}
	part(t, "older than the trace", func(t testing.TB) { old.judge(t, about(lines, old.netns)) })
}

// needTier skips the test where this kernel, or its policy, refuses the tier.
func needTier(t testing.TB, tier string) {
	t.Helper()
	if mustRun() {
		return // the trace itself will tell
	}
	out, err := twtrace("--probe-tier", tier, "--duration", "1ms").CombinedOutput()
	if err == nil {
		return
	}
	for _, policy := range []string{"not permitted", "this kernel has no", "not supported by this kernel"} {
		if strings.Contains(string(out), policy) {
			skip(t, "tier %s: %s", tier, out)
		}
	}
	t.Fatalf("tier %s: %s", tier, out)
}

func runScenarios(t testing.TB, scenarios []scenario) []*netns {
	t.Helper()
	namespaces := make([]*netns, len(scenarios))
	results := make(chan error)
	for i := range scenarios {
		namespaces[i] = newNetNS(t)
		go func() {
			err := namespaces[i].do(scenarios[i].run)
			if err != nil {
				err = fmt.Errorf("%s: %w", scenarios[i].name, err)
			}
			results <- err
		}()
	}
	for range scenarios {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	return namespaces
}

// about returns the lines about a network namespace's sockets.
func about(lines []line, n *netns) []line {
	var found []line
	for _, l := range lines {
		if l.NetNS == n.inode && l.Event != "netns" {
			found = append(found, l)
		}
	}
	return found
}

func (s *scenario) judge(t testing.TB, tier string, lines []line) {
	want := slices.Clone(s.want)
	if tier == probe.StateOnly.String() {
		for _, b := range s.blind {
			i := slices.Index(want, b)
			want = slices.Delete(want, i, i+1)
		}
	}
	got := []string{}
	kinds := s.kinds
	if kinds == nil {
		kinds = []string{"connect", "accept", "close"}
	}
	for _, l := range of(lines, kinds...) {
		got = append(got, l.String())
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
	if s.check != nil {
		s.check(t, lines)
	}
	if t.Failed() {
		for _, l := range lines[:min(len(lines), 40)] {
			t.Logf("%s %s pid %d %s %+v", l.Time.Format("05.000000"), l, l.Process.PID, l.Process.Comm, l.Network)
		}
	}
}

// checkLog checks what holds of every log that lost no line.
func checkLog(t testing.TB, lines []line) {
	t.Helper()
	for i, l := range lines {
		if l.Seq != uint64(i) {
			t.Fatalf("line %d has seq %d", i, l.Seq)
		}
	}
	checkSummary(t, lines)
}

// checkSummary checks the first and the last line.
func checkSummary(t testing.TB, lines []line) {
	t.Helper()
	if len(lines) < 2 || lines[0].Event != "meta" || lines[len(lines)-1].Event != "summary" {
		t.Fatalf("%d lines, want a meta first and a summary last", len(lines))
	}
	counts := make(map[string]uint64)
	for _, l := range lines[:len(lines)-1] {
		counts[l.Event]++
	}
	if diff := cmp.Diff(counts, lines[len(lines)-1].Summary.Events); diff != "" {
		t.Errorf("summary.events (-counted +got):\n%s", diff)
	}
}

// TestTSOffsetMode: how the kernel chooses timestamp offsets is known, and the
// connects that it was tried by are no part of the trace.
func TestTSOffsetMode(t *testing.T) {
	needRoot(t)
	tr := trace(t, "-o", "json")
	lines := tr.stop()
	if mode := lines[0].Meta.TSOffsetMode; mode != "per_host" && mode != "per_connection" {
		t.Errorf("ts_offset_mode %q", mode)
	}
	for _, l := range lines {
		if l.Process.PID == uint32(tr.cmd.Process.Pid) {
			t.Errorf("it traced itself: %s", l)
		}
	}
}

// old are sockets that are older than the trace: a listener and a connection
// of another process, and one of this process.
type old struct {
	netns            *netns
	listener, client *peer
	server           socket
}

func olderThanTrace(t testing.TB) *old {
	t.Helper()
	o := &old{netns: newNetNS(t)}
	err := o.netns.do(func() (err error) {
		listener, err := listen(unix.AF_INET, "127.0.0.1:80")
		if err != nil {
			return err
		}
		defer listener.close()
		if o.listener, err = startPeer("old-listener", "listen-and-hold", "127.0.0.1:81"); err != nil {
			return err
		}
		if o.client, err = startPeer("old-client", "connect-and-hold", "127.0.0.1:80"); err != nil {
			return err
		}
		o.server, err = listener.accept()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// end closes all of them, once there is a new connection to the old listener.
func (o *old) end(t testing.TB) {
	t.Helper()
	err := o.netns.do(func() error {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := errors.Join(s.connect("127.0.0.1:81"), s.resetOnClose(), s.close(), o.client.end()); err != nil {
			return err
		}
		if _, err := o.server.read(); err != nil {
			return err
		}
		return errors.Join(o.server.close(), o.listener.end(), load.Settle())
	})
	if err != nil {
		t.Error(err)
	}
}

func (o *old) judge(t testing.TB, lines []line) {
	for _, l := range lines {
		switch {
		case l.Network.Peer.Port == 80:
			o.client.owns(t, l)
		case l.Network.Local.Port == 81 && l.Event == "accept":
			o.listener.owns(t, l)
		case l.Network.Local.Port == 80:
			if l.Process.PID != uint32(os.Getpid()) {
				t.Errorf("%s is of process %d, want %d", l, l.Process.PID, uint32(os.Getpid()))
			}
		}
	}
	var got []string
	for _, l := range of(lines, "connect", "accept", "close") {
		got = append(got, l.String())
	}
	slices.Sort(got)
	want := []string{"accept", "close local 0/0", "close peer 0/0", "close reset_received 0/0", "close reset_sent 0/0", "connect established"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("lines (-want +got):\n%s", diff)
	}
}

// converse connects, sends 10 bytes, gets 3, and closes first.
func converse(family int, on, to string) error {
	listener, err := listen(family, on)
	if err != nil {
		return err
	}
	defer listener.close()
	client, err := newSocket(family)
	if err != nil {
		return err
	}
	if err := client.connect(to); err != nil {
		return err
	}
	server, err := listener.accept()
	if err != nil {
		return err
	}
	if err := errors.Join(client.write(10), server.write(3)); err != nil {
		return err
	}
	if _, err := unix.Read(int(client), make([]byte, 3)); err != nil {
		return err
	}
	if err := client.close(); err != nil {
		return err
	}
	if n, err := server.read(); n != 10 || err != nil {
		return fmt.Errorf("read %d bytes: %w", n, err)
	}
	return server.close()
}

// attempt connects and gets want.
func attempt(family int, to string, want unix.Errno) error {
	s, err := newSocket(family)
	if err != nil {
		return err
	}
	defer s.close()
	return expect(s.connect(to), want)
}

func nonblocking(to string) (socket, error) {
	s, err := newSocket(unix.AF_INET)
	if err != nil {
		return 0, err
	}
	if err := unix.SetNonblock(int(s), true); err != nil {
		return 0, err
	}
	return s, expect(s.connect(to), unix.EINPROGRESS)
}

// onePort runs f where the only port toward 127.0.0.1:80 is taken.
func onePort(f func() error) error {
	if err := sysctl("ipv4/ip_local_port_range", "32768 32768"); err != nil {
		return err
	}
	return connected(func(client, server socket) error {
		return errors.Join(f(), closeInTurn(client, server))
	})
}

// connected runs f with both ends of a connection to 127.0.0.1:80.
func connected(f func(client, server socket) error) error {
	listener, err := listen(unix.AF_INET, "127.0.0.1:80")
	if err != nil {
		return err
	}
	defer listener.close()
	client, server, err := listener.join("127.0.0.1:80")
	if err != nil {
		return err
	}
	return f(client, server)
}

// closeInTurn closes the client's end first.
func closeInTurn(client, server socket) error {
	if err := client.close(); err != nil {
		return err
	}
	_, err := server.read()
	return errors.Join(err, server.close())
}

// boundConnect connects to 127.0.0.1:80 from an address of its own choice.
func boundConnect(from string, want unix.Errno) (socket, error) {
	s, err := newSocket(unix.AF_INET)
	if err != nil {
		return 0, err
	}
	if err := s.bind(from); err != nil {
		return 0, err
	}
	return s, expect(s.connect("127.0.0.1:80"), want)
}

func boundSelf(address string) (socket, error) {
	s, err := newSocket(unix.AF_INET)
	if err != nil {
		return 0, err
	}
	return s, errors.Join(s.bind(address), s.connect(address))
}

// fastOpen runs send twice, for the cookie and with it, on fresh sockets.
func fastOpen(send func(socket) error) error {
	if err := sysctl("ipv4/tcp_fastopen", "3"); err != nil {
		return err
	}
	listener, err := listen(unix.AF_INET, "127.0.0.1:80", func(s socket) error {
		return s.set(unix.IPPROTO_TCP, unix.TCP_FASTOPEN, 16)
	})
	if err != nil {
		return err
	}
	defer listener.close()
	for range 2 {
		s, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := send(s); err != nil {
			return err
		}
		server, err := listener.accept()
		if err != nil {
			return err
		}
		if err := s.close(); err != nil {
			return err
		}
		if n, err := server.read(); n != 10 || err != nil {
			return fmt.Errorf("read %d bytes: %w", n, err)
		}
		if err := server.close(); err != nil {
			return err
		}
	}
	return nil
}

// TestAcceptors: of many threads that wait in accept, each owns what it gets.
// More than a return probe could be held for at a time.
func TestAcceptors(t *testing.T) {
	needRoot(t)
	const threads = 40
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", fmt.Sprint(n.inode))
	acceptors := make(chan map[int]uint32) // a client's port, and the thread
	var listener socket
	err := n.do(func() (err error) {
		if listener, err = listen(unix.AF_INET, "127.0.0.1:80"); err != nil {
			return err
		}
		for range threads {
			go func() {
				if err := thread.Run(func() error { return acceptOne(listener, acceptors) }); err != nil {
					t.Error(err)
					acceptors <- nil
				}
			}()
		}
		for range threads {
			s, err := newSocket(unix.AF_INET)
			if err != nil {
				return err
			}
			if err := errors.Join(s.connect("127.0.0.1:80"), s.close()); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	owners := make(map[int]uint32)
	for range threads {
		maps.Copy(owners, <-acceptors)
	}
	if err := errors.Join(listener.close(), n.do(load.Settle)); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, l := range of(tr.stop(), "close") {
		if l.Network.Local.Port != 80 {
			continue
		}
		seen++
		if want := owners[l.Network.Peer.Port]; l.Process.TID != want {
			t.Errorf("the connection from port %d is thread %d's, want %d's", l.Network.Peer.Port, l.Process.TID, want)
		}
	}
	if seen != threads {
		t.Errorf("%d connections closed, want %d", seen, threads)
	}
}

// acceptOne accepts a connection, tells whose it is, and closes it after the
// client.
func acceptOne(listener socket, acceptors chan<- map[int]uint32) error {
	s, err := listener.accept()
	if err != nil {
		return err
	}
	peer, err := unix.Getpeername(int(s))
	if err != nil {
		return err
	}
	if _, err := s.read(); err != nil {
		return err
	}
	if err := s.close(); err != nil {
		return err
	}
	acceptors <- map[int]uint32{peer.(*unix.SockaddrInet4).Port: uint32(unix.Gettid())}
	return nil
}
