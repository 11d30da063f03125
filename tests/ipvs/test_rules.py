"""Rules and sets are as many for two hundred Services as for one."""

from collections.abc import Iterator

import pytest

from modes.ipvs.mode import IpvsMode
from tests.ipvs.world import many, node, servers, table_of
from tests.unit.iptables_world import run


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    with node():
        yield


def counts() -> dict[str, int]:
    commands = {
        "rules": ["iptables-legacy-save"],
        "rules of IPv6": ["ip6tables-legacy-save"],
        "sets": ["ipset", "list", "-n"],
    }
    return {what: len(run(*command).splitlines()) for what, command in commands.items()}


def test_their_number_is_constant() -> None:
    mode = IpvsMode()
    mode.sync(table_of(*many(1)), None)
    few = counts()
    assert min(few.values()) > 10
    table = table_of(*many(200))
    mode.sync(table, table.routes.keys())
    assert len(servers()) == 200
    assert counts() == few
