"""A hundred thousand UDP flows: the stale ones go, all of them, and no other; connections that began too early, too."""

import time
from contextlib import ExitStack
from queue import SimpleQueue
from socket import AF_INET, inet_aton
from threading import Thread

import pytest

from bench import flows
from bench.ask import open_socket
from bench.lab import Lab
from pyproxy import conntrack
from pyproxy.address import IP
from pyproxy.conntrack import Reconciler, begun_too_early, expectation, stale_flows
from pyproxy.kernel import flow, nft
from pyproxy.kernel.flow import delete, udp_flows
from pyproxy.observer import Sync
from pyproxy.table import Backend, Host, ModeError, Pool, Route, Table, Transport
from tests.conformance.cluster import until
from tests.faults.routes import cluster_ip_route

FLOWS = 100_000
PODS = [IP(f"10.244.0.{number}") for number in (11, 12, 13, 14)]


def test_stale_flows_go_and_no_others(lab: Lab) -> None:
    pods = [(str(pod), 8080) for pod in PODS]
    flows.plant(lab.node, "10.96.0.53", 53, pods, FLOWS)
    flows.plant(lab.node, "10.96.0.54", 53, pods, 100, 30001)  # a frontend of nobody here
    assert flows.count(lab.node) == FLOWS + 100
    route = _route(PODS[1:])
    table = Table({route.id: route}, Host())
    with lab.node.namespace.entered():
        assert _reconcile(table) == FLOWS // 4
        assert _reconcile(table) == 0
        assert flows.count(lab.node) == FLOWS // 4 * 3 + 100
        assert _reconcile(Table({}, Host()), route) == FLOWS // 4 * 3
    assert flows.count(lab.node) == 100


@pytest.mark.parametrize("failures", [0, 1])
def test_a_flow_newer_than_the_table_it_is_read_for_stays(lab: Lab, failures: int) -> None:
    """An endpoint comes with a sync that goes on while flows are read: its flows are there before word of it is.

    So they may be after a sync that failed, for one IP family of two.
    """
    none, one = _route([]), _route(PODS[:1])
    before, after = Table({none.id: none}, Host()), Table({one.id: one}, Host())
    told: SimpleQueue[int] = SimpleQueue()
    reconciler = Reconciler(lambda deleted, _: told.put(deleted))
    reconciler.synced(Sync(Table({}, Host()), before, None, 0.0))
    reconciler.syncing()
    flows.plant(lab.node, "10.96.0.53", 53, [(str(PODS[0]), 8080), (str(PODS[1]), 8080)], 100)
    with lab.node.namespace.entered():  # and the thread with it
        Thread(target=reconciler.run, daemon=True).start()
    for _ in range(failures):
        reconciler.failed(ModeError("no"))
    time.sleep(1.5)  # it has read them by now
    assert flows.count(lab.node) == 100
    reconciler.synced(Sync(before, after, frozenset({one.id}), 0.0))
    assert told.get(timeout=10) == 50
    assert flows.count(lab.node) == 50


def test_flows_end_as_they_rest_and_keep_no_connection_waiting(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conntrack, "_ASKS_ON_S", 3600.0)  # nobody is cut off
    udp, tcp = _route([]), cluster_ip_route("10.96.0.99", 80, Pool(()))
    before, after = Table({udp.id: udp}, Host()), Table({udp.id: udp, tcp.id: tcp}, Host())
    flows.plant(lab.node, "10.96.0.53", 53, [(str(PODS[0]), 8080)], 100)
    reconciler = Reconciler(lambda *_: None)
    with lab.node.namespace.entered():
        nft.load("table ip watcher { chain forwarded { type filter hook forward priority 0; ct state new accept; }; }")
        Thread(target=reconciler.run, daemon=True).start()
        reconciler.synced(Sync(Table({}, Host()), before, None, 0.0))
        with open_socket(lab.pods["pod-1"], "10.96.0.99") as client:
            client.setblocking(False)
            client.connect_ex(("10.96.0.99", 80))
            until(lambda: len(begun_too_early([tcp])) == 1, lambda: "nobody waits")
            reconciler.synced(Sync(before, after, frozenset({tcp.id}), 0.0))
            until(lambda: begun_too_early([tcp]) == [], lambda: "it waits for the datagrams")
        until(lambda: not [*udp_flows(AF_INET)], lambda: "flows rest and do not end")


@pytest.mark.parametrize("filters", [True, False], ids=["the kernel picks them out", "it dumps all"])
def test_only_who_waits_for_a_frontend_began_too_early(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, filters: bool
) -> None:
    dump = flow._dump
    if not filters:  # before Linux 5.18
        monkeypatch.setattr(flow, "_dump", lambda family, protocol, _: dump(family, protocol))
    routes = [cluster_ip_route(address, port, Pool(())) for address, port in (("10.96.0.99", 80), (PODS[1], 8080))]
    with ExitStack() as stack, lab.node.namespace.entered():
        nft.load("table ip watcher { chain forwarded { type filter hook forward priority 0; ct state new accept; }; }")
        for address, port in (("10.96.0.99", 80), ("10.96.0.98", 80), (PODS[1], 8080)):
            client = stack.enter_context(open_socket(lab.pods["pod-1"], address))
            client.setblocking(False)
            client.connect_ex((address, port))
        client.settimeout(3)
        assert client.recv(100).startswith(b"pod-2 ")  # answered, and nobody translated it
        found = begun_too_early(routes)
        assert [one.destination for one in found] == [inet_aton("10.96.0.99") + (80).to_bytes(2)]
        assert delete(found) == 1
        assert begun_too_early(routes) == []


def _route(pods: list[IP]) -> Route:
    pool = Pool(tuple(Backend(pod, 8080, True) for pod in pods))
    return cluster_ip_route("10.96.0.53", 53, pool, transport=Transport.UDP)


def _reconcile(table: Table, *lost: Route) -> int:
    return delete(stale_flows(expectation(table, lost)))
