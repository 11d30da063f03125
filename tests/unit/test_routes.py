"""What `routes_of` makes of a service's own fields: which routes there are, and all of them but the pools' choice."""

from typing import Any

import pytest

from pyproxy.address import IP, Family, Prefix
from pyproxy.objects import AffinityConfig, ClientIPConfig, Conditions, EndpointSlice, Ingress, Service, ServicePort
from pyproxy.objects import SlicePort as Port
from pyproxy.policy import Site, routes_of
from pyproxy.problem import Problem
from pyproxy.table import Backend, Frontend, Host, OnEmpty, Pool, Route, RouteId, Scope, Transport
from tests.unit.flows import End, Packet, Source, fate
from tests.unit.samples import OTHER_NODE, THIS_NODE, admitted, endpoint, endpoint_slice, service

SITE = Site(THIS_NODE)
GONE = Conditions(False, False, True)
LEAVING = Conditions(False, True, True)
UNREADY = Conditions(False, False, False)


def planned(web: Service, *pieces: EndpointSlice) -> tuple[list[Route], list[Problem]]:
    return routes_of(admitted(web), [admitted(piece) for piece in pieces], SITE)


def only_route(web: Service, *pieces: EndpointSlice) -> Route:
    (route,), problems = planned(web, *pieces)
    assert not problems
    return route


def sockets(pool: Pool) -> list[str]:
    return [f"{backend.ip} {backend.port}" for backend in pool.backends]


def test_a_route_carries_every_field_of_the_service() -> None:
    web = service(
        "web",
        ServicePort(443, "https", "UDP", 30443),
        type="LoadBalancer",
        external_ips=("198.51.100.1",),
        ingress=(Ingress("198.51.100.2"),),
        session_affinity="ClientIP",
        external_traffic_policy="Local",
        load_balancer_source_ranges=("203.0.113.0/24",),
        health_check_node_port=31000,
        namespace="shop",
    )
    here, there = endpoint("10.244.1.1", THIS_NODE), endpoint("10.244.2.1", OTHER_NODE)
    piece = endpoint_slice(there, here, ports=(Port("https", "UDP", 8443),), namespace="shop")
    local, remote = Backend(IP("10.244.1.1"), 8443, True), Backend(IP("10.244.2.1"), 8443, False)
    assert only_route(web, piece) == Route(
        id=RouteId("shop", "web", "https", Family.IPV4),
        transport=Transport.UDP,
        frontends=(
            Frontend(IP("10.96.0.1"), 443, Scope.CLUSTER_IP),
            Frontend(IP("198.51.100.1"), 443, Scope.EXTERNAL_IP),
            Frontend(IP("198.51.100.2"), 443, Scope.LOAD_BALANCER),
        ),
        node_port=30443,
        internal=Pool((local, remote)),
        external=Pool((local,), OnEmpty.DROP),
        short_circuit=Pool((local, remote)),
        masquerade_external=False,
        affinity_seconds=10800,
        allowed_sources=(Prefix("203.0.113.0/24"),),
        health_check_port=31000,
        ready_local=(IP("10.244.1.1"),),
    )


@pytest.mark.parametrize(
    "skipped",
    [
        service(cluster_ips=("None",)),
        service(cluster_ips=(), cluster_ip="None"),
        service(cluster_ips=()),
        service(cluster_ips=("",), external_ips=("198.51.100.1",)),
        service(type="ExternalName"),
        service(type="ExternalName", external_ips=("nonsense",)),
    ],
    ids=["headless", "headless by clusterIP alone", "no address", "empty address", "external name", "whatever it says"],
)
def test_headless_and_external_services_are_skipped_in_silence(skipped: Service) -> None:
    assert planned(skipped, endpoint_slice(endpoint("10.244.1.1"))) == ([], [])


def test_the_old_field_cluster_ip_is_enough() -> None:
    route = only_route(service(cluster_ips=(), cluster_ip="10.96.0.7"))
    assert [frontend.address for frontend in route.frontends] == ["10.96.0.7"]


def test_a_service_without_ports_has_no_routes() -> None:
    web = service()
    web.spec.ports = None
    assert planned(web) == ([], [])


@pytest.mark.parametrize("protocol", ["TCP", "UDP", "SCTP"])
def test_each_protocol_has_its_transport(protocol: str) -> None:
    assert only_route(service("web", ServicePort(53, protocol=protocol))).transport.value == protocol.lower()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ({}, None),
        ({"session_affinity": "None"}, None),
        ({"session_affinity_config": AffinityConfig(ClientIPConfig(60))}, None),
        ({"session_affinity": "ClientIP"}, 10800),
        ({"session_affinity": "ClientIP", "session_affinity_config": AffinityConfig()}, 10800),
        ({"session_affinity": "ClientIP", "session_affinity_config": AffinityConfig(ClientIPConfig())}, 10800),
        ({"session_affinity": "ClientIP", "session_affinity_config": AffinityConfig(ClientIPConfig(1))}, 1),
        ({"session_affinity": "ClientIP", "session_affinity_config": AffinityConfig(ClientIPConfig(86400))}, 86400),
    ],
    ids=str,
)
def test_affinity_is_as_given_or_three_hours(given: dict[str, Any], seconds: int | None) -> None:
    assert only_route(service(**given)).affinity_seconds == seconds


