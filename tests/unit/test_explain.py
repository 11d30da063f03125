"""What is said of a destination, against what the table means and what the objects were."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from pyproxy.address import IP, contains, parse_ip
from pyproxy.admission import admit
from pyproxy.explain import Known, explain
from pyproxy.explanation import Asker, Destination, Endpoint, Explanation, Outcome, Verdict, parse
from pyproxy.explanation import Source as Seen
from pyproxy.host import HostOptions
from pyproxy.objects import PROXY_NAME_LABEL, EndpointSlice, Ingress, Key, Node, Service, ServicePort, SlicePort, Upsert
from pyproxy.planner import Planner
from pyproxy.problem import Problem
from pyproxy.store import Store
from pyproxy.table import (
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
    Table,
    Transport,
)
from tests.unit.flows import End, Fate, Packet, Source, fate
from tests.unit.samples import OTHER_NODE, THIS_NODE, endpoint, endpoint_slice, node, service

HERE, ELSEWHERE = Backend(IP("10.244.0.1"), 8080, True), Backend(IP("10.244.1.1"), 8080, False)
ALL, LOCAL, REMOTE = Pool((HERE, ELSEWHERE)), Pool((HERE,)), Pool((ELSEWHERE,))
NONE, NONE_HERE = Pool(()), Pool((), OnEmpty.DROP)
OWN, SERVED = IP("172.18.0.2"), IP("10.96.0.1")
PODS, WORLD = Prefix("10.244.0.0/16"), Prefix("192.0.2.0/24")
PACKETS = {
    Asker.POD: (IP("10.244.0.77"), "veth1"),
    Asker.NODE: (OWN, None),
    Asker.OUTSIDE: (IP("192.0.2.9"), "eth0"),
}
ROUTE = Route(
    id=RouteId("default", "web", "http", Family.IPV4),
    transport=Transport.TCP,
    frontends=(),
    node_port=None,
    internal=ALL,
    external=ALL,
    short_circuit=ALL,
    masquerade_external=True,
    affinity_seconds=None,
    allowed_sources=None,
    health_check_port=None,
)
OF_OUTSIDE = (
    (True, ALL, ALL),
    (True, NONE, NONE),
    (False, LOCAL, ALL),
    (False, NONE_HERE, REMOTE),
    (False, NONE, NONE),
)


def known_of(route: Route, host: Host, *, is_own: bool = False) -> Known:
    return Known("nftables", Table({route.id: route}, host), (), {}, (), is_own)


def outcomes(found: Explanation) -> dict[Asker, Outcome]:
    assert [outcome.asker for outcome in found.outcomes] == list(Asker)
    return {outcome.asker: outcome for outcome in found.outcomes}


def as_fate(outcome: Outcome) -> Fate:
    ends = {Verdict.REFUSED: End.REFUSED, Verdict.DROPPED: End.DROPPED, Verdict.NOT_HANDLED: End.UNTOUCHED}
    if outcome.verdict in ends:
        assert (outcome.endpoints, outcome.source) == ((), None)
        return ends[outcome.verdict]
    seen = Source.KEPT if outcome.source is Seen.KEPT else Source.NODE
    return {Backend(IP(one.address), one.port, one.local): seen for one in outcome.endpoints}


HOSTS = [
    Host((Prefix("172.18.0.0/24"),), prefixes, interfaces, masquerade_all)
    for (prefixes, interfaces), masquerade_all in product(
        [((PODS,), ()), ((), ("veth*",)), ((), ())],
        [False, True],
    )
]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scope", [*Scope, None])
def test_it_says_what_the_table_means(scope: Scope | None, host: Host) -> None:
    """Of every route and host: for each asker the same as `tests.unit.flows` makes of the table."""
    address = OWN if scope is None else SERVED
    for internal, of_outside, allowed in product(
        (ALL, LOCAL, NONE, NONE_HERE), OF_OUTSIDE, (None, (), (WORLD,), (PODS, WORLD), (Prefix("10.9.0.0/16"),))
    ):
        masquerade, external, short_circuit = of_outside
        route = replace(
            ROUTE,
            frontends=(Frontend(SERVED, 80, scope),) if scope else (),
            node_port=None if scope else 80,
            internal=internal,
            external=external,
            short_circuit=short_circuit,
            masquerade_external=masquerade,
            allowed_sources=allowed,
        )
        found = explain(Destination(address, 80, Transport.TCP), known_of(route, host, is_own=scope is None))
        for asker, outcome in outcomes(found).items():
            sender, interface = PACKETS[asker]
            expected = fate(Packet(sender, address, 80, interface), route, host)
            if as_fate(outcome) != expected:
                assert expected is End.DROPPED, (route, asker)
                assert not any(contains(prefix, sender) for prefix in allowed or ())
                assert "all others are dropped" in outcome.why
        assert found.allowed_sources == (allowed if scope is Scope.LOAD_BALANCER else None)
        assert found.is_handled == any(one.verdict is Verdict.TRANSLATED for one in found.outcomes)


def test_pods_are_told_by_the_prefixes_of_their_family() -> None:
    host = Host(pod_prefixes=(Prefix("fd00:244::/48"),))
    route = replace(ROUTE, frontends=(Frontend(SERVED, 80, Scope.CLUSTER_IP),))
    for outcome in explain(Destination(SERVED, 80, Transport.TCP), known_of(route, host)).outcomes:
        assert outcome.source is (Seen.NODE if outcome.asker is Asker.NODE else Seen.KEPT)
        assert outcome.asker is Asker.NODE or "pods can't be told from others" in outcome.why


CLUSTER_POLICY = "external policy Cluster: answers must come back through this node"
LOCAL_POLICY = {"masquerade_external": False, "external": LOCAL}
GUARDED = {"allowed_sources": (WORLD,)}


@pytest.mark.parametrize(
    ("scope", "asker", "changes", "host", "why"),
    [
        (
            *(Scope.CLUSTER_IP, Asker.POD, {}, HOSTS[0]),
            "endpoints can answer a pod directly; a pod that reaches itself is masqueraded",
        ),
        (Scope.CLUSTER_IP, Asker.POD, {"internal": REMOTE}, HOSTS[0], "endpoints can answer a pod directly"),
        (Scope.CLUSTER_IP, Asker.POD, {}, HOSTS[1], "masqueradeAll is on"),
        (Scope.CLUSTER_IP, Asker.NODE, {}, HOSTS[0], "it sends from an address of its own"),
        (Scope.CLUSTER_IP, Asker.OUTSIDE, {}, HOSTS[0], "answers must come back through this node"),
        (
            *(Scope.CLUSTER_IP, Asker.OUTSIDE, {}, HOSTS[4]),
            "pods can't be told from others here (detectLocalMode), so nobody is masqueraded",
        ),
        (
            *(Scope.CLUSTER_IP, Asker.POD, {"internal": NONE_HERE}, HOSTS[0]),
            "endpoints elsewhere, none on this node, and the internal policy is Local: dropped",
        ),
        (
            *(Scope.CLUSTER_IP, Asker.POD, {"internal": NONE}, HOSTS[0]),
            "no usable endpoint anywhere: refused at once",
        ),
        (Scope.EXTERNAL_IP, Asker.POD, {}, HOSTS[0], CLUSTER_POLICY),
        (
            *(Scope.EXTERNAL_IP, Asker.POD, LOCAL_POLICY, HOSTS[0]),
            "external policy Local does not bind pods of this node; a pod that reaches itself is masqueraded",
        ),
        (Scope.EXTERNAL_IP, Asker.NODE, LOCAL_POLICY, HOSTS[0], "external policy Local does not bind this node itself"),
        (
            *(Scope.EXTERNAL_IP, Asker.OUTSIDE, LOCAL_POLICY, HOSTS[0]),
            "external policy Local: endpoints on this node alone, and they see who asks",
        ),
        (
            *(Scope.EXTERNAL_IP, Asker.OUTSIDE, LOCAL_POLICY | {"external": NONE_HERE}, HOSTS[0]),
            "endpoints elsewhere, none on this node, and the external policy is Local: dropped",
        ),
        (Scope.LOAD_BALANCER, Asker.OUTSIDE, {"allowed_sources": ()}, HOSTS[0], "the source ranges let in nobody only"),
        (Scope.LOAD_BALANCER, Asker.POD, GUARDED, HOSTS[0], f"the source ranges let in {WORLD} only"),
        (
            *(Scope.LOAD_BALANCER, Asker.NODE, GUARDED, HOSTS[0]),
            f"{CLUSTER_POLICY}; this holds for {WORLD}, all others are dropped (source ranges)",
        ),
    ],
)
def test_it_says_why(scope: Scope, asker: Asker, changes: dict[str, Any], host: Host, why: str) -> None:
    route = replace(ROUTE, frontends=(Frontend(SERVED, 80, scope),), **changes)
    assert outcomes(explain(Destination(SERVED, 80, Transport.TCP), known_of(route, host)))[asker].why == why


def test_node_ports_answer_on_own_addresses_in_their_ranges() -> None:
    """And never on loopback."""
    host = Host(node_port_prefixes=(Prefix("127.0.0.0/8"), Prefix("172.18.0.0/24")))
    known = known_of(replace(ROUTE, node_port=30080), host, is_own=True)
    answers = {ip: explain(parse(f"{ip}:30080"), known).is_handled for ip in (OWN, "172.18.1.2", "127.0.0.1")}
    assert answers == {OWN: True, "172.18.1.2": False, "127.0.0.1": False}
    assert not explain(parse(f"{OWN}:30080"), replace(known, is_own=False)).is_handled


def planned(*objects: Service | EndpointSlice | Node, own: tuple[str, ...] = ()) -> dict[str, Any]:
    """What a proxy knows of ``objects``: fields of Known, but for ``own``, the node's own addresses."""
    store = Store(THIS_NODE)
    things = [admit(one)[0] for one in objects]
    store.apply(map(Upsert, things))
    options = HostOptions(THIS_NODE, cluster_cidrs=(Prefix("10.244.0.0/16"), Prefix("fd00:244::/48")))
    sctp = "this kernel does not know SCTP"
    planner = Planner(store, options, lambda route: sctp if route.transport is Transport.SCTP else None)
    table, _ = planner.plan()
    services = [one for one in things if isinstance(one, Service)]
    facts = {"table": table, "services": services, "problems": planner.problems, "refused": (), "own": own}
    return {"mode": "nftables", **facts}


