"""What packet programs count: each packet of a flow once, whichever ways it takes, and each connection once."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ebpf import layout, syscall
from modes.ebpf.numbers import Numbers
from modes.ebpf.traffic import begin_anew, traffic
from pyproxy.table import OnEmpty, Pool, Prefix, RouteId, Traffic
from tests.unit.ebpf_world import DROP, NODE, World, world
from tests.unit.packets import ACK, FIN, SYN, TCP, UDP, Packet
from tests.unit.test_ebpf_packet import BALANCED, CLIENT, EXTERNAL, HERE, POD, PROTOCOLS, VERSIONS, packet, route

OF_ETHERNET = 14
EMPTY = Pool((), OnEmpty.REJECT)


@pytest.fixture(scope="module")
def bpf() -> Iterator[World]:
    with world() as loaded:
        yield loaded


def counted(bpf: World, version: int) -> Traffic:
    """Of the one service that there is; nothing may be counted anywhere else."""
    found = traffic(bpf.store.maps)
    assert found.pop(None) == Traffic()
    ((route_id, counter),) = found.items()
    assert route_id == route(version).id
    return counter


def length(*packets: Packet) -> int:
    return sum(len(one.bytes()) - OF_ETHERNET for one in packets)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("source", [CLIENT, POD], ids=["masqueraded", "kept"])
def test_each_packet_of_a_flow_is_counted_once(bpf: World, version: int, protocol: int, source: dict[int, str]) -> None:
    bpf.write(route(version, protocol))
    first = packet(version, protocol, source)
    got = bpf.through(first)
    answers = [got.turned(flags=SYN | ACK), got.turned(flags=ACK, payload=b"w" * 400)]
    more = [replace(first, flags=ACK, payload=b"m" * 100), replace(first, flags=FIN | ACK)]
    for one in (*answers, *more):
        bpf.through(one)
    assert counted(bpf, version) == Traffic(
        flows=1,
        packets_in=3,
        bytes_in=length(first, *more),
        packets_out=2,
        bytes_out=length(*answers),
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_each_connection_is_counted_once(bpf: World, version: int) -> None:
    bpf.write(route(version))
    for port in range(40000, 40020):
        syn = packet(version, source_port=port)
        bpf.through(syn)
        bpf.through(syn)  # sent again
    assert counted(bpf, version)[:5] == (0, 20, 0, 0, 0)
    assert counted(bpf, version).packets_in == 40


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_is_refused_is_counted_and_no_packet_of_theirs(bpf: World, protocol: int) -> None:
    bpf.write(route(4, protocol, internal=EMPTY, external=EMPTY, short_circuit=EMPTY))
    for _ in range(3):
        bpf.run("ingress", packet(4, protocol).bytes())
    assert counted(bpf, 4) == Traffic(refused=3)


def test_who_is_dropped_is_counted(bpf: World) -> None:
    bpf.write(route(4, allowed_sources=(Prefix("192.168.0.0/16"),)))
    assert bpf.run("ingress", packet(4, destination=BALANCED[4]).bytes())[0] == DROP
    assert counted(bpf, 4) == Traffic(dropped=1)
    bpf.write(route(4, masquerade_external=False, external=Pool((), OnEmpty.DROP)))
    assert bpf.run("ingress", packet(4, destination=NODE[4], destination_port=30080).bytes())[0] == DROP
    assert counted(bpf, 4) == Traffic(dropped=1)
    bpf.write(route(4, internal=Pool((), OnEmpty.DROP)))
    assert bpf.run("ingress", packet(4, source=POD).bytes())[0] == DROP
    assert counted(bpf, 4) == Traffic(dropped=1)


def test_packets_for_which_no_port_is_free_are_dropped_and_counted(bpf: World) -> None:
    bpf.write(route(4), ports=1)
    bpf.through(packet(4))
    verdict, _ = bpf.run("egress", bpf.passes("ingress", packet(4, source_port=40001)).bytes())
    assert verdict == DROP
    assert counted(bpf, 4)[:5] == (0, 2, 0, 1, 0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_client_that_has_no_port_left_for_a_backend_is_dropped_and_counted(bpf: World, protocol: int) -> None:
    """Its own leads there through another frontend, and all others are in use."""
    bpf.write(route(4, protocol))
    bpf.through(packet(4, protocol, destination=EXTERNAL[4]))
    ways = (layout.Way(HERE[4], 8080, CLIENT[4], port, protocol, layout.HOOK_EGRESS) for port in range(1024, 65536))
    flow = next(flow for way, flow in bpf.flows().items() if flow.flags & layout.FLOW_FROM_SERVICE).packed()
    syscall.update(bpf.store.maps["flows"], {way.packed(): flow for way in ways if way.destination_port != 40000})
    assert bpf.run("ingress", packet(4, protocol, destination=BALANCED[4]).bytes())[0] == DROP
    assert counted(bpf, 4)[:5] == (0, 1, 0, 1, 0)


def test_packets_of_connections_that_nobody_knows_are_lost(bpf: World) -> None:
    bpf.write(route(4))
    bpf.passes("ingress", packet(4, flags=ACK))
    assert counted(bpf, 4) == Traffic(lost=1)


def test_bystanders_are_not_counted(bpf: World) -> None:
    bpf.write(route(4))
    for protocol in (TCP, UDP):
        bpf.through(packet(4, protocol, destination="10.244.0.13"))
    bpf.run("ingress", packet(4, destination_port=81).bytes())
    assert counted(bpf, 4) == Traffic()


def test_what_a_service_counted_that_is_gone_is_not_lost(bpf: World) -> None:
    bpf.write(route(4))
    bpf.through(packet(4))
    before = counted(bpf, 4)
    other = route(4, id=RouteId("default", "other", "", route(4).id.family))
    bpf.change(other)
    found = traffic(bpf.store.maps)
    assert (found[other.id], found[None]) == (Traffic(), before)
    # Its number is given to another only when all have been; then that one begins with nothing.
    (key,) = (key for key, value in syscall.entries(bpf.store.maps["counters"]) if any(value))
    begin_anew(bpf.store.maps["counters"], {layout.read_number(key)})
    assert traffic(bpf.store.maps) == found
    everything = range(layout.COUNTER_FIRST, layout.MAPS["counters"].entries)
    begin_anew(bpf.store.maps["counters"], everything)
    assert traffic(bpf.store.maps) == found


def test_services_that_come_when_all_counters_are_in_use_share_one(bpf: World) -> None:
    bpf.write(route(4))
    (key,) = dict(syscall.entries(bpf.store.maps["services"])).keys() & {
        layout.place(layout.address("10.96.0.1"), 80, "tcp")
    }
    packed = syscall.lookup(bpf.store.maps["services"], key, layout.MAPS["services"].value)
    assert packed is not None
    numberless = layout.read_service(packed)._replace(counter=layout.COUNTER_OTHERS)
    syscall.update(bpf.store.maps["services"], {key: numberless.packed()})
    bpf.through(packet(4))
    found = traffic(bpf.store.maps)
    assert found[None].flows == 1
    assert found[route(4).id] == Traffic()


def _key(number: int) -> bytes:
    return layout.number(number)


def test_numbers_are_given_one_after_the_other_and_again_when_all_have_been() -> None:
    numbers = Numbers(6, {})
    assert [numbers.take(name) for name in (b"a", b"b", b"c", b"d", b"e")] == [2, 3, 4, 5, layout.COUNTER_OTHERS]
    assert numbers.settle() == {2, 3, 4, 5}
    numbers.give_back(3)
    assert (numbers.take(b"f"), numbers.take(b"g")) == (3, layout.COUNTER_OTHERS)
    assert numbers.settle() == {3}


def test_who_was_there_before_keeps_the_number_whoever_comes_first() -> None:
    numbers = Numbers(6, {_key(5): b"old", _key(3): b"older", _key(17): b"of a larger map"})
    assert [numbers.take(name) for name in (b"new", b"old", b"newer", b"older")] == [2, 5, 4, 3]
    assert numbers.take(b"of a larger map") == layout.COUNTER_OTHERS
    assert numbers.settle() == {2, 4}


def test_numbers_of_services_that_are_gone_are_free_again_after_a_restart() -> None:
    numbers = Numbers(4, {_key(2): b"gone", _key(3): b"here"})
    assert numbers.take(b"here") == 3
    assert numbers.take(b"new") == layout.COUNTER_OTHERS  # it might be about to come
    numbers.settle()
    assert numbers.take(b"new") == 2


def test_what_processors_counted_is_summed_up() -> None:
    one, other = layout.counter(range(1, 10)), layout.counter([9, 8, 7, 6, 5, 4, 3, 2, 1 << 60])
    single = len(one) // syscall.possible_processors()
    assert layout.read_counter(one[:single] + other[:single]) == [*[10] * 8, 9 + (1 << 60)]
