"""A port of the node is given once, whoever masquerades by it: ebpf mode does not ask conntrack, nor is it in there."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from socket import socket

import pytest

from bench.ask import ask, open_socket
from bench.lab import SERVER_PORT, Lab
from modes.ebpf import site
from modes.ebpf.mode import EbpfMode
from modes.nftables.mode import NftablesMode
from pyproxy.kernel import masquerade, nft
from pyproxy.kernel.masquerade import Use
from pyproxy.table import Host, InUse, Prefix, Table
from tests.conformance.cluster import until
from tests.unit.samples import endpoint, endpoint_slice, service, table

ADDRESS, PORT = "203.0.113.1", 80
PODS = {name: f"10.244.0.{number}" for name, number in (("pod-2", 12), ("pod-3", 13))}
TCP = 6


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab, lab.node.namespace.entered():
        yield lab


def table_of(lab: Lab) -> Table:
    web = service(external_ips=(ADDRESS,))
    assert lab.cgroup is not None
    host = Host(pod_prefixes=(Prefix("10.244.0.0/16"),), cgroup=str(lab.cgroup.path))
    return replace(table(web, endpoint_slice(*map(endpoint, PODS.values()))), host=host)


@contextmanager
def connected(lab: Lab) -> Iterator[dict[str, socket]]:
    """Connections from outside to the service, one to each pod, which stay open."""
    with ExitStack() as stack:
        found: dict[str, socket] = {}
        while found.keys() != PODS.keys():
            client = stack.enter_context(open_socket(lab.client, ADDRESS))
            client.settimeout(0.5)
            try:
                client.connect((ADDRESS, PORT))
            except TimeoutError:
                continue  # there is no port to that pod any more
            pod = client.recv(100).decode().split()[0]
            if pod in found:
                client.close()
            else:
                found[pod] = client
        yield found


def go_on(clients: dict[str, socket]) -> bool:
    for client in clients.values():
        client.sendall(b"still there?")
    return all(client.recv(100) == b"still there?" for client in clients.values())


def use(clients: dict[str, socket], used: list[Use], pod: str) -> Use:
    """The port that the pod's client is masqueraded by."""
    seen = {one.endpoint: one for one in used if one.endpoint_port == SERVER_PORT}
    assert seen.keys() == set(PODS.values()), clients
    return seen[PODS[pod]]


def test_a_port_that_netfilter_gave_is_not_given_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ebpf mode takes over while it has no other port at all for one of the endpoints."""
    former = NftablesMode()
    former.sync(table_of(lab), None)
    with connected(lab) as clients:
        taken = use(clients, list(masquerade.in_use()), "pod-2")
        monkeypatch.setattr(site, "_ports", lambda: range(taken.port, taken.port + 1))
        EbpfMode().sync(table_of(lab), None)
        outcomes = []
        for _ in range(12):
            try:
                outcomes.append(ask(lab.client, ADDRESS, PORT, timeout=0.3).pod)
            except TimeoutError:
                outcomes.append("no port")
        assert "pod-2" not in outcomes
        assert "no port" in outcomes
        assert go_on(clients)
        with pytest.raises(InUse):
            list(former.retire(EbpfMode()))
        assert go_on(clients)


def test_netfilter_gives_no_port_that_a_flow_has(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ebpf mode retires while netfilter may choose between that very port and one other."""
    monkeypatch.setattr(site, "_ports", lambda: range(20000, 20001))
    former = EbpfMode()
    former.sync(table_of(lab), None)
    with connected(lab) as clients:
        NftablesMode().sync(table_of(lab), None)
        with pytest.raises(InUse):
            list(former.retire(NftablesMode()))
        choice = f"snat to {lab.node.ipv4}:20000-20001"
        nft.load(
            "add table ip other\n"
            "add chain ip other post { type nat hook postrouting priority 90; }\n"
            f"add rule ip other post ip saddr {lab.node2.ipv4} tcp dport {SERVER_PORT} {choice}\n"
        )
        for pod, address in PODS.items():
            assert ask(lab.node2, address, SERVER_PORT, timeout=0.5).pod == pod
        assert go_on(clients)


def test_ports_that_are_free_again_are_not_in_use(lab: Lab) -> None:
    NftablesMode().sync(table_of(lab), None)
    with connected(lab) as clients:
        assert use(clients, list(masquerade.in_use()), "pod-3").protocol == TCP
        before = len(list(masquerade.in_use()))
    until(lambda: len(list(masquerade.in_use())) <= before - len(PODS), lambda: str(list(masquerade.in_use())))
