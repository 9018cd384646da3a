/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* What can be read from a socket, a request or a packet, into an event. */
#ifndef __SOCK_H__
#define __SOCK_H__

#define AF_INET 2
#define AF_INET6 10
#define EEXIST 17

static __always_inline void map_ipv4(u8 to[16], __be32 address)
{
	__builtin_memset(to, 0, 10);
	to[10] = to[11] = 0xff;
	__builtin_memcpy(to + 12, &address, 4);
}

/* MPTCP's own socket runs the same state changes as its TCP subflows. */
static __always_inline bool is_tcp(const struct sock *sk, bool typed)
{
	return READ(typed, sk, sk_protocol) == IPPROTO_TCP;
}

static __always_inline struct net *net_of(const struct sock *sk)
{
	return BPF_CORE_READ(sk, __sk_common.skc_net.net);
}

static __always_inline void read_netns(struct event *e, const struct net *net,
				       bool typed)
{
	e->netns = READ(typed, net, ns.inum);
	e->netns_cookie = netns_cookie(net, typed);
}

/* A field of a struct that was read as a whole, wherever this kernel has it. */
#define FIELD(raw, type, field)                                                \
	(*(const typeof(((type *)0)->field) *)((raw) + bpf_core_field_offset(  \
							       type, field)))

/* What sockets, requests and TIME_WAIT sockets have in common. */
static __always_inline void
read_common(struct event *e, const struct sock_common *skc, bool typed)
{
	/* as far as skc_family from 5.10 to 7.2; further would not load */
	u8 head[24] __attribute__((aligned(8))) = {};
	__be32 local, peer;
	__be16 pport;

	if (typed) {
		e->family = skc->skc_family;
		local = skc->skc_rcv_saddr;
		peer = skc->skc_daddr;
		e->lport = skc->skc_num;
		pport = skc->skc_dport;
	} else {
		bpf_probe_read_kernel(head, sizeof(head), skc);
		e->family = FIELD(head, struct sock_common, skc_family);
		local = FIELD(head, struct sock_common, skc_rcv_saddr);
		peer = FIELD(head, struct sock_common, skc_daddr);
		e->lport = FIELD(head, struct sock_common, skc_num);
		pport = FIELD(head, struct sock_common, skc_dport);
	}
	e->pport = bpf_ntohs(pport);
	if (e->family == AF_INET6) {
		BPF_CORE_READ_INTO(&e->local, skc,
				   skc_v6_rcv_saddr.in6_u.u6_addr8);
		BPF_CORE_READ_INTO(&e->peer, skc, skc_v6_daddr.in6_u.u6_addr8);
	} else {
		map_ipv4(e->local, local);
		map_ipv4(e->peer, peer);
	}
	e->cookie = READ(typed, skc, skc_cookie.counter);
	read_netns(e, READ(typed, skc, skc_net.net), typed);
}

/*
 * The ports that connect() may choose from, as inet_sk_get_local_port_range()
 * has it: the namespace's, narrowed by the socket's own where that lies in it.
 */
static __always_inline void read_port_range(struct event *e,
					    const struct net *net, u32 own)
{
	u32 range = netns_port_range(net);
	u16 low = range, high = range >> 16;
	u16 own_low = own, own_high = own >> 16;

	e->lowest_port = low;
	e->highest_port = high;
	if (own_low >= low && own_low <= high)
		e->lowest_port = own_low;
	if (own_high >= low && own_high <= high)
		e->highest_port = own_high;
}

static __always_inline u16 inet_sport(const struct sock *sk)
{
	return bpf_ntohs(
		BPF_CORE_READ((const struct inet_sock *)sk, inet_sport));
}

/* Only tcp_fin() sets SOCK_DONE. */
static __always_inline bool got_fin(const struct sock *sk, bool typed)
{
	return READ(typed, sk, __sk_common.skc_flags) & (1 << SOCK_DONE);
}

/* NULL where it is not one of TCP's. */
static __always_inline const struct tcp_sock *tcp_sock_of(struct sock *sk,
							  bool typed)
{
	return typed ? bpf_skc_to_tcp_sock(sk) : (const struct tcp_sock *)sk;
}

static __always_inline void read_sock(struct event *e, const struct sock *sk,
				      bool typed)
{
	e->sock = (u64)sk;
	read_common(e, &sk->__sk_common, typed);
}

