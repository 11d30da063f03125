"""A route as virtual servers and elements of sets: pure values, no kernel."""

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from zlib import crc32

from modes.ipvs.ruleset import MASQUERADE, set_name
from pyproxy.kernel.ipset import Elements, Slot
from pyproxy.kernel.ipvs import Key, Real, Service
from pyproxy.table import IP, Family, Frontend, OnEmpty, Pool, Prefix, Route, RouteId, Scope, Transport, family_of


@dataclass(frozen=True, slots=True)
class Server:
    """A virtual server as it should be."""

    service: Service
    pool: Pool
    drains: bool
    """Whether connections to an endpoint that goes are let finish."""

    @property
    def reals(self) -> list[Real]:
        return [Real(backend.ip, backend.port) for backend in self.pool.backends]


@dataclass(slots=True)
class Part:
    """What one route needs in the kernel."""

    servers: dict[Key, Server] = field(default_factory=dict)
    elements: Elements = field(default_factory=dict)


class Marks:
    """A mark for each route whose endpoints for the inside are others than for the world: the same after a restart.

    It leaves the bit for masquerading free, which tells the two virtual servers apart that bear it.
    """

    def __init__(self) -> None:
        self._owners: dict[int, RouteId] = {}

    def of(self, route_id: RouteId) -> int:
        mark = crc32(str(route_id).encode()) & ~MASQUERADE
        while not mark or self._owners.setdefault(mark, route_id) != route_id:
            mark = (mark + 1) & 0xFFFFFFFF & ~MASQUERADE
        return mark

    def release(self, route_id: RouteId) -> None:
        del self._owners[self.of(route_id)]


@dataclass(frozen=True, slots=True)
class Site:
    """What a part depends on beside its route."""

    scheduler: str = "rr"
    own: frozenset[IP] = frozenset()
    """Addresses that this node has anyway: they are claimed for no service."""
    node_port_addresses: tuple[IP, ...] = ()
    """Those of them where node ports answer."""


def part_of(route: Route, site: Site, marks: Marks) -> Part:
    part = Part()
    family, service = route.id.family, Service(site.scheduler, route.affinity_seconds or 0)
    drains = route.transport is not Transport.UDP
    node_ports = list(_node_ports(route, site.node_port_addresses))
    for frontend in (*route.frontends, *node_ports):
        spelled = f"{frontend.address},{route.transport.value}:{frontend.port}"
        is_guarded = frontend.scope is Scope.LOAD_BALANCER and route.allowed_sources is not None
        for kind, mark in _kinds(route, frontend, marks):
            part.elements[Slot(set_name(kind, family), spelled)] = mark
        if is_guarded:
            part.elements[Slot(set_name("GUARDED", family), spelled)] = 0
            for source in _sources(route, frontend.address, site.own):
                part.elements[Slot(set_name("ALLOWED", family), f"{spelled},{source}")] = 0
        pool = route.internal if frontend.scope is Scope.CLUSTER_IP else route.external
        if pool.backends:
            key = Key(family, route.transport.value, frontend.address, frontend.port)
            part.servers[key] = Server(service, pool, drains)
        if frontend.address not in site.own:
            part.elements[Slot(set_name("CLAIMED", family), frontend.address)] = 0
    for mark in filter(None, set(part.elements.values())):
        for whole in (mark, mark | MASQUERADE):
            part.servers[Key(family, "", None, 0, whole)] = Server(service, route.short_circuit, drains)
    for pool in {id(server.pool): server.pool for server in part.servers.values()}.values():
        for backend in pool.backends:
            if backend.is_local:
                part.elements[Slot(set_name("HAIRPIN", family), f"{backend.ip},{backend.ip}")] = 0
    return part


def _sources(route: Route, address: IP, own: Collection[IP]) -> Iterator[Prefix]:
    """The node asks itself from the very address that it asks (ip_route_output_key_hash_rcu): it may if it is one of
    those who may."""
    yield from route.allowed_sources or ()
    if route.lets_in(own):
        yield Prefix(f"{address}/{128 if route.id.family is Family.IPV6 else 32}")


def _node_ports(route: Route, node_addresses: Iterable[IP]) -> Iterator[Frontend]:
    if route.node_port:
        for address in node_addresses:
            if family_of(address) is route.id.family:
                yield Frontend(address, route.node_port, Scope.EXTERNAL_IP)


def _kinds(route: Route, frontend: Frontend, marks: Marks) -> Iterator[tuple[str, int]]:
    """The sets that say what becomes of a frontend, each with the mark that goes with it."""
    is_internal = frontend.scope is Scope.CLUSTER_IP
    pool = route.internal if is_internal else route.external
    if pool.backends:
        yield "CLUSTER" if is_internal else "EXTERNAL" if route.masquerade_external else "KEPT", 0
    else:
        yield "REFUSED" if pool.on_empty is OnEmpty.REJECT else "DROPPED", 0
    if not is_internal and not route.masquerade_external and route.short_circuit.backends:
        yield "INSIDE", marks.of(route.id)
