/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* The one way out: filter, ring, count. */
#ifndef __EMIT_H__
#define __EMIT_H__

static __always_inline bool has_port(const volatile __u64 ports[1024], u16 port)
{
	return ports[port >> 6] & (1ULL << (port & 63));
}

static __always_inline bool in_networks(const u8 address[16])
{
	struct prefix key = { .bits = 128 };

	__builtin_memcpy(key.address, address, 16);
	return bpf_map_lookup_elem(&networks, &key);
}

static __always_inline bool same_comm(const char comm[16])
{
	for (int i = 0; i < 16; i++) {
		if (comm[i] != filter.comm[i])
			return false;
		if (!comm[i])
			break;
	}
	return true;
}

static __always_inline bool is_mapped(const u8 address[16])
{
	const u32 *word = (const u32 *)address;

	return !word[0] && !word[1] && word[2] == bpf_htonl(0xffff);
}

/*
 * Where a packet was dropped need not be where its connection is, and which end
 * is ours is not always known: what can be filtered is its family, and whether
 * an end of it fits.
 */
static __always_inline bool wanted_packet(const struct event *e)
{
	if (filter.family) {
		bool ipv4 = e->family == AF_INET || is_mapped(e->peer);

		if (ipv4 != (filter.family == AF_INET))
			return false;
	}
	if (filter.by_peer_port && !has_port(peer_ports, e->pport) &&
	    !has_port(peer_ports, e->lport))
		return false;
	return !filter.by_address || in_networks(e->local) ||
	       in_networks(e->peer);
}

/*
 * A cloned socket does not show its peer before 6.18: it passes, and user
 * space looks again when its next event tells. A port that is not chosen yet
 * is in no set of ports.
 */
static __always_inline bool fits(const struct event *e, bool is_ours)
{
	bool nameless = e->new == TCP_SYN_RECV && !e->pport;

	if (filter.netns && e->netns != filter.netns)
		return false;
	if (filter.pid && e->owner.pid != filter.pid)
		return false;
	if (filter.by_comm && !same_comm(e->owner.comm))
		return false;
	if (filter.by_descent && !is_ours)
		return false;
	if (filter.by_cgroup &&
	    (!e->owner.cgroup ||
	     bpf_map_lookup_elem(&unwanted, &e->owner.cgroup)))
		return false;
	if (filter.by_local_port && !has_port(local_ports, e->lport))
		return false;
	if (nameless)
		return true;
	if (filter.family) {
		bool ipv4 = e->family == AF_INET || is_mapped(e->peer);

		if (ipv4 != (filter.family == AF_INET))
			return false;
	}
	if (filter.by_peer_port && !has_port(peer_ports, e->pport))
		return false;
	if (filter.by_address && !in_networks(e->local) &&
	    !in_networks(e->peer))
		return false;
	return true;
}

/* fits, once for all of a program's callers */
static __noinline bool wanted(const struct event *e, bool is_ours)
{
	return fits(e, is_ours);
}

#define ESTABLISHED_ONCE                                                       \
	(1 << TCP_ESTABLISHED | 1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 |      \
	 1 << TCP_CLOSE_WAIT | 1 << TCP_LAST_ACK | 1 << TCP_CLOSING)

static __always_inline u32 change_tells(const struct event *e)
{
	u16 visited = e->visited | 1 << e->old;

	if (e->new == TCP_ESTABLISHED)
		return visited & 1 << TCP_SYN_SENT ? TELLS_CONNECT
						   : TELLS_ACCEPT;
	if (e->new != TCP_CLOSE)
		return TELLS_STATE;
	if (visited & ESTABLISHED_ONCE)
		return TELLS_CLOSE;
	return visited & 1 << TCP_SYN_SENT ? TELLS_CONNECT : TELLS_STATE;
}

