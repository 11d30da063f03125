"""Another mode takes over while traffic flows: nothing fails, and what the one before left is removed."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.ask import open_socket
from ebpf import pins
from pyproxy import modes
from tests.conformance.cluster import ANSWER_S, FOUND_S, Cluster, Load, until
from tests.conformance.known import known
from tests.conformance.manifests import FAMILIES, service, slices, target

pytestmark = pytest.mark.own

# How to see, and what, of a mode that has written something.
TRACES = {
    # A table without maps is only left for connections that are open, as are relays that do not listen, and virtual
    # servers without sets.
    "nftables": (["nft", "list", "maps"], b"map services"),
    "iptables": (
        ["sh", "-c", "set -e; for i in ip ip6; do ${i}tables-legacy-save; ${i}tables-nft-save; done"],
        b"PYPROXY-SERVICES",
    ),
    "ipvs": (["ipset", "list", "-name"], b"PYPROXY_IPVS-"),
    "userspace": (["ss", "-xlH"], b"@pyproxy-relay"),
    "ebpf": ([sys.executable, "-m", "tests.conformance.meddle_ebpf", "show"], b"program connect4"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "other" in metafunc.fixturenames:
        mode = metafunc.config.getoption("--mode")
        runnable = [name for name in modes.names() if modes.load(name).probe() is None]
        metafunc.parametrize("other", [name for name in runnable if name != mode])


@pytest.fixture
def own(cluster: Cluster) -> Iterator[Cluster]:
    """The session's cluster, which is in its own mode again afterwards."""
    mode = cluster.mode
    if known(mode).connects_sockets:
        until(lambda: not remembered_by_ipvs(cluster), lambda: f"IPVS remembers {remembered_by_ipvs(cluster)}", FOUND_S)
    yield cluster
    if cluster.mode != mode:
        cluster.switch(mode)
    cluster.settle()


def has_traces(cluster: Cluster, mode: str) -> bool:
    command, what = TRACES[mode]
    written: list[bytes] = []

    def is_read() -> bool:
        try:
            written.append(cluster.lab.node.namespace.run(command).stdout)
        except subprocess.CalledProcessError:
            return False  # a set may go after the rule was read that names it
        return True

    until(is_read, lambda: f"what {mode} mode wrote can't be read: {command}")
    return what in written[0]


def lingers(cluster: Cluster) -> bool:
    """Whether ebpf mode is there yet for connections of a test before: it leaves the devices with the last of them."""
    with cluster.lab.node.namespace.entered():
        return pins.folder().exists()


def remembered_by_ipvs(cluster: Cluster) -> list[str]:
    """Connections of tests before, to other Services with the same endpoints: whoever comes by the port of one of them,
    from outside too, hears nothing in ebpf mode (Known.answers_for_its_own). It forgets them soon after the last is
    closed."""
    with cluster.lab.node.namespace.entered():
        path = Path("/proc/thread-self/net/ip_vs_conn")
        return path.read_text().splitlines()[1:] if path.exists() else []


def established(cluster: Cluster, who: str, number: int, kind: str, family: str) -> socket.socket:
    address, port = target(number, kind, family, "TCP")
    client = open_socket(cluster.host(who), address)
    client.settimeout(ANSWER_S)
    client.connect((address, port))
    client.recv(100)
    return client


def answer(client: socket.socket) -> str:
    """Of the other side, if it is still there, or what came instead."""
    try:
        client.sendall(b"still there?")
        return client.recv(100).decode()
    except OSError as error:
        return repr(error)


def has_only(cluster: Cluster, mode: str) -> None:
    """Wait until no other mode has something in the kernel."""
    others = TRACES.keys() - {mode}
    until(
        lambda: not any(has_traces(cluster, other) for other in others),
        lambda: f"there is something of {[other for other in others if has_traces(cluster, other)]}",
    )
    assert has_traces(cluster, mode)


@pytest.mark.parametrize("number_of_signal", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_modes_take_over_from_each_other_under_load(
    own: Cluster, number: int, other: str, number_of_signal: signal.Signals
) -> None:
    mode = own.mode
    own.apply("switch", service(number), *slices(number, ["pod-2", "pod-3", "pod-4"]))
    are_cut, present = False, {mode, other} | ({"ebpf"} if lingers(own) else set())
    with (
        ExitStack() as stack,
        Load(own, "pod-1", number, "ClusterIP", "IPv4") as inside,
        Load(own, "client", number, "NodePort", "IPv6") as outside,
        Load(own, "pod-3", number, "LoadBalancer", "IPv6", "UDP") as datagrams,
    ):
        clients: list[socket.socket] = []
        for before, turn in ((mode, other), (other, mode)):
            clients += [
                stack.enter_context(established(own, "client", number, "NodePort", "IPv4")),
                stack.enter_context(established(own, "pod-1", number, "ClusterIP", "IPv6")),
            ]
            own.switch(turn, number_of_signal)
            has_only(own, turn)
            for load in (inside, outside, datagrams):
                load.run_for(30)
            is_lost = turn in known(before).loses_open_connections_to
            said = [answer(one) for one in clients]
            assert [one == "still there?" for one in said] == [not is_lost] * len(clients), said
            if is_lost:
                are_cut, clients = True, []
    # Each load has one request open at a time.
    failures = [load.failures for load in (inside, outside, datagrams)]
    pair = known(mode), known(other)
    with_endpoints = 3 * max(one.datagrams_lost_with_an_endpoint for one in pair)  # all of which go at once
    connects = any(one.connects_sockets for one in pair)
    remembered = max(one.answers_for_its_own for one in pair) if connects else 0
    with_devices = max(known(one).datagrams_lost_with_devices for one in present)
    allowed = (are_cut + remembered, are_cut, are_cut * (1 + with_endpoints) + remembered + with_devices)
    assert all(len(some) <= most for some, most in zip(failures, allowed, strict=True)), failures
    assert {answer.pod for answer in inside.answers} == {"pod-2", "pod-3", "pod-4"}
    own.delete("switch")


def test_what_changed_with_the_mode_takes_effect(own: Cluster, number: int, other: str) -> None:
    own.apply("switch", service(number), *slices(number, ["pod-2"]))
    own.kill()
    own.write_objects("switch", service(number), *slices(number, ["pod-4"]))
    own.switch(other)
    has_only(own, other)
    for family in FAMILIES:
        assert own.pods_of(10, "pod-1", number, "ClusterIP", family) == {"pod-4"}
    own.delete("switch")
