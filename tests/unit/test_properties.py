"""What holds for every history of a cluster: a small one, in which names, ports and addresses collide often."""

from collections.abc import Iterable
from random import Random
from typing import TypeVar

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

from pyproxy.address import Family, family_of, parse_ip
from pyproxy.admission import Refused, admit
from pyproxy.host import HostOptions
from pyproxy.objects import (
    Conditions,
    Delete,
    Endpoint,
    EndpointSlice,
    Event,
    Ingress,
    Key,
    Node,
    Object,
    Service,
    ServicePort,
    SlicePort,
    Upsert,
)
from pyproxy.planner import Planner
from pyproxy.problem import Problem
from pyproxy.store import Store
from pyproxy.table import Route, RouteId, Table
from tests.unit.samples import OTHER_NODE, OTHER_ZONE, THIS_NODE, THIS_ZONE, endpoint, endpoint_slice, node, service

T = TypeVar("T")

STEADY = settings(deadline=None, max_examples=100)  # the time of one example says nothing on a busy machine
OPTIONS = HostOptions(THIS_NODE)
NAMES = ("a", "b", "c")
POLICIES = st.sampled_from(["Cluster", "Local"])
EXTERNAL_IPS = ("198.51.100.1", "198.51.100.2", "10.96.0.1", "2001:db8::1")
GOOD = ("10.244.1.1", "10.244.1.2", "10.244.2.1", "fd00:244::1", "fd00:244::2")
BAD = ("127.0.0.1", "169.254.1.1", "224.0.0.1", "0.0.0.0", "::1", "fe80::1", "::ffff:10.0.0.1", "x", "")


def some(strategy: SearchStrategy[T], most: int) -> SearchStrategy[tuple[T, ...]]:
    return st.lists(strategy, max_size=most, unique=True).map(tuple)


@st.composite
def services(draw: DrawFn) -> Service:
    name = draw(st.sampled_from(NAMES))
    number = NAMES.index(name) + 1
    addresses = st.sampled_from([(f"10.96.0.{number}",), (f"10.96.0.{number}", f"fd00:96::{number}"), ("None",)])
    node_ports = st.sampled_from([0, 0, 30001, 30002])
    ports = [
        ServicePort(80, "http", draw(st.sampled_from(["TCP", "UDP"])), draw(node_ports)),
        ServicePort(81, "more", "TCP", draw(node_ports)),
    ]
    return service(
        name,
        *ports[: draw(st.integers(1, 2))],
        cluster_ips=draw(addresses),
        external_ips=draw(some(st.sampled_from(EXTERNAL_IPS), 2)),
        ingress=draw(some(st.sampled_from(EXTERNAL_IPS), 1).map(lambda ips: tuple(map(Ingress, ips)))),
        internal_traffic_policy=draw(POLICIES),
        external_traffic_policy=draw(POLICIES),
        created=draw(st.sampled_from([None, "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"])),
        labels=draw(st.sampled_from([None, None, None, {"service.kubernetes.io/service-proxy-name": "other"}])),
    )


@st.composite
def endpoints(draw: DrawFn) -> Endpoint:
    flag = st.sampled_from([None, True, False])
    return endpoint(
        draw(st.sampled_from(GOOD * 4 + BAD)),
        draw(st.sampled_from([THIS_NODE, OTHER_NODE, None])),
        conditions=draw(st.none() | st.builds(Conditions, flag, flag, flag)),
        zones=draw(st.none() | some(st.sampled_from([THIS_ZONE, OTHER_ZONE]), 2)),
        nodes=draw(st.none() | some(st.sampled_from([THIS_NODE, OTHER_NODE]), 1)),
    )


@st.composite
def slices(draw: DrawFn) -> EndpointSlice:
    ports = (SlicePort("http", "TCP", draw(st.sampled_from([8080, 9090, None]))), SlicePort("more", "TCP", 8181))
    return endpoint_slice(
        *draw(st.lists(endpoints(), max_size=4)),
        name=draw(st.sampled_from(["s1", "s2", "s3", "s4"])),
        of=draw(st.sampled_from(NAMES)),
        ports=ports[: draw(st.integers(0, 2))],
        family=draw(st.sampled_from(["IPv4", "IPv4", "IPv6", "FQDN"])),
    )


