"""The forwarding table: the narrow waist between Kubernetes and the kernel.

Policy writes it, modes read it. Everything that Kubernetes decides has been decided by then, so a mode needs no
other module of this package: this one holds every value it sees, and what it may answer.
"""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import NamedTuple, Protocol, runtime_checkable

from pyproxy.address import IP, Family, Prefix, contains, family_of
from pyproxy.kernel.error import InUse, ModeError
from pyproxy.kernel.own_address import is_own

__all__ = [
    "IP",
    "Backend",
    "Counts",
    "Drift",
    "EbpfAlgorithm",
    "Family",
    "Fill",
    "Frontend",
    "Host",
    "InUse",
    "Ipvs",
    "Mode",
    "ModeError",
    "OnEmpty",
    "Pool",
    "Prefix",
    "Route",
    "RouteId",
    "Scope",
    "Table",
    "Traffic",
    "Transport",
    "contains",
    "family_of",
    "is_own",
]


class Transport(StrEnum):
    """Service.spec.ports[].protocol, in the lower case that kernels write."""

    TCP = "tcp"
    UDP = "udp"
    SCTP = "sctp"


class Scope(Enum):
    """Where a frontend's address comes from, which decides who may use it and how."""

    CLUSTER_IP = "ClusterIP"
    EXTERNAL_IP = "ExternalIP"
    LOAD_BALANCER = "LoadBalancer"


class OnEmpty(Enum):
    """What becomes of traffic when a pool has no backend."""

    REJECT = "refuse"  # no usable endpoint anywhere: tell the client at once
    DROP = "drop"  # endpoints elsewhere, none here: a load balancer must notice and go elsewhere


@dataclass(frozen=True, slots=True)
class Backend:
    ip: IP
    port: int
    is_local: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """Backends in canonical order (by address, then port); a connection gets one of them at random."""

    backends: tuple[Backend, ...]
    on_empty: OnEmpty = OnEmpty.REJECT

    def in_places_of(self, old: "Pool") -> "Pool":
        """With every backend that stays in the place it had: one endpoint more is written to one place."""
        if self == old:
            return self
        staying = set(self.backends)
        places = [backend if backend in staying else None for backend in old.backends[: len(self.backends)]]
        places += [None] * (len(self.backends) - len(places))
        movers = iter(sorted(staying.difference(filter(None, places)), key=lambda backend: (backend.ip, backend.port)))
        return Pool(tuple(backend or next(movers) for backend in places), self.on_empty)


@dataclass(frozen=True, slots=True)
class Frontend:
    """An address and port that clients connect to. A node port has no address: see Route.node_port."""

    address: IP
    port: int
    scope: Scope


class RouteId(NamedTuple):
    namespace: str
    name: str
    port_name: str
    family: Family

    def __str__(self) -> str:
        port = f":{self.port_name}" if self.port_name else ""
        return f"{self.namespace}/{self.name}{port} {self.family.value}"


@dataclass(frozen=True, slots=True)
class Route:
    """One port of one service in one IP family."""

    id: RouteId
    transport: Transport
    frontends: tuple[Frontend, ...]
    node_port: int | None
    internal: Pool
    """For traffic to the ClusterIP."""
    external: Pool
    """For traffic from outside the cluster to the other frontends and the node port."""
    short_circuit: Pool
    """For pods and this node using those same frontends when the external policy is Local."""
    masquerade_external: bool
    """Whether traffic to the other frontends and the node port gets a node address as its source.

    False means external policy Local: sources are kept, `external` serves outside, `short_circuit` the inside.
    """
    affinity_seconds: int | None
    allowed_sources: tuple[Prefix, ...] | None
    """Who may use the LOAD_BALANCER frontends; None is everyone, the empty tuple no one."""
    health_check_port: int | None
    """Where a load balancer asks whether this node has endpoints; a node port of its own."""
    ready_local: tuple[IP, ...] = ()
    """What it is told: the ready endpoints on this node. Empty without a health_check_port."""

    @property
    def pools(self) -> tuple[Pool, Pool, Pool]:
        return self.internal, self.external, self.short_circuit

    def lets_in(self, addresses: Iterable[IP]) -> bool:
        """Whether one of them, of the route's family, is named by `allowed_sources`."""
        own = [ip for ip in addresses if family_of(ip) is self.id.family]
        return any(contains(prefix, ip) for prefix in self.allowed_sources or () for ip in own)

    def in_places_of(self, old: "Route") -> "Route":
        """With the order of backends that a mode wrote before, as far as they stay."""
        return replace(
            self,
            internal=self.internal.in_places_of(old.internal),
            external=self.external.in_places_of(old.external),
            short_circuit=self.short_circuit.in_places_of(old.short_circuit),
        )


@dataclass(frozen=True, slots=True)
class Ipvs:
    """What only the mode ipvs goes by (KubeProxyConfiguration.ipvs). Time-outs in seconds; 0 leaves the kernel's."""

    scheduler: str = "rr"
    exclude_cidrs: tuple[Prefix, ...] = ()
    """Virtual servers of others in there stay theirs, even where a Service has the same address and port."""
    strict_arp: bool = False
    tcp_timeout: float = 0.0
    tcp_fin_timeout: float = 0.0
    udp_timeout: float = 0.0


