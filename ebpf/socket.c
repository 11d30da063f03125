/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The socket level. A socket of this node that connects, or sends a datagram, to a service gets a backend instead,
 * before there is any packet; so packets cost nothing. What the socket asks about its peer gets the service's address.
 *
 * Every program returns 1 to go on, with whatever is in ctx then, and 0 to fail the system call by what was set with
 * bpf_set_retval().
 */
#include <linux/bpf.h>
#include <linux/in.h>

#include "choose.h"

#define REFUSED (-111)   /* -ECONNREFUSED */
#define TIMED_OUT (-110) /* -ETIMEDOUT */

enum verdict {
	PASS,
	TRANSLATED,
	REFUSE,
	DROP,
};

static __always_inline bool is_zero(struct address *address)
{
	return !(address->word[0] | address->word[1] | address->word[2] | address->word[3]);
}

/* The address that a socket is bound to, all zero if it is to none. */
static __always_inline struct address bound_to(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct address bound = {};

	if (!sk)
		return bound;
	if (sk->family == 2 /* AF_INET */) {
		if (sk->src_ip4) {
			bound.word[2] = V4_MAPPED;
			bound.word[3] = sk->src_ip4;
		}
		return bound;
	}
	bound.word[0] = sk->src_ip6[0];
	bound.word[1] = sk->src_ip6[1];
	bound.word[2] = sk->src_ip6[2];
	bound.word[3] = sk->src_ip6[3];
	return bound;
}

/*
 * Who may come to a guarded place is told by its source. That of this node is known, even before its socket is bound.
 * What a pod's would be is not: the packet level, which sees it, decides.
 */
static __always_inline enum verdict guard(struct bpf_sock_addr *ctx, struct service *service, bool is_node)
{
	struct address from = bound_to(ctx);

	if (!is_zero(&from))
		return lets_in(service, &from) ? TRANSLATED : DROP;
	if (!is_node)
		return PASS;
	return service->flags & SERVICE_LETS_NODE_IN ? TRANSLATED : DROP;
}

/* In place of what the socket was connected to before, if it was. Where there is no memory, it is told the backend. */
static __always_inline void note_connection(struct bpf_sock_addr *ctx, struct connection *connection)
{
	struct bpf_sock *sk = ctx->sk;
	struct connection *noted;

	if (!sk)
		return;
	noted = connections.sk_storage_get(sk, connection, BPF_SK_STORAGE_GET_F_CREATE);
	if (noted)
		*noted = *connection;
}

/* Puts a backend into to where it is a service's. */
static __always_inline enum verdict translate(struct bpf_sock_addr *ctx, struct place *to, bool connects)
{
	struct service *service = 0;
	u32 zero = 0;

	switch (find(to, &service)) {
	case FOUND_NOTHING:
		return PASS;
	case FOUND_UNCLAIMED:
		return REFUSE;
	case FOUND_SERVICE:
		break;
	}
	if (!service) /* for the verifier */
		return PASS;

	struct config *node = config.lookup(&zero);
	u64 namespace = bpf_get_netns_cookie(ctx);

	if (!node)
		return PASS;
	if (service->flags & SERVICE_LEAVES_PODS && namespace != node->namespace)
		return PASS;
	if (service->guard) {
		enum verdict verdict = guard(ctx, service, namespace == node->namespace);

		if (verdict == DROP)
			count(service->counter, dropped);
		if (verdict != TRANSLATED)
			return verdict;
	}

	struct pool pool = service->inside;
	struct client client = {.pool = pool.id};
	struct connection connection = {.place = *to};
	bool returns = false, is_new = true;

	if (!pool.count && service->flags & SERVICE_INSIDE_DROPS) {
		count(service->counter, dropped);
		return DROP;
	}
	if (service->affinity) {
		client.kind = CLIENT_NAMESPACE;
		*(u64 *)client.id.word = namespace;
		returns = true;
	} else if (!connects) {
		client.kind = CLIENT_SOCKET;
		*(u64 *)client.id.word = bpf_get_socket_cookie(ctx);
		returns = true;
	}

	if (!choose(&pool, &client, returns, service->affinity, bpf_get_prandom_u32(), &connection.backend)) {
		count(service->counter, refused);
		return REFUSE;
	}
	to->address = connection.backend.address;
	to->port = connection.backend.port;
	if (to->protocol == IPPROTO_TCP) {
		note_connection(ctx, &connection);
	} else {
		struct peer peer = {.cookie = bpf_get_socket_cookie(ctx), .backend = connection.backend};
		struct origin origin = {.place = connection.place, .namespace = namespace};
		struct origin *known = udp_peers.lookup(&peer);

		/* Each datagram comes by here, and most of them are not the first. */
		is_new = !known || known->place.port != origin.place.port ||
			 !is_same(&known->place.address, &origin.place.address);
		if (is_new)
			udp_peers.update(&peer, &origin);
	}
	if (connects || is_new)
		count(service->counter, sockets);
	return TRANSLATED;
}

