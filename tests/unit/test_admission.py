"""What may not come in, and what is said about it."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.admission import Refused, admit, printable_key
from pyproxy.objects import (
    AffinityConfig,
    ClientIPConfig,
    Conditions,
    Endpoint,
    EndpointSlice,
    Ingress,
    Key,
    Metadata,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Object,
    Service,
    ServicePort,
    SlicePort,
)
from pyproxy.problem import Problem
from tests.unit.samples import admitted, endpoint, endpoint_slice, node, service

HOSTILE = {
    "quote": 'a"b',
    "single quote": "a'b",
    "newline": "a\nb",
    "newline at the end": "a\n",
    "carriage return": "a\rb",
    "semicolon": "a; flush ruleset",
    "brace": "a}",
    "NUL": "a\0b",
    "escape": "a\x1b[31mb",
    "bell": "\a",
    "space": "a b",
    "backslash": "a\\",
    "dollar": "$(reboot)",
    "comment": "#",
    "slash": "../../etc/passwd",
    "10 kB": "a" * 10_000,
    "10 kB of newlines": "\n" * 10_000,
    "letters of Spain": "ñandú",
    "digits of Arabia": "\u0661\u0662\u0663",
    "a mask of a line": "a\u2028b",
    "right to left": "a\u202eb",
    "next line": "a\x85b",
    "half a surrogate": "a\ud800b",
    "upper case": "Web",
    "dash first": "-web",
    "dash last": "web-",
}
hostile = pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())


def refusal(thing: Object) -> Problem:
    with pytest.raises(Refused) as caught:
        admit(thing)
    assert str(caught.value) == str(caught.value.problem)
    return caught.value.problem


def left_out(*endpoints: Endpoint, ports: tuple[SlicePort, ...] | None = None) -> tuple[EndpointSlice, list[Problem]]:
    result, problems = admit(endpoint_slice(*endpoints, ports=ports))
    assert isinstance(result, EndpointSlice)
    return result, problems


def assert_fit_to_print(problem: Problem) -> None:
    line = str(problem)
    assert line.isascii()
    assert line.isprintable()
    assert len(line) < 2000


def with_metadata(**fields: Any) -> list[Object]:
    metadata = Metadata(**{"name": "web", "namespace": "default", **fields})
    web, piece, host = service(), endpoint_slice(), node()
    piece_labels = {**(piece.metadata.labels or {}), **(metadata.labels or {})}
    web.metadata = host.metadata = metadata
    piece.metadata = Metadata(metadata.name, metadata.namespace, piece_labels)
    return [web, piece, host]


SERVICE_FIELDS: dict[str, Callable[[str], Service]] = {
    "spec.type": lambda text: service(type=text),
    "spec.sessionAffinity": lambda text: service(session_affinity=text),
    "spec.internalTrafficPolicy": lambda text: service(internal_traffic_policy=text),
    "spec.externalTrafficPolicy": lambda text: service(external_traffic_policy=text),
    "spec.clusterIPs[0]": lambda text: service(cluster_ips=(text,)),
    "spec.clusterIPs[1]": lambda text: service(cluster_ips=("10.96.0.1", text)),
    "spec.externalIPs[1]": lambda text: service(external_ips=("198.51.100.1", text)),
    "spec.loadBalancerSourceRanges[0]": lambda text: service(load_balancer_source_ranges=(text,)),
    "status.loadBalancer.ingress[1]": lambda text: service(ingress=(Ingress(), Ingress(text))),
    "spec.ports[0].protocol": lambda text: service("web", ServicePort(80, protocol=text)),
    "spec.ports[1].name": lambda text: service("web", ServicePort(80, "http"), ServicePort(81, text)),
    "metadata.name": lambda text: service(text),
    "metadata.namespace": lambda text: service(namespace=text),
}


@hostile
@pytest.mark.parametrize("field", SERVICE_FIELDS)
def test_hostile_text_in_a_service_refuses_it_in_one_printable_line(field: str, text: str) -> None:
    problem = refusal(SERVICE_FIELDS[field](text))
    assert (problem.kind, problem.field) == ("Service", field)
    assert_fit_to_print(problem)


@hostile
def test_hostile_text_in_a_service_does_not_hide_its_name(text: str) -> None:
    assert str(refusal(service("shop", type=text))).startswith("Service default/shop: spec.type: ")


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("addressType", lambda text: endpoint_slice(family=text)),
        ("metadata.name", lambda text: endpoint_slice(name=text)),
        ("metadata.namespace", lambda text: endpoint_slice(namespace=text)),
        ("metadata.labels[kubernetes.io/service-name]", lambda text: endpoint_slice(of=text)),
    ],
)
@hostile
def test_hostile_text_in_a_slice_as_a_whole_refuses_it(field: str, make: Callable[[str], Object], text: str) -> None:
    problem = refusal(make(text))
    assert (problem.kind, problem.field) == ("EndpointSlice", field)
    assert_fit_to_print(problem)


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("metadata.name", lambda text: node(name=text)),
        ("spec.podCIDRs[0]", lambda text: node(pod_cidrs=(text,))),
        ("status.addresses[1]", lambda text: node("192.0.2.1", text)),
    ],
)
@hostile
def test_hostile_text_in_a_node_refuses_it(field: str, make: Callable[[str], Object], text: str) -> None:
    problem = refusal(make(text))
    assert (problem.kind, problem.field) == ("Node", field)
    assert_fit_to_print(problem)


@hostile
def test_hostile_text_in_an_endpoint_or_slice_port_harms_only_that(text: str) -> None:
    ports = (SlicePort(text, "TCP", 1), SlicePort("ok", text, 1), SlicePort("ok", "TCP", 1))
    piece, problems = left_out(endpoint(text), endpoint("10.244.1.1"), ports=ports)
    assert [one.addresses for one in piece.endpoints or ()] == [("10.244.1.1",)]
    assert piece.ports == (SlicePort("ok", "TCP", 1),)
    assert [problem.field for problem in problems] == [
        "endpoints[0].addresses[0]",
        "ports[0].name",
        "ports[1].protocol",
    ]
    for problem in problems:
        assert_fit_to_print(problem)


@hostile
@pytest.mark.parametrize("part", ["labels", "creation_timestamp"])
def test_hostile_text_in_what_is_only_compared_never_reaches_a_name(part: str, text: str) -> None:
    value: Any = {"topology.kubernetes.io/zone": text, "x" * 10_000: text} if part == "labels" else text
    for thing in with_metadata(**{part: value}):
        result, problems = admit(thing)
        assert not problems
        assert result.metadata.name == "web"
        kept = result.metadata.labels or {}
        assert kept.keys() <= {"topology.kubernetes.io/zone", "kubernetes.io/service-name"}


@settings(deadline=None)
@given(st.text(max_size=300), st.sampled_from(sorted(SERVICE_FIELDS)))
def test_whatever_the_text_a_service_is_admitted_or_refused_in_one_line(text: str, field: str) -> None:
    try:
        admit(SERVICE_FIELDS[field](text))
    except Refused as refused:
        assert_fit_to_print(refused.problem)


@pytest.mark.parametrize("number", [0, -1, 65536, 70000, 2**63, -(2**63)])
def test_numbers_that_are_no_ports_are_refused(number: int) -> None:
    problem = refusal(service("web", ServicePort(80, "ok"), ServicePort(number, "bad")))
    assert str(problem) == f"Service default/web: spec.ports[1].port: {number} is not a port (1 to 65535)"
    piece, problems = left_out(endpoint("10.244.1.1"), ports=(SlicePort("", "TCP", number),))
    assert (piece.ports, problems[0].field) == ((), "ports[0].port")


@pytest.mark.parametrize("number", [-1, 65536, 70000])
def test_node_and_health_check_ports_are_checked_unless_zero(number: int) -> None:
    assert refusal(service("web", ServicePort(80, node_port=number))).field == "spec.ports[0].nodePort"
    assert refusal(service(health_check_node_port=number)).field == "spec.healthCheckNodePort"
    admitted(service("web", ServicePort(80, node_port=0), health_check_node_port=0))


@pytest.mark.parametrize("number", [1, 65535])
def test_the_first_and_the_last_port_are_ports(number: int) -> None:
    admitted(service("web", ServicePort(number, node_port=number), health_check_node_port=number))
    admitted(endpoint_slice(endpoint("10.244.1.1"), ports=(SlicePort("", "TCP", number),)))


@pytest.mark.parametrize(
    ("address", "family", "reason"),
    [
        ("127.0.0.1", "IPv4", "127.0.0.1 is a loopback address"),
        ("127.255.255.254", "IPv4", "127.255.255.254 is a loopback address"),
        ("169.254.169.254", "IPv4", "169.254.169.254 is a link-local address"),
        ("0.0.0.0", "IPv4", "0.0.0.0 is the unspecified address"),
        ("224.0.0.251", "IPv4", "224.0.0.251 is a multicast address"),
        ("::1", "IPv6", "::1 is a loopback address"),
        ("0:0:0:0:0:0:0:1", "IPv6", "::1 is a loopback address"),
        ("fe80::1", "IPv6", "fe80::1 is a link-local address"),
        ("::", "IPv6", ":: is the unspecified address"),
        ("ff02::1", "IPv6", "ff02::1 is a multicast address"),
        ("::ffff:127.0.0.1", "IPv6", "'::ffff:127.0.0.1' is an IPv4-mapped address; write it as IPv4"),
        ("fe80::1%eth0", "IPv6", "'fe80::1%eth0' is not an IP address"),
        ("fd00::1", "IPv4", "fd00::1 is not an IPv4 address, as addressType says"),
        ("10.244.1.1", "IPv6", "10.244.1.1 is not an IPv6 address, as addressType says"),
        ("010.0.0.1", "IPv4", "'010.0.0.1' is not an IP address"),
        ("10.1", "IPv4", "'10.1' is not an IP address"),
        ("10.0.0.1/32", "IPv4", "'10.0.0.1/32' is not an IP address"),
        ("", "IPv4", "'' is not an IP address"),
    ],
)
def test_an_endpoint_at_an_address_it_must_not_have_is_left_out(address: str, family: str, reason: str) -> None:
    good = "10.244.1.9" if family == "IPv4" else "fd00:244::9"
    result, problems = admit(endpoint_slice(endpoint(address), endpoint(good), family=family))
    assert isinstance(result, EndpointSlice)
    assert [one.addresses for one in result.endpoints or ()] == [(good,)]
    assert [str(problem) for problem in problems] == [
        f"EndpointSlice default/web-1: endpoints[0].addresses[0]: {reason}; the endpoint is left out"
    ]


def test_an_endpoint_without_addresses_is_left_out() -> None:
    piece, problems = left_out(Endpoint(()), endpoint("10.244.1.1"))
    assert len(piece.endpoints or ()) == 1
    assert [problem.reason for problem in problems] == ["is missing; the endpoint is left out"]


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.1.1", "0.0.0.0", "::1", "fe80::1", "224.0.0.1"])
@pytest.mark.parametrize("field", ["spec.externalIPs", "status.loadBalancer.ingress"])
def test_no_external_frontend_is_in_loopback_or_link_local_ranges(field: str, address: str) -> None:
    webs = {
        "spec.externalIPs": service(external_ips=(address,)),
        "status.loadBalancer.ingress": service(ingress=(Ingress(address),)),
    }
    assert refusal(webs[field]).field == f"{field}[0]"


@pytest.mark.parametrize("address", ["10.96.0.1", "fd00::1"])
def test_a_second_cluster_ip_of_the_same_family_is_refused(address: str) -> None:
    for second in (address, address + "0"):
        assert refusal(service(cluster_ips=(address, second))).field == "spec.clusterIPs[1]"


@pytest.mark.parametrize(
    ("bad", "field", "reason"),
    [
        (service("web", ServicePort(80, "a"), ServicePort(81, "a")), "spec.ports[1].name",
         "a is the name of another port of this service"),
        (service("web", ServicePort(80, "a"), ServicePort(80, "b")), "spec.ports[1].port",
         "80/TCP is another port of this service"),
        (service("web", ServicePort(80, "a"), ServicePort(81)), "spec.ports[1].name",
         "an empty name is not a DNS label"),
        (service(""), "metadata.name", "an empty name is not a DNS label"),
        (service(namespace=""), "metadata.namespace", "an empty name is not a DNS label"),
        (service("a.b"), "metadata.name", "'a.b' is not a DNS label"),
        (service(namespace="a.b"), "metadata.namespace", "'a.b' is not a DNS label"),
        (service("a" * 64), "metadata.name", f"'{'a' * 60}\\u2026' is not a DNS label"),
        (service(type="Foo"), "spec.type", "'Foo' is none of ClusterIP, NodePort, LoadBalancer, ExternalName"),
        (service(cluster_ips=("10.96.0.1", "None")), "spec.clusterIPs[1]", "'None' is not an IP address"),
        (service(load_balancer_source_ranges=("10.0.0.0/8", "10.0.0.1")), "spec.loadBalancerSourceRanges[1]",
         "'10.0.0.1' is not a range such as 10.0.0.0/8 or fd00::/64"),
        (endpoint_slice(name="a" * 254), "metadata.name", f"'{'a' * 60}\\u2026' is not a DNS subdomain"),
        (endpoint_slice(of=""), "metadata.labels[kubernetes.io/service-name]",
         "is missing, so the slice belongs to no service"),
        (Node(Metadata("")), "metadata.name", "an empty name is not a DNS subdomain"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_field_and_says_why(bad: Object, field: str, reason: str) -> None:
    problem = refusal(bad)
    assert (problem.field, problem.reason) == (field, reason)


@pytest.mark.parametrize("seconds", [-1, 0, 86401])
def test_affinity_of_no_time_or_more_than_a_day_is_refused(seconds: int) -> None:
    config = AffinityConfig(ClientIPConfig(seconds))
    problem = refusal(service(session_affinity="ClientIP", session_affinity_config=config))
    assert problem.field == "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
    assert problem.reason == f"{seconds} is not between 1 and 86400"


def test_one_port_number_may_serve_several_protocols() -> None:
    ports = [ServicePort(53, name.lower(), name) for name in ("TCP", "UDP", "SCTP")]
    assert admitted(service("web", *ports)).spec.ports == tuple(ports)


def test_problems_of_one_slice_are_capped_and_counted() -> None:
    piece, problems = left_out(*(endpoint("127.0.0.1") for _ in range(1000)), endpoint("10.244.1.1"))
    assert len(piece.endpoints or ()) == 1
    assert len(problems) == 11
    assert str(problems[-1]) == "EndpointSlice default/web-1: 990 more like these"


@pytest.mark.parametrize(("bad", "listed"), [(9, 9), (10, 10), (11, 11)])
def test_the_cap_itself_is_exact(bad: int, listed: int) -> None:
    _, problems = left_out(*(endpoint("127.0.0.1") for _ in range(bad)))
    assert len(problems) == listed
    assert (problems[-1].field == "") == (bad > 10)


def test_addresses_come_out_canonical() -> None:
    web = admitted(service(cluster_ips=("FD00:0:0::0001",), load_balancer_source_ranges=(" 10.1.2.3/8 ",)))
    assert (web.spec.cluster_ip, web.spec.load_balancer_source_ranges) == ("fd00::1", ("10.0.0.0/8",))
    piece = admitted(endpoint_slice(endpoint("FD00:244::0001"), family="IPv6"))
    assert piece.endpoints == (endpoint("fd00:244::1"),)


def test_conditions_are_shared_among_endpoints() -> None:
    piece = admitted(endpoint_slice(*(endpoint(f"10.244.1.{n}", conditions=Conditions(True)) for n in (1, 2))))
    one, other = piece.endpoints or ()
    assert one.conditions is other.conditions
    assert one.conditions == Conditions(True)


def test_an_external_name_service_needs_nothing_else() -> None:
    assert admitted(service(type="ExternalName", session_affinity="nonsense")).spec.cluster_ips is None


def test_only_internal_addresses_of_a_node_are_kept() -> None:
    host = node("192.0.2.1")
    addresses = (NodeAddress("Hostname", "no address"), NodeAddress("InternalIP", "192.0.2.1"))
    host.status = NodeStatus((*addresses, NodeAddress("ExternalIP", "198.51.100.1")))
    result = admitted(host)
    assert result.status == NodeStatus((NodeAddress("InternalIP", "192.0.2.1"),))


def test_the_old_field_pod_cidr_is_enough() -> None:
    host = Node(Metadata("node-a"), NodeSpec(pod_cidr="10.244.1.0/24"))
    assert admitted(host).spec == NodeSpec(pod_cidrs=("10.244.1.0/24",))


def test_what_was_admitted_is_admitted_again_unchanged() -> None:
    things: list[Object] = [
        service(ingress=(Ingress("198.51.100.1"), Ingress("", "Proxy"))),
        service(cluster_ips=("None",)),
        service(type="ExternalName"),
        endpoint_slice(endpoint("10.244.1.1", "node-a"), ports=(SlicePort(), SlicePort("a", None, 1))),
        node("192.0.2.1", pod_cidrs=("10.244.1.0/24",)),
    ]
    for thing in things:
        once, _ = admit(thing)
        assert admit(once) == (once, [])


@hostile
def test_a_key_can_be_printed_whatever_is_in_it(text: str) -> None:
    key = str(printable_key(Key(text, text)))
    assert key.isascii()
    assert key.isprintable()
    assert len(key) < 1500


def test_a_key_that_is_well_formed_is_printed_as_it_is() -> None:
    assert str(printable_key(Key("shop", "web.v1"))) == "shop/web.v1"
    assert str(printable_key(Key("", "node-a"))) == "node-a"
