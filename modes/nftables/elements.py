"""A route as set elements: pure text, no kernel."""

from collections.abc import Iterator
from zlib import crc32

from modes.nftables.behaviour import MOST_BACKENDS, SHORT_CIRCUIT, Behaviour, size_of
from modes.nftables.family import Dialect
from modes.nftables.ruleset import CHOICE
from pyproxy.kernel.nft import Elements as Elements
from pyproxy.kernel.nft import Slot as Slot
from pyproxy.table import Backend, Pool, Route, Scope

_LONGEST_COMMENT = 127  # nft's NFTNL_UDATA_COMMENT_MAXLEN, less the end


def behaviours_of(route: Route) -> Iterator[tuple[Slot, Behaviour]]:
    """How each of the route's frontends behaves."""
    for frontend in route.frontends:
        if frontend.scope is Scope.CLUSTER_IP:
            behaviour = Behaviour("cluster-ip", size_of(route.internal), sticky_seconds=route.affinity_seconds)
        else:
            guarded = frontend.scope is Scope.LOAD_BALANCER and route.allowed_sources is not None
            behaviour = _external(route, guarded=guarded)
        yield Slot("services", f"{frontend.address} . {route.transport.value} . {frontend.port}"), behaviour
    if route.node_port:
        slot = Slot("node-ports", f"{route.transport.value} . {route.node_port}")
        yield slot, _external(route, node_port=True)


def _external(route: Route, *, guarded: bool = False, node_port: bool = False) -> Behaviour:
    return Behaviour(
        "external" if route.masquerade_external else "local",
        size_of(route.external),
        size_of(route.short_circuit),
        sticky_seconds=route.affinity_seconds,
        node_port=node_port,
        guarded=guarded,
    )


def elements_of(route: Route, d: Dialect) -> Elements:
    """Every element that the route needs."""
    elements: Elements = {}
    for slot, behaviour in behaviours_of(route):
        elements[slot] = behaviour.verdict
        prefix = "node-port-" if slot.set == "node-ports" else ""
        if behaviour.kind == "cluster-ip":
            elements.update(_pool(prefix, slot.key, route.internal, 0, behaviour))
        else:
            elements.update(_pool(prefix, slot.key, route.external, 0, behaviour))
            if behaviour.kind == "local":
                elements.update(_pool(prefix, slot.key, route.short_circuit, SHORT_CIRCUIT, behaviour))
        if behaviour.guarded:
            for source in d.own(route.allowed_sources or ()):
                elements[Slot("allowed-sources", f"{slot.key} . {source}")] = ""
    for frontend in route.frontends:
        if frontend.scope is Scope.CLUSTER_IP:
            elements[Slot("cluster-ips", frontend.address)] = ""
    if elements:
        for pool in {id(pool): pool for pool in route.pools}.values():
            for backend in pool.backends:
                if backend.is_local:
                    elements[Slot("hairpins", f"{backend.ip} . {backend.ip}")] = ""
    return elements


def comment_of(route: Route) -> str:
    """The service port's name for those who read the ruleset: DNS labels, and no more than nft takes."""
    return str(route.id).rpartition(" ")[0][:_LONGEST_COMMENT]


def _pool(prefix: str, key: str, pool: Pool, first: int, behaviour: Behaviour) -> Iterator[tuple[Slot, str]]:
    numbered = ((classid(CHOICE + first + i), backend) for i, backend in enumerate(pool.backends[:MOST_BACKENDS]))
    if not behaviour.sticky_seconds:
        endpoints = f"{prefix}endpoints"
        for slot, backend in numbered:
            yield Slot(endpoints, f"{key} . {slot}"), f"{backend.ip} . {backend.port}"
        return
    taken: set[int] = set()
    ids = {backend: _sticky_id(backend, first, taken) for backend in sorted(pool.backends, key=_by_address)}
    for slot, backend in numbered:
        yield Slot(f"{prefix}sticky-ids", f"{key} . {slot}"), ids[backend]
        yield Slot(f"{prefix}sticky-endpoints", f"{key} . {ids[backend]}"), f"{backend.ip} . {backend.port}"


def classid(number: int) -> str:
    """A packet priority as nft writes it."""
    return f"{number >> 16:x}:{number & 0xFFFF:x}"


def _sticky_id(backend: Backend, first: int, taken: set[int]) -> str:
    """What a client remembers of its endpoint: the same after a restart, other for each pool of a frontend."""
    number = crc32(f"{backend.ip} {backend.port}".encode()) & 0x7FFFFF
    while number in taken:
        number = (number + 1) & 0x7FFFFF
    taken.add(number)
    return classid(CHOICE | number | (0x800000 if first else 0))


def _by_address(backend: Backend) -> tuple[str, int]:
    return backend.ip, backend.port
