"""What an API server may do to a proxy: whatever it is, no connection fails, and the last state wins."""

import json
import signal
import time
from collections.abc import Iterator

import pytest

from tests.conformance import manifests
from tests.conformance.cluster import TOKEN, Candidate, Cluster, Load, until
from tests.conformance.manifests import service, slices, target

_AWAY_S = 60.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(Candidate("nftables"), minSyncPeriod="5ms") as running:
        running.apply("steady", service(1), *slices(1, ["pod-2", "pod-3"]))
        yield running


@pytest.fixture
def loads(cluster: Cluster) -> Iterator[list[Load]]:
    """Traffic from inside and outside, to a service that nobody changes. Not one of its connections may fail."""
    time.sleep(1.5)  # a watch that lasts so long ends the growth of waits, which one fault after the other would cause
    with (
        Load(cluster, "pod-1", 1, "ClusterIP", "IPv4") as inside,
        Load(cluster, "client", 1, "NodePort", "IPv6") as outside,
        Load(cluster, "node", 1, "ExternalIP", "IPv4", "UDP") as node,
    ):
        yield [inside, outside, node]
        for load in (inside, outside, node):
            load.run_for(20)
    assert inside.failures == outside.failures == node.failures == []


@pytest.mark.usefixtures("loads")
def test_a_server_that_is_away_for_a_minute_changes_nothing(cluster: Cluster) -> None:
    cluster.apply("other", service(2), *slices(2, ["pod-2"]))
    cluster.api.stop()
    try:
        time.sleep(1.0)
        said = len(cluster.log())
        time.sleep(_AWAY_S)
        assert cluster.ask("client", 2, "NodePort", "IPv4").pod == "pod-2"
        assert cluster.proxy.is_alive
        assert "synced" not in cluster.log()[said:]
    finally:
        cluster.api.start()
    cluster.write_objects("other", service(2), *slices(2, ["pod-3"]))
    cluster.settle(patience=40)  # the next try may be that far away
    assert cluster.ask("client", 2, "NodePort", "IPv4").pod == "pod-3"
    cluster.delete("other")


@pytest.mark.usefixtures("loads")
@pytest.mark.parametrize("first_version", [None, 1], ids=["as it was", "restored from a backup"])
def test_a_server_that_is_restarted_is_followed(cluster: Cluster, first_version: int | None) -> None:
    cluster.apply("other", service(2), *slices(2, ["pod-2"]))
    cluster.api.kill()
    cluster.api.start(first_version)
    cluster.write_objects("other", service(3), *slices(3, ["pod-3"]))
    cluster.settle(patience=40)  # the try after several that failed may be that far away
    assert cluster.ask("pod-1", 3, "ClusterIP", "IPv4").pod == "pod-3"
    assert cluster.outcome("client", *target(2, "NodePort", "IPv4", "TCP")) == "refused"
    cluster.delete("other")


@pytest.mark.usefixtures("loads")
def test_a_server_that_answers_410_to_everything_once_is_listed_anew(cluster: Cluster) -> None:
    cluster.apply("other", service(2), *slices(2, ["pod-2"]))
    cluster.api.fault({"answer": 410, "times": 3, "path": "/"}, {"cut": True})
    cluster.write_objects("other", service(3), *slices(3, ["pod-3"]))
    cluster.settle(patience=40)
    assert cluster.outcome("client", *target(2, "NodePort", "IPv4", "TCP")) == "refused"
    cluster.delete("other")


@pytest.mark.usefixtures("loads")
def test_half_a_list_takes_nothing_away(cluster: Cluster) -> None:
    many = [thing for number in range(100, 160) for thing in (service(number), *slices(number, ["pod-2"]))]
    cluster.apply("many", *many)
    time.sleep(1.0)  # until the sync that served it has also been logged
    said = len(cluster.log())
    cluster.api.fault({"halfList": True, "times": 6, "path": "/"}, {"line": "nonsense"})
    until(lambda: cluster.log()[said:].count("does not answer as hoped") >= 5, lambda: cluster.log()[said:])
    cluster.settle()
    log = cluster.log()[said:]
    assert "listed" in log
    assert all(int(line.split(" changed=")[1].split()[0]) < 10 for line in log.splitlines() if " synced " in line), log
    assert cluster.ask("client", 159, "NodePort", "IPv4").pod == "pod-2"
    cluster.delete("many")


@pytest.mark.usefixtures("loads")
def test_a_proxy_that_starts_with_half_a_list_writes_nothing_of_it(cluster: Cluster) -> None:
    many = [thing for number in range(100, 160) for thing in (service(number), *slices(number, ["pod-2"]))]
    cluster.apply("many", *many)
    cluster.kill()
    cluster.api.fault({"halfList": True, "times": 6, "path": "/"})
    with Load(cluster, "client", 159, "NodePort", "IPv4") as load:
        cluster.start()
        cluster.settle()
        load.run_for(50)
    assert load.failures == []
    cluster.delete("many")


