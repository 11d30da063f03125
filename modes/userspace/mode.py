"""The forwarding table as sockets that relays listen on.

What is claimed and bound is done here, with the capabilities that it takes; who is connected to whom is the relays'
affair. A relay is told only what changed.
"""

import errno
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from itertools import chain

from modes.userspace.connections import to_endpoints
from modes.userspace.guard import guard, is_guarded
from modes.userspace.plan import Plan
from modes.userspace.protocol import Entry, Lost, Place, Site
from modes.userspace.relay_process import Relay, found, portions, processes
from modes.userspace.relays import Relays
from pyproxy.kernel import flow, masquerade
from pyproxy.kernel.claimed_address import ClaimedAddresses
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.local_route import LocalRoutes
from pyproxy.kernel.own_address import node_port_addresses, of_devices, speaks
from pyproxy.table import IP, Drift, Host, InUse, Mode, ModeError, Route, RouteId, Table, Transport

log = logging.getLogger("pyproxy")

_OWNER = 112
"""Of local routes; see pyproxy.kernel.local_route."""
_IP_FREEBIND = 15
_RETIRING_S = 2.0
"""After this process began nobody listens any more who was told to retire before."""
_LISTENS_ON_S = 1.0
"""After another mode has taken over, for whose handshake is under way."""
_STOPS_AFTER_S, _BETWEEN_S = 2.0, 0.1
"""Nobody listens any more by then, as relays look to it twice a second; between two looks at conntrack."""


