"""Random histories of a cluster, others at work in the same tables, loads that fail: the kernel holds what it must."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from modes.iptables import ruleset
from modes.iptables.family_table import FamilyTable
from modes.iptables.mode import IptablesMode
from pyproxy.host import HostOptions
from pyproxy.kernel import iptables
from pyproxy.kernel.iptables import Flavour, Share
from pyproxy.kernel.iptables_dialect import DIALECTS, Dialect
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import Drift, Family, Host, ModeError, Prefix, Route, RouteId, Table
from tests.unit.histories import CLUSTER_CIDRS, Crowd
from tests.unit.iptables_world import (
    everything,
    fresh_host,
    in_order,
    is_hooked,
    of_others,
    ours,
    plant_others,
    run,
    saved,
    use,
)
from tests.unit.samples import THIS_NODE
from tests.unit.test_iptables_route import CLUSTER_IP, EXTERNAL_IP, WEB, endpoints, hashed, route

STEPS = 25
CROWD = Crowd(services=30, pods=24, most_endpoints=16, node_ports=tuple(range(30001, 30012)))
BOTH = pytest.mark.parametrize("flavour", Flavour)
IPV4, IPV6 = DIALECTS.values()
ONE = route(CLUSTER_IP, internal=endpoints(1, 2, 3, 4), node_port=30080)
TWO = route(EXTERNAL_IP, internal=endpoints(1), of=WEB._replace(name="two"))
SVC = f"PYPROXY-SVC-{hashed(WEB, 'SVC', 16)}"
AT_ONE = "PYPROXY-C-10.96.0.1/32"


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    with fresh_host():
        yield


def table_of(*routes: Route) -> Table:
    return Table({one.id: one for one in routes}, Host((Prefix("192.0.2.1/32"),), CLUSTER_CIDRS))


@pytest.mark.parametrize(("flavour", "seed"), [(Flavour.LEGACY, 1), (Flavour.LEGACY, 2), (Flavour.NFT, 3)])
def test_after_any_history_the_kernel_holds_what_the_table_says(
    flavour: Flavour, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_others(flavour)
    use(flavour)
    before = everything()
    random = Random(seed)
    store = Store(THIS_NODE)
    planner = Planner(store, HostOptions(THIS_NODE, cluster_cidrs=CLUSTER_CIDRS), lambda _: None)
    store.apply([CROWD.event(random) for _ in range(100)])
    mode = IptablesMode()
    for step in range(STEPS):
        store.apply([CROWD.event(random) for _ in range(random.choice((1, 1, 1, 2, 20)))])
        table, changed = planner.plan()
        happening = random.random()
        if happening < 0.1:
            mode = IptablesMode()  # another process begins where this one ended
        elif happening < 0.2:
            with monkeypatch.context() as patch, suppress(ModeError):  # unless there is nothing to write
                patch.setattr(iptables, "load", _failing_for(random.choice(list(Family))))
                mode.sync(table, changed)
        mode.sync(table, changed)
        where = f"seed {seed}, step {step}"
        assert mode.verify() == [], where
        for family, written in mode._tables.items():
            d = DIALECTS[family]
            found, others = saved(d, flavour), before[f"{d.program}-{flavour}"]
            assert is_hooked(found), where
            assert {name: of_others(found)[name] for name in others} == others, where
            assert ours(found, "filter") == ruleset.filter_chains(d), where
            # Which of a route's endpoints comes first depends on the past; all else follows from the table.
            kept = {id: in_order(one) for id, one in table.routes.items() if id.family is family}
            assert {id: in_order(one) for id, one in written._routes.items()} == kept, where
            wanted = FamilyTable(d).fill(Table(written._routes, table.host))
            assert ours(found, "nat") == written.chains == wanted, where
    mode.cleanup()
    assert everything() == before


def _failing_for(family: Family) -> Callable[..., None]:
    """The other family's tables are written, if they come first."""
    load = iptables.load

    def fail(d: Dialect, *rest: Any) -> None:
        if d.family is family:
            raise ModeError("the kernel has no memory left")
        load(d, *rest)

    return fail


