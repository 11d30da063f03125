"""The status page's numbers, and what one finds by searching."""

import itertools
import json
import sys
import time
import weakref
from collections.abc import Iterator
from datetime import UTC, datetime
from threading import Thread
from typing import Any

import pytest

from pyproxy import __version__
from pyproxy.connection import Connection
from pyproxy.objects import Delete, Ingress, Key, Service, ServicePort, SlicePort, Upsert
from pyproxy.observer import Sync
from pyproxy.problem import Problem
from pyproxy.status import Status
from pyproxy.table import Host, ModeError, Route, RouteId, Table
from tests.unit.samples import OTHER_NODE, THIS_NODE, endpoint, endpoint_slice, service, table

EMPTY = Table({}, Host())


@pytest.fixture
def status() -> Status:
    return Status("nftables", THIS_NODE)


def shop() -> Table:
    """Dual-stack DNS, a load balancer, and a service without endpoints."""
    dns = service(
        *("kube-dns", ServicePort(53, "dns", "UDP"), ServicePort(53, "dns-tcp")),
        namespace="kube-system",
        cluster_ips=("10.96.0.10", "fd00:10:96::a"),
    )
    dns_ports = (SlicePort("dns", "UDP", 5353), SlicePort("dns-tcp", "TCP", 5353))
    dns_slices = [
        endpoint_slice(
            pod, name=f"dns-{number}", of="kube-dns", namespace="kube-system", ports=dns_ports, family=family
        )
        for number, (family, pod) in enumerate(
            (("IPv4", endpoint("10.244.0.53", THIS_NODE)), ("IPv6", endpoint("fd00:10:244::53", OTHER_NODE)))
        )
    ]
    web = service(
        *("web", ServicePort(443, "https", node_port=30443)),
        type="LoadBalancer",
        external_ips=("198.51.100.1",),
        ingress=(Ingress("198.51.100.2"),),
        session_affinity="ClientIP",
        external_traffic_policy="Local",
    )
    pods = (endpoint("10.244.0.2", THIS_NODE), endpoint("10.244.1.2", OTHER_NODE))
    web_slice = endpoint_slice(*pods, ports=(SlicePort("https", "TCP", 8443),))
    return table(dns, *dns_slices, web, web_slice, service("empty", cluster_ips=("10.96.0.3",)))


def synced(now: Table, changed: frozenset[RouteId] | None = None) -> Sync:
    return Sync(EMPTY, now, changed, 0.25)


def seconds(text: str) -> float:
    assert text.endswith("Z")
    return datetime.fromisoformat(text).astimezone(UTC).timestamp()


def found(status: Status, search: str) -> list[str]:
    """Service, port and family of what the search finds."""
    overview = status.overview(search)
    assert overview["matching"] == len(overview["table"])
    return [f"{row['service']}:{row['port']} {row['family']}" for row in overview["table"]]


def test_before_the_first_sync(status: Status) -> None:
    before = time.time()
    overview = status.overview("")
    assert (overview["version"], overview["mode"], overview["node"]) == (__version__, "nftables", THIS_NODE)
    assert [overview[name] for name in ("services", "endpoints", "routes", "matching")] == [0, 0, 0, 0]
    assert (overview["lastSync"], overview["failing"], overview["errors"], overview["table"]) == (None, None, [], [])
    assert (overview["pending"], overview["api"]) == ({"changes": 0, "seconds": None}, [])
    assert seconds(overview["started"]) <= seconds(overview["now"])
    assert before <= seconds(overview["now"]) + 0.001 <= time.time() + 0.001
    assert (status.has_synced, status.last_sync) == (False, None)


def test_the_numbers_of_the_cluster(status: Status) -> None:
    status.synced(synced(shop()))
    overview = status.overview("")
    assert (overview["services"], overview["routes"], overview["matching"]) == (3, 6, 6)
    assert overview["endpoints"] == 4  # each once, though TCP and UDP share theirs, and pools overlap
    assert overview["lastSync"].keys() == {"at", "seconds", "full", "changed"}
    assert seconds(overview["lastSync"]["at"]) == pytest.approx(status.last_sync, abs=0.001)


