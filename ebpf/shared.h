/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * What both sides know: the keys and values of the maps, and the bits in them. layout.py has the same for user space,
 * and a test holds the two against each other.
 *
 * Every address has 128 bits; IPv4 is written as in RFC 4291, 2.5.5.2 (::ffff:10.0.0.1). So a socket of IPv6 that talks
 * IPv4 finds the same entries, and nothing stands here twice. Ports and addresses are in network order. No struct has
 * padding that is not named: the kernel compares keys byte by byte.
 */
#pragma once

#define V4_MAPPED bpf_htonl(0xffff) /* word 2 of an IPv4 address */

struct address {
	__u32 word[4];
};

/* Where somebody wants to go, or comes from. */
struct place {
	struct address address; /* 0.0.0.0 or ::, wherever node ports answer */
	__be16 port;
	__u8 protocol;
	__u8 pad;
};

/* Backends that one is chosen of. */
struct pool {
	__u32 id;
	__u32 count; /* slots 0 to count - 1 are in the map backends */
};

/* What becomes of those who come to a place. */
struct service {
	struct pool inside;  /* for sockets and pods of this node */
	struct pool outside; /* for all others */
	__u32 guard;         /* id in the map sources of who may come in; 0: everybody */
	__u32 affinity;      /* seconds; 0: none */
	__u32 flags;         /* SERVICE_* */
	__u32 counter;       /* index in the map counters; COUNTER_OTHERS: it has none of its own */
	__u32 table;         /* by which one of outside is chosen: its version in the map maglev */
	__u32 places;        /* how many it has; 0: there is none, any is chosen */
};

#define SERVICE_INSIDE_DROPS 1u       /* an empty pool: say nothing, instead of refusing */
#define SERVICE_OUTSIDE_DROPS 2u
#define SERVICE_MASQUERADES_PODS 4u   /* give packets of pods a node address as their source */
#define SERVICE_MASQUERADES_OUTSIDE 8u
#define SERVICE_LETS_NODE_IN 16u      /* the source that this node would use is one of the guard's */
#define SERVICE_LEAVES_PODS 32u       /* sockets of pods are left to the packet level, since that masquerades */

struct slot {
	__u32 pool;
	__u32 number;
};

/* What went through a service, as one processor saw it. Bytes are those of IP packets, headers included. */
struct counter {
	__u64 sockets; /* connected to a backend; of datagrams without a connection, once for each backend and socket */
	__u64 flows;   /* that packets began: clients from elsewhere, and pods whose sockets nobody sees */
	__u64 refused; /* connections, at sockets and by packets; each datagram by itself */
	__u64 dropped; /* the same, and packets for which no port of this node was free */
	__u64 lost;    /* packets in the midst of a connection that no flow is known of */
	__u64 packets_in; /* of flows, from clients */
	__u64 bytes_in;
	__u64 packets_out; /* to them */
	__u64 bytes_out;
};

#define COUNTER_OTHERS 0u /* of services that came when all numbers were in use */
#define COUNTER_GONE 1u   /* user space sums up here what those counted that had a number before */

/* Whose counter it is. Programs do not read it. */
struct name {
	char namespace[64];
	char service[64];
	char port[64];
	__u8 family; /* 4 or 6 */
	__u8 pad[7];
};

struct backend {
	struct address address;
	__be16 port;
	__u16 pad;
};

/* Some of the places of a table of Maglev's: 256 one after the other, since tables are of several sizes. */
#define STRETCH_PLACES 256

struct stretch {
	__u32 pool;
	__u32 version; /* a changed table is another one, so that nobody finds one half changed */
	__u32 number;
};

struct places {
	__u16 slot[STRETCH_PLACES]; /* of the pool; who has the place */
};

/* Says that a backend is one of a pool's. */
struct member {
	__u32 pool;
	struct backend backend;
};

/* Who is to have the same backend again. */
struct client {
	__u32 pool;
	__u32 kind; /* CLIENT_* */
	struct address id;
};

