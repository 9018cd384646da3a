package verdict

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/twtrace/twtrace/internal/event"
	"github.com/twtrace/twtrace/internal/record"
	"github.com/twtrace/twtrace/internal/track"
)

// rules in the order in which they decide: an errno at once, an error of the
// socket, an answer, a drop or a counter of this machine, and then silence.
var rules = []rule{
	{NoPortTimeWait, noPortTimeWait, notNoPort, []string{NoPortLive}},
	{NoPortLive, noPortLive, notNoPortLive, []string{NoPortTimeWait}},
	{NoRoute, noRoute, nil, nil},

	{ResetEarly, resetEarly, nil, nil},
	{Refused, refused, notRefused, []string{ICMP}},
	{NoNeighbour, noNeighbour, notNoNeighbour, []string{ICMP, SYNDropped}},
	{ICMP, icmp, notICMP, []string{NoNeighbour, Refused}},

	{HalfOpenAtPeer, halfOpenAtPeer, notHalfOpen, []string{TimeWaitAtPeer, Unanswered}},
	{TimeWaitAtPeer, timeWaitAtPeer, notTimeWaitAtPeer, []string{HalfOpenAtPeer, Unanswered}},
	{SYNACKDropped, synackDropped, notSYNACKDropped, []string{Unanswered}},

	{ConntrackFull, conntrackFull, notConntrackFull, []string{SNATClash}},
	{SNATClash, snatClash, notSNATClash, []string{ConntrackFull, Unanswered}},
	{ListenOverflow, listenOverflow, notListenOverflow, []string{SYNDropped, Unanswered}},
	{PerHostPAWS, perHostPAWS, notPerHostPAWS, []string{SYNDropped, SYNACKDropped, CloudSNAT, PortCooldown}},
	{SYNDropped, synDropped, notSYNDropped, []string{SNATClash, ConntrackFull, Unanswered}},

	{CloudSNAT, cloudSNAT, notCloudSNAT, []string{SYNDropped, SYNACKDropped, PerHostPAWS}},
	{PortCooldown, portCooldown, notPortCooldown, []string{SYNDropped, SYNACKDropped, PerHostPAWS}},
	{Unanswered, unanswered, notUnanswered, []string{
		SYNDropped, SYNACKDropped, SNATClash, ConntrackFull, ListenOverflow, PerHostPAWS, CloudSNAT, PortCooldown}},
}

// An errno at once.

func noPortTimeWait(f *Facts) *record.VerdictFields {
	p := f.Record.Ports
	if f.Record.Connect.Outcome != record.NoLocalPort || p == nil || 2*p.TimeWait < p.InUse || p.TimeWait == 0 {
		return nil
	}
	v := noPort(f)
	v.Text = fmt.Sprintf("no local port is left toward this destination: %d of %d are taken, %d of them by TIME_WAITs", p.InUse, p.Usable, p.TimeWait)
	if h := p.Holder; h != nil {
		text := fmt.Sprintf("port %d is the next to be free", h.Port)
		if h.EndsIn > 0 {
			text += ", in " + span(h.EndsIn)
		}
		if h.Owner.Known() {
			text += fmt.Sprintf("; it was %s's (%d)", h.Owner.Comm, h.Owner.PID)
			if in := h.Owner.In.String(); in != "" {
				text += " in " + in
			}
		}
		v.Evidence = append(v.Evidence, record.Evidence{Text: text})
	}
	v.Advice = "keep connections alive and pool them, or let the server close first; " + widen(f)
	if f.Sysctls != nil && number(f, "tcp_tw_reuse") != 1 {
		v.Advice += fmt.Sprintf("; or net.ipv4.tcp_tw_reuse=1 there (now %d; in a pod an unsafe sysctl that the kubelet must allow)", number(f, "tcp_tw_reuse"))
	}
	return v
}

func noPortLive(f *Facts) *record.VerdictFields {
	p := f.Record.Ports
	if f.Record.Connect.Outcome != record.NoLocalPort || p == nil || 2*p.TimeWait >= p.InUse && p.TimeWait > 0 {
		return nil
	}
	v := noPort(f)
	v.Text = fmt.Sprintf("no local port is left toward this destination: %d of %d are taken, %d of them by open connections", p.InUse, p.Usable, p.InUse-p.TimeWait)
	v.Advice = "bound the pool, and see whether connections are never closed (ss -tn state close-wait in that network namespace); " + widen(f)
	return v
}

