"""Random histories of a small, crowded cluster: after each change the kernel must hold what the table says."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest

from bench.lab import Lab
from modes.nftables import kernel, ruleset
from modes.nftables.elements import Elements, Slot, elements_of
from modes.nftables.family import DIALECTS
from modes.nftables.mode import NftablesMode
from pyproxy.address import parse_prefix
from pyproxy.host import HostOptions
from pyproxy.objects import (
    AffinityConfig,
    ClientIPConfig,
    Conditions,
    Delete,
    EndpointSlice,
    Event,
    Ingress,
    Key,
    Service,
    ServicePort,
    SlicePort,
    Upsert,
)
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import Family, ModeError, Table
from tests.unit.samples import OTHER_NODE, THIS_NODE, admitted, endpoint, endpoint_slice, node, service

STEPS, SEEDS = 40, 3
CLUSTER_CIDRS = (parse_prefix("10.244.0.0/16"), parse_prefix("fd00:244::/48"))
NAMES = ("a", "b", "c", "d")
EXTERNAL_IPS = ("198.51.100.1", "198.51.100.2", "10.96.0.1", "2001:db8::1", "fd00:96::2")
RANGES = ("192.0.2.0/24", "192.0.3.0/24", "192.0.4.7/32", "203.0.113.0/25", "2001:db8:7::/64", "2001:db8:7:1::9/128")
PODS = {
    Family.IPV4: tuple(f"10.244.{number % 2}.{number}" for number in range(1, 7)),
    Family.IPV6: tuple(f"fd00:244:0:{number % 2}::{number}" for number in range(1, 7)),
}
NODES = (("192.0.2.1", "2001:db8::1"), ("192.0.2.1",), ("192.0.2.1", "192.0.2.9", "2001:db8::9"))
PLAIN_SETS = ("allowed-sources", *ruleset.SHARED_SETS, *ruleset.HOST_SETS)
NUMBERED = ("endpoints", "node-port-endpoints", "sticky-ids", "node-port-sticky-ids")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_any_history_the_kernel_holds_what_the_table_says(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random = Random(seed)
    store = Store(THIS_NODE)
    planner = Planner(store, HostOptions(THIS_NODE, cluster_cidrs=CLUSTER_CIDRS), lambda _: None)
    with lab.node.namespace.entered():
        mode = NftablesMode()
        for step in range(STEPS):
            store.apply([_event(random) for _ in range(random.choice((1, 1, 1, 2, 5)))])
            table, changed = planner.plan()
            happening = random.random()
            if happening < 0.03:
                mode = NftablesMode()  # another process begins where this one ended
            elif happening < 0.06:
                with monkeypatch.context() as patch, suppress(ModeError):  # unless there is nothing to write
                    patch.setattr(kernel, "load", _refuse)
                    mode.sync(table, changed)
            mode.sync(table, changed)
            where = f"seed {seed}, step {step}"
            for family, written in mode._tables.items():
                found = kernel.elements(DIALECTS[family].ip, ruleset.MAPS, maps=True)
                found |= kernel.elements(DIALECTS[family].ip, PLAIN_SETS, maps=False)
                assert not list(written.differences(found)), where
                assert _without_places(found) == _without_places(_wanted(family, table)), where
            if step % 10 == 0:
                mode._touched = True  # so that it reads the chains, too, though nobody else wrote to them
                assert not mode.verify(), where
        mode.cleanup()


def _refuse(script: str) -> int:
    raise ModeError("the kernel has no memory left")


def _event(random: Random) -> Event:
    kind = random.random()
    if kind < 0.05:
        return Upsert(admitted(node(*random.choice(NODES))))
    name = random.choice(NAMES)
    if kind < 0.15:
        return Delete(Service, Key("default", name))
    if kind < 0.25:
        return Delete(EndpointSlice, Key("default", f"{name}-{random.choice(list(Family)).value.lower()}"))
    return Upsert(admitted(_service(random, name))) if kind < 0.6 else Upsert(admitted(_slice(random, name)))


def _service(random: Random, name: str) -> Service:
    number = NAMES.index(name) + 1
    addresses = (f"10.96.0.{number}", f"fd00:96::{number}")
    protocols = random.choice((("TCP", "TCP"), ("TCP", "UDP"), ("UDP", "UDP"), ("UDP", "SCTP")))
    ports = [
        ServicePort(random.choice((80, 80, 81)), "one", protocols[0], random.choice((0, 30001, 30002))),
        ServicePort(random.choice((90, 91)), "two", protocols[1], random.choice((0, 30002, 30003))),
    ]
    sticky = random.random() < 0.4
    config = AffinityConfig(ClientIPConfig(random.choice((10, 10800))))
    return service(
        name,
        *ports[: random.randint(1, 2)],
        cluster_ips=random.choice((addresses, addresses[:1], addresses[1:], addresses[::-1])),
        external_ips=tuple(random.sample(EXTERNAL_IPS, random.randint(0, 2))),
        ingress=tuple(Ingress(ip) for ip in random.sample(EXTERNAL_IPS, random.randint(0, 2))),
        load_balancer_source_ranges=tuple(random.sample(RANGES, random.randint(0, 4))),
        internal_traffic_policy=random.choice(("Cluster", "Local")),
        external_traffic_policy=random.choice(("Cluster", "Local")),
        session_affinity="ClientIP" if sticky else "None",
        session_affinity_config=config if sticky else None,
        created=random.choice((None, "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z")),
    )


def _slice(random: Random, name: str) -> EndpointSlice:
    family = random.choice(list(Family))
    pods = random.sample(PODS[family], random.randint(0, 5))
    conditions = [None, None, None, Conditions(ready=False, serving=True, terminating=True)]
    protocol = random.choice(("TCP", "UDP"))
    return endpoint_slice(
        *(endpoint(pod, random.choice((THIS_NODE, OTHER_NODE)), conditions=random.choice(conditions)) for pod in pods),
        name=f"{name}-{family.value.lower()}",
        of=random.choice((name, name, name, "a")),
        family=family.value,
        ports=(SlicePort("one", protocol, random.choice((8080, 9090))), SlicePort("two", "UDP", 8181)),
    )


def _wanted(family: Family, table: Table) -> Elements:
    """From the table alone, every endpoint in the place that a first sync gives it."""
    elements = {
        Slot(name, key): ""
        for name, keys in ruleset.host_elements(DIALECTS[family], table.host).items()
        for key in keys
    }
    for route in table.routes.values():
        if route.id.family is family:
            mine = elements_of(route, DIALECTS[family])
            assert not {slot for slot in elements.keys() & mine.keys() if slot.set not in ruleset.SHARED_SETS}
            elements.update(mine)
    return elements


def _without_places(elements: Elements) -> Counter[tuple[Slot, str]]:
    """Which endpoint has which number is the mode's own affair, as long as every number is taken once."""
    found: Counter[tuple[Slot, str]] = Counter()
    for slot, value in elements.items():
        if slot.set in NUMBERED:
            found[Slot(slot.set, slot.key.rpartition(" . ")[0]), value] += 1
            found[Slot(slot.set, slot.key), "is taken"] += 1
        else:
            found[slot, value] += 1
    return found
