/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Who has flows here: clients that packet programs translate, and this node where it masquerades them. Most packets on a
 * node are neither theirs nor for a service, and this is all that they pay: one look-up in an array for each of their
 * ends, and as they come in one whether it is a service's address.
 *
 * An address has one of many places, and may share it: who does is looked up in the map flows, as if it were a party.
 * Nobody is ever taken out, since it is not known which of its flows is the last one.
 */
#pragma once
#include "parse.h"

static __always_inline u32 party_of(struct address *address)
{
	u64 high = (u64)address->word[0] << 32 | address->word[1], low = (u64)address->word[2] << 32 | address->word[3];

	return (high * 0xbf58476d1ce4e5b9ull ^ low) * 0x9e3779b97f4a7c15ull >> 48;
}

static __always_inline bool is_party(struct address *address)
{
	u32 number = party_of(address);
	u32 *known = parties.lookup(&number);

	return known && *known;
}

static __always_inline void make_party(struct address *address)
{
	u32 number = party_of(address);
	u32 *known = parties.lookup(&number);

	/* Written once: other processors have it in their caches. */
	if (known && !*known)
		*known = 1;
}

/* Whether a packet may be a flow's or, as it comes in, begin one. */
static __always_inline bool concerns_us(struct tuple *tuple)
{
	return is_party(&tuple->source) || is_party(&tuple->destination) ||
	       (tuple->hook == HOOK_INGRESS && addresses.lookup(&tuple->destination));
}
