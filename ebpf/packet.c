/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The packet level, on the node's devices: for those who come from elsewhere, and for sockets that the socket level does
 * not see. Destinations are translated as packets come in and sources as they go out, with the kernel's routing in
 * between: so it sees true sources as they come in, which it would take for spoofed if they were this node's.
 *
 *     client ──ingress: to the backend──> routing ──egress: from this node, where masqueraded──> backend
 *     client <──egress: from the service── routing <──ingress: to the client, where masqueraded── backend
 *
 * Every program returns TC_ACT_UNSPEC to let the packet go on, to others' programs first, and TC_ACT_SHOT to drop it.
 */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/pkt_cls.h>

#include "choose.h"
#include "icmp.h"
#include "flow.h"
#include "maglev.h"
#include "masquerade.h"

#define TTL 64
#define V6_HOPS 7

static __always_inline bool has_ethernet(struct __sk_buff *skb)
{
	u32 index = skb->ifindex;
	struct device *device = devices.lookup(&index);

	return !device || !(device->flags & DEVICE_NO_ETHERNET);
}

/* Whether who sends it is a pod of this node. */
static __always_inline bool is_inside(struct __sk_buff *skb, struct address *from)
{
	u32 index = skb->ifindex;
	struct device *device = devices.lookup(&index);
	struct prefix key = {.length = 8 * sizeof(key.address), .address = *from};

	return (device && device->flags & DEVICE_OF_PODS) || pods.lookup(&key);
}

/* A reset in answer to a SYN: the same packet turned round, so that nothing of its checksum has to be known. */
static __always_inline int reset(struct __sk_buff *skb, struct packet *packet)
{
	struct tuple *tuple = &packet->tuple;
	u32 checksum = packet->l4 + TCP_CHECKSUM;
	struct ports ports = {.source = tuple->destination_port, .destination = tuple->source_port};
	u8 source[6], destination[6];
	u32 numbers[2], answer[2] = {};
	__be16 flags, reset;

	if (bpf_skb_load_bytes(skb, packet->l4 + 4, numbers, sizeof(numbers)) ||
	    bpf_skb_load_bytes(skb, packet->l4 + 12, &flags, sizeof(flags)))
		return TC_ACT_SHOT; /* it is not as long as it says */
	answer[1] = bpf_htonl(bpf_ntohl(numbers[0]) + 1);
	reset = (flags & bpf_htons(0xff00)) | bpf_htons(TCP_RST | TCP_ACK);
	bpf_l4_csum_replace(skb, checksum, 0, bpf_csum_diff(numbers, 8, answer, 8, 0), 0);
	bpf_l4_csum_replace(skb, checksum, flags, reset, 2);
	bpf_skb_store_bytes(skb, packet->l4, &ports, sizeof(ports), 0);
	bpf_skb_store_bytes(skb, packet->l4 + 4, answer, sizeof(answer), 0);
	bpf_skb_store_bytes(skb, packet->l4 + 12, &reset, sizeof(reset), 0);
	/* Swapped addresses have the same sum. */
	if (packet->v4) {
		struct v4_ends *is = &packet->ends;
		struct v4_ends ends = {
			.ttl = TTL,
			.protocol = is->protocol,
			.checksum = changed(is->checksum, bpf_htons(is->ttl << 8), bpf_htons(TTL << 8)),
			.source = is->destination,
			.destination = is->source,
		};

		bpf_skb_store_bytes(skb, packet->l3 + V4_ENDS, &ends, sizeof(ends), 0);
	} else {
		u8 hops = TTL;

		bpf_skb_store_bytes(skb, packet->l3 + V6_HOPS, &hops, sizeof(hops), 0);
		bpf_skb_store_bytes(skb, packet->l3 + V6_SOURCE, &tuple->destination, sizeof(tuple->destination), 0);
		bpf_skb_store_bytes(skb, packet->l3 + V6_DESTINATION, &tuple->source, sizeof(tuple->source), 0);
	}
	if (packet->l3) {
		bpf_skb_load_bytes(skb, 0, destination, sizeof(destination));
		bpf_skb_load_bytes(skb, 6, source, sizeof(source));
		bpf_skb_store_bytes(skb, 0, source, sizeof(source), 0);
		bpf_skb_store_bytes(skb, 6, destination, sizeof(destination), 0);
	}
	return bpf_redirect(skb->ifindex, 0);
}

