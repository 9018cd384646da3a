package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/load"
)

// timeWaitKinds are the lines that tell the life of a TIME_WAIT.
var timeWaitKinds = []string{"time_wait.enter", "time_wait.end"}

// timeWaitScenarios each leave a TIME_WAIT, or something like one.
var timeWaitScenarios = []scenario{
	{
		name:  "the client closes first",
		run:   func() error { return connected(closeInTurn) },
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "time_wait.enter") {
				if l.Network.Local.Port == 80 || l.Network.Peer.Port != 80 || l.Process.PID != uint32(os.Getpid()) || l.TimeWait.SameDestination != 1 {
					t.Errorf("%s is about %+v, of process %d, %d toward the destination", l, l.Network, l.Process.PID, l.TimeWait.SameDestination)
				}
			}
		},
	},
	{
		name:  "IPv6",
		run:   func() error { return converse(unix.AF_INET6, "[::1]:80", "[::1]:80") },
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
	},
	{
		name:  "IPv4 on IPv6 sockets",
		run:   func() error { return converse(unix.AF_INET6, "[::]:80", "127.0.0.1:80") },
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
	},
	{
		name: "the server closes first",
		run: func() error {
			return connected(func(client, server socket) error { return closeInTurn(server, client) })
		},
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "time_wait.enter") {
				if l.Network.Local.Port != 80 {
					t.Errorf("%s is about %+v", l, l.Network)
				}
			}
		},
	},
	{
		name: "half closed",
		run: func() error {
			return connected(func(client, server socket) error {
				// The FIN comes while the client still holds its socket.
				if err := unix.Shutdown(int(client), unix.SHUT_WR); err != nil {
					return err
				}
				if _, err := server.read(); err != nil {
					return err
				}
				if err := server.close(); err != nil {
					return err
				}
				_, err := client.read()
				return errors.Join(err, client.close())
			})
		},
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
	},
	{
		name: "the peer's FIN comes late",
		run: func() error {
			return connected(func(client, server socket) error {
				if err := client.close(); err != nil {
					return err
				}
				if _, err := server.read(); err != nil {
					return err
				}
				time.Sleep(300 * time.Millisecond) // the story: a slow peer
				return server.close()
			})
		},
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
		check: func(t testing.TB, lines []line) {
			// Where the peer's ACK comes while the program is still inside
			// close(), the kernel keeps the whole socket in FIN_WAIT2.
			var since time.Time
			for _, l := range of(lines, "state") {
				if l.State.New == "FIN_WAIT2" {
					since = l.Time
				}
			}
			for _, l := range of(lines, "time_wait.enter") {
				if waited := l.Time.Sub(since); waited < 200*time.Millisecond {
					t.Errorf("TIME_WAIT begins %s after FIN_WAIT2, want 300 ms", waited)
				}
			}
		},
	},
	{
		name: "the peer's FIN never comes",
		run: func() error {
			if err := sysctl("ipv4/tcp_fin_timeout", "1"); err != nil {
				return err
			}
			return connected(func(client, server socket) error {
				if err := client.close(); err != nil {
					return err
				}
				if _, err := server.read(); err != nil {
					return err
				}
				return errors.Join(
					load.Until("FIN_WAIT2 is over", func(state string) bool { return state != load.FinWait2 }),
					server.resetOnClose(), server.close(),
				)
			})
		},
		kinds: timeWaitKinds,
		want:  []string{},
	},
	{
		name: "no room for TIME_WAITs",
		run: func() error {
			if err := sysctl("ipv4/tcp_max_tw_buckets", "1"); err != nil {
				return err
			}
			for range 4 {
				if err := connected(closeInTurn); err != nil {
					return err
				}
			}
			return nil
		},
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter"},
	},
	{
		name: "tcp_tw_reuse",
		run: func() error {
			if err := errors.Join(sysctl("ipv4/ip_local_port_range", "32768 32768"), sysctl("ipv4/tcp_tw_reuse", "1")); err != nil {
				return err
			}
			if err := connected(closeInTurn); err != nil {
				return err
			}
			time.Sleep(2100 * time.Millisecond) // the kernel reuses none younger than a second
			return connected(closeInTurn)
		},
		kinds: slices.Concat(timeWaitKinds, []string{"port_reuse"}),
		want:  []string{"time_wait.enter", "time_wait.end reused", "time_wait.enter", "port_reuse tuple tw_reuse", "port_reuse tuple after_close"},
		check: func(t testing.TB, lines []line) {
			for _, l := range of(lines, "time_wait.end") {
				if !l.TimeWait.Exact || l.TimeWait.Duration < 2000 || l.Process.PID != uint32(os.Getpid()) {
					t.Errorf("%s after %v ms, exact %v, of process %d", l, l.TimeWait.Duration, l.TimeWait.Exact, l.Process.PID)
				}
			}
			for _, l := range of(lines, "port_reuse") {
				p := l.Reuse.Previous
				if l.Reuse.After < 2000 || p.Process.PID != uint32(os.Getpid()) || p.NetNS != l.NetNS || p.Ended.Time.IsZero() || p.Time.IsZero() {
					t.Errorf("%s %v ms after %+v", l, l.Reuse.After, p)
				}
				if want := map[string]string{"tw_reuse": "reused", "after_close": "peer"}[l.Reuse.How]; p.Ended.How != want {
					t.Errorf("%s: the earlier use ended %q, want %q", l, p.Ended.How, want)
				}
			}
		},
	},
	{
		name: "bound to the port of a TIME_WAIT",
		run: func() error {
			return twiceFrom5000(func(client, server socket) error { return closeInTurn(client, server) })
		},
		kinds: slices.Concat(timeWaitKinds, []string{"port_reuse"}),
		want:  []string{"time_wait.enter", "time_wait.end reused", "time_wait.enter", "port_reuse tuple explicit_bind", "port_reuse tuple after_close"},
	},
	{
		name: "a new SYN of the peer",
		run: func() error {
			return twiceFrom5000(func(client, server socket) error { return closeInTurn(server, client) })
		},
		kinds: slices.Concat(timeWaitKinds, []string{"port_reuse"}),
		want:  []string{"time_wait.enter", "time_wait.end syn_accepted", "time_wait.enter", "port_reuse tuple syn_accepted", "port_reuse tuple explicit_bind"},
	},
	{
		name: "a RST",
		run: func() error {
			if err := sysctl("ipv4/tcp_rfc1337", "0"); err != nil {
				return err
			}
			return connected(func(client, server socket) error {
				from, to, seq, err := finOf(server)
				if err != nil {
					return err
				}
				if err := closeInTurn(client, server); err != nil {
					return err
				}
				return sendRST(from, to, seq+1)
			})
		},
		kinds: timeWaitKinds,
		want:  []string{"time_wait.enter", "time_wait.end reset"},
	},
	{
		name: "destroyed",
		run: func() error {
			return connected(func(client, server socket) error {
				local, err := unix.Getsockname(int(client))
				if err != nil {
					return err
				}
				if err := closeInTurn(client, server); err != nil {
					return err
				}
				port := local.(*unix.SockaddrInet4).Port
				err = netlink.SocketDestroy(
					&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port},
					&net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80},
				)
				undestroyed = errors.Is(err, unix.EOPNOTSUPP)
				if undestroyed {
					return nil
				}
				return err
			})
		},
		kinds: []string{"time_wait.enter"},
		want:  []string{"time_wait.enter"},
		check: func(t testing.TB, lines []line) {
			want := []string{"time_wait.end killed"}
			if undestroyed {
				want = nil
			}
			var got []string
			for _, l := range of(lines, "time_wait.end") {
				got = append(got, l.String())
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("ends (-want +got):\n%s", diff)
			}
		},
	},
}

