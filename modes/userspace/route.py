"""A route as entries for relays: pure values."""

from collections.abc import Collection, Iterable, Iterator

from modes.userspace.protocol import Endpoint, Entry
from pyproxy.table import IP, OnEmpty, Pool, Route, Scope, family_of


def entries_of(route: Route, node_addresses: Iterable[IP], own: Collection[IP]) -> Iterator[Entry]:
    """Nobody listens for frontends without endpoints, so the kernel refuses; unless somebody must be dropped there.

    ``node_addresses``: where node ports answer. ``own``: all addresses of this node.
    """
    places = [(f.address, f.port, f.scope) for f in route.frontends]
    if route.node_port:
        answering = (ip for ip in node_addresses if family_of(ip) is route.id.family)
        places += [(ip, route.node_port, Scope.EXTERNAL_IP) for ip in answering]
    for address, port, scope in places:
        place = (route.transport.value, address, port)
        if scope is Scope.CLUSTER_IP:
            outside = inside = route.internal
        else:
            outside = route.external
            inside = route.external if route.masquerade_external else route.short_circuit
        guarded = scope is Scope.LOAD_BALANCER and route.allowed_sources is not None
        drops = _drops(outside)
        if not (outside.backends or inside.backends or guarded or drops):
            continue
        yield Entry(
            place=place,
            route=str(route.id),
            outside=_endpoints(outside),
            inside=_endpoints(inside),
            # Nobody may come where everybody is dropped.
            sources=() if drops and _drops(inside) else _sources(route, address, own) if guarded else None,
            sticky_seconds=route.affinity_seconds or 0,
            drops_outside=drops,
        )


def _sources(route: Route, address: IP, own: Collection[IP]) -> tuple[str, ...]:
    """The node asks itself from the very address that it asks (ip_route_output_key_hash_rcu): it may if it is one of
    those who may."""
    allowed = tuple(route.allowed_sources or ())
    return (*allowed, address) if route.lets_in(own) else allowed


def _drops(pool: Pool) -> bool:
    return not pool.backends and pool.on_empty is OnEmpty.DROP


def _endpoints(pool: Pool) -> tuple[Endpoint, ...]:
    return tuple((backend.ip, backend.port) for backend in pool.backends)
