"""What a relay meets: ports that are taken, endpoints that fail, peers that are slow, and its own end."""

import errno
import hashlib
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.ask import datagram, open_socket
from modes.userspace.relay_process import processes
from tests.conformance.cluster import OURS, Candidate, Cluster, Load, until
from tests.conformance.manifests import Object, endpoint, endpoint_slice, service, slices, target

_REPOSITORY = Path(__file__).parents[2]
_DESCRIPTORS = 200
_MIB = int(os.environ.get("PYPROXY_MIB", "64"))  # that are relayed byte by byte; `make broad` takes 1024
_ENDS_BADLY = """
import socket, struct, sys
server = socket.create_server(("0.0.0.0", 9000))
print("ready", flush=True)
while True:
    one, _ = server.accept()
    one.recv(10)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    one.close()
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(Candidate("userspace"), syncPeriod="1s", minSyncPeriod="5ms") as running:
        yield running


def relay_of(cluster: Cluster) -> int:
    with cluster.lab.node.namespace.entered():
        (process,) = processes()
    return process


def connected(cluster: Cluster, number: int, who: str = "pod-1") -> socket.socket:
    """A connection that has had its pod's greeting."""
    address, port = target(number, "ClusterIP", "IPv4", "TCP")
    client = open_socket(cluster.host(who), address)
    client.settimeout(10)
    client.connect((address, port))
    assert client.recv(100).startswith(b"pod-")
    return client


def at_port(number: int, pod: str, port: int) -> Object:
    """A slice of one pod, at another port than that where it listens."""
    piece = endpoint_slice(number, "IPv4", [endpoint(pod, "IPv4")])
    piece["metadata"]["name"] += f"-{port}"
    piece["ports"] = [{"name": p["name"], "protocol": p["protocol"], "port": port} for p in piece["ports"]]
    return piece


def test_a_port_that_is_taken_is_told_and_all_else_served(cluster: Cluster) -> None:
    address, port = target(1, "NodePort", "IPv4", "TCP")
    with open_socket(cluster.lab.node, address) as other:
        other.bind((address, port))
        other.listen()
        cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
        complaint = f"port {port}/tcp of {address} can't be had: Address already in use"
        until(lambda: complaint in cluster.log(), lambda: "it was not told")
        told = [line for line in cluster.log().splitlines() if complaint in line]
        assert len(told) == 1
        assert "Service conformance/svc-1" in told[0]
        assert cluster.outcome("client", *target(1, "NodePort", "IPv6", "TCP")) == "pod-2"
        assert cluster.outcome("pod-1", *target(1, "ClusterIP", "IPv4", "TCP")) == "pod-2"
    until(lambda: cluster.outcome("client", address, port) == "pod-2", lambda: "never tried again")
    assert cluster.log().count(complaint) == 1


def test_what_kube_proxy_s_device_has_is_served_when_the_device_goes() -> None:
    """As `cleanup --kube-proxy-only` takes it away, where kube-proxy was in its mode ipvs."""
    with Cluster(Candidate("userspace"), syncPeriod="1h", minSyncPeriod="5ms") as cluster:
        address, port = target(1, "ClusterIP", "IPv4", "TCP")
        node = cluster.lab.node.namespace
        node.run(["ip", "link", "add", "kube-ipvs0", "type", "bridge"])
        node.run(["ip", "address", "add", f"{address}/32", "dev", "kube-ipvs0"])
        cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
        cluster.kill()
        cluster.start()
        cluster.settle()
        node.run(["ip", "link", "delete", "kube-ipvs0"])
        assert cluster.outcome("pod-1", address, port) == "pod-2"


