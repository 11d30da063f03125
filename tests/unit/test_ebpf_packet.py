"""The packet programs, packet by packet: what goes in, what comes out, with which verdict and which checksums."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from ebpf import layout, syscall
from pyproxy.table import (
    IP,
    Backend,
    Family,
    Frontend,
    Host,
    OnEmpty,
    Pool,
    Prefix,
    Route,
    RouteId,
    Scope,
    Transport,
)
from tests.unit.ebpf_world import DROP, HOST, NEXT, NODE, PORTS, REDIRECT, World, world
from tests.unit.packets import ACK, FIN, MACS, RST, SYN, TCP, UDP, Packet, frame, icmp_error, ip, read, read_error

VERSIONS = (4, 6)
PROTOCOLS = (TCP, UDP)
CLUSTER_IP = {4: "10.96.0.1", 6: "fd00:10:96::1"}
EXTERNAL = {4: "203.0.113.1", 6: "2001:db8:113::1"}
BALANCED = {4: "198.51.100.1", 6: "2001:db8:100::1"}
HERE = {4: "10.244.0.12", 6: "fd00:10:244::12"}
THERE = {4: "10.244.1.14", 6: "fd00:10:244:1::14"}
POD = {4: "10.244.0.11", 6: "fd00:10:244::11"}
CLIENT = {4: "172.18.0.100", 6: "fd00:172:18::100"}
STRANGER = {4: "192.0.2.9", 6: "2001:db8:bad::9"}


@pytest.fixture(scope="module")
def bpf() -> Iterator[World]:
    with world() as loaded:
        yield loaded


def route(version: int, protocol: int = TCP, pool: tuple[str, ...] | None = None, **fields: Any) -> Route:
    """Port 80 of all kinds of frontends and node port 30080, with one endpoint on this node."""
    backends = tuple(Backend(IP(ip), 8080, is_local=True) for ip in ((HERE[version],) if pool is None else pool))
    everyone = Pool(backends)
    scopes = {Scope.CLUSTER_IP: CLUSTER_IP, Scope.EXTERNAL_IP: EXTERNAL, Scope.LOAD_BALANCER: BALANCED}
    usual: dict[str, Any] = {
        "id": RouteId("default", "web", "", Family.IPV4 if version == 4 else Family.IPV6),
        "transport": Transport.TCP if protocol == TCP else Transport.UDP,
        "frontends": tuple(Frontend(IP(one[version]), 80, scope) for scope, one in scopes.items()),
        "node_port": 30080,
        "internal": everyone,
        "external": everyone,
        "short_circuit": everyone,
        "masquerade_external": True,
        "affinity_seconds": None,
        "allowed_sources": None,
        "health_check_port": None,
    }
    return Route(**usual | fields)


def packet(version: int, protocol: int = TCP, source: dict[int, str] = CLIENT, **fields: Any) -> Packet:
    """From port 40000 of a client to port 80 of the ClusterIP."""
    made = Packet(
        source[version], 40000, CLUSTER_IP[version], 80, protocol, payload=b"" if protocol == TCP else b"hello"
    )
    return replace(made, **fields)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("to", "port"), [(CLUSTER_IP, 80), (EXTERNAL, 80), (BALANCED, 80), (NODE, 30080)], ids=lambda one: str(one)[:20]
)
@pytest.mark.parametrize("source", [CLIENT, POD], ids=["outside", "pod"])
def test_a_conversation_is_translated_both_ways(
    bpf: World, version: int, protocol: int, to: dict[int, str], port: int, source: dict[int, str]
) -> None:
    bpf.write(route(version, protocol))
    sent = packet(version, protocol, source, destination=to[version], destination_port=port)
    got = bpf.through(sent)
    is_kept = source is POD and to is CLUSTER_IP
    assert (got.destination, got.destination_port) == (HERE[version], 8080)
    assert got.source == (source if is_kept else NODE)[version]
    assert got.source_port == 40000 if is_kept else got.source_port in PORTS
    assert (got.payload, got.flags) == (sent.payload, sent.flags)
    flags = SYN | ACK if protocol == TCP else SYN  # as datagrams are read
    back = bpf.through(got.turned(flags=flags, payload=b"welcome"))
    assert back == sent.turned(flags=flags, payload=b"welcome")
    assert (back.source, back.source_port) == (to[version], port)
    assert (back.destination, back.destination_port) == (source[version], 40000)
    assert bpf.through(replace(sent, flags=ACK, payload=b"more")) == replace(
        got, flags=ACK if protocol == TCP else SYN, payload=b"more"
    )


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_external_policy_local_keeps_the_source(bpf: World, version: int, protocol: int) -> None:
    empty = Pool((), OnEmpty.DROP)
    bpf.write(route(version, protocol, masquerade_external=False))
    sent = packet(version, protocol, destination=EXTERNAL[version])
    got = bpf.through(sent)
    assert (got.source, got.source_port, got.destination) == (CLIENT[version], 40000, HERE[version])
    flags = SYN | ACK if protocol == TCP else SYN  # as datagrams are read
    assert bpf.through(got.turned(flags=flags)) == sent.turned(flags=flags)
    bpf.write(route(version, protocol, masquerade_external=False, external=empty))
    assert bpf.run("ingress", sent.bytes())[0] == DROP
    # A pod of this node is let through to endpoints elsewhere.
    assert bpf.through(replace(sent, source=POD[version])).destination == HERE[version]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_pod_that_reaches_itself_is_masqueraded(bpf: World, version: int) -> None:
    bpf.write(route(version))
    sent = packet(version, source=HERE)
    got = bpf.through(sent)
    assert (got.source, got.destination) == (NODE[version], HERE[version])
    assert bpf.through(got.turned(flags=SYN | ACK)) == sent.turned(flags=SYN | ACK)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("port", [80, 4711], ids=["no endpoints", "an unclaimed port"])
def test_a_syn_is_answered_by_a_reset(bpf: World, version: int, port: int) -> None:
    bpf.write(route(version, pool=()))
    sent = packet(version, destination_port=port, seq=0xFFFFFFFF)
    verdict, data = bpf.run("ingress", sent.bytes())
    assert verdict == REDIRECT
    assert data[:12] == MACS[6:] + MACS[:6]
    assert read(data) == sent.turned(flags=RST | ACK, seq=0, ack=0)
    assert bpf.flows() == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_a_datagram_that_is_refused_goes_where_nobody_can_be(bpf: World, version: int) -> None:
    """And what the kernel says of it is for the client, about the service."""
    bpf.write(route(version, UDP, pool=()))
    sent = packet(version, UDP)
    got = bpf.passes("ingress", sent)
    assert (got.source, got.destination, got.destination_port) == (CLIENT[version], NODE[version], 0)
    verdict, data = bpf.run("egress", icmp_error(NODE[version], CLIENT[version], got.ip()))
    assert verdict == NEXT
    error = read_error(data)
    assert (error.about.source_port, error.about.destination, error.about.destination_port) == (
        40000,
        sent.destination,
        80,
    )
    # As soon as there is an endpoint, the same client gets it.
    bpf.change(route(version, UDP))
    assert bpf.through(sent).destination == HERE[version]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_source_ranges_let_in_whom_they_name(bpf: World, version: int, protocol: int) -> None:
    mine = Prefix(f"{CLIENT[version]}/{32 if version == 4 else 128}")
    bpf.write(route(version, protocol, allowed_sources=(mine,)))
    sent = packet(version, protocol, destination=BALANCED[version])
    assert bpf.through(sent).destination == HERE[version]
    assert bpf.run("ingress", replace(sent, source=STRANGER[version]).bytes())[0] == DROP
    assert (
        bpf.through(replace(sent, source=STRANGER[version], destination=EXTERNAL[version])).destination == HERE[version]
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_no_concern_of_it_passes_untouched(bpf: World, version: int) -> None:
    bpf.write(route(version))
    head = 20 if version == 4 else 40
    nowhere = {4: "10.9.9.9", 6: "fd00:9::9"}[version]
    some = [
        packet(version, destination=nowhere).bytes(),
        packet(version, flags=ACK).bytes(),  # in the midst of a connection that another translates
        packet(version, UDP, destination=NODE[version], destination_port=22).bytes(),
        packet(version, destination=NODE[version], destination_port=22).bytes(),
        frame(ip(CLIENT[version], CLUSTER_IP[version], 47, b"not ours")),
        frame(ip(CLIENT[version], CLUSTER_IP[version], 1 if version == 4 else 58, bytes([8, 0, 0, 0]) * 2)),
        MACS + b"\x08\x06" + bytes(28),
        *(packet(version).bytes()[: 14 + head + length] for length in range(20)),
    ]
    for data in some:
        for hook in ("ingress", "egress"):
            assert bpf.run(hook, data) == (NEXT, data)
    assert bpf.flows() == {}


def test_options_of_ipv4_are_skipped(bpf: World) -> None:
    bpf.write(route(4))
    got = bpf.through(packet(4, options=bytes([1]) * 8))
    assert (got.destination, got.options) == (HERE[4], bytes([1]) * 8)


def test_the_checksum_of_ipv4_is_right_where_it_wraps_around(bpf: World) -> None:
    bpf.write(route(4))
    sent = packet(4)
    for destination in (CLUSTER_IP[4], HERE[4]):
        zero_at = int.from_bytes(ip(CLIENT[4], destination, TCP, sent.l4(), id=0)[10:12], "big")
        for near in (*range(-5, 5), *range(-5 << 8, 5 << 8, 1 << 8)):  # programs sum in the byte order of the machine
            data = frame(ip(CLIENT[4], CLUSTER_IP[4], TCP, sent.l4(), id=(zero_at + near) % (1 << 16)))
            assert read(bpf.run("ingress", data)[1]).destination == HERE[4]


def test_a_datagram_without_a_checksum_stays_without(bpf: World) -> None:
    bpf.write(route(4, UDP))
    assert not bpf.through(packet(4, UDP, checksum=False)).checksum


@pytest.mark.parametrize("version", VERSIONS)
def test_pieces_follow_the_first(bpf: World, version: int) -> None:
    bpf.write(route(version, UDP))
    whole = packet(version, UDP, payload=b"x" * 1000).l4()
    addresses = CLIENT[version], CLUSTER_IP[version], UDP
    more, at = (0x2000, 800 // 8) if version == 4 else (1, 800)
    first, second = (
        frame(ip(*addresses, whole[:800], fragment=more)),
        frame(ip(*addresses, whole[800:], fragment=at)),
    )
    unknown = frame(ip(*addresses, whole[800:], fragment=at, id=8))
    collected = []
    for piece in (first, second):
        verdict, data = bpf.run("ingress", piece)
        assert verdict == NEXT
        verdict, data = bpf.run("egress", data)
        assert verdict == NEXT
        collected.append(data)
    body = 34 if version == 4 else 14 + 48
    got = read(frame(ip(NODE[version], HERE[version], UDP, b"".join(data[body:] for data in collected))))
    assert (got.destination_port, len(got.payload)) == (8080, 1000)
    assert all(read_addresses(data, version) == (NODE[version], HERE[version]) for data in collected)
    assert bpf.run("ingress", unknown) == (NEXT, unknown)


def read_addresses(data: bytes, version: int) -> tuple[str, str]:
    size = 4 if version == 4 else 16
    start = 14 + (12 if version == 4 else 8)
    packed = data[start : start + size], data[start + size : start + 2 * size]
    source, destination = (layout.spelled(one if version == 6 else bytes(10) + b"\xff\xff" + one) for one in packed)
    return source, destination


@pytest.mark.parametrize("is_kept", [False, True], ids=["masqueraded", "kept"])
@pytest.mark.parametrize("version", VERSIONS)
def test_errors_reach_who_sent_what_they_are_about(bpf: World, version: int, is_kept: bool) -> None:
    bpf.write(route(version, masquerade_external=not is_kept))
    sent = packet(version, destination=EXTERNAL[version])
    got = bpf.through(sent)
    answer = got.turned(flags=SYN | ACK)
    back = bpf.through(answer)
    router = STRANGER[version]
    # From beyond the client, about what the service answered: to the backend, about what it sent.
    verdict, data = bpf.run("ingress", icmp_error(router, back.source, back.ip()))
    assert verdict == NEXT
    error = read_error(data)
    assert (error.source, error.destination) == (router, HERE[version])
    assert ends(error.about) == ends(answer)
    # From beyond this node, about what the client sent: to the client, about what it sent.
    verdict, data = bpf.run("ingress", icmp_error(router, got.source, got.ip()))
    verdict, data = bpf.run("egress", data)
    assert verdict == NEXT
    error = read_error(data)
    assert (error.source, error.destination) == (router, CLIENT[version])
    assert ends(error.about) == ends(sent)
    # From the backend itself, which the client does not know.
    verdict, data = bpf.run("ingress", icmp_error(HERE[version], got.source, got.ip()))
    verdict, data = bpf.run("egress", data)
    assert ends(read_error(data).about) == ends(sent)
    # From this node, in the midst: the destination is the backend already, the source the client yet.
    verdict, data = bpf.run(
        "egress",
        icmp_error(NODE[version], CLIENT[version], replace(got, source=sent.source, source_port=sent.source_port).ip()),
    )
    assert ends(read_error(data).about) == ends(sent)
    # And about the answer: the destination is the client already.
    halfway = replace(answer, destination=sent.source, destination_port=sent.source_port)
    verdict, data = bpf.run("egress", icmp_error(NODE[version], HERE[version], halfway.ip()))
    assert ends(read_error(data).about) == ends(answer)


def ends(one: Packet) -> tuple[str, int, str, int]:
    return one.source, one.source_port, one.destination, one.destination_port


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_comes_back_where_affinity_is_asked_for(bpf: World, version: int) -> None:
    bpf.write(route(version, pool=(HERE[version], THERE[version], POD[version]), affinity_seconds=10))
    seen = {bpf.through(packet(version, source_port=port)).destination for port in range(40000, 40030)}
    assert len(seen) == 1
    others = {layout.spelled(layout.address(f"{CLIENT[version][:-3]}{n}")) for n in range(100, 130)}
    seen = {bpf.through(replace(packet(version), source=ip)).destination for ip in others}
    assert len(seen) > 1


@pytest.mark.parametrize("version", VERSIONS)
def test_datagrams_leave_a_backend_that_went_and_connections_do_not(bpf: World, version: int) -> None:
    both = [
        route(
            version, protocol, id=RouteId("default", "web", str(protocol), Family.IPV4 if version == 4 else Family.IPV6)
        )
        for protocol in PROTOCOLS
    ]
    bpf.write(*both)
    for protocol in PROTOCOLS:
        assert bpf.through(packet(version, protocol)).destination == HERE[version]
    elsewhere = Pool((Backend(IP(THERE[version]), 8080, is_local=False),))
    bpf.change(*(replace(one, internal=elsewhere, external=elsewhere, short_circuit=elsewhere) for one in both))
    assert bpf.through(packet(version, UDP)).destination == THERE[version]
    assert bpf.through(packet(version, flags=ACK)).destination == HERE[version]
    assert bpf.through(packet(version, flags=SYN)).destination == THERE[version]  # nobody answered the first one


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("end", [FIN | ACK, RST], ids=["FIN", "RST"])
@pytest.mark.parametrize("who", ["client", "backend"])
def test_what_has_ended_is_in_nobodys_way(bpf: World, version: int, end: int, who: str) -> None:
    """The same client connects to the pod itself, with the same ports."""
    bpf.write(route(version))
    got = bpf.through(packet(version))
    bpf.through(got.turned(flags=SYN | ACK))
    bpf.through(packet(version, flags=end) if who == "client" else got.turned(flags=end))
    direct = packet(version, destination=HERE[version], destination_port=8080)
    assert bpf.through(direct) == direct
    answer = direct.turned(flags=SYN | ACK)
    assert bpf.through(answer) == answer
    assert bpf.through(replace(direct, flags=ACK)) == replace(direct, flags=ACK)


@pytest.mark.parametrize("is_kept", [False, True], ids=["masqueraded", "kept"])
@pytest.mark.parametrize("drains", [False, True], ids=["serves", "retires"])
def test_datagrams_to_a_backend_itself_are_in_no_way_of_before(bpf: World, is_kept: bool, drains: bool) -> None:
    """The same client, with the same port, asked it through a service a moment ago."""
    bpf.write(route(4, UDP, masquerade_external=not is_kept))
    asked = packet(4, UDP, destination=EXTERNAL[4])
    got = bpf.through(asked)
    if drains:
        bpf_flags(bpf, layout.DRAINING)
    direct = replace(asked, destination=HERE[4], destination_port=8080)
    assert bpf.through(direct) == direct
    assert bpf.through(direct.turned()) == direct.turned()
    assert bpf.flows() == {}
    assert got != direct or is_kept


def test_a_client_of_two_places_hears_each_from_where_it_asked(bpf: World) -> None:
    """One backend stands behind both, and one port has sent to both."""
    bpf.write(route(4, UDP))
    for to in (EXTERNAL, BALANCED, EXTERNAL):
        asked = packet(4, UDP, destination=to[4])
        assert bpf.through(bpf.through(asked).turned()) == asked.turned()


def test_each_masqueraded_client_gets_a_port_of_its_own_until_there_is_none(bpf: World) -> None:
    bpf.write(route(4), ports=4)
    some = [bpf.through(packet(4, source_port=port)).source_port for port in range(40000, 40004)]
    assert sorted(some) == list(range(PORTS.start, PORTS.start + 4))
    verdict, data = bpf.run("ingress", packet(4, source_port=50000).bytes())
    assert verdict == NEXT
    assert bpf.run("egress", data)[0] == DROP


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_port_that_another_mode_gave_to_its_client_is_left_alone(bpf: World, protocol: int) -> None:
    bpf.write(route(4, protocol), ports=2)
    way = layout.Way(HERE[4], 8080, NODE[4], PORTS.start, protocol, layout.HOOK_INGRESS)
    of_others = layout.Flow("::", 0, 0, layout.FLOW_OF_OTHERS, 0.0)  # silent for long
    syscall.update(bpf.store.maps["flows"], {way.packed(): of_others.packed()})
    answer = Packet(HERE[4], 8080, NODE[4], PORTS.start, protocol, flags=SYN | ACK)
    error = icmp_error(HERE[4], NODE[4], answer.turned().ip())
    for _ in range(2):
        assert bpf.run("ingress", answer.bytes()) == (NEXT, answer.bytes())
        assert bpf.run("ingress", error) == (NEXT, error)
        assert bpf.through(packet(4, protocol)).source_port == PORTS.start + 1
    assert bpf.run("egress", bpf.run("ingress", packet(4, protocol, source_port=40001).bytes())[1])[0] == DROP


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("has_ended", [False, True])
def test_a_port_is_given_again_when_nobody_uses_it(bpf: World, protocol: int, has_ended: bool) -> None:
    """Of a connection that is over, or of datagrams that none followed; the flow that had it is forgotten whole."""
    bpf.write(route(4, protocol), ports=1)
    first = packet(4, protocol)
    got = bpf.through(first)
    if has_ended:
        bpf.through(replace(first, flags=RST))
    later = replace(first, source_port=40001)
    assert bpf.run("egress", bpf.run("ingress", later.bytes())[1])[0] == DROP
    age(bpf, 3)
    if protocol == TCP and not has_ended:
        assert bpf.run("egress", bpf.run("ingress", later.bytes())[1])[0] == DROP
        return
    assert bpf.through(later).source_port == got.source_port
    assert not [way for way in bpf.flows() if 40000 in (way.source_port, way.destination_port)]
    assert bpf.through(got.turned(flags=SYN | ACK)).destination_port == 40001


def age(bpf: World, seconds: float) -> None:
    """As if all flows had been silent for so much longer."""
    aged = {way: flow._replace(seen=flow.seen - seconds) for way, flow in bpf.flows().items()}
    syscall.update(bpf.store.maps["flows"], {way.packed(): flow.packed() for way, flow in aged.items()})


@pytest.mark.parametrize(("end", "remembers"), [(FIN | ACK, True), (RST, False)], ids=["FIN", "RST"])
def test_a_port_that_a_server_remembers_is_given_again_last(bpf: World, end: int, remembers: bool) -> None:
    """It would not take a connection whose numbers don't go on where those of the last one ended."""
    bpf.write(route(4), ports=2)
    first = packet(4)
    got = bpf.through(first)
    bpf.through(got.turned(flags=end))
    age(bpf, 3)
    others = [bpf.through(packet(4, source_port=port)).source_port for port in (40001, 40002)]
    assert {*others} == {*range(PORTS.start, PORTS.start + 2)}
    assert (others[0] != got.source_port) is remembers


