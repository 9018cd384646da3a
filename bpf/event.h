/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The wire contract between the BPF programs and internal/probe: what goes
 * through the ring buffer. bpf2go makes the Go type from it.
 */
#ifndef __EVENT_H__
#define __EVENT_H__

/* Numbered as event.Kind in internal/event. */
enum event_kind {
	EVENT_STATE_CHANGE = 1,
	EVENT_CONNECT_RESULT,
	EVENT_SYN_RETRANSMIT,
	EVENT_SYN_ACK_RETRANSMIT,
	EVENT_RESET_SENT,
	EVENT_RESET_RECEIVED,
	EVENT_TIME_WAIT_ENTER,
	EVENT_TIME_WAIT_REARM,
	EVENT_TIME_WAIT_END,
	EVENT_EXISTING,
	EVENT_DROP,
	EVENT_KINDS,
};

/*
 * What becomes of an event, in the words of the log: what is lost is counted by
 * that. Numbered as event.Tells in internal/event.
 */
enum tells {
	TELLS_NOTHING, /* by itself: the timer of a TIME_WAIT that is set anew */
	TELLS_STATE,   /* nothing but a change of state */
	TELLS_CONNECT,
	TELLS_ACCEPT,
	TELLS_CLOSE,
	TELLS_TIME_WAIT_ENTER,
	TELLS_TIME_WAIT_END,
	TELLS_SYN_RETRANSMIT,
	TELLS_DROP,
	TELLS_RESET,
	TELLS_KINDS,
};

/* How a TIME_WAIT ended. Numbered as event.Ended in internal/event. */
enum ended {
	ENDED_EXPIRED = 1,
	ENDED_REUSED,
	ENDED_SYN_ACCEPTED,
	ENDED_RESET,
	ENDED_KILLED,
	ENDED_UNKNOWN,
	NOT_ENDED, /* its timer is set anew */
};

/* A packet of a handshake. Numbered as event.Packet in internal/event. */
enum packet {
	PACKET_SYN = 1,
	PACKET_SYN_ACK,
	PACKET_ACK, /* the handshake's last */
	PACKET_RST,
};

/* Who connected, listened or accepted. pid is 0 where nobody knows. */
struct owner {
	__u64 cgroup; /* in the hierarchy that internal/owner has chosen */
	__u32 pid;
	__u32 tid; /* 0: found in /proc, where only the process is known */
	__u32 uid;
	__u32 _pad;
	char comm[16];
};

/*
 * Addresses are IPv6 or IPv4-mapped; ports are in host order. A short event has
 * nothing from `began` on (length).
 */
struct event {
	__u64 time; /* CLOCK_MONOTONIC, ns; so are since and began */
	__u64 sock;
	__u64 cookie;
	__u64 netns_cookie;
	__u64 since; /* the old state began, 0 unknown */
	struct owner owner;
	__u8 local[16];
	__u8 peer[16];
	__u32 netns;
	__u16 visited; /* bit n: has been in state n */
	__u16 family;  /* AF_INET, AF_INET6, 0 unknown */
	__u16 lport;
	__u16 pport;
	/* the local ports that this connect may get, both ends included */
	__u16 lowest_port;
	__u16 highest_port;
	__u8 kind;
	__u8 old; /* DROP: the state of the sender, 0: it had left */
	__u8 new; /* DROP: the state of the receiver, 0: it had met none */
	bool result_follows; /* failed inside the call: CONNECT_RESULT comes */
	bool shutdown; /* the program had closed or shut down the socket */
	bool has_tsval;
	bool started; /* CONNECT_RESULT: had got as far as SYN_SENT */
	bool active;  /* TIME_WAIT: of a connect, not of an accept */
	bool bound;   /* the program chose the local port, by bind */
	bool lingers; /* STATE_CHANGE to CLOSE: a small socket is left */
	__u8 ended;   /* TIME_WAIT_END: enum ended */
	__u8 packet;  /* DROP: enum packet */
	__u32 retransmits;

	__u64 began; /* the handshake; once over, ESTABLISHED; 0 unknown */
	__u64 bytes_sent;
	__u64 bytes_received;
	__u64 location; /* DROP: the code that dropped it */
	__u32 tsval;
	__u32 handshake_us;
	__u32 errno;  /* positive */
	__u32 reason; /* of a RST, of a drop */
	__u32 isn; /* sequence number of the SYN, which NAT leaves as it is */
	__u32 _pad;
};
_Static_assert(sizeof(struct event) == 200, "the ring's record");
_Static_assert(__builtin_offsetof(struct event, began) == 144, "a short one");

#endif /* __EVENT_H__ */