def asked(to: str, facts: dict[str, Any]) -> Explanation:
    known = {name: value for name, value in facts.items() if name != "own"}
    return explain(parse(to), Known(**known, is_own=parse(to).address in facts["own"]))


DNS = service(
    *("dns", ServicePort(53, "dns", "UDP"), ServicePort(53, "dns-tcp")),
    namespace="kube-system",
    cluster_ips=("10.96.0.10", "fd00:96::a"),
)
DNS_PODS = endpoint_slice(
    *(endpoint("10.244.0.53", THIS_NODE), endpoint("10.244.1.53", OTHER_NODE)),
    of="dns",
    namespace="kube-system",
    ports=(SlicePort("dns", "UDP", 5353), SlicePort("dns-tcp", "TCP", 5353)),
)
WEB = service(
    *("web", ServicePort(80, "http", node_port=30080)),
    type="LoadBalancer",
    external_ips=("203.0.113.1",),
    ingress=(Ingress("198.51.100.1"),),
    created="2024-01-01T00:00:00Z",
    health_check_node_port=32000,
    external_traffic_policy="Local",
)
WEB_PODS = endpoint_slice(endpoint("10.244.0.2", THIS_NODE), ports=(SlicePort("http", "TCP", 8080),))
HEADLESS = service("headless", cluster_ips=("None",), external_ips=("203.0.113.5",))
ALIAS = service("alias", type="ExternalName", cluster_ips=(), external_ips=("203.0.113.6",))
YOUNGER = service("younger", ServicePort(80, "http", node_port=30080), cluster_ips=("10.96.0.3",),
                  external_ips=("203.0.113.1",), created="2025-01-01T00:00:00Z")  # fmt: skip
