"""The metrics after a scripted life, read as Prometheus reads them."""

import re
import time
from collections.abc import Mapping
from http import HTTPStatus
from threading import Thread
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pyproxy import __version__
from pyproxy.metrics import Metrics
from pyproxy.objects import Delete, EndpointSlice, Key, Node, Service, Upsert
from pyproxy.observer import Sync
from pyproxy.problem import Problem
from pyproxy.table import Host, ModeError, RouteId, Table
from tests.unit.samples import OTHER_NODE, THIS_NODE, endpoint, endpoint_slice, node, service, table

TYPES = {
    "kubeproxy_sync_proxy_rules_duration_seconds": "histogram",
    "kubeproxy_sync_full_proxy_rules_duration_seconds": "histogram",
    "kubeproxy_sync_partial_proxy_rules_duration_seconds": "histogram",
    "kubeproxy_network_programming_duration_seconds": "histogram",
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds": "gauge",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds": "gauge",
    "kubeproxy_sync_proxy_rules_endpoint_changes_total": "counter",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending": "gauge",
    "kubeproxy_sync_proxy_rules_service_changes_total": "counter",
    "kubeproxy_sync_proxy_rules_service_changes_pending": "gauge",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total": "gauge",  # kube-proxy's name, and its type
    "kubeproxy_proxy_healthz_total": "counter",
    "kubeproxy_proxy_livez_total": "counter",
    "kubeproxy_conntrack_reconciler_sync_duration_seconds": "histogram",
    "kubeproxy_conntrack_reconciler_deleted_entries_total": "counter",
    "pyproxy_build_info": "gauge",
    "pyproxy_sync_failures_total": "counter",
    "pyproxy_problems_total": "counter",
    "process_cpu_seconds_total": "counter",
    "process_resident_memory_bytes": "gauge",
}
"""By the names that are asked for; of kube-proxy 1.36, but for those of `pyproxy_` and of any process."""

SYNC = "kubeproxy_sync_proxy_rules"
PROGRAMMING = "kubeproxy_network_programming_duration_seconds"
EMPTY = Table({}, Host())


class Scrape:
    def __init__(self, metrics: Metrics) -> None:
        self.types: dict[str, str] = {}
        self._samples: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        for family in text_string_to_metric_families(metrics.text().decode()):
            assert family.documentation, family.name
            self.types[family.name + ("_total" if family.type == "counter" else "")] = family.type
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in self._samples
                self._samples[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float:
        return self._samples[name, tuple(sorted(labels.items()))]

    def labels(self, name: str) -> list[dict[str, str]]:
        return [dict(labels) for other, labels in self._samples if other == name]

    def bounds(self, name: str) -> list[float]:
        return [float(labels["le"]) for labels in self.labels(f"{name}_bucket")]

    def counts(self, *names: str) -> list[float]:
        """Of histograms."""
        return [self(f"{name}_count") for name in names]


@pytest.fixture
def metrics() -> Metrics:
    return Metrics("nftables")


def sync(
    now: Table = EMPTY, changed: frozenset[RouteId] | None = None, seconds: float = 0.25, before: Table = EMPTY
) -> Sync:
    return Sync(before, now, changed, seconds)


def route_ids(count: int) -> frozenset[RouteId]:
    routes = table(*(service(f"s{number}") for number in range(count))).routes
    return frozenset(routes)


def test_every_metric_is_there_from_the_start_with_its_type(metrics: Metrics) -> None:
    types = Scrape(metrics).types
    assert {name: types.get(name) for name in TYPES} == TYPES
    strangers = {name for name in types.keys() - TYPES.keys() if not name.startswith("process_")}
    assert strangers == set()
    assert not [name for name in types if name.endswith("_created")]


def test_the_content_type_is_that_of_the_text(metrics: Metrics) -> None:
    from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

    from pyproxy.metrics import CONTENT_TYPE

    assert CONTENT_TYPE == CONTENT_TYPE_PLAIN_0_0_4
    assert metrics.text().endswith(b"\n")
    for line in metrics.text().decode().splitlines():
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"]*",?)+\})? [-+.\de]+(Inf|NaN)?', line), line


def test_buckets_are_those_of_kube_proxy(metrics: Metrics) -> None:
    scrape = Scrape(metrics)
    expected = [*(0.001 * 2**power for power in range(15)), float("inf")]
    for name in TYPES:
        if TYPES[name] == "histogram" and name != PROGRAMMING:
            assert scrape.bounds(name) == pytest.approx(expected), name
    steps = [*range(1, 60), *range(60, 120, 5), *(120, 150, 180, 210, 240, 270, 300)]
    assert scrape.bounds(PROGRAMMING) == [0.25, 0.5, *steps, float("inf")]


