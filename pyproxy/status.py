"""What the proxy is doing, for those who ask from outside: health checks, the status page.

Written by the controller's thread, by sources and by whoever reports a problem; read by the HTTP server's threads. All
that is shared is replaced whole or is a bounded deque, so nobody waits for anybody.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyproxy import __version__
from pyproxy.connection import Connection
from pyproxy.objects import Delete, Event, Node
from pyproxy.observer import Observer, Sync
from pyproxy.problem import Problem
from pyproxy.table import ModeError, Pool, Route, Table

_MOST_ERRORS = 20
_MOST_ROUTES = 500


@dataclass(frozen=True, slots=True)
class _Done:
    """A sync that reached the kernel. Not the Sync itself, which would keep the table before it, too."""

    at: float
    seconds: float
    full: bool
    changed: int


class Status(Observer):
    def __init__(self, mode: str, node_name: str) -> None:
        self._mode = mode
        self._node_name = node_name
        self._started = time.time()
        self._done: _Done | None = None
        self._table: Table | None = None
        self._changes = 0  # since the last sync
        self._failing: str | None = None
        self._errors: deque[tuple[float, str]] = deque(maxlen=_MOST_ERRORS)
        self.node_is_leaving = False
        self.pending_since: Callable[[], float | None] = lambda: None
        """By time.monotonic(); see Controller.pending_since."""
        self.connections: Callable[[], list[Connection]] = list

    def took_in(self, events: list[Event]) -> None:
        self._changes += len(events)
        for event in events:
            # Manifests may hold other nodes, too.
            if isinstance(event, Delete):
                self.node_is_leaving |= event.kind is Node and event.key.name == self._node_name
            elif isinstance(event.object, Node) and event.object.metadata.name == self._node_name:
                self.node_is_leaving = event.object.is_leaving

    def synced(self, sync: Sync) -> None:
        self._table, self._changes, self._failing = sync.now, 0, None
        if sync.changed is None or sync.changed:
            changed = len(sync.now.routes if sync.changed is None else sync.changed)
            self._done = _Done(time.time(), sync.seconds, sync.changed is None, changed)

    def failed(self, reason: ModeError) -> None:
        self._failing = str(reason)
        self._errors.append((time.time(), f"sync failed: {reason}"))

    def note(self, problem: Problem) -> None:
        self._errors.append((time.time(), str(problem)))

    @property
    def has_synced(self) -> bool:
        return self._table is not None

    @property
    def last_sync(self) -> float | None:
        """When the kernel was last written, in seconds since the epoch."""
        return self._done.at if self._done else None

    def overview(self, search: str) -> dict[str, Any]:
        """The status page's numbers, and the routes whose text holds every word of ``search``."""
        table = self._table
        routes = list(table.routes.values()) if table else []
        since = self.pending_since()
        matching = _matching(routes, search.lower().split())
        return {
            "version": __version__,
            "mode": self._mode,
            "node": self._node_name,
            "started": _iso(self._started),
            "now": _iso(time.time()),
            "services": len({(route.id.namespace, route.id.name) for route in routes}),
            "endpoints": len({(one.ip, one.port) for route in routes for pool in route.pools for one in pool.backends}),
            "routes": len(routes),
            "lastSync": self._last_sync(),
            "pending": {"changes": self._changes, "seconds": None if since is None else time.monotonic() - since},
            "failing": self._failing,
            "errors": [{"at": _iso(at), "text": text} for at, text in reversed(list(self._errors))],
            "api": [_connection(one) for one in self.connections()],
            "matching": len(matching),
            "table": [_row(route) for route in sorted(matching, key=_order)[:_MOST_ROUTES]],
        }

    def _last_sync(self) -> dict[str, Any] | None:
        done = self._done
        if done is None:
            return None
        return {"at": _iso(done.at), "seconds": done.seconds, "full": done.full, "changed": done.changed}


def _matching(routes: list[Route], words: list[str]) -> list[Route]:
    if not words:
        return routes
    texts = ((route, _text(route)) for route in routes)
    return [route for route, text in texts if all(word in text for word in words)]


def _order(route: Route) -> tuple[str, ...]:
    return route.id.namespace, route.id.name, route.id.port_name, route.id.family.value


def _text(route: Route) -> str:
    """All of a route that one may search for, in lower case."""
    addresses = [f"{one.address}:{one.port}" for one in route.frontends]
    backends = [f"{one.ip}:{one.port}" for pool in route.pools for one in pool.backends]
    return " ".join([str(route.id), route.transport, str(route.node_port or ""), *addresses, *backends]).lower()


def _row(route: Route) -> dict[str, Any]:
    return {
        "service": f"{route.id.namespace}/{route.id.name}",
        "port": route.id.port_name,
        "family": route.id.family.value,
        "protocol": route.transport.upper(),
        "frontends": [{"address": one.address, "port": one.port, "scope": one.scope.value} for one in route.frontends],
        "nodePort": route.node_port,
        "internal": _pool(route.internal),
        "external": _pool(route.external),
        "affinitySeconds": route.affinity_seconds,
    }


def _pool(pool: Pool) -> dict[str, Any]:
    """A large pool is cut: a page is for people."""
    backends = [{"address": one.ip, "port": one.port, "local": one.is_local} for one in pool.backends[:50]]
    return {"backends": backends, "count": len(pool.backends), "onEmpty": pool.on_empty.value}


def _connection(one: Connection) -> dict[str, Any]:
    return {
        "kind": one.kind,
        "state": one.state,
        "since": _iso(one.since),
        "error": one.error,
        "lists": one.lists,
        "watches": one.watches,
    }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
