"""Changes while traffic flows: what is new is served, what goes harms no connection."""

import socket
import sys
from functools import cache

import pytest

from bench.ask import datagram, open_socket
from ebpf import layout
from modes.ebpf.udp_sockets import end_sockets
from tests.conformance.cluster import Cluster, is_ended, load_every_way, until
from tests.conformance.known import known
from tests.conformance.manifests import FAMILIES, POD_PORT, PODS, service, slices, target

ALL = sorted(PODS)
LASTING = "this kernel can't end sockets (CONFIG_INET_DIAG_DESTROY)"
_COOKIE = 57  # SO_COOKIE


def test_endpoints_come_and_go_under_load_without_a_failure(cluster: Cluster, number: int) -> None:
    cluster.apply("load", service(number), *slices(number, ["pod-2"]))
    with load_every_way(cluster, number) as loads:
        before, gone = ["pod-2"], 0
        for pods in (["pod-2", "pod-3"], ["pod-3"], ["pod-3", "pod-4"], ["pod-4", "pod-2"], ["pod-2"], ALL) * 2:
            cluster.apply("load", service(number), *slices(number, pods))
            for load in loads:
                load.run_for(30)
            before, gone = pods, gone + len({*before} - {*pods})
    lost = known(cluster.mode).datagrams_lost_with_an_endpoint * gone
    for load in loads:
        assert len(load.failures) <= (lost if load.protocol == "UDP" else 0), (load.name, load.failures)
        assert {answer.pod for answer in load.answers} >= {"pod-2", "pod-3", "pod-4"}
    cluster.delete("load")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_endpoint_that_went_gets_no_new_connection(cluster: Cluster, number: int, family: str) -> None:
    cluster.apply("gone", service(number), *slices(number, ["pod-2", "pod-3", "pod-4"]))
    cluster.apply("gone", service(number), *slices(number, ["pod-2", "pod-4"]))
    assert cluster.pods_of(60, "pod-1", number, "ClusterIP", family) == {"pod-2", "pod-4"}
    cluster.delete("gone")


@pytest.mark.parametrize("family", FAMILIES)
def test_an_established_connection_outlives_its_endpoints_removal(cluster: Cluster, number: int, family: str) -> None:
    cluster.apply("established", service(number), *slices(number, ["pod-2"]))
    address, port = target(number, "ClusterIP", family, "TCP")
    with open_socket(cluster.host("pod-1"), address) as client:
        client.settimeout(3)
        client.connect((address, port))
        assert client.recv(100).startswith(b"pod-2 ")
        cluster.apply("established", service(number), *slices(number, ["pod-3"]))
        client.sendall(b"still there?")
        assert client.recv(100) == b"still there?"
        cluster.delete("established")
        client.sendall(b"and now?")
        assert client.recv(100) == b"and now?"


def test_a_service_that_went_is_not_served(cluster: Cluster, number: int) -> None:
    cluster.apply("going", service(number), *slices(number, ["pod-2"]))
    assert cluster.ask("client", number, "NodePort", "IPv4").pod == "pod-2"
    cluster.delete("going")
    assert cluster.outcome("client", *target(number, "NodePort", "IPv4", "TCP")) == "refused"
    assert cluster.outcome("client", *target(number, "ClusterIP", "IPv4", "TCP")) == "dropped"


def test_a_changed_port_and_policy_take_effect(cluster: Cluster, number: int) -> None:
    cluster.apply("changing", service(number), *slices(number, ["pod-2", "pod-4"]))
    assert cluster.pods_of(30, "client", number, "NodePort", "IPv4") == {"pod-2", "pod-4"}
    changed = service(number, externalTrafficPolicy="Local")
    changed["spec"]["ports"][0]["port"] = 8000
    cluster.apply("changing", changed, *slices(number, ["pod-2", "pod-4"]))
    assert cluster.pods_of(30, "client", number, "NodePort", "IPv4") == {"pod-2"}
    address = target(number, "ClusterIP", "IPv4", "TCP")[0]
    assert cluster.outcome("pod-1", address, 80) == "refused"
    assert cluster.outcome("pod-1", address, 8000) in ("pod-2", "pod-4")
    cluster.delete("changing")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("who", "kind"), [("pod-1", "ClusterIP"), ("client", "NodePort"), ("node", "ExternalIP")])
@pytest.mark.parametrize("restart", [False, True], ids=["live", "over a restart"])
def test_udp_flows_leave_an_endpoint_that_went_and_no_other(
    cluster: Cluster, number: int, who: str, kind: str, family: str, restart: bool
) -> None:
    are_connected = known(cluster.mode).connects_sockets and who != "client"
    cluster.apply("flows", service(number), *slices(number, ["pod-2", "pod-3", "pod-4"]))
    clients = [_udp_client(cluster, who, number, kind, family) for _ in range(30)]
    before = [datagram(client).pod for client in clients]
    assert set(before) == {"pod-2", "pod-3", "pod-4"}
    stale = [client for client, pod in zip(clients, before, strict=True) if pod == "pod-3"]
    kept = [(client, pod) for client, pod in zip(clients, before, strict=True) if pod != "pod-3"]
    if restart:
        cluster.kill()
        # Else conntrack may forget them while a slow machine starts the proxy.
        assert [datagram(client).pod for client, _ in kept] == [pod for _, pod in kept]
    said = len(cluster.log())
    _change(cluster, number, ["pod-2", "pod-4"], restart)
    if are_connected:
        if kernel_ends_sockets():
            until(lambda: all(map(is_ended, stale)), lambda: "sockets are connected to pod-3 yet")
        else:
            until(lambda: LASTING in cluster.log()[said:], lambda: "nobody says that sockets stay connected to pod-3")
        stale = [_udp_client(cluster, who, number, kind, family) for _ in stale]
    until(lambda: all(_answer(client) in ("pod-2", "pod-4") for client in stale), lambda: "flows still lead to pod-3")
    assert [datagram(client).pod for client, _ in kept] == [pod for _, pod in kept]
    for client in {*clients, *stale}:
        client.close()
    cluster.delete("flows")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("whole_service", [False, True], ids=["endpoints", "service"])
