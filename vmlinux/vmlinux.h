/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The kernel types that twtrace reads, and of each only the fields that it
 * reads. CO-RE finds the fields in the running kernel: neither order nor gaps
 * matter here, names and types do. One file serves every architecture.
 *
 * What differs between kernels stands in bpf/compat.h.
 */
#ifndef __VMLINUX_H__
#define __VMLINUX_H__

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u8 u8;
typedef __u16 u16;
typedef __u32 u32;
typedef __u64 u64;
typedef __s64 s64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;
typedef _Bool bool;

enum {
	false = 0,
	true = 1,
};

/* include/uapi/linux/bpf.h */
enum bpf_map_type {
	BPF_MAP_TYPE_HASH = 1,
	BPF_MAP_TYPE_ARRAY = 2,
	BPF_MAP_TYPE_PERCPU_ARRAY = 6,
	BPF_MAP_TYPE_LRU_HASH = 9,
	BPF_MAP_TYPE_LPM_TRIE = 11,
	BPF_MAP_TYPE_RINGBUF = 27,
};

enum {
	BPF_ANY = 0,
	BPF_NOEXIST = 1,
};

enum {
	BPF_F_NO_PREALLOC = 1,
};

enum {
	BPF_RB_NO_WAKEUP = 1,
	BPF_RB_FORCE_WAKEUP = 2,
};

enum {
	BPF_RB_AVAIL_DATA = 0,
};

enum {
	BPF_RINGBUF_HDR_SZ = 8,
};

/* include/net/tcp_states.h */
enum {
	TCP_ESTABLISHED = 1,
	TCP_SYN_SENT = 2,
	TCP_SYN_RECV = 3,
	TCP_FIN_WAIT1 = 4,
	TCP_FIN_WAIT2 = 5,
	TCP_TIME_WAIT = 6,
	TCP_CLOSE = 7,
	TCP_CLOSE_WAIT = 8,
	TCP_LAST_ACK = 9,
	TCP_LISTEN = 10,
	TCP_CLOSING = 11,
	TCP_NEW_SYN_RECV = 12,
};

/* include/uapi/linux/net.h */
typedef enum {
	SS_FREE = 0,
	SS_UNCONNECTED = 1,
} socket_state;

/* include/uapi/linux/in.h */
enum {
	IPPROTO_TCP = 6,
};

/* enum sock_flags of include/net/sock.h */
enum {
	SOCK_DONE = 1,
};

/* include/net/tcp.h */
enum {
	TCPHDR_FIN = 1,
	TCPHDR_SYN = 2,
	TCPHDR_RST = 4,
	TCPHDR_ACK = 16,
};

#pragma clang attribute push(__attribute__((preserve_access_index)),           \
			     apply_to = record)

/* include/linux/types.h */
struct list_head {
	struct list_head *next;
};

struct hlist_node {
	struct hlist_node **pprev;
};

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	s64 counter;
} atomic64_t;

/* include/linux/ns_common.h */
struct ns_common {
	unsigned int inum;
};

/* include/net/netns/ipv4.h */
struct local_ports {
	bool warned;
};

struct netns_ipv4 {
	struct local_ports ip_local_ports;
};

/* include/net/net_namespace.h */
struct net {
	struct ns_common ns;
	struct netns_ipv4 ipv4;
};

typedef struct {
	struct net *net;
} possible_net_t;

/* include/uapi/linux/in6.h */
struct in6_addr {
	union {
		__u8 u6_addr8[16];
	} in6_u;
};

/* include/net/sock.h */
struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	unsigned char skc_state;
	possible_net_t skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
	atomic64_t skc_cookie;
	unsigned long skc_flags;
};

struct sock {
	struct sock_common __sk_common;
	struct socket *sk_socket;
	int sk_err;
	u16 sk_protocol;
	u8 sk_shutdown;
};

/* include/net/inet_sock.h */
struct inet_sock {
	__be16 inet_sport;
};

/* include/linux/tcp.h */
struct tcp_options_received {
	u32 rcv_tsecr;
};