// noPort is what both have in common: the errno is certain, who has the ports is
// known by count.
func noPort(f *Facts) *record.VerdictFields {
	v := &record.VerdictFields{
		Confidence: record.Likely,
		Evidence:   []record.Evidence{{Text: "EADDRNOTAVAIL, the kernel's word: certain. Who has the ports is counted"}},
	}
	if f.Sysctls != nil {
		v.Evidence = append(v.Evidence, record.Evidence{Line: f.SysctlsLine, Text: fmt.Sprintf(
			"ip_local_port_range of this network namespace is %d-%d, %d of it reserved", f.Sysctls.Ports.Low, f.Sysctls.Ports.High, max(f.Record.Ports.Reserved, 0))})
	}
	return v
}

// widen is the way out that always stands open.
func widen(f *Facts) string {
	const advice = `a wider range: in a pod securityContext.sysctls net.ipv4.ip_local_port_range "1024 65535"`
	if f.Sysctls == nil {
		return advice
	}
	return fmt.Sprintf("%s (now %d-%d)", advice, f.Sysctls.Ports.Low, f.Sysctls.Ports.High)
}

func notNoPort(f *Facts) string {
	p := f.Record.Ports
	if f.Record.Connect.Outcome != record.NoLocalPort || p == nil {
		return ""
	}
	return fmt.Sprintf("TIME_WAITs hold %d of the %d ports that are taken", p.TimeWait, p.InUse)
}

func notNoPortLive(f *Facts) string {
	p := f.Record.Ports
	if f.Record.Connect.Outcome != record.NoLocalPort || p == nil {
		return ""
	}
	return fmt.Sprintf("open connections hold %d of the %d ports that are taken", p.InUse-p.TimeWait, p.InUse)
}

func noRoute(f *Facts) *record.VerdictFields {
	if f.Record.Kind != record.Connect || f.Record.State.New != 0 {
		return nil
	}
	v := &record.VerdictFields{Confidence: record.Certain, Advice: "ip route get " + f.Record.Socket.Tuple.Peer.Addr().String() +
		" in that network namespace; then the route table there, and the cloud's"}
	var kind string
	switch f.Record.Connect.Errno {
	case syscall.EHOSTUNREACH:
		kind = "its route says unreachable"
	case syscall.ENETUNREACH:
		kind = "there is no route to it"
	case syscall.EACCES:
		kind, v.Confidence = "its route says prohibit, or a security module forbids it", record.Possible
		v.NotVisible = []string{"which of the two said EACCES"}
	case syscall.EINVAL:
		kind, v.Confidence = "its route says blackhole, or the program gave a bad address", record.Possible
		v.NotVisible = []string{"which of the two said EINVAL"}
	default:
		return nil
	}
	v.Text = "no packet left this machine: " + kind
	v.Evidence = []record.Evidence{{Text: "connect() failed at once, and the socket never left CLOSE"}}
	v.RuledOut = []string{"an ICMP error, or a neighbour that is missing: both come after a SYN"}
	return v
}

// An error of the socket.

func resetEarly(f *Facts) *record.VerdictFields {
	if f.Record.Kind != record.Close {
		return nil
	}
	c := &f.Record.Close
	v := &record.VerdictFields{
		Confidence: record.Certain,
		Text: fmt.Sprintf("the peer sent a RST %s after the handshake, when %d bytes had been sent and %d received",
			span(c.Duration), c.BytesSent, c.BytesReceived),
		RuledOut: []string{"a RST of this end: the socket's error says that one was received"},
		Advice:   "ask the peer: TLS or SNI, an access list, a proxy without a backend, a program that closes with data unread",
	}
	if r := f.received(); r != nil {
		v.Evidence = append(v.Evidence, record.Evidence{Line: r.Line, Text: "a RST was received in " + r.State.String()})
	}
	v.Evidence = append(v.Evidence, record.Evidence{Text: "the socket's error is that of a RST received"})
	return v
}

