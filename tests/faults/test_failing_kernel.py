"""The kernel, or the way to it, fails for a while: nothing half done, nothing lost, and it is made good."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.cluster import Candidate, Cluster, Load, until
from tests.conformance.manifests import service, slices, target
from tests.faults.failing_program import stand_before

WAYS = {
    "nft": Candidate("nftables"),
    "iptables-legacy-restore": Candidate("iptables", iptables="legacy"),
    "iptables-nft-restore": Candidate("iptables", iptables="nft"),
}
"""The program that fails, and who depends on it."""


@pytest.fixture(params=WAYS)
def program(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def flag(program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """While this file exists, the program fails."""
    return stand_before(program, tmp_path, monkeypatch)


@pytest.fixture
def cluster(program: str, flag: Path) -> Iterator[Cluster]:
    with Cluster(WAYS[program], minSyncPeriod="5ms") as running:
        yield running


def test_a_failed_sync_changes_nothing_and_the_next_repairs(cluster: Cluster, flag: Path) -> None:
    cluster.apply("one", service(1), *slices(1, ["pod-2"]))
    with Load(cluster, "client", 1, "NodePort", "IPv4") as load:
        flag.touch()
        cluster.write_objects("one", service(1), *slices(1, ["pod-3"]))
        cluster.write_objects("two", service(2), *slices(2, ["pod-4"]))
        until(lambda: cluster.log().count("sync failed") >= 2, lambda: "it never failed")
        load.run_for(50)
        assert {answer.pod for answer in load.answers} == {"pod-2"}
        flag.unlink()
        cluster.settle()
        load.run_for(50)
    assert load.failures == []
    assert load.answers[-1].pod == "pod-3"
    assert cluster.ask("pod-1", 2, "ClusterIP", "IPv6").pod == "pod-4"
    assert "Cannot allocate memory" in cluster.log()


def test_a_kernel_that_fails_from_the_start_is_tried_again(cluster: Cluster, flag: Path) -> None:
    cluster.apply("one", service(1), *slices(1, ["pod-2"]))
    cluster.kill()
    cluster.write_objects("one", service(1), *slices(1, ["pod-3"]))
    cluster.start()
    until(lambda: cluster.log().count("starting") == 2, lambda: "not started")
    flag.touch()
    cluster.write_objects("two", service(2), *slices(2, ["pod-4"]))  # where the first sync was faster than this
    until(lambda: "sync failed" in cluster.log(), lambda: "never tried")
    flag.unlink()
    cluster.settle()
    assert cluster.ask("pod-1", 1, "ClusterIP", "IPv4").pod == "pod-3"
    assert cluster.outcome("pod-1", *target(1, "LoadBalancer", "IPv4", "TCP")) == "pod-3"