/* To another destination, and from another port of the client's if it got one. */
static __always_inline int go(struct __sk_buff *skb, struct packet *packet, struct backend *to, __be16 port)
{
	struct backend client = {.address = packet->tuple.source, .port = port};

	if (port && !rewrite(skb, packet, true, &client))
		return TC_ACT_SHOT; /* not from a wrong port */
	return rewrite(skb, packet, false, to) ? TC_ACT_UNSPEC : TC_ACT_SHOT; /* not to a wrong destination */
}

/* Who comes to a service for the first time, or must not go where it went before. */
static __always_inline int begin(struct __sk_buff *skb, struct packet *packet, struct config *node)
{
	struct tuple *tuple = &packet->tuple;
	struct place to = {.address = tuple->destination, .port = tuple->destination_port, .protocol = tuple->protocol};
	struct service *service = 0;
	struct backend backend = {};
	struct pool pool = {};
	bool masquerades = false;
	bool refuses = false;
	__be16 port = 0;
	u32 number = COUNTER_OTHERS;

	/* While it drains, nothing is begun. */
	switch (node->flags & CONFIG_DRAINING ? FOUND_NOTHING : find(&to, &service)) {
	case FOUND_NOTHING:
		part(packet);
		return TC_ACT_UNSPEC;
	case FOUND_UNCLAIMED:
		refuses = true;
		break;
	case FOUND_SERVICE:
		break;
	}
	/* In the midst of a connection that another mode translates, or that ended here. */
	if (tuple->protocol == IPPROTO_TCP && (packet->tcp & (TCP_SYN | TCP_ACK | TCP_RST)) != TCP_SYN) {
		if (service)
			count(service->counter, lost);
		return TC_ACT_UNSPEC;
	}
	if (service) {
		bool inside = is_inside(skb, &tuple->source);
		struct client client = {.kind = CLIENT_ADDRESS, .id = tuple->source};
		u32 flags = service->flags;

		if (service->guard && !lets_in(service, &tuple->source)) {
			count(service->counter, dropped);
			return TC_ACT_SHOT; /* its source is in none of the service's ranges */
		}
		pool = inside ? service->inside : service->outside;
		client.pool = pool.id;
		if (!pool.count && flags & (inside ? SERVICE_INSIDE_DROPS : SERVICE_OUTSIDE_DROPS)) {
			count(service->counter, dropped);
			return TC_ACT_SHOT; /* there are endpoints elsewhere, and the policy wants none of them */
		}
		number = service->counter;
		if (!choose(&pool, &client, service->affinity, service->affinity,
			    inside ? bpf_get_prandom_u32() : slot_for(service, tuple), &backend)) {
			refuses = true;
			count(number, refused);
		}
		masquerades = flags & (inside ? SERVICE_MASQUERADES_PODS : SERVICE_MASQUERADES_OUTSIDE);
		/* Who reaches itself would answer itself past this node. */
		masquerades |= is_same(&backend.address, &tuple->source);
	}
	if (refuses) {
		if (tuple->protocol == IPPROTO_TCP)
			return reset(skb, packet);
		/* Nobody can have port 0: the kernel says so, and what it says is translated like any other error. */
		backend.address = own_address(node, packet->v4);
		backend.port = 0;
		masquerades = false;
	}
	if (!remember(packet, &backend, pool.id, number, masquerades, &port)) {
		count(number, dropped);
		return TC_ACT_SHOT; /* it would end up in another flow of its client's */
	}
	if (!refuses) {
		count(number, flows);
		count_packet(skb, packet, number, false);
	}
	return go(skb, packet, &backend, port);
}