func refused(f *Facts) *record.VerdictFields {
	r := f.received()
	if f.Record.Connect.Outcome != record.Refused || r == nil {
		return nil
	}
	v := &record.VerdictFields{
		Confidence: record.Certain,
		Text:       "the peer answered the SYN with a RST",
		Evidence: []record.Evidence{
			{Line: r.Line, Text: "a RST was received in " + r.State.String()},
			{Text: "ECONNREFUSED" + after(f.Record.Connect.Duration)},
		},
		Advice: "is the server up, and does it listen on this address and port? A Service without endpoints, and a firewall that rejects with a RST, look the same",
	}
	if d := f.dropOf(event.SYN, false); d != nil && d.Reason == "NO_SOCKET" {
		v.Text = fmt.Sprintf("nobody listens there: the peer is on this machine, in network namespace %d", d.NetNS.Inode)
		v.Evidence = append(v.Evidence, record.Evidence{Line: d.Line, Text: "the SYN met no socket"})
	}
	return v
}

func notRefused(f *Facts) string {
	if f.received() == nil {
		return "no RST was received"
	}
	return ""
}

// byNeighbour reports whether a SYN was thrown away since the link's address of its
// next hop could not be found.
func byNeighbour(d *track.Drop) bool {
	return d.Reason == "NEIGH_FAILED" || strings.HasPrefix(d.Location, "neigh_")
}

// isFirewalled reports whether a drop is a rule's, or of connection tracking.
func isFirewalled(d *track.Drop) bool {
	return d.Reason == "NETFILTER_DROP" || strings.HasPrefix(d.Location, "nf_") || strings.HasPrefix(d.Location, "nft_")
}

func noNeighbour(f *Facts) *record.VerdictFields {
	if f.Record.Connect.Outcome != record.Unreachable || f.Record.State.New == 0 {
		return nil
	}
	v := &record.VerdictFields{
		Text:     "the next hop, or the host in this subnet, does not answer ARP or neighbour discovery",
		Evidence: []record.Evidence{{Text: "EHOSTUNREACH" + after(f.Record.Connect.Duration)}},
		Advice:   "is that host up, in this subnet, in the right VLAN? ip neigh show in that network namespace",
	}
	i := slices.IndexFunc(f.Drops, func(d track.Drop) bool { return !d.Reverse && byNeighbour(&d) && f.here(&d) })
	switch d := f.Record.Connect.Duration; {
	case i >= 0:
		v.Confidence = record.Certain
		v.Evidence = append(v.Evidence, dropped(&f.Drops[i]))
	case !f.DropsSeen && d > 2500*time.Millisecond && d < 3500*time.Millisecond:
		v.Confidence = record.Possible
	default:
		return nil
	}
	return v
}

func notNoNeighbour(f *Facts) string {
	if f.DropsSeen && !slices.ContainsFunc(f.Drops, func(d track.Drop) bool { return byNeighbour(&d) }) {
		return "no packet was dropped for want of a neighbour"
	}
	return ""
}

func icmp(f *Facts) *record.VerdictFields {
	c := &f.Record.Connect
	if f.Record.Kind != record.Connect || f.Record.State.New == 0 || c.Outcome == record.NoLocalPort ||
		c.Errno == 0 || c.Errno == syscall.ETIMEDOUT || c.Errno == syscall.ECONNRESET {
		return nil
	}
	var says string
	switch c.Errno {
	case syscall.EHOSTUNREACH:
		says = "host unreachable, or administratively prohibited"
	case syscall.ENETUNREACH:
		says = "network unreachable"
	case syscall.ECONNREFUSED:
		says = "port or protocol unreachable"
	default:
		return nil
	}
	v := &record.VerdictFields{
		Confidence: record.Certain,
		Text:       "an ICMP error answered the SYN: " + says,
		Evidence:   []record.Evidence{{Text: errnoName(c.Errno) + after(c.Duration) + ", with no RST"}},
		Advice:     "see the routes and firewalls on the way (tracepath, the cloud's route table); administratively prohibited is a firewall's word",
	}
	if n, line := f.delta("LockDroppedIcmps", f.Record.Socket.NetNS); n > 0 {
		v.Evidence = append(v.Evidence, record.Evidence{Line: line, Text: "the error came while the socket was locked (LockDroppedIcmps): the next SYN's counted"})
	}
	if d := f.dropOf(event.SYN, false); d != nil && !f.here(d) {
		v.Evidence = append(v.Evidence, dropped(d))
	}
	if !f.DropsSeen && c.Errno == syscall.EHOSTUNREACH {
		v.Confidence = record.Possible
		v.NotVisible = []string{"whether the neighbour was missing"}
	}
	return v
}