@pytest.mark.usefixtures("loads")
def test_a_rotated_token_is_taken_up(cluster: Cluster) -> None:
    cluster.api.fault({"tokens": ["another"]}, {"cut": True})
    said = len(cluster.log())
    until(lambda: "Unauthorized" in cluster.log()[said:], lambda: "still let in")
    cluster.token_file.write_text("another")
    cluster.apply("other", service(2), *slices(2, ["pod-2"]))
    assert cluster.ask("pod-1", 2, "ClusterIP", "IPv4").pod == "pod-2"
    cluster.token_file.write_text(TOKEN)
    cluster.api.fault({"tokens": [TOKEN]})
    cluster.delete("other")


@pytest.mark.usefixtures("loads")
def test_2000_changes_in_5_seconds_end_in_the_last_state_with_few_syncs(cluster: Cluster) -> None:
    """With a sync at most every 100 ms, as the default is."""
    cluster.configure(minSyncPeriod="100ms")
    until(lambda: "the configuration changed; applying it" in cluster.log(), lambda: "not reloaded")
    cluster.apply("storm", service(2), *slices(2, ["pod-2"]))
    said = len(cluster.log())
    started = time.monotonic()
    for burst in range(100):
        pods = ["pod-2", "pod-3"] if burst % 2 else ["pod-4"]
        pieces = [manifests.endpoint_slice(2, "IPv4", slices(2, pods)[0]["endpoints"]) for _ in range(20)]
        for turn, piece in enumerate(pieces):
            piece["endpoints"][0]["conditions"] = {"ready": turn % 2 == 1}
        cluster.api.apply(pieces)
        time.sleep(max(0.0, started + (burst + 1) * 0.05 - time.monotonic()))
    took = time.monotonic() - started
    cluster.settle()
    assert cluster.pods_of(40, "pod-1", 2, "ClusterIP", "IPv4") == {"pod-2", "pod-3"}
    assert cluster.log()[said:].count(" synced ") <= took / 0.1 + 3
    cluster.delete("storm")
    cluster.configure(minSyncPeriod="5ms")


@pytest.mark.usefixtures("loads")
def test_a_proxy_killed_between_two_syncs_and_in_the_midst_of_one_leaves_no_gap(cluster: Cluster) -> None:
    many = [thing for number in range(100, 160) for thing in (service(number), *slices(number, ["pod-2"]))]
    for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
        cluster.write_objects("many", *many)
        time.sleep(delay)
        cluster.kill(signal.SIGKILL)
        cluster.start()
        cluster.remove_objects("many")
        time.sleep(0.4 + delay)  # the first sync of a start is under way about now
        cluster.kill(signal.SIGKILL)
        cluster.start()
        cluster.settle()
        assert cluster.outcome("client", *target(159, "NodePort", "IPv4", "TCP")) == "refused"


def test_a_broken_configuration_changes_nothing_and_is_named(cluster: Cluster) -> None:
    said = len(cluster.log())
    text = cluster.config.read_text()
    cluster.config.write_text(text.replace('"clusterCIDR"', '"clusterCIDRs"'))
    until(lambda: "clusterCIDRs" in cluster.log()[said:], lambda: "no word of it")
    assert "the last good one stays in force" in cluster.log()[said:]
    assert cluster.proxy.is_alive
    cluster.config.write_text(text)
    cluster.settle()


def test_a_configuration_that_takes_a_restart_ends_the_proxy_with_0(cluster: Cluster) -> None:
    with Load(cluster, "pod-1", 1, "ClusterIP", "IPv4") as load:
        text = cluster.config.read_text()
        configuration = json.loads(text) | {"metricsBindAddress": "127.0.0.1:10250"}
        cluster.config.write_text(json.dumps(configuration))
        until(lambda: not cluster.proxy.is_alive, lambda: "still running")
        assert cluster.proxy.stop() == 0
        cluster.configure()
        cluster.start()
        cluster.settle()
        load.run_for(20)
    assert load.failures == []


def test_masquerade_all_takes_effect_without_a_restart(cluster: Cluster) -> None:
    assert cluster.ask("pod-1", 1, "ClusterIP", "IPv4").source == "10.244.0.11"
    cluster.configure(masqueradeAll=True)
    masqueraded = cluster.lab.node.ipv4
    until(lambda: cluster.ask("pod-1", 1, "ClusterIP", "IPv4").source == masqueraded, lambda: "source still kept")
    cluster.configure()
    until(lambda: cluster.ask("pod-1", 1, "ClusterIP", "IPv4").source == "10.244.0.11", lambda: "still masqueraded")


def test_a_zone_that_changes_takes_effect_without_a_restart(cluster: Cluster) -> None:
    hinted = {"pod-2": {"hints": {"forZones": [{"name": "zone-a"}]}}, "pod-3": {"hints": {"forZones": [{"name": "b"}]}}}
    cluster.apply("zones", service(2), *slices(2, hinted))
    assert cluster.pods_of(20, "pod-1", 2, "ClusterIP", "IPv4") == {"pod-2"}
    moved = manifests.node()
    moved["metadata"]["labels"]["topology.kubernetes.io/zone"] = "b"
    cluster.write_objects("node", moved)
    until(lambda: cluster.pods_of(5, "pod-1", 2, "ClusterIP", "IPv4") == {"pod-3"}, lambda: "the zone is the old one")
    cluster.write_objects("node", manifests.node())
    cluster.delete("zones")
