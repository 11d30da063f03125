"""A family's table as a whole: the chains around the routes, what a change of one costs, and whether kernels agree."""

import re
from dataclasses import replace
from math import ceil, log2
from random import Random

import pytest

from modes.iptables import ruleset
from modes.iptables.chooser import FEW
from modes.iptables.family_table import FamilyTable
from modes.iptables.mode import IptablesMode
from modes.iptables.route import MOST_BACKENDS, comment_of, local_endpoints, part_of
from modes.iptables.tree import Chains
from pyproxy.address import parse_ip
from pyproxy.host import HostOptions
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS, Dialect
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import (
    IP,
    Backend,
    Family,
    Frontend,
    Host,
    Pool,
    Prefix,
    Route,
    RouteId,
    Scope,
    Table,
    Transport,
    family_of,
)
from tests.unit.histories import CLUSTER_CIDRS, Crowd
from tests.unit.iptables_world import fresh_host, in_order, use
from tests.unit.samples import THIS_NODE
from tests.unit.test_iptables_route import BALANCED, CLUSTER_IP, EXTERNAL_IP, ROUTES, WEB, endpoints, route

IPV4, IPV6 = DIALECTS.values()
V6 = WEB._replace(family=Family.IPV6)

MIDST = "-p tcp -m addrtype --dst-type LOCAL -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN"
"""In the midst of a connection that ends at this node."""


def table_of(*routes: Route, host: Host | None = None) -> Table:
    return Table({one.id: one for one in routes}, host or Host())


def filled(*routes: Route, host: Host | None = None, family: Family = Family.IPV4) -> Chains:
    return FamilyTable(DIALECTS[family]).fill(table_of(*routes, host=host))


@pytest.mark.parametrize(
    ("host", "ipv4", "ipv6"),
    [
        (Host(), (), ()),
        (
            Host(pod_prefixes=(Prefix("10.244.0.0/24"), Prefix("10.245.0.0/16"), Prefix("fd00:244::/64"))),
            ("-s 10.244.0.0/24 -j RETURN", "-s 10.245.0.0/16 -j RETURN", "-j PYPROXY-MASQUERADE-MARK"),
            ("-s fd00:244::/64 -j RETURN", "-j PYPROXY-MASQUERADE-MARK"),
        ),
        (
            Host(pod_prefixes=(Prefix("fd00:244::/64"),)),
            (),
            ("-s fd00:244::/64 -j RETURN", "-j PYPROXY-MASQUERADE-MARK"),
        ),
        (Host(pod_prefixes=(Prefix("0.0.0.0/0"),)), ("-j RETURN", "-j PYPROXY-MASQUERADE-MARK"), ()),
        *(
            (Host(pod_interfaces=(name,)), *[(f"-i {written} -j RETURN", "-j PYPROXY-MASQUERADE-MARK")] * 2)
            for name, written in (
                ("cni0", "cni0"),
                ("veth*", "veth+"),
                ("fourteen-long-*", "fourteen-long-+"),
                ("fifteen-letters*", "fifteen-letters"),
            )
        ),
        (
            Host(masquerade_all=True, pod_prefixes=(Prefix("10.244.0.0/24"),), pod_interfaces=("cni0",)),
            ("-j PYPROXY-MASQUERADE-MARK",),
            ("-j PYPROXY-MASQUERADE-MARK",),
        ),
    ],
    ids=["no pods", "prefixes", "of one family", "everybody", "bridge", "interfaces", "longest", "too long", "all"],
)
def test_who_is_from_outside(host: Host, ipv4: tuple[str, ...], ipv6: tuple[str, ...]) -> None:
    """Nobody, if pods can't be told from others."""
    assert filled(host=host)["PYPROXY-OUTSIDE"] == ipv4
    assert filled(host=host, family=Family.IPV6)["PYPROXY-OUTSIDE"] == ipv6


def test_the_way_to_nothing() -> None:
    chains = filled(host=Host(node_port_prefixes=(Prefix("192.0.2.1/32"),)))
    assert chains["PYPROXY-SERVICES"] == (MIDST,)
    assert chains["PYPROXY-NODE-PORTS"] == ("-d 127.0.0.0/8 -j RETURN",)
    assert chains["PYPROXY-CLUSTER-IPS"] == ("-j PYPROXY-OUTSIDE", "-j MARK --set-xmark 0x0/0x4000")
    assert chains["PYPROXY-POSTROUTING"] == ("-m mark --mark 0x4000/0x4000 -g PYPROXY-MASQUERADE",)


