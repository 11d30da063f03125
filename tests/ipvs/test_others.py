"""Others have virtual servers, addresses, sets and rules on this node, too: who keeps what."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from modes.iptables.mode import IptablesMode
from modes.ipvs.mode import IpvsMode
from modes.userspace.mode import UserspaceMode
from pyproxy.kernel.ipvs import Real
from pyproxy.table import IP, Mode, ModeError, Prefix, Table
from pyproxy.table import Ipvs as Options
from tests.ipvs.world import differences, everything, node, plant_foreigners, servers, table_of
from tests.unit.iptables_world import run
from tests.unit.test_iptables_route import CLUSTER_IP, WEB, endpoints, route

FRONTEND = replace(CLUSTER_IP, port=8080)  # the endpoints' port: others have packets passed on as they are
PLACE = f"{FRONTEND.address}:{FRONTEND.port}"
ONE = route(FRONTEND, internal=endpoints(1, 2), node_port=30080)
OURS = table_of(ONE)
EXCLUDED = table_of(ONE, options=Options(exclude_cidrs=(Prefix("10.96.0.0/24"),)))
LESS = replace(ONE, internal=endpoints(2), external=endpoints(2))


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    with node():
        yield


def make_foreign_server(reals: tuple[str, ...] = ("192.0.2.99:8080",)) -> None:
    """At the address and port of the service."""
    run("ipvsadm", "-A", "-t", PLACE, "-s", "wlc")
    for real in reals:
        run("ipvsadm", "-a", "-t", PLACE, "-r", real, "-g", "-w", "1")


def at_place() -> list[str]:
    """What ipvsadm says of the virtual server there."""
    return [line for line in run("ipvsadm", "-Sn").splitlines() if f" {PLACE} " in line]


def test_excluded_networks_are_left_to_others_whatever_becomes_of_the_service(caplog: pytest.LogCaptureFixture) -> None:
    make_foreign_server()
    before = at_place()
    mode = IpvsMode()
    mode.sync(EXCLUDED, None)
    assert f"left to others, by excludeCIDRs -t {PLACE}" in [
        f"{record.message} {vars(record)['virtual_server']}" for record in caplog.records
    ]
    assert mode.verify() == []
    for table in (Table({WEB: LESS}, EXCLUDED.host), Table({}, EXCLUDED.host), EXCLUDED):
        mode.sync(table, {WEB})
        assert at_place() == before
        assert mode.verify() == []
    assert len(servers()) == 2  # the node port's is ours
    IpvsMode().sync(Table({}, EXCLUDED.host), None)
    assert mode.cleanup()
    assert at_place() == before


def test_what_was_left_to_others_is_ours_when_they_leave() -> None:
    make_foreign_server()
    mode = IpvsMode()
    mode.sync(EXCLUDED, None)
    run("ipvsadm", "-D", "-t", PLACE)
    (drift,) = mode.verify()
    assert (drift.route, drift.what) == (WEB, f"the virtual server -t {PLACE}, left to others by excludeCIDRs, is gone")
    mode.sync(EXCLUDED, None)
    assert differences(EXCLUDED, mode) == []


@pytest.mark.parametrize("excluded", [(), (Prefix("10.96.1.0/24"), Prefix("fd00::/8"))], ids=["none", "others"])
def test_elsewhere_a_foreign_server_in_the_way_is_taken(excluded: tuple[Prefix, ...]) -> None:
    """With whatever it leads to, also if that is one of ours, but reached in another way."""
    make_foreign_server(("192.0.2.99:8080", "10.244.0.1:8080"))
    table = table_of(ONE, options=Options(exclude_cidrs=excluded))
    mode = IpvsMode()
    mode.sync(table, None)
    assert differences(table, mode) == []
    assert [line.partition("-r ")[2] for line in at_place()[1:]] == [
        "10.244.0.1:8080 -m -w 1",
        "10.244.0.2:8080 -m -w 1",
    ]


def test_another_way_to_an_endpoint_is_seen_and_made_good() -> None:
    mode = IpvsMode()
    mode.sync(OURS, None)
    run("ipvsadm", "-e", "-t", PLACE, "-r", "10.244.0.1:8080", "-g", "-w", "1")
    assert [drift.what for drift in mode.verify()] == [f"real server 10.244.0.1 port 8080 of -t {PLACE} is changed"]
    mode.sync(OURS, None)
    assert differences(OURS, mode) == []


def test_a_network_that_counts_as_one_client_is_seen_and_made_good() -> None:
    table, mode = table_of(replace(ONE, affinity_seconds=60)), IpvsMode()
    mode.sync(table, None)
    before = at_place()
    run("ipvsadm", "-E", "-t", PLACE, "-s", "rr", "-p", "60", "-M", "255.255.0.0", "-b", "flag-3")
    assert [drift.what for drift in mode.verify()] == [f"the virtual server -t {PLACE} is changed"]
    mode.sync(table, None)
    assert at_place() == before
    assert differences(table, mode) == []


def test_a_foreign_server_that_comes_before_the_service_does_is_taken_by_the_second_try() -> None:
    mode = IpvsMode()
    mode.sync(table_of(), None)
    make_foreign_server()
    with pytest.raises(ModeError, match=f"-t {PLACE}.*exists"):
        mode.sync(OURS, {WEB})
    mode.sync(OURS, set())
    assert differences(OURS, mode) == []


def test_cleanup_removes_all_that_is_ours_and_nothing_else() -> None:
    plant_foreigners()
    before = everything()
    mode = IpvsMode()
    mode.sync(OURS, None)
    assert everything() != before
    told = IpvsMode().cleanup()
    assert set(told) >= {"22 sets of addresses", "2 virtual servers of IPVS", "1 local routes"}
    assert everything() == before
    assert mode.cleanup() == []


@pytest.mark.parametrize("successor", [IptablesMode, UserspaceMode])
def test_so_does_retiring(successor: type[Mode]) -> None:
    plant_foreigners()
    before = everything()
    IpvsMode().sync(OURS, None)
    told = list(IpvsMode().retire(successor()))
    assert set(told) >= {"22 sets of addresses", "2 virtual servers of IPVS", "1 local routes"}
    assert everything() == before
    assert list(IpvsMode().retire(successor())) == []


def test_an_address_of_the_nodes_own_is_claimed_for_nobody_and_stays() -> None:
    """Given to it before the service has it, or after."""
    run("ip", "addr", "add", "10.96.0.1", "dev", "lan")
    mode = IpvsMode()
    mode.sync(OURS, None)
    assert differences(OURS, mode) == []
    assert Real(IP("10.244.0.1"), 8080) in next(iter(servers().values())).reals
    assert "proto 113" not in run("ip", "route", "show", "table", "local")
    run("ip", "addr", "del", "10.96.0.1", "dev", "lan")
    assert [drift.what for drift in mode.verify()] == ["the addresses of this node are others now"]
    mode.sync(OURS, None)
    assert "local 10.96.0.1 dev lo proto 113" in run("ip", "route", "show", "table", "local")
    run("ip", "addr", "add", "10.96.0.1", "dev", "lan")
    mode.sync(OURS, None)
    assert differences(OURS, mode) == []
    mode.sync(table_of(), {WEB})
    assert differences(table_of(), mode) == []
    assert "inet 10.96.0.1/32 scope global lan" in run("ip", "addr", "show", "dev", "lan")
    assert "local 10.96.0.1 dev lan " in run("ip", "route", "show", "table", "local")
