/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * connect(), from the call's entry to its return. The state changes tell how
 * an attempt ends, but for two cases that only the return value tells: it
 * failed before SYN_SENT (no route, forbidden), or between SYN_SENT and the
 * SYN (no local port).
 *
 * The same two functions serve the system call and the functions beneath it.
 * Where one is called inside another the inner one settles the attempt: its
 * exit takes the entry out of `connecting`, and the outer one finds none.
 */
#ifndef __CONNECT_H__
#define __CONNECT_H__

static __always_inline void read_peer(struct attempt *a,
				      const struct sockaddr_in46 *address)
{
	if (address->family == AF_INET) {
		map_ipv4(a->peer, address->addr4);
	} else if (address->family == AF_INET6) {
		__builtin_memcpy(a->peer, address->addr6, 16);
	} else {
		a->family = 0;
		return;
	}
	a->family = address->family;
	a->pport = bpf_ntohs(address->port);
}

static __always_inline void begin_connect(struct sock *sk,
					  const struct sockaddr_in46 *address)
{
	u64 tid = bpf_get_current_pid_tgid();
	struct attempt a = {};
	struct event e = {};

	read_sock(&e, sk, false);
	a.sock = e.sock;
	a.cookie = e.cookie;
	a.netns = e.netns;
	a.netns_cookie = e.netns_cookie;
	a.lport = e.lport;
	__builtin_memcpy(a.local, e.local, 16);
	a.began = bpf_ktime_get_ns();
	read_peer(&a, address);
	bpf_map_update_elem(&connecting, &tid, &a, BPF_ANY);
}

/* The kernel's own copy of the address. */
static __always_inline void on_connect(struct sock *sk, const void *address)
{
	struct sockaddr_in46 copy = {};

	bpf_probe_read_kernel(&copy, sizeof(copy), address);
	begin_connect(sk, &copy);
}

/*
 * Calls that are no attempts pass here too, in what runs before the protocol's
 * own connect: for other protocols, to dissolve an association (AF_UNSPEC), or
 * to ask after an attempt that is under way or done.
 */
static __always_inline bool is_attempt(struct socket *socket, u16 family)
{
	struct sock *sk = BPF_CORE_READ(socket, sk);
	u16 sk_family = BPF_CORE_READ(sk, __sk_common.skc_family);

	return (sk_family == AF_INET || sk_family == AF_INET6) &&
	       is_tcp(sk, false) && family &&
	       BPF_CORE_READ(socket, state) == SS_UNCONNECTED &&
	       BPF_CORE_READ(sk, __sk_common.skc_state) == TCP_CLOSE;
}

static __always_inline void on_socket_connect(struct socket *socket,
					      const void *address)
{
	struct sockaddr_in46 copy = {};

	bpf_probe_read_kernel(&copy, sizeof(copy), address);
	if (is_attempt(socket, copy.family))
		begin_connect(BPF_CORE_READ(socket, sk), &copy);
}

static __always_inline void on_sys_connect(u32 fd, const void *address,
					   u32 size)
{
	struct socket *socket = socket_of(fd);
	struct sockaddr_in46 copy = {};

	if (!socket || size < sizeof(copy.family))
		return;
	if (size > sizeof(copy))
		size = sizeof(copy);
	if (!bpf_probe_read_user(&copy, size, address) &&
	    is_attempt(socket, copy.family))
		begin_connect(BPF_CORE_READ(socket, sk), &copy);
}

static __always_inline void on_connect_return(long ret)
{
	u64 tid = bpf_get_current_pid_tgid();
	struct attempt *a = bpf_map_lookup_elem(&connecting, &tid);
	struct event e = {};

	if (!a)
		return;
	if (ret < 0 && (a->failed || !a->started)) {
		e.time = bpf_ktime_get_ns();
		e.sock = a->sock;
		e.cookie = a->cookie;
		e.netns = a->netns;
		e.netns_cookie = a->netns_cookie;
		e.family = a->family;
		e.lport = a->lport;
		e.pport = a->pport;
		__builtin_memcpy(e.local, a->local, 16);
		__builtin_memcpy(e.peer, a->peer, 16);
		e.since = a->began;
		e.errno = -ret;
		e.started = a->started;
		read_owner(&e.owner);
		emit(&e, EVENT_CONNECT_RESULT, is_traced());
	}
	bpf_map_delete_elem(&connecting, &tid);
}

#endif /* __CONNECT_H__ */
