"""Who gets what several services ask for, seen through the planner."""

from typing import Any

import pytest

from pyproxy.host import HostOptions
from pyproxy.objects import Delete, Ingress, Key, Service, ServicePort, Upsert
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import RouteId
from tests.unit.samples import THIS_NODE, admitted, service

EARLY, LATE = "2024-01-01T00:00:00Z", "2024-01-01T00:00:01Z"
IP = "198.51.100.1"


class Cluster:
    """A store and its planner, fed one object at a time."""

    def __init__(self) -> None:
        self._store = Store(THIS_NODE)
        self._planner = Planner(self._store, HostOptions(THIS_NODE), lambda _: None)

    def add(self, *services: Service) -> set[RouteId]:
        return self._plan([Upsert(admitted(each)) for each in services])

    def remove(self, name: str) -> set[RouteId]:
        return self._plan([Delete(Service, Key("default", name))])

    def _plan(self, events: list[Any]) -> set[RouteId]:
        self._store.apply(events)
        _, changed = self._planner.plan()
        assert changed is not None
        return set(changed)

    def holders(self, wanted: str | int) -> list[str]:
        """Names of the services that have an address, or a node port."""
        routes = self._planner.plan()[0].routes.values()
        return sorted(
            route.id.name
            for route in routes
            if route.node_port == wanted or wanted in [frontend.address for frontend in route.frontends]
        )

    def problems(self, name: str) -> list[str]:
        return [str(problem) for problem in self._planner.problems.get(Key("default", name), ())]


def with_port(
    name: str, created: str | None = None, *, node_port: int = 30080, number: int = 1, **more: Any
) -> Service:
    port = ServicePort(80, node_port=node_port)
    return service(name, port, cluster_ips=(f"10.96.0.{number}",), created=created, **more)


def names(changed: set[RouteId]) -> set[str]:
    return {route_id.name for route_id in changed}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("one", "other"),
    [(EARLY, LATE), (EARLY, None), (None, None), (EARLY, EARLY)],
    ids=["the older", "the one of known age", "of unknown age the first by name", "of equal age the first by name"],
)
def test_of_two_services_that_goes_first(one: str | None, other: str | None, turned: bool) -> None:
    pair = [
        with_port("a", one, external_ips=(IP,)),
        with_port("b", other, number=2, external_ips=(IP,)),
    ]
    cluster = Cluster()
    for each in reversed(pair) if turned else pair:
        cluster.add(each)
    assert cluster.holders(30080) == ["a"]
    assert cluster.holders(IP) == ["a"]


def test_an_older_service_goes_first_whatever_its_name() -> None:
    cluster = Cluster()
    cluster.add(with_port("a", LATE), with_port("b", EARLY, number=2))
    assert cluster.holders(30080) == ["b"]


def test_the_loser_is_told_what_it_lost_and_to_whom() -> None:
    cluster = Cluster()
    cluster.add(with_port("a", external_ips=(IP,)), with_port("b", number=2, external_ips=(IP,)))
    assert cluster.problems("a") == []
    assert cluster.problems("b") == [
        "Service default/b: spec.ports[]: ExternalIP 198.51.100.1 port 80 is taken by default/a IPv4, which goes first",
        "Service default/b: spec.ports[]: node port 30080 is taken by default/a IPv4, which goes first",
    ]


