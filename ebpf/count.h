/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What went through a service: one look-up in an array of this processor for each connection at a socket, and for each
 * packet that is translated. What is no concern of ours is not counted, and pays nothing.
 *
 * Only packet programs count flows and packets. They are never interrupted by one another on a processor, so that plain
 * additions do; the rest is counted at sockets, too, whose programs packets interrupt.
 */
#pragma once
#include "maps.h"

static __always_inline struct counter *counter_of(u32 number)
{
	return counters.lookup(&number);
}

#define count(number, field)                                          \
	do {                                                          \
		struct counter *counter = counter_of(number);         \
		if (counter)                                          \
			__sync_fetch_and_add(&counter->field, 1);     \
	} while (0)
