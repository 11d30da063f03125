"""Endpoints that go while clients use them: they finish, and nobody new comes."""

import socket
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from bench.ask import ask, datagram, open_socket
from bench.lab import Lab
from modes.ebpf.mode import EbpfMode
from modes.iptables.mode import IptablesMode
from modes.ipvs.mode import IpvsMode
from modes.ipvs.ruleset import OPEN, SHARE
from modes.ipvs.servers import LONGEST_DRAIN_S
from pyproxy.kernel import ipset, iptables
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS
from pyproxy.table import IP, Backend, Family, Frontend, Host, InUse, Pool, Prefix, Scope, Table, Transport
from tests.conformance.cluster import until
from tests.ipvs.traffic import connection, goes_on
from tests.ipvs.world import differences, servers, written
from tests.unit.test_iptables_route import WEB, route

PATIENCE_S = 60.0
"""Of a connection that was reset IPVS knows for ten seconds more."""
ADDRESS, PORT = "10.96.0.1", 80
FRONTEND = Frontend(IP(ADDRESS), PORT, Scope.CLUSTER_IP)
POD_2, POD_3 = (Backend(IP(f"10.244.0.{number}"), 8080, True) for number in (12, 13))
BOTH, ONE_LEFT, NONE = (
    Table({one.id: one} if one.internal.backends else {}, Host())
    for one in (route(FRONTEND, internal=Pool(pods)) for pods in ((POD_2, POD_3), (POD_3,), ()))
)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def weights() -> dict[str, int]:
    """Of all real servers, by address."""
    return {real.address: load.weight for server in servers().values() for real, load in server.reals.items()}


def test_a_connection_goes_on_nobody_new_comes_and_it_goes_with_its_connection(lab: Lab) -> None:
    mode = IpvsMode()
    mode.sync(BOTH, None)
    with connection(lab, ADDRESS, PORT, "pod-2") as client:
        mode.sync(ONE_LEFT, {WEB})
        assert weights() == {POD_2.ip: 0, POD_3.ip: 1}
        assert mode.verify() == []
        assert weights() == {POD_2.ip: 0, POD_3.ip: 1}
        assert {ask(lab.pods["pod-1"], ADDRESS, PORT).pod for _ in range(10)} == {"pod-3"}
        assert goes_on(client)
    until(lambda: mode.verify() == [] and POD_2.ip not in weights(), lambda: str(weights()), PATIENCE_S)
    assert weights() == {POD_3.ip: 1}