// portScenarios use up the local ports toward a destination.
var portScenarios = []scenario{
	{
		name: "ten ports, two of them reserved",
		run: func() error {
			if err := errors.Join(sysctl("ipv4/ip_local_port_range", "40000 40009"), sysctl("ipv4/ip_local_reserved_ports", "40000-40001")); err != nil {
				return err
			}
			return exhaust(8, func(socket) error { return nil })
		},
		kinds: []string{"port_pressure", "connect"},
		want: slices.Concat([]string{"port_pressure", "port_pressure", "port_pressure"},
			slices.Repeat([]string{"connect established"}, 8), []string{"connect no_local_port EADDRNOTAVAIL"}),
		check: func(t testing.TB, lines []line) {
			var ratios []float64
			for _, l := range of(lines, "port_pressure") {
				ratios = append(ratios, l.Ports.UsedRatio)
				if l.Ports.Reserved == nil || *l.Ports.Reserved != 2 || !slices.Equal(l.Ports.Range, []int{40000, 40009}) {
					t.Errorf("%s: %+v", l, l.Ports)
				}
			}
			if want := []float64{0.5, 0.875, 1}; !slices.Equal(ratios, want) {
				t.Errorf("told at %v, want %v", ratios, want)
			}
			holdersOf(t, lines, 8)
		},
	},
	{
		name: "a socket's own range",
		run: func() error {
			return exhaust(2, func(s socket) error {
				const ipLocalPortRange = 51 // include/uapi/linux/in.h, from 6.3
				err := s.set(unix.SOL_IP, ipLocalPortRange, 40001<<16|40000)
				if errors.Is(err, unix.ENOPROTOOPT) {
					return sysctl("ipv4/ip_local_port_range", "40000 40001")
				}
				return err
			})
		},
		kinds: []string{"connect"},
		want:  []string{"connect established", "connect established", "connect no_local_port EADDRNOTAVAIL"},
		check: func(t testing.TB, lines []line) { holdersOf(t, lines, 2) },
	},
	{
		name: "bound to an address, with the port left to connect",
		run: func() error {
			if err := sysctl("ipv4/ip_local_port_range", "40000 40001"); err != nil {
				return err
			}
			return exhaust(2, func(s socket) error {
				return errors.Join(s.set(unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1), s.bind("127.0.0.1:0"))
			})
		},
		kinds: []string{"connect"},
		want:  []string{"connect established", "connect established", "connect no_local_port EADDRNOTAVAIL"},
		check: func(t testing.TB, lines []line) { holdersOf(t, lines, 2) },
	},
}

