"""Relays that work together, follow each other, and are spoken to by whoever does not keep to the rules."""

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from bench.ask import datagram, open_socket
from bench.lab import Lab
from modes.userspace import protocol
from modes.userspace.mode import UserspaceMode
from modes.userspace.poller import READ, Poller
from modes.userspace.relay_process import found, processes
from pyproxy.table import Host, ModeError, Table
from tests.conformance.cluster import OURS, Candidate, Cluster, Load, until
from tests.conformance.manifests import service, slices, target
from tests.faults.test_userspace import connected

# A proxy of another version that is killed when it is about to do what is named.
_DIES = """
import os, signal, sys
from modes.userspace import protocol, relay_process
from modes.userspace.relays import Relays
protocol.version = lambda: "another"
setattr(relay_process.Relay, sys.argv[1], lambda *_: os.kill(os.getpid(), signal.SIGKILL))
Relays().muster(1)
"""


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with Cluster(Candidate("userspace"), syncPeriod="1s", minSyncPeriod="5ms") as running:
        yield running


def relays(cluster: Cluster) -> set[int]:
    with cluster.lab.node.namespace.entered():
        return set(processes())


def _name(cluster: Cluster) -> str:
    """Of the relay's socket, without the NUL that abstract names begin with."""
    with cluster.lab.node.namespace.entered():
        lines = Path("/proc/thread-self/net/unix").read_text().splitlines()
    return next(line.split()[-1].removeprefix("@") for line in lines if "@pyproxy-relay-" in line)


def restart(cluster: Cluster, workers: int) -> None:
    cluster.kill()
    cluster.change_command((*OURS, "--userspace-workers", str(workers)))
    cluster.start()
    cluster.settle()


def test_relays_share_the_work_and_become_more_and_fewer_without_a_failure(cluster: Cluster) -> None:
    cluster.apply(
        "svc",
        *(service(1), *slices(1, ["pod-2", "pod-3"])),
        *(service(2, sessionAffinity="ClientIP"), *slices(2, ["pod-2", "pod-3", "pod-4"])),
    )
    for workers in (3, 1, 2):
        with (
            Load(cluster, "pod-1", 1, "ClusterIP", "IPv4") as inside,
            Load(cluster, "client", 1, "NodePort", "IPv6") as outside,
        ):
            inside.run_for(30)
            restart(cluster, workers)
            inside.run_for(30)
            outside.run_for(30)
        assert inside.failures == outside.failures == []
        with cluster.lab.node.namespace.entered():
            numbers = sorted(relay.number for relay in found())
        assert numbers == list(range(workers))  # besides those that end with their last UDP flow
        assert len(cluster.pods_of(30, "pod-1", 2, "ClusterIP", "IPv4")) == 1
        address, port = target(1, "ClusterIP", "IPv4", "UDP")
        with open_socket(cluster.host("pod-1"), address, "UDP") as client:
            client.settimeout(3)
            client.connect((address, port))
            assert len({datagram(client).pod for _ in range(30)}) == 1


def test_a_relay_that_dies_is_replaced_and_the_others_go_on(cluster: Cluster) -> None:
    restart(cluster, 2)
    cluster.apply("svc", service(1), *slices(1, ["pod-2", "pod-3"]))
    with cluster.lab.node.namespace.entered():
        victim, other = sorted(found(), key=lambda relay: relay.number)
    os.kill(victim.process, signal.SIGKILL)
    until(lambda: len(relays(cluster)) == 2, lambda: f"there are {relays(cluster)}")
    cluster.settle()
    assert other.process in relays(cluster)
    for protocol_ in ("TCP", "UDP"):
        assert cluster.pods_of(20, "pod-1", 1, "ClusterIP", "IPv4", protocol_) == {"pod-2", "pod-3"}


