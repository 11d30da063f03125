"""Maglev's hashing: tables by themselves, and two nodes with programs and maps of their own that must choose alike."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ebpf import layout, syscall
from modes.ebpf import maglev
from modes.ebpf.plan import Plan
from modes.ebpf.site import Site
from pyproxy.table import IP, Backend, EbpfAlgorithm, Pool, Route, Table
from tests.unit.ebpf_world import HOST, World, world
from tests.unit.packets import TCP, Packet
from tests.unit.test_ebpf_packet import CLIENT, CLUSTER_IP, EXTERNAL, PROTOCOLS, VERSIONS, packet, route

HASHED = replace(HOST, ebpf_algorithm=EbpfAlgorithm.MAGLEV)
FLOWS = 400
ENDPOINTS = {4: [f"10.244.0.{n}" for n in range(20, 30)], 6: [f"fd00:10:244::{n}" for n in range(20, 30)]}


def names(count: int) -> list[bytes]:
    return [layout.backend(f"10.244.{n >> 8}.{n & 255}", 8080) for n in range(count)]


def owners(some: list[bytes]) -> list[bytes]:
    """Who has each place."""
    return [some[index] for index in maglev.table(some)]


@pytest.mark.parametrize("size", maglev.SIZES)
def test_sizes_are_primes_that_slots_of_16_bits_reach(size: int) -> None:
    assert size < 1 << 16
    assert all(size % divisor for divisor in range(2, math.isqrt(size) + 1))


@pytest.mark.parametrize(
    ("backends", "size"),
    [
        (0, 0),
        (1, 0),
        (2, 251),
        (25, 251),
        (26, 2039),
        (203, 2039),
        (204, 16381),
        (1000, 16381),
        (5000, 65521),
        (65522, 0),
    ],
)
def test_a_table_grows_with_its_backends(backends: int, size: int) -> None:
    assert maglev.size_for(backends) == size


@pytest.mark.parametrize("count", [2, 3, 7, 25, 26, 200, 1500])
def test_all_have_as_many_places_give_or_take_one(count: int) -> None:
    table = maglev.table(names(count))
    shares = Counter(table)
    assert len(table) == maglev.size_for(count)
    assert shares.keys() == set(range(count))
    assert max(shares.values()) - min(shares.values()) <= 1


@pytest.mark.parametrize("count", [2, 10, 100])
def test_the_order_of_backends_makes_no_difference(count: int) -> None:
    ordered = names(count)
    shuffled = Random(count).sample(ordered, count)
    assert owners(shuffled) == owners(ordered)


@pytest.mark.parametrize("count", [3, 10, 25, 100, 200])
def test_when_one_goes_most_others_keep_their_places(count: int) -> None:
    """Its own places must move, and of the others' in the mean no more than one in ten: that is 8 % with 25 backends,
    which have ten places each, and less with more places."""
    some = names(count)
    before = owners(some)
    moved = 0
    for gone in some[:: count // 3]:
        after = owners([name for name in some if name != gone])
        moved += sum(old != new for old, new in zip(before, after, strict=True) if old != gone)
    assert moved / len(some[:: count // 3]) <= 0.1 * len(before)


@pytest.fixture(scope="module")
def nodes() -> Iterator[tuple[World, World]]:
    with world("one") as one, world("other") as other:
        yield one, other


def spread(version: int, *endpoints: str, protocol: int = TCP, **fields: Any) -> Route:
    return route(version, protocol, pool=endpoints or tuple(ENDPOINTS[version]), **fields)


def flows(version: int, protocol: int = TCP, **fields: Any) -> list[Packet]:
    fields = {"destination": EXTERNAL[version]} | fields
    return [packet(version, protocol, source_port=port, **fields) for port in range(30000, 30000 + FLOWS)]


def choices(node: World, some: list[Packet]) -> list[str]:
    return [node.passes("ingress", one).destination for one in some]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_two_nodes_choose_alike(nodes: tuple[World, World], version: int, protocol: int) -> None:
    """Whatever the order in which they heard of endpoints, and whatever the numbers in their maps."""
    one, other = nodes
    one.write(spread(version, protocol=protocol), host=HASHED)
    shuffled = Random(1).sample(ENDPOINTS[version], 10)
    other.write(spread(version, *shuffled[:6], protocol=protocol), host=HASHED)
    other.change(spread(version, *shuffled[3:], protocol=protocol), host=HASHED)
    other.change(spread(version, *shuffled, protocol=protocol), host=HASHED)
    some = flows(version, protocol)
    chosen = choices(one, some)
    assert choices(other, some) == chosen
    assert set(chosen) == set(ENDPOINTS[version])
    # At random they would not.
    one.write(spread(version, protocol=protocol))
    assert choices(one, some) != chosen


@pytest.mark.parametrize("version", VERSIONS)
def test_flows_are_spread_evenly(nodes: tuple[World, World], version: int) -> None:
    node, _ = nodes
    node.write(spread(version), host=HASHED)
    shares = Counter(choices(node, flows(version)))
    assert len(shares) == 10
    # Of 400 flows 40 each, and a standard deviation of 6: these clients are always the same ones.
    assert 20 <= min(shares.values()) <= max(shares.values()) <= 60


@pytest.mark.parametrize("version", VERSIONS)
def test_when_an_endpoint_goes_other_flows_stay(nodes: tuple[World, World], version: int) -> None:
    """On a node that never saw them before."""
    one, other = nodes
    gone, *rest = ENDPOINTS[version]
    one.write(spread(version), host=HASHED)
    other.write(spread(version, *rest), host=HASHED)
    some = flows(version)
    before, after = choices(one, some), choices(other, some)
    moved = sum(old != new for old, new in zip(before, after, strict=True) if old != gone)
    assert gone not in after
    assert moved <= FLOWS // 8


def test_node_ports_of_two_nodes_lead_to_the_same_endpoint(nodes: tuple[World, World]) -> None:
    """A load balancer sends a flow to the address of either: that is no part of the hash."""
    one, other = nodes
    elsewhere = replace(HASHED, node_port_prefixes=())
    one.write(spread(4), host=HASHED)
    other.write(spread(4), host=elsewhere)
    other_node = "172.18.0.3"
    syscall.update(other.store.maps["addresses"], {layout.address(other_node): layout.number(layout.ADDRESS_NODE)})
    here = flows(4, destination="172.18.0.2", destination_port=30080)
    there = flows(4, destination=other_node, destination_port=30080)
    assert choices(one, here) == choices(other, there)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_sticky_client_gets_the_same_endpoint_from_both(nodes: tuple[World, World], version: int) -> None:
    for node in nodes:
        node.write(spread(version, affinity_seconds=10), host=HASHED)
    clients = [f"{CLIENT[version][:-3]}{n}" for n in range(100, 140)]
    some = [packet(version, destination=EXTERNAL[version], source={version: client}) for client in clients]
    one = choices(nodes[0], some)
    other = choices(nodes[1], [replace(sent, source_port=50000) for sent in some])
    assert one == other
    assert len(set(one)) > 5
    assert len(set(choices(nodes[0], flows(version)))) == 1


def test_the_inside_is_spread_at_random(nodes: tuple[World, World]) -> None:
    node, _ = nodes
    node.write(spread(4), host=HASHED)
    pod = [replace(one, source="10.244.0.11") for one in flows(4)]
    first = choices(node, pod)
    node.write(spread(4), host=HASHED)
    assert choices(node, pod) != first


def test_no_table_is_written_for_a_service_that_nobody_outside_can_reach() -> None:
    exposed = spread(4)
    inside = replace(exposed, frontends=exposed.frontends[:1], node_port=None)
    assert CLUSTER_IP[4] == inside.frontends[0].address
    assert tables(exposed) == 1
    assert tables(inside) == tables(spread(4, ENDPOINTS[4][0])) == 0


def tables(one: Route) -> int:
    plan = Plan(Site(1))
    change = plan.change(Table({one.id: one}, HASHED), {one.id})
    return sum(key.map == "maglev" for key in change.put)


def test_a_change_writes_a_table_beside_the_one_that_is_read() -> None:
    """And touches no other service's."""
    old, other = spread(4), replace(spread(4), id=spread(4).id._replace(name="other"), frontends=(), node_port=30081)
    plan = Plan(Site(1))
    plan.change(Table({one.id: one for one in (old, other)}, HASHED), {old.id, other.id})
    written = {key for key in plan.entries() if key.map == "maglev"}
    fewer = Pool(tuple(Backend(IP(ip), 8080, is_local=True) for ip in ENDPOINTS[4][1:]))
    new = replace(old, internal=fewer, external=fewer, short_circuit=fewer)
    change = plan.change(Table({one.id: one for one in (new, other)}, HASHED), {old.id})
    put, gone = ({key for key in keys if key.map == "maglev"} for keys in (change.put, change.gone))
    assert (len(put), len(gone), put & written) == (1, 1, set())
    same = plan.change(Table({one.id: one for one in (new, other)}, HASHED), {old.id, other.id})
    assert not same.put and not same.gone


def test_a_large_table_is_found_in_pieces(nodes: tuple[World, World]) -> None:
    node, _ = nodes
    many = [f"10.244.1.{n}" for n in range(100)]
    node.write(spread(4, *many), host=HASHED)
    assert len(list(syscall.entries(node.store.maps["maglev"]))) == 8
    some = flows(4)
    chosen = choices(node, some)
    assert len(set(chosen)) > 90
    syscall.delete(node.store.maps["flows"], [key for key, _ in syscall.entries(node.store.maps["flows"])])
    assert choices(node, some) == chosen