@BOTH
def test_others_keep_their_rules_and_come_after(flavour: Flavour) -> None:
    plant_others(flavour)
    use(flavour)
    before = everything()
    mode = IptablesMode()
    for table in (table_of(ONE), table_of(ONE, TWO), table_of()):
        mode.sync(table, None)
        for d in DIALECTS.values():
            found, others = saved(d, flavour), before[f"{d.program}-{flavour}"]
            assert is_hooked(found)
            assert {name: of_others(found)[name] for name in others} == others
    assert mode.cleanup()
    assert everything() == before
    assert mode.cleanup() == []


HOOKS_HARMED = {
    "deleted": ["-t nat -D PREROUTING -j PYPROXY-SERVICES"],
    "doubled": ["-t nat -A OUTPUT -j PYPROXY-SERVICES"],
    "all gone": ["-F FORWARD", "-F INPUT", "-F OUTPUT"],
    "other than it was": [
        "-t nat -D POSTROUTING -m conntrack --ctstate DNAT -j PYPROXY-POSTROUTING",
        "-t nat -A POSTROUTING -j PYPROXY-POSTROUTING",
    ],
    "a way in of another's": ["-t nat -A STRANGER -g PYPROXY-NODE-PORTS"],
}


@BOTH
@pytest.mark.parametrize("harm", HOOKS_HARMED.values(), ids=HOOKS_HARMED)
def test_a_way_in_that_was_harmed_is_told_and_made_good(flavour: Flavour, harm: list[str]) -> None:
    plant_others(flavour)
    use(flavour)
    mode = IptablesMode()
    mode.sync(table_of(ONE), None)
    before = everything()
    for words in harm:
        run(f"iptables-{flavour}", *words.split(" "))
    name = "nat" if "nat" in harm[0] else "filter"
    told = f"the rules that lead from table {name} of iptables to pyproxy are not as written"
    assert mode.verify() == [Drift(None, told)]
    mode.sync(table_of(ONE), None)
    assert mode.verify() == []
    found = saved(IPV4, flavour)
    assert is_hooked(found)
    if harm != HOOKS_HARMED["all gone"]:
        assert everything() == before


CHAINS_HARMED: dict[str, tuple[list[str], list[tuple[RouteId | None, str]]]] = {
    "foreign": (["-t nat -N PYPROXY-STRANGER"], [(None, "chain PYPROXY-STRANGER in table nat of {} is foreign")]),
    "foreign, and led to": (
        [
            "-t nat -N PYPROXY-STRANGER",
            "-t nat -A PYPROXY-STRANGER -j ACCEPT",
            "-t nat -I PYPROXY-SERVICES -j PYPROXY-STRANGER",
        ],
        [
            (None, "chain PYPROXY-SERVICES in table nat of {} is changed"),
            (None, "chain PYPROXY-STRANGER in table nat of {} is foreign"),
        ],
    ),
    "changed": ([f"-t nat -D {SVC} 2"], [(WEB, f"chain {SVC} in table nat of {{}} is changed")]),
    "empty": (["-t nat -F PYPROXY-MASQUERADE"], [(None, "chain PYPROXY-MASQUERADE in table nat of {} is changed")]),
    "in another order": (
        ["-D PYPROXY-REJECT 1", "-A PYPROXY-REJECT -p tcp -j REJECT --reject-with tcp-reset"],
        [(None, "chain PYPROXY-REJECT in table filter of {} is changed")],
    ),
    "with a rule that does nothing": (
        ["-t nat -A PYPROXY-DROP"],
        [(None, "chain PYPROXY-DROP in table nat of {} is changed")],
    ),
    "missing": (
        [f"-t nat -F {AT_ONE}", f"-t nat -F {SVC}", f"-t nat -X {SVC}"],
        [
            (None, f"chain {AT_ONE} in table nat of {{}} is changed"),
            (WEB, f"chain {SVC} in table nat of {{}} is missing"),
        ],
    ),
    "foreign in the other table": (["-N PYPROXY-OLD"], [(None, "chain PYPROXY-OLD in table filter of {} is foreign")]),
}


