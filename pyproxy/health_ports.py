"""Health-check node ports: how a load balancer learns which nodes have endpoints of a Service.

Service.spec.healthCheckNodePort, of Services with external policy Local. Ports are opened and closed after the sync
that brought or took the Service, where node ports answer. Where these are wide networks a port is open on all
addresses of the family, and those who come to one outside of the networks are told that nothing is here.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from http import HTTPStatus

from pyproxy.address import IP, Family, Prefix, contains, family_of
from pyproxy.http_server import Address, HttpServer, Listener, Request, Response
from pyproxy.objects import Key
from pyproxy.observer import Observer, Sync
from pyproxy.problem import Problem
from pyproxy.table import Route, RouteId


class HealthPorts(Observer):
    def __init__(self, server: HttpServer, is_healthy: Callable[[], bool], report: Callable[[Problem], None]) -> None:
        self._server = server
        self._is_healthy = is_healthy
        self._report = report
        self._routes: dict[Key, dict[RouteId, Route]] = {}  # those that have a health check
        self._prefixes: tuple[Prefix, ...] = ()
        self._listeners: dict[Address, tuple[Key, Listener]] = {}
        self._wrong: set[Key] = set()  # said once, for as long as it lasts

    def synced(self, sync: Sync) -> None:
        moved, self._prefixes = sync.now.host.node_port_prefixes != self._prefixes, sync.now.host.node_port_prefixes
        if sync.changed is None:
            before, self._routes = self._routes, _with_health_check(sync.now.routes.values())
            touched = self._routes != before
        else:
            # What goes comes last: who asks in the midst of this must not hear that nobody is here.
            ids = sorted(sync.changed, key=lambda id: id not in sync.now.routes)
            touched = bool([id for id in ids if self._note(id, sync.now.routes.get(id))])
        if moved or touched:
            self._arrange()

    def verified(self) -> None:
        """What was in the way may have gone."""
        if self._wrong:
            self._arrange()

    def _note(self, route_id: RouteId, route: Route | None) -> bool:
        """Whether it has or had a health check."""
        key = Key(route_id.namespace, route_id.name)
        if route is not None and route.health_check_port is not None:
            self._routes.setdefault(key, {})[route_id] = route
        elif key not in self._routes:
            return False
        else:
            self._routes[key].pop(route_id, None)
            if not self._routes[key]:
                del self._routes[key]
        return True

    def _arrange(self) -> None:
        """Open and close ports until they are as the routes want them."""
        ports = {key: _port(routes) for key, routes in self._routes.items()}
        wrong: dict[Key, str] = {}
        holders = {port: key for (_, port), (key, _) in self._listeners.items() if ports.get(key) == port}
        for key, port in sorted(ports.items()):
            holder = holders.setdefault(port, key)
            if holder != key:
                wrong[key] = f"port {port} is the health check of {holder}"
        wanted = {(host, port): key for port, key in holders.items() for host in _hosts(self._prefixes)}
        for address, (key, listener) in list(self._listeners.items()):
            if wanted.get(address) != key:
                listener.close()
                del self._listeners[address]
        for address, key in wanted.items():
            if address in self._listeners:
                continue
            try:
                listener = self._server.listen([address], partial(self._answer, key))
            except OSError as error:
                reason = os.strerror(error.errno or 0)
                wrong[key] = f"port {address[1]} of {address[0]} can't be opened: {reason}"
            else:
                self._listeners[address] = (key, listener)
        for key in sorted(wrong.keys() - self._wrong):
            self._report(Problem("Service", key, "spec.healthCheckNodePort", wrong[key], "Conflict"))
        self._wrong = set(wrong)

    def _answer(self, key: Key, _: Request, local: Address) -> Response:
        if not any(contains(prefix, IP(local[0])) for prefix in self._prefixes):
            return Response(HTTPStatus.NOT_FOUND, b"node ports don't answer here\n", "text/plain")
        routes = list(self._routes.get(key, {}).values())
        count = len({ip for route in routes for ip in route.ready_local})
        healthy = self._is_healthy()
        body = {
            "service": {"namespace": key.namespace, "name": key.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        status = HTTPStatus.OK if count and healthy else HTTPStatus.SERVICE_UNAVAILABLE
        return Response(status, json.dumps(body).encode(), headers={"X-Load-Balancing-Endpoint-Weight": str(count)})


def _with_health_check(routes: Iterable[Route]) -> dict[Key, dict[RouteId, Route]]:
    found: dict[Key, dict[RouteId, Route]] = {}
    for route in routes:
        if route.health_check_port is not None:
            found.setdefault(Key(route.id.namespace, route.id.name), {})[route.id] = route
    return found


def _port(routes: Mapping[RouteId, Route]) -> int:
    return next(route.health_check_port or 0 for route in routes.values())


def _hosts(prefixes: tuple[Prefix, ...]) -> list[str]:
    """What to listen on: the addresses themselves, or all of a family where one of its prefixes is wider."""
    single = {Family.IPV4: "/32", Family.IPV6: "/128"}
    everywhere = {Family.IPV4: "0.0.0.0", Family.IPV6: "::"}  # noqa: S104
    wide = {family_of(prefix) for prefix in prefixes if not prefix.endswith(single[family_of(prefix)])}
    return [everywhere[family] for family in Family if family in wide] + [
        prefix.partition("/")[0] for prefix in prefixes if family_of(prefix) not in wide
    ]
