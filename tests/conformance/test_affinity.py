"""sessionAffinity ClientIP: a client comes back to its endpoint while that is usable and it comes often enough."""

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.cluster import Cluster
from tests.conformance.known import known
from tests.conformance.manifests import FAMILIES, PORTS, service, slices

PODS = ["pod-2", "pod-3", "pod-4"]


def _sticky(number: int, seconds: int | None = None, **spec: Any) -> dict[str, Any]:
    config = {"clientIP": {"timeoutSeconds": seconds}} if seconds else None
    return service(number, sessionAffinity="ClientIP", sessionAffinityConfig=config, **spec)


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("who", "kind"), [("pod-1", "ClusterIP"), ("node", "NodePort"), ("client", "NodePort"), ("client", "LoadBalancer")]
)
def test_a_client_comes_back_to_its_endpoint(
    cluster: Cluster, number: int, who: str, kind: str, family: str, protocol: str
) -> None:
    cluster.apply("sticky", _sticky(number), *slices(number, PODS))
    assert len(cluster.pods_of(30, who, number, kind, family, protocol)) == 1
    cluster.delete("sticky")


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_is_of_each_service_and_client_and_chosen_at_random(
    cluster: Cluster, numbers: Iterator[int], family: str
) -> None:
    """Twelve services: one client on the same endpoint in all of them would be a chance of 1 in 177,147, and two
    neighbours on the same endpoint in each 1 in 531,441."""
    some = [next(numbers) for _ in range(12)]
    cluster.apply("sticky", *(thing for number in some for thing in (_sticky(number), *slices(number, PODS))))
    assert len({cluster.ask("client", number, "LoadBalancer", family).pod for number in some}) > 1
    first, second = ([cluster.ask(who, n, "ClusterIP", family).pod for n in some] for who in ("pod-1", "pod-2"))
    assert first != second
    cluster.delete("sticky")


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_ends_after_its_time(cluster: Cluster, number: int, family: str) -> None:
    cluster.apply("sticky", _sticky(number, 1), *slices(number, PODS))
    first = cluster.ask("pod-1", number, "ClusterIP", family).pod
    moved = False
    for _ in range(12):  # the same endpoint by chance each time: 1 in 531,441
        time.sleep(1.3)
        moved = moved or cluster.ask("pod-1", number, "ClusterIP", family).pod != first
        if moved:
            break
    assert moved != known(cluster.mode).affinity_lingers
    cluster.delete("sticky")


@pytest.mark.parametrize("family", FAMILIES)
def test_each_connection_renews_affinity(cluster: Cluster, number: int, family: str) -> None:
    seconds = 2
    cluster.apply("sticky", _sticky(number, seconds), *slices(number, PODS))
    for _ in range(10):
        pods, gaps, before = set(), [], time.monotonic()
        for _ in range(8):  # 4 seconds in all
            started = time.monotonic()
            pods |= cluster.pods_of(1, "pod-1", number, "ClusterIP", family)
            gaps.append(time.monotonic() - before)
            before = started
            time.sleep(0.5)
        if max(gaps) < seconds:  # else the machine stood still, and the client was forgotten rightly
            break
    else:
        raise AssertionError(f"this machine stands still for {max(gaps):.1f} s, again and again")
    assert len(pods) == 1
    cluster.delete("sticky")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_moves_at_once_when_its_endpoint_goes_and_stays_then(
    cluster: Cluster, number: int, family: str
) -> None:
    cluster.apply("sticky", _sticky(number), *slices(number, PODS))
    first = cluster.ask("client", number, "NodePort", family).pod
    cluster.apply("sticky", _sticky(number), *slices(number, set(PODS) - {first}))
    second = cluster.pods_of(20, "client", number, "NodePort", family)
    assert len(second) == 1
    assert first not in second
    cluster.delete("sticky")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_client_stays_when_another_endpoint_goes_or_comes(cluster: Cluster, number: int, family: str) -> None:
    cluster.apply("sticky", _sticky(number), *slices(number, PODS))
    mine = cluster.ask("pod-1", number, "ClusterIP", family).pod
    for others in ([], ["pod-1"], PODS):
        cluster.apply("sticky", _sticky(number), *slices(number, {mine, *others}))
        assert cluster.pods_of(15, "pod-1", number, "ClusterIP", family) == {mine}
    cluster.delete("sticky")


def test_affinity_survives_a_restart(cluster: Cluster, number: int) -> None:
    cluster.apply("sticky", _sticky(number), *slices(number, PODS))
    mine = {family: cluster.ask("pod-1", number, "ClusterIP", family).pod for family in FAMILIES}
    cluster.kill()
    cluster.start()
    cluster.settle()
    for family, pod in mine.items():
        assert cluster.pods_of(15, "pod-1", number, "ClusterIP", family) == {pod}
    cluster.delete("sticky")


@pytest.mark.parametrize("family", FAMILIES)
def test_external_local_keeps_outside_clients_on_local_endpoints(cluster: Cluster, number: int, family: str) -> None:
    cluster.apply("sticky", _sticky(number), *slices(number, ["pod-4"]))
    assert cluster.pods_of(3, "client", number, "NodePort", family) == {"pod-4"}
    cluster.apply("sticky", _sticky(number, externalTrafficPolicy="Local"), *slices(number, ["pod-4", "pod-2"]))
    assert cluster.pods_of(15, "client", number, "NodePort", family) == {"pod-2"}
    cluster.delete("sticky")
