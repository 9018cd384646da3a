package lab

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/twtrace/twtrace/internal/load"
)

// scenarios in the order of docs/verdicts.md.
var scenarios = []Scenario{
	{
		Name: "port-exhaustion", Verdict: "local_ports_exhausted_time_wait",
		Title:   "the second connect fails: a TIME_WAIT holds the only local port",
		Learned: "The connect failed with EADDRNOTAVAIL before it sent anything: no counter moves, and no packet is there to capture. Keep connections open and use them again, or widen the range.",
		Live:    "sudo twtrace --failures",
		Story: []string{
			"A connection needs a local port. Toward one destination (address and port) a port can serve only one connection at a time. Whoever closes a connection first keeps its end for 60 s more, in TIME_WAIT, and with it the port.",
			"Here pod a has one single port to choose from (net.ipv4.ip_local_port_range). The real range has 28,232: enough for 470 connections a second, no more.",
		},
		run: portExhaustion,
	},
	{
		Name: "tw-reuse", Verdict: "local_ports_exhausted_time_wait",
		Title:   "as port-exhaustion, and then net.ipv4.tcp_tw_reuse=1 helps",
		Learned: "With tcp_tw_reuse=1 the TIME_WAIT ended early: a new connection took its port. In a pod it takes an unsafe sysctl, which the kubelet must allow.",
		Live:    "sudo twtrace --events connect,port_reuse,time_wait.end",
		Story: []string{
			"With net.ipv4.tcp_tw_reuse=1 a connect may take the port of a TIME_WAIT that is older than a second, if both ends send TCP timestamps. The default, 2, allows that on loopback only.",
		},
		run: twReuse,
	},
	{
		Name: "port-leak", Verdict: "local_ports_exhausted_live",
		Title:   "no local port is left: open connections hold them all",
		Learned: "EADDRNOTAVAIL again, but none of the ports is in TIME_WAIT: waiting does not help, closing does. Look for connections that stay in CLOSE_WAIT.",
		Live:    "sudo twtrace top",
		Story:   []string{"Pod a has two ports, and two connections that nobody closes. The third connect finds none."},
		run:     portLeak,
	},
	{
		Name: "refused", Verdict: "refused", Certain: true,
		Title:   "nobody listens: the answer to the SYN is a RST",
		Learned: "The machine is there, the service is not: started on another port, on another address, or not at all.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"The server is up, but no program listens on the port. Its kernel says so at once."},
		run: func(n *Network, say Say) error {
			say("a connects to %s, where nobody listens", n.server(80))
			return n.a.fails("client-a", client{}, n.server(80), unix.ECONNREFUSED)
		},
	},
	{
		Name: "unanswered", Verdict: "syn_unanswered",
		Title:   "the SYN leaves the machine, and nothing comes back",
		Learned: "No answer, and no drop on this machine: the SYN was lost elsewhere, or its answer was. The next step is another port, and another client.",
		Live:    "sudo twtrace --failures",
		Story: []string{
			"The packets leave this machine and are gone. No counter and no error tells more than that: the kernel sends the SYN again, and gives up in the end.",
		},
		run: func(n *Network, say Say) error {
			if err := n.quiet(); err != nil {
				return err
			}
			say("a connects to %s; its SYNs vanish beyond the node (this takes 3 s)", n.far())
			return n.a.fails("client-a", client{}, n.far(), unix.ETIMEDOUT)
		},
	},
	{
		Name: "syn-dropped", Verdict: "syn_dropped_local", Certain: true,
		Title:   "a firewall rule in the pod drops the SYN, and connect times out",
		Learned: "The drop was seen, in the client's own network namespace: no need to look anywhere else.",
		Live:    "sudo twtrace --events connect,drop",
		Story:   []string{"A rule drops what goes out to port 80. The program is told nothing of it: it waits, as if the server were silent."},
		run: func(n *Network, say Say) error {
			if err := errors.Join(n.a.patience(), n.a.drop(nftables.ChainHookOutput, port(80, false))); err != nil {
				return err
			}
			say("a connects to %s, past a rule in a that drops its SYNs (this takes 3 s)", n.server(80))
			return n.a.fails("client-a", client{}, n.server(80), unix.ETIMEDOUT)
		},
	},
	{
		Name: "synack-dropped", Verdict: "synack_dropped_local", Certain: true,
		Title:   "a firewall rule in the pod drops the answer",
		Learned: "The server answered: the fault is on this side, and in the other direction than one would look first.",
		Live:    "sudo twtrace --events connect,drop",
		Story:   []string{"The server answers, and a rule in the pod drops the answer. From the client alone it looks like silence."},
		run: func(n *Network, say Say) error {
			if err := errors.Join(n.serve(80, clientFirst), n.a.patience(), n.a.drop(nftables.ChainHookInput, port(80, true))); err != nil {
				return err
			}
			say("a connects to %s, whose SYN-ACKs a rule in a drops (this takes 3 s)", n.server(80))
			return n.a.fails("client-a", client{}, n.server(80), unix.ETIMEDOUT)
		},
	},
	{
		Name: "no-route", Verdict: "unreachable_local", Certain: true,
		Title:   "no route: connect fails before a packet leaves",
		Learned: "The errno came from the client's own route table.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"The route table has no way to the destination, or says that there is none. No socket changes its state, and no counter moves."},
		run: func(n *Network, say Say) error {
			if err := n.a.do(func() error { return unreachable("10.98.0.0/24") }); err != nil {
				return err
			}
			say("a connects to 10.98.0.1, which its route table calls unreachable")
			return n.a.fails("client-a", client{}, "10.98.0.1:80", unix.EHOSTUNREACH)
		},
	},
	{
		Name: "icmp-unreachable", Verdict: "unreachable_icmp", Certain: true,
		Title:   "a router answers with ICMP host unreachable",
		Learned: "Somebody else than the server said no: look at routes and firewalls on the way.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"A router on the way refuses to carry the packet, and says so."},
		run: func(n *Network, say Say) error {
			if err := errors.Join(n.a.patience(), n.nat.reject(nftables.ChainHookForward, port(80, false))); err != nil {
				return err
			}
			say("a connects to %s; the node rejects it with ICMP host unreachable", n.server(80))
			return n.a.fails("client-a", client{}, n.server(80), unix.EHOSTUNREACH)
		},
	},
	{
		Name: "no-neighbour", Verdict: "unreachable_neighbour", Certain: true,
		Title:   "the host in this subnet does not answer ARP",
		Learned: "EHOSTUNREACH after three seconds, without an ICMP message: nobody has the address.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"The destination is in the pod's own subnet, and nobody has that address. The kernel asks three times, once a second."},
		run: func(n *Network, say Say) error {
			nobody := strings.TrimSuffix(n.gatewayA(), ".1") + ".77"
			say("a connects to %s, an address of its subnet that nobody has (this takes 3 s)", nobody)
			return n.a.fails("client-a", client{}, nobody+":80", unix.EHOSTUNREACH)
		},
	},
	{
		Name: "nat-recycle", Verdict: "peer_per_host_paws", Wrapper: "app_gave_up",
		Title:   "two pods behind one NAT: one works, the other times out (tcp_tw_recycle)",
		Learned: "Each connect that failed had an older timestamp than the connection before it, and each that succeeded a newer one. The server must not compare them: tcp_tw_recycle off. Without the server's help: net.ipv4.tcp_timestamps=0 for the clients, or connections that are kept open.",
		Live:    "sudo twtrace --failures",
		Story: []string{
			"Two pods share one public address. Each has a TCP timestamp clock of its own, some random offset ahead.",
			"The server remembers the newest timestamp that it had from an address, for 60 s, and drops a SYN with an older one: it takes it for a stray of an old connection. That was net.ipv4.tcp_tw_recycle, and some load balancers and firewalls keep the habit. It can't know that there are two pods behind the address.",
			"So whoever has the older clock is not answered as long as the other one is active. Either alone is fine.",
			"The kernel of this machine has no tcp_tw_recycle any more: a small XDP program in srv stands in for it.",
		},
		run: natRecycle,
	},
	{
		Name: "time-wait-collision", Verdict: "peer_time_wait_collision", Wrapper: "late_success",
		Title:   "NAT gives a new connection the port of an old one, which the server still has in TIME_WAIT",
		Learned: "The connect was some milliseconds late (a second before Linux 5.7), by one SYN more. A NAT that uses ports again too early does that. Where it swallows the RST, the connect times out.",
		Live:    "sudo twtrace --events connect,syn_retransmit,reset",
		Story: []string{
			"The server closes first, so the TIME_WAIT is the server's. NAT forgets the connection earlier, and gives its port to the next. Where that one's SYN looks old to the n.server(80), it answers with an ACK in place of a SYN-ACK; the client answers that with a RST, which ends the TIME_WAIT, and its next SYN gets through: some milliseconds later, and on kernels before 5.7 a second.",
		},
		run: timeWaitCollision,
	},
	{
		Name: "half-open", Verdict: "peer_half_open", Wrapper: "late_success",
		Title:   "the server still holds a connection that the client has left without a word",
		Learned: "The connect succeeded, after a SYN that was answered by something else than a SYN-ACK. Where the RST is lost on the way, it does not succeed.",
		Live:    "sudo twtrace --events connect,syn_retransmit,reset",
		Story:   []string{"The client vanishes without FIN or RST, as in a crash, and comes back from the same port. To the server the old connection is still open."},
		run:     halfOpen,
	},
	{
		Name: "snat-clash", Verdict: "node_snat_insert_failed", Certain: true,
		Title:   "the node finds no free source port for a pod's connection, and drops its SYN",
		Learned: "The drop was on this machine, in the router's network namespace, not in the client's. More addresses for the NAT, random ports, or fewer connections.",
		Live:    "sudo twtrace --failures",
		Story: []string{
			"The node gives all connections of its pods its own address. It must find a source port for each that is free toward the destination; here it has one only. Where two want the same the second one's SYN is dropped, deep in connection tracking.",
		},
		run: snatClash,
	},
	{
		Name: "conntrack-full", Verdict: "conntrack_table_full", Certain: true, Global: true,
		Title:   "the node's table of tracked connections is full",
		Learned: "The drop was on the node, and its table of connections was full. The kernel's log says so, too: nf_conntrack: table full, dropping packet.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"The node tracks all connections of its pods. When nf_conntrack_max is reached, it drops the SYNs of new ones."},
		run:     conntrackFull,
	},
	{
		Name: "cloud-snat", Verdict: "cloud_snat_suspected",
		Title:   "one destination stops to answer all pods, while others answer",
		Learned: "Two pods had no answer from one destination, while another answered. From inside that is a suspicion only: the cloud's own metrics must confirm it.",
		Live:    "sudo twtrace top",
		Story:   []string{"A NAT gateway has a limited number of source ports toward each destination. Once they are used up new connections there are dropped, out of sight of this machine, and connections elsewhere work."},
		run:     cloudSNAT,
	},
	{
		Name: "port-cooldown", Verdict: "nat_port_cooldown",
		Title:   "the same local port goes to the same destination again too soon for a NAT on the way",
		Learned: "Silence for one local port that was used just before, toward the same destination.",
		Live:    "sudo twtrace --events connect,port_reuse",
		Story:   []string{"A NAT or a firewall can keep a port from the same destination for a minute after a connection has ended. A client that binds to one port meets that."},
		run:     portCooldown,
	},
	{
		Name: "listen-overflow", Verdict: "listen_overflow",
		Title:   "the server accepts too slowly: its queue is full, and it drops SYNs",
		Learned: "ListenOverflows grew on the server. No packet was dropped in a way that shows.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"A listener has a queue for connections that nobody has accepted yet. When it is full the kernel drops SYNs without a word; only two counters move."},
		run:     listenOverflow,
	},
	{
		Name: "gave-up", Verdict: "syn_unanswered", Wrapper: "app_gave_up",
		Title:   "the program's own timeout is over before the kernel gives up",
		Learned: "The program gave up; why it had to is another question: nobody answered.",
		Live:    "sudo twtrace --failures",
		Story:   []string{"Most programs wait less long than the kernel. Then the kernel counts no failure at all: the socket is just closed."},
		run: func(n *Network, say Say) error {
			if err := n.quiet(); err != nil {
				return err
			}
			say("a connects to %s with a timeout of 1.5 s; its SYNs vanish", n.far())
			return n.a.fails("client-a", client{timeout: 1500 * time.Millisecond}, n.far(), errGaveUp)
		},
	},
	{
		Name: "late", Verdict: "syn_unanswered", Wrapper: "late_success",
		Title:   "the first SYNs are lost, and the connect succeeds late",
		Learned: "Connected, after SYNs that were sent again: a latency of 1, 2, 3 or 7 s is a lost SYN, not a slow server.",
		Live:    "sudo twtrace --events connect,syn_retransmit",
		Story:   []string{"A SYN that is not answered is sent again after a second. So a single lost packet makes a connect a second late, never a little."},
		run:     late,
	},
	{
		Name: "reset", Verdict: "reset_after_handshake", Certain: true,
		Title:   "the handshake succeeds, and the server resets the connection at once",
		Learned: "The connect was fine; ECONNRESET came after it, from the other side.",
		Live:    "sudo twtrace --events connect,reset,close",
		Story:   []string{"The connect works. Then the n.server(80), or something before it, throws the connection away."},
		run: func(n *Network, say Say) error {
			if err := n.serve(80, reset); err != nil {
				return err
			}
			say("a connects to %s, which accepts, and answers the request with a RST", n.server(80))
			return n.a.as("client-a", func() error {
				fd, err := client{}.dial(n.server(80))
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				if _, err := unix.Write(fd, []byte("hello")); err != nil {
					return err
				}
				return expect("read", awaitEnd(fd), unix.ECONNRESET)
			})
		},
	},
	{
		Name: "tw-overflow", Verdict: "tw_overflow", Certain: true,
		Title:   "more TIME_WAITs than tcp_max_tw_buckets: the kernel makes none",
		Learned: "Of four connections one had a TIME_WAIT. A packet of the others that comes late meets nothing that knows it.",
		Live:    "sudo twtrace",
		Story:   []string{"The number of TIME_WAITs in a network namespace is bounded. Beyond it a connection ends without one, and its ports are free at once: stray segments can meet the next one."},
		run: func(n *Network, say Say) error {
			if err := errors.Join(n.serve(80, clientFirst), n.a.sysctl("ipv4/tcp_max_tw_buckets", "1")); err != nil {
				return err
			}
			say("a may have one TIME_WAIT (tcp_max_tw_buckets=1), and closes four connections")
			for range 4 {
				if err := n.a.converse("client-a", client{}, n.server(80)); err != nil {
					return err
				}
			}
			return nil
		},
	},
}

