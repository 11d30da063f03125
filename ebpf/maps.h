/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The maps, for BCC of one entry each. User space makes others and pins them (layout.py says how large), and puts those
 * into the programs (compiler.py): so maps outlive programs, and programs of another version of this file never see them.
 */
#pragma once
#include "shared.h"

/* What is known of a destination's address: all that others, who are no concern of ours, pay for. */
BPF_TABLE("hash", struct address, u32, addresses, 1);

/* What is to be done for those who come to a place. */
BPF_TABLE("hash", struct place, struct service, services, 1);

/* The backends of each pool by number, so that one is chosen by a random one. */
BPF_TABLE("hash", struct slot, struct backend, backends, 1);

/* The same backends by themselves: whether one that was chosen earlier is in the pool yet. */
BPF_TABLE("hash", struct member, u32, members, 1);

/* Which of a pool's backends those from outside get by their hash, where nodes are to agree on it. */
BPF_TABLE("hash", struct stretch, struct places, maglev, 1);

/* Which backend a client had, for those who shall have it again. The oldest are forgotten when it is full. */
BPF_TABLE("lru_hash", struct client, struct choice, choices, 1);

/* Who may come to a guarded place. */
BPF_F_TABLE("lpm_trie", struct source, u32, sources, 1, BPF_F_NO_PREALLOC);

/* Where sockets of TCP think that they are connected to: in the socket itself, so it is found at once, and goes with it. */
BPF_SK_STORAGE(connections, struct connection);

/* Where sockets of UDP think that they are connected to, or send to. In a map, since user space looks for those whose
 * backend went, and since one may talk to several. */
BPF_TABLE("lru_hash", struct peer, struct origin, udp_peers, 1);

/* Ways of packets that are translated, two for each hook: the client's and the backend's. Who was not seen for longest
 * is forgotten when it is full, and that is who has ended. */
BPF_TABLE("lru_hash", struct tuple, struct flow, flows, 1);

/* Which addresses flows are of: see party.h. */
BPF_TABLE("array", u32, u32, parties, 1);

/* The ports of packets in pieces. */
BPF_TABLE("lru_hash", struct fragment, struct ports, fragments, 1);

/* Who is a pod of this node, by address. */
BPF_F_TABLE("lpm_trie", struct prefix, u32, pods, 1, BPF_F_NO_PREALLOC);

/* The devices that packet programs are attached to, by index. */
BPF_TABLE("hash", u32, struct device, devices, 1);

/* What went through each service: an array, so that a packet finds its own by the number that its flow has. */
BPF_TABLE("percpu_array", u32, struct counter, counters, 1);

/* Whose they are: for whoever reads them, and so that a service keeps its number over a restart. */
BPF_TABLE("hash", u32, struct name, names, 1);

/* One entry, about this node. */
BPF_TABLE("array", u32, struct config, config, 1);
