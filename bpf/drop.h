/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Packets of a handshake that the kernel throws away. It throws away many
 * others: those go at the first header that says so.
 */
#ifndef __DROP_H__
#define __DROP_H__

#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd

/* The state of a socket, or of what stands for one, by its common part. */
static __always_inline u8 state_of(const struct sock *sk)
{
	return sk ? BPF_CORE_READ(sk, __sk_common.skc_state) : 0;
}

static __always_inline bool has_sent_little(const struct sock *sk)
{
	return BPF_CORE_READ((const struct tcp_sock *)sk, segs_out) <= 2;
}

/* 0 where the packet is of no handshake. */
static __always_inline u8 packet_of(const struct tcphdr *tcp,
				    const struct event *e,
				    const struct sock *sender)
{
	if (tcp->flags & TCPHDR_RST)
		return PACKET_RST;
	if (tcp->flags & TCPHDR_SYN)
		return tcp->flags & TCPHDR_ACK ? PACKET_SYN_ACK : PACKET_SYN;
	if (tcp->flags & TCPHDR_FIN || !(tcp->flags & TCPHDR_ACK))
		return 0;
	/* The handshake's last looks like any other: its sockets know. */
	if (e->new == TCP_NEW_SYN_RECV || e->new == TCP_LISTEN ||
	    (e->old == TCP_ESTABLISHED && has_sent_little(sender)))
		return PACKET_ACK;
	return 0;
}

/* The sequence number of the SYN that it all began with. */
static __always_inline u32 isn_of(const struct tcphdr *tcp, u8 packet)
{
	switch (packet) {
	case PACKET_SYN:
		return bpf_ntohl(tcp->seq);
	case PACKET_ACK:
		return bpf_ntohl(tcp->seq) - 1;
	default: /* on its way to who sent the SYN */
		return bpf_ntohl(tcp->ack_seq) - 1;
	}
}

static __always_inline void turn_round(struct event *e)
{
	u8 address[16];
	u16 port = e->lport;

	__builtin_memcpy(address, e->local, 16);
	__builtin_memcpy(e->local, e->peer, 16);
	__builtin_memcpy(e->peer, address, 16);
	e->lport = e->pport;
	e->pport = port;
}

/*
 * skb->sk is its sender's socket until the packet leaves for another namespace
 * or the wire; on the way in it may be its receiver's, found early. The
 * running task is nobody: a packet through veth is received in its sender's
 * context.
 */
static __always_inline void on_drop(const struct sk_buff *skb, u64 location,
				    u32 reason, const struct sock *receiver)
{
	const struct sock *sk = BPF_CORE_READ(skb, sk);
	const struct net_device *dev;
	const struct sock *sender = NULL;
	struct tcphdr tcp = {};
	struct event e = {};
	bool is_ours = false;

	if (!read_headers(&e, &tcp, skb))
		return;
	if (sk) {
		if (BPF_CORE_READ(sk, __sk_common.skc_num) == e.pport)
			sender = sk;
		else
			receiver = sk;
	}
	e.old = state_of(sender);
	e.new = state_of(receiver);
	e.packet = packet_of(&tcp, &e, sender);
	if (!e.packet)
		return;
	e.isn = isn_of(&tcp, e.packet);
	if (sender)
		turn_round(&e);
	else
		sender = receiver;
	if (sender) {
		is_ours = read_owned(&e, sender);
		e.sock = (u64)sender;
		e.cookie =
			BPF_CORE_READ(sender, __sk_common.skc_cookie.counter);
		read_netns(&e, net_of(sender), false);
	} else {
		dev = BPF_CORE_READ(skb, dev);
		if (!dev)
			return;
		read_netns(&e, BPF_CORE_READ(dev, nd_net.net), false);
	}
	e.time = bpf_ktime_get_ns();
	e.location = location;
	e.reason = reason;
	emit(&e, EVENT_DROP, is_ours);
}

/*
 * Nearly all packets that are dropped on a machine that drops many go here. ip is
 * where the network header begins: one read.
 */
static __always_inline bool carries_tcp(__be16 protocol,
					const unsigned char *ip)
{
	u8 next = 0;

	if (protocol == bpf_htons(ETH_P_IP))
		bpf_probe_read_kernel(&next, 1, ip + 9);
	else if (protocol == bpf_htons(ETH_P_IPV6))
		bpf_probe_read_kernel(&next, 1, ip + 6);
	return next == IPPROTO_TCP;
}

static __always_inline bool in_tcp_rcv(u64 location)
{
	for (int i = 0; i < MAX_TCP_RCV; i++) {
		if (location >= tcp_rcv[i].start && location < tcp_rcv[i].end)
			return true;
	}
	return false;
}

/* A TCP packet is freed, and not since somebody has got it. */
static __always_inline void on_kfree_skb(const struct sk_buff *skb,
					 u64 location, u32 reason,
					 const struct sock *receiver)
{
	if (in_tcp_rcv(location))
		on_freed_by_tcp(skb);
	on_drop(skb, location, reason, receiver);
}

#endif /* __DROP_H__ */