// dial connects from a namespace, by a thread of this name.
func (ns *namespace) dial(name string, c client, to string) (fd int, err error) {
	err = ns.as(name, func() (err error) {
		fd, err = c.dial(to)
		return err
	})
	return fd, err
}

// fails connects, which must end so.
func (ns *namespace) fails(name string, c client, to string, want error) error {
	fd, err := ns.dial(name, c, to)
	if err == nil {
		unix.Close(fd)
	}
	return expect(fmt.Sprintf("connect from %s to %s", ns.name, to), err, want)
}

// converse connects and closes first.
func (ns *namespace) converse(name string, c client, to string) error {
	return ns.as(name, func() error {
		fd, err := c.dial(to)
		if err != nil {
			return expect(fmt.Sprintf("connect from %s to %s", ns.name, to), err, nil)
		}
		if err := unix.Shutdown(fd, unix.SHUT_WR); err != nil {
			return err
		}
		err = awaitEnd(fd)
		unix.Close(fd)
		return err
	})
}

// hear connects and waits for the server to close first. It returns how many segments
// were sent again.
func (ns *namespace) hear(name string, c client, to string) (again uint32, err error) {
	err = ns.as(name, func() error {
		fd, err := c.dial(to)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if again, err = retransmitted(fd); err != nil {
			return err
		}
		return awaitEnd(fd)
	})
	return again, err
}

