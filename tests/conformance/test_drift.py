"""Someone else changes what the proxy wrote: found and repaired within a sync period (here one second)."""

import pytest

from tests.conformance.cluster import Cluster, until
from tests.conformance.manifests import addresses, service, slices

pytestmark = pytest.mark.own

# What a stranger may do, by mode; {address} is the ClusterIP of a service with one endpoint.
DAMAGE = {
    "nftables": {
        "a table is deleted": "delete table ip pyproxy",
        "a table is flushed": "flush table ip pyproxy",
        "a map is flushed": "flush map ip pyproxy endpoints",
        "an element is deleted": "delete element ip pyproxy services {{ {address} . tcp . 80 }}",
        "an element is changed": "delete element ip pyproxy endpoints {{ {address} . tcp . 80 . fe00:0 }}; "
        "add element ip pyproxy endpoints {{ {address} . tcp . 80 . fe00:0 : 10.244.0.13 . 8080 }}",
        "a foreign rule comes first": "insert rule ip pyproxy services ip daddr {address} drop",
        "a chain is emptied": "flush chain ip pyproxy prerouting",
        "a policy is changed": "add chain ip pyproxy prerouting {{ policy drop; }}",
    }
}


@pytest.fixture
def damages(mode: str) -> dict[str, str]:
    return DAMAGE[mode]


@pytest.mark.parametrize("what", DAMAGE["nftables"])
def test_damage_is_repaired(cluster: Cluster, number: int, damages: dict[str, str], what: str) -> None:
    cluster.apply("drift", service(number), *slices(number, ["pod-2"]))
    address = addresses(number)["ClusterIP"]["IPv4"]
    said = len(cluster.log())
    cluster.lab.node.namespace.run(["nft", damages[what].format(address=address)])
    until(lambda: "repairing" in cluster.log()[said:], lambda: "the damage was not found")
    until(lambda: cluster.outcome("pod-1", address, 80) == "pod-2", lambda: "the damage was not repaired")
    bystander = cluster.lab.node.ipv4, 9  # nobody's port: the node itself must refuse it
    until(lambda: cluster.outcome("client", *bystander) == "refused", lambda: "others' traffic is still harmed")
    cluster.delete("drift")


def test_a_foreign_element_is_removed(cluster: Cluster, number: int, mode: str) -> None:
    assert mode in DAMAGE
    cluster.apply("drift", service(number), *slices(number, ["pod-2"]))
    cluster.lab.node.namespace.run(["nft", "add element ip pyproxy services { 10.96.9.9 . tcp . 80 : drop }"])
    until(lambda: "foreign element 10.96.9.9 . tcp . 80" in cluster.log(), lambda: "it was not found")
    listing = ["nft", "list", "map", "ip", "pyproxy", "services"]
    until(lambda: b"10.96.9.9" not in cluster.lab.node.namespace.run(listing).stdout, lambda: "it was not removed")
    cluster.delete("drift")


def test_tables_of_others_are_left_alone(cluster: Cluster, number: int) -> None:
    cluster.lab.node.namespace.run(["nft", "add table ip stranger; add chain ip stranger mine"])
    cluster.apply("drift", service(number), *slices(number, ["pod-2"]))
    said = len(cluster.log())
    until(lambda: "verified drift=0" in cluster.log()[said:], lambda: "never verified")
    assert b"chain mine" in cluster.lab.node.namespace.run(["nft", "list", "table", "ip", "stranger"]).stdout
    assert "repairing" not in cluster.log()[said:], cluster.log()[said - 500 :]
    cluster.lab.node.namespace.run(["nft", "delete", "table", "ip", "stranger"])
    cluster.delete("drift")
