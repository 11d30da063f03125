"""What is put before the proxies whose latency is measured, and in which order they are."""

import json
from collections import Counter

import pytest

from bench.contender import Contender
from bench.latency import LatencyBench, Plan
from pyproxy.manifest import parse

_PLAN = Plan(1, 1, 1, 1)


@pytest.mark.parametrize(("services", "endpoints"), [(1, 1), (1, 3), (200, 2)])
def test_so_many_services_of_so_many_endpoints(services: int, endpoints: int) -> None:
    objects = LatencyBench([], services, endpoints, _PLAN).objects("10.244.0.12")
    assert sum(one["kind"] == "Service" for one in objects) == services
    found: Counter[str] = Counter()
    for one in objects:
        if one["kind"] == "EndpointSlice":
            found[one["metadata"]["labels"]["kubernetes.io/service-name"]] += len(one["endpoints"])
    assert len(found) == services
    assert set(found.values()) == {endpoints}


def test_the_measured_service_has_each_port_of_the_pod_as_an_endpoint() -> None:
    objects = LatencyBench([], 1, 3, _PLAN).objects("10.244.0.12")
    slices = [one for one in objects if one["kind"] == "EndpointSlice"]
    assert [[port["port"] for port in one["ports"]] for one in slices] == [[9000, 9000], [9001, 9001], [9002, 9002]]
    assert {one["addresses"][0] for piece in slices for one in piece["endpoints"]} == {"10.244.0.12"}
    assert [port["protocol"] for port in slices[0]["ports"]] == ["TCP", "UDP"]


@pytest.mark.parametrize(("services", "node_ports"), [(1, 1), (101, 11), (30_001, 2669)])
def test_one_service_in_ten_has_a_node_port_as_long_as_there_are_any(services: int, node_ports: int) -> None:
    objects = LatencyBench([], services, 1, _PLAN).objects("10.244.0.12")
    ports = [one["spec"]["ports"][0].get("nodePort") for one in objects if one["kind"] == "Service"]
    given = [port for port in ports if port is not None]
    assert len(given) == len(set(given)) == node_ports
    assert all(30000 <= port <= 32767 for port in given)


def test_no_object_is_refused() -> None:
    objects = LatencyBench([], 50, 2, _PLAN).objects("10.244.0.12")
    read = parse(json.dumps({"kind": "List", "items": objects}).encode())
    assert read.mishaps == []
    assert len(read.objects) == len(objects)


def test_the_order_is_drawn_anew_each_time_and_the_same_in_the_next_run() -> None:
    contestants = [Contender("a"), Contender("b"), Contender("c"), Contender("d"), Contender("e")]
    one, other = (LatencyBench(contestants, 1, 1, _PLAN) for _ in range(2))
    orders = [one._contest.shuffled(contestants) for _ in range(20)]
    assert orders == [other._contest.shuffled(contestants) for _ in range(20)]
    assert len({tuple(map(str, order)) for order in orders}) > 10
    assert all(sorted(map(str, order)) == ["a", "b", "c", "d", "e"] for order in orders)