func notICMP(f *Facts) string {
	if f.received() != nil {
		return "a RST was received"
	}
	if slices.ContainsFunc(f.Drops, func(d track.Drop) bool { return byNeighbour(&d) && f.here(&d) }) {
		return "the SYN did not leave"
	}
	return ""
}

// An answer.

// oldState is what both kinds of old state at the peer have in common.
func oldState(f *Facts) *record.VerdictFields {
	r := f.sent()
	if r == nil {
		return nil
	}
	v := &record.VerdictFields{Evidence: []record.Evidence{
		{Line: r.Line, Text: "the peer answered the SYN with something else than a SYN-ACK, and we sent a RST in SYN_SENT"},
	}}
	if r.Reason != "" {
		v.Evidence[0].Text += " (" + r.Reason + ")"
	}
	if p := f.Previous; p != nil && p.Previous.End.String() != "" {
		v.Evidence = append(v.Evidence, record.Evidence{Text: fmt.Sprintf(
			"its ports were used before, %s ago; that one ended by %s", span(p.After), p.Previous.End)})
	}
	return v
}

// leftSilently reports whether the earlier use of the ports ended so that the peer
// need not have heard of it.
func leftSilently(f *Facts) bool {
	return f.Previous != nil && f.Previous.Previous.End.TimeWait == 0 && f.Previous.Previous.End.Close == record.ByResetSent
}

func halfOpenAtPeer(f *Facts) *record.VerdictFields {
	v := oldState(f)
	if v == nil {
		return nil
	}
	n, line := f.delta("TCPSYNChallenge", f.There)
	paws, _ := f.paws()
	if !(f.isLocal() && n > 0 && paws == 0) && !leftSilently(f) {
		return nil
	}
	v.Confidence = record.Possible
	v.Text = "the peer still had a connection open with these ports; our RST ended it, and the next SYN got through"
	if f.isLocal() && n > 0 {
		v.Confidence = record.Likely
		v.Evidence = append(v.Evidence, record.Evidence{Line: line, Text: fmt.Sprintf("TCPSYNChallenge moved by %d at the peer, which is on this machine", n)})
	}
	v.Advice = "the earlier connection ended without the peer hearing of it (crash, network namespace gone, RST lost): keepalive on the server ends such"
	return v
}

// paws is by how much the peer's counters of too old timestamps moved, where it is
// on this machine.
func (f *Facts) paws() (n, line uint64) {
	if !f.isLocal() {
		return 0, 0
	}
	for _, name := range []string{"PAWSTimewait", "PAWSEstab"} { // from 6.14; before
		if n, line = f.delta(name, f.There); n > 0 {
			return n, line
		}
	}
	return 0, 0
}

func notHalfOpen(f *Facts) string {
	if n, _ := f.paws(); n > 0 {
		return "a TIME_WAIT of the peer refused the timestamp"
	}
	return ""
}

func timeWaitAtPeer(f *Facts) *record.VerdictFields {
	v := oldState(f)
	if v == nil {
		return nil
	}
	v.Confidence = record.Possible
	v.Text = "the peer still had old state, likely a TIME_WAIT, of a connection with the same ports; our RST ended it, and the next SYN got through"
	if n, line := f.paws(); n > 0 {
		v.Confidence = record.Likely
		v.Evidence = append(v.Evidence, record.Evidence{Line: line, Text: fmt.Sprintf("PAWS refused %d segments at the peer, which is on this machine", n)})
	}
	ours := f.Previous != nil && f.Previous.After > 0 && f.Previous.After <= time.Minute
	switch {
	case ours && f.Previous.Previous.End.Close == record.ByPeer:
		v.Confidence = record.Likely
		v.Evidence = append(v.Evidence, record.Evidence{Text: "the peer had closed that one first, so the TIME_WAIT is the peer's"})
	case !ours && f.Peer.Newest.Ago > 0 && f.Peer.Newest.Ago <= time.Minute:
		v.Evidence = append(v.Evidence, record.Evidence{Line: f.Peer.Newest.Line, Text: fmt.Sprintf(
			"network namespace %d had a connection to it %s before: NAT can give both the same port", f.Peer.Newest.NetNS.Inode, span(f.Peer.Newest.Ago))})
	}
	v.Advice = "behind NAT, give up --random-fully for the masquerade, or pool connections; more egress addresses help, too"
	v.NotVisible = []string{"which ports NAT gave it, beyond this network namespace"}
	return v
}

