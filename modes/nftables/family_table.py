"""What one family's table holds, and the scripts that change it. Knows no kernel."""

from collections import Counter
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import chain

from modes.nftables import ruleset
from modes.nftables.elements import Elements, Slot, behaviours_of, comment_of, elements_of
from modes.nftables.family import Dialect
from modes.nftables.ruleset import HOST_SETS, SETS, SHARED_SETS, TABLE
from pyproxy.table import Drift, Host, Route, RouteId, Table

_COMMENTED = ("services", "node-ports")


class FamilyTable:
    """Scripts are made on the premise that each of them is loaded; after a failure, only `fill` is right."""

    def __init__(self, dialect: Dialect) -> None:
        self._d = dialect
        self._host = Host()
        self._routes: dict[RouteId, Route] = {}
        self._chains: set[str] = set()
        self._users: Counter[Slot] = Counter()
        """How many routes want an element of SHARED_SETS."""

    @property
    def chains(self) -> set[str]:
        """All that should be in the kernel."""
        return {*ruleset.rules(self._d), ruleset.version(self._d), *self._chains}

    @property
    def behaviours(self) -> int:
        """How many chains of behaviours there are: more of them means that `change` wrote rules, too."""
        return len(self._chains)

    def fill(self, table: Table) -> Iterator[str]:
        """Everything anew, in place: only the affinity of clients stays."""
        self._host, self._routes, self._chains, self._users = table.host, {}, set(), Counter()
        d = self._d
        yield from ruleset.declarations(d)
        for name in (*SETS, *HOST_SETS):
            yield f"flush {'map' if name in ruleset.MAPS else 'set'} {d.ip} {TABLE} {name}"
        for name, rules in ruleset.rules(d).items():
            yield from self._chain(name, rules)
        for name, keys in ruleset.host_elements(d, table.host).items():
            yield from self._elements("add", name, keys)
        yield from self.change(table, {id for id in table.routes if id.family is d.family})

    def change(self, table: Table, changed: AbstractSet[RouteId]) -> list[str]:
        """What turns the table as it was written into ``table``, where only ``changed`` differ."""
        chains: dict[str, list[str]] = {}
        gone: list[Slot] = []
        come: dict[Slot, tuple[str, str]] = {}  # value and comment
        was_used: dict[Slot, bool] = {}
        for route_id in changed:
            old, new = self._routes.pop(route_id, None), table.routes.get(route_id)
            if new:
                new = self._routes[route_id] = new.in_places_of(old) if old else new
                for _, behaviour in behaviours_of(new):
                    if behaviour.chain and behaviour.chain not in self._chains:
                        chains.update(behaviour.chains(self._d, table.host))
                        self._chains.update(chains)
            before = elements_of(old, self._d) if old else {}
            after = elements_of(new, self._d) if new else {}
            for slot, value in before.items():
                if after.get(slot) == value:
                    continue
                if slot.set in SHARED_SETS:
                    was_used.setdefault(slot, True)
                    self._users[slot] -= 1
                else:
                    gone.append(slot)
            comment = comment_of(new) if new else ""
            for slot, value in after.items():
                if before.get(slot) == value:
                    continue
                if slot.set in SHARED_SETS:
                    was_used.setdefault(slot, self._users[slot] > 0)
                    self._users[slot] += 1
                else:
                    come[slot] = value, comment
        for slot, used in was_used.items():
            if self._users[slot] == 0:
                del self._users[slot]
            if used and slot not in self._users:
                gone.append(slot)
            elif not used and slot in self._users:
                come[slot] = "", ""
        return [
            *chain.from_iterable(self._chain(name, rules) for name, rules in chains.items()),
            *self._by_set("delete", ((slot, slot.key) for slot in gone)),
            *self._by_set("add", ((slot, _element(slot, *text)) for slot, text in come.items())),
        ]

    def differences(self, found: Elements) -> Iterator[Drift]:
        """How the kernel's elements, of all sets but the affinity of clients, differ from what was written."""
        expected: Elements = dict.fromkeys(self._users, "")
        for name, keys in ruleset.host_elements(self._d, self._host).items():
            expected.update((Slot(name, key), "") for key in keys)
        owners: dict[Slot, RouteId] = {}
        for route_id, route in self._routes.items():
            mine = elements_of(route, self._d)
            expected.update(mine)
            owners.update(dict.fromkeys(mine, route_id))
        ip = self._d.ip
        for slot in found.keys() - expected.keys():
            yield Drift(None, f"foreign element {slot.key} in {ip} {slot.set}")
        for slot in expected.keys() - found.keys():
            yield Drift(owners.get(slot), f"element {slot.key} is gone from {ip} {slot.set}")
        for slot in found.keys() & expected.keys():
            if found[slot] != expected[slot]:
                yield Drift(owners.get(slot), f"element {slot.key} of {ip} {slot.set} says {found[slot]}")

    def _chain(self, name: str, rules: Iterable[str]) -> Iterator[str]:
        where = f"{self._d.ip} {TABLE} {name}"
        yield f"add chain {where}"
        yield f"flush chain {where}"
        yield from (f"add rule {where} {rule}" for rule in rules)

    def _by_set(self, verb: str, elements: Iterable[tuple[Slot, str]]) -> Iterator[str]:
        grouped: dict[str, list[str]] = {}
        for slot, text in elements:
            grouped.setdefault(slot.set, []).append(text)
        for name, texts in grouped.items():
            yield from self._elements(verb, name, texts)

    def _elements(self, verb: str, name: str, texts: Iterable[str]) -> Iterator[str]:
        if body := ",\n".join(texts):
            yield f"{verb} element {self._d.ip} {TABLE} {name} {{ {body} }}"


def _element(slot: Slot, value: str, comment: str) -> str:
    note = f' comment "{comment}"' if slot.set in _COMMENTED else ""
    return f"{slot.key}{note} : {value}" if value else slot.key
