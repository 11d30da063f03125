"""Flows: who sends, to which frontend, under which policy, with which endpoints; who answers, and what it sees.

An endpoint is written PLACE[/CONDITION][@HINT+HINT]: ``there/leaving@near`` is on the other node, terminating but
serving, and meant for this zone. Expected endpoints are followed by ``kept`` or ``node``, the source that they see.
"""

import pytest

from pyproxy.address import IP, Family, Prefix
from pyproxy.objects import Conditions, Endpoint, Hint, Hints, Ingress, ServicePort
from pyproxy.policy import Site, routes_of
from pyproxy.table import Host
from tests.unit.flows import End, Packet, Source, fate
from tests.unit.samples import (
    OTHER_NODE,
    OTHER_ZONE,
    THIS_NODE,
    THIS_ZONE,
    admitted,
    endpoint_slice,
    service,
)

FLOWS = """
# Everything ready, here and there.
pod     | cluster-ip    | Cluster | here there | here there, kept
pod     | cluster-ip    | Local   | here there | here, kept
node    | cluster-ip    | Cluster | here there | here there, node
node    | cluster-ip    | Local   | here there | here, node
outside | cluster-ip    | Cluster | here there | here there, node
outside | cluster-ip    | Local   | here there | here, node
pod     | node-port     | Cluster | here there | here there, node
pod     | node-port     | Local   | here there | here there, kept
node    | node-port     | Cluster | here there | here there, node
node    | node-port     | Local   | here there | here there, node
outside | node-port     | Cluster | here there | here there, node
outside | node-port     | Local   | here there | here, kept
pod     | external-ip   | Cluster | here there | here there, node
pod     | external-ip   | Local   | here there | here there, kept
node    | external-ip   | Cluster | here there | here there, node
node    | external-ip   | Local   | here there | here there, node
outside | external-ip   | Cluster | here there | here there, node
outside | external-ip   | Local   | here there | here, kept
pod     | load-balancer | Cluster | here there | here there, node
pod     | load-balancer | Local   | here there | here there, kept
node    | load-balancer | Cluster | here there | here there, node
node    | load-balancer | Local   | here there | here there, node
outside | load-balancer | Cluster | here there | here there, node
outside | load-balancer | Local   | here there | here, kept

# No endpoint at all: refused, whoever asks.
pod     | cluster-ip    | Cluster | | refused
pod     | cluster-ip    | Local   | | refused
node    | cluster-ip    | Cluster | | refused
node    | cluster-ip    | Local   | | refused
outside | cluster-ip    | Cluster | | refused
outside | cluster-ip    | Local   | | refused
pod     | node-port     | Cluster | | refused
pod     | node-port     | Local   | | refused
node    | node-port     | Cluster | | refused
node    | node-port     | Local   | | refused
outside | node-port     | Cluster | | refused
outside | node-port     | Local   | | refused
pod     | external-ip   | Cluster | | refused
pod     | external-ip   | Local   | | refused
node    | external-ip   | Local   | | refused
outside | external-ip   | Cluster | | refused
outside | external-ip   | Local   | | refused
pod     | load-balancer | Local   | | refused
node    | load-balancer | Cluster | | refused
outside | load-balancer | Cluster | | refused
outside | load-balancer | Local   | | refused

# Endpoints elsewhere only: a Local policy drops what it would keep here; the inside takes the short circuit.
pod     | cluster-ip    | Cluster | there | there, kept
pod     | cluster-ip    | Local   | there | dropped
node    | cluster-ip    | Local   | there | dropped
outside | cluster-ip    | Local   | there | dropped
pod     | node-port     | Local   | there | there, kept
node    | node-port     | Local   | there | there, node
outside | node-port     | Cluster | there | there, node
outside | node-port     | Local   | there | dropped
pod     | external-ip   | Local   | there | there, kept
node    | external-ip   | Local   | there | there, node
outside | external-ip   | Local   | there | dropped
pod     | load-balancer | Local   | there | there, kept
node    | load-balancer | Local   | there | there, node
outside | load-balancer | Local   | there | dropped

# Endpoints here only.
pod     | cluster-ip    | Local   | here | here, kept
outside | cluster-ip    | Local   | here | here, node
outside | external-ip   | Local   | here | here, kept
pod     | load-balancer | Local   | here | here, kept
node    | node-port     | Cluster | here | here, node

# Conditions that are absent, or present and empty, read as ready.
pod     | cluster-ip    | Cluster | here/unknown there     | here/unknown there, kept
outside | node-port     | Local   | here/unknown there     | here/unknown, kept
pod     | cluster-ip    | Cluster | here/ready there/ready | here/ready there/ready, kept
pod     | cluster-ip    | Cluster | here/published there   | here/published there, kept
outside | node-port     | Local   | here/published there   | here/published, kept

# Neither ready nor serving-and-terminating: as if it were not there.
pod     | cluster-ip    | Cluster | here/unready there     | there, kept
pod     | cluster-ip    | Cluster | here/starting there    | there, kept
pod     | cluster-ip    | Cluster | here/gone there        | there, kept
pod     | cluster-ip    | Local   | here/unready there     | dropped
pod     | cluster-ip    | Local   | here/starting there    | dropped
node    | cluster-ip    | Local   | here/gone there        | dropped
outside | node-port     | Local   | here/unready there     | dropped
outside | external-ip   | Local   | here/starting there    | dropped
outside | load-balancer | Local   | here/gone there        | dropped
pod     | load-balancer | Local   | here/gone there        | there, kept
pod     | cluster-ip    | Cluster | here/unready           | refused
pod     | cluster-ip    | Cluster | here/starting          | refused
pod     | cluster-ip    | Cluster | here/gone there/gone   | refused
pod     | cluster-ip    | Local   | here/gone there/gone   | refused
outside | node-port     | Local   | there/unready          | refused
outside | load-balancer | Local   | here/starting there/unready | refused
node    | load-balancer | Local   | here/unready           | refused

# Serving and terminating: the last resort, for each pool on its own.
pod     | cluster-ip    | Cluster | here/leaving there           | there, kept
pod     | cluster-ip    | Cluster | here/leaving there/leaving   | here/leaving there/leaving, kept
pod     | cluster-ip    | Cluster | here/leaving there/unready   | here/leaving, kept
pod     | cluster-ip    | Cluster | here/unready there/leaving   | there/leaving, kept
pod     | cluster-ip    | Cluster | here/closing                 | here/closing, kept
pod     | cluster-ip    | Cluster | here here/leaving            | here, kept
pod     | cluster-ip    | Local   | here here/leaving there      | here, kept
pod     | cluster-ip    | Local   | here/leaving there           | here/leaving, kept
pod     | cluster-ip    | Local   | here/leaving there/leaving   | here/leaving, kept
pod     | cluster-ip    | Local   | there/leaving                | dropped
outside | cluster-ip    | Local   | here/leaving here/gone there | here/leaving, node
outside | node-port     | Cluster | here/leaving there           | there, node
outside | node-port     | Local   | here/leaving there           | here/leaving, kept
outside | node-port     | Local   | here/leaving there/leaving   | here/leaving, kept
outside | node-port     | Local   | here/unready there/leaving   | dropped
outside | external-ip   | Local   | here here/leaving            | here, kept
outside | load-balancer | Local   | here/leaving there           | here/leaving, kept
outside | load-balancer | Local   | here/closing there           | here/closing, kept
pod     | load-balancer | Local   | here/leaving there           | there, kept
node    | load-balancer | Local   | here/leaving there           | there, node
node    | node-port     | Local   | here/leaving there/leaving   | here/leaving there/leaving, node

# No node name: nowhere in particular, so never local.
pod     | cluster-ip    | Cluster | nowhere         | nowhere, kept
pod     | cluster-ip    | Local   | nowhere         | dropped
outside | node-port     | Local   | nowhere here    | here, kept
outside | node-port     | Local   | nowhere         | dropped
outside | node-port     | Local   | nowhere/leaving | dropped

# Node hints: heeded if every ready endpoint has some and one names this node.
pod     | cluster-ip    | Cluster | here@here there@there              | here@here, kept
pod     | cluster-ip    | Cluster | here@there there@here              | there@here, kept
pod     | cluster-ip    | Cluster | here@there there@there             | here@there there@there, kept
pod     | cluster-ip    | Cluster | here@here there                    | here@here there, kept
pod     | cluster-ip    | Cluster | here@here there@none               | here@here there@none, kept
pod     | cluster-ip    | Cluster | here@here+there there@there        | here@here+there, kept
pod     | cluster-ip    | Cluster | here@here there@there here/unready | here@here, kept
pod     | cluster-ip    | Cluster | here@here there@there here/leaving | here@here, kept
outside | node-port     | Cluster | here@here there@there              | here@here, node
node    | cluster-ip    | Cluster | here@here there@there              | here@here, node

# Zone hints: the same, if node hints decide nothing.
pod     | cluster-ip    | Cluster | here@near there@far               | here@near, kept
pod     | cluster-ip    | Cluster | here@far there@near               | there@near, kept
pod     | cluster-ip    | Cluster | here@far there@far                | here@far there@far, kept
pod     | cluster-ip    | Cluster | here@near there                   | here@near there, kept
pod     | cluster-ip    | Cluster | here@near there@none              | here@near there@none, kept
pod     | cluster-ip    | Cluster | here@near+far there@far           | here@near+far, kept
pod     | cluster-ip    | Cluster | here@near there@near nowhere@far  | here@near there@near, kept
pod     | cluster-ip    | Cluster | here@near there@far here/unready  | here@near, kept
pod     | cluster-ip    | Cluster | here/unready@near there@far       | there@far, kept
outside | external-ip   | Cluster | here@near there@far               | here@near, node
outside | load-balancer | Cluster | here@far there@near               | there@near, node
pod     | cluster-ip    | Cluster | here@here+near there@there+near   | here@here+near, kept
pod     | cluster-ip    | Cluster | here@there+near there@there+far   | here@there+near, kept
pod     | cluster-ip    | Cluster | here@here+near there@far          | here@here+near, kept
pod     | cluster-ip    | Cluster | here@here there@near              | here@here there@near, kept

# The last resort and the local pool know no topology; the short circuit does.
pod     | cluster-ip    | Cluster | here/leaving@near there/leaving@far | here/leaving@near there/leaving@far, kept
pod     | cluster-ip    | Cluster | here/leaving@here there/leaving@there | here/leaving@here there/leaving@there, kept
pod     | cluster-ip    | Cluster | here/leaving@near there@far         | there@far, kept
pod     | cluster-ip    | Local   | here@far there@near                 | here@far, kept
pod     | cluster-ip    | Local   | there@near there/leaving@far        | dropped
outside | node-port     | Local   | here@far there@near                 | here@far, kept
outside | node-port     | Local   | here@there there@here               | here@there, kept
outside | load-balancer | Local   | here@near here:2@far                | here@near here:2@far, kept
pod     | node-port     | Local   | here@far there@near                 | there@near, kept
node    | external-ip   | Local   | here@here there@there               | here@here, node
"""