@pytest.mark.parametrize(
    ("prefixes", "ways"),
    [
        ((), ()),
        (("192.0.2.1/32", "2001:db8::1/128", "192.0.2.9/32"), ("-d 192.0.2.1/32 ", "-d 192.0.2.9/32 ")),
        (("0.0.0.0/0", "::/0"), ("",)),
        (("::/0",), ()),
    ],
    ids=["nowhere", "addresses", "everywhere", "the other family"],
)
def test_the_ways_to_services(prefixes: tuple[str, ...], ways: tuple[str, ...]) -> None:
    """External addresses first: where one is a ClusterIP, too, its unclaimed ports are refused only after that."""
    given = (
        route(CLUSTER_IP, EXTERNAL_IP, internal=endpoints(2), node_port=30080),
        route(BALANCED, internal=endpoints(1), node_port=30443, of=WEB._replace(name="other")),
    )
    chains = filled(*given, host=Host(tuple(map(Prefix, prefixes)), masquerade_all=True))
    assert chains["PYPROXY-SERVICES"] == (
        MIDST,
        "-d 192.0.0.0/2 -j PYPROXY-X-192.0.0.0/2",
        "-d 10.96.0.1/32 -j PYPROXY-CLUSTER-IPS",
        *(f"{way}-m addrtype --dst-type LOCAL -j PYPROXY-NODE-PORTS" for way in ways),
    )
    assert chains["PYPROXY-CLUSTER-IPS"] == (
        "-j PYPROXY-OUTSIDE",
        "-d 10.96.0.1/32 -j PYPROXY-C-10.96.0.1/32",
        "-j MARK --set-xmark 0x0/0x4000",
    )
    assert chains["PYPROXY-NODE-PORTS"] == (
        "-d 127.0.0.0/8 -j RETURN",
        "-p tcp -m tcp --dport 28672:32767 -j PYPROXY-TCP-28672:32767",
    )
    assert chains["PYPROXY-POSTROUTING"] == (
        "-m mark --mark 0x4000/0x4000 -g PYPROXY-MASQUERADE",
        "-d 10.244.0.0/29 -g PYPROXY-H-10.244.0.0/29",
    )
    assert chains["PYPROXY-H-10.244.0.0/29"] == tuple(
        f"-s 10.244.0.{pod}/32 -d 10.244.0.{pod}/32 -j MASQUERADE" for pod in (1, 2)
    )


@pytest.mark.parametrize(
    ("d", "unreachable"), [(IPV4, "icmp-port-unreachable"), (IPV6, "icmp6-port-unreachable")], ids=["IPv4", "IPv6"]
)
def test_how_a_client_is_refused(d: Dialect, unreachable: str) -> None:
    assert ruleset.filter_chains(d)["PYPROXY-REJECT"] == (
        "-p tcp -j REJECT --reject-with tcp-reset",
        f"-j REJECT --reject-with {unreachable}",
    )


def test_services_at_one_address_stand_together_and_other_ports_are_refused() -> None:
    def at(address: str, port: int, name: str) -> Route:
        frontends = (Frontend(IP(address), port, scope) for scope in (Scope.CLUSTER_IP, Scope.EXTERNAL_IP))
        return route(*frontends, internal=endpoints(1), of=RouteId("default", name, "", Family.IPV4))

    chains = filled(at("10.96.0.1", 443, "b"), at("10.96.0.2", 80, "c"), at("10.96.0.1", 80, "a"))
    assert [re.sub(" -m comment.*", "", rule) for rule in chains["PYPROXY-C-10.96.0.0/29"]] == [
        "-d 10.96.0.1/32 -p tcp -m tcp --dport 80",
        "-d 10.96.0.1/32 -p tcp -m tcp --dport 443",
        "-d 10.96.0.1/32 -g PYPROXY-REFUSE",
        "-d 10.96.0.2/32 -p tcp -m tcp --dport 80",
        "-d 10.96.0.2/32 -g PYPROXY-REFUSE",
    ]
    assert len(chains["PYPROXY-X-10.96.0.0/29"]) == 3


def test_a_pod_reaches_itself_as_long_as_any_route_leads_to_it() -> None:
    table = FamilyTable(IPV4)
    one, two = (route(CLUSTER_IP, internal=endpoints(1), of=WEB._replace(name=name)) for name in ("one", "two"))
    two = replace(two, frontends=(EXTERNAL_IP,))
    hairpins = [table.fill(table_of(one, two))["PYPROXY-POSTROUTING"]]
    for rest in (table_of(two), table_of()):
        table.change(rest, {one.id, two.id})
        hairpins.append(table.chains["PYPROXY-POSTROUTING"])
    assert [len(rules) for rules in hairpins] == [2, 2, 1]


CROWD = Crowd(services=60, pods=30, most_endpoints=20, node_ports=(*range(30001, 30012), 1, 65535))


