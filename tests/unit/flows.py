"""What happens to a packet, from a Route and a Host alone: the contract of `pyproxy.table`, executable.

A mode is right if it does to every packet what `fate` says. It knows nothing of Kubernetes.
"""

from dataclasses import dataclass
from enum import Enum, auto
from fnmatch import fnmatchcase

from pyproxy.address import IP, contains
from pyproxy.table import Backend, Frontend, Host, OnEmpty, Pool, Route, Scope


class End(Enum):
    """Of a packet that reaches no backend."""

    REFUSED = auto()
    DROPPED = auto()
    UNTOUCHED = auto()
    """Not the proxy's: it goes on to where it was sent."""


class Source(Enum):
    """What the backend sees as the sender."""

    KEPT = auto()
    NODE = auto()
    """An address of this node, by masquerading or because this node sent it."""


Fate = dict[Backend, Source] | End
"""Every backend that may get the connection and what it sees there, or why none does."""


@dataclass(frozen=True, slots=True)
class Packet:
    """The first one of a connection."""

    sender: IP
    address: IP
    port: int
    interface: str | None = "eth0"
    """Where it came in; None: this node sent it."""


def fate(packet: Packet, route: Route, host: Host) -> Fate:
    frontend = _frontend(packet, route)
    if frontend is None and not _is_node_port(packet, route, host):
        return End.UNTOUCHED
    if frontend is not None and frontend.scope is Scope.CLUSTER_IP:
        return _forward(packet, route.internal, _source_by_cluster_ip(packet, host))
    if frontend is not None and frontend.scope is Scope.LOAD_BALANCER and not _may_enter(packet, route):
        return End.DROPPED
    if route.masquerade_external:
        return _forward(packet, route.external, Source.NODE)
    if packet.interface is None:
        return _forward(packet, route.short_circuit, Source.NODE)
    return _forward(packet, route.short_circuit if _is_pod(packet, host) else route.external, Source.KEPT)


def _frontend(packet: Packet, route: Route) -> Frontend | None:
    return next((f for f in route.frontends if (f.address, f.port) == (packet.address, packet.port)), None)


def _is_node_port(packet: Packet, route: Route, host: Host) -> bool:
    answers = any(contains(prefix, packet.address) for prefix in host.node_port_prefixes)
    return packet.port == route.node_port and answers


def _is_pod(packet: Packet, host: Host) -> bool:
    if packet.interface is None:
        return False
    return any(contains(prefix, packet.sender) for prefix in host.pod_prefixes) or any(
        fnmatchcase(packet.interface, pattern) for pattern in host.pod_interfaces
    )


def _source_by_cluster_ip(packet: Packet, host: Host) -> Source:
    if packet.interface is None or host.masquerade_all:
        return Source.NODE
    can_tell = host.pod_prefixes or host.pod_interfaces
    return Source.NODE if can_tell and not _is_pod(packet, host) else Source.KEPT


def _may_enter(packet: Packet, route: Route) -> bool:
    return route.allowed_sources is None or any(contains(prefix, packet.sender) for prefix in route.allowed_sources)


def _forward(packet: Packet, pool: Pool, source: Source) -> Fate:
    if not pool.backends:
        return End.DROPPED if pool.on_empty is OnEmpty.DROP else End.REFUSED
    # A pod that is sent back to itself would answer itself past the proxy, were its address kept.
    return {backend: Source.NODE if backend.ip == packet.sender else source for backend in pool.backends}
