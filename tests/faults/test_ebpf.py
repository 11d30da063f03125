"""What ebpf mode does to sockets, and what may be in its way: strangers, other versions, devices that come and go."""

import errno
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from bench.ask import Answer, datagram, exchange, open_socket
from bench.lab import Host, Lab
from ebpf import pins, syscall
from ebpf.hook import SCHED_CLS
from modes.ebpf import device_links, traffic_control
from pyproxy.kernel.netlink import ROUTE, Netlink
from tests.conformance.cluster import Candidate, Cluster, Load, until
from tests.conformance.manifests import FAMILIES, PODS, PORTS, addresses, service, slices, target
from tests.faults.commands import pyproxy

ALL = ["pod-2", "pod-3", "pod-4"]
MEDDLE = [sys.executable, "-m", "tests.conformance.meddle_ebpf"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(Candidate("ebpf"), syncPeriod="1s", minSyncPeriod="5ms") as running:
        yield running


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PORTS)
def test_a_socket_is_told_that_it_talks_to_the_service(cluster: Cluster, family: str, protocol: str) -> None:
    cluster.apply("peer", service(1), *slices(1, ALL))
    to = target(1, "ClusterIP", family, protocol)
    with open_socket(cluster.host("pod-1"), to[0], protocol) as client:
        client.settimeout(3)
        assert exchange(client, *to).pod in ALL
        assert client.getpeername()[:2] == to
        if protocol == "UDP":
            client.send(b"?")
            assert client.recvfrom(100)[1][:2] == to


def test_ipv4_is_served_to_sockets_of_ipv6(cluster: Cluster) -> None:
    cluster.apply("mapped", service(2), *slices(2, ALL))
    address, port = target(2, "ClusterIP", "IPv4", "TCP")
    with open_socket(cluster.host("pod-1"), "::") as client:
        client.settimeout(3)
        assert exchange(client, f"::ffff:{address}", port).pod in ALL
        assert client.getpeername()[0] == f"::ffff:{address}"
    address, port = target(2, "ClusterIP", "IPv4", "UDP")
    with open_socket(cluster.host("pod-1"), "::", "UDP") as client:
        client.settimeout(3)
        client.sendto(b"?", (f"::ffff:{address}", port))
        assert client.recvfrom(100)[1][0] == f"::ffff:{address}"


@pytest.mark.parametrize("family", FAMILIES)
def test_datagrams_of_a_socket_that_is_not_connected_go_to_one_endpoint_while_it_is_one(
    cluster: Cluster, family: str
) -> None:
    cluster.apply("datagrams", service(3), *slices(3, ALL))
    to = target(3, "ClusterIP", family, "UDP")
    with open_socket(cluster.host("pod-1"), to[0], "UDP") as client:
        client.settimeout(3)
        seen = {_answer(client, to) for _ in range(20)}
        cluster.apply("datagrams", service(3), *slices(3, set(ALL) - seen))
        then = {_answer(client, to) for _ in range(20)}
    assert len(seen) == len(then) == 1
    assert then.isdisjoint(seen)