@pytest.mark.parametrize("seed", range(2))
def test_changes_add_up_to_a_table_filled_at_once(seed: int) -> None:
    random = Random(seed)
    store = Store(THIS_NODE)
    planner = Planner(store, HostOptions(THIS_NODE, cluster_cidrs=CLUSTER_CIDRS), lambda _: None)
    store.apply([CROWD.event(random) for _ in range(200)])
    table, _ = planner.plan()
    written = {family: FamilyTable(d) for family, d in DIALECTS.items()}
    loaded = {family: dict(one.fill(table)) for family, one in written.items()}
    for step in range(60):
        store.apply([CROWD.event(random) for _ in range(random.choice((1, 1, 1, 2, 30)))])
        table, changed = planner.plan()
        for family, one in written.items():
            where = f"seed {seed}, step {step}, {family.value}"
            if changed is None:
                loaded[family] = dict(one.fill(table))
                continue
            chains, gone = one.change(table, {id for id in changed if id.family is family})
            before = loaded[family]
            assert gone <= before.keys(), where
            assert not gone & chains.keys(), where
            assert all(before.get(name) != rules for name, rules in chains.items()), where
            loaded[family] = {name: rules for name, rules in (before | chains).items() if name not in gone}
            assert loaded[family] == one.chains, where
            # What was written keeps backends in their old places; told in that order, a fresh table is the same.
            kept = {id: route for id, route in table.routes.items() if id.family is family}
            assert one._routes.keys() == kept.keys(), where
            assert all(in_order(one._routes[id]) == in_order(route) for id, route in kept.items()), where
            assert one.chains == FamilyTable(DIALECTS[family]).fill(Table(one._routes, table.host)), where
            rules = (rule for chain in one.chains.values() for rule in chain)
            led_to = {found[1] for rule in rules if (found := re.search(r"-[jg] (PYPROXY-\S+)", rule))}
            assert led_to <= one.chains.keys(), where
            assert one.chains.keys() - led_to <= ALWAYS, where


ALWAYS = filled().keys()