// patience makes connects time out after 3 s.
func (ns *namespace) patience() error { return ns.sysctl("ipv4/tcp_syn_retries", "1") }

// quiet makes what goes to the far address vanish, with no timestamps that could
// explain it.
func (n *Network) quiet() error {
	return errors.Join(n.a.patience(), n.b.patience(), n.a.sysctl("ipv4/tcp_timestamps", "0"), n.b.sysctl("ipv4/tcp_timestamps", "0"), n.silence(true))
}

// pause waits, since time is what the scenario is about.
func (n *Network) pause(d time.Duration) error {
	select {
	case <-n.ctx.Done():
		return n.ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func exhaust(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, clientFirst), n.a.sysctl("ipv4/ip_local_port_range", "32768 32768")); err != nil {
		return err
	}
	say("a has one local port: net.ipv4.ip_local_port_range is 32768 32768. It connects to %s and closes", n.server(80))
	if err := n.a.converse("client-a", client{}, n.server(80)); err != nil {
		return err
	}
	say("a connects again, while that port is in TIME_WAIT")
	return n.a.fails("client-a2", client{}, n.server(80), unix.EADDRNOTAVAIL)
}

func portExhaustion(n *Network, say Say) error {
	if err := errors.Join(exhaust(n, say), n.serve(81, clientFirst)); err != nil {
		return err
	}
	say("a connects to port 81 of the same server: another destination, so the same local port serves again")
	return n.a.converse("client-a3", client{}, n.server(81))
}