/* Puts the place that a socket knows into from, where that is the backend it got instead. */
static __always_inline bool untranslate(struct bpf_sock_addr *ctx, struct place *from)
{
	if (from->protocol == IPPROTO_TCP) {
		struct bpf_sock *sk = ctx->sk;
		struct connection *noted = sk ? connections.sk_storage_get(sk, 0, 0) : 0;

		if (!noted || noted->backend.port != from->port || !is_same(&noted->backend.address, &from->address))
			return false;
		*from = noted->place;
		return true;
	}

	struct peer peer = {.cookie = bpf_get_socket_cookie(ctx), .backend = {.address = from->address, .port = from->port}};
	struct origin *origin = udp_peers.lookup(&peer);

	if (!origin)
		return false;
	*from = origin->place;
	return true;
}

static __always_inline bool is_ours(struct bpf_sock_addr *ctx)
{
	return ctx->protocol == IPPROTO_TCP || ctx->protocol == IPPROTO_UDP;
}

static __always_inline struct place place4(struct bpf_sock_addr *ctx)
{
	struct place place = {.port = ctx->user_port, .protocol = ctx->protocol};

	place.address.word[2] = V4_MAPPED;
	place.address.word[3] = ctx->user_ip4;
	return place;
}

static __always_inline struct place place6(struct bpf_sock_addr *ctx)
{
	struct place place = {.port = ctx->user_port, .protocol = ctx->protocol};

	place.address.word[0] = ctx->user_ip6[0];
	place.address.word[1] = ctx->user_ip6[1];
	place.address.word[2] = ctx->user_ip6[2];
	place.address.word[3] = ctx->user_ip6[3];
	return place;
}

static __always_inline void put4(struct bpf_sock_addr *ctx, struct place *place)
{
	ctx->user_ip4 = place->address.word[3];
	ctx->user_port = place->port;
}

static __always_inline void put6(struct bpf_sock_addr *ctx, struct place *place)
{
	ctx->user_ip6[0] = place->address.word[0];
	ctx->user_ip6[1] = place->address.word[1];
	ctx->user_ip6[2] = place->address.word[2];
	ctx->user_ip6[3] = place->address.word[3];
	ctx->user_port = place->port;
}

/* What the system call returns when the verdict is not to go on. */
static __always_inline int fail(enum verdict verdict)
{
	/*
	 * Refused: no usable endpoint, or nobody's port, as a reset would say it. Dropped: silence can't be returned,
	 * so it is what comes after it.
	 */
	bpf_set_retval(verdict == REFUSE ? REFUSED : TIMED_OUT);
	return 0;
}

static __always_inline int go4(struct bpf_sock_addr *ctx, bool connects)
{
	if (!is_ours(ctx))
		return 1;

	struct place to = place4(ctx);
	enum verdict verdict = translate(ctx, &to, connects);

	if (verdict == TRANSLATED)
		put4(ctx, &to);
	return verdict >= REFUSE ? fail(verdict) : 1;
}

static __always_inline int go6(struct bpf_sock_addr *ctx, bool connects)
{
	if (!is_ours(ctx))
		return 1;

	struct place to = place6(ctx);
	enum verdict verdict = translate(ctx, &to, connects);

	if (verdict == TRANSLATED)
		put6(ctx, &to);
	return verdict >= REFUSE ? fail(verdict) : 1;
}

static __always_inline int come4(struct bpf_sock_addr *ctx)
{
	struct place from = place4(ctx);

	if (is_ours(ctx) && untranslate(ctx, &from))
		put4(ctx, &from);
	return 1;
}

static __always_inline int come6(struct bpf_sock_addr *ctx)
{
	struct place from = place6(ctx);

	if (is_ours(ctx) && untranslate(ctx, &from))
		put6(ctx, &from);
	return 1;
}

int connect4(struct bpf_sock_addr *ctx)
{
	return go4(ctx, true);
}

int connect6(struct bpf_sock_addr *ctx)
{
	return go6(ctx, true);
}

int sendmsg4(struct bpf_sock_addr *ctx)
{
	return go4(ctx, false);
}

int sendmsg6(struct bpf_sock_addr *ctx)
{
	return go6(ctx, false);
}

int recvmsg4(struct bpf_sock_addr *ctx)
{
	return come4(ctx);
}

int recvmsg6(struct bpf_sock_addr *ctx)
{
	return come6(ctx);
}

int getpeername4(struct bpf_sock_addr *ctx)
{
	return come4(ctx);
}

int getpeername6(struct bpf_sock_addr *ctx)
{
	return come6(ctx);
}
