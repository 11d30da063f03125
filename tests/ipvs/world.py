"""A node with IPVS on which others have things, too, and what in the kernel is whose: what these tests share."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modes.ipvs.mode import IpvsMode
from modes.ipvs.plan import Plan
from modes.ipvs.route import Site
from modes.ipvs.ruleset import sets
from pyproxy.kernel import ipset, own_address
from pyproxy.kernel.ipset import Elements
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.ipvs import Ipvs, Key, Real, Service, VirtualServer
from pyproxy.kernel.local_route import LocalRoutes
from pyproxy.table import IP, Family, Frontend, Host, Prefix, Route, Scope, Table
from pyproxy.table import Ipvs as Options
from tests.unit.histories import CLUSTER_CIDRS
from tests.unit.iptables_world import fresh_host, plant_others, run, use
from tests.unit.test_iptables_route import WEB, endpoints, route

NODE = ("192.0.2.1", "2001:db8::1")
NOBODY = ("192.0.2.250:80", "[2001:db8::250]:80")
"""Where others have virtual servers."""
_OWNER = 113  # of local routes

State = tuple[dict[Key, tuple[Service, dict[Real, int]]], Elements, set[IP]]
"""Virtual servers with the weights of their real servers, elements of sets, addresses claimed."""


@contextmanager
def node(*addresses: str) -> Iterator[None]:
    """The thread lives in a network namespace whose one device has ``addresses``, with legacy tables."""
    with fresh_host():
        run("ip", "link", "add", "lan", "type", "dummy")
        run("ip", "link", "set", "lan", "up")
        for address in addresses or NODE:
            run("ip", "addr", "add", address, "dev", "lan", *(["nodad"] if ":" in address else []))
        use(Flavour.LEGACY)
        yield


def table_of(*routes: Route, options: Options | None = None) -> Table:
    host = Host((Prefix("192.0.2.1/32"), Prefix("2001:db8::1/128")), CLUSTER_CIDRS, ipvs=options or Options())
    return Table({one.id: one for one in routes}, host)


def many(count: int, **of_each: Any) -> list[Route]:
    """Routes of one endpoint; ``of_each`` as `route` takes it."""
    return [
        route(
            Frontend(IP(f"10.96.1.{number}"), 80, Scope.CLUSTER_IP),
            internal=endpoints(number),
            of=WEB._replace(name=f"svc-{number}"),
            **of_each,
        )
        for number in range(1, count + 1)
    ]


def servers() -> dict[Key, VirtualServer]:
    ipvs = Ipvs()
    try:
        return ipvs.services()
    finally:
        ipvs.close()


def written() -> State:
    """What the kernel has of ours."""
    mine = {
        key: (server.service, {real: load.weight for real, load in server.reals.items()})
        for key, server in servers().items()
        if server.service.is_ours
    }
    elements = ipset.read(one for family in Family for one in sets(family).values())
    return mine, elements, LocalRoutes(_OWNER).listed()


def wanted(table: Table) -> State:
    """What it must have for ``table``, whatever was there before."""
    own = own_address.of_devices()
    answering = own_address.node_port_addresses(table.host.node_port_prefixes, own)
    plan = Plan(Site(table.host.ipvs.scheduler, own, answering))
    plan.change(table, table.routes.keys())
    mine = {key: (server.service, dict.fromkeys(server.reals, 1)) for key, server in plan.servers.items()}
    return mine, plan.elements, {IP(slot.key) for slot in plan.elements if "-CLAIMED-" in slot.set}


def differences(table: Table, mode: IpvsMode) -> list[str]:
    """Between the kernel and ``table``: what ``mode`` finds, and what it overlooks."""
    found = [drift.what for drift in mode.verify()]
    for there, expected in zip(written(), wanted(table), strict=True):
        if there != expected:
            found += [f"{thing} is there" for thing in _items(there) if thing not in _items(expected)]
            found += [f"{thing} is not there" for thing in _items(expected) if thing not in _items(there)]
    return found


def _items(things: Any) -> list[Any]:
    return list(things.items() if isinstance(things, dict) else things)


def plant_foreigners() -> None:
    """What is none of pyproxy's: virtual servers, by mark too, sets, rules, a local route and an address."""
    for place in NOBODY:
        run("ipvsadm", "-A", "-t", place, "-s", "wlc", "-p", "60")
        run("ipvsadm", "-a", "-t", place, "-r", place, "-g", "-w", "7")
    run("ipvsadm", "-A", "-f", "77", "-s", "rr")
    run("ipset", "create", "MY-PYPROXY_IPVS-CLUSTER-4", "hash:ip,port")
    run("ipset", "add", "MY-PYPROXY_IPVS-CLUSTER-4", "10.96.0.1,tcp:80")
    plant_others(Flavour.LEGACY)
    run("iptables-legacy", "-A", "FORWARD", "-m", "set", "--match-set", "MY-PYPROXY_IPVS-CLUSTER-4", "dst,dst")
    run("ip", "route", "add", "local", "10.96.0.1", "dev", "lo", "table", "local", "proto", "112", "metric", "112")
    run("ip", "addr", "add", "192.0.2.250", "dev", "lan")


def everything() -> dict[str, list[str]]:
    """Of everybody, by the programs that tell it."""
    commands = (
        "ipvsadm -Sn",
        "ipset save -sorted",
        "ip -4 route show table local",
        "ip -6 route show table local",
        "ip addr show dev lan",
        "iptables-legacy-save",
        "ip6tables-legacy-save",
    )
    return {command: _lines(run(*command.split())) for command in commands}


def _lines(text: str) -> list[str]:
    """Without comments, which tell the time, and without chains of the kernel's own, which tables have."""
    return [
        line
        for line in text.splitlines()
        if not line.startswith(("#", "*", "COMMIT")) and not (line.startswith(":") and " - [" not in line)
    ]