@BOTH
@pytest.mark.parametrize(("harm", "told"), CHAINS_HARMED.values(), ids=CHAINS_HARMED)
def test_a_chain_that_was_harmed_is_told_with_its_route_and_made_good(
    flavour: Flavour, harm: list[str], told: list[tuple[RouteId | None, str]]
) -> None:
    use(flavour)
    mode = IptablesMode()
    mode.sync(table_of(ONE), None)
    before = everything()
    for words in harm:
        run(f"iptables-{flavour}", *words.split(" "))
    assert mode.verify() == [Drift(owner, what.format("iptables")) for owner, what in told]
    mode.sync(table_of(ONE), None)
    assert mode.verify() == []
    assert everything() == before


@BOTH
def test_the_other_family_is_watched_too(flavour: Flavour) -> None:
    use(flavour)
    mode = IptablesMode()
    mode.sync(table_of(ONE), None)
    run(f"ip6tables-{flavour}", "-t", "nat", "-F")
    told = mode.verify()
    assert Drift(None, "the rules that lead from table nat of ip6tables to pyproxy are not as written") in told
    assert Drift(None, "chain PYPROXY-DROP in table nat of ip6tables is changed") in told
    assert not [drift for drift in told if "of iptables" in drift.what]


@BOTH
def test_what_is_in_order_is_not_written_again(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    use(flavour)
    IptablesMode().sync(table_of(ONE, TWO), None)
    loaded = _spy(monkeypatch)
    mode = IptablesMode()
    mode.sync(table_of(ONE, TWO), None)
    mode.sync(table_of(ONE, TWO), set())
    mode.sync(table_of(ONE, TWO), {ONE.id})
    assert loaded == []
    mode.sync(table_of(ONE), {TWO.id})
    assert [d for d, _ in loaded] == [IPV4]
    assert SVC not in loaded[0][1]
    assert "*filter" not in loaded[0][1]


def _spy(patch: pytest.MonkeyPatch) -> list[tuple[Dialect, str]]:
    """What is loaded from now on."""
    loaded: list[tuple[Dialect, str]] = []
    load = iptables.load

    def told(d: Dialect, flavour: Flavour, script: str, *options: str) -> None:
        loaded.append((d, script))
        load(d, flavour, script, *options)

    patch.setattr(iptables, "load", told)
    return loaded


@BOTH
def test_the_first_sync_removes_what_is_left_in_the_other_flavour(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host went over to another iptables; translated twice, a connection would go to nobody."""
    other = next(each for each in Flavour if each is not flavour)
    plant_others(other)
    before = everything()
    with monkeypatch.context() as patch:
        patch.setattr(iptables, "detect", lambda: other)
        IptablesMode().sync(table_of(ONE), None)
    assert is_hooked(saved(IPV4, other))
    use(flavour)
    mode = IptablesMode()
    mode.sync(table_of(ONE), None)
    found = everything()
    for d in DIALECTS.values():
        assert found[f"{d.program}-{other}"] == before[f"{d.program}-{other}"]
        assert is_hooked(saved(d, flavour))
    assert mode.verify() == []
    read = iptables.read
    monkeypatch.setattr(iptables, "read", lambda *of: read(*of) if of[-1] is flavour else pytest.fail("once is enough"))
    mode.sync(table_of(ONE, TWO), {TWO.id})
    mode.sync(table_of(ONE, TWO), None)


@BOTH
@pytest.mark.parametrize(
    ("more", "said", "changed"),
    [
        ("-A PYPROXY-SERVICES -j PYPROXY-NOWHERE\n", "PYPROXY-NOWHERE", {ONE.id, TWO.id}),
        ("-A PYPROXY-MASQUERADE -j PYPROXY-SERVICES\n-A PYPROXY-SERVICES -j PYPROXY-MASQUERADE\n", "", None),
    ],
    ids=["a change that the program refuses", "everything, and the kernel does"],
)
def test_a_load_that_fails_leaves_the_kernel_as_it_was(
    flavour: Flavour, more: str, said: str, changed: set[RouteId] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_others(flavour)
    use(flavour)
    mode = IptablesMode()
    mode.sync(table_of(ONE), None)
    before = everything()
    wanted = table_of(replace(ONE, internal=endpoints(7, 8, 9)), TWO)
    with monkeypatch.context() as patch:
        script = iptables.script
        patch.setattr(iptables, "script", lambda *words: script(*words).replace("COMMIT\n", f"{more}COMMIT\n"))
        with pytest.raises(ModeError, match=f"iptables-{flavour}-restore: .*{said}"):
            mode.sync(wanted, changed)
    assert everything() == before
    mode.sync(wanted, set())  # what comes next repairs, whatever it was told of
    assert mode.verify() == []
    assert ours(saved(IPV4, flavour), "nat") == FamilyTable(IPV4).fill(wanted)


@BOTH
def test_all_of_any_version_goes_from_both_flavours(flavour: Flavour, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in Flavour:
        plant_others(each)
    before = everything()
    monkeypatch.setattr(iptables, "detect", lambda: flavour)
    mode = IptablesMode()
    mode.sync(table_of(ONE, TWO), None)
    mode.sync(table_of(ONE), {TWO.id})
    other = next(each for each in Flavour if each is not flavour)
    for words in ("-N PYPROXY-OF-OLD", "-A STRANGER -j PYPROXY-OF-OLD", "-A PYPROXY-OF-OLD -j RETURN"):
        run(f"ip6tables-{other}", "-t", "nat", *words.split(" "))
    count = len(FamilyTable(IPV4).fill(table_of(ONE)))
    removed = IptablesMode().cleanup()
    assert [what for what in removed if flavour in what] == [  # marks go before their verdict does
        f"{count} chains of iptables-{flavour} table nat",
        f"2 chains of iptables-{flavour} table filter",
        f"{len(FamilyTable(IPV6).fill(table_of()))} chains of ip6tables-{flavour} table nat",
        f"2 chains of ip6tables-{flavour} table filter",
    ]
    assert [what for what in removed if flavour not in what] == [f"1 chains of ip6tables-{other} table nat"]
    assert everything() == before
    assert mode.cleanup() == []


@BOTH
def test_what_fails_in_one_flavour_keeps_the_other_from_nothing(
    flavour: Flavour, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(flavour)
    read = iptables.read

    asked_of: list[Flavour] = []

    def fail_elsewhere(share: Share, d: Dialect, asked: Flavour) -> dict[str, iptables.Saved]:
        asked_of.append(asked)
        if asked is not flavour:
            raise ModeError("no such table")
        return read(share, d, asked)

    monkeypatch.setattr(iptables, "read", fail_elsewhere)
    mode = IptablesMode()
    mode.sync(table_of(ONE), None)
    assert mode.verify() == []
    asked_of.clear()
    mode.sync(table_of(ONE, TWO), {TWO.id})
    assert asked_of == []  # a small change is no time for it
    mode.sync(table_of(ONE, TWO), None)
    assert set(asked_of) == set(Flavour)
    with pytest.raises(ModeError, match="no such table"):
        mode.cleanup()
    assert "PYPROXY" not in str(everything())


def test_before_anything_was_written_everything_is_missing() -> None:
    mode = IptablesMode()
    assert "chain PYPROXY-VERDICT in table filter of iptables is missing" in {drift.what for drift in mode.verify()}
    assert mode.cleanup() == []
