/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* State changes, retransmitted handshakes and resets. */
#ifndef __STATE_H__
#define __STATE_H__

static __always_inline struct sock_info *info_of(const struct sock *sk)
{
	u64 key = (u64)sk;

	return bpf_map_lookup_elem(&sockets, &key);
}

static __always_inline void remember(u64 sk, const struct sock_info *info,
				     u64 flags)
{
	long err = bpf_map_update_elem(&sockets, &sk, info, flags);

	if (err && err != -EEXIST)
		count_untracked();
}

static __always_inline void mark_started(void)
{
	u64 tid = bpf_get_current_pid_tgid();
	struct attempt *a = bpf_map_lookup_elem(&connecting, &tid);

	if (a)
		a->started = true;
}

/*
 * SYN_SENT -> CLOSE without an error of the socket: either its own connect()
 * failed, and the running task is still inside, or the program gave up.
 */
static __always_inline bool mark_failed(const struct event *e)
{
	u64 tid = bpf_get_current_pid_tgid();
	struct attempt *a = bpf_map_lookup_elem(&connecting, &tid);

	if (!a || a->sock != e->sock)
		return false;
	a->failed = true;
	a->cookie = e->cookie;
	a->lport = e->lport;
	__builtin_memcpy(a->local, e->local, 16);
	return true;
}

static __always_inline bool begins(int old, int new)
{
	return new == TCP_SYN_SENT || new == TCP_LISTEN ||
	       (old == TCP_LISTEN && new == TCP_SYN_RECV);
}

/* A new life begins: its owner is the running task, or the listener's. */
static __always_inline void begin(struct event *e, const struct sock *sk)
{
	struct sock_info info = { .since = e->time, .began = e->time };

	if (e->old == TCP_LISTEN) {
		u64 listener = cloned_from(sk);
		struct sock_info *of;

		of = bpf_map_lookup_elem(&sockets, &listener);
		if (of && of->visited == 1 << TCP_LISTEN) {
			info.owner = of->owner;
			info.traced = of->traced;
		}
		e->since = 0; /* in LISTEN was the listener, not this one */
	} else {
		read_owner(&info.owner);
		info.traced = is_traced();
		if (e->new == TCP_SYN_SENT) {
			mark_started();
			info.bound = e->lport;
			if (!e->lport)
				info.stale_port = inet_sport(sk);
		}
	}
	info.visited = 1 << e->new;
	remember(e->sock, &info, BPF_ANY);
}

/* tcp_connect_init() makes room for timestamps where they are on. */
static __always_inline bool has_timestamps(const struct tcp_sock *tp,
					   bool typed)
{
	return READ(typed, tp, tcp_header_len) >= 32;
}

/*
 * The first SYN's. tcp_connect() keeps its time in retrans_stamp, for as long
 * as the SYN is unanswered; once it is, the answer echoes the time of the SYN
 * that it answers: the first, unless one was sent again.
 */
static __always_inline void read_first_tsval(struct event *e,
					     const struct tcp_sock *tp,
					     const struct sock_info *info,
					     bool typed)
{
	u32 stamp = READ(typed, tp, retrans_stamp);

	if (!has_timestamps(tp, typed))
		return;
	if (!stamp && info)
		stamp = info->syn_stamp;
	if (!stamp)
		stamp = READ(typed, tp, rx_opt.rcv_tsecr);
	if (!stamp)
		return;
	e->has_tsval = true;
	e->tsval = READ(typed, tp, tsoffset) + stamp;
}

/* The last segment's, by the time at which it was due to leave. */
static __always_inline void
read_last_tsval(struct event *e, const struct tcp_sock *tp, bool typed)
{
	u64 unit = usec_timestamps(tp, typed) ? 1000 : 1000000;

	if (!has_timestamps(tp, typed))
		return;
	e->has_tsval = true;
	e->tsval = READ(typed, tp, tsoffset) +
		   (u32)(READ(typed, tp, tcp_wstamp_ns) / unit);
}