// exhaust makes so many connections, closes them from the client's end, and finds
// no port for one more.
func exhaust(connections int, option func(socket) error) error {
	if err := sysctl("ipv4/tcp_tw_reuse", "0"); err != nil { // 2 reuses them on loopback
		return err
	}
	listener, err := listen(unix.AF_INET, "127.0.0.1:80")
	if err != nil {
		return err
	}
	defer listener.close()
	var ends [][2]socket
	for range connections {
		client, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := errors.Join(option(client), client.connect("127.0.0.1:80")); err != nil {
			return err
		}
		server, err := listener.accept()
		if err != nil {
			return err
		}
		ends = append(ends, [2]socket{client, server})
	}
	for _, e := range ends {
		if err := closeInTurn(e[0], e[1]); err != nil {
			return err
		}
	}
	// The last FIN is answered.
	if err := load.Until("all are in TIME_WAIT", func(state string) bool { return state == load.Listening || state == load.TimeWait }); err != nil {
		return err
	}
	one, err := newSocket(unix.AF_INET)
	if err != nil {
		return err
	}
	defer one.close()
	return errors.Join(option(one), expect(one.connect("127.0.0.1:80"), unix.EADDRNOTAVAIL))
}

// holdersOf checks that the connect which found no local port says who has them.
func holdersOf(t testing.TB, lines []line, ports int) {
	t.Helper()
	for _, l := range of(lines, "connect") {
		if l.Connect.Outcome != "no_local_port" {
			continue
		}
		p := l.Ports
		if p.InUse != ports || p.TimeWait != ports || p.UsedRatio != 1 ||
			p.Holder.Port < 40000 || p.Holder.Process.PID != uint32(os.Getpid()) || p.Holder.EndsIn < 30_000 || p.Holder.EndsIn > 60_000 {
			t.Errorf("%s: %+v", l, p)
		}
	}
}

// TestLossMadeUp: what was lost of TIME_WAITs is made up for from the kernel
// programs' own tables. Here all that is known of the first four comes from there.
func TestLossMadeUp(t *testing.T) {
	needRoot(t)
	n := newNetNS(t)
	tr := trace(t, "-o", "json", "--netns", fmt.Sprint(n.inode), "--ring-size", fmt.Sprint(os.Getpagesize()))
	tr.signal(unix.SIGSTOP)
	// Not of the four ports that are wanted free.
	err := n.do(func() error { return sysctl("ipv4/ip_local_port_range", "41000 60999") })
	if err == nil {
		err = churn(n, 400) // fills the ring
	}
	if err == nil {
		err = n.do(func() error {
			return errors.Join(
				sysctl("ipv4/ip_local_port_range", "40000 40003"),
				exhaust(4, func(socket) error { return nil }))
		})
	}
	tr.signal(unix.SIGCONT)
	if err != nil {
		t.Fatal(err)
	}
	tr.await("what was lost", func(l line) bool { return l.Event == "lost" })
	if err := n.do(func() error { return attempt(unix.AF_INET, "127.0.0.1:80", unix.EADDRNOTAVAIL) }); err != nil {
		t.Fatal(err)
	}
	lines := tr.stop()
	connects := of(lines, "connect")
	if len(connects) == 0 {
		t.Fatal("no connect was told")
	}
	last := connects[len(connects)-1]
	if p := last.Ports; last.Connect.Outcome != "no_local_port" || p.InUse != 4 || p.TimeWait != 4 || p.Holder.Process.PID != uint32(os.Getpid()) {
		t.Errorf("%s: %+v, want four in TIME_WAIT", last, p)
	}
}