def nodes() -> SearchStrategy[Node]:
    zones = st.sampled_from([THIS_ZONE, OTHER_ZONE, None])
    addresses = st.sampled_from([("192.0.2.1",), ("192.0.2.1", "2001:db8::1"), ()])
    names = st.sampled_from([THIS_NODE, THIS_NODE, OTHER_NODE])
    return st.builds(lambda name, ips, zone: node(*ips, name=name, zone=zone), names, addresses, zones)


def objects() -> SearchStrategy[Object]:
    return st.one_of(services(), slices(), slices(), nodes())


def events() -> SearchStrategy[Event]:
    gone = st.one_of(
        st.builds(Delete, st.just(Service), st.builds(Key, st.just("default"), st.sampled_from(NAMES))),
        st.builds(Delete, st.just(EndpointSlice), st.builds(Key, st.just("default"), st.sampled_from(["s1", "s2"]))),
        st.just(Delete(Node, Key("", THIS_NODE))),
    )
    return st.one_of(objects().map(admitted_event), objects().map(admitted_event), gone)


def admitted_event(thing: Object) -> Event:
    return Upsert(admit(thing)[0])


def planner_of(happened: Iterable[Event]) -> tuple[Planner, Store]:
    store = Store(THIS_NODE)
    store.apply(happened)
    return Planner(store, OPTIONS, lambda _: None), store


def contents(store: Store) -> list[Event]:
    kept: list[Object] = [*store.services.values(), *store.slices.values()]
    return [Upsert(thing) for thing in kept + ([store.node] if store.node else [])]


def unordered(problems: dict[Key, tuple[Problem, ...]]) -> dict[Key, set[Problem]]:
    return {key: set(some) for key, some in problems.items()}


@STEADY
@given(st.lists(events(), max_size=12), st.randoms(use_true_random=False))
def test_the_order_in_which_objects_arrive_does_not_matter(happened: list[Event], random: Random) -> None:
    _, store = planner_of(happened)
    straight, shuffled = contents(store), contents(store)
    random.shuffle(shuffled)
    (one, _), (other, _) = planner_of(straight), planner_of(shuffled)
    assert one.plan()[0] == other.plan()[0]
    assert unordered(one.problems) == unordered(other.problems)


@STEADY
@given(st.lists(events(), max_size=12))
def test_planning_step_by_step_equals_planning_from_scratch(happened: list[Event]) -> None:
    planner, store = planner_of([])
    for event in happened:
        store.apply([event])
        table, _ = planner.plan()
        fresh, _ = planner_of(contents(store))
        assert table == fresh.plan()[0]
        assert unordered(planner.problems) == unordered(fresh.problems)


@STEADY
@given(st.lists(st.lists(events(), max_size=4), max_size=5))
def test_changed_names_exactly_the_routes_that_differ(batches: list[list[Event]]) -> None:
    planner, store = planner_of([])
    before, _ = planner.plan()
    for batch in batches:
        store.apply(batch)
        after, changed = planner.plan()
        differing = {id for id in {*before.routes, *after.routes} if before.routes.get(id) != after.routes.get(id)}
        assert changed == (None if before.host != after.host else differing)
        before = after


@STEADY
@given(st.lists(events(), max_size=12))
def test_a_plan_that_was_handed_out_never_changes(happened: list[Event]) -> None:
    planner, store = planner_of([])
    plans: list[tuple[Table, dict[RouteId, Route]]] = []
    for event in happened:
        store.apply([event])
        table, _ = planner.plan()
        plans.append((table, dict(table.routes)))
    assert all(table.routes == routes for table, routes in plans)


@STEADY
@given(st.lists(events(), max_size=12))
def test_planning_twice_changes_nothing(happened: list[Event]) -> None:
    planner, _ = planner_of(happened)
    table, _ = planner.plan()
    assert planner.plan() == (table, set())


