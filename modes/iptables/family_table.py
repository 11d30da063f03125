"""What one family's table nat holds of ours, and how it changes. Knows no kernel."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Set as AbstractSet

from modes.iptables import ruleset
from modes.iptables.route import Part, Place, local_endpoints, part_of
from modes.iptables.space import Addresses, Ports
from modes.iptables.tree import Chains, Rules, Tree
from pyproxy.kernel.iptables_dialect import Dialect
from pyproxy.table import IP, Host, Route, RouteId, Table, Transport


class FamilyTable:
    """Changes are made on the premise that each of them is loaded; after a failure, only `fill` is right."""

    def __init__(self, dialect: Dialect) -> None:
        self.chains: Chains = {}
        """All that should be in the kernel."""
        self._d = dialect
        self._host = Host()
        self._routes: dict[RouteId, Route] = {}
        self._places: dict[tuple[str, int], dict[Place, Rules]] = {}
        """By tree and key."""
        self._local: Counter[IP] = Counter()
        """How many routes have an endpoint of that address on this node."""
        self._plant()

    def _plant(self) -> None:
        d = self._d
        ports = {transport.value: Tree(Ports(transport.value)) for transport in Transport}
        self._trees = {"external": Tree(Addresses(d, "X")), "cluster": Tree(Addresses(d, "C")), **ports}
        self._hairpins = Tree(Addresses(d, "H"))

    def fill(self, table: Table) -> Chains:
        """Everything anew."""
        self._host, self._routes, self._places, self._local = table.host, {}, {}, Counter()
        self._plant()
        self.chains = {**ruleset.fixed_chains(), **ruleset.host_chains(self._d, table.host)}
        self.change(table, {id for id in table.routes if id.family is self._d.family})
        return self.chains

    def change(self, table: Table, changed: AbstractSet[RouteId]) -> tuple[Chains, set[str]]:
        """What turns the table as it was written into ``table``, where only ``changed`` differ: the chains that are
        new or other than they were, and the names of those that are gone."""
        before, after = Part(), Part()
        was_local, now_local = Counter[IP](), Counter[IP]()
        for route_id in changed:
            if old := self._routes.pop(route_id, None):
                before.add(part_of(old, self._d, self._host))
                was_local.update(local_endpoints(old))
            if new := table.routes.get(route_id):
                new = self._routes[route_id] = new.in_places_of(old) if old else new
                after.add(part_of(new, self._d, self._host))
                now_local.update(local_endpoints(new))
        gone = before.chains.keys() - after.chains.keys()
        chains = dict(after.chains)
        for tree, rules in self._move(before, after):
            tree_chains, tree_gone = tree.change(rules)
            chains |= tree_chains
            gone |= tree_gone
        tree_chains, tree_gone = self._hairpins.change(self._self_reaching(was_local, now_local))
        chains |= tree_chains
        gone |= tree_gone
        ports = {transport.value: self._trees[transport.value] for transport in Transport}
        chains |= ruleset.entry_chains(
            self._d, self._host, self._trees["external"], self._trees["cluster"], ports, self._hairpins
        )
        chains = {name: rules for name, rules in chains.items() if self.chains.get(name) != rules}
        self.chains.update(chains)
        for name in gone:
            del self.chains[name]
        return chains, gone

    def owners(self, names: AbstractSet[str]) -> dict[str, RouteId]:
        """Whose chains those are, as far as they are one route's."""
        return {
            name: route_id
            for route_id, route in self._routes.items()
            for name in part_of(route, self._d, self._host).chains
            if name in names
        }

    def _move(self, before: Part, after: Part) -> Iterable[tuple[Tree, dict[int, Rules]]]:
        """Each tree that changes, with the rules that the keys now have."""
        touched: dict[str, set[int]] = {}
        for place, rules in before.places.items():
            if after.places.get(place) != rules:
                del self._places[place.tree, place.key][place]
                touched.setdefault(place.tree, set()).add(place.key)
        for place, rules in after.places.items():
            if before.places.get(place) != rules:
                self._places.setdefault((place.tree, place.key), {})[place] = rules
                touched.setdefault(place.tree, set()).add(place.key)
        for tree, keys in touched.items():
            yield self._trees[tree], {key: self._rules(tree, key) for key in keys}

    def _rules(self, tree: str, key: int) -> Rules:
        places = self._places[tree, key]
        if not places:
            del self._places[tree, key]
            return ()
        rules = [rule for place in sorted(places) for rule in places[place]]
        if tree == "cluster":  # a port that no service port claims
            rules.append(f"-d {self._d.address(key)}/{self._d.bits} {ruleset.REFUSE}")
        return tuple(rules)

    def _self_reaching(self, was: Counter[IP], now: Counter[IP]) -> dict[int, Rules]:
        changed: dict[int, Rules] = {}
        for address in was.keys() | now.keys():
            had = self._local[address]
            has = self._local[address] = had - was[address] + now[address]
            if not has:
                del self._local[address]
            if bool(had) != bool(has):
                host = self._d.host(address)
                rule = f"-s {host} -d {host} -j MASQUERADE"
                changed[self._d.number(address)] = (rule,) if has else ()
        return changed
