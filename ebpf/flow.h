/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Flows: a client at a service, that is, at a backend. Each is up to four entries of the map flows, by the ways that its
 * packets take:
 *
 *     at ingress, client to service             to the backend; here is the state of the flow
 *     at egress, client to backend              from a port of this node, if the client is masqueraded
 *     at ingress, backend to that port          to the client, if it is masqueraded
 *     at egress, backend to client              from the service
 *
 * A client may come from one port to two services that have a backend in common: then both flows would be the same one
 * between ingress and egress. The second gets another port there, as a NAT would give it: to the backend at ingress, and
 * back to its own at egress (port in struct flow).
 */
#pragma once
#include "count.h"
#include "icmp.h"
#include "party.h"

#define SECOND 1000000000ull
#define UDP_SECONDS 120 /* of silence, after which a flow of datagrams is over */
#define CLIENT_PORT_TRIES 4
#define CLIENT_PORTS 1024 /* and those above it are given to clients whose own is taken */

static __always_inline struct address own_address(struct config *node, bool v4)
{
	return v4 ? node->ipv4 : node->ipv6;
}

static __always_inline bool is_member(u32 pool, struct backend *backend)
{
	struct member member = {.pool = pool, .backend = *backend};

	return members.lookup(&member);
}

static __always_inline bool is_same_end(struct backend *one, struct backend *other)
{
	return one->port == other->port && is_same(&one->address, &other->address);
}

/* The way from a masqueraded client to the backend at egress, by that of answers, and to whom they go. */
static __always_inline struct tuple way_of(struct tuple *answer, struct backend *client)
{
	struct tuple out = turned(answer, HOOK_EGRESS);

	out.source = client->address;
	out.source_port = client->port;
	return out;
}

/* The way of answers at egress, by that from the client to the backend. */
static __always_inline struct flow *answers_to(struct tuple *out)
{
	struct tuple way = turned(out, HOOK_EGRESS);

	return flows.lookup(&way);
}

/*
 * How the flow between that client and that backend ended, whose ports both may have for another by now: of FLOW_ENDS, or
 * 0 if it goes on; back is what answers_to() found. Entries of a flow are not removed when it ends, since its last packets
 * are on their way: its state is in the client's way to the service. Where that is gone, nobody knows more than that it
 * ended.
 */
static __always_inline u32 end_of(struct tuple *out, struct flow *back)
{
	struct tuple way = *out;
	struct flow *flow;
	__be16 other = 0;

	if (!back)
		return FLOW_BACKEND_FIN;
	way.hook = HOOK_INGRESS;
	way.destination = back->to.address;
	way.destination_port = back->to.port;
	if (back->port) {
		way.source_port = back->port;
		other = out->source_port;
	}
	flow = flows.lookup(&way);
	if (!flow || flow->port != other || flow->to.port != out->destination_port ||
	    !is_same(&flow->to.address, &out->destination))
		return FLOW_BACKEND_FIN;
	return flow->flags & FLOW_ENDS;
}

/* Whether the flow is that packet's. A packet that begins a connection may belong to another with the same ports. */
static __always_inline bool goes_on(struct flow *flow, struct packet *packet)
{
	struct tuple *tuple = &packet->tuple;
	u8 kind = packet->tcp & (TCP_SYN | TCP_ACK);
	struct tuple out;

	if (tuple->protocol == IPPROTO_UDP)
		return bpf_ktime_get_ns() - flow->seen < UDP_SECONDS * SECOND;
	if (!(kind & TCP_SYN))
		return true;
	if (kind == TCP_SYN) {
		if (!flow->to.port)
			return true; /* made as it came in */
		out = *tuple;
	} else {
		out = tuple->hook == HOOK_INGRESS ? way_of(tuple, &flow->to) : turned(tuple, HOOK_EGRESS);
	}
	if (!end_of(&out, kind != TCP_SYN && tuple->hook == HOOK_EGRESS ? flow : answers_to(&out)))
		return true;
	flows.delete(tuple);
	return false;
}

/* Whether answers come from where this packet goes to. Its client may have come to the same backend through another place
 * since, and takes them from the last one only. */
static __always_inline bool leads_back(struct flow *flow, struct tuple *tuple)
{
	struct tuple out = *tuple;
	struct flow *back;

	out.destination = flow->to.address;
	out.destination_port = flow->to.port;
	if (flow->port)
		out.source_port = flow->port;
	back = answers_to(&out);
	return back && back->to.port == tuple->destination_port && is_same(&back->to.address, &tuple->destination);
}

/* The same for packets that come in: new connections, and datagrams, go to backends of today only. */
static __always_inline bool holds(struct flow *flow, struct packet *packet)
{
	if (!(flow->flags & FLOW_TO_SERVICE))
		return goes_on(flow, packet);
	if (packet->tuple.protocol == IPPROTO_UDP)
		return goes_on(flow, packet) && is_member(flow->pool, &flow->to) &&
		       leads_back(flow, &packet->tuple);
	if ((packet->tcp & (TCP_SYN | TCP_ACK)) != TCP_SYN)
		return true;
	return !(flow->flags & FLOW_ENDS) && is_member(flow->pool, &flow->to);
}

static __always_inline void note(struct flow *flow, u32 flags)
{
	u64 now = bpf_ktime_get_ns();

	/* Written no more often than it must be: other processors have it in their caches. */
	if (flags & ~flow->flags)
		flow->flags |= flags;
	if (now - flow->seen > SECOND)
		flow->seen = now;
}

