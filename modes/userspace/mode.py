"""The forwarding table as sockets that relays listen on.

What is claimed and bound is done here, with the capabilities that it takes; who is connected to whom is the relays'
affair. A relay is told only what changed.
"""

import errno
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress

from modes.userspace.guard import guard, is_guarded
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
_RETIRING_S = 2.0


class UserspaceMode:
    name = "userspace"
    tracks_connections = False
    ends_connections = True
    connects_sockets = False

    def __init__(self) -> None:
        self._routes = LocalRoutes(_OWNER)
        self._relay = Relay()
        self._host = Host()
        self._own: frozenset[IP] = frozenset()  # addresses that this node has anyway
        self._answering: tuple[IP, ...] = ()  # those of them where node ports answer
        self._claimed: set[IP] = set()
        self._leaving: set[IP] = set()  # claimed, and kept for connections that are open alone
        self._addresses: dict[RouteId, AbstractSet[IP]] = {}
        """That are claimed for a route."""
        self._entries: dict[RouteId, list[Entry]] = {}
        self._owners: dict[Place, RouteId] = {}
        self._users: Counter[IP] = Counter()
        """How many routes an address is claimed for."""
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
        self._addresses = {}
        self._plan(table, table.routes.keys())
        self._leaving = self._claimed - self._users.keys()
        wanted = {entry.place: entry for entries in self._entries.values() for entry in entries}
        served = self._relay.entries
        put = [entry for place, entry in wanted.items() if served.get(place) != entry]
        # Who is inside may be others now.
        self._guard([entry for place, entry in wanted.items() if served.get(place) == entry])
        self._write(put, self._relay.entries.keys() - wanted.keys(), self._users.keys())

    def _plan(
        self, table: Table, changed: AbstractSet[RouteId]
    ) -> tuple[list[Entry], AbstractSet[Place], AbstractSet[IP]]:
        """What is to be put, to be dropped, and to be claimed."""
        before = {entry.place: entry for route_id in changed for entry in self._entries.pop(route_id, ())}
        gone = [ip for route_id in changed for ip in self._addresses.pop(route_id, ())]
        after: dict[Place, Entry] = {}
        for route_id in changed & table.routes.keys():
            fronts = {frontend.address for frontend in table.routes[route_id].frontends}
            self._addresses[route_id] = fronts - self._own
            self._entries[route_id] = list(entries_of(table.routes[route_id], self._answering))
            after.update((entry.place, entry) for entry in self._entries[route_id])
            self._owners.update((entry.place, route_id) for entry in self._entries[route_id])
        come = [ip for route_id in changed for ip in self._addresses.get(route_id, ())]
        self._count(come, gone)
        drop = before.keys() - after.keys()
        for place in drop:
            del self._owners[place]
            self._taken.pop(place, None)
        return [entry for place, entry in after.items() if before.get(place) != entry], drop, set(come)

    def _count(self, come: Iterable[IP], gone: Iterable[IP]) -> None:
        """Which addresses routes have now, and which they had until now."""
        self._users.update(come)
        for ip in gone:
            self._users[ip] -= 1
            if not self._users[ip]:
                del self._users[ip]
                self._leaving.add(ip)
        self._leaving -= self._users.keys()

    def _write(self, put: list[Entry], drop: AbstractSet[Place], come: AbstractSet[IP]) -> None:
        new = come - self._claimed
        with as_mode_error("addresses can't be claimed"):
            self._routes.add(new)
        self._claimed |= new
        self._guard([entry for entry in put if entry.place in self._relay.entries])
        fresh = self._bind(entry.place for entry in put if entry.place not in self._relay.entries)
        put = [entry for entry in put if entry.place not in self._taken]
        site = Site(tuple(self._host.pod_prefixes), self._host.pod_interfaces)
        try:
            for entry in put:
                if entry.place in fresh and is_guarded(entry):
                    self._set_filter(fresh[entry.place], entry)
            busy = self._relay.change(put, list(drop), fresh, site).busy
        finally:
            for one in fresh.values():
                one.close()
        self._let_go(busy)

    def _guard(self, entries: list[Entry]) -> None:
        """Sockets that are in use get the filters that these entries want."""
        known = self._relay.entries
        touched = {entry.place: entry for entry in entries if is_guarded(entry) or is_guarded(known[entry.place])}
        if touched:
            for place, one in self._relay.lend(list(touched)).items():
                with one:
                    self._set_filter(one, touched[place])

    def _set_filter(self, one: socket.socket, entry: Entry) -> None:
        with as_mode_error("a socket does not take a filter"):
            guard(one, entry, self._host, self._own)

    def _bind(self, places: Iterable[Place]) -> dict[Place, socket.socket]:
        """A socket for each; what somebody else holds is noted in `_taken`. It listens once the relay has it."""
        fresh: dict[Place, socket.socket] = {}
        for place in places:
            try:
                fresh[place] = self._bound(place)
                self._taken.pop(place, None)
            except OSError as error:
                transport, address, port = place
                what = f"port {port}/{transport} of {address} can't be had: {os.strerror(error.errno or 0)}"
                self._taken[place] = what
        return fresh

    def _bound(self, place: Place) -> socket.socket:
        """A relay that was told to retire listens for a moment more. Raises OSError."""
        end = time.monotonic() + _RETIRING_S
        while True:
            try:
                return _bound(place)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > end or len(processes()) < 2:
                    raise
            time.sleep(0.05)

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
            self._write(again, frozenset(), frozenset())

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
            pools = {"outside ": entry.outside, "inside ": entry.inside}
            if entry.inside == entry.outside:
                pools = {"": entry.inside}
            lines += [f"relay {who}to {ip} {number}" for who, pool in pools.items() for ip, number in pool]
        elif lines:
            lines.append(f"nobody listens on {transport.value} {address} {port}")
        return lines


def _bound(place: Place) -> socket.socket:
    """Raises OSError."""
    transport, address, port = place
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    try:
        if transport == "tcp":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger
        # Somebody may have taken the local route away; then it comes back with the next verification.
        one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        one.bind((address, port))
    except BaseException:
        one.close()
        raise
    return one
