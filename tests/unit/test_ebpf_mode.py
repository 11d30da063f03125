"""After each change in a random history of a cluster the maps must hold what the table says, and no slot be missing."""

from collections.abc import Iterator
from random import Random

import pytest

from bench.lab import Lab
from ebpf import layout, store, syscall
from ebpf.layout import MAPS
from modes.ebpf.mode import EbpfMode
from pyproxy.host import HostOptions
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import ModeError, Table
from tests.unit.histories import CLUSTER_CIDRS, Crowd
from tests.unit.samples import THIS_NODE

STEPS, SEEDS = 40, 3
Endpoints = dict[tuple[str, int, int], tuple[set[tuple[str, int]], set[tuple[str, int]]]]
CROWD = Crowd()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_any_history_the_maps_hold_what_the_table_says(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    random = Random(seed)
    assert lab.cgroup is not None
    options = HostOptions(THIS_NODE, cluster_cidrs=CLUSTER_CIDRS, cgroup=str(lab.cgroup.path))
    objects = Store(THIS_NODE)
    planner = Planner(objects, options, EbpfMode().objection)
    with lab.node.namespace.entered():
        mode = EbpfMode()
        mode.cleanup()
        for step in range(STEPS):
            objects.apply([CROWD.event(random) for _ in range(random.choice((1, 1, 1, 2, 5)))])
            table, changed = planner.plan()
            happening = random.random()
            if happening < 0.05:
                mode = EbpfMode()  # another process begins where this one ended
            elif happening < 0.1:
                with monkeypatch.context() as patch:
                    patch.setattr(syscall, "update", _refuse)
                    with pytest.raises(ModeError, match="no space"):
                        mode.sync(table, None)
            mode.sync(table, changed)
            assert mode.verify() == [], f"seed {seed}, step {step}"
            assert endpoints() == wanted(table), f"seed {seed}, step {step}"
            assert counters() == of_routes(table), f"seed {seed}, step {step}"


def endpoints() -> Endpoints:
    """By address, port and protocol: the endpoints for the inside, and those for others, as programs find them."""
    maps = store.opened_maps()
    try:
        found: Endpoints = {}
        for key, value in syscall.entries(maps["services"]):
            service = layout.read_service(value)
            address, port, protocol = layout.read_place(key)
            inside, outside = ({_slot(maps, pool.id, n) for n in range(pool.size)} for pool in service[:2])
            found[layout.spelled(address), port, protocol] = inside, outside
        return found
    finally:
        store.close(maps)


def counters() -> dict[tuple[str, int, int], layout.Name]:
    """By address, port and protocol: whose counter it is."""
    maps = store.opened_maps()
    try:
        names = {layout.read_number(key): layout.read_name(value) for key, value in syscall.entries(maps["names"])}
        found = {}
        for key, value in syscall.entries(maps["services"]):
            address, port, protocol = layout.read_place(key)
            found[layout.spelled(address), port, protocol] = names[layout.read_service(value).counter]
        return found
    finally:
        store.close(maps)


def of_routes(table: Table) -> dict[tuple[str, int, int], layout.Name]:
    found = {}
    for route in table.routes.values():
        name = layout.Name(*route.id[:3], int(route.id.family.value[3]))
        protocol = layout.PROTOCOLS[route.transport.value]
        found.update({(str(one.address), one.port, protocol): name for one in route.frontends})
        if route.node_port:
            found["0.0.0.0" if name.family == 4 else "::", route.node_port, protocol] = name
    return found


def _slot(maps: dict[str, int], pool: int, number: int) -> tuple[str, int]:
    packed = syscall.lookup(maps["backends"], layout.slot(pool, number), MAPS["backends"].value)
    assert packed is not None
    assert syscall.lookup(maps["members"], layout.member(pool, packed), MAPS["members"].value) is not None
    return layout.read_backend(packed)


def wanted(table: Table) -> Endpoints:
    """From the table alone."""
    found: Endpoints = {}
    for route in table.routes.values():
        internal, external, short_circuit = ({(str(one.ip), one.port) for one in pool.backends} for pool in route.pools)
        protocol = layout.PROTOCOLS[route.transport.value]
        others = external if route.masquerade_external else short_circuit, external
        for one in route.frontends:
            of_cluster = one.scope.value == "ClusterIP"
            found[str(one.address), one.port, protocol] = (internal, internal) if of_cluster else others
        if route.node_port:
            anywhere = "0.0.0.0" if route.id.family.value == "IPv4" else "::"
            found[anywhere, route.node_port, protocol] = others
    return found


def _refuse(*_: object) -> None:
    raise OSError(28, "no space")