class EbpfAlgorithm(StrEnum):
    """How mode ebpf chooses an endpoint for those who come from outside."""

    RANDOM = "random"
    MAGLEV = "maglev"  # by a hash of the flow, so that all nodes choose the same one


@dataclass(frozen=True, slots=True)
class Host:
    """This node, as far as forwarding depends on it."""

    node_port_prefixes: tuple[Prefix, ...] = ()
    """Node ports answer on the node's own addresses inside these, never on loopback."""
    pod_prefixes: tuple[Prefix, ...] = ()
    """Sources inside these are pods on this node (detectLocalMode ClusterCIDR and NodeCIDR)…"""
    pod_interfaces: tuple[str, ...] = ()
    """…or what comes in here is (BridgeInterface, and InterfaceNamePrefix with a trailing ``*``)."""
    masquerade_all: bool = False
    """Whether ClusterIP traffic from pods gets a node address as its source, too."""
    ipvs: Ipvs = Ipvs()
    userspace_workers: int = 1
    """How many relays share the work in mode userspace."""
    cgroup: str = ""
    """Whose sockets mode ebpf serves: a folder of cgroup v2; empty is its root."""
    ebpf_algorithm: EbpfAlgorithm = EbpfAlgorithm.RANDOM
    devices: tuple[str, ...] = ()
    """Where mode ebpf translates packets, some with a trailing ``*``; empty: wherever it finds that they come by."""
    map_sizes: tuple[tuple[str, int], ...] = ()
    """How many entries maps of mode ebpf hold, where not as many as by default: see Counts."""


@dataclass(frozen=True, slots=True)
class Table:
    routes: Mapping[RouteId, Route]
    host: Host


class Drift(NamedTuple):
    """One thing in the kernel that is not as it was written."""

    route: RouteId | None
    what: str


class Traffic(NamedTuple):
    """What a mode counted since its counters were made; each number only grows, over restarts, too."""

    sockets: int = 0
    """Connections of sockets of this node that got an endpoint as they connected: no packet of them is counted."""
    flows: int = 0
    """Connections that were translated packet by packet."""
    refused: int = 0
    """Connections, or datagrams, for which there was no endpoint."""
    dropped: int = 0
    """The same that a policy lets go nowhere, and packets that no port was left for."""
    lost: int = 0
    """Packets in the midst of a connection that nobody knows any more."""
    packets_in: int = 0
    """Of flows, from clients to the service, as is the next one."""
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0

    def plus(self, other: "Traffic") -> "Traffic":
        return Traffic(*map(int.__add__, self, other))


class Fill(NamedTuple):
    """How full a map of the kernel's is."""

    map: str
    entries: int
    size: int
    forgets: bool
    """Whether the oldest entries go when it is full: then it is full for good some day, and that is no fault."""


@runtime_checkable
class Counts(Protocol):
    """What a mode offers beside if it counts what it forwards. From any thread; ModeError if it can't be read."""

    map_sizes: Mapping[str, int]
    """By name, those of maps that Host.map_sizes may change, as they are by default."""

    def traffic(self) -> Mapping[RouteId | None, Traffic] | None:
        """Read from the kernel, so it needs no state of this object; None if it holds nothing of this mode's.

        Under None, what belongs to no service that is there: to those that went, or for which there was no counter.
        """

    def fills(self) -> list[Fill]:
        """Of the maps that this object writes; empty before the first sync."""


@runtime_checkable
class Watches(Protocol):
    """What a mode offers beside if it hears that something of what it wrote is gone, rather than find out when it is to
    verify."""

    def watch(self, lost: Callable[[], None]) -> None:
        """``lost`` is called then, from any thread."""


class Mode(Protocol):
    """What every back end offers. Found through the entry-point group ``pyproxy.modes``, made without arguments."""

    name: str
    tracks_connections: bool
    """Whether the kernel's conntrack holds this mode's flows, so that stale UDP flows must be removed there."""

    ends_connections: bool
    """Whether connections end at this node, which opens others to endpoints, rather than being translated."""

    connects_sockets: bool
    """Whether sockets of this node and its pods are connected to endpoints themselves, which then see who asks."""

    def probe(self) -> str | None:
        """None if this kernel can run the mode, else one sentence that says what is missing."""

    def objection(self, route: Route) -> str | None:
        """None if this kernel can serve ``route`` in this mode, else one sentence that says what is missing."""

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        """Make the kernel equal to ``table``; None means everything. All of it or, with ModeError, nothing.

        Clients come meanwhile. Whoever finds a port that is new is served all other changes of this call, too: what
        was there before changes, or goes, first or in the same step. Among new ports there is no order.
        """

    def shortfalls(self) -> Mapping[RouteId, str]:
        """Of which routes the kernel serves less than all, as of the last sync or verification, and why."""

    def verify(self) -> list[Drift]:
        """What in the kernel differs from what was written. Raises ModeError if it can't be read."""

    def cleanup(self) -> list[str]:
        """Remove all that this mode ever wrote, and say what that was. Raises ModeError."""

    def retire(self, successor: "Mode") -> Iterable[str]:
        """``successor`` serves now: remove what no open connection needs, and say what that was, each as it goes.

        Raises InUse while something is left that open connections need, ModeError where `cleanup` would.
        """

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        """What in the kernel serves that destination, as the kernel's own tool writes it; empty if nothing does.

        Read from the kernel, so it needs no state of this object. Raises ModeError.
        """
