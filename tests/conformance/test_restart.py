"""Stopping the proxy stops no traffic, starting it breaks none."""

import json
import signal

import pytest

from tests.conformance.cluster import Candidate, Cluster, Load, load_every_way, until
from tests.conformance.manifests import service, slices, target


def all_answer(loads: list[Load]) -> None:
    for load in loads:
        load.run_for(20)


@pytest.mark.parametrize("number_of_signal", [signal.SIGKILL, signal.SIGTERM], ids=["SIGKILL", "SIGTERM"])
def test_a_restart_under_load_fails_no_connection(
    cluster: Cluster, number: int, number_of_signal: signal.Signals
) -> None:
    cluster.apply("restart", service(number), *slices(number, ["pod-2", "pod-3", "pod-4"]))
    with load_every_way(cluster, number) as loads:
        for _ in range(3):
            cluster.kill(number_of_signal)
            all_answer(loads)
            cluster.start()
            all_answer(loads)
            cluster.settle()
    assert {load.name: load.failures for load in loads if load.failures} == {}
    cluster.delete("restart")


def test_sigterm_ends_with_status_0_and_leaves_the_kernel_forwarding(cluster: Cluster, number: int) -> None:
    cluster.apply("stop", service(number), *slices(number, ["pod-2"]))
    assert cluster.kill(signal.SIGTERM) == 0
    assert cluster.ask("client", number, "NodePort", "IPv4").pod == "pod-2"
    cluster.start()
    cluster.delete("stop")


def test_what_changed_while_the_proxy_was_away_is_caught_up(cluster: Cluster, number: int) -> None:
    cluster.apply("away", service(number), *slices(number, ["pod-2"]))
    cluster.kill()
    cluster.remove_objects("away")
    cluster.start()
    cluster.settle()
    assert cluster.outcome("client", *target(number, "NodePort", "IPv4", "TCP")) == "refused"


def test_an_established_connection_survives_a_restart(cluster: Cluster, number: int) -> None:
    cluster.apply("established", service(number), *slices(number, ["pod-2", "pod-3"]))
    address, port = target(number, "LoadBalancer", "IPv4", "TCP")
    from bench.ask import open_socket

    with open_socket(cluster.host("client"), address) as client:
        client.settimeout(3)
        client.connect((address, port))
        client.recv(100)
        cluster.kill()
        cluster.start()
        cluster.settle()
        client.sendall(b"still there?")
        assert client.recv(100) == b"still there?"
    cluster.delete("established")


@pytest.mark.own
def test_logs_are_json_if_asked(candidate: Candidate) -> None:
    with Cluster(candidate, logging={"format": "json"}) as other:
        until(lambda: '"synced"' in other.log(), lambda: "no word of a sync")
        lines = [json.loads(line) for line in other.log().splitlines()]
    assert {"starting", "synced"} <= {line["message"] for line in lines}