def test_changes_are_counted_by_kind_and_are_pending_until_a_sync(metrics: Metrics) -> None:
    before = time.time()
    metrics.took_in([Upsert(service()), Upsert(endpoint_slice()), Upsert(endpoint_slice(name="web-2")), Upsert(node())])
    metrics.took_in([Delete(Service, Key("default", "web")), Delete(Node, Key("", THIS_NODE))])
    scrape = Scrape(metrics)
    names = [f"{SYNC}_{kind}_changes" for kind in ("service", "endpoint")]
    assert [scrape(f"{name}_total") for name in names] == [2, 2]
    assert [scrape(f"{name}_pending") for name in names] == [2, 2]
    assert before <= scrape(f"{SYNC}_last_queued_timestamp_seconds") <= time.time()
    assert scrape(f"{SYNC}_last_timestamp_seconds") == 0
    metrics.failed(ModeError("no"))
    metrics.took_in([Delete(EndpointSlice, Key("default", "web-1"))])
    scrape = Scrape(metrics)
    assert [scrape(f"{name}_pending") for name in names] == [2, 3]
    metrics.synced(sync())
    scrape = Scrape(metrics)
    assert [scrape(f"{name}_pending") for name in names] == [0, 0]
    assert [scrape(f"{name}_total") for name in names] == [2, 3]
    metrics.took_in([Upsert(service())])
    metrics.synced(sync(changed=frozenset()))  # what came made no difference
    assert Scrape(metrics)(f"{SYNC}_service_changes_pending") == 0


def test_syncs_are_counted_by_how_much_they_wrote(metrics: Metrics) -> None:
    names = [f"kubeproxy_sync_{part}proxy_rules_duration_seconds" for part in ("", "full_", "partial_")]
    before = time.time()
    metrics.synced(sync(seconds=0.25))
    assert Scrape(metrics).counts(*names) == [1, 1, 0]
    metrics.synced(sync(changed=route_ids(1), seconds=0.5))
    metrics.synced(sync(changed=route_ids(2), seconds=0.125))
    scrape = Scrape(metrics)
    assert scrape.counts(*names) == [3, 1, 2]
    assert [scrape(f"{name}_sum") for name in names] == [0.875, 0.25, 0.625]
    written = scrape(f"{SYNC}_last_timestamp_seconds")
    assert before <= written <= time.time()
    metrics.synced(sync(changed=frozenset()))
    metrics.failed(ModeError("no"))
    scrape = Scrape(metrics)
    assert scrape.counts(*names) == [3, 1, 2]
    assert scrape(f"{SYNC}_last_timestamp_seconds") > written  # nothing that was queued later waits
    metrics.synced(sync())
    assert Scrape(metrics)(f"{SYNC}_last_timestamp_seconds") > written


def test_failures_are_counted(metrics: Metrics) -> None:
    assert Scrape(metrics)("pyproxy_sync_failures_total") == 0
    for _ in range(3):
        metrics.failed(ModeError("no"))
    metrics.synced(sync())
    assert Scrape(metrics)("pyproxy_sync_failures_total") == 3


def test_network_programming_is_measured_for_changes_since_the_start(metrics: Metrics) -> None:
    now = time.time()
    old, new, future = Upsert(endpoint_slice(), now - 3600), Upsert(endpoint_slice(), now), now + 3600
    metrics.took_in([old, Upsert(endpoint_slice()), Upsert(service()), Delete(EndpointSlice, Key("a", "b"))])
    metrics.synced(sync())
    assert Scrape(metrics).counts(PROGRAMMING) == [0]
    metrics.took_in([old, new, new])
    metrics.failed(ModeError("no"))
    assert Scrape(metrics).counts(PROGRAMMING) == [0]  # not in the kernel yet
    metrics.took_in([new])
    metrics.synced(sync(changed=route_ids(1)))
    scrape = Scrape(metrics)
    assert scrape.counts(PROGRAMMING) == [3]
    assert 0 <= scrape(f"{PROGRAMMING}_sum") <= 3 * (time.time() - now)
    metrics.synced(sync())
    assert Scrape(metrics).counts(PROGRAMMING) == [3]  # each once
    metrics.took_in([new])
    metrics.synced(sync(changed=frozenset()))
    assert Scrape(metrics).counts(PROGRAMMING) == [3]  # it programmed nothing
    metrics.took_in([Upsert(endpoint_slice(), future)])  # clocks differ
    metrics.synced(sync(changed=route_ids(1)))
    after = Scrape(metrics)
    assert after.counts(PROGRAMMING) == [4]
    assert after(f"{PROGRAMMING}_sum") == scrape(f"{PROGRAMMING}_sum")


def local(name: str, policy: str, *nodes: str) -> tuple[Service, EndpointSlice]:
    """A service with a Local policy, ``internal`` or ``external``, and an endpoint on each of ``nodes``."""
    spec: dict[str, Any] = {f"{policy}_traffic_policy": "Local"}
    ends = (endpoint(f"10.244.0.{number}", on) for number, on in enumerate(nodes, 1))
    return service(name, type="NodePort", **spec), endpoint_slice(*ends, name=f"{name}-1", of=name)


def without_local(metrics: Metrics) -> dict[str, float]:
    scrape = Scrape(metrics)
    name = f"{SYNC}_no_local_endpoints_total"
    return {labels["traffic_policy"]: scrape(name, **labels) for labels in scrape.labels(name)}