/* The figures that the socket holds at the moment a connection begins or ends. */
static __always_inline void read_figures(struct event *e, struct sock *sk,
					 const struct sock_info *info,
					 bool typed)
{
	const struct tcp_sock *tp = tcp_sock_of(sk, typed);

	if (!tp)
		return;
	if (e->old == TCP_SYN_SENT) {
		read_first_tsval(e, tp, info, typed);
		/* nothing but the SYN can have been acknowledged */
		e->isn = READ(typed, tp, snd_una) - (e->new == TCP_ESTABLISHED);
	} else if (e->new == TCP_ESTABLISHED) {
		/* a retransmitted SYN-ACK leaves only the last round's time */
		if (!READ(typed, tp, total_retrans))
			e->handshake_us = READ(typed, tp, srtt_us) >> 3;
	} else {
		read_last_tsval(e, tp, typed);
		e->bytes_sent = READ(typed, tp, bytes_sent) -
				READ(typed, tp, bytes_retrans);
		e->bytes_received = READ(typed, tp, bytes_received);
		if (e->bytes_received && got_fin(sk, typed))
			e->bytes_received--; /* the kernel counts the FIN */
	}
}

static __always_inline bool makes_line(const struct event *e)
{
	return e->new == TCP_SYN_SENT || has_figures(e);
}

static __always_inline void on_state(struct sock *sk, int old, int new,
				     bool typed)
{
	struct sock_info *info;
	struct tuple key = {};
	struct event e = {};
	bool is_ours = false;

	e.time = bpf_ktime_get_ns();
	e.old = old;
	e.new = new;
	read_sock(&e, sk, typed);

	if (begins(old, new))
		begin(&e, sk);
	else if (!e.lport)
		e.lport = inet_sport(sk); /* skc_num is 0 already at -> CLOSE */

	info = info_of(sk);
	if (info) {
		if (info->since != e.time)
			e.since = info->since;
		info->since = e.time;
		info->visited |= 1 << new;
		info->state = new;
		e.began = info->began;
		if (new == TCP_ESTABLISHED)
			info->began = e.time;
		e.visited = info->visited;
		e.retransmits = info->retransmits;
		e.owner = info->owner;
		e.bound = info->bound;
		is_ours = info->traced;
	}
	if (old == TCP_SYN_SENT || new == TCP_SYN_SENT)
		read_port_range(&e, net_of(sk), own_port_range(sk));
	if (new == TCP_CLOSE) {
		e.errno = READ(typed, sk, sk_err);
		e.shutdown = READ(typed, sk, sk_shutdown);
		if (old == TCP_SYN_SENT && !e.errno) {
			if (info && e.lport == info->stale_port)
				e.lport =
					BPF_CORE_READ(sk, __sk_common.skc_num);
			e.result_follows = mark_failed(&e);
		}
	}
	if (new == TCP_CLOSE && (old == TCP_FIN_WAIT2 || old == TCP_CLOSING)) {
		read_tuple(&key, &e, net_of(sk));
		e.lingers = hand_on(&e, &key, is_ours);
	}
	if (filter.only_connections && !makes_line(&e))
		return;
	if (has_figures(&e))
		read_figures(&e, sk, info, typed);
	emit(&e, EVENT_STATE_CHANGE, is_ours);
	if (e.lingers)
		let_go(&e, &key);
}

static __always_inline void on_state_first(struct sock *sk, int old, int new,
					   bool typed)
{
	u32 zero = 0;
	struct running *r = bpf_map_lookup_elem(&running, &zero);

	if (!r || !is_tcp(sk, typed))
		return;
	r->sock = 0; /* until this is told, nothing is the last */
	barrier();
	if (typed)
		make_cookie(sk);
	on_state(sk, old, new, typed);
	r->state = new;
	barrier();
	r->sock = (u64)sk;
}

