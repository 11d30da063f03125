"""The forwarding table as sockets that relays listen on.

What is claimed and bound is done here, with the capabilities that it takes; who is connected to whom is the relays'
affair. A relay is told only what changed.
"""

import os
import signal
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress

from modes.userspace.protocol import Entry, Lost, Place, Site
from modes.userspace.relay_process import Relay, processes
from modes.userspace.route import entries_of
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.local_route import LocalRoutes
from pyproxy.kernel.own_address import node_port_addresses, of_devices
from pyproxy.table import IP, Drift, Family, Host, InUse, Mode, ModeError, Route, RouteId, Table, Transport

_OWNER = 112
"""Of local routes; see pyproxy.kernel.local_route."""
_IP_FREEBIND = 15


class UserspaceMode:
    name = "userspace"
    tracks_connections = False
    ends_connections = True

    def __init__(self) -> None:
        self._routes = LocalRoutes(_OWNER)
        self._relay = Relay()
        self._host = Host()
        self._own: frozenset[IP] = frozenset()  # addresses that this node has anyway
        self._answering: tuple[IP, ...] = ()  # those of them where node ports answer
        self._claimed: set[IP] = set()
        self._leaving: set[IP] = set()  # claimed, and kept for connections that are open alone
        self._entries: dict[RouteId, list[Entry]] = {}
        self._owners: dict[Place, RouteId] = {}
        self._users: Counter[IP] = Counter()
        """How many places there are at an address that is claimed for them."""
        self._taken: dict[Place, str] = {}
        """Places that could not be had, and why."""
        self._in_order = False

    def probe(self) -> str | None:
        trial = IP("192.0.2.255")  # of TEST-NET-1, RFC 5737: nobody's
        try:
            LocalRoutes(_OWNER + 128).add([trial])
            LocalRoutes(_OWNER + 128).remove([trial])
        except PermissionError:
            return "it takes the capability CAP_NET_ADMIN (run as root)"
        except OSError as error:
            return f"this kernel does not take local routes ({error.strerror})"
        return None

    def objection(self, route: Route) -> str | None:
        if route.transport is Transport.SCTP:
            return "userspace mode relays TCP and UDP, not SCTP"
        if route.id.family is Family.IPV6 and not socket.has_ipv6:
            return "this kernel has no IPv6"
        return None

    def shortfalls(self) -> Mapping[RouteId, str]:
        """Ports that somebody else holds, by whose they should be."""
        return {self._owners[place]: why for place, why in self._taken.items() if place in self._owners}

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        try:
            if everything:
                self._rebuild(table)
            else:
                self._write(*self._plan(table, changed or frozenset()))
        except Lost as error:
            raise ModeError(f"the relay can't be steered: {error}") from error
        self._in_order = True

    def _rebuild(self, table: Table) -> None:
        """Whatever is not as it must be, in place."""
        self._host = table.host
        with as_mode_error("the addresses of this node can't be read"):
            self._own = of_devices()
            self._answering = node_port_addresses(table.host.node_port_prefixes, self._own)
            self._claimed = self._routes.listed()
        self._relay.muster()
        self._entries, self._owners, self._users, self._taken = {}, {}, Counter(), {}
        self._plan(table, table.routes.keys())
        self._leaving = self._claimed - self._users.keys()
        wanted = {entry.place: entry for entries in self._entries.values() for entry in entries}
        put = [entry for place, entry in wanted.items() if self._relay.entries.get(place) != entry]
        self._write(put, self._relay.entries.keys() - wanted.keys())

    def _plan(self, table: Table, changed: AbstractSet[RouteId]) -> tuple[list[Entry], set[Place]]:
        """What is to be put and dropped."""
        before = {entry.place: entry for route_id in changed for entry in self._entries.pop(route_id, ())}
        self._count(before, -1)
        after: dict[Place, Entry] = {}
        for route_id in changed & table.routes.keys():
            self._entries[route_id] = list(entries_of(table.routes[route_id], self._answering))
            after.update((entry.place, entry) for entry in self._entries[route_id])
            self._owners.update((entry.place, route_id) for entry in self._entries[route_id])
        self._count(after, 1)
        drop = before.keys() - after.keys()
        for place in drop:
            del self._owners[place]
            self._taken.pop(place, None)
        return [entry for place, entry in after.items() if before.get(place) != entry], drop

    def _count(self, places: Iterable[Place], by: int) -> None:
        for _, address, _ in places:
            if address not in self._own:
                self._users[IP(address)] += by
                if not self._users[IP(address)]:
                    del self._users[IP(address)]

    def _write(self, put: list[Entry], drop: AbstractSet[Place]) -> None:
        """First what comes: addresses are claimed once somebody listens there."""
        fresh = self._bind(entry.place for entry in put if entry.place not in self._relay.entries)
        put = [entry for entry in put if entry.place not in self._taken]
        site = Site(tuple(self._host.pod_prefixes), self._host.pod_interfaces)
        try:
            busy = self._relay.change(put, list(drop), fresh, site).busy
        finally:
            for one in fresh.values():
                one.close()
        claims = self._users.keys() - self._claimed if put else set()
        with as_mode_error("addresses can't be claimed"):
            self._routes.add(claims)
        self._claimed |= claims
        gone = {IP(address) for _, address, _ in drop} & self._claimed - self._users.keys()
        self._leaving = (self._leaving | gone) - self._users.keys()
        self._let_go(busy)

    def _bind(self, places: Iterable[Place]) -> dict[Place, socket.socket]:
        """A socket for each; what somebody else holds is noted in `_taken`. It listens once the relay has it."""
        fresh: dict[Place, socket.socket] = {}
        for place in places:
            try:
                fresh[place] = _bound(place)
                self._taken.pop(place, None)
            except OSError as error:
                transport, address, port = place
                what = f"port {port}/{transport} of {address} can't be had: {os.strerror(error.errno or 0)}"
                self._taken[place] = what
        return fresh

    def _let_go(self, busy: Iterable[str]) -> None:
        """Of addresses that no service has any more, as soon as no connection needs them."""
        free = self._leaving - set(map(IP, busy))
        with as_mode_error("addresses can't be let go"):
            self._routes.remove(free)
        self._claimed -= free
        self._leaving -= free

    def verify(self) -> list[Drift]:
        """The relay is asked for all that it serves; and ports that were taken are tried again."""
        try:
            drift = list(self._compare())
            if not drift:
                self._let_go(self._relay.state().busy)
                self._try_again()
        except Lost as error:
            return [Drift(None, f"the relay is gone: {error}")]
        return drift

    def _compare(self) -> Iterator[Drift]:
        known = dict(self._relay.entries)
        if self._relay.find() is None:
            yield Drift(None, "the relay is gone")
            return
        for place in known.keys() | self._relay.entries.keys():
            if known.get(place) != self._relay.entries.get(place):
                yield Drift(self._owners.get(place), f"the relay does not serve {place} as it was told")
        with as_mode_error("the addresses of this node can't be read"):
            if of_devices() != self._own:
                yield Drift(None, "the addresses of this node are others now")
        with as_mode_error("local routes can't be read"):
            for ip in self._routes.listed() ^ self._claimed:
                yield Drift(None, f"the local route of {ip} is {'missing' if ip in self._claimed else 'foreign'}")

    def _try_again(self) -> None:
        places = set(self._taken)
        entries = [entry for route_id in {self._owners[place] for place in places} for entry in self._entries[route_id]]
        if again := [entry for entry in entries if entry.place in places]:
            self._write(again, frozenset())

    def cleanup(self) -> list[str]:
        """Relays end at once, and with them what is open."""
        ended = processes()
        for process in ended:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        removed = [f"{len(ended)} relay processes"] if ended else []
        return removed + self._release(self._listed())

    def retire(self, successor: Mode) -> Iterator[str]:  # noqa: ARG002
        """Nobody listens any more; what is open is relayed to its end."""
        with suppress(Lost):
            if self._relay.find() is not None:
                self._relay.drain()
                yield "what relays listened on"
        if left := len(processes()):
            raise InUse(f"{left} relays have open connections")
        yield from self._release(self._listed())

    def _listed(self) -> set[IP]:
        with as_mode_error("local routes can't be read"):
            return self._routes.listed()

    def _release(self, addresses: set[IP]) -> list[str]:
        with as_mode_error("local routes can't be removed"):
            self._routes.remove(addresses)
        return [f"{len(addresses)} local routes"] if addresses else []

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        """The local route as ip(8) shows it, and what the relay answers."""
        lines = [f"local {address} dev lo table local"] if address in self._listed() else []
        try:
            if self._relay.find() is None:
                return lines
        except Lost as error:
            raise ModeError(f"the relay can't be asked: {error}") from error
        if entry := self._relay.entries.get((transport.value, address, port)):
            lines.append(f"listen {transport.value} {address} {port} for {entry.route}")
            lines += [f"from {source}" for source in entry.sources or ()]
            lines += [f"relay outside to {ip} {number}" for ip, number in entry.outside]
            lines += [f"relay inside to {ip} {number}" for ip, number in entry.inside]
        return lines


def _bound(place: Place) -> socket.socket:
    """Raises OSError."""
    transport, address, port = place
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    try:
        if transport == "tcp":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger
        # The address is claimed only later.
        one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        one.bind((address, port))
    except BaseException:
        one.close()
        raise
    return one
