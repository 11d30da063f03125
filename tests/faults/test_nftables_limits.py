"""Where nft and its maps end: long names, a full map, tables of another version."""

from dataclasses import replace

import pytest

from bench.ask import ask
from bench.lab import SERVER_PORT, Lab
from modes.nftables import ruleset
from modes.nftables.elements import elements_of
from modes.nftables.family import DIALECTS
from modes.nftables.mode import NftablesMode
from pyproxy.address import IP
from pyproxy.kernel import nft
from pyproxy.table import Backend, Family, Frontend, Host, OnEmpty, Pool, Route, RouteId, Scope, Table
from tests.faults.routes import cluster_ip_route

POD = IP("10.244.0.12")


def _route(number: int, *, seconds: int | None = None) -> Route:
    pool = Pool((Backend(POD, SERVER_PORT, True),))
    return cluster_ip_route(f"10.96.0.{number}", 80, pool, affinity_seconds=seconds)


def _table(*routes: Route) -> Table:
    return Table({route.id: route for route in routes}, Host())


def test_the_longest_names_fit(lab: Lab) -> None:
    long = "n" * 63
    route = _route(1)
    route = replace(route, id=RouteId(long, long, long, Family.IPV4))
    with lab.node.namespace.entered():
        NftablesMode().sync(_table(route, _route(2)), None)
    assert ask(lab.pods["pod-1"], "10.96.0.1", 80).pod == ask(lab.pods["pod-1"], "10.96.0.2", 80).pod == "pod-2"


def test_a_full_map_of_clients_refuses_nobody(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ruleset, "AFFINITY_CLIENTS", 3)
    with lab.node.namespace.entered():
        NftablesMode().sync(_table(*(_route(number, seconds=600) for number in range(1, 9))), None)
    for number in range(1, 9):
        assert ask(lab.pods["pod-1"], f"10.96.0.{number}", 80).pod == "pod-2"


@pytest.mark.parametrize(
    "other",
    [
        "add table ip pyproxy; add map ip pyproxy endpoints { type ipv4_addr : verdict; }",
        "add table ip pyproxy; add chain ip pyproxy prerouting { type filter hook prerouting priority 7; }",
        "add table ip pyproxy; add set ip pyproxy hairpins { type inet_service; }; add chain ip pyproxy version-0",
        "add table ip pyproxy { flags dormant; }",
    ],
    ids=["map", "hook", "set", "dormant"],
)
def test_tables_of_another_version_are_replaced(lab: Lab, other: str) -> None:
    lab.node.namespace.run(["nft", other])
    with lab.node.namespace.entered():
        mode = NftablesMode()
        assert mode.probe() is None
        assert ("ip", "pyproxy") in nft.tables()
        mode.sync(_table(_route(1)), None)
    assert ask(lab.pods["pod-1"], "10.96.0.1", 80).pod == "pod-2"


def test_others_at_work_meanwhile_are_no_drift(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    load = nft.load

    def load_in_company(script: str) -> int:
        nft.run(["add table inet other; delete table inet other"])
        writer = load(script)
        nft.run(["add table inet other; delete table inet other"])
        return writer

    monkeypatch.setattr(nft, "load", load_in_company)
    with lab.node.namespace.entered():
        mode = NftablesMode()
        mode.sync(_table(_route(1)), None)
        assert mode.verify() == []
        mode.sync(_table(_route(1), _route(2, seconds=5)), {_route(2).id})
        assert mode.verify() == []


def test_the_pools_of_a_sticky_service_do_not_share_identities() -> None:
    local = Pool((Backend(IP("10.244.16.39"), 80, True),), OnEmpty.DROP)
    far = Pool((Backend(IP("10.245.15.11"), 80, False), Backend(IP("10.244.16.39"), 80, True)))
    route = _route(1, seconds=10)
    frontends = (Frontend(IP("203.0.113.1"), 80, Scope.EXTERNAL_IP),)
    route = replace(route, frontends=frontends, masquerade_external=False, external=local, short_circuit=far)
    elements = elements_of(route, DIALECTS[Family.IPV4])
    translated = [slot for slot in elements if slot.set == "sticky-endpoints"]
    assert len(translated) == 3
