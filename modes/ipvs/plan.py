"""All that should be in the kernel, and what of it changes with some routes. Knows no kernel."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from modes.ipvs.route import Marks, Part, Server, Site, part_of
from modes.ipvs.ruleset import KINDS, set_name
from pyproxy.kernel.ipset import Elements, Slot
from pyproxy.kernel.ipvs import Key
from pyproxy.table import Family, Route, RouteId, Table

_RANKS = {set_name(kind, family): rank for rank, kind in enumerate(KINDS) for family in Family}


@dataclass(frozen=True, slots=True)
class Change:
    """What differs from what was written."""

    servers: AbstractSet[Key]
    """New, other or gone."""
    come: Elements
    gone: list[Slot]


class Plan:
    """Changes are made on the premise that each of them is carried out; after a failure, a new plan is due."""

    def __init__(self, site: Site, others: AbstractSet[Key] = frozenset()) -> None:
        """``others``: virtual servers that stay somebody else's, whoever wants them."""
        self.servers: dict[Key, Server] = {}
        self.elements: Elements = {}
        self._site = site
        self._others = others
        self._users: Counter[Slot] = Counter()
        """How many routes want an element."""
        self._routes: dict[RouteId, Route] = {}
        self._marks = Marks()

    def change(self, table: Table, changed: AbstractSet[RouteId]) -> Change:
        """What turns it into ``table``, where only ``changed`` differ."""
        servers: dict[Key, Server | None] = {}  # as they were
        elements: dict[Slot, int | None] = {}
        for route_id in changed & self._routes.keys():
            part = self._part(self._routes[route_id])
            for key in part.servers:
                servers[key] = self.servers.pop(key)
            for slot in part.elements:
                elements.setdefault(slot, self.elements[slot])
                self._users[slot] -= 1
                if not self._users[slot]:
                    del self._users[slot], self.elements[slot]
            if route_id not in table.routes:
                self._marks.release(route_id)
                del self._routes[route_id]
        for route_id in changed & table.routes.keys():
            self._routes[route_id] = table.routes[route_id]
            part = self._part(table.routes[route_id])
            for key, server in part.servers.items():
                servers.setdefault(key, None)
                self.servers[key] = server
            for slot, mark in part.elements.items():
                elements.setdefault(slot, self.elements.get(slot))
                self._users[slot] += 1
                self.elements[slot] = mark
        other = {key for key, was in servers.items() if self.servers.get(key) != was}
        come = {slot: self.elements[slot] for slot, was in elements.items() if self.elements.get(slot, was) != was}
        gone = [slot for slot, was in elements.items() if was is not None and slot not in self.elements]
        return Change(other, come, gone)

    def owners(self) -> dict[Key | Slot, RouteId]:
        """Whose each server and element is, of those that are one route's."""
        found: dict[Key | Slot, RouteId] = {}
        for route_id, route in self._routes.items():
            part = self._part(route)
            found.update(dict.fromkeys([*part.servers, *part.elements], route_id))
        return found

    def left(self) -> dict[Key, RouteId]:
        """Those of others that a route wants."""
        if not self._others:
            return {}
        parts = ((route_id, self._whole_part(route)) for route_id, route in self._routes.items())
        return {key: route_id for route_id, part in parts for key in part.servers.keys() & self._others}

    def _part(self, route: Route) -> Part:
        part = self._whole_part(route)
        for key in part.servers.keys() & self._others:
            del part.servers[key]
        return part

    def _whole_part(self, route: Route) -> Part:
        return part_of(route, self._site, self._marks)


def in_order(elements: Elements) -> Elements:
    """What lets nobody in comes first."""
    return dict(sorted(elements.items(), key=lambda item: _RANKS[item[0].set]))


def gone_in_order(slots: Iterable[Slot]) -> list[Slot]:
    """What lets somebody in goes first."""
    return sorted(slots, key=lambda slot: -_RANKS[slot.set])
