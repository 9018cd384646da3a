/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The life of a TIME_WAIT, by its timer. inet_sock_set_state never shows it:
 * what is left of a connection is a small socket of its own kind, and all that
 * happens to that sets or cancels its timer. Who has it cancelled stands on the
 * stack. This needs nothing but tracepoints, and is the same on every kernel.
 *
 * One thing does not show there: a small socket that begins in FIN_WAIT2 goes on
 * to TIME_WAIT when the peer's FIN arrives, and where the timer's slot in the
 * kernel's wheel stays the same, it is not touched. But that FIN is a packet that
 * the kernel frees as unwanted: kfree_skb tells.
 */
#ifndef __TIME_WAIT_H__
#define __TIME_WAIT_H__

static __always_inline struct inet_timewait_sock *
tw_of(const struct timer_list *timer)
{
	return (void *)timer -
	       bpf_core_field_offset(struct inet_timewait_sock, tw_timer);
}

static __always_inline u8 substate(const struct inet_timewait_sock *tw)
{
	return BPF_CORE_READ(tw, tw_substate);
}

static __always_inline void read_tuple(struct tuple *key, const struct event *e,
				       const struct net *net)
{
	key->net = (u64)net;
	__builtin_memcpy(key->local, e->local, 16);
	__builtin_memcpy(key->peer, e->peer, 16);
	key->lport = e->lport;
	key->pport = e->pport;
}

static __always_inline void read_time_wait(struct event *e, struct tuple *key,
					   const struct inet_timewait_sock *tw)
{
	e->time = bpf_ktime_get_ns();
	e->sock = (u64)tw;
	read_common(e, &tw->__tw_common, false);
	if (key)
		read_tuple(key, e, BPF_CORE_READ(tw, __tw_common.skc_net.net));
}

static __always_inline void read_known(struct event *e,
				       const struct time_wait *known)
{
	e->owner = known->owner;
	e->active = known->active;
}

/*
 * TIME_WAIT begins. Two CPUs may find out at once: who gets the entry into the
 * table tells it.
 */
static __always_inline void enter(struct event *e, const struct tuple *key,
				  struct time_wait *known)
{
	long err;

	known->entered = e->time;
	err = bpf_map_update_elem(&time_waits, key, known, BPF_NOEXIST);
	if (err == -EEXIST)
		return;
	if (err)
		count_untracked();
	e->since = known->since;
	e->old = known->from;
	e->new = TCP_TIME_WAIT;
	read_known(e, known);
	emit_decided(e, EVENT_TIME_WAIT_ENTER, known->wanted);
	bpf_map_delete_elem(&fin_wait2s, key);
}

/* The timer is set: a small socket is new, or its time begins again. */
static __always_inline void on_timer_start(const struct timer_list *timer)
{
	struct inet_timewait_sock *tw = tw_of(timer);
	struct time_wait *known;
	struct time_wait born = {};
	struct tuple key = {};
	struct event e = {};

	read_time_wait(&e, &key, tw);
	known = bpf_map_lookup_elem(&time_waits, &key);
	if (known && known->tw == (u64)tw) {
		e.since = known->entered;
		read_known(&e, known);
		emit_decided(&e, EVENT_TIME_WAIT_REARM, known->wanted);
		return;
	}
	if (known) /* of one whose end the walk at the start came too late for */
		bpf_map_delete_elem(&time_waits, &key);
	known = bpf_map_lookup_elem(&fin_wait2s, &key);
	if (known && known->tw == (u64)tw) {
		if (known->owned && substate(tw) == TCP_TIME_WAIT)
			enter(&e, &key, known);
		return;
	}
	born.tw = (u64)tw;
	born.netns = e.netns;
	born.netns_cookie = e.netns_cookie;
	born.from = TCP_FIN_WAIT2;
	born.wanted = wanted(&e, false);
	if (bpf_map_update_elem(&fin_wait2s, &key, &born, BPF_ANY))
		count_untracked();
}

/*
 * The socket that it is left of goes to CLOSE, right after it was made and on
 * the same CPU, and knows its owner.
 */
static __always_inline bool hand_on(const struct event *e,
				    const struct tuple *key, bool is_ours)
{
	struct time_wait *known = bpf_map_lookup_elem(&fin_wait2s, key);

	if (!known)
		return false;
	known->from = e->old;
	known->since = e->since;
	known->owner = e->owner;
	known->active = e->visited & 1 << TCP_SYN_SENT;
	known->wanted = wanted(e, is_ours);
	return true;
}

/*
 * After that is told. A FIN on another CPU either finds this set, or what it did
 * is found here: the helpers' locks lie between.
 */
static __always_inline void let_go(struct event *e, const struct tuple *key)
{
	struct time_wait *known = bpf_map_lookup_elem(&fin_wait2s, key);
	struct inet_timewait_sock *tw;

	if (!known)
		return;
	known->owned = true;
	known = bpf_map_lookup_elem(&fin_wait2s, key);
	if (!known)
		return;
	tw = (struct inet_timewait_sock *)known->tw;
	if (substate(tw) != TCP_TIME_WAIT)
		return;
	__builtin_memset(e, 0, sizeof(*e));
	read_time_wait(e, NULL, tw);
	enter(e, key, known);
}