func notTimeWaitAtPeer(f *Facts) string {
	if n, _ := f.delta("TCPSYNChallenge", f.There); f.isLocal() && n > 0 {
		return "a live socket of the peer challenged the SYN"
	}
	return ""
}

func synackDropped(f *Facts) *record.VerdictFields {
	d := f.dropOf(event.SYNACK, true)
	if !f.silent() || d == nil {
		return nil
	}
	v := &record.VerdictFields{Evidence: append(retransmitted(f), dropped(d))}
	place(f, v, d, "the peer's SYN-ACK was dropped")
	v.Advice = "nft list ruleset in that network namespace; ingress policies; for IP_RPFILTER, asymmetric routes and net.ipv4.conf.*.rp_filter"
	return v
}

func notSYNACKDropped(f *Facts) string {
	if f.DropsSeen && f.dropOf(event.SYNACK, true) == nil {
		return "this machine dropped no SYN-ACK of it"
	}
	return ""
}

// place says where a packet was dropped: in the connect's own network namespace that
// is certain, elsewhere on the machine another can have had the same ends.
func place(f *Facts, v *record.VerdictFields, d *track.Drop, what string) {
	v.Confidence = record.Certain
	v.Text = what + " in this network namespace"
	if !f.here(d) {
		v.Confidence = record.Likely
		v.Text = fmt.Sprintf("%s on this machine, in network namespace %d", what, d.NetNS.Inode)
	}
	if d.Location != "" {
		v.Text += ", by " + d.Location
	}
}

// dropped is a drop as evidence.
func dropped(d *track.Drop) record.Evidence {
	text := d.Packet.String() + " dropped"
	if d.Count > 1 {
		text = fmt.Sprintf("%s dropped, %d times", d.Packet, d.Count)
	}
	if d.Reason != "" {
		text += ": " + d.Reason
	}
	if d.Location != "" {
		text += " in " + d.Location
	}
	return record.Evidence{Line: d.Line, Text: fmt.Sprintf("%s (network namespace %d)", text, d.NetNS.Inode)}
}

// A drop or a counter of this machine.

// tracked returns the drop of a SYN that connection tracking may have made, and the
// counters of the network namespace where that was.
func tracked(f *Facts) (*track.Drop, *Counters) {
	d := f.dropOf(event.SYN, false)
	if !f.silent() || d == nil || !isFirewalled(d) || d.Location == "nft_do_chain" {
		return nil, nil
	}
	for i := range f.Counters {
		if f.Counters[i].NetNS == d.NetNS {
			return d, &f.Counters[i]
		}
	}
	return nil, nil
}

func conntrackFull(f *Facts) *record.VerdictFields {
	d, c := tracked(f)
	if d == nil || c.ConntrackMax == 0 || c.ConntrackCount < c.ConntrackMax {
		return nil
	}
	return &record.VerdictFields{
		Confidence: record.Certain,
		Text:       fmt.Sprintf("the table of tracked connections is full, %d of %d: new ones are dropped", c.ConntrackCount, c.ConntrackMax),
		Evidence:   []record.Evidence{dropped(d), {Line: c.Line, Text: fmt.Sprintf("nf_conntrack_count %d, nf_conntrack_max %d", c.ConntrackCount, c.ConntrackMax)}},
		Advice:     fmt.Sprintf("raise net.netfilter.nf_conntrack_max on the node (now %d); on AKS netNetfilterNfConntrackMax in the node pool's linuxOsConfig", c.ConntrackMax),
	}
}

func notConntrackFull(f *Facts) string {
	for i := range f.Counters {
		c := &f.Counters[i]
		if c.ConntrackMax > 0 && c.ConntrackCount < c.ConntrackMax {
			return fmt.Sprintf("%d of %d tracked connections", c.ConntrackCount, c.ConntrackMax)
		}
	}
	return ""
}