@pytest.mark.parametrize("count", [100, 1000])
def test_an_endpoint_that_goes_or_comes_changes_few_chains(count: int) -> None:
    """The last one takes the place of the one that goes."""
    backends = tuple(Backend(IP(f"10.{n >> 8}.{n & 255}.1"), 80, False) for n in range(count))
    table = FamilyTable(IPV4)
    table.fill(table_of(route(CLUSTER_IP, internal=Pool(backends))))
    most = 2 * ceil(log2(count / FEW)) + 2
    for number in (count // 3, 0, count - 1):
        chains, gone = table.change(
            table_of(route(CLUSTER_IP, internal=Pool((*backends[:number], *backends[number + 1 :])))), {WEB}
        )
        assert len(chains) + len(gone) <= most
        chains, gone = table.change(table_of(route(CLUSTER_IP, internal=Pool(backends))), {WEB})
        assert len(chains) + len(gone) <= most


def test_nothing_is_kept_of_what_went() -> None:
    table = FamilyTable(IPV4)
    table.fill(table_of(route(CLUSTER_IP, EXTERNAL_IP, internal=endpoints(1, 2, 3, 4), node_port=30080)))
    chains, gone = table.change(table_of(), {WEB})
    assert chains and gone
    assert table.chains == filled()
    assert not table._routes and not table._places and not dict(table._local)


def test_another_host_is_another_table() -> None:
    given = route(CLUSTER_IP, internal=endpoints(1), local=endpoints(1), node_port=30080)
    table = FamilyTable(IPV4)
    table.fill(table_of(given))
    host = Host((Prefix("192.0.2.1/32"),), (Prefix("10.244.0.0/16"),))
    assert table.fill(table_of(given, host=host)) == table.chains == filled(given, host=host)
    assert table.fill(table_of()) == filled()


def test_whose_chains_those_are() -> None:
    one, two = (
        route(CLUSTER_IP, internal=endpoints(*range(20)), of=WEB._replace(name=name)) for name in ("one", "two")
    )
    two = replace(two, frontends=(EXTERNAL_IP,))
    table = FamilyTable(IPV4)
    chains = table.fill(table_of(one, two))
    owners = table.owners(chains.keys() | {"PYPROXY-STRANGER"})
    assert {name for name in chains if re.match("PYPROXY-(SVC|EXT|EP)-", name)} == owners.keys()
    assert {name: owner for name, owner in owners.items() if "EP" not in name} == {
        next(name for name in chains if "-SVC-" in name): one.id,
        next(name for name in chains if "-EXT-" in name): two.id,
    }
    svc = next(name for name in chains if "-SVC-" in name)
    assert table.owners({svc, "PYPROXY-SERVICES"}) == {svc: one.id}
    for name, owner in owners.items():
        assert name in part_of(one if owner == one.id else two, IPV4, Host()).chains


def test_all_kinds_of_routes_read_back_as_they_were_written() -> None:
    """Otherwise they are drift, and repaired for ever."""
    routes = []
    for number, (given, _, _) in enumerate(ROUTES.values(), 1):
        frontends = tuple(replace(frontend, port=number) for frontend in given.frontends)
        node_port = 30000 + number if given.node_port else None
        route_id = given.id._replace(name=f"web-{number}")
        routes.append(replace(given, id=route_id, frontends=frontends, node_port=node_port))
    # Addresses that there is more than one way to spell; and enough for trees of several levels.
    odd = ("::1.2.3.4", "::7", "::ffff:0:1.2.3.4", "fd00:96::1:0:0:1", "fd00:96:1:2:3:4:5:6", "64:ff9b::1.2.3.4")
    addresses = [parse_ip(text) for text in (*odd, *(f"fd00:96::{n:x}" for n in range(1, 60)), "fd01::1", "ffff::")]
    addresses += [IP(f"10.96.{n % 3}.{n}") for n in range(1, 60)] + [IP("0.0.0.7"), IP("255.255.255.254")]
    for number, address in enumerate(addresses, 100):
        route_id = RouteId("default", f"at-{number}", "", family_of(address))
        frontend = Frontend(address, 80, (Scope.CLUSTER_IP, Scope.EXTERNAL_IP)[number % 2])
        node_port = 65535 - number * number
        pool = Pool(tuple(Backend(address, port, True) for port in range(1, 1 + number % 5)))
        routes.append(route(frontend, internal=pool, node_port=node_port, of=route_id))
    assert {one.transport for one in routes} == set(Transport)
    hosts = (
        Host((Prefix("192.0.2.1/32"), Prefix("fd00::1/128")), CLUSTER_CIDRS, ("cni0", "veth*", "fifteen-letters*")),
        Host((Prefix("0.0.0.0/0"), Prefix("::1.2.3.0/120")), (Prefix("0.0.0.0/0"), Prefix("::/0"))),
        Host((Prefix("::/0"),), masquerade_all=True),
    )
    for flavour in Flavour:
        with fresh_host():
            use(flavour)
            mode = IptablesMode()
            for host in hosts:
                mode.sync(table_of(*routes, host=host), None)
                assert mode.verify() == [], (flavour, host)


@pytest.mark.parametrize(
    "other",
    [
        WEB._replace(namespace="other"),
        WEB._replace(name="other"),
        WEB._replace(port_name=""),
        WEB._replace(port_name="other"),
        WEB._replace(family=Family.IPV6),
    ],
    ids=str,
)
def test_no_two_routes_share_a_chain_or_a_memory(other: RouteId) -> None:
    wanted = route(CLUSTER_IP, BALANCED, internal=endpoints(*range(20)), local=endpoints(1), ranges=(), seconds=60)
    texts = []
    for route_id in (WEB, other):
        part = part_of(replace(wanted, id=route_id), DIALECTS[Family.IPV4], Host())
        rules = [rule for rules in part.chains.values() for rule in rules]
        texts.append({*part.chains, *(found for rule in rules for found in re.findall(r"--name (\S+)", rule))})
    assert not texts[0] & texts[1]
    assert len(texts[0]) == 4 + 3 + 20


@pytest.mark.parametrize(
    ("route_id", "comment"),
    [
        (WEB, "default/web:http"),
        (WEB._replace(port_name=""), "default/web"),
        (WEB._replace(family=Family.IPV6), "default/web:http"),
        (WEB._replace(namespace="n" * 250), f"{'n' * 250}/web:"),
    ],
)
def test_comments_name_the_service_port_as_far_as_they_may(route_id: RouteId, comment: str) -> None:
    assert comment_of(route(of=route_id)) == f'-m comment --comment "{comment}"'


def test_endpoints_beyond_the_most_get_no_connections() -> None:
    backends = tuple(Backend(IP(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}"), 80, False) for n in range((1 << 15) + 1))
    text = str(part_of(route(node_port=30080, internal=Pool(backends)), DIALECTS[Family.IPV4], Host()).chains)
    assert text.count("DNAT") == MOST_BACKENDS == 1 << 15
    assert f"--to-destination {backends[-2].ip}:80'" in text
    assert f"--to-destination {backends[-1].ip}:80'" not in text


def test_who_reaches_itself_is_an_endpoint_on_this_node_in_any_pool() -> None:
    given = route(internal=endpoints(1, 3), external=endpoints(2, 4), local=endpoints(0, 5))
    assert local_endpoints(given) == {"10.244.0.1", "10.244.0.2", "10.244.0.0"}
