"""What ebpf mode counts of real traffic, with the metrics that show it; and full maps, and other sizes."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.client import HTTPConnection
from threading import Thread

import pytest

from bench.ask import open_socket
from bench.lab import Lab
from ebpf import store, syscall
from modes.ebpf.mode import EbpfMode
from pyproxy import table
from pyproxy.table import Family, ModeError, RouteId, Traffic
from tests.conformance.cluster import OURS, Candidate, Cluster, Load, until
from tests.conformance.manifests import FAMILIES, service, slices, target
from tests.faults.commands import pyproxy
from tests.unit.samples import endpoint, endpoint_slice
from tests.unit.samples import service as some_service
from tests.unit.samples import table as some_table

ALL = ["pod-2", "pod-3", "pod-4"]
UDP_HEADERS = {"IPv4": 28, "IPv6": 48}
MSS = 1460
COMPILES_S = 60.0  # on a busy machine
PER_SERVICE = (*OURS, "--metrics-per-service")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(Candidate("ebpf", PER_SERVICE), syncPeriod="1s", minSyncPeriod="5ms") as running:
        yield running


def traffic(lab: Lab, number: int, family: str, protocol: str) -> Traffic:
    with lab.node.namespace.entered():
        found = EbpfMode().traffic()
    assert found is not None
    return found[RouteId("conformance", f"svc-{number}", protocol.lower(), Family(family))]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_connection_is_counted_once_at_its_level(cluster: Cluster, family: str) -> None:
    cluster.apply("counted", service(1), *slices(1, ALL))
    before = {protocol: traffic(cluster.lab, 1, family, protocol) for protocol in ("TCP", "UDP")}
    for _ in range(25):
        cluster.ask("pod-1", 1, "ClusterIP", family)
    for _ in range(5):
        cluster.ask("node", 1, "NodePort", family)
    for _ in range(15):
        cluster.ask("client", 1, "NodePort", family)
    for _ in range(10):
        cluster.ask("pod-1", 1, "ClusterIP", family, "UDP")
    found = since(before["TCP"], traffic(cluster.lab, 1, family, "TCP"))
    assert (found.sockets, found.flows, found.refused, found.dropped, found.lost) == (30, 15, 0, 0, 0)
    assert found.packets_in >= 15 * 4  # SYN, two ACKs and FIN, whoever puts some of them together
    assert found.packets_out >= 15 * 3
    found = since(before["UDP"], traffic(cluster.lab, 1, family, "UDP"))
    assert found == Traffic(sockets=10)


def since(before: Traffic, now: Traffic) -> Traffic:
    return Traffic(*map(int.__sub__, now, before))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_datagram_from_outside_is_counted_with_its_bytes(cluster: Cluster, family: str) -> None:
    cluster.apply("datagrams", service(2), *slices(2, ["pod-2"]))
    before = traffic(cluster.lab, 2, family, "UDP")
    to = target(2, "NodePort", family, "UDP")
    answered = 0
    with open_socket(cluster.lab.client, to[0], "UDP") as client:
        client.settimeout(3)
        for _ in range(20):
            client.sendto(b"?" * 100, to)
            answered += len(client.recv(200))
    headers = UDP_HEADERS[family]
    assert since(before, traffic(cluster.lab, 2, family, "UDP")) == Traffic(
        flows=1,
        packets_in=20,
        bytes_in=20 * (100 + headers),
        packets_out=20,
        bytes_out=answered + 20 * headers,
    )


def resends(cluster: Cluster) -> int:
    """Segments that both ends have sent again so far (tcpRetransSegs of RFC 4022)."""
    total = 0
    for who in ("client", "pod-2"):
        lines = cluster.host(who).namespace.run(["cat", "/proc/self/net/snmp"]).stdout.decode().splitlines()
        names, values = (line.split() for line in lines if line.startswith("Tcp:"))
        total += int(values[names.index("RetransSegs")])
    return total


def test_a_large_transfer_is_counted_byte_by_byte(cluster: Cluster) -> None:
    """The kernel carries many packets as one on the way."""
    cluster.apply("large", service(3), *slices(3, ["pod-2"]))
    before, resent = traffic(cluster.lab, 3, "IPv4", "TCP"), resends(cluster)
    size, address = 4 << 20, target(3, "NodePort", "IPv4", "TCP")
    with open_socket(cluster.lab.client, address[0]) as client:
        client.settimeout(10)
        client.connect(address)
        greeting = len(client.recv(200))
        sender = Thread(target=client.sendall, args=(bytes(size),))
        sender.start()
        received = 0
        while received < size:
            received += len(client.recv(1 << 20))
        sender.join()
    found = since(before, traffic(cluster.lab, 3, "IPv4", "TCP"))
    resent = resends(cluster) - resent  # on a busy machine
    assert found.flows == 1
    for count, carried, payload in (
        (found.packets_in, found.bytes_in, size),
        (found.packets_out, found.bytes_out, size + greeting),
    ):
        assert carried >= payload + 40  # headers come on top, once for what is carried as one
        assert count >= payload // MSS
        assert carried <= payload + 60 * count + MSS * resent


def test_a_socket_that_sends_datagrams_counts_once_for_each_endpoint_it_gets(cluster: Cluster) -> None:
    cluster.apply("unconnected", service(4), *slices(4, ["pod-2"]))
    before = traffic(cluster.lab, 4, "IPv4", "UDP")
    to = target(4, "ClusterIP", "IPv4", "UDP")
    with open_socket(cluster.host("pod-1"), to[0], "UDP") as client:
        client.settimeout(3)
        for pods in (["pod-2"], ["pod-3"]):
            cluster.apply("unconnected", service(4), *slices(4, pods))
            for _ in range(5):
                client.sendto(b"?", to)
                assert client.recv(200).split()[0].decode() in pods
    assert since(before, traffic(cluster.lab, 4, "IPv4", "UDP")) == Traffic(sockets=2)


def test_who_gets_no_endpoint_is_counted(cluster: Cluster) -> None:
    local = service(5, externalTrafficPolicy="Local")
    cluster.apply("none", service(6), local, *slices(5, ["pod-4"]))
    for who, kind, times in (("pod-1", "ClusterIP", 4), ("client", "NodePort", 3)):
        for _ in range(times):
            assert cluster.outcome(who, *target(6, kind, "IPv4", "TCP")) == "refused"
    assert traffic(cluster.lab, 6, "IPv4", "TCP") == Traffic(refused=7)
    assert cluster.outcome("client", *target(5, "NodePort", "IPv4", "TCP")) == "dropped"
    found = traffic(cluster.lab, 5, "IPv4", "TCP")
    assert (found.dropped > 0, found.refused, found.flows) == (True, 0, 0)


def test_counts_go_on_over_a_restart_and_are_shown_as_metrics(cluster: Cluster) -> None:
    cluster.apply("kept", service(7), *slices(7, ALL))
    for _ in range(6):
        cluster.ask("pod-1", 7, "ClusterIP", "IPv4")
    cluster.kill()
    for _ in range(3):
        cluster.ask("pod-1", 7, "ClusterIP", "IPv4")
    cluster.start()
    cluster.settle()
    assert traffic(cluster.lab, 7, "IPv4", "TCP").sockets == 9
    found = metrics(cluster.lab)
    labels = '{family="IPv4",level="socket",namespace="conformance",port="tcp",service="svc-7"}'
    assert f"pyproxy_service_connections_total{labels} 9.0" in found
    (total,) = re.findall(r'^pyproxy_connections_total\{level="socket"\} (\S+)$', found, re.MULTILINE)
    assert float(total) >= 9
    for name in ("backends", "flows", "counters"):
        (pressure,) = re.findall(rf'^pyproxy_map_pressure\{{map="{name}"\}} (\S+)$', found, re.MULTILINE)
        assert 0 < float(pressure) < 0.1
    cluster.delete("kept")
    (after,) = re.findall(r'^pyproxy_connections_total\{level="socket"\} (\S+)$', metrics(cluster.lab), re.MULTILINE)
    assert float(after) >= float(total)


def metrics(lab: Lab) -> str:
    with lab.node.namespace.entered():
        connection = HTTPConnection("127.0.0.1", 10249, timeout=5)
        connection.request("GET", "/metrics")
    return connection.getresponse().read().decode()


def test_other_sizes_take_effect_at_a_restart_and_open_connections_go_on(cluster: Cluster) -> None:
    cluster.apply("resized", service(10), *slices(10, ALL))
    address = target(10, "NodePort", "IPv6", "TCP")
    sizes = ("flows=4096", "flows=524288,backends=65536,counters=1024", "flows=262144")
    with open_socket(cluster.lab.client, address[0]) as client:
        client.settimeout(3)
        client.connect(address)
        client.recv(100)
        before = traffic(cluster.lab, 10, "IPv6", "TCP")
        for turn, size in enumerate(sizes):
            with Load(cluster, "pod-1", 10, "ClusterIP", "IPv4") as inside:
                inside.run_for(20)
                cluster.kill()
                cluster.change_command((*PER_SERVICE, "--ebpf-map-size", size))
                cluster.start()
                inside.run_for(20)
                cluster.settle(COMPILES_S)
                inside.run_for(20)
            assert inside.failures == []
            client.sendall(b"still there?")
            assert client.recv(100) == b"still there?"
            resized = partial(size_of, cluster.lab, "flows")
            wanted = int(size.split(",")[0].split("=")[1])
            wait_for(resized, wanted)
            now = since(before, traffic(cluster.lab, 10, "IPv6", "TCP"))
            assert (now.flows, now.lost) == (0, 0), turn
            assert now.packets_in > 2 * turn
    said = len(cluster.log())
    until(lambda: "verified drift=0" in cluster.log()[said:], lambda: cluster.log()[said:])
    cluster.change_command(PER_SERVICE)
    cluster.kill()
    cluster.start()
    cluster.settle(COMPILES_S)


def wait_for(read: Callable[[], int], wanted: int) -> None:
    until(lambda: read() == wanted, lambda: f"it is {read()}", COMPILES_S)


def size_of(lab: Lab, name: str) -> int:
    with lab.node.namespace.entered():
        maps = store.opened_maps()
    try:
        return syscall.map_spec(maps[name]).entries
    finally:
        syscall.close_all(maps)


def test_a_map_that_is_nearly_full_is_told_and_a_table_that_does_not_fit_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What was served is served yet, and what did not fit comes with a larger map."""
    piece = endpoint_slice(endpoint("10.244.0.12"))
    services = [some_service("web", cluster_ips=("10.96.0.1",))]
    services += [some_service(f"s{n}", cluster_ips=(f"10.96.1.{n}",)) for n in range(20)]
    with Lab() as lab, lab.node.namespace.entered():
        assert lab.cgroup is not None
        host = table.Host(cgroup=str(lab.cgroup.path), map_sizes=(("services", 10), ("counters", 8)))
        tables = {n: replace(some_table(*services[:n], piece), host=host) for n in (8, 9, 12)}
        mode = EbpfMode()
        mode.sync(tables[8], None)
        assert [record.map for record in caplog.records if "nearly" in record.message] == ["counters"]  # type: ignore[attr-defined]
        mode.sync(tables[9], tables[9].routes.keys() - tables[8].routes.keys())
        (_, told) = (vars(record) for record in caplog.records if "nearly" in record.message)
        assert (told["map"], told["entries"], told["size"]) == ("services", 9, 10)
        assert told["enlarge_by"] == "--ebpf-map-size services=32"
        fills = {fill.map: (fill.entries, fill.size) for fill in mode.fills()}
        assert (fills["services"], fills["counters"]) == ((9, 10), (6, 6))
        for changed in (tables[12].routes.keys() - tables[9].routes.keys(), None):
            with pytest.raises(
                ModeError, match="the map services holds 10 entries, and it takes 12; nothing was chang"
            ):
                mode.sync(tables[12], changed)
            assert _reaches(lab, "10.96.0.1")
        larger = replace(tables[12], host=replace(host, map_sizes=(("services", 32),)))
        mode = EbpfMode()  # it takes a restart
        mode.sync(larger, None)
        assert mode.verify() == []
        traffic_by_name = mode.traffic()
        assert traffic_by_name is not None
        assert len(traffic_by_name) == 12 + 1
        assert _reaches(lab, "10.96.0.1")
        mode.sync(larger, larger.routes.keys())
        mode.cleanup()