CONDITIONS = {
    "": None,
    "unknown": Conditions(),
    "ready": Conditions(True, True, False),
    "unready": Conditions(False, False, False),
    "starting": Conditions(False, True, False),
    "leaving": Conditions(False, True, True),
    "closing": Conditions(False, None, True),
    "gone": Conditions(False, False, True),
    "published": Conditions(True, True, True),
}
NODES = {"here": THIS_NODE, "there": OTHER_NODE, "nowhere": None}
ZONES = {"near": THIS_ZONE, "far": OTHER_ZONE}
ENDS = {"refused": End.REFUSED, "dropped": End.DROPPED}
SOURCES = {"kept": Source.KEPT, "node": Source.NODE}

NET = {
    Family.IPV4: {
        "endpoint": "10.244.1.", "pod": "10.244.9.9", "node": "192.0.2.1", "outside": "203.0.113.9",
        "cluster-ip": "10.96.0.1", "external-ip": "198.51.100.1", "load-balancer": "198.51.100.2",
    },
    Family.IPV6: {
        "endpoint": "fd00:244:1::", "pod": "fd00:244:9::9", "node": "2001:db8:1::1", "outside": "2001:db8:9::9",
        "cluster-ip": "fd00:96::1", "external-ip": "2001:db8:100::1", "load-balancer": "2001:db8:100::2",
    },
}  # fmt: skip
HOST = Host(
    node_port_prefixes=(Prefix("192.0.2.1/32"), Prefix("2001:db8:1::1/128")),
    pod_prefixes=(Prefix("10.244.0.0/16"), Prefix("fd00:244::/32")),
)

