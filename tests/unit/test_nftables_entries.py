"""What the nftables mode reads back of one destination, against all that nft lists of the tables."""

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import pytest

from bench.lab import Lab
from modes.nftables import ruleset
from modes.nftables.elements import Elements
from modes.nftables.mode import NftablesMode
from modes.nftables.ruleset import TABLE
from pyproxy.kernel import nft, program
from pyproxy.table import (
    IP,
    Backend,
    Family,
    Frontend,
    Host,
    ModeError,
    OnEmpty,
    Pool,
    Prefix,
    Route,
    RouteId,
    Scope,
    Table,
    Transport,
)

MANY = 200
"""Endpoints: nft 1.0.6 crashes when it is asked for so many elements at once."""
OWN = {Family.IPV4: IP("172.18.0.2"), Family.IPV6: IP("fd00:172:18::2")}
RANGES = {
    Family.IPV4: (Prefix("10.9.0.0/16"), Prefix("192.0.2.7/32")),
    Family.IPV6: (Prefix("fd00:9::/32"), Prefix("2001:db8::7/128")),
}


def address(family: Family, net: int, number: int) -> IP:
    return IP(f"10.{net}.0.{number}" if family is Family.IPV4 else f"fd00:{net}::{number:x}")


def pool(family: Family, size: int, on_empty: OnEmpty = OnEmpty.REJECT) -> Pool:
    found = (Backend(address(family, 244 + n // 250, 1 + n % 250), 8080, n % 2 == 0) for n in range(size))
    return Pool(tuple(sorted(found, key=lambda one: one.ip)), on_empty)


def routes(family: Family) -> Iterator[Route]:
    """Of every kind of behaviour."""
    no_one_here = Pool((), OnEmpty.DROP)
    kinds = [
        (pool(family, 3), pool(family, 3), True, None),
        (pool(family, MANY), pool(family, MANY), True, 10),
        (pool(family, 3), pool(family, 1), False, None),
        (no_one_here, no_one_here, False, 10800),
        (pool(family, 0), pool(family, 0), True, 30),
    ]
    for number, (internal, external, masquerade, affinity) in enumerate(kinds, 1):
        yield Route(
            id=RouteId("default", f"svc-{number}", "http", family),
            transport=list(Transport)[number % 2],
            frontends=tuple(
                Frontend(address(family, net, number), 80, s) for net, s in zip((96, 97, 98), Scope, strict=True)
            ),
            node_port=30000 + number,
            internal=internal,
            external=external,
            short_circuit=pool(family, 0) if number == 5 else pool(family, 3),
            masquerade_external=masquerade,
            affinity_seconds=affinity,
            allowed_sources=RANGES[family] if number % 2 else None,
            health_check_port=None,
        )


ROUTES = [route for family in Family for route in routes(family)]
HOST = Host(
    node_port_prefixes=(Prefix("127.0.0.0/8"), Prefix("172.16.0.0/12"), Prefix("::1/128"), Prefix("fd00:172::/32")),
    pod_prefixes=(Prefix("10.244.0.0/16"),),
)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


def write() -> None:
    NftablesMode().sync(Table({route.id: route for route in ROUTES}, HOST), None)


@pytest.fixture(scope="module")
def written(lab: Lab) -> Iterator[NftablesMode]:
    """One object wrote, another reads."""
    with lab.node.namespace.entered():
        write()
        yield NftablesMode()


@pytest.fixture
def spoiled(written: NftablesMode) -> Iterator[NftablesMode]:
    """For those who leave the kernel in disorder."""
    yield written
    write()


class Listing(NamedTuple):
    """All of one family's table, as nft lists it."""

    elements: Elements
    text: str


@pytest.fixture(scope="module")
def listings(written: NftablesMode) -> dict[str, Listing]:
    return {
        ip: Listing(
            nft.elements(ip, TABLE, ruleset.MAPS, maps=True) | nft.elements(ip, TABLE, ["allowed-sources"], maps=False),
            nft.run(["list", "table", ip, "pyproxy"]),
        )
        for ip in ("ip", "ip6")
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.id))
def test_every_element_of_a_destination_and_no_other(
    written: NftablesMode, listings: dict[str, Listing], route: Route
) -> None:
    ip = "ip" if route.id.family is Family.IPV4 else "ip6"
    comment = f' comment "default/{route.id.name}:http"'
    destinations = [(frontend.address, 80, f"{frontend.address} . ") for frontend in route.frontends]
    assert route.node_port
    destinations.append((OWN[route.id.family], route.node_port, ""))
    for to, port, key in destinations:
        found = written.entries(to, port, route.transport)
        rules = [entry.split(" ", 4) for entry in found if entry.startswith("rule ")]
        elements = [entry for entry in found if not entry.startswith("rule ")]
        assert sum(comment in entry for entry in elements) == 1
        whole = f"{key}{route.transport} . {port}"
        assert sorted(entry.replace(comment, "") for entry in elements) == sorted(
            f"element {ip} pyproxy {slot.set} {{ {slot.key}{' : ' if value else ''}{value} }}"
            for slot, value in listings[ip].elements.items()
            if f"{slot.key} . ".startswith(f"{whole} . ")
        )
        for _, of, table, chain, rule in rules:
            assert (of, table) == (ip, "pyproxy")
            assert f"\t\t{rule}\n" in listings[ip].text.partition(f"\tchain {chain} {{")[2].partition("}\n\n")[0]
        words = " ".join(found).split()
        reached = {target for word, target in pairwise(words) if word == "goto"}
        assert {chain for *_, chain, _ in rules} == {"services", *reached}


def test_a_port_that_nobody_claims_is_refused_by_the_set_of_cluster_ips(written: NftablesMode) -> None:
    entries = written.entries(IP("10.96.0.1"), 81, Transport.TCP)
    assert entries == [
        "rule ip pyproxy services ip daddr @cluster-ips goto refuse",
        "element ip pyproxy cluster-ips { 10.96.0.1 }",
        "rule ip pyproxy refuse reject with tcp reset",
        "rule ip pyproxy refuse reject",
    ]


@pytest.mark.parametrize(
    ("to", "port", "transport"),
    [
        ("10.97.0.1", 81, "udp"),  # an external IP, but another port
        ("10.97.0.1", 80, "tcp"),
        ("10.9.9.9", 80, "tcp"),
        ("127.0.0.1", 30001, "udp"),
        ("::1", 30001, "udp"),
        ("172.18.0.3", 30001, "udp"),  # another node's
        ("172.18.0.255", 30001, "udp"),
        ("172.18.0.2", 30001, "sctp"),
        ("172.18.0.2", 30999, "udp"),
        ("10.244.0.11", 8080, "tcp"),
    ],
)
def test_nothing_serves_it(written: NftablesMode, to: str, port: int, transport: str) -> None:
    assert written.entries(IP(to), port, Transport(transport)) == []


@pytest.mark.parametrize(("second", "answers"), [(IP("172.18.0.22"), True), (IP("192.0.2.22"), False)])
def test_another_address_of_the_node(lab: Lab, written: NftablesMode, second: IP, answers: bool) -> None:
    assert written.entries(second, 30001, Transport.UDP) == []
    with lab.node.namespace.links() as links:
        eth0 = links.link_lookup(ifname="eth0")[0]
        links.addr("add", index=eth0, address=second, prefixlen=24)
        try:
            first = written.entries(OWN[Family.IPV4], 30001, Transport.UDP)
            assert written.entries(second, 30001, Transport.UDP) == (first if answers else [])
        finally:
            links.addr("del", index=eth0, address=second, prefixlen=24)


@pytest.mark.parametrize(
    ("command", "gone"),
    [
        ("delete element ip pyproxy endpoints { 10.96.0.1 . udp . 80 . fe00:1 }", "element ip pyproxy endpoints"),
        ("flush chain ip pyproxy services", "rule ip pyproxy services"),
        ("delete element ip pyproxy allowed-sources { 10.98.0.1 . udp . 80 . 10.9.0.0/16 }", "10.9.0.0/16"),
    ],
)
def test_what_is_missing_in_the_kernel_is_missing_here(spoiled: NftablesMode, command: str, gone: str) -> None:
    to = IP("10.98.0.1" if "allowed" in command else "10.96.0.1")
    before = spoiled.entries(to, 80, Transport.UDP)
    nft.run([command])
    after = spoiled.entries(to, 80, Transport.UDP)
    assert set(after) < set(before)
    assert all(gone in entry for entry in set(before) - set(after))


def test_elements_that_no_rule_chooses_serve_nothing(spoiled: NftablesMode) -> None:
    nft.run(["flush chain ip pyproxy cluster-ip-3"])
    assert [entry.split()[3] for entry in spoiled.entries(IP("10.96.0.1"), 80, Transport.UDP)] == ["services"] * 2


def test_without_the_first_element_there_is_nothing_but_the_refusal(spoiled: NftablesMode) -> None:
    nft.run(["delete element ip pyproxy services { 10.96.0.1 . udp . 80 }"])
    assert "goto refuse" in spoiled.entries(IP("10.96.0.1"), 80, Transport.UDP)[0]
    nft.run(["flush set ip pyproxy cluster-ips"])
    assert spoiled.entries(IP("10.96.0.1"), 80, Transport.UDP) == []


def test_a_verdict_of_somebody_else_is_told(spoiled: NftablesMode) -> None:
    nft.run(["add element ip pyproxy services { 10.9.9.9 . tcp . 80 : accept }"])
    assert "element ip pyproxy services { 10.9.9.9 . tcp . 80 : accept }" in spoiled.entries(
        IP("10.9.9.9"), 80, Transport.TCP
    )


def test_without_tables_there_is_nothing(spoiled: NftablesMode) -> None:
    spoiled.cleanup()
    for family in Family:
        assert spoiled.entries(OWN[family], 30001, Transport.UDP) == []


def test_without_the_program_nft_it_says_so(written: NftablesMode, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "find", lambda _: None)
    with pytest.raises(ModeError, match="the program nft is not installed"):
        written.entries(IP("10.96.0.1"), 80, Transport.UDP)