class UserspaceMode:
    name = "userspace"
    tracks_connections = False
    ends_connections = True
    connects_sockets = False

    def __init__(self) -> None:
        self._addresses = ClaimedAddresses(_OWNER)
        self._relays = Relays()
        self._host = Host()
        self._site = Site()
        self._plan = Plan()
        self._taken: dict[Place, str] = {}
        """Places that could not be had, and why."""
        self._in_order = False
        self._retired_by = time.monotonic() + _RETIRING_S
        self._is_crowded = False
        self._is_silent = False

    def watch(self, lost: Callable[[], None]) -> None:
        """``lost`` is called when a relay has ended."""
        self._relays.ended = lost

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
        if not speaks(route.id.family):
            return f"this kernel has no {route.id.family.value}"
        return None

    def shortfalls(self) -> Mapping[RouteId, str]:
        """Ports that somebody else holds, by whose they should be."""
        owners = self._plan.owners
        return {owners[place]: why for place, why in self._taken.items() if place in owners}

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        try:
            if everything:
                self._rebuild(table)
            else:
                change = self._plan.change(table, changed or frozenset())
                self._write(change.put, change.drop, change.come)
                self._addresses.leave(change.gone)
                self._let_go()
            self._tell_if_crowded()
        except Lost as error:
            raise ModeError(f"a relay can't be steered: {error}") from error
        self._in_order = True

    def _rebuild(self, table: Table) -> None:
        """Whatever is not as it must be, in place."""
        self._host = table.host
        self._site = Site(tuple(table.host.pod_prefixes), table.host.pod_interfaces)
        with as_mode_error("the addresses of this node can't be read"):
            own = of_devices()
            answering = node_port_addresses(table.host.node_port_prefixes, own)
        self._plan = Plan(own, answering)
        self._plan.change(table, table.routes.keys())
        self._taken = {}
        self._relays.muster(table.host.userspace_workers)
        was_silent, self._is_silent = self._is_silent, not self._relays.tell_errors
        if self._is_silent and not was_silent:
            log.warning("clients of UDP are not told that an endpoint does not listen: it takes CAP_NET_RAW")
        self._addresses.adopt(self._plan.addresses)
        wanted = self._plan.entries
        put = [entry for entry in wanted.values() if not self._relays.serves(entry, self._site)]
        # Who is inside may be others now.
        self._guard(entry for entry in wanted.values() if self._relays.serves(entry, self._site))
        self._write(put, self._relays.places() - wanted.keys(), self._plan.addresses)
        self._let_go()

    def _write(self, put: list[Entry], drop: AbstractSet[Place], come: AbstractSet[IP]) -> None:
        """An address is claimed when all is ready for it, so that nobody is refused on the way; and before others get
        new ports, and known ones other endpoints, at once: so that whoever sees something new sees all of it."""
        self._taken = {place: why for place, why in self._taken.items() if place not in drop}
        known = self._relays.places()
        new = [entry for entry in put if entry.place not in known]
        old = [entry for entry in put if entry.place in known]
        coming = come - self._addresses.claimed
        self._open(entry for entry in new if entry.place[1] in coming)
        self._addresses.claim(come)
        self._guard(old)
        self._open((entry for entry in new if entry.place[1] not in coming), old, drop)

    def _open(
        self, entries: Iterable[Entry], old: Sequence[Entry] = (), drop: AbstractSet[Place] = frozenset()
    ) -> None:
        """Listen where nobody does yet; what is ``old`` changes with the first of it, and what is to ``drop`` goes."""
        new = {entry.place: entry for entry in entries}
        for portion in portions(new) if new else [[]]:
            fresh = self._bind(portion)
            try:
                for place, one in fresh.items():
                    if is_guarded(new[place]):
                        self._set_filter(one, new[place])
                self._relays.change([*old, *(new[place] for place in fresh)], drop, fresh, self._site)
                old, drop = (), frozenset()
            finally:
                for one in fresh.values():
                    one.close()

    def _guard(self, entries: Iterable[Entry]) -> None:
        """Sockets that are in use get the filters that these entries want."""
        touched = {entry.place: entry for entry in entries if is_guarded(entry) or self._was_guarded(entry.place)}
        for place, one in self._relays.lend(touched):
            with one:
                self._set_filter(one, touched[place])

    def _was_guarded(self, place: Place) -> bool:
        before = self._relays.entry(place)
        return before is not None and is_guarded(before)

    def _set_filter(self, one: socket.socket, entry: Entry) -> None:
        with as_mode_error("a socket does not take a filter"):
            guard(one, entry, self._host, self._plan.own)

    def _bind(self, places: Iterable[Place]) -> dict[Place, socket.socket]:
        """A socket for each; what somebody else holds is noted in `_taken`. It listens once a relay has it."""
        fresh: dict[Place, socket.socket] = {}
        room = self._relays.most_places - len(self._relays.places())
        for place in places:
            transport, address, port = place
            try:
                if len(fresh) >= room:
                    raise OSError(errno.EMFILE, "a relay may not open more files: raise RLIMIT_NOFILE of pyproxy")
                fresh[place] = self._bound(place)
                self._taken.pop(place, None)
            except OSError as error:
                self._taken[place] = f"port {port}/{transport} of {address} can't be had: {error.strerror}"
        return fresh

    def _bound(self, place: Place) -> socket.socket:
        """A relay that was told to retire before this process began listens for a moment more. Raises OSError."""
        while True:
            try:
                return _bound(place)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > self._retired_by:
                    raise
                if len(processes()) <= self._host.userspace_workers:
                    raise
            time.sleep(0.05)

    def _let_go(self) -> None:
        """Of addresses that no service has any more, as soon as no connection needs them."""
        states = self._relays.states()
        self._addresses.let_go({IP(address) for state in states for address in state.busy})
        for state in states:
            if state.failures:
                log.error("a relay met what it should not", extra={"times": state.failures, "last": state.last_failure})

    def _tell_if_crowded(self) -> None:
        """Before connections are refused for it: once each time that half of a relay's files listen."""
        listening, most = len(self._relays.places()), self._relays.most_files
        was_crowded, self._is_crowded = self._is_crowded, listening > most // 2
        if self._is_crowded and not was_crowded:
            log.warning(
                "relays have few files left for connections, which take two or more: raise RLIMIT_NOFILE of pyproxy",
                extra={"most_files": most, "listening": listening},
            )

    def verify(self) -> list[Drift]:
        """The relays are asked for all that they serve; and ports that were taken are tried again."""
        try:
            drift = list(self._compare())
            if not drift:
                self._let_go()
                self._write([self._plan.entries[place] for place in self._taken], frozenset(), frozenset())
        except Lost as error:
            return [Drift(None, f"a relay is gone: {error}")]
        return drift

    def _compare(self) -> Iterator[Drift]:
        for place, what in self._relays.differences():
            yield Drift(self._plan.owners.get(place) if place else None, what)
        with as_mode_error("the addresses of this node can't be read"):
            if of_devices() != self._plan.own:
                yield Drift(None, "the addresses of this node are others now")
        for what in self._addresses.differences():
            yield Drift(None, what)

    def cleanup(self) -> list[str]:
        """Relays end at once, and with them what is open."""
        ended = processes()
        for process in ended:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        removed = [f"{len(ended)} relay processes"] if ended else []
        return removed + self._addresses.release()

    def retire(self, successor: Mode) -> Iterator[str]:
        """Nobody listens any more; what is open is relayed to its end."""
        with suppress(Lost):
            relays = found()
            places = [place for relay in relays for place in relay.entries] if successor.tracks_connections else []
            if places:
                _keep_ports(relays)
            _hand_over(places)
            for relay in relays:
                relay.leave(_LISTENS_ON_S)
                yield "what a relay listened on"
            _hand_over(places, _STOPS_AFTER_S)
        if left := len(processes()):
            raise InUse(f"{left} relays have open connections")
        yield from self._addresses.release()

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        """The local route as ip(8) shows it, and what the relays answer."""
        lines = [f"local {address} dev lo table local"] if address in self._addresses.listed() else []
        place = (transport.value, address, port)
        try:
            relays = found()
        except Lost as error:
            raise ModeError(f"a relay can't be asked: {error}") from error
        told = list(dict.fromkeys(line for relay in relays for line in _told(relay.entries.get(place))))
        for relay in relays:
            relay.close()
        if lines and not told:
            told = [f"nobody listens on {transport.value} {address} {port}"]
        return lines + told