@pytest.mark.parametrize("point", ["lend", "change", "leave"])
def test_a_takeover_that_is_cut_short_is_taken_up_again(cluster: Cluster, point: str) -> None:
    cluster.apply("svc", service(1), *slices(1, ["pod-2", "pod-3"]))
    with (
        connected(cluster, 1) as client,
        Load(cluster, "pod-1", 1, "ClusterIP", "IPv4") as inside,
        Load(cluster, "client", 1, "NodePort", "IPv6") as outside,
    ):
        cluster.kill()
        died = cluster.lab.node.namespace.start([sys.executable, "-c", _DIES, point])
        assert died.wait(20) == -signal.SIGKILL
        assert len(relays(cluster)) == 2
        inside.run_for(20)
        cluster.start()
        cluster.settle()
        outside.run_for(30)
        client.sendall(b"still there?")
        assert client.recv(100) == b"still there?"
    assert inside.failures == outside.failures == []
    until(lambda: len(relays(cluster)) == 1, lambda: f"there are {relays(cluster)}")


def test_one_that_can_not_be_started_fails_the_sync_and_not_the_proxy(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with lab.node.namespace.entered(), pytest.raises(ModeError, match="can't be started: No such file or directory"):
        UserspaceMode().sync(Table({}, Host()), None)


def test_who_says_half_a_sentence_to_a_relay_keeps_nobody_waiting(cluster: Cluster) -> None:
    cluster.apply("svc", service(1), *slices(1, ["pod-2"]))
    with cluster.lab.node.namespace.entered():
        (relay,) = found()
        channel = socket.socket(socket.AF_UNIX)
    with channel:
        channel.connect("\0" + _name(cluster))
        (data, _) = next(protocol.pack(protocol.Hello()))
        channel.sendall(data[:3])
        assert cluster.outcome("pod-1", *target(1, "ClusterIP", "IPv4", "TCP")) == "pod-2"
        channel.sendall(data[3:])
        assert channel.recv(1)
        channel.sendall(b"\xff\xff\xff\xff")  # longer than any message
        until(lambda: not channel.recv(1 << 16), lambda: "it goes on listening to nonsense")
    assert relay.state().failures == 0
    relay.close()


def test_a_stranger_neither_steers_a_relay_nor_is_taken_for_one(cluster: Cluster) -> None:
    node = cluster.lab.node.namespace
    stranger = "import os, socket, sys; os.setuid(65534); one = socket.socket(socket.AF_UNIX); one.settimeout(9)\n"
    steers = "one.connect('\\0' + sys.argv[1])\ntry: sys.exit(one.recv(1) != b'')\nexcept ConnectionResetError: pass"
    node.run([sys.executable, "-c", stranger + steers, _name(cluster)])
    poses = "one.bind('\\0pyproxy-relay-0'); one.listen(); print('ready', flush=True); one.accept()[0].recv(1)"
    server = node.start([sys.executable, "-c", stranger + poses], stdout=-1)
    assert server.stdout is not None
    assert server.stdout.readline() == b"ready\n"
    with node.entered():
        (relay,) = found()
    relay.close()


def test_a_relay_that_does_not_answer_is_ended(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modes.userspace.relay_process._PATIENCE_S", 0.2)
    with cluster.lab.node.namespace.entered():
        (relay,) = found()
        cluster.proxy.stop(signal.SIGKILL)
        os.kill(relay.process, signal.SIGSTOP)
        with pytest.raises(protocol.Lost, match="does not answer"):
            relay.state()
        until(lambda: relay.process not in processes(), lambda: "it is still there")


def test_a_mistake_in_one_callback_ends_nothing_else() -> None:
    poller = Poller()
    with ExitStack() as stack:
        first, second = (stack.enter_context(one) for one in socket.socketpair())
        second.send(b"!")

        def fails(_: int) -> None:
            poller.every_tick(lambda _: poller.stop())
            poller.forget(first.fileno())
            raise ValueError("a mistake")

        poller.watch(first.fileno(), READ, fails)
        poller.run()
    count, last = poller.take_failures()
    assert count == 1
    assert "ValueError: a mistake (fails, line" in last
    assert poller.take_failures() == (0, "")
