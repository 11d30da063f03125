"""From the store to the forwarding table, as far as something changed.

Policy looks at one service at a time. What several services may want at once, an address or a node port, is settled
here with `Claims`; a service that wins or loses something through another's change is planned again.
"""

from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace

from pyproxy.claims import Claims, frontend_claims, node_port_claim
from pyproxy.host import HostOptions, host_of, site_of
from pyproxy.objects import Key
from pyproxy.policy import routes_of
from pyproxy.problem import Problem
from pyproxy.store import Store
from pyproxy.table import Host, Route, RouteId, Table


class Planner:
    def __init__(self, store: Store, options: HostOptions, objection: Callable[[Route], str | None]) -> None:
        """``objection`` says why the mode can't serve a route, None if it can."""
        self._store = store
        self.options = options
        self._objection = objection
        self._claims = Claims()
        self._routes: dict[RouteId, Route] = {}
        self._ids_of: dict[Key, tuple[RouteId, ...]] = {}
        self._host = Host()
        self.problems: dict[Key, tuple[Problem, ...]] = {}
        """What can't be obeyed now, by service."""
        self.orphaned: set[Key] = set()
        """Services that have slices but are not there, be it not yet or no more."""

    def plan(self) -> tuple[Table, AbstractSet[RouteId] | None]:
        """The table for the store as it is, and which routes differ from the last one; None if everything may."""
        dirty = self._store.take_dirty()
        planned = {key: self._routes_of(key) for key in dirty}
        affected: set[Key] = set()
        for key, (routes, _) in planned.items():
            service = self._store.services.get(key)
            affected |= self._claims.replace(key, routes, service.metadata.creation_timestamp if service else None)
        planned.update({key: self._routes_of(key) for key in affected - dirty})
        self.orphaned -= dirty
        self.orphaned |= {key for key in dirty if key not in self._store.services and any(self._store.slices_of(key))}
        changed: set[RouteId] = set()
        for key, (routes, problems) in planned.items():
            changed |= self._settle(key, routes, problems)
        host = host_of(self._store.node, self.options)
        moved, self._host = host != self._host, host
        return Table(dict(self._routes), host), None if moved else changed

    def _routes_of(self, key: Key) -> tuple[list[Route], list[Problem]]:
        service = self._store.services.get(key)
        if service is not None:
            wishes, problems = routes_of(service, self._store.slices_of(key), site_of(self._store.node, self.options))
            routes = [route for route in wishes if not self._objects(route, problems)]
            return routes, problems
        return [], []

    def _objects(self, route: Route, problems: list[Problem]) -> bool:
        """Whether the mode can't serve ``route``, which is then told in ``problems``."""
        reason = self._objection(route)
        if reason is not None:
            key = Key(route.id.namespace, route.id.name)
            field = f"spec.ports[{route.id.port_name}]"
            problems.append(Problem("Service", key, field, f"{route.id.family.value}: {reason}", "NotSupported"))
        return reason is not None

    def _settle(self, key: Key, routes: list[Route], problems: list[Problem]) -> set[RouteId]:
        """Put what ``key`` may have of its wishes into the table; return the routes that are new, other or gone."""
        granted = {}
        for route in routes:
            granted[route.id], lost = self._granted(route)
            problems += lost
        gone = set(self._ids_of.pop(key, ())) - granted.keys()
        changed = gone | {id for id, route in granted.items() if self._routes.get(id) != route}
        for route_id in gone:
            del self._routes[route_id]
        for route_id in changed - gone:
            self._routes[route_id] = granted[route_id]
        if granted:
            self._ids_of[key] = tuple(granted)
        if problems:
            self.problems[key] = tuple(problems)
        else:
            self.problems.pop(key, None)
        return changed

    def _granted(self, route: Route) -> tuple[Route, list[Problem]]:
        """``route`` without what an older service holds."""
        holders = [self._claims.holder(claim) for claim in frontend_claims(route)]
        port_claim = node_port_claim(route)
        port_holder = self._claims.holder(port_claim) if port_claim else route.id
        if port_holder == route.id and all(holder == route.id for holder in holders):
            return route, []
        pairs = list(zip(route.frontends, holders, strict=True))
        problems = [
            self._lost(route, f"{frontend.scope.value} {frontend.address} port {frontend.port}", holder)
            for frontend, holder in pairs
            if holder != route.id
        ]
        if port_holder != route.id:
            problems.append(self._lost(route, f"node port {route.node_port}", port_holder))
        kept = tuple(frontend for frontend, holder in pairs if holder == route.id)
        node_port = route.node_port if port_holder == route.id else None
        return replace(route, frontends=kept, node_port=node_port), problems

    @staticmethod
    def _lost(route: Route, what: str, holder: RouteId) -> Problem:
        key = Key(route.id.namespace, route.id.name)
        reason = f"{what} is taken by {holder}, which goes first"
        return Problem("Service", key, f"spec.ports[{route.id.port_name}]", reason, "Conflict")
