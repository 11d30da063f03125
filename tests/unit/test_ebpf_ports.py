"""Clients that come from one port to several services with a backend in common, packet by packet."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.unit.ebpf_world import NEXT, NODE, World, world
from tests.unit.packets import ACK, FIN, RST, SYN, TCP, Packet, icmp_error, read_error
from tests.unit.test_ebpf_packet import (
    BALANCED,
    CLIENT,
    EXTERNAL,
    HERE,
    PROTOCOLS,
    STRANGER,
    VERSIONS,
    ends,
    packet,
    route,
)

MASQUERADED = pytest.mark.parametrize("masquerades", [True, False], ids=["masqueraded", "kept"])


@pytest.fixture(scope="module")
def bpf() -> Iterator[World]:
    with world() as loaded:
        yield loaded


def both(version: int, protocol: int = TCP) -> tuple[Packet, Packet]:
    """The same client's first packets to two frontends of the service."""
    first = packet(version, protocol, destination=EXTERNAL[version])
    return first, replace(first, destination=BALANCED[version])


@MASQUERADED
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_each_of_two_flows_is_its_own(bpf: World, version: int, protocol: int, masquerades: bool) -> None:
    bpf.write(route(version, protocol, masquerade_external=masquerades))
    sent = list(both(version, protocol))
    for _ in range(2):
        got = [bpf.through(one) for one in sent]
        assert [one.destination for one in got] == [HERE[version]] * 2
        assert {one.source for one in got} == {NODE[version] if masquerades else CLIENT[version]}
        assert len({one.source_port for one in got}) == 2
        for to, at in zip(sent, got, strict=True):
            flags = SYN | ACK if protocol == TCP else SYN  # as datagrams are read
            answer = bpf.through(at.turned(flags=flags, payload=b"welcome"))
            assert ends(answer) == ends(to.turned())
            assert answer.payload == b"welcome"
        if protocol == TCP:
            sent = [replace(one, flags=ACK, payload=b"more") for one in sent]
    assert masquerades or got[0].source_port == 40000


@MASQUERADED
@pytest.mark.parametrize("end", [FIN | ACK, RST], ids=["FIN", "RST"])
@pytest.mark.parametrize("who", ["client", "backend"])
def test_a_port_is_the_clients_own_again_when_the_first_is_over(
    bpf: World, masquerades: bool, end: int, who: str
) -> None:
    bpf.write(route(4, masquerade_external=masquerades))
    first, second = both(4)
    got = [bpf.through(one) for one in (first, second)]
    third = packet(4)  # to the ClusterIP
    bpf.through(replace(second, flags=end) if who == "client" else got[1].turned(flags=end))
    assert _inside(bpf, third).source_port != 40000  # the first is there yet
    bpf.through(replace(third, flags=RST))
    bpf.through(replace(first, flags=end) if who == "client" else got[0].turned(flags=end))
    again = replace(second, seq=7)
    assert _inside(bpf, again).source_port == 40000
    assert ends(bpf.through(bpf.through(replace(again, flags=ACK)).turned(flags=ACK))) == ends(again.turned())


def _inside(bpf: World, one: Packet) -> Packet:
    """Between ingress and egress."""
    return bpf.passes("ingress", one)


@MASQUERADED
@pytest.mark.parametrize("version", VERSIONS)
def test_errors_find_back_to_the_port_that_they_are_about(bpf: World, version: int, masquerades: bool) -> None:
    bpf.write(route(version, masquerade_external=masquerades))
    first, sent = both(version)
    bpf.through(first)
    inside = _inside(bpf, sent)
    assert inside.source_port != 40000
    got = bpf.passes("egress", inside)
    answer = got.turned(flags=SYN | ACK)
    back = bpf.through(answer)
    router = STRANGER[version]
    # From beyond the client, about what the service answered: to the backend, about what it sent.
    verdict, data = bpf.run("ingress", icmp_error(router, back.source, back.ip()))
    assert verdict == NEXT
    assert ends(read_error(data).about) == ends(answer)
    # From beyond this node, about what the client sent: to the client, about what it sent.
    _, data = bpf.run("ingress", icmp_error(router, got.source, got.ip()))
    _, data = bpf.run("egress", data)
    assert (read_error(data).destination, ends(read_error(data).about)) == (CLIENT[version], ends(sent))
    # From this node, in the midst.
    _, data = bpf.run("egress", icmp_error(NODE[version], CLIENT[version], inside.ip()))
    assert ends(read_error(data).about) == ends(sent)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_port_that_another_got_is_taken_too(bpf: World, version: int) -> None:
    """Also for who comes to the very same service from it."""
    bpf.write(route(version))
    first, second = both(version)
    bpf.through(first)
    got = bpf.through(second)
    lent = _inside(bpf, second).source_port
    third = replace(second, source_port=lent)
    assert _inside(bpf, third).source_port != lent
    assert ends(bpf.through(got.turned(flags=SYN | ACK))) == ends(second.turned())


def test_many_services_may_have_one_backend_in_common(bpf: World) -> None:
    """And a client may come to all of them from one port."""
    one = replace(route(4), frontends=())
    some = [replace(one, id=one.id._replace(name=f"s{port}"), node_port=port) for port in range(30000, 30050)]
    bpf.write(*some)
    sent = [packet(4, destination=NODE[4], destination_port=port) for port in range(30000, 30050)]
    inside = [_inside(bpf, one) for one in sent]
    assert len({one.source_port for one in inside}) == 50
    got = [bpf.passes("egress", one) for one in inside]
    assert [ends(bpf.through(one.turned(flags=SYN | ACK))) for one in got] == [ends(one.turned()) for one in sent]
