"""Random histories of a cluster, and kernels that fail in the midst of them: the kernel holds what the table says."""

from contextlib import suppress
from dataclasses import replace
from itertools import count
from random import Random

import pytest

from modes.ipvs.mode import IpvsMode
from pyproxy.host import HostOptions
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import Ipvs as Options
from pyproxy.table import ModeError, RouteId, Table
from tests.ipvs.unreliable import REASON, Unreliable
from tests.ipvs.world import differences, everything, node, plant_foreigners, table_of, written
from tests.unit.histories import CLUSTER_CIDRS, Crowd
from tests.unit.samples import THIS_NODE
from tests.unit.test_iptables_route import BALANCED, CLUSTER_IP, EXTERNAL_IP, WEB, endpoints, route

STEPS = 12
CROWD = Crowd(services=12, pods=10, most_endpoints=8, node_ports=tuple(range(30001, 30008)))
OTHER = WEB._replace(name="other")
ONE = table_of(
    route(CLUSTER_IP, internal=endpoints(1, 2, 3), local=endpoints(1, 2), node_port=30080),
    route(EXTERNAL_IP, internal=endpoints(4), of=OTHER),
)
TWO = table_of(
    route(CLUSTER_IP, BALANCED, internal=endpoints(2, 3, 4, 5), local=endpoints(2), ranges=()),
    route(internal=endpoints(4), of=OTHER),
)
TWO_ELSEWHERE = Table(TWO.routes, replace(TWO.host, masquerade_all=True, ipvs=Options(scheduler="wrr")))
"""Other rules are needed for it, too."""


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Unreliable:
    return Unreliable(monkeypatch)


@pytest.mark.parametrize("seed", [1, 2])
def test_after_any_history_the_kernel_holds_what_the_table_says(seed: int, kernel: Unreliable) -> None:
    random = Random(seed)
    store = Store(THIS_NODE)
    planner = Planner(store, HostOptions(THIS_NODE, cluster_cidrs=CLUSTER_CIDRS), lambda _: None)
    store.apply([CROWD.event(random) for _ in range(60)])
    with node("192.0.2.1", "192.0.2.9", "198.51.100.2", "2001:db8::1"):
        plant_foreigners()
        before = everything()
        mode = IpvsMode()
        for step in range(STEPS):
            store.apply([CROWD.event(random) for _ in range(random.choice((1, 1, 1, 2, 15)))])
            table, changed = planner.plan()
            happening = random.random()
            if happening < 0.1:
                mode = IpvsMode()  # another process begins where this one ended
            elif happening < 0.4:
                kernel.fail(at=random.randint(1, 12))
                with suppress(ModeError):  # unless there is less to write
                    mode.sync(table, changed)
                kernel.fail(at=0)
            mode.sync(table, changed)
            assert differences(table, mode) == [], f"seed {seed}, step {step}"
            if step % 5 == 0:
                held = written()
                IpvsMode().sync(table, None)
                assert written() == held, f"seed {seed}, step {step}"
        mode.cleanup()
        assert everything() == before


@pytest.mark.parametrize(
    ("table", "changed", "afterwards"),
    [(TWO_ELSEWHERE, None, [TWO_ELSEWHERE]), (TWO, {WEB, OTHER}, [TWO, ONE])],
    ids=["everything", "a change"],
)
def test_a_sync_that_fails_anywhere_is_repaired_by_the_next(
    table: Table, changed: set[RouteId] | None, afterwards: list[Table], kernel: Unreliable
) -> None:
    """By one to the same table as well as by one back to where it came from."""

    def fails(at: int) -> bool:
        kernel.fail(at)
        try:
            mode.sync(table, changed)
        except ModeError as error:
            assert REASON in str(error)
            return True
        kernel.fail(at=0)
        return False

    with node():
        mode = IpvsMode()
        mode.sync(ONE, None)
        for after in afterwards:
            for at in count(1):
                if not fails(at):
                    break
                mode.sync(after, set())
                assert differences(after, mode) == [], f"after failure {at}"
                mode.sync(ONE, None)
            assert at > 6
            mode.sync(ONE, None)