struct tcp_sock {
	struct list_head tsq_node;
	u64 bytes_received;
	u64 bytes_sent;
	u64 bytes_retrans;
	u64 tcp_wstamp_ns;
	u32 tsoffset;
	u32 retrans_stamp;
	u32 srtt_us;
	u32 total_retrans;
	u32 segs_out;
	u32 snd_una;
	struct tcp_options_received rx_opt;
	u16 tcp_header_len;
};

/* include/linux/timer_types.h */
struct timer_list {
	struct hlist_node entry;
	void (*function)(struct timer_list *);
};

/* include/net/inet_timewait_sock.h */
struct inet_timewait_sock {
	struct sock_common __tw_common;
	unsigned char tw_substate;
	struct timer_list tw_timer;
};

/* include/net/request_sock.h */
struct request_sock {
	struct sock_common __req_common;
	u8 num_retrans;
};

/* include/linux/net.h */
struct socket {
	socket_state state;
	short type;
	struct sock *sk;
};

/* include/linux/fs.h */
struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
};

struct file {
	struct inode *f_inode;
	void *private_data;
};

/* include/net/sock.h */
struct socket_alloc {
	struct socket socket;
	struct inode vfs_inode;
};

/* include/linux/fdtable.h */
struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};

struct files_struct {
	struct fdtable *fdt;
};

/* include/linux/sched/signal.h */
struct signal_struct {
	atomic_t live;
};

/* include/linux/kernfs.h */
struct kernfs_node {
	u64 id;
};

/* include/linux/cgroup-defs.h */
struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

struct css_set {
	struct cgroup_subsys_state *subsys[1]; /* as many as there are */
};

/* include/linux/sched.h */
struct task_struct {
	int pid;
	int tgid;
	struct css_set *cgroups;
	struct files_struct *files;
	struct signal_struct *signal;
};

/* include/linux/netdevice.h */
struct net_device {
	possible_net_t nd_net;
};

/* include/linux/skbuff.h */
struct sk_buff {
	struct net_device *dev;
	struct sock *sk;
	__be16 protocol;
	unsigned char *head;
	__u16 network_header;
};

/* kernel/trace/trace.h */
struct trace_entry {
	unsigned short type;
};

struct trace_event_raw_sys_enter {
	struct trace_entry ent;
	long id;
	unsigned long args[6];
};

struct trace_event_raw_sys_exit {
	struct trace_entry ent;
	long id;
	long ret;
};

/* net/ipv4/tcp_ipv4.c */
struct seq_file;

struct bpf_iter_meta {
	union {
		struct seq_file *seq;
	};
};

struct bpf_iter__tcp {
	union {
		struct bpf_iter_meta *meta;
	};
	union {
		struct sock_common *sk_common;
	};
};

/* arch/x86/include/asm/ptrace.h */
struct pt_regs {
	unsigned long di;
	unsigned long si;
	unsigned long dx;
	unsigned long ax;
};

/* arch/arm64/include/uapi/asm/ptrace.h: what bpf_tracing.h casts pt_regs to */
struct user_pt_regs {
	__u64 regs[31];
};

#pragma clang attribute pop

/* include/uapi/linux/in.h, in6.h: user ABI, no CO-RE */
struct sockaddr_in46 {
	__u16 family;
	__be16 port;
	union {
		__be32 addr4;
		struct {
			__be32 flowinfo;
			__u8 addr6[16];
		};
	};
};

/* include/uapi/linux/ip.h, ipv6.h, tcp.h: on the wire, no CO-RE */
struct iphdr {
	__u8 version_ihl;
	__u8 tos;
	__be16 tot_len;
	__be16 id;
	__be16 frag_off;
	__u8 ttl;
	__u8 protocol;
	__u16 check;
	__be32 saddr;
	__be32 daddr;
};

struct ipv6hdr {
	__be32 version_class_flow;
	__be16 payload_len;
	__u8 nexthdr;
	__u8 hop_limit;
	__u8 saddr[16];
	__u8 daddr[16];
};

struct tcphdr {
	__be16 source;
	__be16 dest;
	__be32 seq;
	__be32 ack_seq;
	__u8 doff_res;
	__u8 flags;
};

#endif /* __VMLINUX_H__ */