def test_a_device_that_comes_with_a_link_local_address_is_no_drift(cluster: Cluster) -> None:
    """As with each pod, in many networks."""
    node = cluster.lab.node.namespace
    node.run(["ip", "link", "add", "another", "type", "veth", "peer", "name", "its-end"])
    for name in ("another", "its-end"):
        node.run(["ip", "link", "set", name, "up"])
    until(lambda: b"fe80" in node.run(["ip", "address", "show", "another"]).stdout, lambda: "it has none")
    said = len(cluster.log())
    until(lambda: cluster.log()[said:].count("verified drift=") >= 2, lambda: cluster.log()[said:])
    assert cluster.log()[said:].count("verified drift=") == cluster.log()[said:].count("verified drift=0")


def test_an_endpoint_that_refuses_costs_no_connection(cluster: Cluster) -> None:
    cluster.apply("svc", service(1), *slices(1, ["pod-2"]), at_port(1, "pod-3", 9))
    assert cluster.pods_of(40, "pod-1", 1, "ClusterIP", "IPv4") == {"pod-2"}
    cluster.apply("svc", service(1), *slices(1, []), at_port(1, "pod-3", 9))
    assert cluster.outcome("pod-1", *target(1, "ClusterIP", "IPv4", "TCP")) == "reset"


def test_an_endpoint_that_does_not_listen_is_told_to_clients_of_udp(cluster: Cluster) -> None:
    cluster.apply("svc", service(1), *slices(1, []), at_port(1, "pod-3", 9))
    address, port = target(1, "ClusterIP", "IPv4", "UDP")
    with open_socket(cluster.host("pod-1"), address, "UDP") as client:
        client.settimeout(3)
        client.connect((address, port))
        with pytest.raises(ConnectionRefusedError):
            datagram(client)


@pytest.mark.parametrize(("family", "error"), [("IPv4", errno.EHOSTUNREACH), ("IPv6", errno.EACCES)])
def test_so_is_an_endpoint_that_a_firewall_is_before(cluster: Cluster, family: str, error: int) -> None:
    pod = cluster.host("pod-3")
    reject = {"IPv4": "icmp-admin-prohibited", "IPv6": "icmp6-adm-prohibited"}[family]
    command = {"IPv4": "iptables", "IPv6": "ip6tables"}[family]
    pod.namespace.run([command, "-A", "INPUT", "-p", "udp", "-j", "REJECT", "--reject-with", reject])
    cluster.apply("svc", service(1), *slices(1, ["pod-3"]))
    address, port = target(1, "ClusterIP", family, "UDP")
    with open_socket(cluster.host("pod-1"), address, "UDP") as client:
        client.settimeout(3)
        client.connect((address, port))
        with pytest.raises(OSError) as raised:
            datagram(client)
        assert raised.value.errno == error