OTHERS = service("others", cluster_ips=("10.96.0.4",), labels={PROXY_NAME_LABEL: "other"})
SCTP = service("sctp", ServicePort(7, "echo", "SCTP"), cluster_ips=("10.96.0.5",))
FOREIGN = service("foreign", cluster_ips=("10.96.0.6",), external_ips=("2001:db8::6",))
NODE = node(OWN, "2001:db8::2")
CLUSTER = planned(DNS, DNS_PODS, WEB, WEB_PODS, HEADLESS, YOUNGER, OTHERS, SCTP, FOREIGN, NODE, own=(OWN, "127.0.0.1"))


GOES_FIRST = (
    "default/younger wants it, too; default/web:http IPv4 goes first: a ClusterIP before others, then the older"
)
NODE_PORT = "30080/tcp is a node port of default/web:http IPv4"
LABEL = f"label {PROXY_NAME_LABEL}"
ONLY_HERE = f"node ports answer on this node's own addresses within {OWN}/32, never on loopback"


@pytest.mark.parametrize(
    ("to", "summary", "notes"),
    [
        ("10.96.0.10:53/udp", "is the ClusterIP of kube-system/dns:dns IPv4", []),
        ("[fd00:96::a]:53", "is the ClusterIP of kube-system/dns:dns-tcp IPv6", []),
        ("198.51.100.1:80", "is a load balancer IP of default/web:http IPv4", []),
        ("203.0.113.1:80", "is an external IP of default/web:http IPv4", [GOES_FIRST]),
        (f"{OWN}:30080", "is a node port of default/web:http IPv4", [GOES_FIRST]),
        ("10.96.0.3:80", "is the ClusterIP of default/younger:http IPv4", []),
        (
            *("10.96.0.10:54", "is a port of a ClusterIP that no service port claims"),
            ["10.96.0.10 is the ClusterIP of kube-system/dns, which serves 53/udp, 53/tcp"],
        ),
    ],
)
def test_what_is_served(to: str, summary: str, notes: list[str]) -> None:
    found = asked(to, CLUSTER)
    assert found.summary == f"{parse(to)} {summary}"
    assert list(found.notes) == notes
    assert found.route is None or found.summary.endswith(found.route)


