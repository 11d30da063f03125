"""How many rules a new connection walks through, told by the kernel's own packet counters: a logarithm, not a sum."""

import math
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest

from bench.ask import open_socket
from bench.lab import SERVER_PORT, Lab
from modes.iptables.mode import IptablesMode
from pyproxy.table import IP, Backend, Host, Pool, Prefix, Route, Table
from tests.faults.routes import cluster_ip_route

SIZES = (10, 1_000, 10_000)
SAMPLES = 12
HOST = Host(pod_prefixes=(Prefix("10.244.0.0/16"),))

Counted = dict[str, list[tuple[int, str]]]
"""By chain: each rule with how many packets it matched."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("legacy") as lab:
        yield lab


def route(number: int, pool: Pool) -> Route:
    return cluster_ip_route(f"10.{96 + (number >> 16)}.{number >> 8 & 255}.{number & 255}", 80, pool)


def write(lab: Lab, routes: list[Route]) -> None:
    with lab.node.namespace.entered():
        IptablesMode().sync(Table({route.id: route for route in routes}, HOST), None)


def walked(lab: Lab, address: str, port: int) -> int:
    """The rules of table nat that a connection of a pod's is held against; whether anybody answers does not matter."""
    node = lab.node.namespace
    node.run(["iptables-legacy", "-t", "nat", "-Z"])
    with open_socket(lab.pods["pod-1"], address) as knocking:
        knocking.settimeout(0.05)
        with suppress(TimeoutError):
            knocking.connect((address, port))
    counted = _counted(node.run(["iptables-legacy-save", "-t", "nat", "-c"]).stdout.decode())
    return sum(_walk(counted, hook)[0] for hook in ("PREROUTING", "POSTROUTING"))


def _counted(saved: str) -> Counted:
    chains: Counted = {}
    for line in saved.splitlines():
        if line.startswith("["):
            counters, _, chain, rule = line.split(" ", 3)
            chains.setdefault(chain, []).append((int(counters[1:].split(":")[0]), rule))
    return chains


def _walk(chains: Counted, chain: str) -> tuple[int, bool]:
    """Rules looked at from there on, and whether one of them ended it."""
    looked_at = 0
    for packets, rule in chains.get(chain, ()):
        looked_at += 1
        if not packets:
            continue
        # A multicast packet of the node's own may pass meanwhile, which no chain of ours knows.
        assert packets == 1 or chain == "PREROUTING", (chain, rule)
        found = re.search(r"(-[jg]) (\S+)", rule)
        assert found, rule
        verb, target = found.groups()
        if target == "RETURN":
            return looked_at, False
        if target in ("DNAT", "MASQUERADE", "ACCEPT"):
            return looked_at, True
        more, ended = _walk(chains, target)  # nothing after MARK, which is no chain
        looked_at += more
        if ended or verb == "-g":
            return looked_at, ended
    return looked_at, False


def test_among_services_it_grows_with_the_logarithm(lab: Lab) -> None:
    pods = [lab.pods[name] for name in ("pod-2", "pod-3")]
    pool = Pool(tuple(Backend(IP(pod.ipv4), SERVER_PORT, True) for pod in pods))
    most, bystander = {}, {}
    for size in SIZES:
        routes = [route(number, pool) for number in range(1, size + 1)]
        write(lab, routes)
        sample = routes[:: max(1, size // SAMPLES)]
        most[size] = max(walked(lab, one.frontends[0].address, 80) for one in sample)
        bystander[size] = walked(lab, lab.pods["pod-4"].ipv4, SERVER_PORT)
    for size in SIZES:
        assert most[size] <= 30 + 8 * math.log2(size) / 3, most
    assert len(set(bystander.values())) == 1, bystander


def test_among_endpoints_too(lab: Lab) -> None:
    most = {}
    for size in (10, 1_000, 5_000):
        backends = tuple(Backend(IP(f"10.200.{number >> 8}.{number & 255}"), 80, False) for number in range(size))
        write(lab, [route(1, Pool(backends))])
        most[size] = max(walked(lab, "10.96.0.1", 80) for _ in range(SAMPLES))
    for size, rules in most.items():
        assert rules <= 16 + 8 * math.log2(size) / 3, most