def _keep_ports(relays: Iterable[Relay]) -> None:
    """Netfilter gives ports of this node to whom it masquerades, and has not seen those that relays have open: the
    endpoint would reset one for the other. Raises ModeError."""
    entries = [entry for relay in relays for entry in relay.entries.values()]
    with as_mode_error("conntrack can't be told what relays have open"):
        masquerade.track(to_endpoints({*chain.from_iterable((*one.outside, *one.inside) for one in entries)}))


def _hand_over(places: Collection[Place], seconds: float = 0.0) -> None:
    """Have clients of UDP meet the mode that translates by now, and see to it for so many seconds: an answer that comes
    after its flow was ended makes a flow of its own, by which its client's datagrams would come here for ever.

    Raises ModeError.
    """
    end = time.monotonic() + seconds
    while places:
        is_last = time.monotonic() >= end
        with as_mode_error("conntrack can't be read"):
            flow.end_untranslated(places)
        if is_last:
            return
        time.sleep(_BETWEEN_S)


def _told(entry: Entry | None) -> Iterator[str]:
    if entry is None:
        return
    transport, address, port = entry.place
    yield f"listen {transport} {address} {port} for {entry.route}"
    for source in entry.sources or ():
        yield f"from {source}"
    pools = {"outside ": entry.outside, "inside ": entry.inside}
    if entry.inside == entry.outside:
        pools = {"": entry.inside}
    for who, pool in pools.items():
        for ip, number in pool:
            yield f"relay {who}to {ip} {number}"


def _bound(place: Place) -> socket.socket:
    """Raises OSError."""
    transport, address, port = place
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    one = socket.socket(family, socket.SOCK_STREAM if transport == "tcp" else socket.SOCK_DGRAM)
    try:
        if transport == "tcp":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may linger
        # Before it is claimed; and somebody may have taken the local route away.
        one.setsockopt(socket.IPPROTO_IP, _IP_FREEBIND, 1)
        one.bind((address, port))
    except BaseException:
        one.close()
        raise
    return one