#define CLIENT_ADDRESS 0u
#define CLIENT_NAMESPACE 1u /* the cookie of a network namespace: a pod, or this node */
#define CLIENT_SOCKET 2u    /* the cookie of a socket: datagrams of one socket go to one backend */

struct choice {
	struct backend backend;
	__u32 pad;
	__u64 made; /* when it was made, or confirmed, last: bpf_ktime_get_ns() */
};

/* The backend that a socket of TCP is connected to, and where it thinks that it is. */
struct connection {
	struct backend backend;
	struct place place;
};

/* A socket of UDP, and a backend that it talks to. */
struct peer {
	__u64 cookie;
	struct backend backend;
	__u32 pad;
};

/* What that socket thinks that it talks to. */
struct origin {
	struct place place;
	__u32 pad;
	__u64 namespace; /* the cookie of the socket's network namespace */
};

/* A source that may come in where a guard is. */
struct source {
	__u32 length; /* of the prefix, in bits, those of guard included */
	__u32 guard;
	struct address address;
};

/* The bits of the map addresses. */
#define ADDRESS_FRONTEND 1u   /* of services */
#define ADDRESS_CLUSTER_IP 2u /* refuses at ports that no service has */
#define ADDRESS_NODE 4u       /* where node ports answer */

/* A network where pods of this node have their addresses. */
struct prefix {
	__u32 length;
	struct address address;
};

/* A device that packets come in or go out by. */
struct device {
	struct address ipv4; /* what packets that go out there are masqueraded by; all zero: what config says */
	struct address ipv6;
	__u32 flags; /* DEVICE_* */
};

#define DEVICE_OF_PODS 1u     /* who comes in there is a pod of this node */
#define DEVICE_NO_ETHERNET 2u /* packets begin with their IP header */

/* A packet's way at one of the two hooks. */
struct tuple {
	struct address source;
	struct address destination;
	__be16 source_port;
	__be16 destination_port;
	__u8 protocol;
	__u8 hook; /* HOOK_* */
	__u16 pad;
};

#define HOOK_INGRESS 0 /* destinations are translated here */
#define HOOK_EGRESS 1  /* and sources here */

/* What becomes of packets on that way. */
struct flow {
	struct backend to; /* the new destination, or source; port 0 of a source: not chosen yet */
	__u32 pool;        /* that the backend was chosen of; only of who goes to a service */
	__u16 flags;       /* FLOW_* */
	__be16 port;       /* of the client on the other side of the service, where it is another; else 0 */
	__u32 counter;     /* of the service; of the node's own way to the backend, too, which counts only drops */
	__u64 seen; /* bpf_ktime_get_ns(), to the second */
};

#define FLOW_TO_SERVICE 1u /* the first packet's way at ingress */
#define FLOW_CLIENT_FIN 2u
#define FLOW_BACKEND_FIN 4u
#define FLOW_RESET 8u
#define FLOW_OF_OTHERS 16u /* an answer to a port that another mode gave to a client of its own: leave it alone */
#define FLOW_FROM_SERVICE 32u /* the way of answers at egress */
#define FLOW_ENDS (FLOW_CLIENT_FIN | FLOW_BACKEND_FIN | FLOW_RESET)

/* A packet that is in pieces: only the first has ports. */
struct fragment {
	struct address source;
	struct address destination;
	__u32 id;
	__u8 protocol;
	__u8 hook;
	__u16 pad;
};

struct ports {
	__be16 source;
	__be16 destination;
};

struct config {
	__u64 namespace; /* the cookie of the node's own network namespace */
	struct address ipv4; /* of this node; all zero if it has none */
	struct address ipv6;
	__u16 first_port; /* that a masqueraded packet may have, in host order; see modes/ebpf/site.py */
	__u16 ports;
	__u32 flags; /* CONFIG_* */
};

#define CONFIG_DRAINING 1u /* another mode serves: only flows that are there are translated */
