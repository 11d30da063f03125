"""What iptables mode meets on a host where others use iptables, too."""

import fcntl
import time
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from bench.lab import Lab
from modes.iptables.mode import IptablesMode
from pyproxy.table import IP, Backend, Family, Frontend, Host, Pool, Prefix, RouteId, Scope, Table
from tests.conformance.cluster import Candidate, Cluster, Load, until
from tests.conformance.manifests import service, slices
from tests.faults.routes import cluster_ip_route

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


@pytest.mark.parametrize("flavour", ["legacy", "nft"])
def test_no_service_makes_chains_that_the_kernel_finds_too_deep(flavour: str) -> None:
    """nf_tables takes sixteen on a packet's way; this service has as many of each sort as it can get."""
    pool = Pool(tuple(Backend(IP(f"10.200.{number >> 8}.{number & 255}"), 80, False) for number in range(5000)))
    with Lab(flavour) as lab, lab.node.namespace.entered():
        for family, base, bits in (
            (Family.IPV4, IPv4Address("128.0.0.0"), 31),
            (Family.IPV6, IPv6Address("2001::"), 110),
        ):
            hostile = [base + number for number in range(9)] + [base + 9 + (1 << bit) for bit in range(4, bits)]
            one = replace(
                cluster_ip_route("10.96.0.1", 80, pool if family is Family.IPV4 else Pool(())),
                id=RouteId("default", "hostile", "http", family),
                frontends=tuple(Frontend(IP(str(address)), 80, Scope.LOAD_BALANCER) for address in hostile),
                masquerade_external=False,
                allowed_sources=(Prefix("192.0.2.0/24"), Prefix("2001:db8::/32")),
            )
            IptablesMode().sync(Table({one.id: one}, Host()), None)