@pytest.mark.parametrize("version", VERSIONS)
def test_a_port_of_a_client_always_has_the_same_port_here(bpf: World, version: int) -> None:
    """Since it sees to it that the numbers of its connections from there go on."""
    bpf.write(route(version), ports=2000)
    some = [packet(version, source_port=port) for port in range(32768, 35768, 2)]  # even ones, as kernels give them out
    got = {one.source_port: bpf.through(one).source_port for one in some}
    for one in some:
        bpf.through(replace(one, flags=RST))
        assert bpf.through(replace(one, seq=7)).source_port == got[one.source_port]
    pushed_out = [way.packed() for way in bpf.flows() if way.destination != NODE[version]]  # all but the answers' way
    syscall.delete(bpf.store.maps["flows"], pushed_out)
    for one in some:
        assert bpf.through(replace(one, seq=7)).source_port == got[one.source_port]


def test_datagrams_keep_off_the_ports_of_tunnels(bpf: World) -> None:
    bpf.write(route(4, UDP), first_port=9990, ports=20)
    some = [bpf.through(packet(4, UDP, source_port=port)).source_port for port in range(40000, 40008)]
    assert {*some} <= {*range(10000, 10010)}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_while_it_retires_it_takes_on_nothing_new(bpf: World, protocol: int) -> None:
    bpf.write(route(4, protocol))
    sent = packet(4, protocol)
    got = bpf.through(sent)
    bpf_flags(bpf, layout.DRAINING)
    assert bpf.through(replace(sent, flags=ACK)).destination == HERE[4]
    assert bpf.through(got.turned(flags=ACK)).destination == CLIENT[4]
    other = packet(4, protocol, source_port=40001)
    assert bpf.through(other) == other
    if protocol == UDP:
        # Another mode gives the port to a client of its own: then all of it is its own.
        taken = replace(got, payload=b"of another")
        assert bpf.passes("egress", taken) == taken
        assert bpf.through(taken.turned()) == taken.turned()
        assert bpf.through(sent) == sent


def bpf_flags(bpf: World, flags: int) -> None:
    key = layout.number(0)
    packed = syscall.lookup(bpf.store.maps["config"], key, layout.MAPS["config"].value)
    assert packed is not None
    syscall.update(bpf.store.maps["config"], {key: layout.with_flags(packed, flags)})


def test_without_pods_nobody_is_masqueraded_on_the_way_to_a_cluster_ip(bpf: World) -> None:
    bpf.write(route(4), host=Host(node_port_prefixes=HOST.node_port_prefixes))
    assert bpf.through(packet(4)).source == CLIENT[4]


def test_masquerade_all_masquerades_pods_too(bpf: World) -> None:
    bpf.write(route(4), host=replace(HOST, masquerade_all=True))
    assert bpf.through(packet(4, source=POD)).source == NODE[4]
