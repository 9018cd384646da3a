/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What a server with net.ipv4.tcp_tw_recycle did up to Linux 4.11: it dropped a SYN
 * whose timestamp was older than the newest that it had from the same address within
 * the last minute (tcp_peer_is_proven in net/ipv4/tcp_metrics.c). The address can be
 * a NAT's, with many clients behind it. It is for internal/lab, and no part of the
 * tracer.
 */
#include "vmlinux.h"
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* include/uapi/linux/bpf.h */
struct xdp_md {
	u32 data;
	u32 data_end;
};

enum {
	XDP_DROP = 1,
	XDP_PASS = 2,
};

#define ETH_P_IP 0x0800
#define PAWS_MSL 60000000000ULL /* TCP_PAWS_MSL, ns */
#define PAWS_WINDOW 1		/* TCP_PAWS_WINDOW */

struct stamp {
	u64 at;
	u32 tsval;
	u32 _pad;
};

/* Key: source address. Bound: the clients of one scenario. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, u32);
	__type(value, struct stamp);
} newest SEC(".maps");

/* An IPv4 packet without options, as Linux sends it. */
struct packet {
	u8 ethernet[12];
	__be16 protocol;
	u8 version_ihl;
	u8 to_protocol[8];
	u8 ip_protocol;
	__be16 checksum;
	u8 saddr[4];
	u8 daddr[4];
	u8 to_flags[13];
	u8 flags;
	u8 to_options[6];
	u8 options[12]; /* two NOPs and the timestamp */
	u8 more[4];	/* of a SYN: MSS, SACK permitted, timestamp */
} __attribute__((packed));

/* TSval of a timestamp option that begins at this byte of the options. */
static __always_inline bool read_tsval(u32 *tsval, const struct packet *p,
				       u32 at)
{
	const u8 *option = p->options + at;

	if (option[0] != 8 || option[1] != 10)
		return false;
	*tsval = (u32)option[2] << 24 | (u32)option[3] << 16 |
		 (u32)option[4] << 8 | option[5];
	return true;
}

SEC("xdp")
int recycle(struct xdp_md *ctx)
{
	struct packet *p = (void *)(long)ctx->data;
	u64 now = bpf_ktime_get_ns();
	struct stamp *known;
	struct stamp seen = { .at = now };
	u32 tsval = 0, from;

	/* without the last four bytes still a whole segment that is no SYN */
	if ((void *)p->more > (void *)(long)ctx->data_end)
		return XDP_PASS;
	if (p->protocol != bpf_htons(ETH_P_IP) || p->version_ihl != 0x45 ||
	    p->ip_protocol != IPPROTO_TCP)
		return XDP_PASS;
	__builtin_memcpy(&from, p->saddr, 4);
	known = bpf_map_lookup_elem(&newest, &from);
	if (p->flags & TCPHDR_SYN) {
		if ((void *)(p + 1) > (void *)(long)ctx->data_end ||
		    !read_tsval(&tsval, p, 6))
			return XDP_PASS;
		if (known && now - known->at < PAWS_MSL &&
		    (__s32)(tsval - known->tsval) < -PAWS_WINDOW)
			return XDP_DROP;
		return XDP_PASS;
	}
	if (!read_tsval(&tsval, p, 2))
		return XDP_PASS;
	if (known && now - known->at < PAWS_MSL &&
	    (__s32)(tsval - known->tsval) < 0)
		return XDP_PASS;
	seen.tsval = tsval;
	bpf_map_update_elem(&newest, &from, &seen, BPF_ANY);
	return XDP_PASS;
}