def test_the_loser_keeps_everything_else() -> None:
    cluster = Cluster()
    cluster.add(with_port("a", external_ips=(IP,)), with_port("b", number=2, external_ips=(IP, "198.51.100.9")))
    assert cluster.holders("10.96.0.2") == ["b"]
    assert cluster.holders("198.51.100.9") == ["b"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("field", ["external_ips", "ingress"])
def test_nobody_takes_a_cluster_ip_by_naming_it_as_an_external_address(field: str, turned: bool) -> None:
    victim = with_port("victim", LATE, number=1, node_port=0)
    wish: Any = ("10.96.0.1",) if field == "external_ips" else (Ingress("10.96.0.1"),)
    thief = with_port("a-thief", EARLY, number=2, node_port=0, **{field: wish})
    cluster = Cluster()
    for each in (victim, thief) if turned else (thief, victim):
        cluster.add(each)
    assert cluster.holders("10.96.0.1") == ["victim"]
    assert len(cluster.problems("a-thief")) == 1


def test_the_loser_gets_it_when_the_winner_goes_and_both_routes_are_named() -> None:
    cluster = Cluster()
    cluster.add(with_port("a"))
    assert names(cluster.add(with_port("b", number=2))) == {"b"}
    assert names(cluster.remove("a")) == {"a", "b"}
    assert cluster.holders(30080) == ["b"]
    assert cluster.problems("b") == []


def test_the_loser_gets_it_when_the_winner_wants_it_no_more() -> None:
    cluster = Cluster()
    cluster.add(with_port("a"), with_port("b", number=2))
    assert names(cluster.add(with_port("a", node_port=0))) == {"a", "b"}
    assert cluster.holders(30080) == ["b"]


def test_an_older_service_that_comes_later_takes_over() -> None:
    cluster = Cluster()
    cluster.add(with_port("b", LATE, number=2))
    assert names(cluster.add(with_port("a", EARLY))) == {"a", "b"}
    assert cluster.holders(30080) == ["a"]


def test_a_service_that_is_created_anew_loses_its_age() -> None:
    cluster = Cluster()
    cluster.add(with_port("b", EARLY, number=2), with_port("a", LATE))
    assert cluster.holders(30080) == ["b"]
    cluster.remove("b")
    cluster.add(with_port("b", "2025-01-01T00:00:00Z", number=2))
    assert cluster.holders(30080) == ["a"]


def test_when_the_first_of_three_goes_the_second_follows() -> None:
    cluster = Cluster()
    cluster.add(*(with_port(name, number=number) for number, name in enumerate("abc", 1)))
    for first in "abc":
        assert cluster.holders(30080) == [first]
        cluster.remove(first)
    assert cluster.holders(30080) == []


def test_protocols_and_families_do_not_compete() -> None:
    tcp = service("tcp", ServicePort(53, node_port=30053), cluster_ips=("10.96.0.1",), external_ips=(IP,))
    udp_port = ServicePort(53, protocol="UDP", node_port=30053)
    udp = service("udp", udp_port, cluster_ips=("10.96.0.2",), external_ips=(IP,))
    v6 = service("v6", ServicePort(53, node_port=30053), cluster_ips=("fd00:96::1",))
    cluster = Cluster()
    cluster.add(tcp, udp, v6)
    assert cluster.holders(30053) == ["tcp", "udp", "v6"]
    assert cluster.holders(IP) == ["tcp", "udp"]


def test_ports_of_one_external_ip_may_belong_to_different_services() -> None:
    cluster = Cluster()
    cluster.add(
        service("a", ServicePort(80), cluster_ips=("10.96.0.1",), external_ips=(IP,)),
        service("b", ServicePort(443), cluster_ips=("10.96.0.2",), external_ips=(IP,)),
    )
    assert cluster.holders(IP) == ["a", "b"]


def test_two_ports_of_one_service_may_not_share_a_node_port() -> None:
    ports = ServicePort(80, "http", node_port=30080), ServicePort(443, "https", node_port=30080)
    cluster = Cluster()
    cluster.add(service("web", *ports))
    assert cluster.holders(30080) == ["web"]
    assert cluster.problems("web") == [
        "Service default/web: spec.ports[https]: node port 30080 is taken by default/web:http IPv4, which goes first"
    ]


def test_two_services_with_one_cluster_ip_are_settled_by_age() -> None:
    cluster = Cluster()
    cluster.add(with_port("a", LATE, node_port=0), with_port("b", EARLY, node_port=0))
    assert cluster.holders("10.96.0.1") == ["b"]
    assert len(cluster.problems("a")) == 1