/* A packet of a flow. One that stands for several, which the kernel puts together and takes apart, is several. */
static __always_inline void count_packet(struct __sk_buff *skb, struct packet *packet, u32 number, bool is_answer)
{
	struct counter *counter = counter_of(number);
	u32 packets = skb->gso_segs ?: 1, bytes = skb->len - packet->l3;

	if (!counter)
		return;
	if (is_answer) {
		counter->packets_out += packets;
		counter->bytes_out += bytes;
	} else {
		counter->packets_in += packets;
		counter->bytes_in += bytes;
	}
}

/* Whether a flow of the client's goes on by that way to the backend, which is not to this service. */
static __always_inline bool is_taken(struct tuple *out, struct flow *back)
{
	struct flow *flow = answers_to(out);

	if (!flow)
		return false;
	if (!flow->port && is_same_end(&flow->to, &back->to))
		return false; /* its own, from before */
	if (out->protocol == IPPROTO_UDP)
		return back->seen - flow->seen < UDP_SECONDS * SECOND;
	return !end_of(out, flow);
}

/* Another port for the client, where its own is taken: false if that is so, and none was found. */
static __always_inline bool find_port(struct tuple *out, struct flow *back)
{
	__be16 own = out->source_port;

	if (!is_taken(out, back))
		return true;
#pragma unroll
	for (int i = 0; i < CLIENT_PORT_TRIES; i++) {
		out->source_port = bpf_htons(CLIENT_PORTS + bpf_get_prandom_u32() % (65536 - CLIENT_PORTS));
		if (!answers_to(out)) {
			back->port = own;
			return true;
		}
	}
	return false;
}

/*
 * From now on packets of this client go to that backend, and what it answers comes from the place the client knows. False
 * if the client has no port for it.
 */
static __always_inline bool remember(struct packet *packet, struct backend *backend, u32 pool, u32 counter,
				     bool masquerades, __be16 *port)
{
	struct tuple *tuple = &packet->tuple;
	u64 now = bpf_ktime_get_ns();
	struct flow there = {.to = *backend, .pool = pool, .flags = FLOW_TO_SERVICE, .counter = counter, .seen = now};
	struct flow back = {
		.to = {.address = tuple->destination, .port = tuple->destination_port},
		.flags = FLOW_FROM_SERVICE,
		.counter = counter,
		.seen = now,
	};
	struct tuple out = *tuple;

	out.hook = HOOK_EGRESS;
	out.destination = backend->address;
	out.destination_port = backend->port;
	if (!find_port(&out, &back))
		return false;
	if (back.port)
		there.port = out.source_port;
	*port = there.port;
	make_party(&tuple->source);
	flows.update(tuple, &there);

	struct flow *before = flows.lookup(&out);

	if (before && before->to.port) {
		/* The same client came to the same backend before: the port that it had is free again. */
		struct tuple answer = turned(&out, HOOK_INGRESS);

		answer.destination = before->to.address;
		answer.destination_port = before->to.port;
		flows.delete(&answer);
	}
	if (masquerades) {
		there = (struct flow){.counter = counter, .seen = now};
		flows.update(&out, &there);
	} else if (before) {
		flows.delete(&out);
	}
	out = turned(&out, HOOK_EGRESS);
	flows.update(&out, &back);
	return true;
}

/* All four entries of a flow, by the way from the client to the backend at egress. */
static __always_inline void forget(struct tuple *out)
{
	struct tuple way = turned(out, HOOK_EGRESS);
	struct flow *flow = flows.lookup(&way);
	struct backend to;

	if (flow) {
		to = flow->to;
		way = *out;
		way.hook = HOOK_INGRESS;
		way.destination = to.address;
		way.destination_port = to.port;
		if (flow->port)
			way.source_port = flow->port;
		flows.delete(&way);
		way = turned(out, HOOK_EGRESS);
		flows.delete(&way);
	}
	flow = flows.lookup(out);
	if (flow) {
		to = flow->to;
		flows.delete(out);
		way = turned(out, HOOK_INGRESS);
		way.destination = to.address;
		way.destination_port = to.port;
		flows.delete(&way);
	}
}

/*
 * A datagram that goes on as it came: its client speaks to a backend by itself. If it came to it through a service before,
 * with the same port, that is over: answers would be from a place that it does not ask any more.
 */
static __always_inline void part(struct packet *packet)
{
	struct tuple *out = &packet->tuple;

	out->hook = HOOK_EGRESS;
	if (out->protocol == IPPROTO_UDP && answers_to(out))
		forget(out);
}

/*
 * While another mode serves, it gives ports of this node to clients of its own, and knows nothing of ours. Datagrams do
 * not say whose they are, so the port is theirs from now on.
 */
static __always_inline void vacate(struct packet *packet, struct config *node)
{
	struct tuple answer;

	if (!(node->flags & CONFIG_DRAINING) || packet->tuple.protocol != IPPROTO_UDP)
		return;
	answer = turned(&packet->tuple, HOOK_INGRESS);

	struct flow *flow = flows.lookup(&answer);

	if (flow && !(flow->flags & FLOW_TO_SERVICE)) {
		struct tuple out = way_of(&answer, &flow->to);

		flows.delete(&answer);
		forget(&out);
	}
}
