"""Which endpoints get connections: conditions, topology, duplicates, and how evenly."""

from collections import Counter
from typing import Any

import pytest

from tests.conformance.cluster import Cluster
from tests.conformance.manifests import FAMILIES, Object, endpoint, endpoint_slice, service, slices

NOT_READY = {"conditions": {"ready": False, "serving": False, "terminating": False}}
TERMINATING = {"conditions": {"ready": False, "serving": True, "terminating": True}}
GONE = {"conditions": {"ready": False, "serving": False, "terminating": True}}
READY: Object = {}


def _nodes(*names: str) -> Object:
    return {"hints": {"forNodes": [{"name": name} for name in names]}}


def _zones(*names: str) -> Object:
    return {"hints": {"forZones": [{"name": name} for name in names]}}


CHOICES: dict[str, tuple[dict[str, Any], dict[str, Object], set[str]]] = {
    "absent conditions are ready": ({}, {"pod-1": READY, "pod-4": {"conditions": {}}}, {"pod-1", "pod-4"}),
    "ready only": ({}, {"pod-1": NOT_READY, "pod-2": READY, "pod-3": TERMINATING}, {"pod-2"}),
    "terminating as a last resort": ({}, {"pod-1": NOT_READY, "pod-3": TERMINATING, "pod-4": GONE}, {"pod-3"}),
    "node hints": ({}, {"pod-1": _nodes("node-1"), "pod-4": _nodes("node-2")}, {"pod-1"}),
    "node hints before zone hints": (
        {},
        {"pod-1": _nodes("node-1") | READY, "pod-2": _nodes("node-2"), "pod-4": _nodes("node-2")},
        {"pod-1"},
    ),
    "zone hints": ({}, {"pod-1": _zones("zone-a"), "pod-2": _zones("zone-b"), "pod-4": _zones("zone-a", "z")},
                   {"pod-1", "pod-4"}),
    "hints of other zones only": ({}, {"pod-1": _zones("zone-b"), "pod-4": _zones("zone-c")}, {"pod-1", "pod-4"}),
    "a missing hint voids all": ({}, {"pod-1": _zones("zone-a"), "pod-4": READY}, {"pod-1", "pod-4"}),
    "hints of endpoints that are not ready": (
        {},
        {"pod-1": _zones("zone-a"), "pod-2": _zones("zone-b"), "pod-3": NOT_READY},
        {"pod-1"},
    ),
    "internal Local": ({"internalTrafficPolicy": "Local"}, {"pod-1": READY, "pod-4": READY}, {"pod-1"}),
    "internal Local, no topology": (
        {"internalTrafficPolicy": "Local"},
        {"pod-1": _zones("zone-b"), "pod-2": _zones("zone-a"), "pod-4": _zones("zone-a")},
        {"pod-1", "pod-2"},
    ),
    "internal Local, terminating as a last resort": (
        {"internalTrafficPolicy": "Local"},
        {"pod-1": TERMINATING, "pod-2": NOT_READY, "pod-4": READY},
        {"pod-1"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("case", CHOICES)
def test_only_eligible_endpoints_get_connections(cluster: Cluster, number: int, case: str, family: str) -> None:
    spec, pods, expected = CHOICES[case]
    cluster.apply("choice", service(number, **spec), *slices(number, pods))
    assert cluster.pods_of(30, "node", number, "ClusterIP", family) == expected
    cluster.delete("choice")


def test_external_local_takes_terminating_local_endpoints_as_a_last_resort(cluster: Cluster, number: int) -> None:
    cluster.apply(
        "choice",
        service(number, externalTrafficPolicy="Local"),
        *slices(number, {"pod-1": TERMINATING, "pod-2": GONE, "pod-4": READY}),
    )
    assert cluster.pods_of(20, "client", number, "NodePort", "IPv4") == {"pod-1"}
    cluster.delete("choice")


def test_an_address_in_two_slices_is_one_endpoint_and_the_livelier_wins(cluster: Cluster, number: int) -> None:
    first = endpoint_slice(number, "IPv4", [endpoint("pod-1", "IPv4", **TERMINATING), endpoint("pod-2", "IPv4")])
    second = endpoint_slice(number, "IPv4", [endpoint("pod-1", "IPv4")])
    second["metadata"]["name"] += "-more"
    cluster.apply("choice", service(number), first, second)
    answers = Counter(cluster.ask("node", number, "ClusterIP", "IPv4").pod for _ in range(300))
    assert set(answers) == {"pod-1", "pod-2"}
    assert answers["pod-1"] < 210  # one share, not two: 6.9 standard deviations
    cluster.delete("choice")


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort"])
def test_connections_spread_evenly(cluster: Cluster, number: int, kind: str, family: str, protocol: str) -> None:
    pods = ["pod-1", "pod-2", "pod-3", "pod-4"]
    cluster.apply("spread", service(number), *slices(number, pods))
    count = 400
    answers = Counter(cluster.ask("node", number, kind, family, protocol).pod for _ in range(count))
    expected = count / len(pods)
    chi_square = sum((answers[pod] - expected) ** 2 / expected for pod in pods)
    assert chi_square < 30.66  # three degrees of freedom: exceeded once in a million runs
    cluster.delete("spread")


@pytest.mark.parametrize("service_type", ["ExternalName", "None"])
def test_skipped_services_are_not_served(cluster: Cluster, number: int, service_type: str) -> None:
    skipped = service(number, exposed=False)
    address = skipped["spec"]["clusterIP"]
    if service_type == "None":
        skipped["spec"] |= {"clusterIP": "None", "clusterIPs": ["None"]}
    else:
        skipped["spec"] = {"type": "ExternalName", "externalName": "example.com"}
    cluster.apply("skipped", skipped, *slices(number, ["pod-1"]))
    assert cluster.outcome("pod-2", address, 80) == "dropped"
    cluster.delete("skipped")


def test_services_of_another_proxy_are_left_alone(cluster: Cluster, number: int) -> None:
    foreign = service(number, exposed=False)
    foreign["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "other"}
    cluster.apply("foreign", foreign, *slices(number, ["pod-1"]))
    assert cluster.outcome("pod-2", foreign["spec"]["clusterIP"], 80) == "dropped"
    del foreign["metadata"]["labels"]
    cluster.apply("foreign", foreign, *slices(number, ["pod-1"]))
    assert cluster.outcome("pod-2", foreign["spec"]["clusterIP"], 80) == "pod-1"
    cluster.delete("foreign")
