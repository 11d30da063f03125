/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Ports of this node, by which answers of backends to those who are masqueraded find back. */
#pragma once
#include "flow.h"

#define SILENT_SECONDS 30 /* of silence, after which the port of a flow of datagrams may be another's */
#define CLOSED_SECONDS 61 /* the same of TCP: a server remembers what it closed for 60 (TCP_TIMEWAIT_LEN) */
#define RESTS_SECONDS 2 /* the same of both if no other is found */
#define PORT_TRIES 16
#define STEP 65537 /* between them: not one after the other, since a client may have hundreds in a row; a prime, and more
		    * than there are ports, so that none is tried twice */
#define PATIENT_TRIES 4 /* of them, for a port that is long over */
#define DATAGRAM_PORT 10000 /* and those above it: below are those of tunnels, which others' rules keep pods from */

/* Whether a port that is in use may be given again: this client's own, or that of a flow which is over, or says nothing. */
static __always_inline bool is_free(struct tuple *answer, struct flow *back, bool patient)
{
	struct flow *before = flows.lookup(answer);
	bool udp = answer->protocol == IPPROTO_UDP;
	struct tuple out;
	bool rested;
	u64 silent;
	u32 end;

	if (!before || before->flags & FLOW_OF_OTHERS)
		return false;
	if (is_same_end(&before->to, &back->to))
		return true;
	silent = back->seen - before->seen;
	if (silent < RESTS_SECONDS * SECOND)
		return false;
	rested = !patient || silent >= (udp ? SILENT_SECONDS : CLOSED_SECONDS) * SECOND;
	if (udp)
		return rested;
	out = way_of(answer, &before->to);
	end = end_of(&out, answers_to(&out));
	/* What was reset no server remembers. */
	return rested ? end : end & FLOW_RESET;
}

/* Gives it, and forgets the flow that had it whole. */
static __always_inline void take_over(struct tuple *answer, struct flow *back)
{
	struct flow *before = flows.lookup(answer);

	if (before && !is_same_end(&before->to, &back->to)) {
		struct tuple out = way_of(answer, &before->to);

		forget(&out);
	}
	flows.update(answer, back);
}

/*
 * Which of the ports is looked at first. A server that closed a connection takes no other between the same ports for a
 * minute, unless timestamps or sequence numbers go on where those of the last one ended (tcp_timewait_state_process). A
 * client sees to that for each of its ports by itself, and not across them (secure_tcp_seq; on Linux 6.18 timestamps, too,
 * begin anywhere for each port). So a port of a client leads to a port here. Datagrams have no numbers, and their ports are
 * better not foreseen.
 */
static __always_inline u32 first_try(struct packet *packet, u32 ports)
{
	struct address *client = &packet->tuple.source;
	u32 mixed = 0;

	if (packet->tuple.protocol == IPPROTO_UDP)
		return bpf_get_prandom_u32() & 0xffff;
#pragma unroll
	for (int i = 0; i < 4; i++)
		mixed = (mixed + client->word[i]) * 0x9e3779b1;
	/* An odd number of them, since kernels give out even ports while there are any (__inet_hash_connect). */
	return ((mixed >> 16) + bpf_ntohs(packet->tuple.source_port)) % ((ports - 1) | 1);
}

/* A port of this node's, by which answers of the backend are known: false if all that are tried are in use. */
static __always_inline bool masquerade(struct __sk_buff *skb, struct packet *packet, struct flow *flow)
{
	u32 index = skb->ifindex, zero = 0;
	struct device *device = devices.lookup(&index);
	struct config *node = config.lookup(&zero);
	struct tuple answer = turned(&packet->tuple, HOOK_INGRESS);
	struct flow back = {
		.to = {.address = packet->tuple.source, .port = packet->tuple.source_port},
		.seen = bpf_ktime_get_ns(),
	};
	bool is_new = false, is_found = false;
	u32 lowest, ports, first;

	if (!node || !node->ports)
		return false;
	lowest = node->first_port;
	ports = node->ports;
	if (packet->tuple.protocol == IPPROTO_UDP && lowest < DATAGRAM_PORT && lowest + ports > DATAGRAM_PORT) {
		ports -= DATAGRAM_PORT - lowest;
		lowest = DATAGRAM_PORT;
	}
	if (device)
		answer.destination = packet->v4 ? device->ipv4 : device->ipv6;
	if (!device || !(packet->v4 ? answer.destination.word[3] : answer.destination.word[0]))
		answer.destination = own_address(node, packet->v4);
	make_party(&answer.destination);
	first = first_try(packet, ports);
#pragma unroll /* Linux 6.1 does not take every loop for one that ends */
	for (int i = 0; i < PORT_TRIES; i++) {
		answer.destination_port = bpf_htons(lowest + (first + i * STEP) % ports);
		is_new = !flows.insert(&answer, &back);
		is_found = is_new || is_free(&answer, &back, i < PATIENT_TRIES);
		if (is_found)
			break;
	}
	if (!is_found)
		return false;
	if (!is_new)
		take_over(&answer, &back);
	flow->to.address = answer.destination;
	flow->to.port = answer.destination_port;
	return true;
}
