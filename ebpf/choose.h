/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* Which service a place is of, and which backend a client gets: the same for sockets and for packets. */
#pragma once
#include "count.h"

#define NANOSECONDS 1000000000ull

enum found {
	FOUND_NOTHING, /* the place is no concern of ours */
	FOUND_UNCLAIMED, /* a port of a ClusterIP that no service has */
	FOUND_SERVICE,
};

static __always_inline bool is_v4(struct address *address)
{
	return !address->word[0] && !address->word[1] && address->word[2] == V4_MAPPED;
}

static __always_inline bool is_same(struct address *one, struct address *other)
{
	return one->word[0] == other->word[0] && one->word[1] == other->word[1] && one->word[2] == other->word[2] &&
	       one->word[3] == other->word[3];
}

static __always_inline enum found find(struct place *to, struct service **service)
{
	u32 *kind = addresses.lookup(&to->address);

	if (!kind)
		return FOUND_NOTHING;
	*service = *kind & ADDRESS_FRONTEND ? services.lookup(to) : 0;
	if (!*service && *kind & ADDRESS_NODE) {
		struct place port = {.port = to->port, .protocol = to->protocol};

		if (is_v4(&to->address))
			port.address.word[2] = V4_MAPPED;
		*service = services.lookup(&port);
	}
	if (*service)
		return FOUND_SERVICE;
	return *kind & ADDRESS_CLUSTER_IP ? FOUND_UNCLAIMED : FOUND_NOTHING;
}

static __always_inline bool lets_in(struct service *service, struct address *from)
{
	struct source key = {.length = 8 * (sizeof(key) - sizeof(key.length)), .guard = service->guard, .address = *from};

	return sources.lookup(&key) != 0;
}

/*
 * The backend that number leads to; or, for a client that returns to its own, the one that it had while that is in the
 * pool.
 * False if there is none, which happens for an empty pool alone: user space writes slots before it counts them, and
 * removes them when nobody can have read the old count.
 */
static __always_inline bool choose(struct pool *pool, struct client *client, bool returns, u32 seconds, u32 number,
				   struct backend *chosen)
{
	u64 now = returns ? bpf_ktime_get_ns() : 0;

	if (returns) {
		struct choice *before = choices.lookup(client);

		if (before && (!seconds || now - before->made < seconds * NANOSECONDS)) {
			struct member member = {.pool = pool->id, .backend = before->backend};

			if (members.lookup(&member)) {
				*chosen = before->backend;
				before->made = now;
				return true;
			}
		}
	}
	if (!pool->count)
		return false;
	struct slot slot = {.pool = pool->id, .number = number % pool->count};
	struct backend *backend = backends.lookup(&slot);

	if (!backend)
		return false;
	*chosen = *backend;
	if (returns) {
		struct choice choice = {.backend = *backend, .made = now};

		choices.update(client, &choice);
	}
	return true;
}