int ingress(struct __sk_buff *skb)
{
	struct packet packet = {};
	u32 zero = 0;

	if (!parse_ip(skb, &packet, HOOK_INGRESS) || !concerns_us(&packet.tuple))
		return TC_ACT_UNSPEC;
	if (!parse_l4(skb, &packet, has_ethernet(skb)))
		return TC_ACT_UNSPEC;
	if (packet.tuple.protocol == IPPROTO_ICMP || packet.tuple.protocol == ICMPV6) {
		error_in(skb, &packet);
		return TC_ACT_UNSPEC;
	}

	struct flow *flow = flows.lookup(&packet.tuple);

	if (flow && flow->flags & FLOW_OF_OTHERS)
		return TC_ACT_UNSPEC;
	if (flow && holds(flow, &packet)) {
		struct backend to = flow->to;
		__be16 port = flow->port;

		if (flow->flags & FLOW_TO_SERVICE)
			count_packet(skb, &packet, flow->counter, false);
		note(flow, (packet.tcp & TCP_FIN ? FLOW_CLIENT_FIN : 0) | (packet.tcp & TCP_RST ? FLOW_RESET : 0));
		return go(skb, &packet, &to, port);
	}

	/* Whoever serves this packet serves all that follow it. */
	if (flow)
		flows.delete(&packet.tuple);

	struct config *node = config.lookup(&zero);

	return node ? begin(skb, &packet, node) : TC_ACT_UNSPEC;
}

int egress(struct __sk_buff *skb)
{
	struct packet packet = {};
	u32 zero = 0;
	struct config *node = config.lookup(&zero);

	if (!node || !parse_ip(skb, &packet, HOOK_EGRESS))
		return TC_ACT_UNSPEC;
	/* While another mode serves, who has no flow is looked at, too: see vacate(). */
	if (!(concerns_us(&packet.tuple) || node->flags & CONFIG_DRAINING))
		return TC_ACT_UNSPEC;
	if (!parse_l4(skb, &packet, has_ethernet(skb)))
		return TC_ACT_UNSPEC;
	if (packet.tuple.protocol == IPPROTO_ICMP || packet.tuple.protocol == ICMPV6) {
		error_out(skb, &packet);
		return TC_ACT_UNSPEC;
	}

	struct flow *flow = flows.lookup(&packet.tuple);

	if (!flow || !goes_on(flow, &packet)) {
		vacate(&packet, node);
		return TC_ACT_UNSPEC;
	}
	if (!flow->to.port && !masquerade(skb, &packet, flow)) {
		count(flow->counter, dropped);
		return TC_ACT_SHOT; /* its answer would not find back */
	}
	if (flow->flags & FLOW_FROM_SERVICE)
		count_packet(skb, &packet, flow->counter, true);
	note(flow, 0);

	struct backend to = flow->to;
	struct backend client = {.address = packet.tuple.destination, .port = flow->port};

	if (packet.tcp & (TCP_FIN | TCP_RST)) {
		/* If it is an answer, the client's way is over, too. */
		struct tuple way = turned(&packet.tuple, HOOK_INGRESS);

		way.destination = to.address;
		way.destination_port = to.port;
		if (client.port)
			way.source_port = client.port;
		flow = flows.lookup(&way);
		if (flow && flow->flags & FLOW_TO_SERVICE)
			note(flow, packet.tcp & TCP_RST ? FLOW_RESET : FLOW_BACKEND_FIN);
	}
	if (client.port && !rewrite(skb, &packet, false, &client))
		return TC_ACT_SHOT; /* not to a wrong port */
	return rewrite(skb, &packet, true, &to) ? TC_ACT_UNSPEC : TC_ACT_SHOT; /* not from a wrong source */
}