def test_what_was_synced_last(status: Status) -> None:
    now = shop()
    some = frozenset(list(now.routes)[:2])
    status.synced(synced(now))
    first = status.overview("")["lastSync"]
    assert (first["full"], first["changed"], first["seconds"]) == (True, 6, 0.25)
    status.synced(Sync(now, now, some, 0.5))
    second = status.overview("")["lastSync"]
    assert (second["full"], second["changed"], second["seconds"]) == (False, 2, 0.5)
    status.synced(Sync(now, now, frozenset(), 0.75))  # nothing was written
    assert status.overview("")["lastSync"] == second
    status.failed(ModeError("no"))
    assert status.overview("")["lastSync"] == second


def test_a_first_sync_that_had_nothing_to_write_is_one(status: Status) -> None:
    status.synced(synced(EMPTY))
    assert status.has_synced
    assert status.overview("")["lastSync"]["changed"] == 0


def test_the_table_before_is_not_kept(status: Status) -> None:
    class Routes(dict[RouteId, Route]):
        pass

    before, now = Table(Routes(), Host()), shop()
    kept = weakref.ref(before.routes)
    status.synced(Sync(EMPTY, before, None, 0.1))
    status.synced(Sync(before, now, None, 0.1))
    del before
    assert kept() is None


def test_changes_are_pending_until_a_sync(status: Status) -> None:
    status.took_in([Upsert(service()), Upsert(endpoint_slice())])
    status.took_in([Delete(Service, Key("default", "web"))])
    status.pending_since = lambda: time.monotonic() - 100
    status.failed(ModeError("no"))
    pending = status.overview("")["pending"]
    assert pending["changes"] == 3
    assert pending["seconds"] >= 100
    status.pending_since = lambda: None
    status.synced(Sync(EMPTY, EMPTY, frozenset(), 0.1))
    assert status.overview("")["pending"] == {"changes": 0, "seconds": None}


def test_a_failing_kernel_is_shown_until_it_recovers_and_remembered(status: Status) -> None:
    status.failed(ModeError("no memory"))
    status.failed(ModeError("still no memory"))
    overview = status.overview("")
    assert overview["failing"] == "still no memory"
    assert [error["text"] for error in overview["errors"]] == [
        *("sync failed: still no memory", "sync failed: no memory")
    ]
    status.synced(synced(shop()))
    assert status.overview("")["failing"] is None
    assert len(status.overview("")["errors"]) == 2


def test_the_last_errors_are_kept_newest_first(status: Status) -> None:
    for number in range(100):
        status.note(Problem("Service", Key("default", f"s{number}"), "spec.type", "is odd"))
    errors = status.overview("")["errors"]
    assert [error["text"] for error in errors] == [
        f"Service default/s{number}: spec.type: is odd" for number in range(99, 79, -1)
    ]
    times = [seconds(error["at"]) for error in errors]
    assert times == sorted(times, reverse=True)


def test_how_it_stands_with_the_api(status: Status) -> None:
    one = Connection("Service")
    status.connections = lambda: [one, Connection("Node", since=0.5)]
    one.lists = 3
    one.now("401", "who are you?")
    first, second = status.overview("")["api"]
    expected = {"kind": "Service", "state": "401", "error": "who are you?", "lists": 3, "watches": 0}
    assert first.items() >= expected.items()
    assert (second["state"], second["since"]) == ("connecting", "1970-01-01T00:00:00.500Z")


def test_a_row_says_all_of_a_route(status: Status) -> None:
    status.synced(synced(shop()))
    (row,) = status.overview("web")["table"]
    here = {"address": "10.244.0.2", "port": 8443, "local": True}
    there = {"address": "10.244.1.2", "port": 8443, "local": False}
    assert row == {
        "service": "default/web",
        "port": "https",
        "family": "IPv4",
        "protocol": "TCP",
        "frontends": [
            {"address": "10.96.0.1", "port": 443, "scope": "ClusterIP"},
            {"address": "198.51.100.1", "port": 443, "scope": "ExternalIP"},
            {"address": "198.51.100.2", "port": 443, "scope": "LoadBalancer"},
        ],
        "nodePort": 30443,
        "internal": {"backends": [here, there], "count": 2, "onEmpty": "refuse"},
        "external": {"backends": [here], "count": 1, "onEmpty": "drop"},
        "affinitySeconds": 10800,
    }


DNS = [f"kube-system/kube-dns:{port} {family}" for port in ("dns", "dns-tcp") for family in ("IPv4", "IPv6")]
WEB = ["default/web:https IPv4"]
VOID = ["default/empty: IPv4"]


