"""What the Node object and the options make of this host."""

import pytest

from pyproxy.address import Prefix
from pyproxy.host import DetectLocal, HostOptions, host_of, site_of
from pyproxy.objects import Metadata, Node
from pyproxy.policy import Site
from pyproxy.table import Host
from tests.unit.samples import THIS_NODE, THIS_ZONE, admitted, node

NODE = admitted(node("192.0.2.1", "2001:db8::1", "192.0.2.7", pod_cidrs=("10.244.1.0/24", "fd00:244:1::/64")))
EMPTY = admitted(Node(Metadata(THIS_NODE)))


def prefixes(*texts: str) -> tuple[Prefix, ...]:
    return tuple(map(Prefix, texts))


@pytest.mark.parametrize(
    ("allowed", "answering"),
    [
        (None, ("192.0.2.1/32", "192.0.2.7/32", "2001:db8::1/128")),
        ((), ("192.0.2.1/32", "2001:db8::1/128")),
        (("192.0.2.0/24",), ("192.0.2.0/24",)),
        (("2001:db8::/32", "192.0.2.0/24"), ("192.0.2.0/24", "2001:db8::/32")),
        (("0.0.0.0/0",), ("0.0.0.0/0",)),
        (("10.0.0.0/8", "10.1.0.0/16"), ("10.0.0.0/8",)),
    ],
    ids=["unset", "primary", "a range", "both families", "everywhere", "nested ranges"],
)
def test_where_node_ports_answer(allowed: tuple[str, ...] | None, answering: tuple[str, ...]) -> None:
    options = HostOptions(THIS_NODE, node_port_addresses=None if allowed is None else prefixes(*allowed))
    assert host_of(NODE, options).node_port_prefixes == answering


@pytest.mark.parametrize(
    ("addresses", "answering"),
    [
        (("2001:db8::1", "192.0.2.1"), ("192.0.2.1/32", "2001:db8::1/128")),
        (("192.0.2.9", "192.0.2.1"), ("192.0.2.9/32",)),
        (("2001:db8::1",), ("2001:db8::1/128",)),
        ((), ()),
    ],
    ids=str,
)
def test_primary_means_the_first_address_of_each_family(addresses: tuple[str, ...], answering: tuple[str, ...]) -> None:
    options = HostOptions(THIS_NODE, node_port_addresses=())
    assert host_of(admitted(node(*addresses)), options).node_port_prefixes == answering


@pytest.mark.parametrize("allowed", [None, ()], ids=["unset", "primary"])
@pytest.mark.parametrize("of", [None, EMPTY], ids=["no Node", "a Node without addresses"])
def test_without_node_addresses_no_node_port_answers(allowed: tuple[Prefix, ...] | None, of: Node | None) -> None:
    assert host_of(of, HostOptions(THIS_NODE, node_port_addresses=allowed)).node_port_prefixes == ()


def test_named_networks_answer_before_the_node_is_known() -> None:
    options = HostOptions(THIS_NODE, node_port_addresses=prefixes("192.0.2.0/24"))
    assert host_of(None, options).node_port_prefixes == ("192.0.2.0/24",)


def test_addresses_next_to_each_other_are_disjoint_prefixes() -> None:
    options = HostOptions(THIS_NODE)
    host = host_of(admitted(node("192.0.2.2", "192.0.2.3", "192.0.2.2")), options)
    assert host.node_port_prefixes == ("192.0.2.2/31",)


@pytest.mark.parametrize(
    ("mode", "pod_prefixes", "pod_interfaces"),
    [
        (DetectLocal.CLUSTER_CIDR, ("10.244.0.0/16", "fd00:244::/56"), ()),
        (DetectLocal.NODE_CIDR, ("10.244.1.0/24", "fd00:244:1::/64"), ()),
        (DetectLocal.BRIDGE_INTERFACE, (), ("cni0",)),
        (DetectLocal.INTERFACE_NAME_PREFIX, (), ("veth*",)),
    ],
)
def test_each_way_to_detect_pods_uses_its_own_option_alone(
    mode: DetectLocal, pod_prefixes: tuple[str, ...], pod_interfaces: tuple[str, ...]
) -> None:
    options = HostOptions(
        THIS_NODE,
        detect_local=mode,
        cluster_cidrs=prefixes("fd00:244::/56", "10.244.0.0/16"),
        bridge_interface="cni0",
        interface_name_prefix="veth",
    )
    host = host_of(NODE, options)
    assert (host.pod_prefixes, host.pod_interfaces) == (pod_prefixes, pod_interfaces)


@pytest.mark.parametrize("of", [None, EMPTY], ids=["no Node", "a Node without podCIDRs"])
def test_without_pod_cidrs_nothing_is_detected_by_them(of: Node | None) -> None:
    host = host_of(of, HostOptions(THIS_NODE, detect_local=DetectLocal.NODE_CIDR, cluster_cidrs=prefixes("10.0.0.0/8")))
    assert (host.pod_prefixes, host.pod_interfaces) == ((), ())


def test_the_names_of_the_ways_to_detect_pods_are_those_of_kube_proxy() -> None:
    assert [mode.value for mode in DetectLocal] == [
        "ClusterCIDR",
        "NodeCIDR",
        "BridgeInterface",
        "InterfaceNamePrefix",
    ]


@pytest.mark.parametrize("everything", [False, True])
def test_masquerade_all_is_passed_on(everything: bool) -> None:
    assert host_of(NODE, HostOptions(THIS_NODE, masquerade_all=everything)).masquerade_all is everything


def test_a_host_of_nothing_is_the_default_host() -> None:
    assert host_of(None, HostOptions(THIS_NODE)) == Host()


def test_the_site_is_the_nodes_name_and_zone() -> None:
    options = HostOptions(THIS_NODE)
    assert site_of(NODE, options) == Site(THIS_NODE, THIS_ZONE)
    assert site_of(EMPTY, options) == Site(THIS_NODE, None)
    assert site_of(None, options) == Site(THIS_NODE, None)
