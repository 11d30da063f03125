"""After each change in a random history of a cluster the kernel must hold what the table says."""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from random import Random

import pytest

from bench.lab import Lab
from modes.nftables import ruleset
from modes.nftables.elements import Elements, Slot, elements_of
from modes.nftables.family import DIALECTS
from modes.nftables.mode import NftablesMode
from modes.nftables.ruleset import TABLE
from pyproxy.host import HostOptions
from pyproxy.kernel import nft
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import Family, ModeError, Table
from tests.unit.histories import CLUSTER_CIDRS, Crowd
from tests.unit.samples import THIS_NODE

STEPS, SEEDS = 40, 3
CROWD = Crowd()
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
            store.apply([CROWD.event(random) for _ in range(random.choice((1, 1, 1, 2, 5)))])
            table, changed = planner.plan()
            happening = random.random()
            if happening < 0.03:
                mode = NftablesMode()  # another process begins where this one ended
            elif happening < 0.06:
                with monkeypatch.context() as patch, suppress(ModeError):  # unless there is nothing to write
                    patch.setattr(nft, "load", _refuse)
                    mode.sync(table, changed)
            mode.sync(table, changed)
            where = f"seed {seed}, step {step}"
            for family, written in mode._tables.items():
                found = nft.elements(DIALECTS[family].ip, TABLE, ruleset.MAPS, maps=True)
                found |= nft.elements(DIALECTS[family].ip, TABLE, PLAIN_SETS, maps=False)
                assert not list(written.differences(found)), where
                assert _without_places(found) == _without_places(_wanted(family, table)), where
            if step % 10 == 0:
                mode._touched = True  # so that it reads the chains, too, though nobody else wrote to them
                assert not mode.verify(), where
        mode.cleanup()


def _refuse(script: str) -> int:
    raise ModeError("the kernel has no memory left")


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
