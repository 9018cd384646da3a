/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Every map and every setting, with its bound and who touches it. */
#ifndef __MAPS_H__
#define __MAPS_H__

/*
 * What this run wants and what this kernel has, set before the load. As
 * constants they let the verifier leave out what they rule out.
 */
const volatile struct filter {
	__u32 netns;  /* 0: all */
	__u32 pid;    /* 0: all */
	__u16 family; /* 0: all */
	bool by_comm;
	bool by_local_port;
	bool by_peer_port;
	bool by_address;
	bool by_descent;       /* only what `traced` processes own */
	bool by_cgroup;	       /* not what is in `unwanted` cgroups */
	bool only_connections; /* no bare state changes */
	char comm[16];
} filter;

/* One bit a port, for -L and -D. */
const volatile __u64 local_ports[1024];
const volatile __u64 peer_ports[1024];

#define MAX_CALLERS 32
#define MAX_TCP_RCV 4

const volatile struct kernel {
	/* tcp_retransmit_skb tells whether the segment left, see compat.h */
	bool retransmit_err;
	/* tcp_send_reset tells why, see compat.h */
	bool reset_reason;
	/* kfree_skb tells why, and for which socket, see compat.h */
	bool drop_reason;
	bool drop_receiver;
	/* bpf_get_socket_cookie in tp_btf and fentry, see compat.h */
	bool cookie_helper;
	/* struct net has a cookie that is always set, see compat.h */
	bool netns_cookie;
	/* the hierarchy of control groups: 0 is v2, else that of a controller of
	 * v1, of which this is the number (enum cgroup_subsys_id)
	 */
	__u32 cgroup_hierarchy;
	__u32 cgroup_subsys;
	/* the ring wakes its reader when it fills past this many bytes, */
	__u32 wakeup_mark;
	/* and takes no event that tells only a state past this many, */
	__u32 state_mark;
	/* and past these only those that are never derived from others */
	__u32 shed_mark;
	/* address of the function that ends a TIME_WAIT in time */
	__u64 tw_timer_handler;
} kernel;

/*
 * Functions of this kernel, by their addresses, that have a TIME_WAIT's timer
 * cancelled, and what that means. The first that is on the stack counts.
 */
const volatile struct caller {
	__u64 start;
	__u64 end;
	__u64 means; /* enum ended */
} callers[MAX_CALLERS];

/* Where TCP frees a packet that is for a TIME_WAIT: tcp_v4_rcv, tcp_v6_rcv. */
const volatile struct range {
	__u64 start;
	__u64 end;
} tcp_rcv[MAX_TCP_RCV];

/* Events, to internal/probe. Bound: --ring-size. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 8 << 20);
	__type(value, struct event);
} events SEC(".maps");

/* Whether the reader rests, and the next event is to wake it. Written by
 * internal/probe, read by send().
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} resting SEC(".maps");

/* Key: enum tells. How many such events the ring had no room for. Written by
 * send(), read by internal/probe.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, TELLS_KINDS);
	__type(key, __u32);
	__type(value, __u64);
} lost SEC(".maps");

/* What is known of a socket that the kernel may have to be told of again in
 * softirq, when its owner is not the running task.
 */
struct sock_info {
	__u64 since; /* its state began, 0 unknown */
	__u64 began; /* the handshake, then ESTABLISHED; 0 unknown */
	struct owner owner;
	__u32 syn_stamp; /* the first SYN's time, once one was sent again */
	__u16 visited;
	__u16 stale_port; /* inet_sport that an earlier attempt left behind */
	__u8 state;	  /* the last one told */
	__u8 retransmits; /* SYNs */
	bool traced;	  /* its owner was in `traced` */
	bool bound;	  /* had its local port before connect() */
};

/*
 * Key: address of the struct sock. Inserted at connect, listen, the birth of
 * a passive open, accept, and by the iterator at start; a new attempt
 * overwrites; deleted when the socket is destroyed. A socket that finds no
 * room goes without an owner, and is counted in `untracked`.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256 << 10);
	__type(key, __u64);
	__type(value, struct sock_info);
} sockets SEC(".maps");

/*
 * The kernel runs no BPF program inside itself on one CPU: where an interrupt
 * or another task meets state_* at work, its own state change is missed. So
 * nested_* runs after it at the same tracepoint, and takes what it missed.
 * Where tasks can meet both, more copies of it follow (compat.h).
 */