static __noinline u32 tells(const struct event *e)
{
	switch (e->kind) {
	case EVENT_STATE_CHANGE:
		return change_tells(e);
	case EVENT_CONNECT_RESULT:
		return TELLS_CONNECT;
	case EVENT_SYN_RETRANSMIT:
	case EVENT_SYN_ACK_RETRANSMIT:
		return TELLS_SYN_RETRANSMIT;
	case EVENT_RESET_SENT:
	case EVENT_RESET_RECEIVED:
		return TELLS_RESET;
	case EVENT_TIME_WAIT_ENTER:
		return TELLS_TIME_WAIT_ENTER;
	case EVENT_TIME_WAIT_END:
		return TELLS_TIME_WAIT_END;
	case EVENT_DROP:
		return TELLS_DROP;
	}
	return TELLS_NOTHING;
}

/*
 * How full the ring may be for an event to be put there. A state that is not
 * told stands in the history that later events of the socket bring (visited),
 * and goes first. That a connection was accepted, closed or went to TIME_WAIT
 * shows by what is left of it. How a connect ended, what failed and why, and the
 * end of a TIME_WAIT show nowhere else.
 */
static __always_inline u64 room_for(const struct event *e)
{
	switch (tells(e)) {
	case TELLS_STATE:
		return kernel.state_mark;
	case TELLS_CLOSE:
		if (e->errno)
			break;
		/* fallthrough */
	case TELLS_NOTHING:
	case TELLS_ACCEPT:
	case TELLS_TIME_WAIT_ENTER:
		return kernel.shed_mark;
	}
	return -1;
}

static __always_inline bool reader_rests(void)
{
	u32 zero = 0;
	volatile u32 *rests = bpf_map_lookup_elem(&resting, &zero);

	return rests && *rests;
}

/*
 * A wake-up costs more than the event. The reader polls; it is woken only by
 * the event that takes the ring across the mark, and by the first after a rest.
 */
static __always_inline u64 wakeup(u64 fill, u64 length)
{
	if (!fill && reader_rests())
		return BPF_RB_FORCE_WAKEUP;
	if (fill < kernel.wakeup_mark &&
	    fill + BPF_RINGBUF_HDR_SZ + length >= kernel.wakeup_mark)
		return BPF_RB_FORCE_WAKEUP;
	return BPF_RB_NO_WAKEUP;
}

static __always_inline void count_untracked(void)
{
	u32 zero = 0;
	u64 *count = bpf_map_lookup_elem(&untracked, &zero);

	if (count)
		__sync_fetch_and_add(count, 1);
}

/* Whether a change of state tells more than itself: figures of the connection. */
static __always_inline bool has_figures(const struct event *e)
{
	return e->old == TCP_SYN_SENT || e->new == TCP_ESTABLISHED ||
	       e->new == TCP_CLOSE;
}

/* How much of an event goes through the ring: most are short. */
static __always_inline u64 length(const struct event *e)
{
	switch (e->kind) {
	case EVENT_STATE_CHANGE:
		if (has_figures(e))
			break;
		/* fallthrough */
	case EVENT_TIME_WAIT_ENTER:
	case EVENT_TIME_WAIT_REARM:
	case EVENT_TIME_WAIT_END:
		return __builtin_offsetof(struct event, began);
	}
	return sizeof(*e);
}

static __always_inline void send(struct event *e, u8 kind)
{
	u64 fill = bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
	u64 size, *count;
	u32 key;

	e->kind = kind;
	size = length(e);
	if ((fill < kernel.state_mark || fill < room_for(e)) &&
	    !bpf_ringbuf_output(&events, e, size, wakeup(fill, size)))
		return;
	key = tells(e);
	count = bpf_map_lookup_elem(&lost, &key);
	if (count) /* atomic: another program of ours can interrupt this one */
		__sync_fetch_and_add(count, 1);
}

static __noinline void emit(struct event *e, u8 kind, bool is_ours)
{
	if (e->packet ? wanted_packet(e) : fits(e, is_ours))
		send(e, kind);
}

/* What was decided before: all events of a TIME_WAIT pass the filter, or none. */
static __noinline void emit_decided(struct event *e, u8 kind, bool is_wanted)
{
	if (is_wanted)
		send(e, kind);
}

#endif /* __EMIT_H__ */