def _answer(client: socket.socket, to: tuple[str, int]) -> str:
    client.sendto(b"?", to)
    data, source = client.recvfrom(100)
    assert source[:2] == to
    return data.decode().split()[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_refused_and_dropped_are_told_at_once(cluster: Cluster, family: str) -> None:
    remote = service(5, internalTrafficPolicy="Local")
    cluster.apply("told", service(4), *slices(4, []), remote, *slices(5, ["pod-4"]))
    for number, expected in ((4, errno.ECONNREFUSED), (5, errno.ETIMEDOUT)):
        for protocol in PORTS:
            to = target(number, "ClusterIP", family, protocol)
            with open_socket(cluster.host("pod-1"), to[0], protocol) as client:
                assert client.connect_ex(to) == expected
        with open_socket(cluster.host("pod-1"), "::", "UDP") as client, pytest.raises(OSError) as caught:
            address, port = target(number, "ClusterIP", "IPv6", "UDP")
            client.sendto(b"?", (address, port))
        assert caught.value.errno == expected


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("protocol", PORTS)
def test_pods_whose_sockets_it_does_not_see_are_served_too(cluster: Cluster, family: str, protocol: str) -> None:
    cluster.apply("unseen", service(6, externalTrafficPolicy="Local"), service(7), *slices(6, ALL), *slices(7, ALL))
    pod = replace(cluster.host("pod-1"), cgroup=None)
    for number, kind, source in ((6, "ClusterIP", pod), (6, "NodePort", pod), (7, "ExternalIP", cluster.lab.node)):
        to = target(number, kind, family, protocol)
        answers = [_ask(pod, to, protocol) for _ in range(30)]
        assert {answer.pod for answer in answers} == set(ALL)
        assert {answer.source for answer in answers} == {source.address(family)}
    itself = replace(cluster.host("pod-2"), cgroup=None)
    answers = [_ask(itself, target(6, "ClusterIP", family, protocol), protocol) for _ in range(30)]
    assert {answer.source for answer in answers if answer.pod == "pod-2"} == {cluster.lab.node.address(family)}


def _ask(host: Host, to: tuple[str, int], protocol: str) -> Answer:
    with open_socket(host, to[0], protocol) as client:
        client.settimeout(3)
        return exchange(client, *to)


@pytest.mark.parametrize("size", [2000, 5000])
def test_datagrams_larger_than_a_packet_arrive(cluster: Cluster, size: int) -> None:
    """In pieces, of which only the first has ports: there and back."""
    cluster.apply("large", service(8), *slices(8, ["pod-2"]))
    for family in FAMILIES:
        to = target(8, "NodePort", family, "UDP")
        with open_socket(cluster.lab.client, to[0], "UDP") as client:
            client.settimeout(3)
            client.connect(to)
            for _ in range(3):
                client.send(b"?" * size)
                assert client.recv(100).startswith(b"pod-2 ")


def test_only_sockets_that_came_through_the_service_are_ended(cluster: Cluster) -> None:
    cluster.apply("ended", service(9), *slices(9, ["pod-3"]))
    to = target(9, "ClusterIP", "IPv4", "UDP")
    pod = cluster.host("pod-1")
    with open_socket(pod, to[0], "UDP") as client, open_socket(pod, to[0], "UDP") as direct:
        for one, where in ((client, to), (direct, (PODS["pod-3"][0], 8080))):
            one.settimeout(3)
            one.connect(where)
            assert datagram(one).pod == "pod-3"
        cluster.apply("ended", service(9), *slices(9, ["pod-2"]))
        until(lambda: _is_ended(client), lambda: "it is connected to pod-3 yet")
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        assert datagram(direct).pod == "pod-3"
        client.connect(to)
        assert datagram(client).pod == "pod-2"


def _is_ended(client: socket.socket) -> bool:
    try:
        client.getpeername()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


def test_a_device_that_comes_later_is_served(cluster: Cluster) -> None:
    with cluster.lab.node.namespace.links() as links:
        links.link("add", ifname="late", kind="veth", peer={"ifname": "later"})
        index = links.link_lookup(ifname="late")[0]
    try:
        until(lambda: _attached(cluster.lab, index) == {"ingress", "egress"}, lambda: "it has no programs")
    finally:
        with cluster.lab.node.namespace.links() as links:
            links.link("del", index=index)
    said = len(cluster.log())
    until(lambda: "verified drift=0" in cluster.log()[said:], lambda: "it is missed")


def _attached(lab: Lab, index: int) -> set[str]:
    with lab.node.namespace.entered(), Netlink(ROUTE) as netlink:
        return set(device_links.attached(netlink, index))


@pytest.mark.parametrize("what", ["programs", "maps"])
def test_another_version_is_replaced_under_load(cluster: Cluster, what: str) -> None:
    """Its programs go as the new ones come; what it had pinned is removed. With the maps go flows of packets."""
    cluster.apply("version", service(10), *slices(10, ALL))
    with cluster.lab.node.namespace.entered():
        folder = pins.folder()
    with (
        Load(cluster, "pod-1", 10, "ClusterIP", "IPv4") as inside,
        Load(cluster, "client", 10, "NodePort", "IPv6") as outside,
    ):
        inside.run_for(20)
        cluster.kill()
        for prefix in {"programs", what}:
            (path,) = folder.glob(f"{prefix}-*")
            path.rename(folder / f"{prefix}-0123456789ab")
        outside.run_for(20)
        cluster.start()
        until(lambda: not list(folder.glob("*-0123456789ab")), lambda: f"left: {list(folder.iterdir())}")
        for load in (inside, outside):
            load.run_for(20)
    assert inside.failures == []
    lost = 1 if what == "maps" else 0  # the load has one connection open at a time
    assert len(outside.failures) <= lost, outside.failures


def test_cleanup_removes_all_of_it_and_nothing_of_others() -> None:
    with Cluster(Candidate("ebpf"), syncPeriod="1h") as cluster:
        lab = cluster.lab
        cluster.apply("cleanup", service(1), *slices(1, ALL))
        lab.node.namespace.run([*MEDDLE, "come"])
        with lab.node.namespace.links() as links:
            eth0 = links.link_lookup(ifname="eth0")[0]
        idle = syscall.load_program(SCHED_CLS, 0, bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95]) + bytes(7), "stranger")
        with lab.node.namespace.entered(), Netlink(ROUTE) as netlink:
            _attach_stranger(netlink, eth0, idle)
        cluster.kill()
        done = pyproxy(lab, "cleanup")
        assert (done.returncode, done.stderr) == (0, "")
        assert "programs of eBPF on 4 devices" in done.stdout
        assert pyproxy(lab, "cleanup").stdout == "nothing to remove\n"
        assert b"stranger" in lab.node.namespace.run([*MEDDLE, "show"]).stdout
        lab.node.namespace.run([*MEDDLE, "go"])
        assert cluster.outcome("pod-1", addresses(1)["ClusterIP"]["IPv4"], 80) == "dropped"
        listed = lab.node.namespace.run(["tc", "filter", "show", "dev", "eth0", "ingress"]).stdout
        assert b"stranger" in listed
        assert b"pyproxy" not in listed
        assert _attached(lab, eth0) == set()


def _attach_stranger(netlink: Netlink, index: int, program: int) -> None:
    """A filter of another priority and name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traffic_control, "_PRIORITY", 1)
        patch.setattr(traffic_control, "_OUR_NAME", b"stranger\0")
        traffic_control.attach(netlink, index, {"ingress": program})
