"""What the configuration changes: who counts as a pod, whose source is kept, where node ports answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.conformance.cluster import Candidate, Cluster, until
from tests.conformance.known import known
from tests.conformance.manifests import FAMILIES, PORTS, service, slices

NODE = {"IPv4": "172.18.0.2", "IPv6": "fd00:172:18::2"}
PODS = ["pod-2", "pod-3"]
FAR = ["pod-2", "pod-4"]

# Fields of KubeProxyConfiguration, and whether then the source of a pod and of the client outside is kept on the way
# to a ClusterIP.
OPTIONS: dict[str, tuple[dict[str, Any], bool, bool]] = {
    "cluster CIDR": ({}, True, False),
    "masquerade all": ({"masqueradeAll": True}, False, False),
    "node CIDR": ({"detectLocalMode": "NodeCIDR"}, True, False),
    "interface prefix": (
        {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "veth"}},
        True,
        False,
    ),
    "interface": ({"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "veth1"}}, True, False),
    "another interface": (
        {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "eth0"}},
        False,
        True,
    ),
}


@pytest.fixture
def masquerades_all(request: pytest.FixtureRequest) -> bool:
    return "masquerade all" in request.node.name


@pytest.fixture(scope="module", params=OPTIONS)
def told(request: pytest.FixtureRequest, candidate: Candidate) -> Iterator[tuple[Cluster, bool, bool]]:
    options, pod_kept, client_kept = OPTIONS[request.param]
    with Cluster(candidate, **options) as cluster:
        cluster.apply("near", service(1), *slices(1, PODS))
        cluster.apply("far", service(2, externalTrafficPolicy="Local"), *slices(2, FAR))
        yield cluster, pod_kept, client_kept


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_options_decide_who_is_a_pod(
    told: tuple[Cluster, bool, bool], masquerades_all: bool, family: str, protocol: str
) -> None:
    cluster, pod_kept, client_kept = told
    for who, kept in (("pod-1", pod_kept), ("client", client_kept)):
        is_connected = known(cluster.mode).connects_sockets and who == "pod-1" and not masquerades_all
        is_kept = (kept or is_connected) and not known(cluster.mode).relays
        source = cluster.host(who).address(family) if is_kept else NODE[family]
        answers = [cluster.ask(who, 1, "ClusterIP", family, protocol) for _ in range(30)]
        assert {answer.pod for answer in answers} == set(PODS)
        assert {answer.source for answer in answers} == {source}


@pytest.mark.parametrize("family", FAMILIES)
def test_only_pods_and_the_node_are_short_circuited(told: tuple[Cluster, bool, bool], family: str) -> None:
    """With --masquerade-all nothing changes here: it is about ClusterIPs."""
    cluster, _, client_is_pod = told
    inside = {"node", "pod-1"} if not client_is_pod or known(cluster.mode).connects_sockets else {"node"}
    for who in ("node", "pod-1") if client_is_pod else ("node", "pod-1", "client"):
        expected = set(FAR) if who in inside else {"pod-2"}
        assert cluster.pods_of(30, who, 2, "NodePort", family) == expected


@pytest.mark.own
def test_without_detection_nobody_is_masqueraded_on_the_way_to_a_cluster_ip(candidate: Candidate) -> None:
    with Cluster(candidate, detectLocalMode="NodeCIDR") as cluster:
        cluster.write_objects("node", {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}})
        cluster.apply("svc", service(1), *slices(1, PODS), service(2), *slices(2, ["pod-4"]))
        seen = NODE["IPv4"] if known(cluster.mode).relays else cluster.lab.client.ipv4
        until(lambda: cluster.ask("client", 1, "ClusterIP", "IPv4").source == seen, lambda: "still masqueraded")
        # The node all the same, if it asks from the very address that it asks: a pod elsewhere could not answer it.
        for family in FAMILIES:
            assert cluster.ask("node", 2, "ClusterIP", family).source == NODE[family]


@pytest.mark.parametrize(
    ("addresses", "answers"),
    [
        (["172.18.0.0/24"], {"IPv4": True, "IPv6": False}),
        (["0.0.0.0/0", "::/0"], {"IPv4": True, "IPv6": True}),
        (["10.0.0.0/8", "fd00:10::/32"], {"IPv4": False, "IPv6": False}),
        (["primary"], {"IPv4": True, "IPv6": True}),
    ],
)
def test_node_ports_answer_where_they_are_told_to(
    candidate: Candidate, addresses: list[str], answers: dict[str, bool]
) -> None:
    with Cluster(candidate, nodePortAddresses=addresses) as cluster:
        cluster.apply("svc", service(1), *slices(1, PODS))
        for family in FAMILIES:
            outcome = cluster.outcome("client", NODE[family], 30001)
            assert outcome in PODS if answers[family] else outcome == "refused"
        assert cluster.outcome("node", "127.0.0.1", 30001) == "refused"
        assert cluster.outcome("node", "::1", 30001) == "refused"


@pytest.mark.own
def test_a_node_that_changes_its_address_is_followed(candidate: Candidate) -> None:
    """Without a restart."""
    with Cluster(candidate) as cluster:
        cluster.apply("svc", service(1), *slices(1, PODS))
        assert cluster.outcome("client", NODE["IPv4"], 30001) in PODS
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
        cluster.apply("node", node | {"status": {"addresses": [{"type": "InternalIP", "address": NODE["IPv6"]}]}})
        until(lambda: cluster.outcome("client", NODE["IPv4"], 30001) == "refused", lambda: "still answers")
        assert cluster.outcome("client", NODE["IPv6"], 30001) in PODS
