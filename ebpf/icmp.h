/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Errors of ICMP bear the beginning of the packet that they are about, as it was where the error arose. Whom they reach
 * must find there what it sent itself: so path MTU discovery works, and refusals are heard.
 */
#pragma once
#include "rewrite.h"

#define ICMP_BYTES 8
#define ICMP_CHECKSUM 2

struct inner {
	struct packet packet; /* what the error is about */
	u32 checksum;	      /* where the checksum of ICMP is */
};

static __always_inline bool is_error(bool v4, u8 type)
{
	/* Unreachable, time exceeded, parameter problem; in IPv6 1 to 4, with packet too big. */
	return v4 ? type == 3 || type == 11 || type == 12 : type >= 1 && type <= 4;
}

/* False if it is no error, or about nothing of ours. */
static __always_inline bool parse_inner(struct __sk_buff *skb, struct packet *outer, struct inner *inner)
{
	struct packet *packet = &inner->packet;
	struct tuple *tuple = &packet->tuple;
	struct ports ports;
	u8 type;

	if ((outer->tuple.protocol == IPPROTO_ICMP) != outer->v4 || bpf_skb_load_bytes(skb, outer->l4, &type, 1))
		return false;
	if (!is_error(outer->v4, type))
		return false;
	inner->checksum = outer->l4 + ICMP_CHECKSUM;
	packet->l3 = outer->l4 + ICMP_BYTES;
	packet->v4 = outer->v4;
	if (packet->v4) {
		struct v4_header header;

		if (bpf_skb_load_bytes(skb, packet->l3, &header, sizeof(header)))
			return false;
		if (header.fragment & bpf_htons(V4_OFFSET))
			return false;
		packet->l4 = packet->l3 + 4 * (header.version_and_length & 15);
		packet->ends = header.ends;
		tuple->protocol = header.ends.protocol;
		tuple->source = v4_address(header.ends.source);
		tuple->destination = v4_address(header.ends.destination);
	} else {
		struct v6_header header;

		if (bpf_skb_load_bytes(skb, packet->l3, &header, sizeof(header)))
			return false;
		packet->l4 = packet->l3 + V6_BYTES;
		tuple->protocol = header.next;
		tuple->source = header.source;
		tuple->destination = header.destination;
	}
	if (tuple->protocol != IPPROTO_TCP && tuple->protocol != IPPROTO_UDP)
		return false;
	if (bpf_skb_load_bytes(skb, packet->l4, &ports, sizeof(ports)))
		return false;
	tuple->source_port = ports.source;
	tuple->destination_port = ports.destination;
	return true;
}

static __always_inline struct tuple turned(struct tuple *tuple, u8 hook)
{
	struct tuple back = {
		.source = tuple->destination,
		.destination = tuple->source,
		.source_port = tuple->destination_port,
		.destination_port = tuple->source_port,
		.protocol = tuple->protocol,
		.hook = hook,
	};

	return back;
}

/* Another source or destination in what the error is about. The checksum of ICMP is over all of that. */
static __always_inline void rewrite_inner(struct __sk_buff *skb, struct inner *inner, bool source, struct backend *to)
{
	struct packet *packet = &inner->packet;
	struct tuple *tuple = &packet->tuple;
	struct address *from = source ? &tuple->source : &tuple->destination;
	__be16 port = source ? tuple->source_port : tuple->destination_port;

	/* In IPv4 the inner header's own checksum makes up for the address. */
	if (!packet->v4)
		put_in_checksum(skb, inner->checksum, false, from, &to->address, 0);
	bpf_l4_csum_replace(skb, inner->checksum, port, to->port, 2);
	put_address(skb, packet, source, &to->address);
	bpf_skb_store_bytes(skb, packet->l4 + (source ? 0 : 2), &to->port, 2, 0);
}

/* Another source or destination of the error itself. */
static __always_inline void rewrite_outer(struct __sk_buff *skb, struct packet *outer, struct inner *inner, bool source,
					  struct address *to)
{
	struct address *from = source ? &outer->tuple.source : &outer->tuple.destination;

	if (!outer->v4)
		put_in_checksum(skb, inner->checksum, false, from, to, BPF_F_PSEUDO_HDR);
	put_address(skb, outer, source, to);
}

/*
 * An error that comes in, about a packet as it went out. Turned round, that is a packet as it would come in: either the
 * client's to its service, then the error is for the backend; or the backend's to this node, which masquerades the
 * client, then it is for the client. The other end of the two is known by the same way at the other hook.
 */
static __always_inline void error_in(struct __sk_buff *skb, struct packet *outer)
{
	struct inner inner = {};

	if (!parse_inner(skb, outer, &inner))
		return;

	struct tuple way = turned(&inner.packet.tuple, HOOK_INGRESS);
	struct flow *flow = flows.lookup(&way);

	if (!flow || flow->flags & FLOW_OF_OTHERS)
		return;

	struct backend to = flow->to;
	struct backend other = {.address = way.source, .port = flow->port};

	way.hook = HOOK_EGRESS;
	way.destination = to.address;
	way.destination_port = to.port;
	if (flow->port)
		way.source_port = flow->port;
	flow = flows.lookup(&way);
	if (flow && flow->to.port)
		other = flow->to;
	if (flow && flow->port)
		to.port = flow->port;
	if (other.port)
		rewrite_inner(skb, &inner, false, &other);
	rewrite_inner(skb, &inner, true, &to);
	rewrite_outer(skb, outer, &inner, false, &to.address);
}

/*
 * An error that goes out, about a packet whose destination was translated and whose source was not yet: by this node, or
 * by a backend that sees its client. Turned round, it is one that would go out, with that destination as its source.
 */
static __always_inline void error_out(struct __sk_buff *skb, struct packet *outer)
{
	struct inner inner = {};

	if (!parse_inner(skb, outer, &inner))
		return;

	struct tuple way = turned(&inner.packet.tuple, HOOK_EGRESS);
	struct flow *flow = flows.lookup(&way);

	if (!flow || !flow->to.port)
		return;

	struct backend to = flow->to;

	rewrite_inner(skb, &inner, false, &to);
	if (flow->port) {
		struct backend client = {.address = inner.packet.tuple.source, .port = flow->port};

		rewrite_inner(skb, &inner, true, &client);
	}
	if (is_same(&outer->tuple.source, &inner.packet.tuple.destination))
		rewrite_outer(skb, outer, &inner, true, &to.address);
}
