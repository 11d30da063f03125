"""Two nodes of one cluster, with a proxy each that never spoke to the other: flows get the same endpoint from both."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bench.ask import exchange, open_socket
from bench.demo import EXAMPLES
from bench.lab import Host, Lab
from bench.subject import pyproxy_run
from ebpf import pins
from tests.conformance.cluster import until

NODE_PORTS = {"TCP": 30080, "UDP": 30053}
PODS = {"pod-1", "pod-2", "pod-3", "pod-4"}
FLOWS = range(20000, 20040)
STARTS_IN_S = 60.0


@contextmanager
def proxy(lab: Lab, host: Host, group: Path, log: Path, *flags: str) -> Iterator[None]:
    """Of a node, whose pins are gone afterwards."""
    command = pyproxy_run("ebpf", "--manifests", EXAMPLES, "--nodeport-addresses", "172.18.0.0/24", *flags)
    with log.open("wb") as out:
        host.namespace.start([*command, "--cgroup", group], stdout=out, stderr=out)
    try:
        until(lambda: "synced" in log.read_text(), log.read_text, STARTS_IN_S)
        yield
    finally:
        with host.namespace.entered():
            pins.remove(pins.folder())


@pytest.fixture
def group(lab: Lab) -> Iterator[Path]:
    """Of the second node: nobody is in it."""
    assert lab.cgroup is not None
    path = lab.cgroup.path.with_name(lab.cgroup.path.name + "-2")
    path.mkdir()
    yield path
    path.rmdir()


def chosen(lab: Lab, address: str, protocol: str) -> list[str]:
    return [_pod(lab.client, port, address, protocol) for port in FLOWS]


def _pod(client: Host, source_port: int, address: str, protocol: str) -> str:
    with open_socket(client, address, protocol) as asker:
        asker.settimeout(3)
        asker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        asker.bind(("", source_port))
        return exchange(asker, address, NODE_PORTS[protocol]).pod


def test_a_flow_gets_the_same_endpoint_from_both(lab: Lab, group: Path, tmp_path: Path) -> None:
    assert lab.cgroup is not None
    maglev = ("--ebpf-algorithm", "maglev")
    with (
        proxy(lab, lab.node, lab.cgroup.path, tmp_path / "one", *maglev),
        proxy(lab, lab.node2, group, tmp_path / "other", *maglev),
    ):
        for protocol in NODE_PORTS:
            one, other = (chosen(lab, host.ipv4, protocol) for host in (lab.node, lab.node2))
            assert one == other
            assert set(one) == PODS
