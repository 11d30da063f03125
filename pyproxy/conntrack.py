"""Removes UDP flows that still lead to an endpoint that is no longer in its pool, and connections begun too early.

TCP notices a dead peer; a UDP client that keeps its port would talk to nobody for as long as it talks. So after a
sync that took something away, conntrack's flows are read and the stale ones ended in batches, both over netlink and
both in a thread of its own: no sync waits for it. Ended, not deleted: an answer on its way from an endpoint that goes
would not find back, and a resolver would wait until it times out. So the kernel lets them end after a second's rest,
and only those are deleted then whose clients have asked on: the endpoint may be dead.

Flows are told by the kernel's own words for them: the original destination is a frontend, the reply source is what
it was translated to. A flow that was never translated, since there was no endpoint when it began, is stale, too.

So is a connection whose first packet came before its frontend was known: conntrack remembers for two minutes
(nf_conntrack_tcp_timeout_syn_sent) that it goes untranslated. Forgotten, it succeeds as the client tries again; and the
client's next connection does not get nowhere because it happens to have the same port.
"""

import logging
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition

from pyproxy.address import IP, contains
from pyproxy.kernel.flow import Flow, Socket, delete, let_end, udp_flows, unserved
from pyproxy.observer import Observer, Sync
from pyproxy.table import Family, Host, Prefix, Route, Scope, Table, Transport, is_own

log = logging.getLogger("pyproxy.conntrack")

_TRY_AGAIN_S = 1.0
_ASKS_ON_S = 1.1
"""Longer than the second in which the kernel ends what rests, so that what is left then does not."""
_CONNTRACK = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_SCTP_CONNTRACK = Path("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established")
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_PROTOCOLS = {Transport.TCP: socket.IPPROTO_TCP, Transport.SCTP: socket.IPPROTO_SCTP}


@dataclass(slots=True)
class Expectation:
    """Where flows may lead, by what their clients send to."""

    frontends: dict[Socket, frozenset[Socket]] = field(default_factory=dict)
    node_ports: dict[tuple[int, bytes], frozenset[Socket]] = field(default_factory=dict)
    """By the length of the family's addresses in bytes, and the port."""
    node_port_prefixes: tuple[Prefix, ...] = ()
    _answering: dict[IP, bool] = field(default_factory=dict)

    def is_stale(self, flow: Flow) -> bool:
        allowed = self._endpoints(flow)
        return allowed is not None and flow.endpoint not in allowed

    def allows(self, flow: Flow) -> bool:
        return flow.endpoint in (self._endpoints(flow) or ())

    def _endpoints(self, flow: Flow) -> frozenset[Socket] | None:
        """None if its client does not send to a frontend."""
        allowed = self.frontends.get(flow.destination)
        if allowed is None:
            address, port = flow.destination[:-2], flow.destination[-2:]
            allowed = self.node_ports.get((len(address), port))
            if allowed is not None and not self._answers_node_ports(_unpacked(address)):
                return None
        return allowed

    def _answers_node_ports(self, address: IP) -> bool:
        """Whether it is inside the prefixes and this node's own: to others' node ports we are but a router."""
        if address not in self._answering:
            inside = any(contains(prefix, address) for prefix in self.node_port_prefixes)
            self._answering[address] = inside and is_own(address)
        return self._answering[address]


def objection(route: Route) -> str | None:
    """What this kernel's conntrack lacks to follow the route's connections: one sentence, or None."""
    if route.transport is Transport.SCTP and _CONNTRACK.exists() and not _SCTP_CONNTRACK.exists():
        return "this kernel's conntrack does not know SCTP"
    return None


def expectation(table: Table, lost: Iterable[Route] = ()) -> Expectation:
    """Of all UDP routes. ``lost``: routes that may have had frontends no longer known, where nobody answers."""
    found, gone = Expectation(node_port_prefixes=table.host.node_port_prefixes), Expectation()
    for route in table.routes.values():
        if route.transport is Transport.UDP:
            _expect(found, route)
    for route in lost:
        _expect(gone, route)
    for frontend in gone.frontends:
        found.frontends.setdefault(frontend, frozenset())
    for port in gone.node_ports:
        found.node_ports.setdefault(port, frozenset())
    return found


def _expect(found: Expectation, route: Route) -> None:
    internal = frozenset(_packed(backend.ip, backend.port) for backend in route.internal.backends)
    pools = (route.external,) if route.masquerade_external else (route.external, route.short_circuit)
    external = frozenset(_packed(backend.ip, backend.port) for pool in pools for backend in pool.backends)
    for frontend in route.frontends:
        own = internal if frontend.scope is Scope.CLUSTER_IP else external
        found.frontends[_packed(frontend.address, frontend.port)] = own
    if route.node_port:
        length = 4 if route.id.family is Family.IPV4 else 16
        found.node_ports[length, route.node_port.to_bytes(2)] = external


def _packed(address: IP, port: int) -> Socket:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address) + port.to_bytes(2)


def _unpacked(address: bytes) -> IP:
    return IP(socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address))