struct running {
	__u64 sock;  /* what state_* told last, */
	__u64 state; /* and its new state */
	__u64 taken; /* state changes that nested_* took */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct running);
} running SEC(".maps");

/* Sockets that `sockets`, `fin_wait2s` or `time_waits` had no room for. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} untracked SEC(".maps");

/*
 * A connection's lasting identity in the kernel's own tables: its two ends and
 * its network namespace, by address.
 */
struct tuple {
	__u64 net;
	__u8 local[16];
	__u8 peer[16];
	__u16 lport;
	__u16 pport;
	__u32 _pad;
};

/* The small socket (inet_timewait_sock) that is left of a closed connection. */
struct time_wait {
	__u64 tw;      /* its address */
	__u64 since;   /* FIN_WAIT2 or CLOSING began, 0 unknown */
	__u64 entered; /* TIME_WAIT began, 0 unknown */
	__u64 netns_cookie;
	struct owner owner;
	__u32 netns;
	__u8 from;   /* the state before: FIN_WAIT2 or CLOSING */
	bool owned;  /* the socket that it is left of has told what it knew */
	bool wanted; /* passes the filter */
	bool active; /* of a connect */
};

/*
 * Those that are in FIN_WAIT2 still, and those just made. Inserted when the
 * timer is first set and by the iterator; moved to `time_waits` when TIME_WAIT
 * begins, else deleted at the end. One that finds no room is not seen before
 * its TIME_WAIT, and has no owner.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64 << 10);
	__type(key, struct tuple);
	__type(value, struct time_wait);
} fin_wait2s SEC(".maps");

/*
 * Those in TIME_WAIT. Inserted when it begins, by whoever sees it first: that
 * one tells it. Deleted when it ends, by whoever tells that. Read by
 * internal/probe after events were lost. The bound is what the kernel's own
 * default for tcp_max_tw_buckets comes to on a large machine.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 256 << 10);
	__type(key, struct tuple);
	__type(value, struct time_wait);
} time_waits SEC(".maps");

/* Room for a stack, on its CPU, while interrupts are off. */
struct frames {
	__u64 address[24];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frames);
} stack SEC(".maps");

/* A connect in flight: from the call's entry to its return. */
struct attempt {
	__u64 sock;
	__u64 cookie;
	__u64 netns_cookie;
	__u64 began;
	__u8 local[16];
	__u8 peer[16];
	__u32 netns;
	__u16 family;
	__u16 lport;
	__u16 pport;
	bool started; /* reached SYN_SENT */
	bool failed; /* and fell back to CLOSE without an error of the socket */
};

/* Key: tid (pid_tgid). Inserted at the entry of connect, deleted at its exit;
 * LRU, since an exit probe can miss.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16 << 10);
	__type(key, __u64);
	__type(value, struct attempt);
} connecting SEC(".maps");

/* The networks of --addr, IPv4-mapped. Written before the load. */
struct prefix {
	__u32 bits;
	__u8 address[16];
};

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, struct prefix);
	__type(value, __u8);
} networks SEC(".maps");

/*
 * Key: id of a cgroup that was made since the start. Its path, for whoever reads
 * an event when the cgroup is gone. Inserted where it is made; LRU.
 */
struct cgroup_path {
	char path[512];
};

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8 << 10);
	__type(key, __u64);
	__type(value, struct cgroup_path);
} cgroup_paths SEC(".maps");

/* Room for a path, on its CPU, while the kernel holds a lock over it. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cgroup_path);
} new_path SEC(".maps");

/*
 * Key: id of a cgroup that by_cgroup leaves out. One that is in here not yet, or
 * no more, passes, and user space looks again: LRU. Written by internal/probe.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 16 << 10);
	__type(key, __u64);
	__type(value, __u8);
} unwanted SEC(".maps");

/* Key: pid (tgid) of twtrace, of the command that it starts, and of that one's
 * descendants. Inserted by the iterator, which runs in twtrace, and at fork,
 * deleted when the process is gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64 << 10);
	__type(key, __u32);
	__type(value, __u8);
} traced SEC(".maps");

/* Key: inode of a socket that was open before the start. Filled by the loader
 * from /proc with as many entries as it found, read by the iterator.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u64);
	__type(value, struct owner);
} holders SEC(".maps");

#endif /* __MAPS_H__ */