ROWS = [
    pytest.param(*(cell.strip() for cell in line.split("|")), id=" ".join(line.replace("|", " ").split()))
    for line in FLOWS.splitlines()
    if line and not line.startswith("#")
]


def endpoint_from(text: str, address: str) -> Endpoint:
    what, _, hints = text.partition("@")
    place, _, condition = what.partition("/")
    names = hints.split("+") if hints else []
    hinted = Hints(
        tuple(Hint(ZONES[name]) for name in names if name in ZONES) or None,
        tuple(Hint(NODES[name] or "") for name in names if name in NODES) or None,
    )
    node = NODES[place.partition(":")[0]]
    return Endpoint((address,), CONDITIONS[condition], node, hinted if names else None)


def packet_from(source: str, target: str, family: Family) -> Packet:
    net = NET[family]
    interface = None if source == "node" else "eth0"
    address, port = (net["node"], 30080) if target == "node-port" else (net[target], 80)
    return Packet(IP(net[source]), IP(address), port, interface)


def outcome(
    packet: Packet, internal: str, external: str, endpoints: dict[str, str], site: Site, host: Host, family: Family
) -> tuple[set[str], set[Source]] | End:
    """Which of ``endpoints``, address by text, the packet may reach, and what they see."""
    net = NET[family]
    web = service(
        "web",
        ServicePort(80, node_port=30080),
        cluster_ips=(net["cluster-ip"],),
        external_ips=(net["external-ip"],),
        ingress=(Ingress(net["load-balancer"]),),
        type="LoadBalancer",
        internal_traffic_policy=internal,
        external_traffic_policy=external,
    )
    piece = endpoint_slice(*(endpoint_from(*pair) for pair in endpoints.items()), family=family.value)
    (route,), problems = routes_of(admitted(web), [admitted(piece)], site)
    assert not problems
    result = fate(packet, route, host)
    if isinstance(result, End):
        return result
    text_of = {address: text for text, address in endpoints.items()}
    assert all(backend.port == 8080 for backend in result)
    assert all(backend.is_local == text_of[backend.ip].startswith("here") for backend in result)
    return {text_of[backend.ip] for backend in result}, set(result.values())