def test_without_net_raw_that_is_said_once_and_who_has_it_replaces_the_relay() -> None:
    without = ("setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw", *OURS)
    with Cluster(Candidate("userspace", without), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
        cluster.lab.node.namespace.run(["ip", "route", "flush", "table", "local", "proto", "112"])
        to = target(1, "ClusterIP", "IPv4", "UDP")
        until(lambda: cluster.outcome("pod-1", *to, "UDP") == "pod-2", lambda: "it was not repaired")
        assert "repairing" in cluster.log()
        assert cluster.log().count("it takes CAP_NET_RAW") == 1
        mute = relay_of(cluster)
        cluster.kill()
        cluster.change_command(OURS)
        cluster.start()
        until(lambda: bool(_relays(cluster) - {mute}), lambda: "the relay is the same")
        assert cluster.log().count("it takes CAP_NET_RAW") == 1


def test_with_several_relays_ports_that_are_taken_hold_nothing_up() -> None:
    """One that retires would be waited for; these do not."""
    ports = [{"name": f"p{port}", "protocol": "TCP", "port": port} for port in range(1, 61)]
    pieces = slices(1, ["pod-2"])
    for piece in pieces:
        piece["ports"] = ports
    several = Candidate("userspace", (*OURS, "--userspace-workers", "2"))
    with Cluster(several, syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        address = target(1, "ClusterIP", "IPv4", "TCP")[0]
        with ExitStack() as stack:
            for port in range(1, 61):
                other = stack.enter_context(open_socket(cluster.lab.node, address))
                other.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND
                other.bind((address, port))
                other.listen()
            cluster.write_objects("taken", service(1, ports=ports, exposed=False), *pieces)
            until(lambda: "can't be had: Address already in use" in cluster.log(), lambda: "it was not told")
            cluster.apply("svc", service(2), *slices(2, ["pod-2"]))
            assert cluster.outcome("pod-1", *target(2, "ClusterIP", "IPv4", "TCP")) == "pod-2"


def test_a_relay_that_was_killed_is_replaced_before_the_next_verification() -> None:
    with Cluster(Candidate("userspace"), syncPeriod="1h", minSyncPeriod="5ms") as cluster:
        cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
        for _ in range(2):
            killed = relay_of(cluster)
            os.kill(killed, signal.SIGKILL)
            until(lambda: bool(_relays(cluster) - {killed}), lambda: cluster.log()[-2000:])  # noqa: B023
            served = target(1, "ClusterIP", "IPv4", "TCP")
            until(lambda: cluster.outcome("pod-1", *served) == "pod-2", lambda: cluster.log()[-2000:])  # noqa: B023


def test_a_client_s_reset_is_passed_on(cluster: Cluster) -> None:
    with cluster.host("pod-3").namespace.entered():
        server = socket.create_server(("10.244.0.13", 9000))
    with server:
        cluster.apply("svc", service(1), *slices(1, []), at_port(1, "pod-3", 9000))
        address, port = target(1, "ClusterIP", "IPv4", "TCP")
        with open_socket(cluster.host("pod-1"), address) as client:
            client.connect((address, port))
            client.sendall(b"?")
            server.settimeout(3)
            one, _ = server.accept()
            with one:
                one.settimeout(3)
                assert one.recv(10) == b"?"
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.close()
                with pytest.raises(ConnectionResetError):
                    one.recv(10)


def test_a_reset_is_passed_on(cluster: Cluster) -> None:
    server = cluster.host("pod-3").namespace.start([sys.executable, "-c", _ENDS_BADLY], stdout=-1)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    cluster.apply("svc", service(1), *slices(1, []), at_port(1, "pod-3", 9000))
    address, port = target(1, "ClusterIP", "IPv4", "TCP")
    with open_socket(cluster.host("pod-1"), address) as client:
        client.settimeout(3)
        client.connect((address, port))
        client.sendall(b"?")
        with pytest.raises(ConnectionResetError):
            client.recv(10)


def test_every_byte_arrives_and_a_closed_half_leaves_the_other_open(cluster: Cluster) -> None:
    """The pods echo, so all of it goes both ways; they close when the client has, and have said all."""
    cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
    sent, received = hashlib.sha256(), hashlib.sha256()
    with connected(cluster, 1) as client:

        def send() -> None:
            for number in range(16 * _MIB):
                block = hashlib.sha256(str(number).encode()).digest() * 2048  # 64 KiB
                sent.update(block)
                client.sendall(block)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        while data := client.recv(1 << 18):
            received.update(data)
        sender.join()
    assert received.digest() == sent.digest()


def test_many_idle_clients_and_slow_ones_cost_little_memory(cluster: Cluster) -> None:
    cluster.apply("svc", service(1), *slices(1, ["pod-2", "pod-3"]))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(cluster, 1)) for _ in range(2000)]
        for slow in clients[::10]:
            slow.setblocking(False)
            try:
                while True:
                    slow.send(b"?" * 65536)  # the pod echoes it, and nobody reads it
            except BlockingIOError:
                pass
        status = Path(f"/proc/{relay_of(cluster)}/status").read_text()
        resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
        assert resident < 100 << 10
        clients[1].sendall(b"still there?")
        assert clients[1].recv(100) == b"still there?"


