/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Where in a packet things are. Read with helpers: packets need not lie in one piece. The header of IP comes first, by
 * itself: it says whether the rest is any concern of ours.
 */
#pragma once
#include "maps.h"

#define ETHERNET_BYTES 14
#define IPV4 bpf_htons(0x0800)
#define IPV6 bpf_htons(0x86dd)
#define V6_BYTES 40
#define V6_SOURCE 8
#define V4_MORE_FRAGMENTS 0x2000
#define V4_OFFSET 0x1fff
#define V6_MORE_FRAGMENTS 1
#define V6_OFFSET 0xfff8
#define V6_FRAGMENT 44
#define ICMPV6 58

#define TCP_BYTES 20
#define UDP_BYTES 8

#define TCP_FIN 1
#define TCP_SYN 2
#define TCP_RST 4
#define TCP_ACK 16

/* The end of a header of IPv4 without options: what translation changes, and its checksum. */
struct v4_ends {
	u8 ttl;
	u8 protocol;
	u16 checksum;
	__be32 source;
	__be32 destination;
};

struct v4_header {
	u8 version_and_length;
	u8 tos;
	__be16 total;
	__be16 id;
	__be16 fragment;
	struct v4_ends ends;
};

struct packet {
	struct tuple tuple;
	struct v4_ends ends; /* of IPv4, as they are in the packet now */
	u32 l3; /* offset of the IP header */
	u32 l4; /* of what follows it */
	__be32 id; /* of a packet in pieces */
	bool v4;
	bool in_pieces;
	bool has_l4; /* false in all pieces of a packet but the first */
	u8 tcp; /* flags */
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

/* The header of IP. False if it is not that, or can't be read. */
static __always_inline bool parse_ip(struct __sk_buff *skb, struct packet *packet, u8 hook)
{
	struct tuple *tuple = &packet->tuple;

	packet->has_l4 = true;
	tuple->hook = hook;
	if (skb->protocol == IPV4) {
		struct v4_header header;

		if (bpf_skb_load_bytes_relative(skb, 0, &header, sizeof(header), BPF_HDR_START_NET))
			return false;
		packet->v4 = true;
		packet->l4 = 4 * (header.version_and_length & 15);
		packet->id = header.id;
		packet->in_pieces = header.fragment & bpf_htons(V4_MORE_FRAGMENTS | V4_OFFSET);
		packet->has_l4 = !(header.fragment & bpf_htons(V4_OFFSET));
		packet->ends = header.ends;
		tuple->protocol = header.ends.protocol;
		tuple->source = v4_address(header.ends.source);
		tuple->destination = v4_address(header.ends.destination);
		return true;
	}
	if (skb->protocol == IPV6) {
		struct v6_header header;

		if (bpf_skb_load_bytes_relative(skb, 0, &header, sizeof(header), BPF_HDR_START_NET))
			return false;
		packet->l4 = V6_BYTES;
		tuple->protocol = header.next;
		tuple->source = header.source;
		tuple->destination = header.destination;
		return true;
	}
	return false;
}

/* The ports of a piece: read from the first, which is first here, too, or else nobody knows what the others are. */
static __always_inline bool know_ports(struct packet *packet, struct ports *ports)
{
	struct tuple *tuple = &packet->tuple;
	struct fragment fragment = {
		.source = tuple->source,
		.destination = tuple->destination,
		.id = packet->id,
		.protocol = tuple->protocol,
		.hook = tuple->hook,
	};

	if (packet->has_l4) {
		fragments.update(&fragment, ports);
		return true;
	}

	struct ports *known = fragments.lookup(&fragment);

	if (known)
		*ports = *known;
	return known;
}

/* What follows the header of IP. False if it is neither TCP nor UDP nor ICMP, or can't be read. */
static __always_inline bool parse_l4(struct __sk_buff *skb, struct packet *packet, bool has_ethernet)
{
	struct tuple *tuple = &packet->tuple;
	struct {
		struct ports ports;
		u8 rest[16]; /* of the header of TCP; UDP's ends before */
	} head = {};

	packet->l3 = has_ethernet ? ETHERNET_BYTES : 0;
	packet->l4 += packet->l3;
	if (!packet->v4 && tuple->protocol == V6_FRAGMENT) {
		struct v6_fragment piece;

		if (bpf_skb_load_bytes(skb, packet->l4, &piece, sizeof(piece)))
			return false;
		packet->l4 += sizeof(piece);
		packet->id = piece.id;
		packet->in_pieces = piece.offset & bpf_htons(V6_MORE_FRAGMENTS | V6_OFFSET);
		packet->has_l4 = !(piece.offset & bpf_htons(V6_OFFSET));
		tuple->protocol = piece.next;
	}
	if (tuple->protocol == IPPROTO_ICMP || tuple->protocol == ICMPV6)
		return packet->has_l4;
	if (tuple->protocol != IPPROTO_TCP && tuple->protocol != IPPROTO_UDP)
		return false;
	if (packet->has_l4) {
		bool tcp = tuple->protocol == IPPROTO_TCP;

		if (bpf_skb_load_bytes(skb, packet->l4, &head, tcp ? TCP_BYTES : UDP_BYTES))
			return false;
		packet->tcp = tcp ? head.rest[9] : 0;
	}
	if (packet->in_pieces && !know_ports(packet, &head.ports))
		return false;
	tuple->source_port = head.ports.source;
	tuple->destination_port = head.ports.destination;
	return true;
}