@pytest.mark.parametrize(
    ("to", "notes"),
    [
        (
            "203.0.113.1:53/udp",
            [f"203.0.113.1 is an external IP of default/{name}, which serves 80/tcp" for name in ("web", "younger")],
        ),
        ("198.51.100.1:81", ["198.51.100.1 is a load balancer IP of default/web, which serves 80/tcp"]),
        (
            "203.0.113.5:80",
            ["203.0.113.5 is an external IP of default/headless, which is skipped: it is headless (clusterIP None)"],
        ),
        (
            "10.96.0.4:80",
            [f"10.96.0.4 is the ClusterIP of default/others, which is left to another proxy ({LABEL})"],
        ),
        ("10.96.0.5:7/sctp", ["Service default/sctp: spec.ports[echo]: IPv4: this kernel does not know SCTP"]),
        (
            "[2001:db8::6]:80",
            ["Service default/foreign: spec.externalIPs: 2001:db8::6 is IPv6, which the service does not have"],
        ),
        (f"{OWN}:30080/udp", [NODE_PORT]),
        (f"{OWN}:30081", [f"node ports answer at {OWN}, but no service has 30081/tcp"]),
        (
            f"{OWN}:32000",
            ["32000/tcp is the health check node port of default/web:http IPv4, which pyproxy itself answers"],
        ),
        (f"{OWN}:32000/udp", [f"node ports answer at {OWN}, but no service has 32000/udp"]),
        ("172.18.0.3:32000", ["no such address: no service has 172.18.0.3, and node ports don't answer there"]),
        ("127.0.0.1:30080", [NODE_PORT, ONLY_HERE]),
        ("172.18.0.3:30080", [NODE_PORT, ONLY_HERE]),
        (
            "10.244.0.53:5353/udp",
            ["10.244.0.53:5353/udp is an endpoint of kube-system/dns:dns IPv4, reached there without any proxy"],
        ),
        ("10.9.9.9:80", ["no such address: no service has 10.9.9.9, and node ports don't answer there"]),
    ],
)
def test_why_nothing_is_served(to: str, notes: list[str]) -> None:
    found = asked(to, CLUSTER)
    assert found.summary == f"nothing is served at {parse(to)}"
    assert list(found.notes) == notes
    assert {outcome.verdict for outcome in found.outcomes} == {Verdict.NOT_HANDLED}
    assert (found.route, found.is_handled) == (None, False)


