/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Other addresses and ports in a packet, with its checksums. The one of layer 4 is left to helpers: they know whether
 * hardware will compute it, and then only what stands for the addresses in it is changed. The one of IPv4 is changed here,
 * since so it is written along with the addresses in one go.
 */
#pragma once
#include "parse.h"

#define V4_ENDS 8
#define V6_DESTINATION 24
#define TCP_CHECKSUM 16
#define UDP_CHECKSUM 6

/* A checksum after a change of what it is over: RFC 1624, equation 3. */
static __always_inline u16 changed(u16 checksum, __be32 from, __be32 to)
{
	u32 sum = (u16)~checksum + (u16)~from + (u16)~(from >> 16) + (u16)to + (to >> 16);

	sum = (sum & 0xffff) + (sum >> 16);
	return ~(sum + (sum >> 16));
}

/* The checksum at offset, of layer 4 or of ICMP, after a change of an address that it is over. */
static __always_inline void put_in_checksum(struct __sk_buff *skb, u32 offset, bool v4, struct address *from,
					  struct address *to, u64 flags)
{
	if (v4)
		bpf_l4_csum_replace(skb, offset, from->word[3], to->word[3], flags | 4);
	else
		bpf_l4_csum_replace(skb, offset, 0, bpf_csum_diff(from->word, sizeof(*from), to->word, sizeof(*to), 0),
				    flags);
}

/* The address in the IP header, and that header's checksum. */
static __always_inline long put_address(struct __sk_buff *skb, struct packet *packet, bool source, struct address *to)
{
	struct v4_ends *ends = &packet->ends;
	__be32 *end = source ? &ends->source : &ends->destination;

	if (!packet->v4)
		return bpf_skb_store_bytes(skb, packet->l3 + (source ? V6_SOURCE : V6_DESTINATION), to, sizeof(*to), 0);
	ends->checksum = changed(ends->checksum, *end, to->word[3]);
	*end = to->word[3];
	return bpf_skb_store_bytes(skb, packet->l3 + V4_ENDS, ends, sizeof(*ends), 0);
}

/* Another source, or another destination. False if the packet can't be written to. */
static __always_inline bool rewrite(struct __sk_buff *skb, struct packet *packet, bool source, struct backend *to)
{
	struct tuple *tuple = &packet->tuple;
	struct address *from = source ? &tuple->source : &tuple->destination;
	__be16 port = source ? tuple->source_port : tuple->destination_port;

	if (packet->has_l4) {
		bool udp = tuple->protocol == IPPROTO_UDP;
		u32 checksum = packet->l4 + (udp ? UDP_CHECKSUM : TCP_CHECKSUM);
		u64 flags = udp ? BPF_F_MARK_MANGLED_0 : 0; /* UDP without a checksum stays so */

		put_in_checksum(skb, checksum, packet->v4, from, &to->address, flags | BPF_F_PSEUDO_HDR);
		bpf_l4_csum_replace(skb, checksum, port, to->port, flags | 2);
		if (bpf_skb_store_bytes(skb, packet->l4 + (source ? 0 : 2), &to->port, 2, 0))
			return false;
	}
	return !put_address(skb, packet, source, &to->address);
}