def test_one_whose_virtual_server_was_just_deleted_has_drained(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = IpvsMode()
    mode.sync(BOTH, None)
    mode.sync(ONE_LEFT, {WEB})
    read = ipset.read

    def meddled_with(sets: Iterable[ipset.Set]) -> ipset.Elements:
        """Between what a verification reads and what it removes."""
        lab.node.namespace.run(["ipvsadm", "-C"])
        return read(sets)

    with monkeypatch.context() as patched:
        patched.setattr(ipset, "read", meddled_with)
        assert mode.verify() == []
    assert "the virtual server" in mode.verify()[0].what


def test_a_restart_lets_it_finish_too(lab: Lab) -> None:
    IpvsMode().sync(BOTH, None)
    with connection(lab, ADDRESS, PORT, "pod-2") as client:
        IpvsMode().sync(ONE_LEFT, None)  # it went while nobody ran
        mode = IpvsMode()
        mode.sync(ONE_LEFT, None)
        assert mode.verify() == []
        assert weights() == {POD_2.ip: 0, POD_3.ip: 1}
        assert goes_on(client)
        mode.sync(BOTH, {WEB})
        assert weights() == {POD_2.ip: 1, POD_3.ip: 1}
        assert mode.verify() == []
        assert goes_on(client)


def test_it_goes_after_a_quarter_of_an_hour_anyway_which_begins_anew_with_a_restart(lab: Lab) -> None:
    clock = Clock()
    mode = IpvsMode(clock)
    mode.sync(BOTH, None)
    with connection(lab, ADDRESS, PORT, "pod-2") as client:
        mode.sync(ONE_LEFT, {WEB})
        clock.now += LONGEST_DRAIN_S - 1
        restarted = IpvsMode(clock)
        restarted.sync(ONE_LEFT, None)
        assert mode.verify() == restarted.verify() == []
        clock.now += 2
        assert restarted.verify() == []
        assert weights() == {POD_2.ip: 0, POD_3.ip: 1}
        assert goes_on(client)
        clock.now += LONGEST_DRAIN_S
        assert restarted.verify() == []
        assert weights() == {POD_3.ip: 1}
        with pytest.raises((ConnectionError, TimeoutError)):
            goes_on(client)


def test_the_service_goes_and_its_address_stays_until_the_last_connection_does(lab: Lab) -> None:
    mode = IpvsMode()
    mode.sync(BOTH, None)
    with connection(lab, ADDRESS, PORT, "pod-2") as client:
        mode.sync(NONE, {WEB})
        for _ in range(2):
            assert mode.verify() == []
            assert set(weights().values()) == {0}
            assert written()[2] == {ADDRESS}
            assert goes_on(client)
            with pytest.raises(TimeoutError):
                ask(lab.pods["pod-1"], ADDRESS, PORT, timeout=0.3)
            mode = IpvsMode()
            mode.sync(NONE, None)
    until(lambda: mode.verify() == [] and not weights(), lambda: str(weights()), PATIENCE_S)
    assert differences(NONE, mode) == []


def test_who_retires_for_a_mode_without_netfilter_goes_on_masquerading(lab: Lab) -> None:
    pods = Host(pod_prefixes=(Prefix("10.244.0.0/16"),))
    IpvsMode().sync(replace(BOTH, host=pods), None)
    removed: list[str] = []
    with connection(lab, ADDRESS, PORT, "pod-2", lab.client) as client:
        for _ in range(2):
            with pytest.raises(InUse):
                removed.extend(IpvsMode().retire(EbpfMode()))
            assert goes_on(client)
        left = iptables.read(SHARE, DIALECTS[Family.IPV4], Flavour.LEGACY)
        assert {table: saved.chains for table, saved in left.items() if saved.chains} == {"nat": OPEN}
        assert not any(saved.hooks for saved in left.values())

    def is_gone() -> bool:
        with suppress(InUse):
            removed.extend(IpvsMode().retire(EbpfMode()))
            return True
        return False

    until(is_gone, lambda: str(weights()), PATIENCE_S)
    assert removed[-3:] == [f"1 chains of {ip}tables-legacy table nat" for ip in ("ip", "ip6")] + ["1 local routes"]
    assert written() == ({}, {}, set())


def test_who_retires_for_sockets_that_know_endpoints_forgets_what_has_ended(lab: Lab) -> None:
    """What the endpoint sends to those ports would be taken for answers of it."""
    IpvsMode().sync(BOTH, None)
    with connection(lab, ADDRESS, PORT, "pod-2") as client:
        while {ask(lab.pods["pod-1"], ADDRESS, PORT).pod for _ in range(4)} != {"pod-2", "pod-3"}:
            pass
        assert remembered("pod-3")
        for _ in range(2):
            with pytest.raises(InUse):
                list(IpvsMode().retire(EbpfMode()))
        assert weights() == {POD_2.ip: 0}
        until(lambda: not remembered("pod-3"), lambda: str(remembered("pod-3")), PATIENCE_S)
        assert goes_on(client)


def remembered(pod: str) -> list[str]:
    """What IPVS has of connections to it."""
    address = {"pod-2": POD_2, "pod-3": POD_3}[pod].ip
    packed = socket.inet_aton(address).hex().upper()
    return [line for line in Path("/proc/thread-self/net/ip_vs_conn").read_text().splitlines() if packed in line]


def test_whoever_retires_lets_it_finish_and_is_asked_again(lab: Lab) -> None:
    IpvsMode().sync(BOTH, None)
    retiring, removed = IpvsMode(), list[str]()
    with connection(lab, ADDRESS, PORT, "pod-2") as client:
        with pytest.raises(InUse, match="1 virtual servers of IPVS have open connections"):
            removed.extend(retiring.retire(IptablesMode()))
        assert "22 sets of addresses" in removed
        assert weights()[POD_2.ip] == 0
        assert set(weights().values()) == {0}
        assert written()[1:] == ({}, {ADDRESS})
        assert goes_on(client)

    def is_gone() -> bool:
        try:
            removed.extend(retiring.retire(IptablesMode()))
        except InUse:
            return False
        return True

    until(is_gone, lambda: str(weights()), PATIENCE_S)
    assert {"1 virtual servers of IPVS", "1 local routes"} <= set(removed)
    assert written() == ({}, {}, set())


def test_whoever_retires_for_netfilter_loses_no_datagram(lab: Lab) -> None:
    udp = Table({WEB: replace(BOTH.routes[WEB], transport=Transport.UDP)}, Host())
    IpvsMode().sync(udp, None)
    with open_socket(lab.pods["pod-1"], ADDRESS, "UDP") as client:
        client.settimeout(2)
        client.connect((ADDRESS, PORT))
        first = datagram(client).pod
        for _ in range(2):
            with pytest.raises(InUse):
                list(IpvsMode().retire(IptablesMode()))
            assert {datagram(client).pod for _ in range(5)} == {first}


def test_a_flow_of_udp_is_sent_elsewhere_at_once(lab: Lab) -> None:
    both, one_left = (
        Table({WEB: replace(table.routes[WEB], transport=Transport.UDP)}, Host()) for table in (BOTH, ONE_LEFT)
    )

    def answering(client: socket.socket) -> str:
        """Conntrack knows the flow still, so the datagram that finds it gone from IPVS is lost: once."""
        try:
            return datagram(client).pod
        except TimeoutError:
            return datagram(client).pod

    mode = IpvsMode()
    mode.sync(both, None)
    with ExitStack() as stack:
        clients = [stack.enter_context(open_socket(lab.pods["pod-1"], ADDRESS, "UDP")) for _ in range(4)]
        for client in clients:
            client.settimeout(2)
            client.connect((ADDRESS, PORT))
        assert {datagram(client).pod for client in clients} == {"pod-2", "pod-3"}
        mode.sync(one_left, {WEB})
        assert weights() == {POD_3.ip: 1}
        assert {answering(client) for client in clients} == {"pod-3"}
        assert mode.verify() == []