func snatClash(f *Facts) *record.VerdictFields {
	d, c := tracked(f)
	if d == nil || c.Delta["nf_conntrack_insert_failed"] == 0 {
		return nil
	}
	n := int(c.Delta["nf_conntrack_insert_failed"])
	v := &record.VerdictFields{
		Confidence: record.Likely,
		Text:       fmt.Sprintf("connection tracking in network namespace %d could not give the connection a source port of its own", d.NetNS.Inode),
		Evidence:   []record.Evidence{dropped(d), {Line: c.Line, Text: fmt.Sprintf("nf_conntrack insert_failed moved by %d", n)}},
		Advice:     "more addresses or ports to masquerade to, --random-fully, pooled connections, NodeLocal DNSCache; conntrack -S on the node",
	}
	// The first drop is what had the counters looked at.
	if n >= d.Count-1 {
		v.Confidence = record.Certain
	}
	return v
}

func notSNATClash(f *Facts) string {
	if d := f.dropOf(event.SYN, false); d != nil && (!isFirewalled(d) || d.Location == "nft_do_chain") {
		return "not connection tracking dropped it"
	}
	if n, _ := f.delta("nf_conntrack_insert_failed"); n == 0 && f.DropsSeen && f.dropOf(event.SYN, false) == nil {
		return "this machine dropped no SYN of it"
	}
	return ""
}

func synDropped(f *Facts) *record.VerdictFields {
	d := f.dropOf(event.SYN, false)
	if !f.silent() || d == nil || d.Reason == "NO_SOCKET" {
		return nil
	}
	v := &record.VerdictFields{Evidence: append(retransmitted(f), dropped(d))}
	place(f, v, d, "the SYN was dropped")
	if n, line := f.delta("TCPRetransFail", f.Record.Socket.NetNS); n > 0 && f.here(d) {
		v.Evidence = append(v.Evidence, record.Evidence{Line: line, Text: fmt.Sprintf("TCPRetransFail moved by %d: what was sent again did not leave", n)})
	}
	v.Advice = "nft list ruleset and iptables-save in that network namespace; NetworkPolicy, Calico, Cilium; tc filter show"
	return v
}

func notSYNDropped(f *Facts) string {
	if f.DropsSeen && f.dropOf(event.SYN, false) == nil {
		return "this machine dropped no SYN of it"
	}
	return ""
}

func listenOverflow(f *Facts) *record.VerdictFields {
	if !f.silent() || !f.isLocal() || len(f.Drops) > 0 {
		return nil
	}
	n, line := f.delta("ListenOverflows", f.There)
	if n == 0 {
		return nil
	}
	v := &record.VerdictFields{
		Confidence: record.Likely,
		Text:       "the listener's queue is full, and the SYN was dropped: nobody accepts its connections fast enough",
		Evidence:   append(retransmitted(f), record.Evidence{Line: line, Text: fmt.Sprintf("ListenOverflows moved by %d in network namespace %d", n, f.There.Inode)}),
		Advice:     "a larger backlog in listen(), net.core.somaxconn in that network namespace, and a look at the accept loop",
	}
	if b := f.Backlog; b != nil {
		v.Evidence = append(v.Evidence, record.Evidence{Text: b.String()})
	}
	return v
}

// String is the queue as evidence.
func (b *Backlog) String() string {
	text := fmt.Sprintf("%d connections to port %d wait to be accepted", b.Length, b.Port)
	if b.Owner.Known() {
		text += fmt.Sprintf(" by %s (%d)", b.Owner.Comm, b.Owner.PID)
	}
	return text
}

func notListenOverflow(f *Facts) string {
	if f.There.Inode == 0 {
		return ""
	}
	if n, _ := f.delta("ListenOverflows", f.There); n == 0 {
		return "the peer is on this machine, and no queue of its overflowed"
	}
	return ""
}

// Silence.

// isUnanswered reports whether nothing came back, and nothing of this machine says
// why.
func isUnanswered(f *Facts) bool {
	return f.silent() && len(f.Drops) == 0 && len(f.Resets) == 0
}

// atPeer reports whether a packet was dropped at the peer's end, on this machine, by a
// program of the peer's (XDP): before its TCP, and to the connect as if beyond.
func (f *Facts) atPeer(d *track.Drop) bool {
	return d.NetNS == f.There && !f.here(d) &&
		(strings.Contains(d.Location, "xdp") || strings.HasPrefix(d.Location, "__netif_receive_skb") || strings.HasPrefix(d.Location, "netif_receive"))
}