/* A packet is freed where TCP had no use for it: the peer's FIN, maybe. */
static __always_inline void on_freed_by_tcp(const struct sk_buff *skb)
{
	struct inet_timewait_sock *tw;
	struct time_wait *known;
	struct tuple key = {};
	struct tcphdr tcp = {};
	struct event e = {};

	if (!read_packet(&e, &tcp, skb) || !(tcp.flags & TCPHDR_FIN))
		return;
	read_tuple(&key, &e, BPF_CORE_READ(skb, dev, nd_net.net));
	known = bpf_map_lookup_elem(&fin_wait2s, &key);
	if (!known || !known->owned)
		return;
	tw = (struct inet_timewait_sock *)known->tw;
	if (substate(tw) != TCP_TIME_WAIT)
		return;
	read_time_wait(&e, &key, tw);
	enter(&e, &key, known);
}

/*
 * What it means to return to address. Global, so that the verifier looks at it
 * once, and not in every frame with all that follows: up to 90 ms of a start.
 */
__noinline u8 means(u64 address)
{
	for (int i = 0; i < MAX_CALLERS; i++) {
		if (!callers[i].end)
			break;
		if (address >= callers[i].start && address < callers[i].end)
			return callers[i].means;
	}
	return ENDED_UNKNOWN;
}

/* Who has the timer cancelled: the first function on the stack that says so. */
static __always_inline u8 cancelled_by(void *ctx)
{
	u32 zero = 0;
	struct frames *frames = bpf_map_lookup_elem(&stack, &zero);
	long size;

	if (!frames)
		return ENDED_UNKNOWN;
	size = bpf_get_stack(ctx, frames, sizeof(*frames), 0);
	for (int i = 0; i < 24; i++) {
		u8 ended;

		if (i * 8 >= size)
			break;
		ended = means(frames->address[i]);
		if (ended != ENDED_UNKNOWN)
			return ended;
	}
	return ENDED_UNKNOWN;
}

static __always_inline void on_timer_cancel(void *ctx,
					    const struct timer_list *timer)
{
	struct inet_timewait_sock *tw = tw_of(timer);
	u8 ended = cancelled_by(ctx);
	struct time_wait *known;
	struct tuple key = {};
	struct event e = {};

	if (ended == NOT_ENDED)
		return;
	read_time_wait(&e, &key, tw);
	known = bpf_map_lookup_elem(&fin_wait2s, &key);
	if (known && known->tw == (u64)tw) {
		if (substate(tw) != TCP_TIME_WAIT) {
			/* it never was TIME_WAIT */
			e.ended = ended;
			e.old = TCP_FIN_WAIT2;
			e.new = TCP_CLOSE;
			read_known(&e, known);
			emit_decided(&e, EVENT_TIME_WAIT_END, known->wanted);
			bpf_map_delete_elem(&fin_wait2s, &key);
			return;
		}
		enter(&e, &key, known); /* nobody saw it become that */
	}
	known = bpf_map_lookup_elem(&time_waits, &key);
	e.old = TCP_TIME_WAIT;
	e.new = TCP_CLOSE;
	e.ended = ended;
	if (known && known->tw == (u64)tw) {
		e.since = known->entered;
		read_known(&e, known);
		emit_decided(&e, EVENT_TIME_WAIT_END, known->wanted);
		bpf_map_delete_elem(&time_waits, &key);
	} else if (substate(tw) == TCP_TIME_WAIT) {
		e.since = 0;
		emit(&e, EVENT_TIME_WAIT_END, false);
	}
}

/* One that is older than the trace, by the iterator. */
static __always_inline void on_existing(struct event *e,
					const struct inet_timewait_sock *tw)
{
	struct time_wait found = { .tw = (u64)tw, .owned = true };
	struct tuple key = {};
	long err;

	read_time_wait(e, &key, tw);
	read_port_range(e, (struct net *)key.net, 0);
	found.netns = e->netns;
	found.netns_cookie = e->netns_cookie;
	found.wanted = wanted(e, false);
	e->new = substate(tw);
	if (e->new == TCP_TIME_WAIT) {
		err = bpf_map_update_elem(&time_waits, &key, &found,
					  BPF_NOEXIST);
	} else {
		found.from = TCP_FIN_WAIT2;
		err = bpf_map_update_elem(&fin_wait2s, &key, &found,
					  BPF_NOEXIST);
	}
	/* It may have ended while the walk held it. */
	if (!err && !BPF_CORE_READ(tw, tw_timer.entry.pprev)) {
		bpf_map_delete_elem(&time_waits, &key);
		bpf_map_delete_elem(&fin_wait2s, &key);
		e->new = 0;
	}
	if (err == -EEXIST || !found.wanted)
		e->new = 0; /* seen by the other hooks, or not wanted */
}

#endif /* __TIME_WAIT_H__ */
