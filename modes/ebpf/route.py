"""A route as entries of the maps: pure values, no kernel."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ebpf import layout
from modes.ebpf import maglev
from modes.ebpf.site import Site
from pyproxy.table import IP, EbpfAlgorithm, Family, Host, OnEmpty, Route, Scope, family_of


class Key(NamedTuple):
    map: str
    key: bytes


Entries = dict[Key, bytes]
"""What the maps are to hold, but for the map addresses, whose entries are shared."""

ROLES = ("internal", "external", "short_circuit")
"""The fields of Route that hold pools."""


@dataclass(frozen=True, slots=True)
class Ids:
    """The numbers that a route has in the maps: they stay for as long as it is there, over restarts, too."""

    pools: tuple[int, int, int]
    """By ROLES."""
    guard: int
    counter: int = layout.COUNTER_OTHERS


class Places(NamedTuple):
    """A table of Maglev's as the maps have it."""

    backends: tuple[bytes, ...] = ()
    """In the order of their slots; empty where any is chosen."""
    version: int = 0
    """Tells it from any that the same pool had lately: another table is written beside it."""
    size: int = 0
    stretches: tuple[bytes, ...] = ()


NO_PLACES = Places()


def places_of(route: Route, host: Host, known: Places = NO_PLACES) -> Places:
    """By which those from outside are spread; ``known``: what the route had before.

    A ClusterIP has none: those who use it are inside.
    """
    is_exposed = route.node_port or any(one.scope is not Scope.CLUSTER_IP for one in route.frontends)
    if host.ebpf_algorithm is not EbpfAlgorithm.MAGLEV or not is_exposed:
        return NO_PLACES
    backends = tuple(layout.backend(one.ip, one.port) for one in route.external.backends)
    if backends == known.backends:
        return known
    slots = maglev.table(backends)
    if not slots:
        return Places(backends)
    stretches = layout.stretches(slots)
    digest = hashlib.blake2b(b"".join(stretches), digest_size=4).digest()
    return Places(backends, int.from_bytes(digest, "big"), len(slots), stretches)


def pools_of(route: Route, ids: Ids) -> dict[str, layout.Pool]:
    """By ROLES; equal ones are one."""
    return {
        # Most are one object, and found equal at once.
        role: layout.Pool(ids.pools[route.pools.index(pool)], len(pool.backends))
        for role, pool in zip(ROLES, route.pools, strict=True)
    }


def is_guarded(route: Route, scope: Scope | None) -> bool:
    return scope is Scope.LOAD_BALANCER and route.allowed_sources is not None


def places(route: Route) -> Iterator[tuple[bytes, Scope | None, IP | None]]:
    """Keys of the map services. A node port has neither scope nor address."""
    for frontend in route.frontends:
        packed = layout.place(layout.address(frontend.address), frontend.port, route.transport.value)
        yield packed, frontend.scope, frontend.address
    if route.node_port:
        yield (
            layout.place(layout.ANY_ADDRESS[route.id.family.value], route.node_port, route.transport.value),
            None,
            None,
        )


def entries_of(route: Route, ids: Ids, spread: Places, host: Host, site: Site) -> Entries:
    entries: Entries = {}
    pools = pools_of(route, ids)
    guarded = False
    for place, scope, address in places(route):
        is_guarded_here = is_guarded(route, scope)
        guarded = guarded or is_guarded_here
        lets_node_in = is_guarded_here and address is not None and _lets_in(route, site.source_to(address))
        service = _service(route, pools, ids, host, scope, lets_node_in)
        if scope is not Scope.CLUSTER_IP:
            service = service._replace(table=spread.version, places=spread.size)
        entries[Key("services", place)] = service.packed()
    if not entries:
        return entries
    if ids.counter >= layout.COUNTER_FIRST:
        entries[Key("names", layout.number(ids.counter))] = name_of(route).packed()
    for number, pool in {pools[role].id: pool for role, pool in zip(ROLES, route.pools, strict=True)}.items():
        for place_in_pool, backend in enumerate(pool.backends):
            packed = layout.backend(backend.ip, backend.port)
            entries[Key("backends", layout.slot(number, place_in_pool))] = packed
            entries[Key("members", layout.member(number, packed))] = layout.ONE
    for at, stretch in enumerate(spread.stretches):
        entries[Key("maglev", layout.stretch(pools["external"].id, spread.version, at))] = stretch
    if guarded:
        for prefix in route.allowed_sources or ():
            if family_of(prefix) is route.id.family:
                entries[Key("sources", layout.source(ids.guard, prefix))] = layout.ONE
    return entries


def name_of(route: Route) -> layout.Name:
    family = 6 if route.id.family is Family.IPV6 else 4
    return layout.Name(*route.id[:3], family)


ADDRESS_BITS = (layout.ADDRESS_FRONTEND, layout.ADDRESS_FRONTEND | layout.ADDRESS_CLUSTER_IP)
"""What a route may want of an address: the second of a ClusterIP."""


def addresses_of(route: Route) -> Iterator[tuple[bytes, int]]:
    """Keys of the map addresses, and the bits that the route wants there."""
    for frontend in route.frontends:
        yield layout.address(frontend.address), ADDRESS_BITS[frontend.scope is Scope.CLUSTER_IP]


def _service(
    route: Route, pools: dict[str, layout.Pool], ids: Ids, host: Host, scope: Scope | None, lets_node_in: bool
) -> layout.Service:
    flags = layout.LETS_NODE_IN if lets_node_in else 0
    if scope is Scope.CLUSTER_IP:
        inside = outside = "internal"
        if host.masquerade_all:
            flags |= layout.MASQUERADES_PODS | layout.MASQUERADES_OUTSIDE | layout.LEAVES_PODS
        elif host.pod_prefixes or host.pod_interfaces:  # else nobody can tell who is outside
            flags |= layout.MASQUERADES_OUTSIDE
    elif route.masquerade_external:
        inside = outside = "external"
        flags |= layout.MASQUERADES_PODS | layout.MASQUERADES_OUTSIDE
    else:
        inside, outside = "short_circuit", "external"
    if getattr(route, inside).on_empty is OnEmpty.DROP:
        flags |= layout.INSIDE_DROPS
    if getattr(route, outside).on_empty is OnEmpty.DROP:
        flags |= layout.OUTSIDE_DROPS
    guard = ids.guard if is_guarded(route, scope) else 0
    return layout.Service(pools[inside], pools[outside], guard, route.affinity_seconds or 0, flags, ids.counter)


def _lets_in(route: Route, source: IP | None) -> bool:
    return source is not None and route.lets_in([source])