@pytest.mark.parametrize(
    ("kind", "policy", "port"),
    [("LoadBalancer", "Local", 31000), ("LoadBalancer", "Cluster", None), ("NodePort", "Local", None)],
)
def test_only_load_balancers_with_policy_local_have_a_health_check(kind: str, policy: str, port: int | None) -> None:
    web = service(type=kind, external_traffic_policy=policy, health_check_node_port=31000)
    assert only_route(web).health_check_port == port


@pytest.mark.parametrize(
    ("ranges", "v4", "v6"),
    [
        ((), None, None),
        (("203.0.113.0/24",), ["203.0.113.0/24"], None),
        ((" 203.0.113.0/24\t", "\n198.51.100.7/32 "), ["198.51.100.7/32", "203.0.113.0/24"], None),
        (("2001:db8::/32",), None, ["2001:db8::/32"]),
        (("203.0.113.0/24", "2001:db8::/32"), ["203.0.113.0/24"], ["2001:db8::/32"]),
        (("203.0.113.0/24", "0.0.0.0/0"), None, None),
        (("203.0.113.0/24", "::/0"), ["203.0.113.0/24"], None),
        (("203.0.113.77/24",), ["203.0.113.0/24"], None),
        (("10.0.0.0/8", "10.1.0.0/16"), ["10.0.0.0/8"], None),
        (("10.0.0.0/9", "10.128.0.0/9"), ["10.0.0.0/8"], None),
        (("0.0.0.0/1", "128.0.0.0/1"), None, None),
        (("10.0.0.0/10",), ["10.0.0.0/10"], None),
        (("198.51.100.9/0",), None, None),
    ],
    ids=str,
)
def test_source_ranges(ranges: tuple[str, ...], v4: list[str] | None, v6: list[str] | None) -> None:
    web = service(cluster_ips=("10.96.0.1", "fd00::1"), load_balancer_source_ranges=ranges)
    routes, _ = planned(web)
    found = {r.id.family: list(r.allowed_sources) if r.allowed_sources is not None else None for r in routes}
    assert found == {Family.IPV4: v4, Family.IPV6: v6}


@pytest.mark.parametrize("policy", ["Cluster", "Local"])
@pytest.mark.parametrize(
    ("sender", "address", "enters"),
    [
        ("203.0.113.9", "198.51.100.2", True),
        ("198.18.0.1", "198.51.100.2", False),
        ("10.244.9.9", "198.51.100.2", False),
        ("198.18.0.1", "198.51.100.1", True),  # an external IP
        ("198.18.0.1", "10.96.0.1", True),
    ],
)
def test_source_ranges_guard_load_balancer_addresses_alone(
    policy: str, sender: str, address: str, enters: bool
) -> None:
    web = service(
        external_ips=("198.51.100.1",),
        ingress=(Ingress("198.51.100.2"),),
        load_balancer_source_ranges=("203.0.113.0/24",),
        external_traffic_policy=policy,
    )
    route = only_route(web, endpoint_slice(endpoint("10.244.1.1", THIS_NODE)))
    result = fate(Packet(IP(sender), IP(address), 80), route, Host())
    assert isinstance(result, dict) if enters else result is End.DROPPED


@pytest.mark.parametrize(
    ("entry", "served"),
    [
        (Ingress("198.51.100.2"), True),
        (Ingress("198.51.100.2", "VIP"), True),
        (Ingress("198.51.100.2", "Proxy"), False),
        (Ingress(), False),  # a hostname
        (Ingress("", "Proxy"), False),
    ],
    ids=str,
)
def test_only_ingress_addresses_of_mode_vip_are_served(entry: Ingress, served: bool) -> None:
    addresses = [frontend.address for frontend in only_route(service(ingress=(entry,))).frontends]
    assert addresses == ["10.96.0.1", "198.51.100.2"][: 1 + served]


def test_an_address_that_is_listed_twice_has_the_stricter_scope() -> None:
    web = service(external_ips=("198.51.100.2", "10.96.0.1"), ingress=(Ingress("198.51.100.2"), Ingress("10.96.0.1")))
    assert [(f.address, f.scope) for f in only_route(web).frontends] == [
        ("10.96.0.1", Scope.CLUSTER_IP),
        ("198.51.100.2", Scope.LOAD_BALANCER),
    ]


def test_a_dual_stack_service_has_a_route_of_each_family_with_its_own_endpoints() -> None:
    web = service(
        cluster_ips=("fd00:96::1", "10.96.0.1"),
        external_ips=("198.51.100.1", "2001:db8:100::1"),
        ingress=(Ingress("2001:db8:100::2"), Ingress("198.51.100.2")),
    )
    v4 = endpoint_slice(endpoint("10.244.1.1"), name="web-4")
    v6 = endpoint_slice(endpoint("fd00:244::1"), name="web-6", family="IPv6")
    routes, problems = planned(web, v4, v6)
    assert not problems
    found = {r.id.family: ([f.address for f in r.frontends], sockets(r.internal)) for r in routes}
    assert found == {
        Family.IPV4: (["10.96.0.1", "198.51.100.1", "198.51.100.2"], ["10.244.1.1 8080"]),
        Family.IPV6: (["2001:db8:100::1", "2001:db8:100::2", "fd00:96::1"], ["fd00:244::1 8080"]),
    }


