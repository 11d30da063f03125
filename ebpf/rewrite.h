/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Other addresses and ports in a packet, with its checksums. The helpers know whether hardware will compute the one of
 * layer 4, and then only what stands for the addresses in it is changed.
 */
#pragma once
#include "parse.h"

#define V4_CHECKSUM 10
#define V4_DESTINATION 16
#define V6_DESTINATION 24
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6

static __always_inline u32 difference(struct address *from, struct address *to)
{
	return bpf_csum_diff(from->word, sizeof(*from), to->word, sizeof(*to), 0);
}

/* The address at its place in the IP header at l3, and that header's checksum. */
static __always_inline long put_address(struct __sk_buff *skb, u32 l3, bool v4, bool source, struct address *from,
					struct address *to)
{
	if (!v4)
		return bpf_skb_store_bytes(skb, l3 + (source ? V6_SOURCE : V6_DESTINATION), to, sizeof(*to), 0);
	bpf_l3_csum_replace(skb, l3 + V4_CHECKSUM, from->word[3], to->word[3], 4);
	return bpf_skb_store_bytes(skb, l3 + (source ? V4_SOURCE : V4_DESTINATION), &to->word[3], 4, 0);
}

/* Another source, or another destination. False if the packet can't be written to. */
static __always_inline bool rewrite(struct __sk_buff *skb, struct packet *packet, bool source, struct backend *to)
{
	struct tuple *tuple = &packet->tuple;
	struct address from = source ? tuple->source : tuple->destination;
	__be16 port = source ? tuple->source_port : tuple->destination_port;

	if (packet->has_l4) {
		bool udp = tuple->protocol == IPPROTO_UDP;
		u32 checksum = packet->l4 + (udp ? UDP_CHECKSUM : TCP_CHECKSUM);
		u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0; /* UDP without a checksum stays so */

		bpf_l4_csum_replace(skb, checksum, 0, difference(&from, &to->address), flags | BPF_F_PSEUDO_HDR);
		bpf_l4_csum_replace(skb, checksum, port, to->port, flags | 2);
		if (bpf_skb_store_bytes(skb, packet->l4 + (source ? 0 : 2), &to->port, 2, 0))
			return false;
	}
	return !put_address(skb, packet->l3, packet->v4, source, &from, &to->address);
}