// tellStory plays the one that twtrace was made for, in two network namespaces:
// four clients leave four TIME_WAITs; with one port left, the second client finds
// it taken, and is told by whom; with tcp_tw_reuse the next one gets it. It returns
// where it was played, and its check.
func tellStory(t testing.TB, tr *tracer) (*netns, func(t testing.TB, lines []line)) {
	t.Helper()
	pod, web := newNetNS(t), newNetNS(t)
	if err := joinNetNS(pod, web); err != nil {
		t.Fatal(err)
	}
	const address = "10.244.1.9:80"
	served := make(chan error)
	err := web.do(func() error {
		listener, err := listen(unix.AF_INET, address)
		if err != nil {
			return err
		}
		go func() { served <- serve(listener, 6) }()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	curl := func(comm string, want int) (pid uint32) {
		t.Helper()
		cmd := peerCommand(comm, "curl", address)
		err := pod.do(cmd.Run)
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Fatalf("%s ended with %d, want %d: %v", comm, got, want, err)
		}
		return uint32(cmd.ProcessState.Pid())
	}
	owners := make(map[uint32]string)
	for _, comm := range []string{"curl-1", "curl-2", "curl-3", "curl-4"} {
		owners[curl(comm, 0)] = comm
	}
	if err := pod.do(func() error {
		return errors.Join(sysctl("ipv4/tcp_tw_reuse", "0"), sysctl("ipv4/ip_local_port_range", "50000 50000"))
	}); err != nil {
		t.Fatal(err)
	}
	first := curl("curl-5", 0)
	owners[first] = "curl-5"
	curl("curl-6", 7)
	if err := pod.do(func() error { return sysctl("ipv4/tcp_tw_reuse", "1") }); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2100 * time.Millisecond) // the kernel reuses none younger than a second
	again := curl("curl-7", 0)
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	tr.await("the last TIME_WAIT", func(l line) bool { return l.Event == "time_wait.enter" && l.Process.PID == again })

	return pod, func(t testing.TB, lines []line) {
		entered := of(lines, "time_wait.enter")
		ports := make(map[int]bool)
		for _, l := range entered[:min(5, len(entered))] {
			ports[l.Network.Local.Port] = true
			if comm := owners[l.Process.PID]; comm == "" || l.Process.Comm != comm {
				t.Errorf("a TIME_WAIT of process %d (%s), want one of %v", l.Process.PID, l.Process.Comm, owners)
			}
			delete(owners, l.Process.PID)
		}
		if len(entered) != 6 || len(ports) != 5 || !ports[50000] {
			t.Errorf("%d TIME_WAITs, the first on the ports %v", len(entered), ports)
		}
		outcomes := make(map[string]int)
		for _, l := range of(lines, "connect") {
			outcomes[l.Connect.Outcome]++
			if l.Connect.Outcome != "no_local_port" {
				continue
			}
			h := l.Ports.Holder
			if l.Process.Comm != "curl-6" || l.Ports.InUse != 1 || h.Port != 50000 || h.Process.PID != first || h.Process.Comm != "curl-5" || h.EndsIn < 50_000 {
				t.Errorf("%s of %s: %+v", l, l.Process.Comm, l.Ports)
			}
		}
		if outcomes["established"] != 6 || outcomes["no_local_port"] != 1 {
			t.Errorf("connects: %v", outcomes)
		}
		ends, reuses := of(lines, "time_wait.end"), of(lines, "port_reuse")
		if len(ends) != 1 || ends[0].TimeWait.Ended != "reused" || ends[0].Process.PID != first {
			t.Errorf("ends: %+v", ends)
		}
		if len(reuses) != 1 || reuses[0].Reuse.How != "tw_reuse" || reuses[0].Process.PID != again || reuses[0].Reuse.Previous.Process.PID != first {
			t.Errorf("reuses: %+v", reuses)
		}
	}
}