def test_a_name_of_something_outside_is_skipped() -> None:
    """Admission keeps no address of it, so it is seen only where it comes past admission."""
    facts = CLUSTER | {"services": [ALIAS]}
    assert asked("203.0.113.6:80", facts).notes == (
        "203.0.113.6 is an external IP of default/alias, which is skipped: type ExternalName is an alias of a DNS name",
    )


def test_a_service_that_waits_for_its_cluster_ip() -> None:
    facts = planned(service("new", cluster_ips=(), external_ips=("203.0.113.7",)))
    assert asked("203.0.113.7:80", facts).notes == (
        "203.0.113.7 is an external IP of default/new, which has no ClusterIP yet",
    )


def test_what_is_not_in_the_kernel_yet() -> None:
    new = service("new", ServicePort(80, node_port=30099), cluster_ips=("10.96.0.99",))
    facts = CLUSTER | {"services": [*CLUSTER["services"], admit(new)[0]]}
    assert asked("10.96.0.99:80", facts).notes == (
        "10.96.0.99 is the ClusterIP of default/new, but that is not in the kernel yet; the log says why",
    )
    assert asked(f"{OWN}:30099", facts).notes == (
        "30099/tcp is a node port of default/new, but that is not in the kernel yet; the log says why",
    )


def test_problems_of_other_ports_and_places_are_not_mentioned() -> None:
    """The new version of a service has what the kernel has not seen, beside what can't be served."""
    more = service("sctp", ServicePort(7, "echo", "SCTP"), ServicePort(80, "http"), cluster_ips=("10.96.0.5",))
    facts = CLUSTER | {"services": [admit(more)[0]]}
    assert asked("10.96.0.5:80", facts).notes == (
        "10.96.0.5 is the ClusterIP of default/sctp, but that is not in the kernel yet; the log says why",
    )
    moved = service("younger", ServicePort(80, "http"), cluster_ips=("10.96.0.98",))
    facts = CLUSTER | {"services": [admit(moved)[0]]}
    assert asked("10.96.0.98:80", facts).notes == (
        "10.96.0.98 is the ClusterIP of default/younger, but that is not in the kernel yet; the log says why",
    )


def test_a_skipped_service_is_no_rival() -> None:
    headless = service("headless", cluster_ips=("None",), external_ips=("203.0.113.1",))
    facts = CLUSTER | {"services": [admit(headless)[0]]}
    assert asked("203.0.113.1:80", facts).notes == ()
    assert len(asked("203.0.113.1:81", facts).notes) == 1


def test_a_refused_service() -> None:
    """One whose last good version is served, and one of which nothing is known."""
    mine = Problem("Service", Key("kube-system", "dns"), "spec.ports[0].port", "0 is not a port")
    never = Problem("Service", Key("default", "never"), "spec.clusterIPs[0]", "127.0.0.1 is a loopback address")
    left_out = Problem("EndpointSlice", Key("default", "web-1"), "endpoints[0].addresses[0]", "is missing")
    facts = CLUSTER | {"refused": (mine, never, left_out)}
    assert asked("10.96.0.10:53", facts).notes == (
        f"its newest version is refused, the one before is in force: {mine}",
    )
    assert asked("10.9.9.9:80", facts).notes[1:] == (
        f"not obeyed, so what it wants is not known: {mine}",
        f"not obeyed, so what it wants is not known: {never}",
    )


