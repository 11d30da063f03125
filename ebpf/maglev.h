/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Which of a pool's slots a packet's flow gets, where nodes are to agree on it: by a hash of the flow, and a table that
 * they all have alike (modes/ebpf/maglev.py).
 */
#pragma once
#include "parse.h"

/* Every bit of word goes into every bit of the hash: a step of splitmix64. */
static __always_inline u64 mixed(u64 hash, u64 word)
{
	hash += word + 0x9e3779b97f4a7c15ull;
	hash = (hash ^ hash >> 30) * 0xbf58476d1ce4e5b9ull;
	hash = (hash ^ hash >> 27) * 0x94d049bb133111ebull;
	return hash ^ hash >> 31;
}

/* Two words of an address in host order, so that nodes of either byte order have the same hash. */
static __always_inline u64 half(struct address *address, int at)
{
	return (u64)bpf_ntohl(address->word[at]) << 32 | bpf_ntohl(address->word[at + 1]);
}

/*
 * Of what all nodes see alike. That leaves out the destination's address, which is each node's own where a load balancer
 * sends to node ports. Who is to come back to the same backend does so from any port.
 */
static __always_inline u32 hash_of(struct tuple *tuple, bool returns)
{
	u64 hash = mixed(mixed(0, half(&tuple->source, 0)), half(&tuple->source, 2));

	if (!returns)
		hash = mixed(hash, (u64)bpf_ntohs(tuple->source_port) << 32 | bpf_ntohs(tuple->destination_port) << 16 |
					   tuple->protocol);
	return hash >> 32;
}

/* A slot of the pool outside; or any number if there is no table. */
static __always_inline u32 slot_for(struct service *service, struct tuple *tuple)
{
	if (!service->places)
		return bpf_get_prandom_u32();

	u32 place = hash_of(tuple, service->affinity) % service->places;
	struct stretch key = {
		.pool = service->outside.id,
		.version = service->table,
		.number = place / STRETCH_PLACES,
	};
	struct places *places = maglev.lookup(&key);

	return places ? places->slot[place % STRETCH_PLACES] : bpf_get_prandom_u32();
}