// serve answers so many clients, one after the other, and closes after each.
func serve(listener socket, clients int) error {
	defer listener.close()
	for range clients {
		s, err := listener.accept()
		if err != nil {
			return err
		}
		if err := s.write(3); err != nil {
			return err
		}
		_, err = s.read()
		if err := errors.Join(err, s.close()); err != nil {
			return err
		}
	}
	return nil
}

// undestroyed: the scenario found that this kernel does not destroy a TIME_WAIT,
// as tcp_abort() of 5.10.
var undestroyed bool

// twiceFrom5000 makes the same connection, from the same port, two times.
func twiceFrom5000(end func(client, server socket) error) error {
	listener, err := listen(unix.AF_INET, "127.0.0.1:80")
	if err != nil {
		return err
	}
	defer listener.close()
	for range 2 {
		client, err := boundConnect("127.0.0.1:5000", 0)
		if err != nil {
			return err
		}
		server, err := listener.accept()
		if err != nil {
			return err
		}
		if err := end(client, server); err != nil {
			return err
		}
		if err := load.Until("one is in TIME_WAIT", func(state string) bool { return state == load.Listening || state == load.TimeWait }); err != nil {
			return err
		}
		time.Sleep(5 * time.Millisecond) // the next SYN's timestamp is newer
	}
	return nil
}

// finOf returns the ends of a connection, and the sequence number that its FIN
// will have when nothing more is sent.
func finOf(s socket) (from, to *unix.SockaddrInet4, seq uint32, err error) {
	local, err := unix.Getsockname(int(s))
	if err != nil {
		return nil, nil, 0, err
	}
	peer, err := unix.Getpeername(int(s))
	if err != nil {
		return nil, nil, 0, err
	}
	const sendQueue = 2
	if err := errors.Join(s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR, 1), s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR_QUEUE, sendQueue)); err != nil {
		return nil, nil, 0, err
	}
	next, err := unix.GetsockoptInt(int(s), unix.IPPROTO_TCP, unix.TCP_QUEUE_SEQ)
	if err != nil {
		return nil, nil, 0, err
	}
	err = s.set(unix.IPPROTO_TCP, unix.TCP_REPAIR, -1) // off, without a window probe
	return local.(*unix.SockaddrInet4), peer.(*unix.SockaddrInet4), uint32(next), err
}

// sendRST sends a bare RST, as a peer without a memory of the connection does.
func sendRST(from, to *unix.SockaddrInet4, seq uint32) error {
	raw, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(raw)
	const rst, length = 4, 20
	header := binary.BigEndian.AppendUint16(nil, uint16(from.Port))
	header = binary.BigEndian.AppendUint16(header, uint16(to.Port))
	header = binary.BigEndian.AppendUint32(header, seq)
	header = append(header, 0, 0, 0, 0, length/4<<4, rst, 0, 0, 0, 0, 0, 0)
	sum := uint32(unix.IPPROTO_TCP + length)
	for _, part := range [][]byte{from.Addr[:], to.Addr[:], header} {
		for i := 0; i < len(part); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(part[i:]))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(header[16:], ^uint16(sum))
	return os.NewSyscallError("sendto", unix.Sendto(raw, header, 0, to))
}

// TestTimeWaits: each begins once and ends once, in the way that the kernel ended
// it, and the local ports that it holds are told, under every tier.
func TestTimeWaits(t *testing.T) {
	needRoot(t)
	expired := startExpiry(t)
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			needTier(t, tier)
			undisturbed(t, func(t testing.TB) { testTimeWaits(t, tier) })
		})
	}
	t.Run("expired", expired)
}