def test_a_family_without_endpoints_refuses_though_the_other_one_serves() -> None:
    web = service(cluster_ips=("10.96.0.1", "fd00:96::1"))
    routes, _ = planned(web, endpoint_slice(endpoint("10.244.1.1")))
    ends = {r.id.family: fate(Packet(IP("::"), r.frontends[0].address, 80), r, Host()) for r in routes}
    assert ends[Family.IPV6] is End.REFUSED
    assert ends[Family.IPV4] == {Backend(IP("10.244.1.1"), 8080, False): Source.KEPT}


def test_external_addresses_of_a_family_the_service_lacks_are_reported() -> None:
    web = service(external_ips=("2001:db8::1",), ingress=(Ingress("2001:db8::2"),))
    routes, problems = planned(web)
    assert [frontend.address for frontend in routes[0].frontends] == ["10.96.0.1"]
    assert sorted(map(str, problems)) == [
        "Service default/web: spec.externalIPs: 2001:db8::1 is IPv6, which the service does not have",
        "Service default/web: status.loadBalancer.ingress: 2001:db8::2 is IPv6, which the service does not have",
    ]


def test_ports_are_matched_by_name_and_protocol() -> None:
    web = service("web", ServicePort(80, "http"), ServicePort(443, "https"), ServicePort(53, "dns", "UDP"))
    ports = (Port("https", "TCP", 8443), Port("http", "TCP", 8080), Port("dns", "TCP", 5353), Port("x", "TCP", 1))
    routes, _ = planned(web, endpoint_slice(endpoint("10.244.1.1"), ports=ports))
    assert {r.id.port_name: sockets(r.internal) for r in routes} == {
        "http": ["10.244.1.1 8080"],
        "https": ["10.244.1.1 8443"],
        "dns": [],
    }


@pytest.mark.parametrize(
    ("port", "matches"),
    [
        (Port("", "TCP", 8080), True),
        (Port(None, "TCP", 8080), True),
        (Port(None, None, 8080), True),
        (Port("http", "TCP", 8080), False),
        (Port("", "UDP", 8080), False),
        (Port("", "TCP", None), False),
    ],
    ids=str,
)
def test_a_service_port_without_name_takes_slice_ports_without_name_that_have_a_number(
    port: Port, matches: bool
) -> None:
    route = only_route(service(), endpoint_slice(endpoint("10.244.1.1"), ports=(port,)))
    assert sockets(route.internal) == ["10.244.1.1 8080"][:matches]


def test_slices_may_map_one_service_port_to_different_numbers() -> None:
    first = endpoint_slice(endpoint("10.244.1.1"), name="web-1")
    second = endpoint_slice(endpoint("10.244.1.2"), name="web-2", ports=(Port("", "TCP", 9090),))
    assert sockets(only_route(service(), second, first).internal) == ["10.244.1.1 8080", "10.244.1.2 9090"]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("one", "other", "served"),
    [
        (None, None, True),
        (None, LEAVING, True),
        (None, GONE, True),
        (None, UNREADY, True),
        (LEAVING, GONE, True),
        (UNREADY, LEAVING, False),  # the one that is not terminating wins, ready or not
        (GONE, GONE, False),
    ],
    ids=str,
)
def test_the_same_address_in_two_slices_is_one_endpoint(
    one: Conditions | None, other: Conditions | None, served: bool, turned: bool
) -> None:
    pieces = [
        endpoint_slice(endpoint("10.244.1.1", conditions=one), name="web-1"),
        endpoint_slice(endpoint("10.244.1.1", conditions=other), name="web-2"),
    ]
    route = only_route(service(), *(reversed(pieces) if turned else pieces))
    assert sockets(route.internal) == ["10.244.1.1 8080"][:served]


def test_only_the_first_address_of_an_endpoint_counts() -> None:
    many = endpoint("10.244.1.1")
    many.addresses = ("10.244.1.1", "10.244.1.2", "nonsense")
    assert sockets(only_route(service(), endpoint_slice(many)).internal) == ["10.244.1.1 8080"]


def test_slices_of_names_are_ignored() -> None:
    names = endpoint_slice(endpoint("example.com"), family="FQDN")
    assert sockets(only_route(service(), names).internal) == []


def test_backends_are_in_canonical_order_whatever_the_slices_say() -> None:
    pieces = [endpoint_slice(endpoint(f"10.244.1.{n}"), name=f"web-{n}") for n in (7, 3, 9, 1)]
    assert only_route(service(), *pieces) == only_route(service(), *reversed(pieces))


def test_a_service_of_type_cluster_ip_without_node_port_has_none() -> None:
    assert only_route(service()).node_port is None