def test_without_descriptors_new_clients_are_turned_away_and_others_stay() -> None:
    few = ("prlimit", f"--nofile={_DESCRIPTORS}", *OURS)
    with Cluster(Candidate("userspace", few), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
        with ExitStack() as stack:
            old = stack.enter_context(connected(cluster, 1))
            turned_away = 0
            for _ in range(_DESCRIPTORS):
                try:
                    stack.enter_context(connected(cluster, 1))
                except (ConnectionError, AssertionError):
                    turned_away += 1
            assert _DESCRIPTORS / 2 < turned_away < _DESCRIPTORS
            # The proxy finds the relay again, and it learns what changes.
            relay = relay_of(cluster)
            cluster.kill()
            cluster.write_objects("svc", service(1), *slices(1, ["pod-3"]))
            cluster.write_objects("new", service(2), *slices(2, ["pod-3"]))
            cluster.start()
            listens = target(2, "ClusterIP", "IPv4", "TCP")
            until(lambda: cluster.outcome("pod-1", *listens) == "reset", lambda: cluster.log()[-2000:])
            assert _relays(cluster) == {relay}
            old.sendall(b"still there?")
            assert old.recv(100) == b"still there?"
        served = target(1, "ClusterIP", "IPv4", "TCP")
        until(lambda: cluster.outcome("pod-1", *served) == "pod-3", lambda: "no recovery")


def test_another_version_takes_the_sockets_over(tmp_path: Path) -> None:
    """Not one connection fails, those in no one's hands yet included, and what is open goes on."""
    for package in ("pyproxy", "modes"):
        shutil.copytree(_REPOSITORY / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "modes/userspace/worker.py").open("a") as source:
        source.write("# another version\n")
    newer = ("env", f"PYTHONPATH={tmp_path}", OURS[0], "-P", *OURS[1:])
    with Cluster(Candidate("userspace"), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("svc", service(1), *slices(1, ["pod-2", "pod-3"]))
        before = relay_of(cluster)
        with (
            connected(cluster, 1) as client,
            Load(cluster, "pod-1", 1, "ClusterIP", "IPv4") as inside,
            Load(cluster, "client", 1, "NodePort", "IPv6") as outside,
        ):
            inside.run_for(30)
            cluster.kill()
            cluster.change_command(newer)
            cluster.start()
            cluster.settle()
            outside.run_for(50)
            assert "taking over from another relay" in cluster.log()
            with cluster.lab.node.namespace.entered():
                both = processes()
            assert len(both) == 2
            assert before in both
            client.sendall(b"still there?")
            assert client.recv(100) == b"still there?"
        assert inside.failures == outside.failures == []
        until(lambda: _relays(cluster) == set(both) - {before}, lambda: "the old relay does not end")


def _relays(cluster: Cluster) -> set[int]:
    with cluster.lab.node.namespace.entered():
        return set(processes())


@pytest.mark.parametrize("bound", ["flows", "files"])
def test_flows_are_bounded_and_the_oldest_goes(monkeypatch: pytest.MonkeyPatch, bound: str) -> None:
    """A quarter of the files that a relay may open is theirs: connections would be refused for want of one."""
    from modes.userspace import flows
    from modes.userspace.poller import Poller

    if bound == "flows":
        monkeypatch.setattr(flows, "MOST_FLOWS", 128)
    else:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (512, 512))
    kind = socket.AF_INET, socket.SOCK_DGRAM
    with socket.socket(*kind) as front, socket.socket(*kind) as end:
        end.bind(("127.0.0.1", 0))
        table = flows.Flows(Poller(), lambda *_: None)
        place = ("udp", "127.0.0.1", 53)
        for port in range(1, 131):
            table.carry(place, front, ("127.0.0.1", port), b"?", end.getsockname)
        assert len(table) == 128
        assert [client for _, client in table._flows] == [("127.0.0.1", port) for port in range(3, 131)]
        assert select.select([end], [], [], 1)[0]
        table.tick(float("inf"))
        assert len(table) == 0