func testTimeWaits(t testing.TB, tier string) {
	tr := trace(t, "-o", "json", "--probe-tier", tier)
	scenarios := slices.Concat(timeWaitScenarios, portScenarios)
	namespaces := runScenarios(t, scenarios)
	pod, checkStory := tellStory(t, tr)
	before, after := movePod(t, tr) // last: the inode of a namespace that is gone is used again
	lines := tr.stop()
	checkLog(t, lines)
	part(t, "the story", func(t testing.TB) { checkStory(t, about(lines, pod)) })
	for i, s := range scenarios {
		part(t, s.name, func(t testing.TB) { s.judge(t, tier, about(lines, namespaces[i])) })
	}
	part(t, "the network namespace goes", func(t testing.TB) {
		s := scenario{kinds: timeWaitKinds, want: []string{"time_wait.enter", "time_wait.end killed"}}
		s.judge(t, tier, about(lines, before))
	})
	part(t, "the address moves to another network namespace", func(t testing.TB) {
		s := scenario{kinds: []string{"port_reuse"}, want: []string{"port_reuse tuple other_netns", "port_reuse tuple other_netns"}}
		s.check = func(t testing.TB, lines []line) {
			for _, l := range of(lines, "port_reuse") {
				if l.Reuse.Previous.NetNS != before.inode {
					t.Errorf("%s: the earlier use was in %d, want %d", l, l.Reuse.Previous.NetNS, before.inode)
				}
			}
		}
		s.judge(t, tier, about(lines, after))
	})
}

// movePod makes a connection of a pod that goes, leaving a TIME_WAIT, and the same
// one again where its address comes up next.
func movePod(t testing.TB, tr *tracer) (before, after *netns) {
	t.Helper()
	connection := func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, address := range []string{"10.77.7.1/32", "10.77.7.2/32"} {
			parsed, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(lo, parsed); err != nil {
				return err
			}
		}
		listener, err := listen(unix.AF_INET, "10.77.7.2:80")
		if err != nil {
			return err
		}
		client, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := errors.Join(client.bind("10.77.7.1:5000"), client.connect("10.77.7.2:80")); err != nil {
			return err
		}
		server, err := listener.accept()
		if err != nil {
			return err
		}
		return errors.Join(closeInTurn(client, server), listener.close(), load.Settle())
	}
	// Both at once: the inode of one that is gone is soon used again.
	before, after = newNetNS(t), newNetNS(t)
	if err := before.do(connection); err != nil {
		t.Fatal(err)
	}
	before.end()
	tr.await("the TIME_WAIT of the pod that went", func(l line) bool {
		return l.Event == "time_wait.end" && l.NetNS == before.inode
	})
	if err := after.do(connection); err != nil {
		t.Fatal(err)
	}
	return before, after
}

// startExpiry makes a TIME_WAIT whose time runs out while other tests run, under
// each kind of tracepoint. The test that it returns waits for that.
func startExpiry(t *testing.T) func(t *testing.T) {
	t.Helper()
	n := newNetNS(t)
	var tracers []*tracer
	for _, tier := range []string{"state_only", "raw_tp"} {
		tracers = append(tracers, trace(t, "-o", "json", "--probe-tier", tier, "--netns", fmt.Sprint(n.inode)))
	}
	if err := n.do(func() error { return connected(closeInTurn) }); err != nil {
		t.Fatal(err)
	}
	return func(t *testing.T) {
		for _, tr := range tracers {
			tr.await("the TIME_WAIT that expires", func(l line) bool { return l.Event == "time_wait.end" })
			lines := tr.stop()
			s := scenario{kinds: timeWaitKinds, want: []string{"time_wait.enter", "time_wait.end expired"}}
			s.judge(t, "", lines)
			for _, l := range of(lines, "time_wait.end") {
				// The timer wheel rounds up: to 64.5 s at HZ=1000.
				if l.TimeWait.Duration < 60_000 || l.TimeWait.Duration > 66_000 || !l.TimeWait.Exact || l.Process.PID != uint32(os.Getpid()) {
					t.Errorf("%s after %v ms, exact %v, of process %d", l, l.TimeWait.Duration, l.TimeWait.Exact, l.Process.PID)
				}
			}
		}
	}
}

// TestTimeWaitAccount: over a random mix of connections the TIME_WAITs that were
// told are those that the kernel counts and lists, at every checkpoint.
func TestTimeWaitAccount(t *testing.T) {
	needRoot(t)
	for _, tier := range tiers() {
		t.Run(tier, func(t *testing.T) {
			needTier(t, tier)
			undisturbed(t, func(t testing.TB) { testTimeWaitAccount(t, tier) })
		})
	}
}