def test_a_crowd_at_one_address_is_counted() -> None:
    crowd = [
        service(
            f"s{number}", ServicePort(1000 + number), cluster_ips=(f"10.96.1.{number}",), external_ips=("203.0.113.1",)
        )
        for number in range(30)
    ]
    notes = asked("203.0.113.1:80", planned(*crowd)).notes
    assert len(notes) == 11
    assert notes[-1] == "20 more like these"


def test_endpoints_are_listed_and_local_ones_marked() -> None:
    found = asked("10.96.0.10:53/udp", CLUSTER)
    for outcome in found.outcomes:
        assert outcome.endpoints == (Endpoint("10.244.0.53", 5353, True), Endpoint("10.244.1.53", 5353, False))


@pytest.mark.parametrize(
    ("text", "address", "port", "transport"),
    [
        ("10.96.0.10:53/udp", "10.96.0.10", 53, "udp"),
        ("10.96.0.10:53/UDP", "10.96.0.10", 53, "udp"),
        ("10.96.0.10:65535", "10.96.0.10", 65535, "tcp"),
        ("[fd00:0:0::A]:1/sctp", "fd00::a", 1, "sctp"),
    ],
)
def test_destinations(text: str, address: str, port: int, transport: str) -> None:
    assert parse(text) == Destination(parse_ip(address), port, Transport(transport))
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            ":",
            ":80",
            "/",
            "10.0.0.1",
            "10.0.0.1:",
            "10.0.0.1:0",
            "10.0.0.1:65536",
            "10.0.0.1:80/",
            "10.0.0.1:80/icmp",
        ),
        *(
            "10.0.0.1:-1",
            "10.0.0.1:+1",
            "10.0.0.1: 1",
            "10.0.0.1:80/tcp/udp",
            "fd00::1:80",
            "[fd00::1]",
            "[fd00::1%eth0]:1",
        ),
        *(
            "[::ffff:10.0.0.1]:80",
            "localhost:80",
            "10.0.0.01:80",
            "10.0.0.1:\N{ARABIC-INDIC DIGIT ONE}",
            "a\0:1",
            "\ud800:1",
        ),
        *("<img src=x>:80", "10.0.0.1:80/<b>", "x" * 100_000),
    ],
)
def test_what_is_no_destination(text: str) -> None:
    with pytest.raises(ValueError, match="is not a destination such as") as caught:
        parse(text)
    said = str(caught.value)
    assert said.isascii()
    assert said.isprintable()
    assert len(said) < 200


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("scope", [*Scope, None])
def test_sockets_that_are_connected_themselves_keep_their_source(scope: Scope | None, host: Host) -> None:
    """And are inside, however pods are detected; but packets of pods are masqueraded if all must be."""
    masquerade, external, short_circuit = (False, LOCAL, ALL)
    route = replace(
        ROUTE,
        frontends=(Frontend(SERVED, 80, scope),) if scope else (),
        node_port=None if scope else 80,
        internal=ALL,
        external=external,
        short_circuit=short_circuit,
        masquerade_external=masquerade,
    )
    to = Destination(OWN if scope is None else SERVED, 80, route.transport)
    known = known_of(route, host, is_own=scope is None)
    found = outcomes(explain(to, replace(known, connects_sockets=True)))
    others = outcomes(explain(to, known))
    assert {asker: found[asker] for asker in (Asker.NODE, Asker.OUTSIDE)} == {
        asker: others[asker] for asker in (Asker.NODE, Asker.OUTSIDE)
    }
    packets = scope is Scope.CLUSTER_IP and host.masquerade_all
    assert found[Asker.POD].source is (Seen.MASQUERADED if packets else Seen.KEPT)
    assert {one.address for one in found[Asker.POD].endpoints} == {backend.ip for backend in ALL.backends}