func twReuse(n *Network, say Say) error {
	if err := exhaust(n, say); err != nil {
		return err
	}
	say("net.ipv4.tcp_tw_reuse=1 in a, and a moment later a connects again")
	if err := n.a.sysctl("ipv4/tcp_tw_reuse", "1"); err != nil {
		return err
	}
	// The kernel's own rule: a second, by a clock of seconds.
	if err := n.pause(2100 * time.Millisecond); err != nil {
		return err
	}
	return n.a.converse("client-a3", client{}, n.server(80))
}

func portLeak(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, clientFirst), n.a.sysctl("ipv4/ip_local_port_range", "41000 41001")); err != nil {
		return err
	}
	say("a has two local ports, and opens two connections to %s that it never closes", n.server(80))
	for range 2 {
		fd, err := n.a.dial("client-a", client{}, n.server(80))
		if err != nil {
			return expect("connect", err, nil)
		}
		defer unix.Close(fd)
	}
	say("a connects once more")
	return n.a.fails("client-a2", client{}, n.server(80), unix.EADDRNOTAVAIL)
}

// natRecycle goes on until three connects at least were refused by their timestamps
// and three were not, so that chance does not explain it.
func natRecycle(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, serverFirst), n.snat(0), n.recycle()); err != nil {
		return err
	}
	say("the node gives a and b the same address, %s; the server keeps the newest timestamp of each address", n.natAddress())
	say("a and b connect to %s in turn, with a timeout of 1 s", n.server(80))
	outcomes := map[bool]int{}
	for turn := 0; outcomes[true] < 4 || outcomes[false] < 4; turn++ {
		if turn == 40 {
			return fmt.Errorf("after %d connects %d were answered and %d not", turn, outcomes[true], outcomes[false])
		}
		ns := n.a
		if turn%2 == 1 {
			ns = n.b
		}
		_, err := ns.hear("client-"+ns.name, client{timeout: time.Second}, n.server(80))
		if err != nil && !errors.Is(err, errGaveUp) {
			return err
		}
		outcomes[err == nil]++
	}
	say("now without timestamps in a and b (net.ipv4.tcp_timestamps=0): the server has nothing to compare")
	for _, ns := range []*namespace{n.a, n.b, n.a, n.b} {
		if err := ns.sysctl("ipv4/tcp_timestamps", "0"); err != nil {
			return err
		}
		if _, err := ns.hear("client-"+ns.name, client{timeout: time.Second}, n.server(80)); err != nil {
			return expect("connect from "+ns.name+" without timestamps", err, nil)
		}
	}
	return nil
}