/*
 * A packet's ends, as if it had come in: its destination is our end. Only the
 * network header is known to lie in the linear part, with its offset set.
 */
static __always_inline bool read_headers(struct event *e, struct tcphdr *tcp,
					 const struct sk_buff *skb)
{
	const unsigned char *ip =
		BPF_CORE_READ(skb, head) + BPF_CORE_READ(skb, network_header);
	u8 version;
	int header;

	if (bpf_probe_read_kernel(&version, 1, ip))
		return false;
	if (version >> 4 == 4) {
		struct iphdr ip4;

		if (bpf_probe_read_kernel(&ip4, sizeof(ip4), ip) ||
		    ip4.protocol != IPPROTO_TCP)
			return false;
		e->family = AF_INET;
		map_ipv4(e->local, ip4.daddr);
		map_ipv4(e->peer, ip4.saddr);
		header = (ip4.version_ihl & 0xf) * 4;
	} else {
		struct ipv6hdr ip6;

		if (bpf_probe_read_kernel(&ip6, sizeof(ip6), ip) ||
		    ip6.nexthdr != IPPROTO_TCP)
			return false;
		e->family = AF_INET6;
		__builtin_memcpy(e->local, ip6.daddr, 16);
		__builtin_memcpy(e->peer, ip6.saddr, 16);
		header = sizeof(ip6);
	}
	if (bpf_probe_read_kernel(tcp, sizeof(*tcp), ip + header))
		return false;
	e->lport = bpf_ntohs(tcp->dest);
	e->pport = bpf_ntohs(tcp->source);
	return true;
}

/* A packet that came in. */
static __always_inline bool read_packet(struct event *e, struct tcphdr *tcp,
					const struct sk_buff *skb)
{
	const struct net_device *dev = BPF_CORE_READ(skb, dev);

	if (!dev || !read_headers(e, tcp, skb))
		return false;
	read_netns(e, BPF_CORE_READ(dev, nd_net.net), false);
	return true;
}

/* The running task's cgroup, by its id. */
static __always_inline u64 current_cgroup(void)
{
	struct task_struct *task;
	struct css_set *set;
	struct cgroup_subsys_state *state;

	if (!kernel.cgroup_hierarchy)
		return bpf_get_current_cgroup_id();
	task = (struct task_struct *)bpf_get_current_task();
	set = BPF_CORE_READ(task, cgroups);
	if (bpf_probe_read_kernel(&state, sizeof(state),
				  &set->subsys[0] + kernel.cgroup_subsys))
		return 0;
	return BPF_CORE_READ(state, cgroup, kn, id);
}

/* Right only in task context, in a call of the owner's. */
static __always_inline void read_owner(struct owner *owner)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();

	owner->cgroup = current_cgroup();
	owner->pid = pid_tgid >> 32;
	owner->tid = pid_tgid;
	owner->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(owner->comm, sizeof(owner->comm));
}

static __always_inline bool is_traced(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;

	return filter.by_descent && bpf_map_lookup_elem(&traced, &pid);
}

/*
 * The listener that a socket was just cloned from. The clone still holds the
 * parent's tsq_node, a list head that in a listener points to itself;
 * tcp_create_openreq_child() makes it the child's own a little later (5.10 to
 * 7.2). What is found counts only if `sockets` knows it.
 */
static __always_inline u64 cloned_from(const struct sock *sk)
{
	const struct tcp_sock *tp = (const struct tcp_sock *)sk;

	return (u64)BPF_CORE_READ(tp, tsq_node.next) -
	       bpf_core_field_offset(struct tcp_sock, tsq_node);
}

/* The running task's socket behind a file descriptor, NULL if it is none. */
static __always_inline struct socket *socket_of(u32 fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct fdtable *table = BPF_CORE_READ(task, files, fdt);
	struct file **files = BPF_CORE_READ(table, fd);
	struct file *file;

	if (fd >= BPF_CORE_READ(table, max_fds))
		return NULL;
	if (bpf_probe_read_kernel(&file, sizeof(file), files + fd) || !file)
		return NULL;
	if ((BPF_CORE_READ(file, f_inode, i_mode) & 0170000) != 0140000)
		return NULL;
	return BPF_CORE_READ(file, private_data);
}

#endif /* __SOCK_H__ */
