"""Answers of the kernel that are lost, since there is no room for them: never is a part taken for the whole."""

import pytest

from modes.ipvs.mode import IpvsMode
from pyproxy.kernel.netlink import Netlink
from pyproxy.table import Ipvs as Options
from pyproxy.table import ModeError, Transport
from tests.ipvs.world import differences, many, node, table_of, written
from tests.unit.iptables_world import run

OPTIONS = Options(tcp_timeout=1000)  # so that a sync begins with a message that wants an answer
ROUTES = many(200, transport=Transport.UDP)  # what goes is removed at once
MANY, FEW = table_of(*ROUTES, options=OPTIONS), table_of(*ROUTES[:2], options=OPTIONS)
HARMS = {"virtual servers": "ipvsadm -C", "local routes": "ip route flush table local proto 113"}
"""After each, the kernel refuses to remove them once more, and says so of each one."""


@pytest.fixture(autouse=True)
def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each socket gets the smallest buffer that the kernel gives: a handful of answers."""
    monkeypatch.setattr(Netlink.__init__, "__defaults__", (1,))


def test_what_is_read_is_whole() -> None:
    with node():
        mode = IpvsMode()
        mode.sync(MANY, None)
        assert differences(MANY, mode) == []
        assert len(written()[0]) == len(ROUTES)


@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_sync_that_does_not_hear_all_has_failed_and_the_next_repairs(harm: str) -> None:
    with node():
        mode = IpvsMode()
        mode.sync(MANY, None)
        run(*harm.split())
        with pytest.raises(ModeError, match="No buffer space available"):
            mode.sync(FEW, MANY.routes.keys())
        mode.sync(FEW, set())
        assert differences(FEW, mode) == []