// olderBy is by how much this SYN's TSval is older than the newest that the peer was
// sent, 0 where it is not.
func olderBy(f *Facts) int64 {
	c, newest := &f.Record.Connect, &f.Peer.Newest
	if !c.HasTSVal || newest.Ago == 0 {
		return 0
	}
	return max(-int64(int32(c.TSVal-newest.TSVal)), 0)
}

func perHostPAWS(f *Facts) *record.VerdictFields {
	older := olderBy(f)
	if !f.silent() || older <= 1 || len(f.Resets) > 0 ||
		slices.ContainsFunc(f.Drops, func(d track.Drop) bool { return !f.atPeer(&d) }) {
		return nil
	}
	p := &f.Peer.Predicted
	right, wrong := [2]int{p[0][0], p[1][1]}, p[0][1]+p[1][0]
	if p[1][0] > p[1][1] || wrong > right[0]+right[1] {
		return nil
	}
	v := &record.VerdictFields{
		Confidence: record.Possible,
		Text:       "the peer drops SYNs whose timestamp is older than the newest that it got from the same address: the pattern of tcp_tw_recycle behind NAT",
	}
	if right[0] >= 3 && right[1] >= 3 && wrong == 0 {
		v.Confidence = record.Likely
	}
	newest := &f.Peer.Newest
	v.Evidence = append(retransmitted(f),
		record.Evidence{Line: newest.Line, Text: fmt.Sprintf("%s before, network namespace %d (%s) sent it TSval %d; this SYN's is %d, older by %d",
			span(newest.Ago), newest.NetNS.Inode, newest.Local, newest.TSVal, f.Record.Connect.TSVal, older)},
		record.Evidence{Text: fmt.Sprintf("by the order of TSvals: to be dropped %d, of these unanswered %d; to be answered %d, of these answered %d",
			p[1][0]+p[1][1], p[1][1], p[0][0]+p[0][1], p[0][0])})
	if len(f.Drops) > 0 {
		v.Evidence = append(v.Evidence, dropped(&f.Drops[0]))
	}
	if f.Offsets == "per_connection" {
		v.Evidence = append(v.Evidence, record.Evidence{Text: "this kernel gives each connection timestamps of its own offset (per_connection): one pod alone can meet this"})
	}
	v.Advice = "at the peer: tcp_tw_recycle off (Linux 4.12 has none any more), or let the load balancer strip timestamps"
	if n := number(f, "tcp_timestamps"); n >= 0 {
		v.Advice += fmt.Sprintf("; here: net.ipv4.tcp_timestamps=0 in that network namespace (now %d), or pooled connections", n)
	} else {
		v.Advice += "; here: net.ipv4.tcp_timestamps=0 in that network namespace, or pooled connections"
	}
	v.NotVisible = []string{"whether the peer keeps timestamps per address"}
	return v
}

func notPerHostPAWS(f *Facts) string {
	c, newest := &f.Record.Connect, &f.Peer.Newest
	p := &f.Peer.Predicted
	switch {
	case f.Record.Kind != record.Connect:
		return ""
	case !c.HasTSVal:
		return "the SYN had no timestamp"
	case newest.Ago == 0:
		return "nothing was sent to this destination within the minute before"
	case olderBy(f) <= 1 && newest.NetNS == f.Record.Socket.NetNS && f.Offsets == "per_host":
		return "both are of one network namespace, where this kernel's timestamps only grow toward one peer"
	case olderBy(f) <= 1:
		return "the SYN's timestamp is newer than the newest that the peer was sent"
	case p[1][0] > p[1][1]:
		return fmt.Sprintf("of %d SYNs with older timestamps %d were answered", p[1][0]+p[1][1], p[1][0])
	}
	return ""
}

