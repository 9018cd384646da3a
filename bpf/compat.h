/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What differs between kernels, each thing once: since when, by which commit,
 * and the one accessor that hides it. Where BTF can tell, CO-RE decides; where
 * only a trial can, internal/probe tries and sets `kernel`.
 */
#ifndef __COMPAT_H__
#define __COMPAT_H__

/*
 * A field of a struct of the kernel. Where the verifier knows the type of the
 * pointer (typed), it is one load; else a call of a helper, which costs as much
 * as thirty.
 */
#define READ(typed, pointer, field)                                            \
	((typed) ? (pointer)->field : BPF_CORE_READ(pointer, field))

/*
 * net->net_cookie: an atomic64_t made on demand up to 5.11, a u64 that is
 * always set from 5.12 (3d368ab87cf6 "net: initialize net->net_cookie at
 * netns setup").
 */
struct net___v5_12 {
	u64 net_cookie;
} __attribute__((preserve_access_index));

static __always_inline u64 netns_cookie(const struct net *net, bool typed)
{
	const struct net___v5_12 *new = (const void *)net;

	if (!kernel.netns_cookie)
		return 0;
	return READ(typed, new, net_cookie);
}

/*
 * bpf_get_socket_cookie in tracing programs: 5.12 (c5dbb89fc2ac "bpf: Expose
 * bpf_get_socket_cookie to tracing programs"). Asking makes the kernel give
 * the socket a cookie, which it keeps into its TIME_WAIT. Before, and in raw
 * tracepoints and kprobes, the cookie is read where somebody else asked.
 */
static __always_inline void make_cookie(struct sock *sk)
{
	if (kernel.cookie_helper)
		bpf_get_socket_cookie(sk);
}

/*
 * tcp_retransmit_skb(sk, skb) fires up to 6.16 only where the segment left;
 * from 6.17 it has a third argument, err, and fires also where it did not
 * (ad892e912b84 "tcp: trace retransmit failures in tcp_retransmit_skb").
 */
#define RETRANSMIT_ERR(ctx) (kernel.retransmit_err ? (int)(ctx)[2] : 0)

/*
 * tcp_send_reset(sk, skb) up to 6.9, (sk, skb, reason) from 6.10 (b533fb9cf4f7
 * "rstreason: make it work in trace world").
 */
#define RESET_REASON(ctx) (kernel.reset_reason ? (u32)(ctx)[2] : 0)

/*
 * kfree_skb(skb, location) up to 5.16; from 5.17 with a reason (c504e5c2f964
 * "net: skb: introduce kfree_skb_reason()"), from 6.11 with the socket that the
 * packet was for (c53795d48ee8 "net: add rx_sk to trace_kfree_skb").
 */
#define DROP_REASON(ctx) (kernel.drop_reason ? (u32)(ctx)[2] : 0)
#define DROP_RECEIVER(ctx)                                                     \
	(kernel.drop_receiver ? (const struct sock *)(ctx)[3] : NULL)

/*
 * Programs at a tracepoint could not be preempted up to 6.18; they can on 7.2
 * ("tracing: Guard __DECLARE_TRACE() use of __DO_TRACE_CALL() with SRCU-fast").
 * There internal/probe attaches nested_* more than once, by the kernel's release.
 */

/* usec timestamps: 6.7 (614e8316aa4c "tcp: add support for usec resolution in
 * TCP TS values"), per route.
 */
struct tcp_sock___v6_7 {
	u8 tcp_usec_ts : 1;
} __attribute__((preserve_access_index));

static __always_inline bool usec_timestamps(const struct tcp_sock *tp,
					    bool typed)
{
	const struct tcp_sock___v6_7 *new = (const void *)tp;

	if (!bpf_core_field_exists(new->tcp_usec_ts))
		return false;
	return typed ? BPF_CORE_READ_BITFIELD(new, tcp_usec_ts)
		     : BPF_CORE_READ_BITFIELD_PROBED(new, tcp_usec_ts);
}

/*
 * net->ipv4.ip_local_ports.range and a socket's own range within it
 * (IP_LOCAL_PORT_RANGE, from 6.3: 91d0b78c5177): an array of two ints and a
 * struct of two u16 up to 6.7; both one u32 with the upper end in its upper
 * half from 6.8 (d9f28735af87 "Use READ/WRITE_ONCE() for IP local_port_range").
 * On a little-endian machine the struct's bytes are that u32, too.
 */
struct local_ports___v5_10 {
	int range[2];
} __attribute__((preserve_access_index));

struct local_ports___v6_8 {
	u32 range;
} __attribute__((preserve_access_index));

static __always_inline u32 netns_port_range(const struct net *net)
{
	const void *ports = &net->ipv4.ip_local_ports;
	const struct local_ports___v5_10 *old = ports;
	const struct local_ports___v6_8 *new = ports;
	int range[2] = {};

	if (bpf_core_field_exists(new->range))
		return BPF_CORE_READ(new, range);
	if (!bpf_core_field_exists(old->range))
		return 0;
	BPF_CORE_READ_INTO(&range, old, range);
	return (u32)range[1] << 16 | range[0];
}

struct inet_sock___v6_3 {
	struct {
		u16 lo;
		u16 hi;
	} local_port_range;
} __attribute__((preserve_access_index));

struct inet_sock___v6_8 {
	u32 local_port_range;
} __attribute__((preserve_access_index));

/* 0 where the socket has none. */
static __always_inline u32 own_port_range(const struct sock *sk)
{
	const struct inet_sock___v6_3 *old = (const void *)sk;
	const struct inet_sock___v6_8 *new = (const void *)sk;

	if (bpf_core_field_exists(new->local_port_range))
		return BPF_CORE_READ(new, local_port_range);
	if (bpf_core_field_exists(old->local_port_range.lo))
		return (u32)BPF_CORE_READ(old, local_port_range.hi) << 16 |
		       BPF_CORE_READ(old, local_port_range.lo);
	return 0;
}

#endif /* __COMPAT_H__ */
