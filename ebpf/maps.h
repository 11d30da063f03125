/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The maps. User space makes and pins them (layout.py says how large), BCC finds them by PINS, the folder they are in:
 * so they outlive programs, and programs of another version of this file never see them.
 */
#pragma once
#include "shared.h"

/* What is known of a destination's address: all that others, who are no concern of ours, pay for. */
BPF_TABLE_PINNED("hash", struct address, u32, addresses, 1, PINS "/addresses");

/* What is to be done for those who come to a place. */
BPF_TABLE_PINNED("hash", struct place, struct service, services, 1, PINS "/services");

/* The backends of each pool by number, so that one is chosen by a random one. */
BPF_TABLE_PINNED("hash", struct slot, struct backend, backends, 1, PINS "/backends");

/* The same backends by themselves: whether one that was chosen earlier is in the pool yet. */
BPF_TABLE_PINNED("hash", struct member, u32, members, 1, PINS "/members");

/* Which backend a client had, for those who shall have it again. The oldest are forgotten when it is full. */
BPF_TABLE_PINNED("lru_hash", struct client, struct choice, choices, 1, PINS "/choices");

/* Who may come to a guarded place. */
BPF_TABLE_PINNED("lpm_trie", struct source, u32, sources, 1, PINS "/sources");

/* Where sockets think that they are connected to, or send to: one map for each protocol, so that many short TCP
 * connections push no UDP socket out, whose resolver takes no answer from a stranger. */
BPF_TABLE_PINNED("lru_hash", struct peer, struct origin, tcp_peers, 1, PINS "/tcp_peers");
BPF_TABLE_PINNED("lru_hash", struct peer, struct origin, udp_peers, 1, PINS "/udp_peers");

/* Ways of packets that are translated, two for each hook: the client's and the backend's. Who was not seen for longest
 * is forgotten when it is full, and that is who has ended. */
BPF_TABLE_PINNED("lru_hash", struct tuple, struct flow, flows, 1, PINS "/flows");

/* The ports of packets in pieces. */
BPF_TABLE_PINNED("lru_hash", struct fragment, struct ports, fragments, 1, PINS "/fragments");

/* Who is a pod of this node, by address. */
BPF_TABLE_PINNED("lpm_trie", struct prefix, u32, pods, 1, PINS "/pods");

/* The devices that packet programs are attached to, by index. */
BPF_TABLE_PINNED("hash", u32, struct device, devices, 1, PINS "/devices");

/* What went through each service: an array, so that a packet finds its own by the number that its flow has. */
BPF_TABLE_PINNED("percpu_array", u32, struct counter, counters, 1, PINS "/counters");

/* Whose they are: for whoever reads them, and so that a service keeps its number over a restart. */
BPF_TABLE_PINNED("hash", u32, struct name, names, 1, PINS "/names");

/* One entry, about this node. */
BPF_TABLE_PINNED("array", u32, struct config, config, 1, PINS "/config");
