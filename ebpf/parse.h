/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Where in a packet things are. Read with helpers: packets need not lie in one piece. */
#pragma once
#include "maps.h"

#define ETHERNET_BYTES 14
#define IPV4 bpf_htons(0x0800)
#define IPV6 bpf_htons(0x86dd)
#define V4_BYTES 20
#define V4_SOURCE 12
#define V6_BYTES 40
#define V6_SOURCE 8
#define V4_MORE_FRAGMENTS 0x2000
#define V4_OFFSET 0x1fff
#define V6_MORE_FRAGMENTS 1
#define V6_OFFSET 0xfff8
#define V6_FRAGMENT 44
#define ICMPV6 58

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

struct packet {
	struct tuple tuple;
	u32 l3; /* offset of the IP header */
	u32 l4; /* of what follows it */
	bool v4;
	bool has_l4; /* false in all pieces of a packet but the first */
	u8 tcp; /* flags */
	u8 pad;
};

struct v4_header {
	u8 version_and_length;
	u8 tos;
	__be16 total;
	__be16 id;
	__be16 fragment;
	u8 ttl;
	u8 protocol;
	u16 checksum;
	__be32 source;
	__be32 destination;
};

struct v6_header {
	__be32 version_and_flow;
	__be16 payload;
	u8 next;
	u8 hops;
	struct address source;
	struct address destination;
};

struct v6_fragment {
	u8 next;
	u8 reserved;
	__be16 offset;
	__be32 id;
};

static __always_inline struct address v4_address(__be32 ip)
{
	struct address address = {.word = {0, 0, V4_MAPPED, ip}};

	return address;
}

/* The ports of a piece: read from the first, which is first here, too, or else nobody knows what the others are. */
static __always_inline bool read_ports(struct __sk_buff *skb, struct packet *packet, bool in_pieces, __be32 id)
{
	struct tuple *tuple = &packet->tuple;
	struct fragment fragment = {
		.source = tuple->source,
		.destination = tuple->destination,
		.id = id,
		.protocol = tuple->protocol,
		.hook = tuple->hook,
	};
	struct ports ports = {};

	if (!packet->has_l4) {
		struct ports *known = fragments.lookup(&fragment);

		if (!known)
			return false;
		ports = *known;
	} else {
		if (bpf_skb_load_bytes(skb, packet->l4, &ports, sizeof(ports)))
			return false;
		if (in_pieces)
			fragments.update(&fragment, &ports);
	}
	tuple->source_port = ports.source;
	tuple->destination_port = ports.destination;
	return true;
}

/* False if it is neither TCP nor UDP nor ICMP over IP, or can't be read. */
static __always_inline bool parse(struct __sk_buff *skb, struct packet *packet, bool has_ethernet, u8 hook)
{
	struct tuple *tuple = &packet->tuple;
	bool in_pieces = false;
	__be32 id = 0;

	packet->l3 = has_ethernet ? ETHERNET_BYTES : 0;
	packet->has_l4 = true;
	tuple->hook = hook;
	if (skb->protocol == IPV4) {
		struct v4_header header;

		if (bpf_skb_load_bytes(skb, packet->l3, &header, sizeof(header)))
			return false;
		packet->v4 = true;
		packet->l4 = packet->l3 + 4 * (header.version_and_length & 15);
		tuple->protocol = header.protocol;
		tuple->source = v4_address(header.source);
		tuple->destination = v4_address(header.destination);
		in_pieces = header.fragment & bpf_htons(V4_MORE_FRAGMENTS | V4_OFFSET);
		packet->has_l4 = !(header.fragment & bpf_htons(V4_OFFSET));
		id = header.id;
	} else if (skb->protocol == IPV6) {
		struct v6_header header;

		if (bpf_skb_load_bytes(skb, packet->l3, &header, sizeof(header)))
			return false;
		packet->l4 = packet->l3 + V6_BYTES;
		tuple->protocol = header.next;
		tuple->source = header.source;
		tuple->destination = header.destination;
		if (header.next == V6_FRAGMENT) {
			struct v6_fragment piece;

			if (bpf_skb_load_bytes(skb, packet->l4, &piece, sizeof(piece)))
				return false;
			packet->l4 += sizeof(piece);
			tuple->protocol = piece.next;
			in_pieces = piece.offset & bpf_htons(V6_MORE_FRAGMENTS | V6_OFFSET);
			packet->has_l4 = !(piece.offset & bpf_htons(V6_OFFSET));
			id = piece.id;
		}
	} else {
		return false;
	}
	if (tuple->protocol == IPPROTO_ICMP || tuple->protocol == ICMPV6)
		return packet->has_l4;
	if (tuple->protocol != IPPROTO_TCP && tuple->protocol != IPPROTO_UDP)
		return false;
	if (!read_ports(skb, packet, in_pieces, id))
		return false;
	if (packet->has_l4) {
		bool tcp = tuple->protocol == IPPROTO_TCP;
		u8 rest[8]; /* up to the end of the header, of UDP's all of it */

		if (bpf_skb_load_bytes(skb, packet->l4 + (tcp ? 12 : 0), rest, sizeof(rest)))
			return false;
		packet->tcp = tcp ? rest[1] : 0;
	}
	return true;
}
