"""What the maps are to hold, and what of that a change touches. Knows no kernel."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace

from ebpf import layout
from ebpf.layout import MAPS
from modes.ebpf.numbers import Numbers
from modes.ebpf.route import (
    ADDRESS_BITS,
    ROLES,
    Entries,
    Ids,
    Key,
    Places,
    addresses_of,
    entries_of,
    is_guarded,
    name_of,
    places,
    places_of,
)
from modes.ebpf.site import Site
from pyproxy.table import Backend, Host, Pool, Route, RouteId, Scope, Table

ByMap = dict[str, dict[bytes, bytes]]
_LARGEST_ID = 1 << 32
_OF_NODE_PORTS = frozenset(Key("addresses", address) for address in layout.ANY_ADDRESS.values())


@dataclass(slots=True)
class Change:
    put: Entries = field(default_factory=dict)
    gone: set[Key] = field(default_factory=set)
    replaced: set[Key] = field(default_factory=set)
    """Those of ``put`` that the maps hold already, with other values."""
    counted: set[int] = field(default_factory=set)
    """Numbers of counters that another service may have had before."""

    def steps(self) -> tuple[ByMap, ByMap, ByMap]:
        """``put`` in the order in which clients may meet it: what nothing leads to yet; what they are served already,
        and otherwise from now on; and new ports, which say that all the rest is there.

        Of new ports those at addresses that clients know come last, after node ports: wherever a proxy is killed, a
        service that shows one there is whole.
        """
        hidden, known, new, last = (defaultdict[str, dict[bytes, bytes]](dict) for _ in range(4))
        for key, value in self.put.items():
            if key.map == "addresses":
                step = new
            elif key.map not in ("services", "backends"):
                step = hidden
            elif key in self.replaced:
                step = known
            elif key.map == "backends" or self._waits(address := _address_of(key)):
                step = hidden
            else:
                step = new if address in _OF_NODE_PORTS else last
            step[key.map][key.key] = value
        new["services"].update(last["services"])
        return hidden, known, new

    def _waits(self, address: Key) -> bool:
        """Whether nobody looks for a port there before the address itself is written."""
        return address in self.put and address not in self.replaced


@dataclass(frozen=True, slots=True)
class _Written:
    route: Route
    """With its backends in the order of their slots."""
    ids: Ids
    spread: Places
    """Kept, since it is dear to make."""


class Plan:
    """Changes are made on the premise that each of them is written; after a failure, only a new plan is right."""

    def __init__(
        self,
        site: Site,
        found: Mapping[str, Mapping[bytes, bytes]] | None = None,
        counters: int = MAPS["counters"].entries,
    ) -> None:
        """``found``: what maps hold from before, so that what stays keeps its numbers and slots; ``counters``: how many
        there are."""
        self._site = site
        self._answering = frozenset(map(layout.address, site.answering))
        self.host = Host()
        """As of the last change."""
        self._routes: dict[RouteId, _Written] = {}
        self._wanted: Counter[tuple[bytes, int]] = Counter()
        """How many routes want these bits of an address."""
        self._found = found or {}
        self._slots: dict[int, dict[int, bytes]] = {}
        for key, value in self._found.get("backends", {}).items():
            pool, number = layout.read_slot(key)
            self._slots.setdefault(pool, {})[number] = value
        self._taken: set[int] = set()
        services = map(layout.read_service, self._found.get("services", {}).values())
        self._next = 1 + max((n for s in services for n in (s.inside.id, s.outside.id, s.guard)), default=0)
        self._next = max(self._next, 1 + max(self._slots, default=0))
        self._counters = Numbers(counters, self._found.get("names", {}))
        self.sizes: Counter[str] = Counter()
        """How many entries each map has."""

    def change(self, table: Table, changed: AbstractSet[RouteId]) -> Change:
        """What turns the maps as they were written into ``table``, where only ``changed`` differ."""
        before: Entries = {}
        after: Entries = {}
        touched: dict[bytes, int] = {}
        self.host = table.host
        for route_id in changed:
            old, new = self._routes.pop(route_id, None), table.routes.get(route_id)
            if old:
                before.update(self._entries(old))
                self._want(old.route, -1, touched)
            if new:
                written = self._routes[route_id] = self._numbered(new, old)
                after.update(self._entries(written))
                self._want(written.route, 1, touched)
            elif old:
                self._taken.difference_update((*old.ids.pools, old.ids.guard))
                self._counters.give_back(old.ids.counter)
        self._found, self._slots = {}, {}  # those that stayed have theirs again
        for address, bits in touched.items():
            if bits:
                before[Key("addresses", address)] = layout.number(bits)
            if new_bits := self._bits_of(address):
                after[Key("addresses", address)] = layout.number(new_bits)
        put = {key: value for key, value in after.items() if before.get(key) != value} if before else after
        change = Change(put, before.keys() - after.keys(), put.keys() & before.keys(), self._counters.settle())
        self.sizes.update(key.map for key in put if key not in change.replaced)
        self.sizes.subtract(key.map for key in change.gone)
        return change

    def entries(self) -> Entries:
        """All of them."""
        entries = {key: value for one in self._routes.values() for key, value in self._entries(one).items()}
        entries.update((Key("addresses", one), layout.number(self._bits_of(one))) for one, _ in self._wanted)
        return entries | self.of_host()

    def of_host(self) -> Entries:
        """Those that no route asks for."""
        entries = {Key("addresses", one): layout.number(self._bits_of(one)) for one in self._answering}
        entries.update((Key("pods", layout.prefix(prefix)), layout.ONE) for prefix in self.host.pod_prefixes)
        return entries

    def owners(self) -> dict[Key, RouteId]:
        return {key: route_id for route_id, one in self._routes.items() for key in self._entries(one)}

    def _entries(self, written: _Written) -> Entries:
        return entries_of(written.route, written.ids, written.spread, self.host, self._site)

    def _want(self, route: Route, more: int, touched: dict[bytes, int]) -> None:
        """``more``: 1 or -1; ``touched``: gets the bits that addresses had before."""
        for address, bits in addresses_of(route):
            touched.setdefault(address, self._bits_of(address))
            self._wanted[address, bits] += more
            if not self._wanted[address, bits]:
                del self._wanted[address, bits]

    def _bits_of(self, address: bytes) -> int:
        bits = layout.ADDRESS_NODE if address in self._answering else 0
        for wanted in ADDRESS_BITS:
            bits |= wanted if (address, wanted) in self._wanted else 0
        return bits

    def _numbered(self, route: Route, old: _Written | None) -> _Written:
        """With the numbers and the order of backends that it had before."""
        if old:
            route = route.in_places_of(old.route)
            return _Written(route, old.ids, places_of(route, self.host, old.spread))
        known = self._known(route)
        ids = Ids(
            (self._id(known.get(ROLES[0])), self._id(known.get(ROLES[1])), self._id(known.get(ROLES[2]))),
            self._id(known.get("guard")),
            self._counters.take(name_of(route).packed()),
        )
        if not known:
            return _Written(route, ids, places_of(route, self.host))
        # Equal pools had one number together, and so one order.
        before = (self._pool(pool, known.get(role, 0)) for role, pool in zip(ROLES, route.pools, strict=True))
        internal, external, short_circuit = before
        route = route.in_places_of(replace(route, internal=internal, external=external, short_circuit=short_circuit))
        return _Written(route, ids, places_of(route, self.host))

    def _known(self, route: Route) -> dict[str, int]:
        """The numbers that the maps found have for it."""
        known: dict[str, int] = {}
        services = self._found.get("services", {})
        for place, scope, _ in places(route):
            packed = services.get(place)
            if packed is None:
                continue
            service = layout.read_service(packed)
            if scope is Scope.CLUSTER_IP:
                known.setdefault("internal", service.inside.id)
            else:
                known.setdefault("external", service.outside.id)
                if not route.masquerade_external:
                    known.setdefault("short_circuit", service.inside.id)
            if is_guarded(route, scope) and service.guard:
                known["guard"] = service.guard
        return known

    def _id(self, known: int | None) -> int:
        """That number if nobody else has it, else a new one."""
        if known and known not in self._taken:
            self._taken.add(known)
            return known
        while self._next in self._taken or not 0 < self._next < _LARGEST_ID:
            self._next = self._next % (_LARGEST_ID - 1) + 1
        self._taken.add(self._next)
        return self._next

    def _pool(self, pool: Pool, number: int) -> Pool:
        """The backends that the maps found have there, in their slots."""
        slots = self._slots.get(number)
        if not slots:
            return pool
        mine = {layout.backend(backend.ip, backend.port): backend for backend in pool.backends}
        return Pool(tuple(mine.get(packed, _NOBODY) for packed in _in_order(slots)), pool.on_empty)


def _address_of(key: Key) -> Key:
    """Where the address of a place stands."""
    return Key("addresses", layout.read_place(key.key)[0])


_NOBODY = Backend(ip="", port=0, is_local=False)  # type: ignore[arg-type]
"""One that is in no pool."""


def _in_order(slots: Mapping[int, bytes]) -> Iterator[bytes]:
    return (slots.get(number, b"") for number in range(max(slots) + 1))