// timeWaitCollision goes on until a SYN looked old: by its timestamp one in two does.
func timeWaitCollision(n *Network, say Say) error {
	err := errors.Join(n.serve(80, serverFirst), n.snat(50000))
	for _, timeout := range []string{"time_wait", "last_ack", "close"} {
		err = errors.Join(err, n.nat.sysctl("netfilter/nf_conntrack_tcp_timeout_"+timeout, "1"))
	}
	if err != nil {
		return err
	}
	say("the node gives all connections the source port 50000, one after the other, and forgets each after a second")
	for turn := range 16 {
		ns := n.a
		if turn%2 == 1 {
			ns = n.b
		}
		say("%s connects to %s; the server closes first", ns.name, n.server(80))
		again, err := ns.hear("client-"+ns.name, client{}, n.server(80))
		if err != nil {
			return expect("connect from "+ns.name, err, nil)
		}
		if again > 0 {
			return nil
		}
		if err := n.pause(2200 * time.Millisecond); err != nil {
			return err
		}
	}
	return errors.New("no SYN looked old to the server")
}

func halfOpen(n *Network, say Say) error {
	if err := n.serve(80, clientFirst); err != nil {
		return err
	}
	from := client{port: 45000}
	say("a connects to %s from port 45000, and vanishes without FIN or RST", n.server(80))
	err := n.a.as("client-a", func() error {
		fd, err := from.dial(n.server(80))
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		// A socket in repair mode is closed without a word.
		return os.NewSyscallError("setsockopt TCP_REPAIR", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_REPAIR, 1))
	})
	if err != nil {
		return err
	}
	say("a connects again from port 45000")
	return n.a.as("client-a", func() error {
		fd, err := from.dial(n.server(80))
		if err != nil {
			return expect("connect", err, nil)
		}
		defer unix.Close(fd)
		again, err := retransmitted(fd)
		if err == nil && again == 0 {
			err = errors.New("the server answered at once")
		}
		return err
	})
}

