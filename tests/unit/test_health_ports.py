"""Health-check node ports over real sockets on loopback: what load balancers hear as services come, move and go."""

import http.client
import json
import random
import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from pyproxy.address import Prefix
from pyproxy.health_ports import HealthPorts
from pyproxy.http_server import Address, Handler, HttpServer, Listener
from pyproxy.objects import Conditions, EndpointSlice, Key, Service, ServicePort, SlicePort
from pyproxy.observer import Sync
from pyproxy.policy import Site, routes_of
from pyproxy.problem import Problem
from pyproxy.table import Host, Route, RouteId, Table
from tests.unit.samples import OTHER_NODE, THIS_NODE, admitted, endpoint, endpoint_slice, service

V4, V6 = "127.0.0.1", "::1"
FINISHING = Conditions(ready=False, serving=True, terminating=True)
NOT_READY = Conditions(ready=False)


@pytest.fixture(scope="module")
def server() -> HttpServer:
    server = HttpServer()
    server.start()
    return server


class Watched(HttpServer):
    """Knows what is open."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self.tries: list[list[Address]] = []
        self.made: list[Listener] = []

    def listen(self, addresses: list[Address], handler: Handler, *, slow: bool = False) -> Listener:
        assert not slow  # probes must not wait for others
        self.tries.append(addresses)
        self.made.append(self._server.listen(addresses, handler))
        return self.made[-1]


class World:
    """Services with their endpoints, as a controller would announce them."""

    def __init__(self, server: HttpServer) -> None:
        self.server = Watched(server)
        self.problems: list[Problem] = []
        self.healthy = True
        self.ports = HealthPorts(self.server, lambda: self.healthy, self.problems.append)
        self._routes: dict[Key, dict[RouteId, Route]] = {}
        self._written = Table({}, Host())
        self.prefixes = [f"{V4}/32", f"{V6}/128"]

    def put(self, web: Service, *slices: EndpointSlice) -> None:
        routes, _ = routes_of(admitted(web), map(admitted, slices), Site(THIS_NODE))
        self._routes[web.key] = {route.id: route for route in routes}

    def remove(self, name: str) -> None:
        del self._routes[Key("default", name)]

    def routes(self) -> dict[RouteId, Route]:
        return {id: route for some in self._routes.values() for id, route in some.items()}

    def sync(self, *, full: bool = False) -> None:
        """What changed since the last one, or everything; the latter also where a controller must."""
        now, before = Table(self.routes(), Host(tuple(map(Prefix, self.prefixes)))), self._written
        changed = frozenset(id for id in {*now.routes, *before.routes} if now.routes.get(id) != before.routes.get(id))
        self._written = now
        self.ports.synced(Sync(before, now, None if full or now.host != before.host else changed, 0.1))


@pytest.fixture
def world(server: HttpServer) -> Iterator[World]:
    world = World(server)
    yield world
    for listener in world.server.made:
        listener.close()


@pytest.fixture
def port() -> int:
    return free_port()


def free_port() -> int:
    """Below the range from which the kernel serves those who take any."""
    while True:
        port = random.randint(10_000, 30_000)
        try:
            for host, family in (("0.0.0.0", socket.AF_INET), ("::", socket.AF_INET6)):
                socket.create_server((host, port), family=family).close()
        except OSError:
            continue
        return port


def web(port: int, name: str = "web", **spec: Any) -> Service:
    """Dual stack, with a health check on ``port``."""
    number = int.from_bytes(name.encode()) % 250 + 1
    fields: dict[str, Any] = {
        "type": "LoadBalancer",
        "external_traffic_policy": "Local",
        "health_check_node_port": port,
        "cluster_ips": (f"10.96.0.{number}", f"fd00:10:96::{number:x}"),
    }
    return service(name, **{**fields, **spec})


def pods(*nodes: str, name: str = "web", family: str = "IPv4", conditions: Conditions | None = None) -> EndpointSlice:
    """One endpoint on each of ``nodes``."""
    net = "10.244.0." if family == "IPv4" else "fd00:10:244::"
    ends = [endpoint(f"{net}{number}", node, conditions=conditions) for number, node in enumerate(nodes, 1)]
    return endpoint_slice(*ends, name=f"{name}-{family.lower()}", of=name, family=family)


def ask(host: str, port: int, path: str = "/") -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(host, port, timeout=15)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def count(host: str, port: int) -> int | None:
    """Endpoints here, as told; None if nobody listens."""
    try:
        status, headers, body = ask(host, port)
    except ConnectionRefusedError:
        return None
    told = json.loads(body)["localEndpoints"]
    assert isinstance(told, int)
    assert headers["X-Load-Balancing-Endpoint-Weight"] == str(told)
    assert status == (200 if told else 503)
    return told


def named(host: str, port: int) -> str:
    return str(json.loads(ask(host, port)[2])["service"]["name"])


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize(
    ("nodes", "healthy", "status", "told"),
    [
        ((THIS_NODE,), True, 200, 1),
        ((THIS_NODE, THIS_NODE, OTHER_NODE), True, 200, 2),
        ((OTHER_NODE,), True, 503, 0),
        ((), True, 503, 0),
        ((THIS_NODE, THIS_NODE), False, 503, 2),
        ((), False, 503, 0),
    ],
)
def test_the_answer(
    world: World, port: int, host: str, nodes: tuple[str, ...], healthy: bool, status: int, told: int
) -> None:
    world.put(web(port), pods(*nodes))
    world.sync()
    world.healthy = healthy
    for path in ("/", "/healthz", "/any?thing"):
        got, headers, body = ask(host, port, path)
        flag = "true" if healthy else "false"
        assert (got, body.decode().replace(" ", "")) == (
            status,
            f'{{"service":{{"namespace":"default","name":"web"}},"localEndpoints":{told},"serviceProxyHealthy":{flag}}}',
        )
        assert headers["X-Load-Balancing-Endpoint-Weight"] == str(told)
        assert headers["Content-Type"] == "application/json"
    assert world.problems == []


def test_what_is_counted_are_ready_addresses_of_this_node(world: World, port: int) -> None:
    two_ports = web(port)
    two_ports.spec.ports = (ServicePort(80, "a"), ServicePort(81, "b"))
    one = endpoint_slice(
        endpoint("10.244.0.1", THIS_NODE),
        endpoint("10.244.0.2", THIS_NODE, conditions=FINISHING),
        endpoint("10.244.0.3", THIS_NODE, conditions=NOT_READY),
        endpoint("10.244.0.4", OTHER_NODE),
        ports=tuple(slice_port(name, number) for name, number in (("a", 80), ("b", 81))),
    )
    more = endpoint_slice(
        endpoint("10.244.0.1", THIS_NODE), endpoint("10.244.0.5", THIS_NODE), name="web-2", ports=(slice_port("b", 81),)
    )
    world.put(two_ports, one, more)
    world.sync()
    assert count(V4, port) == 2  # .1 and .5, however many ports and slices have them


def slice_port(name: str, number: int) -> SlicePort:
    return SlicePort(name, "TCP", number)


def test_both_families_count_on_both_addresses(world: World, port: int) -> None:
    world.put(web(port), pods(THIS_NODE), pods(THIS_NODE, family="IPv6"))
    world.sync()
    assert (count(V4, port), count(V6, port)) == (2, 2)
    for nodes, told in (((THIS_NODE, THIS_NODE), 3), ((), 1), ((THIS_NODE,), 2)):  # of one family alone
        world.put(web(port), pods(THIS_NODE), pods(*nodes, family="IPv6"))
        world.sync()
        assert (count(V4, port), count(V6, port)) == (told, told)


def test_it_follows_the_endpoints(world: World, port: int) -> None:
    for nodes, told in (((), 0), ((THIS_NODE,), 1), ((THIS_NODE, THIS_NODE), 2), ((OTHER_NODE,), 0), ((THIS_NODE,), 1)):
        world.put(web(port), pods(*nodes))
        world.sync()
        assert count(V4, port) == told
    world.put(web(port), pods(THIS_NODE, conditions=FINISHING))
    world.sync()
    assert count(V4, port) == 0  # while what is established there finishes
    assert len(world.server.made) == 2  # of each family; the port stayed open through all of it


@pytest.mark.parametrize("full", [False, True])
def test_a_service_that_goes_takes_its_port_along(world: World, port: int, full: bool) -> None:
    world.put(web(port), pods(THIS_NODE))
    world.put(web(other := free_port(), "other"), pods(THIS_NODE, name="other"))
    world.sync(full=full)
    assert (count(V4, port), count(V4, other)) == (1, 1)
    world.remove("web")
    world.sync(full=full)
    assert (count(V4, port), count(V6, port), count(V4, other)) == (None, None, 1)
    world.remove("other")
    world.sync(full=full)
    assert count(V4, other) is None


@pytest.mark.parametrize(
    "spec",
    [
        {"external_traffic_policy": "Cluster"},
        {"type": "NodePort"},
        {"health_check_node_port": 0},
        {"type": "ExternalName"},
    ],
    ids=str,
)
def test_a_service_that_needs_no_check_any_more_closes_its_port(world: World, port: int, spec: dict[str, Any]) -> None:
    world.put(web(port), pods(THIS_NODE))
    world.sync()
    assert count(V4, port) == 1
    world.put(web(port, **spec), pods(THIS_NODE))
    world.sync()
    assert count(V4, port) is None
    world.put(web(port), pods(THIS_NODE))
    world.sync()
    assert count(V4, port) == 1


def test_a_port_of_the_service_that_is_renamed_changes_nothing(world: World, port: int) -> None:
    for name in ("", "a", "b"):
        named_port = web(port)
        named_port.spec.ports = (ServicePort(80, name),)
        piece = pods(THIS_NODE)
        piece.ports = (slice_port(name, 8080),)
        world.put(named_port, piece)
        world.sync()
        assert count(V4, port) == 1, name
    assert len(world.server.made) == 2


def test_a_service_moves_to_another_port(world: World, port: int) -> None:
    world.put(web(port), pods(THIS_NODE))
    world.sync()
    world.put(web(other := free_port()), pods(THIS_NODE))
    world.sync()
    assert (count(V4, port), count(V4, other)) == (None, 1)


@pytest.mark.parametrize("full", [False, True])
def test_two_services_swap_their_ports_in_one_sync(world: World, port: int, full: bool) -> None:
    other = free_port()
    for one, two in (("a", "b"), ("b", "a"), ("a", "b")):
        world.put(web(port, one), pods(THIS_NODE, name=one))
        world.put(web(other, two), pods(THIS_NODE, name=two))
        world.sync(full=full)
        assert (named(V4, port), named(V4, other)) == (one, two)
    assert world.problems == []


def test_a_port_passes_to_another_service(world: World, port: int) -> None:
    world.put(web(port, "z"), pods(THIS_NODE, name="z"))
    world.sync()
    world.remove("z")
    world.put(web(port, "a"), pods(THIS_NODE, THIS_NODE, name="a"))
    world.sync()
    assert (named(V4, port), count(V4, port), world.problems) == ("a", 2, [])


def test_two_services_of_one_port_are_a_conflict_until_one_goes(world: World, port: int) -> None:
    world.put(web(port, "first"), pods(THIS_NODE, name="first"))
    world.sync()
    for name in ("another", "third"):
        world.put(web(port, name), pods(name=name))
    world.sync()
    world.sync()
    assert named(V4, port) == "first"
    reason = f"port {port} is the health check of default/first"
    assert world.problems == [
        Problem("Service", Key("default", name), "spec.healthCheckNodePort", reason, "Conflict")
        for name in ("another", "third")
    ]
    world.remove("first")
    world.sync()
    assert named(V4, port) == "another"
    world.remove("another")
    world.sync()
    assert named(V4, port) == "third"
    assert len(world.problems) == 2


def test_a_port_in_use_is_told_once_and_tried_again_at_each_verification(world: World, port: int) -> None:
    with socket.create_server((V4, port)):
        world.put(web(port), pods(THIS_NODE))
        for full in (False, False, True, False):
            world.sync(full=full)
        reason = f"port {port} of {V4} can't be opened: Address already in use"
        assert world.problems == [
            Problem("Service", Key("default", "web"), "spec.healthCheckNodePort", reason, "Conflict")
        ]
        assert count(V6, port) == 1  # the other address is none the worse
        tries = len(world.server.tries)
        world.ports.verified()
        assert len(world.server.tries) == tries + 1
    world.ports.verified()
    assert (count(V4, port), count(V6, port)) == (1, 1)
    tries = len(world.server.tries)
    world.ports.verified()
    assert (len(world.server.tries), len(world.problems)) == (tries, 1)


def test_a_service_that_goes_while_its_port_is_taken_is_forgotten(world: World, port: int) -> None:
    with socket.create_server((V4, port)):
        world.put(web(port), pods(THIS_NODE))
        world.sync()
        world.remove("web")
        world.sync()
    world.sync()
    assert count(V4, port) is None
    with socket.create_server((V4, port)):
        world.put(web(port), pods(THIS_NODE))
        world.sync()
    assert len(world.problems) == 2  # a new service, a new word


def test_the_nodes_addresses_change(world: World, port: int) -> None:
    world.put(web(port), pods(THIS_NODE))
    for addresses in (("127.0.0.1",), ("127.0.0.2", "::1"), ("127.0.0.1", "127.0.0.3"), (), ("127.0.0.2",)):
        world.prefixes = [f"{address}/{128 if ':' in address else 32}" for address in addresses]
        world.sync()
        told = {host: count(host, port) for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "::1")}
        assert told == {host: 1 if host in addresses else None for host in told}
    assert world.problems == []


def test_a_conflict_on_a_former_address_is_over_with_it(world: World, port: int) -> None:
    with socket.create_server((V4, port)):
        world.put(web(port), pods(THIS_NODE))
        world.sync()
        assert len(world.problems) == 1
        world.prefixes = ["127.0.0.2/32"]
        world.sync()
        assert count("127.0.0.2", port) == 1


@pytest.mark.parametrize(
    ("prefixes", "served", "refused"),
    [
        (["0.0.0.0/0"], ["127.0.0.1", "127.0.0.9"], ["::1"]),
        (["::/0"], ["::1"], ["127.0.0.1"]),
        (["0.0.0.0/0", "::/0"], ["127.0.0.1", "127.0.0.9", "::1"], []),
        (["0.0.0.0/0", "::1/128"], ["127.0.0.1", "127.0.0.9", "::1"], []),
        (["127.0.0.8/29", "127.0.0.2/32"], ["127.0.0.9", "127.0.0.2"], ["::1"]),
    ],
    ids=str,
)
def test_wide_prefixes(world: World, port: int, prefixes: list[str], served: list[str], refused: list[str]) -> None:
    world.prefixes = prefixes
    world.put(web(port), pods(THIS_NODE))
    world.sync()
    assert [count(host, port) for host in served] == [1] * len(served)
    assert [count(host, port) for host in refused] == [None] * len(refused)
    assert world.problems == []


def test_other_addresses_of_the_node_say_nothing_of_the_service(world: World, port: int) -> None:
    """One has to listen on all of them where a range is allowed, but most are not asked to answer."""
    world.prefixes = ["127.0.0.8/29", "fd00::/8"]
    world.put(web(port), pods(THIS_NODE))
    world.sync()
    assert count("127.0.0.8", port) == 1
    for host in ("127.0.0.1", "127.0.0.16", "::1"):
        status, headers, body = ask(host, port)
        assert (status, body) == (404, b"node ports don't answer here\n")
        assert "X-Load-Balancing-Endpoint-Weight" not in headers


def test_services_without_a_health_check_open_nothing(world: World) -> None:
    world.put(service(), pods(THIS_NODE))
    for full in (True, False):
        world.sync(full=full)
    assert world.server.tries == []


class Probed(dict[RouteId, Route]):
    """Routes during whose reading a load balancer asks, again and again."""

    def __init__(self, routes: Mapping[RouteId, Route], port: int) -> None:
        super().__init__(routes)
        self._port = port
        self.told: list[int | None] = []

    def get(self, key: RouteId, default: Any = None) -> Any:
        self.told.append(count(V4, self._port))
        return super().get(key, default)

    def values(self) -> Any:
        for route in super().values():
            self.told.append(count(V4, self._port))
            yield route


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("old_first", [False, True])
def test_a_probe_during_a_sync_is_not_told_that_nobody_is_here(
    world: World, port: int, full: bool, old_first: bool
) -> None:
    """Though the port of the service gets another name, which makes it another route."""
    tables = []
    for name in ("old", "new"):
        named_port, piece = web(port, cluster_ips=("10.96.0.1",)), pods(THIS_NODE)
        named_port.spec.ports, piece.ports = (ServicePort(80, name),), (slice_port(name, 8080),)
        world.put(named_port, piece)
        if name == "old":
            world.sync()
        tables.append(world.routes())
    before, now = tables
    probed = Probed(now, port)
    changed = dict.fromkeys([*before, *now] if old_first else [*now, *before]).keys()
    host = Host(tuple(map(Prefix, world.prefixes)))
    world.ports.synced(Sync(Table(before, host), Table(probed, host), None if full else changed, 0.1))
    assert probed.told
    assert set(probed.told) == {1}
    assert count(V4, port) == 1