def test_udp_flows_end_when_the_last_endpoint_goes(
    cluster: Cluster, number: int, family: str, whole_service: bool
) -> None:
    is_connected = known(cluster.mode).connects_sockets
    cluster.apply("flows", service(number), *slices(number, ["pod-3"]))
    with _udp_client(cluster, "pod-1", number, "ClusterIP", family) as client:
        assert datagram(client).pod == "pod-3"
        if whole_service:
            cluster.delete("flows")
        else:
            cluster.apply("flows", service(number), *slices(number, []))
        if not is_connected or kernel_ends_sockets():
            until(lambda: _answer(client) is None, lambda: "the flow still leads to pod-3")
        cluster.apply("flows", service(number), *slices(number, ["pod-4"]))
        with _udp_client(cluster, "pod-1", number, "ClusterIP", family) if is_connected else client as again:
            until(lambda: _answer(again) == "pod-4", lambda: "the flow does not lead to pod-4")
    cluster.delete("flows")


def test_a_udp_flow_older_than_its_service_is_picked_up(cluster: Cluster, number: int) -> None:
    """A node port that nobody served yet: the flow is in conntrack, untranslated."""
    with _udp_client(cluster, "client", number, "NodePort", "IPv4") as client:
        assert _answer(client) is None
        cluster.apply("flows", service(number), *slices(number, ["pod-3"]))
        until(lambda: _answer(client) == "pod-3", lambda: "the flow does not lead to pod-3")
    cluster.delete("flows")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_connection_older_than_its_service_succeeds(cluster: Cluster, number: int, family: str) -> None:
    """Its first packet went nowhere, and conntrack knows it as untranslated: the next one must be served."""
    address, port = target(number, "ClusterIP", family, "TCP")
    with open_socket(cluster.host("pod-1"), address) as client:
        client.setblocking(False)
        client.connect_ex((address, port))
        cluster.apply("late", service(number), *slices(number, ["pod-3"]))
        client.settimeout(10)
        assert client.recv(100).startswith(b"pod-3 ")
    cluster.delete("late")


@pytest.mark.own
def test_the_older_of_two_services_keeps_a_node_port_and_an_address(cluster: Cluster, number: int) -> None:
    older, younger = service(number, name="older"), service(number, name="a-younger")
    older["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    younger["metadata"]["creationTimestamp"] = "2026-01-02T00:00:00Z"
    younger["spec"] |= {"clusterIP": "10.96.2.1", "clusterIPs": ["10.96.2.1", "fd00:10:96:2::1"]}
    endpoints = [*slices(number, ["pod-2"], name="older"), *slices(number, ["pod-3"], name="a-younger")]
    cluster.apply("claims", older, younger, *endpoints)
    for kind in ("NodePort", "ExternalIP", "LoadBalancer"):
        assert cluster.pods_of(10, "client", number, kind, "IPv4") == {"pod-2"}
    assert cluster.outcome("pod-1", "10.96.2.1", 80) == "pod-3"
    assert "conformance/a-younger" in cluster.log()
    cluster.apply("claims", younger, *endpoints)
    for kind in ("NodePort", "ExternalIP", "LoadBalancer"):
        assert cluster.pods_of(10, "client", number, kind, "IPv4") == {"pod-3"}
    cluster.delete("claims")


def test_five_thousand_endpoints_in_one_service_harm_no_other(cluster: Cluster, number: int) -> None:
    many = [
        {"addresses": [f"10.200.{index >> 8}.{index & 255}"], "nodeName": "far"} for index in range(256, 256 + 5000)
    ]
    crowd = slices(number, [])[0] | {"endpoints": many}
    cluster.apply("crowd", service(number), crowd)
    crowd["endpoints"] = [{"addresses": [PODS["pod-2"][0]], "nodeName": "node-1"}, *many[:1]]
    cluster.apply("crowd", service(number), crowd)
    crowd["endpoints"] = crowd["endpoints"][:1]
    cluster.apply("crowd", service(number), crowd)
    assert cluster.pods_of(5, "pod-1", number, "ClusterIP", "IPv4") == {"pod-2"}
    assert crowd["ports"][0]["port"] == POD_PORT
    cluster.delete("crowd")


def _change(cluster: Cluster, number: int, pods: list[str], restart: bool) -> None:
    if restart:
        cluster.write_objects("flows", service(number), *slices(number, pods))
        cluster.start()
        cluster.settle()
    else:
        cluster.apply("flows", service(number), *slices(number, pods))


def _udp_client(cluster: Cluster, who: str, number: int, kind: str, family: str) -> socket.socket:
    address, port = target(number, kind, family, "UDP")
    client = open_socket(cluster.host(who), address, "UDP")
    client.settimeout(0.3)
    client.connect((address, port))
    return client


@cache
def kernel_ends_sockets() -> bool:
    with socket.socket(type=socket.SOCK_DGRAM) as own:
        own.connect(("127.0.0.1", POD_PORT))
        cookie = int.from_bytes(own.getsockopt(socket.SOL_SOCKET, _COOKIE, 8), sys.byteorder)
        try:
            return end_sockets({cookie: layout.backend("127.0.0.1", POD_PORT)}) == 1
        except OSError:
            return False


def _answer(client: socket.socket) -> str | None:
    """The pod that answers now, None if none does."""
    try:
        return datagram(client).pod
    except OSError:
        return None
