"""Which places relays are to serve for a table, and which addresses are to be claimed for that."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from modes.userspace.protocol import Entry, Place
from modes.userspace.route import entries_of
from pyproxy.table import IP, Route, RouteId, Table


@dataclass(frozen=True, slots=True)
class Change:
    put: list[Entry]
    drop: AbstractSet[Place]
    come: AbstractSet[IP]
    """Addresses that routes have now…"""
    gone: AbstractSet[IP]
    """…and that none has any more."""


class Plan:
    def __init__(self, own: frozenset[IP] = frozenset(), answering: tuple[IP, ...] = ()) -> None:
        """``own``: addresses that this node has anyway. ``answering``: those of them where node ports answer."""
        self.own = own
        self._answering = answering
        self._entries: dict[RouteId, list[Entry]] = {}
        self._addresses: dict[RouteId, AbstractSet[IP]] = {}
        """That are claimed for a route."""
        self._users: Counter[IP] = Counter()
        """How many routes an address is claimed for."""
        self.entries: dict[Place, Entry] = {}
        self.owners: dict[Place, RouteId] = {}

    @property
    def addresses(self) -> AbstractSet[IP]:
        return self._users.keys()

    def change(self, table: Table, changed: AbstractSet[RouteId]) -> Change:
        before = {entry.place: entry for route_id in changed for entry in self._entries.pop(route_id, ())}
        gone = [ip for route_id in changed for ip in self._addresses.pop(route_id, ())]
        for place in before:
            del self.entries[place], self.owners[place]
        come: set[IP] = set()
        put = []
        for route_id in changed & table.routes.keys():
            come |= self._claim(table.routes[route_id])
            self._entries[route_id] = list(entries_of(table.routes[route_id], self._answering, self.own))
            for entry in self._entries[route_id]:
                self.entries[entry.place], self.owners[entry.place] = entry, route_id
                if before.get(entry.place) != entry:
                    put.append(entry)
        return Change(put, before.keys() - self.entries.keys(), come, self._released(gone))

    def _claim(self, route: Route) -> AbstractSet[IP]:
        addresses = {frontend.address for frontend in route.frontends} - self.own
        self._addresses[route.id] = addresses
        self._users.update(addresses)
        return addresses

    def _released(self, addresses: Iterable[IP]) -> AbstractSet[IP]:
        """Those of them that no route has any more, now that these have one user less each."""
        gone = set()
        for ip in addresses:
            self._users[ip] -= 1
            if not self._users[ip]:
                del self._users[ip]
                gone.add(ip)
        return gone
