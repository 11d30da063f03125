"""What iptables mode meets on a host where others use iptables, too."""

import fcntl
import time
from pathlib import Path

import pytest

from tests.conformance.cluster import Candidate, Cluster, Load, until
from tests.conformance.manifests import service, slices

LEGACY = Candidate("iptables", iptables="legacy")
_HELD_S = 5


def test_the_lock_held_elsewhere_delays_a_sync_and_breaks_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "xtables.lock"
    monkeypatch.setenv("XTABLES_LOCKFILE", str(path))
    with Cluster(LEGACY, minSyncPeriod="5ms") as cluster:
        cluster.apply("one", service(1), *slices(1, ["pod-2"]))
        with Load(cluster, "client", 1, "NodePort", "IPv4") as load:
            with path.open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                cluster.write_objects("one", service(1), *slices(1, ["pod-3"]))
                time.sleep(_HELD_S)
                assert {answer.pod for answer in load.answers} == {"pod-2"}
            cluster.settle()
            load.run_for(30)
        assert load.failures == []
        assert load.answers[-1].pod == "pod-3"
        assert "sync failed" not in cluster.log()


def test_affinity_says_how_many_clients_it_remembers() -> None:
    limit = Path("/sys/module/xt_recent/parameters/ip_list_tot").read_text().strip()
    with Cluster(LEGACY, minSyncPeriod="5ms") as cluster:
        assert "ip_list_tot" not in cluster.log()
        for number in (1, 2):
            cluster.apply(f"{number}", service(number, sessionAffinity="ClientIP"), *slices(number, ["pod-2", "pod-3"]))
        told = [line for line in cluster.log().splitlines() if "ip_list_tot" in line]
        assert len(told) == 1
        assert f"clients={limit}" in told[0]


def test_a_rule_that_the_kernel_does_not_take_fails_no_other_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the program refuses the match `recent`, as it does where the kernel or its module lacks."""
    wrapper = tmp_path / "iptables-legacy-restore"
    wrapper.write_text(
        "#!/bin/sh\nscript=$(cat; echo .)\n"
        'case "$script" in *"-m recent"*) echo "Could not load match" >&2; exit 2;; esac\n'
        f'printf %s "${{script%.}}" | /usr/sbin/{wrapper.name} "$@"\n'
    )
    wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/sbin:/usr/bin:/sbin:/bin")
    with Cluster(LEGACY, minSyncPeriod="5ms") as cluster:
        cluster.apply("sticky", service(1, sessionAffinity="ClientIP"), *slices(1, ["pod-2"]))
        cluster.apply("plain", service(2), *slices(2, ["pod-3"]))
        assert cluster.ask("pod-1", 2, "ClusterIP", "IPv4").pod == "pod-3"
        until(lambda: "xt_recent" in cluster.log(), lambda: "nothing was said")
        assert "sync failed" not in cluster.log()