/*
 * What was told last on this CPU is, nearly always, this very change. Where an
 * interrupt or another task came between, the socket itself knows: its changes
 * come one after the other.
 */
static __always_inline void on_state_nested(struct sock *sk, int old, int new,
					    bool typed)
{
	u32 zero = 0;
	struct running *r = bpf_map_lookup_elem(&running, &zero);
	struct sock_info *info;

	if (!r || (r->sock == (u64)sk && r->state == (u64) new))
		return;
	info = info_of(sk);
	if (info ? info->state == new : !begins(old, new))
		return;
	if (!is_tcp(sk, typed))
		return;
	/*
	 * state_* may be held up for long: what it told last is old from here on,
	 * and another socket may get that one's address.
	 */
	r->sock = 0;
	__sync_fetch_and_add(&r->taken, 1);
	if (typed)
		make_cookie(sk);
	on_state(sk, old, new, typed);
}

static __always_inline void on_destroy(const struct sock *sk)
{
	u64 key = (u64)sk;

	bpf_map_delete_elem(&sockets, &key);
}

static __always_inline void on_accept(struct sock *sk)
{
	struct sock_info fresh = {};
	struct sock_info *info;

	if (!is_tcp(sk, false))
		return;
	info = info_of(sk);
	if (!info) {
		/* older than the trace */
		u8 state = BPF_CORE_READ(sk, __sk_common.skc_state);

		fresh.visited = 1 << state;
		fresh.state = state;
		read_owner(&fresh.owner);
		fresh.traced = is_traced();
		remember((u64)sk, &fresh, BPF_ANY);
		return;
	}
	read_owner(&info->owner);
	info->traced = is_traced();
}

static __always_inline bool read_owned(struct event *e, const struct sock *sk)
{
	struct sock_info *info = info_of(sk);

	e->time = bpf_ktime_get_ns();
	if (!info)
		return false;
	e->owner = info->owner;
	e->retransmits = info->retransmits;
	return info->traced;
}

static __always_inline void on_retransmit(const struct sock *sk, int err)
{
	struct sock_info *info;
	struct event e = {};
	bool is_ours;

	if (err || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_SYN_SENT ||
	    !is_tcp(sk, false))
		return;
	info = info_of(sk);
	if (info) {
		if (info->retransmits < 255)
			info->retransmits++;
		info->syn_stamp = BPF_CORE_READ((const struct tcp_sock *)sk,
						retrans_stamp);
	}
	is_ours = read_owned(&e, sk);
	read_sock(&e, sk, false);
	emit(&e, EVENT_SYN_RETRANSMIT, is_ours);
}

static __always_inline void on_retransmit_synack(const struct sock *listener,
						 const struct request_sock *req)
{
	struct event e = {};
	bool is_ours = read_owned(&e, listener);

	read_common(&e, &req->__req_common, false);
	e.retransmits = BPF_CORE_READ(req, num_retrans) + 1;
	emit(&e, EVENT_SYN_ACK_RETRANSMIT, is_ours);
}

/* sk is NULL where the packet met none, skb where none made us send it. */
static __always_inline void
on_reset(const struct sock *sk, const struct sk_buff *skb, u8 kind, u32 reason)
{
	struct tcphdr tcp = {};
	struct event e = {};
	bool is_ours = false;
	u8 state = 0;

	e.reason = reason;
	if (sk)
		state = BPF_CORE_READ(sk, __sk_common.skc_state);
	if (state && state != TCP_TIME_WAIT && state != TCP_NEW_SYN_RECV &&
	    state != TCP_LISTEN) {
		if (!is_tcp(sk, false))
			return;
		is_ours = read_owned(&e, sk);
		read_sock(&e, sk, false);
		e.new = state;
		if (!e.lport)
			e.lport = inet_sport(sk);
	} else {
		e.time = bpf_ktime_get_ns();
		if (!skb || !read_packet(&e, &tcp, skb))
			return;
	}
	emit(&e, kind, is_ours);
}

#endif /* __STATE_H__ */