def test_services_that_lack_local_endpoints_are_counted_by_policy(metrics: Metrics) -> None:
    steps: list[tuple[Mapping[str, tuple[Service, EndpointSlice]], dict[str, float]]] = [
        ({"a": local("a", "internal", OTHER_NODE), "b": local("b", "external", OTHER_NODE)},
         {"internal": 1, "external": 1}),
        ({"a": local("a", "internal", OTHER_NODE, THIS_NODE)}, {"internal": 0, "external": 1}),
        ({"c": local("c", "external", OTHER_NODE)}, {"internal": 0, "external": 2}),
        ({"b": local("b", "external")}, {"internal": 0, "external": 1}),  # none anywhere: refused, not lacking
        ({"c": (service("c", type="NodePort"), endpoint_slice(endpoint("10.244.0.1", OTHER_NODE), name="c-1", of="c"))},
         {"internal": 0, "external": 0}),
        ({"a": local("a", "internal", OTHER_NODE), "d": local("d", "internal", OTHER_NODE)},
         {"internal": 2, "external": 0}),
        ({"d": (service("d", type="ExternalName"), endpoint_slice(of="d"))}, {"internal": 1, "external": 0}),
    ]  # fmt: skip
    state: dict[str, tuple[Service, EndpointSlice]] = {}
    incremental, full = metrics, Metrics("nftables")
    incremental.synced(sync())
    assert without_local(incremental) == {"internal": 0, "external": 0}
    before = EMPTY
    for number, (change, expected) in enumerate(steps):
        state |= change
        now = table(*(thing for pair in state.values() for thing in pair))
        changed = frozenset(id for id in {*before.routes, *now.routes} if before.routes.get(id) != now.routes.get(id))
        incremental.synced(sync(now, changed, before=before))
        full.synced(sync(now, before=before))
        incremental.synced(sync(now, frozenset(), before=now))
        assert (without_local(incremental), without_local(full)) == (expected, expected), number
        before = now
    incremental.synced(sync())
    assert without_local(incremental) == {"internal": 0, "external": 0}


def test_problems_are_counted_by_kind_and_code(metrics: Metrics) -> None:
    key = Key("default", "web")
    for problem in (
        *[Problem("Service", key, "spec.a", "bad")] * 2,
        Problem("Service", key, "spec.b", 'worse "than" that\n'),
        Problem("Service", key, "spec.b", "taken", "Conflict"),
        Problem("Node", Key("", "n"), "", "odd"),
    ):
        metrics.note(problem)
    scrape = Scrape(metrics)
    counts = {tuple(labels.values()): scrape("pyproxy_problems_total", **labels)
              for labels in scrape.labels("pyproxy_problems_total")}  # fmt: skip
    assert counts == {("NotObeyed", "Service"): 3, ("Conflict", "Service"): 1, ("NotObeyed", "Node"): 1}


def test_probes_are_counted_by_path_and_code(metrics: Metrics) -> None:
    for path, status in (
        *[("/healthz", HTTPStatus.OK)] * 3,
        ("/healthz", HTTPStatus.SERVICE_UNAVAILABLE),
        ("/livez", HTTPStatus.OK),
        ("/readyz", HTTPStatus.OK),  # kube-proxy has no such path, so no such metric
    ):
        metrics.answered(path, status)
    scrape = Scrape(metrics)
    assert scrape("kubeproxy_proxy_healthz_total", code="200") == 3
    assert scrape("kubeproxy_proxy_healthz_total", code="503") == 1
    assert scrape.labels("kubeproxy_proxy_livez_total") == [{"code": "200"}]
    assert scrape("kubeproxy_proxy_livez_total", code="200") == 1


def test_stale_flows_are_counted(metrics: Metrics) -> None:
    metrics.reconciled(7, 0.25)
    metrics.reconciled(0, 0.5)
    scrape = Scrape(metrics)
    assert scrape("kubeproxy_conntrack_reconciler_deleted_entries_total") == 7
    assert scrape("kubeproxy_conntrack_reconciler_sync_duration_seconds_count") == 2
    assert scrape("kubeproxy_conntrack_reconciler_sync_duration_seconds_sum") == 0.75


def test_it_says_what_it_is(metrics: Metrics) -> None:
    assert Scrape(metrics)("pyproxy_build_info", version=__version__, mode="nftables") == 1


def test_two_lives_in_one_process_do_not_meet(metrics: Metrics) -> None:
    other = Metrics("other")
    other.failed(ModeError("no"))
    assert Scrape(metrics)("pyproxy_sync_failures_total") == 0


def test_a_scrape_in_the_midst_of_changes_can_be_read(metrics: Metrics) -> None:
    over: list[bool] = []

    def live() -> None:
        number, ids = 0, route_ids(1)
        while not over:
            metrics.took_in([Upsert(endpoint_slice(), time.time())])
            metrics.note(Problem("Service", Key("a", "b"), "", "", f"Code{number}"))
            metrics.synced(sync(changed=ids))
            number = (number + 1) % 100

    thread = Thread(target=live)
    thread.start()
    try:
        for _ in range(50):
            Scrape(metrics)
    finally:
        over.append(True)
        thread.join()
