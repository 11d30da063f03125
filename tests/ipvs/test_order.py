"""What a client can see while a sync is under way: whoever sees something new sees all that goes with it."""

from collections.abc import Iterable

import pytest

from modes.ipvs.mode import IpvsMode
from pyproxy.kernel.netlink import Failure, Message, Netlink
from pyproxy.table import IP, Frontend, Scope, Table
from tests.ipvs.world import node, servers, table_of
from tests.unit.test_iptables_route import CLUSTER_IP, WEB, endpoints, route

OTHER = WEB._replace(name="other")


def other(port: int) -> Frontend:
    return Frontend(IP("10.96.0.2"), port, Scope.CLUSTER_IP)


def test_no_endpoint_that_goes_is_left_when_a_new_port_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """As between two turns of the scheduler: what the kernel has after each system call."""
    seen: list[tuple[set[int], set[int]]] = []
    send = Netlink._send

    def watched(netlink: Netlink, batch: list[Message]) -> list[Failure]:
        failures = send(netlink, batch)
        found = servers()
        weights = {load.weight for key, one in found.items() if key.port == 80 for load in one.reals.values()}
        seen.append(({key.port for key in found} - {80}, weights))
        return failures

    def table(endpoint_numbers: Iterable[int], port: int) -> Table:
        return table_of(
            route(CLUSTER_IP, internal=endpoints(*endpoint_numbers)),
            route(other(port), internal=endpoints(4), of=OTHER),
        )

    with node():
        mode = IpvsMode()
        mode.sync(table((1, 2), 1001), None)
        monkeypatch.setattr(Netlink, "_send", watched)
        mode.sync(table((2,), 1002), {WEB, OTHER})
        monkeypatch.undo()
    assert ({1001, 1002}, {0, 1}) in seen
    assert [weights for ports, weights in seen if 1002 in ports and 0 not in weights] == []