func cloudSNAT(f *Facts) *record.VerdictFields {
	p := &f.Peer
	if !isUnanswered(f) || p.SilentFrom < 2 || p.ElsewhereAnswered == 0 || p.Answered == 0 {
		return nil
	}
	return &record.VerdictFields{
		Confidence: record.Possible,
		Text:       "this one destination leaves several network namespaces unanswered, while others answer: source ports may be exhausted at the NAT gateway or load balancer",
		Evidence: append(retransmitted(f),
			record.Evidence{Text: fmt.Sprintf("%d network namespaces had no answer from it within a minute", p.SilentFrom)},
			record.Evidence{Text: fmt.Sprintf("it answered %s ago, and another destination %s ago", span(p.Answered), span(p.ElsewhereAnswered))},
			record.Evidence{Text: fmt.Sprintf("%.1f connects a second go to it; a NAT gateway has room for about 990 a second, per address and destination", p.Rate)}),
		Advice:     "Azure Monitor: SNAT Connection Count with state Failed (NAT gateway), Used and Allocated SNAT Ports (load balancer); more addresses or outbound ports, pooled connections",
		NotVisible: []string{"the cloud's NAT"},
	}
}

func notCloudSNAT(f *Facts) string {
	switch p := &f.Peer; {
	case p.SilentFrom < 2:
		return "only one network namespace had no answer"
	case p.ElsewhereAnswered == 0:
		return "no other destination is known to answer"
	case p.Answered == 0:
		return "the destination has answered nobody"
	}
	return ""
}

// cooldown is how long a NAT gateway keeps a port from the same destination: 65 s
// after a FIN, 16 s after a RST (Azure, nat-gateway-resource).
func cooldown(p *record.PreviousUse) time.Duration {
	if by := p.End.Close; by == record.ByResetSent || by == record.ByResetReceived {
		return 16 * time.Second
	}
	return 65 * time.Second
}

func portCooldown(f *Facts) *record.VerdictFields {
	p := f.Previous
	if !isUnanswered(f) || p == nil || p.After == 0 || p.After >= cooldown(&p.Previous) || p.Previous.End.Close == 0 {
		return nil
	}
	return &record.VerdictFields{
		Confidence: record.Possible,
		Text:       fmt.Sprintf("its local port went to the same destination %s before: a NAT or a firewall may still keep that port from it", span(p.After)),
		Evidence: append(retransmitted(f), record.Evidence{Text: fmt.Sprintf(
			"the earlier connection from port %d ended by %s", f.Record.Socket.Tuple.Local.Port(), p.Previous.End)}),
		Advice:     "leave the choice of the local port to the kernel, pool connections, wait longer before the port is used again",
		NotVisible: []string{"the port that NAT gave it"},
	}
}

func notPortCooldown(f *Facts) string {
	if f.Previous == nil {
		return "its local port was not used toward this destination within two minutes"
	}
	if f.Previous.After >= cooldown(&f.Previous.Previous) {
		return "its local port had been free for " + span(f.Previous.After)
	}
	return ""
}

func unanswered(f *Facts) *record.VerdictFields {
	if !isUnanswered(f) || f.Record.Connect.Retransmits == 0 {
		return nil
	}
	v := &record.VerdictFields{
		Confidence: record.Possible,
		Text:       "nothing came back",
		Evidence:   retransmitted(f),
		Advice:     "do other ports or hosts answer this pod, and does this one answer other pods? Then a firewall, an NSG, or a dead peer; tcpdump -ni any host " + f.Record.Socket.Tuple.Peer.Addr().String() + " on the node",
	}
	if f.DropsSeen {
		v.Confidence = record.Likely
		v.Text = "nothing came back, and this machine dropped nothing of it: the packets were lost beyond it, or the peer keeps silent"
	}
	if f.isLocal() {
		v.Text = "nothing came back, though the peer's address is on this machine"
	}
	if n, line := f.delta("TCPAbortOnTimeout", f.Record.Socket.NetNS); n > 0 {
		v.Evidence = append(v.Evidence, record.Evidence{Line: line, Text: fmt.Sprintf("TCPAbortOnTimeout moved by %d", n)})
	}
	return v
}

func notUnanswered(f *Facts) string {
	switch {
	case f.sent() != nil:
		return "something came back"
	case len(f.Drops) > 0:
		return "this machine dropped packets of it"
	}
	return ""
}

// number is a setting of the network namespace, negative where it is not known.
func number(f *Facts, name string) int64 {
	if f.Sysctls == nil {
		return -1
	}
	return f.Sysctls.Number(name)
}

func errnoName(errno syscall.Errno) string { return string(record.AppendErrno(nil, errno)) }