@STEADY
@given(st.lists(slices(), max_size=4), services())
def test_no_ineligible_endpoint_is_in_a_pool(pieces: list[EndpointSlice], web: Service) -> None:
    web.metadata.labels = None
    raw = {piece.metadata.name: usable(piece, web.metadata.name) for piece in pieces}
    found = {address for piece in raw.values() for address in piece}
    things: list[Object] = [*pieces, web]
    planner, _ = planner_of(map(admitted_event, things))
    for route in planner.plan()[0].routes.values():
        for pool in route.pools:
            for backend in pool.backends:
                assert family_of(backend.ip) is route.id.family
                assert (backend.ip, backend.is_local) in found
        if not route.masquerade_external:
            assert all(backend.is_local for backend in route.external.backends)
        if web.spec.internal_traffic_policy == "Local":
            assert all(backend.is_local for backend in route.internal.backends)


def usable(piece: EndpointSlice, name: str) -> set[tuple[str, bool]]:
    """Address and whether it is local, of what could ever be in a pool of service ``name``."""
    if piece.service_key.name != name:
        return set()
    result = set()
    for one in piece.endpoints or ():
        flags = one.conditions or Conditions()
        leaving = flags.serving is not False and flags.terminating is True
        good = one.addresses[0] in GOOD and family_of(parse_ip(one.addresses[0])).value == piece.address_type
        if good and (flags.ready is not False or leaving):
            result.add((one.addresses[0], one.node_name == THIS_NODE))
    return result


@STEADY
@given(st.lists(services(), min_size=2, max_size=8))
def test_the_oldest_service_holds_what_several_ask_for(given_services: list[Service]) -> None:
    planner, store = planner_of(admitted_event(web) for web in given_services)
    routes = planner.plan()[0].routes
    wishes: dict[tuple[object, ...], list[tuple[bool, str, RouteId]]] = {}
    for key, web in store.services.items():
        age = web.metadata.creation_timestamp or "unknown, so youngest"
        ips = {*(web.spec.external_ips or ()), *ingress_of(web)}
        cluster_ips = [ip for ip in web.spec.cluster_ips or () if ip != "None"]
        for port in web.spec.ports or ():
            for cluster_ip in cluster_ips:
                family = family_of(parse_ip(cluster_ip))
                route_id = RouteId(key.namespace, key.name, port.name, family)
                wishes.setdefault((port.protocol, cluster_ip, port.port), []).append((False, age, route_id))
                for ip in ips - {cluster_ip}:
                    if family_of(parse_ip(ip)) is family:
                        wishes.setdefault((port.protocol, ip, port.port), []).append((True, age, route_id))
                if port.node_port:
                    wishes.setdefault((port.protocol, family, port.node_port), []).append((True, age, route_id))
    for (protocol, where, number), wanting in wishes.items():
        first = min(wanting, key=lambda wish: (*wish[:2], wish[2][:3]))
        assert holders(routes.values(), str(protocol), where, number) == [first[2]]


def ingress_of(web: Service) -> list[str]:
    balancer = web.status.load_balancer if web.status else None
    return [entry.ip for entry in (balancer.ingress if balancer else None) or ()]


def holders(routes: Iterable[Route], protocol: str, where: object, number: object) -> list[RouteId]:
    """Who serves port ``number`` of address ``where``, or node port ``number`` in family ``where``."""
    result = []
    for route in routes:
        if route.transport.value != protocol.lower():
            continue
        if isinstance(where, Family):
            result += [route.id] * (route.id.family is where and route.node_port == number)
        else:
            result += [route.id for frontend in route.frontends if (frontend.address, frontend.port) == (where, number)]
    return result


@STEADY
@given(st.lists(st.sampled_from([*GOOD, *BAD, "10.96.0.1"]), min_size=1, max_size=3))
def test_whatever_admission_lets_through_can_be_planned_and_removed(addresses: list[str]) -> None:
    try:
        web = admitted_event(service(cluster_ips=tuple(addresses), external_ips=tuple(addresses)))
    except Refused:
        return
    planner, store = planner_of([web])
    planner.plan()
    store.apply([Delete(Service, Key("default", "web"))])
    assert planner.plan()[0].routes == {}