func testTimeWaitAccount(t testing.TB, tier string) {
	const checkpoints = 5
	n := newNetNS(t)
	// Ports enough for all, few enough to be used again.
	if err := n.do(func() error {
		ports := fmt.Sprintf("20000 %d", 20000+connections(t)*3/10)
		return errors.Join(sysctl("ipv4/ip_local_port_range", ports), sysctl("ipv4/tcp_tw_reuse", "1"))
	}); err != nil {
		t.Fatal(err)
	}
	tr := trace(t, "-o", "json", "--probe-tier", tier, "--netns", fmt.Sprint(n.inode), "--events", "time_wait.enter,time_wait.end")
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for checkpoint := range checkpoints {
		if checkpoint == checkpoints/2 {
			time.Sleep(2100 * time.Millisecond) // the kernel reuses none younger than a second
		}
		each := connections(t) / 2 / checkpoints
		if err := n.do(func() error { return mix(random, each) }); err != nil {
			t.Fatal(err)
		}
		if err := n.do(load.Settle); err != nil {
			t.Fatal(err)
		}
		var want account
		if err := n.do(func() (err error) {
			want, err = kernelAccount()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var got account
		for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if got = accountOf(tr.sofar()); got.agrees(want) {
				break
			}
		}
		if !got.agrees(want) {
			t.Errorf("told %+v, the kernel says %+v", got, want)
		}
	}
	lines := tr.stop()
	checkLog(t, lines)
	if got := accountOf(lines); got.recycled == 0 || got.accepted == 0 {
		t.Errorf("%+v: the mix had nothing of something", got)
	}
}

// mix makes connections of many kinds, in random order, toward a few
// destinations.
func mix(random *rand.Rand, connections int) error {
	var listeners [3]socket
	for i := range listeners {
		var err error
		if listeners[i], err = listen(unix.AF_INET, fmt.Sprintf("127.0.0.%d:80", i+1)); err != nil {
			return err
		}
		defer listeners[i].close()
	}
	for range connections {
		i := random.IntN(len(listeners))
		client, err := newSocket(unix.AF_INET)
		if err != nil {
			return err
		}
		if err := client.connect(fmt.Sprintf("127.0.0.%d:80", i+1)); err != nil {
			return err
		}
		server, err := listeners[i].accept()
		if err != nil {
			return err
		}
		if random.IntN(2) == 0 {
			client, server = server, client
		}
		switch random.IntN(4) {
		case 0:
			err = errors.Join(client.resetOnClose(), client.close(), server.close())
		case 1: // half closed
			if err = unix.Shutdown(int(client), unix.SHUT_WR); err == nil {
				_, err = server.read()
			}
			err = errors.Join(err, server.close(), client.close())
		case 2: // both at once, or nearly
			err = errors.Join(client.close(), server.close())
		default:
			err = closeInTurn(client, server)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// An account of TIME_WAITs.
type account struct {
	waiting  int // now
	recycled int // that a connect took
	accepted int // that a SYN of the peer took; the kernel does not count them
}

func (a account) agrees(kernel account) bool {
	return a.waiting == kernel.waiting && a.recycled == kernel.recycled
}

func accountOf(lines []line) (a account) {
	a.waiting = len(of(lines, "time_wait.enter")) - len(of(lines, "time_wait.end"))
	for _, l := range of(lines, "time_wait.end") {
		switch l.TimeWait.Ended {
		case "reused":
			a.recycled++
		case "syn_accepted":
			a.accepted++
		}
	}
	return a
}

// kernelAccount is what the kernel says of the current network namespace.
func kernelAccount() (a account, err error) {
	table, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		return a, err
	}
	for _, row := range strings.Split(strings.TrimSpace(string(table)), "\n")[1:] {
		if strings.Fields(row)[3] == load.TimeWait {
			a.waiting++
		}
	}
	counters, err := kernelCounters()
	a.recycled = counters["TcpExt: TWRecycled"]
	return a, err
}

// kernelCounters are those of the current network namespace, by the kernel's names.
func kernelCounters() (map[string]int, error) {
	counters := make(map[string]int)
	for _, name := range []string{"snmp", "netstat"} {
		text, err := os.ReadFile("/proc/thread-self/net/" + name)
		if err != nil {
			return nil, err
		}
		rows := strings.Split(strings.TrimSpace(string(text)), "\n")
		for i := 0; i+1 < len(rows); i += 2 {
			names, values := strings.Fields(rows[i]), strings.Fields(rows[i+1])
			for j := 1; j < len(values); j++ {
				if counters[names[0]+" "+names[j]], err = strconv.Atoi(values[j]); err != nil {
					return nil, fmt.Errorf("%s: %s: %w", name, names[j], err)
				}
			}
		}
	}
	return counters, nil
}