def test_devices_that_do_not_fit_are_told() -> None:
    with Lab() as lab, lab.node.namespace.entered():
        assert lab.cgroup is not None
        host = table.Host(cgroup=str(lab.cgroup.path), map_sizes=(("devices", 2),))
        with pytest.raises(
            ModeError, match=r"the map devices holds 2 entries, and it takes 4; .*--ebpf-map-size devices=8"
        ):
            EbpfMode().sync(table.Table({}, host), None)


def _reaches(lab: Lab, address: str) -> bool:
    with open_socket(lab.pods["pod-1"], address) as client:
        client.settimeout(3)
        client.connect((address, 80))
        return client.getpeername() == (address, 80) and client.recv(100).startswith(b"pod-2 ")


def test_a_map_that_there_is_not_is_a_mistake(cluster: Cluster) -> None:
    for mode, size, said in (
        ("ebpf", "flow=3", "there is no map flow, but addresses, "),
        ("nftables", "flows=3", "mode nftables has no maps"),
        ("ebpf", "flows=many", "'flows=many' is not a map and its size, such as flows=524288"),
        ("ebpf", "flows=0", "'flows=0' is not within 1 to "),
    ):
        done = pyproxy(cluster.lab, "run", "--mode", mode, "--manifests", "/tmp", "--ebpf-map-size", size)
        assert done.returncode in (1, 2)
        assert said in done.stderr
        assert "Traceback" not in done.stderr