class Reconciler(Observer):
    """Keeps conntrack in line with the newest table.

    A sync goes on beside it, so what it reads may be newer than the table it reads it for: a flow that began with the
    very endpoint which that sync brought. So nothing is deleted that the table after the reading allows, and a sync
    that failed goes on until one succeeds: of two IP families the first may have landed.
    """

    def __init__(self, reconciled: Callable[[int, float], None]) -> None:
        """``reconciled`` is told how many flows were removed, and how many seconds that took, waiting aside."""
        self._reconciled = reconciled
        self._wake = Condition()
        self._newest = Table({}, Host())
        self._is_writing = False
        self._due = _Due()

    def syncing(self) -> None:
        with self._wake:
            self._is_writing = True

    def synced(self, sync: Sync) -> None:
        """Asks for work if the sync touched a UDP route, or brought a frontend. The first does, for a restart."""
        before, now, changed = sync.before, sync.now, sync.changed
        ids = before.routes.keys() | now.routes.keys() if changed is None else changed
        due = _Due()
        for id in ids:
            old, new = before.routes.get(id), now.routes.get(id)
            for route in filter(None, (old, new)):
                due.udp |= route.transport is Transport.UDP
            if old is not None and old.transport is Transport.UDP:
                due.lost.append(old)
            if new is not None and new.transport is not Transport.UDP and _has_more_frontends(new, old):
                due.begun.append(new)
        with self._wake:
            self._newest, self._is_writing = now, False
            self._due.add(due)
            self._wake.notify()

    def run(self) -> None:
        """Never returns; made for a daemon thread."""
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._due)
                table, due = self._newest, self._due
                self._due = _Due()
            started = time.monotonic()
            try:
                # First: their clients wait, while what UDP needs may take long.
                ended = delete(begun_too_early(due.begun))
                expected = expectation(table, due.lost) if due.udp else Expectation()
                ending = let_end(self._stale(table, expected)) if due.udp else 0
                took = time.monotonic() - started
                if due.udp:  # if nothing ends, too: of many changes in a row not each reads all flows
                    ended += ending + self._wait(due)
                if ending:
                    started = time.monotonic()
                    delete(self._stale(table, expected))
                    took += time.monotonic() - started
            except OSError as error:
                log.error("conntrack could not be reconciled", extra={"reason": error.strerror or error})
                time.sleep(_TRY_AGAIN_S)
                with self._wake:  # what was lost is told nowhere else
                    self._due.add(due)
                continue
            log.info("conntrack reconciled", extra={"deleted": ended, "ms": round(took * 1000, 1)})
            self._reconciled(ended, took)

    def _wait(self, due: "_Due") -> int:
        """Meanwhile connections begun too early are forgotten; how many. What is looked for is added to ``due``."""
        deleted, end = 0, time.monotonic() + _ASKS_ON_S
        while (left := end - time.monotonic()) > 0:
            with self._wake:
                self._wake.wait_for(lambda: self._due.begun, left)
                begun, self._due.begun = self._due.begun, []
            due.begun += begun
            deleted += delete(begun_too_early(begun))
        return deleted

    def _stale(self, table: Table, expected: Expectation) -> list[Flow]:
        """``expected``: of ``table``, and of what went with it."""
        stale = stale_flows(expected)
        with self._wake:
            self._wake.wait_for(lambda: not self._is_writing)
            newest = self._newest
        if stale and newest is not table:
            allowed = expectation(newest)
            stale = [flow for flow in stale if not allowed.allows(flow)]
        return stale


@dataclass(slots=True)
class _Due:
    """What is to be looked for in conntrack."""

    udp: bool = False
    """Flows of UDP."""
    lost: list[Route] = field(default_factory=list)
    """Routes of UDP as they were before they changed or went."""
    begun: list[Route] = field(default_factory=list)
    """Routes of connections that have frontends which were not there before."""

    def __bool__(self) -> bool:
        return self.udp or bool(self.begun)

    def add(self, other: "_Due") -> None:
        self.udp |= other.udp
        self.lost += other.lost
        self.begun += other.begun


def stale_flows(expected: Expectation) -> list[Flow]:
    """Every UDP flow that leads elsewhere. Raises OSError."""
    return [flow for family in _FAMILIES.values() for flow in udp_flows(family) if expected.is_stale(flow)]


def begun_too_early(routes: Iterable[Route]) -> list[Flow]:
    """Connections to frontends of these that began before anybody translated them, and wait since. Raises OSError."""
    found: list[Flow] = []
    waited_for: defaultdict[tuple[int, int], set[Socket]] = defaultdict(set)
    for route in routes:
        asked = _FAMILIES[route.id.family], _PROTOCOLS[route.transport]
        waited_for[asked] |= {_packed(frontend.address, frontend.port) for frontend in route.frontends}
    for (family, protocol), frontends in waited_for.items():
        found += [flow for flow in unserved(family, protocol) if flow.destination in frontends]
    return found


def _has_more_frontends(new: Route, old: Route | None) -> bool:
    return old is None or old.transport is not new.transport or not {*new.frontends} <= {*old.frontends}
