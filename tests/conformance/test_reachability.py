"""Who reaches which frontend, which pods answer, and whose address they see: the table of semantics, row by row."""

from collections.abc import Iterator

import pytest

from bench.ask import exchange, open_socket, reset_at_close
from tests.conformance.cluster import Cluster
from tests.conformance.known import known
from tests.conformance.manifests import FAMILIES, PORTS, service, slices, target

NODE = {"IPv4": "172.18.0.2", "IPv6": "fd00:172:18::2"}
ALL = {"pod-2", "pod-3", "pod-4"}
LOCAL = {"pod-2", "pod-3"}
EXTERNAL = ("NodePort", "ExternalIP", "LoadBalancer")

# Source, kind of frontend, external policy → pods, and whether their source is kept or a node's address.
ROWS = [
    ("pod-1", "ClusterIP", "Cluster", ALL, "kept"),
    ("node", "ClusterIP", "Cluster", ALL, "node"),
    ("client", "ClusterIP", "Cluster", ALL, "node"),
    *(("pod-1", kind, "Cluster", ALL, "node") for kind in EXTERNAL),
    *(("node", kind, "Cluster", ALL, "node") for kind in EXTERNAL),
    *(("client", kind, "Cluster", ALL, "node") for kind in EXTERNAL),
    *(("client", kind, "Local", LOCAL, "kept") for kind in EXTERNAL),
    *(("pod-1", kind, "Local", ALL, "kept") for kind in EXTERNAL),  # short circuit
    *(("node", kind, "Local", ALL, "node") for kind in EXTERNAL),
]


@pytest.fixture(scope="module")
def services(cluster: Cluster, numbers: Iterator[int]) -> Iterator[dict[str, int]]:
    """One service for each external policy."""
    by_policy = {"Cluster": next(numbers), "Local": next(numbers)}
    objects = []
    for policy, number in by_policy.items():
        objects += [service(number, externalTrafficPolicy=policy), *slices(number, sorted(ALL))]
    cluster.apply("reachability", *objects)
    yield by_policy
    cluster.delete("reachability")


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("who", "kind", "policy", "pods", "source"), ROWS)
def test_the_right_pods_answer_and_see_the_right_source(
    cluster: Cluster,
    services: dict[str, int],
    who: str,
    kind: str,
    policy: str,
    pods: set[str],
    source: str,
    family: str,
    protocol: str,
) -> None:
    answers = [cluster.ask(who, services[policy], kind, family, protocol) for _ in range(40)]
    own = cluster.host(who).address(family)
    is_connected = known(cluster.mode).connects_sockets and who != "client"
    is_kept = (source == "kept" or is_connected) and not known(cluster.mode).relays
    assert {answer.pod for answer in answers} == pods
    assert {answer.source for answer in answers} == {own if is_kept else NODE[family]}


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["ClusterIP", *EXTERNAL])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_pod_that_reaches_itself_sees_a_node_address(
    cluster: Cluster, services: dict[str, int], policy: str, kind: str, family: str, protocol: str
) -> None:
    answers = [cluster.ask("pod-2", services[policy], kind, family, protocol) for _ in range(40)]
    own = cluster.host("pod-2").address(family)
    expected = own if known(cluster.mode).connects_sockets else NODE[family]
    assert {answer.source for answer in answers if answer.pod == "pod-2"} == {expected}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_short_circuit_masquerades_no_pod_but_itself(
    cluster: Cluster, services: dict[str, int], family: str
) -> None:
    answers = [cluster.ask("pod-2", services["Local"], "LoadBalancer", family) for _ in range(40)]
    own = NODE[family] if known(cluster.mode).relays else cluster.host("pod-2").address(family)
    assert {a.source for a in answers if a.pod != "pod-2"} == {own}


@pytest.mark.parametrize("kind", EXTERNAL)
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_the_node_is_masqueraded_whichever_of_its_addresses_it_uses(
    cluster: Cluster, services: dict[str, int], policy: str, kind: str
) -> None:
    """With one address alone, nobody could tell whether the node's source was kept."""
    second = "172.18.0.22"
    with cluster.lab.node.namespace.links() as links:
        eth0 = links.link_lookup(ifname="eth0")[0]
        links.addr("add", index=eth0, address=second, prefixlen=24)
    try:
        address, port = target(services[policy], kind, "IPv4", "TCP")
        for _ in range(20):
            with open_socket(cluster.lab.node, address) as client:
                client.settimeout(3)
                client.bind((second, 0))
                kept = known(cluster.mode).connects_sockets
                assert exchange(client, address, port).source == (second if kept else NODE["IPv4"])
    finally:
        with cluster.lab.node.namespace.links() as links:
            links.addr("del", index=eth0, address=second, prefixlen=24)


@pytest.mark.own
@pytest.mark.parametrize("family", FAMILIES)
def test_a_port_of_a_client_has_the_same_port_at_its_pod_each_time(cluster: Cluster, number: int, family: str) -> None:
    """A server that closed a connection takes another between its ports only if its numbers go on where that ended."""
    cluster.apply("ports", service(number), *slices(number, ["pod-3"]))
    address, port = target(number, "NodePort", family, "TCP")
    seen = set()
    for _ in range(5):
        with open_socket(cluster.lab.client, address) as client:
            reset_at_close(client)
            client.settimeout(3)
            client.bind(("", 20234))  # no port that others get by chance: conntrack remembers theirs
            client.connect((address, port))
            _, source, source_port, _ = client.recv(100).decode().split()
            assert source == NODE[family]
            seen.add(source_port)
    assert len(seen) == 1 or known(cluster.mode).relays
    cluster.delete("ports")