@pytest.mark.parametrize(
    ("search", "expected"),
    [
        ("", [*VOID, *WEB, *DNS]),
        ("   ", [*VOID, *WEB, *DNS]),
        ("web", WEB),
        ("WEB Https", WEB),
        ("https web", WEB),
        ("web dns", []),
        ("kube-system", DNS),
        ("default/", [*VOID, *WEB]),
        ("udp", DNS[:2]),
        ("ipv6", [DNS[1], DNS[3]]),
        ("IPv6 tcp dns-tcp", [DNS[3]]),
        ("10.96.0.10", [DNS[0], DNS[2]]),
        ("10.96.0.1", [*WEB, DNS[0], DNS[2]]),
        ("10.96.0.1:443", WEB),
        ("198.51.100.2", WEB),
        ("30443", WEB),
        (":8443", WEB),
        ("10.244.1.2:8443", WEB),  # an endpoint elsewhere
        ("FD00:10:244::53", [DNS[1], DNS[3]]),
        (":5353 udp", DNS[:2]),
        ("nothing", []),
        ("*", []),
        (".*", []),
        ("</script>", []),
        ("\0", []),
        ("\N{LATIN SMALL LETTER E WITH ACUTE}", []),
    ],
)
def test_search(status: Status, search: str, expected: list[str]) -> None:
    status.synced(synced(shop()))
    assert found(status, search) == expected
    overview = status.overview(search)
    assert (overview["services"], overview["routes"]) == (3, 6)  # those of all


def test_none_is_no_word_of_a_route_without_a_node_port(status: Status) -> None:
    status.synced(synced(shop()))
    assert found(status, "none") == []


def test_the_order_is_that_of_names(status: Status) -> None:
    status.synced(synced(Table(dict(reversed(list(shop().routes.items()))), Host())))
    assert found(status, "") == [*VOID, *WEB, *DNS]


def test_a_large_cluster_is_cut_in_order(status: Status) -> None:
    names = [f"s{number:03}" for number in range(600)]
    addresses = {name: (f"10.97.{number // 250}.{number % 250 + 1}",) for number, name in enumerate(names)}
    status.synced(synced(table(*(service(name, cluster_ips=addresses[name]) for name in reversed(names)))))
    overview = status.overview("")
    assert (overview["services"], overview["routes"], overview["matching"]) == (600, 600, 600)
    assert [row["service"] for row in overview["table"]] == [f"default/{name}" for name in names[:500]]
    assert [row["service"] for row in status.overview("s5")["table"]] == [f"default/{name}" for name in names[500:]]


def test_a_large_pool_is_cut(status: Status) -> None:
    ends = [endpoint(f"10.244.0.{number}", THIS_NODE) for number in range(1, 121)]
    status.synced(synced(table(service(), endpoint_slice(*ends))))
    (row,) = status.overview("")["table"]
    assert (len(row["internal"]["backends"]), row["internal"]["count"]) == (50, 120)
    assert found(status, "10.244.0.120:8080") == ["default/web: IPv4"]  # also what is not shown


def test_it_is_json_whatever_it_holds(status: Status) -> None:
    status.synced(synced(shop()))
    status.pending_since = lambda: time.monotonic() - 1
    status.connections = lambda: [Connection("Node")]
    status.failed(ModeError("<b>\0\ud800 \N{SNOWMAN}"))
    status.note(Problem("Service", Key("a", "b"), "", "'quoted' \"twice\""))
    overview = status.overview("")
    assert json.loads(json.dumps(overview, allow_nan=False)) == overview


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_readers_and_writers_do_not_wait_for_each_other(status: Status) -> None:
    """Each overview is of one table."""
    tables = [EMPTY, table(service()), shop()]
    sizes = {(0, 0), (1, 1), (3, 6)}
    over: list[bool] = []
    failures: list[Any] = []

    def read() -> None:
        while not over:
            try:
                overview = status.overview("i")
                if (overview["services"], overview["routes"]) not in sizes:
                    failures.append(overview)
            except Exception as error:
                failures.append(error)

    readers = [Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for number, now in zip(range(3000), itertools.cycle(tables), strict=False):
        status.took_in([Upsert(service())])
        status.note(Problem("Service", Key("a", "b"), "", str(number)))
        status.synced(synced(now))
        status.failed(ModeError("no"))
    over.append(True)
    for reader in readers:
        reader.join()
    assert failures == []
