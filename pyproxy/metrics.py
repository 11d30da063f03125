"""What Prometheus reads: kube-proxy's names where the meaning is kube-proxy's, ``pyproxy_`` for the rest."""

import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.registry import Collector

from pyproxy import __version__
from pyproxy.objects import EndpointSlice, Event, Service, Upsert
from pyproxy.observer import Observer, Sync
from pyproxy.problem import Problem
from pyproxy.table import ModeError, OnEmpty, Pool, Route, RouteId

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SYNC_BUCKETS = [0.001 * 2**power for power in range(15)]
_PROGRAMMING_BUCKETS = [0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 330, 30)]
"""As kube-proxy has them, so that its dashboards and objectives go on."""


class Metrics(Observer):
    def __init__(self, mode: str) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._started = time.time()
        self._without_local: dict[str, set[RouteId]] = {"internal": set(), "external": set()}
        self._triggers: list[float] = []
        ProcessCollector(registry=self._registry)
        self._gauge("pyproxy_build_info", "Version and mode.", "version", "mode").labels(__version__, mode).set(1)
        self._durations = {
            part: self._histogram(f"kubeproxy_sync_{part}proxy_rules_duration_seconds", f"Of {what}.", _SYNC_BUCKETS)
            for part, what in (
                ("", "a sync"),
                ("full_", "a sync of everything"),
                ("partial_", "a sync of what changed"),
            )
        }
        self._programming = self._histogram(
            "kubeproxy_network_programming_duration_seconds",
            "From the change of an endpoint to the kernel.",
            _PROGRAMMING_BUCKETS,
        )
        self._last_sync = self._gauge("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When the last sync ended.")
        self._last_queued = self._gauge(
            "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "When the last change came in."
        )
        self._changes = {
            kind: self._counter(f"kubeproxy_sync_proxy_rules_{name}_changes_total", f"Changes of {name}s taken in.")
            for kind, name in ((EndpointSlice, "endpoint"), (Service, "service"))
        }
        self._pending = {
            kind: self._gauge(f"kubeproxy_sync_proxy_rules_{name}_changes_pending", f"Changes of {name}s not synced.")
            for kind, name in ((EndpointSlice, "endpoint"), (Service, "service"))
        }
        self._no_local = self._gauge(
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total",
            "Service ports whose Local policy finds no endpoint on this node.",
            "traffic_policy",
        )
        self._probes = {
            path: self._counter(f"kubeproxy_proxy_{path[1:]}_total", f"Answers of {path}.", "code")
            for path in ("/healthz", "/livez")
        }
        self._reconciling = self._histogram(
            "kubeproxy_conntrack_reconciler_sync_duration_seconds", "Of removing stale flows.", _SYNC_BUCKETS
        )
        self._flows = self._counter("kubeproxy_conntrack_reconciler_deleted_entries_total", "Stale flows removed.")
        self._failures = self._counter("pyproxy_sync_failures_total", "Syncs that the kernel did not take.")
        self._problems = self._counter(
            "pyproxy_problems_total", "What could not be obeyed, when it was first seen.", "kind", "code"
        )

    def took_in(self, events: list[Event]) -> None:
        self._last_queued.set_to_current_time()
        for event in events:
            kind = type(event.object) if isinstance(event, Upsert) else event.kind
            if kind in self._changes:
                self._changes[kind].inc()
                self._pending[kind].inc()
            # What happened before we came is not ours to be measured by.
            if isinstance(event, Upsert) and event.triggered is not None and event.triggered > self._started:
                self._triggers.append(event.triggered)

    def synced(self, sync: Sync) -> None:
        now = time.time()
        for gauge in self._pending.values():
            gauge.set(0)
        self._last_sync.set(now)
        triggers, self._triggers = self._triggers, []
        if sync.changed is not None and not sync.changed:
            return
        for triggered in triggers:
            self._programming.observe(max(0.0, now - triggered))
        self._durations[""].observe(sync.seconds)
        self._durations["full_" if sync.changed is None else "partial_"].observe(sync.seconds)
        self._count_without_local(sync)

    def failed(self, reason: ModeError) -> None:  # noqa: ARG002
        self._failures.inc()

    def note(self, problem: Problem) -> None:
        self._problems.labels(problem.kind, problem.code).inc()

    def answered(self, path: str, status: HTTPStatus) -> None:
        if path in self._probes:
            self._probes[path].labels(str(int(status))).inc()

    def reconciled(self, deleted: int, seconds: float) -> None:
        self._reconciling.observe(seconds)
        self._flows.inc(deleted)

    def add(self, collector: Collector) -> None:
        """What is read as it is asked for."""
        self._registry.register(collector)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _count_without_local(self, sync: Sync) -> None:
        everything = sync.changed is None
        for policy, pool in _POOLS.items():
            found = self._without_local[policy]
            if everything:
                found.clear()
            for route_id in sync.now.routes if sync.changed is None else sync.changed:
                route = sync.now.routes.get(route_id)
                if route is not None and _lacks_local(pool(route)):
                    found.add(route_id)
                else:
                    found.discard(route_id)
            self._no_local.labels(policy).set(len(found))

    def _histogram(self, name: str, text: str, buckets: list[float]) -> Histogram:
        return Histogram(name, text, buckets=buckets, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(name, text, labels, registry=self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(name, text, labels, registry=self._registry)


_POOLS: Mapping[str, Callable[[Route], Pool]] = {
    "internal": lambda route: route.internal,
    "external": lambda route: route.external,
}


def _lacks_local(pool: Pool) -> bool:
    """Only under a Local policy is traffic dropped for lack of endpoints."""
    return not pool.backends and pool.on_empty is OnEmpty.DROP