def expectation(text: str) -> tuple[set[str], set[Source]] | End:
    if text in ENDS:
        return ENDS[text]
    names, _, source = text.partition(", ")
    return set(names.split()), {SOURCES[source]}


@pytest.mark.parametrize("family", Family, ids=lambda family: family.value)
@pytest.mark.parametrize(("source", "target", "policy", "endpoints", "expected"), ROWS)
def test_flow(source: str, target: str, policy: str, endpoints: str, expected: str, family: Family) -> None:
    """The policy is the internal one for a ClusterIP, else the external one; the other of the two must not matter."""
    addresses = {text: f"{NET[family]['endpoint']}{number}" for number, text in enumerate(endpoints.split(), 1)}
    packet = packet_from(source, target, family)
    for other in ("Cluster", "Local"):
        internal, external = (policy, other) if target == "cluster-ip" else (other, policy)
        result = outcome(packet, internal, external, addresses, Site(THIS_NODE, THIS_ZONE), HOST, family)
        assert result == expectation(expected), f"the other policy is {other}"


def test_no_row_is_there_twice() -> None:
    assert len({tuple(row.values[:4]) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("zone", [None, "", "zone-c"])
def test_zone_hints_are_not_heeded_by_a_node_of_no_or_another_zone(zone: str | None) -> None:
    packet = packet_from("pod", "cluster-ip", Family.IPV4)
    addresses = {"here@near": "10.244.1.1", "there@far": "10.244.1.2"}
    result = outcome(packet, "Cluster", "Cluster", addresses, Site(THIS_NODE, zone), HOST, Family.IPV4)
    assert result == ({"here@near", "there@far"}, {Source.KEPT})


@pytest.mark.parametrize(
    ("host", "interface", "seen"),
    [
        (Host(pod_interfaces=("cni0",)), "cni0", Source.KEPT),
        (Host(pod_interfaces=("cni0",)), "cni01", Source.NODE),
        (Host(pod_interfaces=("veth*",)), "veth1234", Source.KEPT),
        (Host(pod_interfaces=("veth*",)), "eth0", Source.NODE),
        (Host(pod_prefixes=(Prefix("10.244.9.0/24"),)), "eth0", Source.KEPT),
        (Host(pod_prefixes=(Prefix("10.244.8.0/24"),)), "eth0", Source.NODE),
        (Host(), "eth0", Source.KEPT),  # nothing tells pods from the world
        (Host(masquerade_all=True), "eth0", Source.NODE),
        (Host(pod_interfaces=("cni0",), masquerade_all=True), "cni0", Source.NODE),
    ],
    ids=str,
)
def test_who_counts_as_a_pod_by_cluster_ip(host: Host, interface: str, seen: Source) -> None:
    packet = Packet(IP("10.244.9.9"), IP("10.96.0.1"), 80, interface)
    addresses = {"here": "10.244.1.1"}
    result = outcome(packet, "Cluster", "Cluster", addresses, Site(THIS_NODE), host, Family.IPV4)
    assert result == ({"here"}, {seen})


@pytest.mark.parametrize("target", ["node-port", "external-ip", "load-balancer"])
def test_masquerade_all_does_not_hide_sources_under_external_policy_local(target: str) -> None:
    host = Host(HOST.node_port_prefixes, HOST.pod_prefixes, masquerade_all=True)
    packet = packet_from("outside", target, Family.IPV4)
    result = outcome(packet, "Local", "Local", {"here": "10.244.1.1"}, Site(THIS_NODE), host, Family.IPV4)
    assert result == ({"here"}, {Source.KEPT})


@pytest.mark.parametrize("target", ["cluster-ip", "node-port", "external-ip", "load-balancer"])
@pytest.mark.parametrize("policy", ["Cluster", "Local"])
def test_a_pod_that_is_sent_to_itself_is_masqueraded(target: str, policy: str) -> None:
    packet = packet_from("pod", target, Family.IPV4)
    addresses: dict[str, str] = {"here": packet.sender}
    result = outcome(packet, policy, policy, addresses, Site(THIS_NODE), HOST, Family.IPV4)
    assert result == ({"here"}, {Source.NODE})


@pytest.mark.parametrize("address", ["127.0.0.1", "192.0.2.2", "10.244.1.1"])
def test_a_node_port_answers_on_no_other_address(address: str) -> None:
    packet = Packet(IP("203.0.113.9"), IP(address), 30080)
    result = outcome(packet, "Cluster", "Cluster", {"here": "10.244.1.1"}, Site(THIS_NODE), HOST, Family.IPV4)
    assert result is End.UNTOUCHED