func snatClash(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, clientFirst), n.snat(50000), n.b.patience()); err != nil {
		return err
	}
	say("a connects to %s; the node gives it the source port 50000", n.server(80))
	fd, err := n.a.dial("client-a", client{}, n.server(80))
	if err != nil {
		return expect("connect from a", err, nil)
	}
	defer unix.Close(fd)
	say("b connects to the same; no source port is left for it (this takes 3 s)")
	return n.b.fails("client-b", client{}, n.server(80), unix.ETIMEDOUT)
}

func conntrackFull(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, clientFirst), n.snat(0), n.a.patience()); err != nil {
		return err
	}
	say("a connects to %s: the node tracks one connection", n.server(80))
	fd, err := n.a.dial("client-a", client{}, n.server(80))
	if err != nil {
		return expect("connect from a", err, nil)
	}
	defer unix.Close(fd)
	const max = "/proc/sys/net/netfilter/nf_conntrack_max"
	before, err := os.ReadFile(max)
	if err != nil {
		return err
	}
	if _, err := strconv.Atoi(strings.TrimSpace(string(before))); err != nil {
		return err
	}
	if err := os.WriteFile(max, []byte("1"), 0); err != nil {
		return err
	}
	defer func() { _ = os.WriteFile(max, before, 0) }() // the process may still write: it just did
	say("nf_conntrack_max is 1 now. a connects once more (this takes 3 s)")
	if err := n.a.fails("client-a2", client{}, n.server(80), unix.ETIMEDOUT); err != nil {
		return err
	}
	return n.pause(2 * time.Second) // for who looks at the table now
}

func cloudSNAT(n *Network, say Say) error {
	err := errors.Join(n.serve(80, clientFirst), n.serve(443, clientFirst), n.quiet(), n.silence(false))
	if err != nil {
		return err
	}
	say("a and b connect to %s and to %s: both answer", n.server(80), n.far())
	for _, ns := range []*namespace{n.a, n.b} {
		for _, to := range []string{n.far(), n.server(80)} {
			if err := ns.converse("client-"+ns.name, client{}, to); err != nil {
				return err
			}
		}
	}
	say("from now on all that goes to %s vanishes (this takes 6 s)", n.far())
	if err := n.silence(true); err != nil {
		return err
	}
	for _, ns := range []*namespace{n.a, n.b} {
		if err := ns.fails("client-"+ns.name, client{}, n.far(), unix.ETIMEDOUT); err != nil {
			return err
		}
		if err := ns.converse("client-"+ns.name, client{}, n.server(80)); err != nil {
			return err
		}
	}
	return nil
}

func portCooldown(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, serverFirst), n.quiet(), n.silence(false)); err != nil {
		return err
	}
	from := client{port: 45000}
	say("a connects to %s from port 45000; the server closes first", n.far())
	if _, err := n.a.hear("client-a", from, n.far()); err != nil {
		return expect("connect from a", err, nil)
	}
	// The last ACK may not vanish, too: the port would not be free.
	if err := n.a.do(load.Settle); err != nil {
		return err
	}
	say("a connects again from port 45000; from now on its SYNs vanish (this takes 3 s)")
	if err := n.silence(true); err != nil {
		return err
	}
	return n.a.fails("client-a", from, n.far(), unix.ETIMEDOUT)
}

func listenOverflow(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, noAccept), n.b.patience()); err != nil {
		return err
	}
	say("the server listens with a backlog of 1, and never accepts; a opens two connections to %s", n.server(80))
	for range 2 {
		fd, err := n.a.dial("client-a", client{}, n.server(80))
		if err != nil {
			return expect("connect from a", err, nil)
		}
		defer unix.Close(fd)
	}
	say("b connects, too (this takes 3 s)")
	return n.b.fails("client-b", client{}, n.server(80), unix.ETIMEDOUT)
}

func late(n *Network, say Say) error {
	if err := errors.Join(n.serve(80, clientFirst), n.quiet(), n.a.sysctl("ipv4/tcp_syn_retries", "4")); err != nil {
		return err
	}
	say("a connects to %s; its SYNs vanish for 1.5 s", n.far())
	arriving := make(chan error)
	go func() { arriving <- errors.Join(n.pause(1500*time.Millisecond), n.silence(false)) }()
	err := n.a.converse("client-a", client{}, n.far())
	return errors.Join(<-arriving, err)
}
