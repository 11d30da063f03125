"""What is refused at once, what is dropped, and who may come in at all."""

from collections.abc import Iterator

import pytest

from tests.conformance.cluster import Cluster
from tests.conformance.manifests import FAMILIES, PORTS, addresses, node_port, service, slices, target

KINDS = ("ClusterIP", "NodePort", "ExternalIP", "LoadBalancer")
OWN = ["172.18.0.2/32", "fd00:172:18::2/128"]  # the node's
WHO = ("pod-1", "node", "client")


@pytest.fixture(scope="module")
def services(cluster: Cluster, numbers: Iterator[int]) -> Iterator[dict[str, int]]:
    found = {
        name: next(numbers) for name in ("empty", "remote", "internal", "guarded", "own", "open", "closed", "plain")
    }
    ranges = ["172.18.0.100/32", " fd00:172:18::100/128 ", "10.99.0.0/16"]
    others = ["10.99.0.0/16", "fd00:99::/32"]
    cluster.apply(
        "refusal",
        *(service(found["empty"]), *slices(found["empty"], [])),
        *(service(found["remote"], externalTrafficPolicy="Local"), *slices(found["remote"], ["pod-4"])),
        *(service(found["internal"], internalTrafficPolicy="Local"), *slices(found["internal"], ["pod-4"])),
        *(service(found["guarded"], loadBalancerSourceRanges=ranges), *slices(found["guarded"], ["pod-2"])),
        *(service(found["own"], loadBalancerSourceRanges=OWN), *slices(found["own"], ["pod-2"])),
        *(service(found["open"], loadBalancerSourceRanges=[*others, "0.0.0.0/0"]), *slices(found["open"], ["pod-2"])),
        *(service(found["closed"], loadBalancerSourceRanges=others), *slices(found["closed"], [])),
        *(service(found["plain"]), *slices(found["plain"], ["pod-2"])),
    )
    yield found
    cluster.delete("refusal")


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("who", WHO)
def test_a_service_without_endpoints_refuses(
    cluster: Cluster, services: dict[str, int], who: str, kind: str, family: str, protocol: str
) -> None:
    assert cluster.outcome(who, *target(services["empty"], kind, family, protocol), protocol) == "refused"


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS[1:])
def test_external_policy_local_drops_what_has_no_local_endpoint(
    cluster: Cluster, services: dict[str, int], kind: str, family: str, protocol: str
) -> None:
    assert cluster.outcome("client", *target(services["remote"], kind, family, protocol), protocol) == "dropped"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["pod-1", "node"])
def test_the_inside_still_reaches_endpoints_elsewhere(
    cluster: Cluster, services: dict[str, int], who: str, family: str
) -> None:
    assert cluster.ask(who, services["remote"], "NodePort", family).pod == "pod-4"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", WHO)
def test_internal_policy_local_drops_what_has_no_local_endpoint(
    cluster: Cluster, services: dict[str, int], who: str, family: str
) -> None:
    assert cluster.outcome(who, *target(services["internal"], "ClusterIP", family, "TCP")) == "dropped"


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", WHO)
def test_a_port_of_a_cluster_ip_that_nobody_claims_is_refused(
    cluster: Cluster, services: dict[str, int], who: str, family: str, protocol: str
) -> None:
    address = addresses(services["plain"])["ClusterIP"][family]
    assert cluster.outcome(who, address, 4711, protocol) == "refused"


@pytest.mark.parametrize("family", FAMILIES)
def test_source_ranges_let_in_who_is_named(cluster: Cluster, services: dict[str, int], family: str) -> None:
    assert cluster.ask("client", services["guarded"], "LoadBalancer", family).pod == "pod-2"


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_source_ranges_let_in_the_node_if_it_is_named(
    cluster: Cluster, services: dict[str, int], family: str, protocol: str
) -> None:
    own = target(services["own"], "LoadBalancer", family, protocol)
    assert cluster.outcome("node", *own, protocol) == "pod-2"
    assert cluster.outcome("client", *own, protocol) == "dropped"


@pytest.mark.parametrize("protocol", PORTS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["pod-1", "node"])
def test_source_ranges_drop_all_others(
    cluster: Cluster, services: dict[str, int], who: str, family: str, protocol: str
) -> None:
    assert cluster.outcome(who, *target(services["guarded"], "LoadBalancer", family, protocol), protocol) == "dropped"


@pytest.mark.parametrize("kind", ["ClusterIP", "NodePort", "ExternalIP"])
def test_source_ranges_guard_only_the_load_balancer(cluster: Cluster, services: dict[str, int], kind: str) -> None:
    assert cluster.ask("pod-1", services["guarded"], kind, "IPv4").pod == "pod-2"


def test_a_range_of_length_zero_means_everyone_of_its_family(cluster: Cluster, services: dict[str, int]) -> None:
    assert cluster.outcome("client", *target(services["open"], "LoadBalancer", "IPv4", "TCP")) == "pod-2"
    assert cluster.outcome("client", *target(services["open"], "LoadBalancer", "IPv6", "TCP")) == "dropped"


@pytest.mark.parametrize("family", FAMILIES)
def test_source_ranges_come_before_the_refusal(cluster: Cluster, services: dict[str, int], family: str) -> None:
    assert cluster.outcome("client", *target(services["closed"], "LoadBalancer", family, "TCP")) == "dropped"


def test_node_ports_never_answer_on_loopback(cluster: Cluster, services: dict[str, int]) -> None:
    for address in ("127.0.0.1", "::1"):
        assert cluster.outcome("node", address, node_port(services["plain"], "TCP")) == "refused"
    with cluster.lab.node.namespace.entered(), open("/proc/sys/net/ipv4/conf/all/route_localnet") as sysctl:  # noqa: PTH123
        assert sysctl.read() == "0\n"


def test_node_ports_answer_on_no_address_but_the_nodes(cluster: Cluster, services: dict[str, int]) -> None:
    port = node_port(services["plain"], "TCP")
    assert cluster.outcome("client", "172.18.0.2", port) == "pod-2"
    assert cluster.outcome("client", "172.18.0.3", port) == "refused"
    assert cluster.outcome("client", addresses(services["plain"])["ClusterIP"]["IPv4"], port) == "refused"


def test_an_ingress_that_is_no_vip_is_not_ours(cluster: Cluster, number: int) -> None:
    ingress = [{"ip": "198.51.100.251", "ipMode": "Proxy"}, {"hostname": "lb.example"}]
    balanced = service(number) | {"status": {"loadBalancer": {"ingress": ingress}}}
    cluster.apply("proxy-mode", balanced, *slices(number, ["pod-2"]))
    assert cluster.outcome("pod-1", "198.51.100.251", 80) == "dropped"
    cluster.delete("proxy-mode")
