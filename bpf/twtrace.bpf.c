/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The table of hooks. Each entry hands its arguments to the one function that
 * knows what they mean; the variants of a hook differ only in how they get
 * there. internal/probe picks one variant of each and drops the others.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_tracing.h>

#include "event.h"
#include "maps.h"
#include "compat.h"
#include "sock.h"
#include "emit.h"
#include "connect.h"
#include "time_wait.h"
#include "state.h"
#include "drop.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* State changes. */

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(state_btf, struct sock *sk, int old, int new)
{
	on_state_first(sk, old, new, true);
	return 0;
}

SEC("tp_btf/inet_sock_set_state")
int BPF_PROG(nested_btf, struct sock *sk, int old, int new)
{
	on_state_nested(sk, old, new, true);
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(state_raw, struct sock *sk, int old, int new)
{
	on_state_first(sk, old, new, false);
	return 0;
}

SEC("raw_tp/inet_sock_set_state")
int BPF_PROG(nested_raw, struct sock *sk, int old, int new)
{
	on_state_nested(sk, old, new, false);
	return 0;
}

SEC("tp_btf/tcp_destroy_sock")
int BPF_PROG(destroy_btf, struct sock *sk)
{
	on_destroy(sk);
	return 0;
}

SEC("raw_tp/tcp_destroy_sock")
int BPF_PROG(destroy_raw, struct sock *sk)
{
	on_destroy(sk);
	return 0;
}

/* Handshake packets sent again. */

SEC("tp_btf/tcp_retransmit_skb")
int BPF_PROG(retransmit_btf, struct sock *sk)
{
	on_retransmit(sk, RETRANSMIT_ERR(ctx));
	return 0;
}

SEC("raw_tp/tcp_retransmit_skb")
int BPF_PROG(retransmit_raw, struct sock *sk)
{
	on_retransmit(sk, RETRANSMIT_ERR(ctx));
	return 0;
}

SEC("tp_btf/tcp_retransmit_synack")
int BPF_PROG(synack_btf, struct sock *sk, struct request_sock *req)
{
	on_retransmit_synack(sk, req);
	return 0;
}

SEC("raw_tp/tcp_retransmit_synack")
int BPF_PROG(synack_raw, struct sock *sk, struct request_sock *req)
{
	on_retransmit_synack(sk, req);
	return 0;
}

/* Resets. */

SEC("tp_btf/tcp_send_reset")
int BPF_PROG(rst_sent_btf, struct sock *sk, struct sk_buff *skb)
{
	on_reset(sk, skb, EVENT_RESET_SENT, RESET_REASON(ctx));
	return 0;
}

SEC("raw_tp/tcp_send_reset")
int BPF_PROG(rst_sent_raw, struct sock *sk, struct sk_buff *skb)
{
	on_reset(sk, skb, EVENT_RESET_SENT, RESET_REASON(ctx));
	return 0;
}

SEC("tp_btf/tcp_receive_reset")
int BPF_PROG(rst_received_btf, struct sock *sk)
{
	on_reset(sk, NULL, EVENT_RESET_RECEIVED, 0);
	return 0;
}

SEC("raw_tp/tcp_receive_reset")
int BPF_PROG(rst_received_raw, struct sock *sk)
{
	on_reset(sk, NULL, EVENT_RESET_RECEIVED, 0);
	return 0;
}

/*
 * TIME_WAIT's timers. Nearly all timers are others': those go at the first
 * comparison.
 */

SEC("tp_btf/timer_start")
int BPF_PROG(timer_start_btf, struct timer_list *timer)
{
	if ((u64)timer->function == kernel.tw_timer_handler)
		on_timer_start(timer);
	return 0;
}

SEC("raw_tp/timer_start")
int BPF_PROG(timer_start_raw, struct timer_list *timer)
{
	if ((u64)BPF_CORE_READ(timer, function) == kernel.tw_timer_handler)
		on_timer_start(timer);
	return 0;
}

SEC("tp_btf/timer_cancel")
int BPF_PROG(timer_cancel_btf, struct timer_list *timer)
{
	if ((u64)timer->function == kernel.tw_timer_handler)
		on_timer_cancel(ctx, timer);
	return 0;
}

SEC("raw_tp/timer_cancel")
int BPF_PROG(timer_cancel_raw, struct timer_list *timer)
{
	if ((u64)BPF_CORE_READ(timer, function) == kernel.tw_timer_handler)
		on_timer_cancel(ctx, timer);
	return 0;
}

SEC("tp_btf/kfree_skb")
int BPF_PROG(kfree_skb_btf, struct sk_buff *skb, void *location)
{
	if (carries_tcp(skb->protocol, skb->head + skb->network_header))
		on_kfree_skb(skb, (u64)location, DROP_REASON(ctx),
			     DROP_RECEIVER(ctx));
	return 0;
}

SEC("raw_tp/kfree_skb")
int BPF_PROG(kfree_skb_raw, struct sk_buff *skb, void *location)
{
	if (carries_tcp(BPF_CORE_READ(skb, protocol),
			BPF_CORE_READ(skb, head) +
				BPF_CORE_READ(skb, network_header)))
		on_kfree_skb(skb, (u64)location, DROP_REASON(ctx),
			     DROP_RECEIVER(ctx));
	return 0;
}

/* connect(): the protocols' own functions, or else the system call. */

#define CONNECT(protocol)                                                      \
	SEC("fentry/tcp_" #protocol "_connect")                                \
	int BPF_PROG(protocol##_connect_fentry, struct sock *sk,               \
		     void *address)                                            \
	{                                                                      \
		make_cookie(sk);                                               \
		on_connect(sk, address);                                       \
		return 0;                                                      \
	}                                                                      \
	SEC("fexit/tcp_" #protocol "_connect")                                 \
	int BPF_PROG(protocol##_connect_fexit, struct sock *sk, void *address, \
		     int size, int ret)                                        \
	{                                                                      \
		on_connect_return(ret);                                        \
		return 0;                                                      \
	}                                                                      \
	SEC("kprobe/tcp_" #protocol "_connect")                                \
	int BPF_KPROBE(protocol##_connect_kprobe, struct sock *sk,             \
		       void *address)                                          \
	{                                                                      \
		on_connect(sk, address);                                       \
		return 0;                                                      \
	}                                                                      \
	SEC("kretprobe/tcp_" #protocol "_connect")                             \
	int BPF_KRETPROBE(protocol##_connect_kretprobe, int ret)               \
	{                                                                      \
		on_connect_return(ret);                                        \
		return 0;                                                      \
	}

CONNECT(v4)
CONNECT(v6)

/* A cgroup's BPF program can forbid a connect before the protocol sees it, */

#define PRE_CONNECT(protocol)                                                  \
	SEC("fexit/tcp_" #protocol "_pre_connect")                             \
	int BPF_PROG(protocol##_pre_fexit, struct sock *sk, void *address,     \
		     int size, int ret)                                        \
	{                                                                      \
		if (ret) {                                                     \
			on_connect(sk, address);                               \
			on_connect_return(ret);                                \
		}                                                              \
		return 0;                                                      \
	}                                                                      \
	SEC("kprobe/tcp_" #protocol "_pre_connect")                            \
	int BPF_KPROBE(protocol##_pre_kprobe, struct sock *sk, void *address)  \
	{                                                                      \
		on_connect(sk, address);                                       \
		return 0;                                                      \
	}                                                                      \
	SEC("kretprobe/tcp_" #protocol "_pre_connect")                         \
	int BPF_KRETPROBE(protocol##_pre_kretprobe, int ret)                   \
	{                                                                      \
		on_connect_return(ret);                                        \
		return 0;                                                      \
	}

PRE_CONNECT(v4)
PRE_CONNECT(v6)

/* and so can a security module. */

SEC("fexit/security_socket_connect")
int BPF_PROG(security_fexit, struct socket *socket, void *address, int size,
	     int ret)
{
	if (ret) {
		on_socket_connect(socket, address);
		on_connect_return(ret);
	}
	return 0;
}

SEC("kprobe/security_socket_connect")
int BPF_KPROBE(security_kprobe, struct socket *socket, void *address)
{
	on_socket_connect(socket, address);
	return 0;
}

SEC("kretprobe/security_socket_connect")
int BPF_KRETPROBE(security_kretprobe, int ret)
{
	on_connect_return(ret);
	return 0;
}

SEC("tracepoint/syscalls/sys_enter_connect")
int sys_enter_connect(struct trace_event_raw_sys_enter *ctx)
{
	on_sys_connect(ctx->args[0], (void *)ctx->args[1], ctx->args[2]);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_connect")
int sys_exit_connect(struct trace_event_raw_sys_exit *ctx)
{
	on_connect_return(ctx->ret);
	return 0;
}

/*
 * accept(): where the connection gets its file, in the acceptor's context, or
 * else the system calls. A return probe would have to be held through the wait,
 * and the kernel has few of them.
 */

SEC("fentry/security_sock_graft")
int BPF_PROG(accept_fentry, struct sock *sk)
{
	on_accept(sk);
	return 0;
}

SEC("kprobe/security_sock_graft")
int BPF_KPROBE(accept_kprobe, struct sock *sk)
{
	on_accept(sk);
	return 0;
}

static __always_inline void on_sys_accept(long fd)
{
	struct socket *socket = fd < 0 ? NULL : socket_of(fd);

	if (socket)
		on_accept(BPF_CORE_READ(socket, sk));
}

SEC("tracepoint/syscalls/sys_exit_accept")
int sys_exit_accept(struct trace_event_raw_sys_exit *ctx)
{
	on_sys_accept(ctx->ret);
	return 0;
}

SEC("tracepoint/syscalls/sys_exit_accept4")
int sys_exit_accept4(struct trace_event_raw_sys_exit *ctx)
{
	on_sys_accept(ctx->ret);
	return 0;
}

/*
 * The command and its children, only where there is a command. It is a child of
 * twtrace's own, whatever pid namespace that is in.
 */

static __always_inline void trace_self(void)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u8 yes = 1;

	if (filter.by_descent)
		bpf_map_update_elem(&traced, &pid, &yes, BPF_ANY);
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(task_fork, struct task_struct *parent, struct task_struct *child)
{
	u32 from = parent->tgid, to = child->tgid;
	u8 yes = 1;

	if (from != to && bpf_map_lookup_elem(&traced, &from))
		bpf_map_update_elem(&traced, &to, &yes, BPF_ANY);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(task_exit, struct task_struct *task)
{
	u32 pid = task->tgid;

	/* the last thread has gone */
	if (!task->signal->live.counter)
		bpf_map_delete_elem(&traced, &pid);
	return 0;
}

/* A cgroup is made. A path that does not fit is none. */
static __always_inline void on_cgroup_mkdir(const struct cgroup *cgroup,
					    const char *path)
{
	u32 zero = 0;
	struct cgroup_path *room = bpf_map_lookup_elem(&new_path, &zero);
	u64 id = BPF_CORE_READ(cgroup, kn, id);
	long size;

	if (!room || BPF_CORE_READ(cgroup, root, hierarchy_id) !=
			     (int)kernel.cgroup_hierarchy)
		return;
	size = bpf_probe_read_kernel_str(room->path, sizeof(room->path), path);
	if (size > 0 && size < (long)sizeof(room->path))
		bpf_map_update_elem(&cgroup_paths, &id, room, BPF_ANY);
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(cgroup_btf, struct cgroup *cgroup, const char *path)
{
	on_cgroup_mkdir(cgroup, path);
	return 0;
}

SEC("raw_tp/cgroup_mkdir")
int BPF_PROG(cgroup_raw, struct cgroup *cgroup, const char *path)
{
	on_cgroup_mkdir(cgroup, path);
	return 0;
}

/*
 * Sockets older than the trace, one network namespace a walk. What the other
 * hooks saw in the meantime stands. The walk's reader gets a struct event each.
 */
SEC("iter/tcp")
int existing(struct bpf_iter__tcp *ctx)
{
	const struct sock_common *skc = ctx->sk_common;
	struct sock_info info = {};
	struct owner *holder;
	struct socket *socket;
	struct event e = {};
	struct sock *sk;
	u64 inode;
	u8 state;

	if (!skc) { /* the end of the walk */
		trace_self();
		return 0;
	}
	state = BPF_CORE_READ(skc, skc_state);
	if (state == TCP_NEW_SYN_RECV)
		return 0;
	e.kind = EVENT_EXISTING;
	if (state == TCP_TIME_WAIT) {
		on_existing(&e, (struct inet_timewait_sock *)skc);
		if (e.new)
			bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
		return 0;
	}
	sk = (struct sock *)skc;
	socket = BPF_CORE_READ(sk, sk_socket);
	if (socket) {
		inode = BPF_CORE_READ((struct socket_alloc *)socket,
				      vfs_inode.i_ino);
		holder = bpf_map_lookup_elem(&holders, &inode);
		if (holder) {
			info.owner = *holder;
			info.traced =
				filter.by_descent &&
				bpf_map_lookup_elem(&traced, &holder->pid);
		}
	}
	info.visited = 1 << state;
	info.state = state;
	remember((u64)sk, &info, BPF_NOEXIST);
	e.time = bpf_ktime_get_ns();
	read_sock(&e, sk, false);
	read_port_range(&e, net_of(sk), own_port_range(sk));
	e.owner = info.owner;
	e.new = state;
	if (wanted(&e, info.traced))
		bpf_seq_write(ctx->meta->seq, &e, sizeof(e));
	return 0;
}
