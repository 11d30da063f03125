"""An address that the node has anyway is a Service's, too: both are served, and it stays when the Service goes."""

import socket
from collections.abc import Iterator

import pytest

from bench.ask import ask, open_socket
from bench.lab import Lab
from modes.ipvs.mode import IpvsMode
from pyproxy.table import IP, Backend, Frontend, Host, Pool, Scope, Table
from tests.conformance.cluster import until
from tests.ipvs.traffic import connection, goes_on
from tests.ipvs.world import differences
from tests.unit.iptables_world import run
from tests.unit.test_iptables_route import WEB, route

ADDRESS = "203.0.113.9"
FRONTEND = Frontend(IP(ADDRESS), 80, Scope.EXTERNAL_IP)
SERVED = Table({WEB: route(FRONTEND, internal=Pool((Backend(IP("10.244.0.12"), 8080, True),)))}, Host())
NOTHING = Table({}, Host())


@pytest.fixture(autouse=True)
def address(lab: Lab) -> Iterator[None]:
    run("ip", "addr", "add", ADDRESS, "dev", "eth0")
    yield
    run("ip", "addr", "del", f"{ADDRESS}/32", "dev", "eth0")


def listens(lab: Lab, port: int) -> bool:
    """Whether a program of the node that does at that port is reached from outside."""
    with socket.create_server((ADDRESS, port)), open_socket(lab.client, ADDRESS) as client:
        client.settimeout(10)
        return client.connect_ex((ADDRESS, port)) == 0


def test_it_serves_a_service_beside_what_listens_there_and_stays(lab: Lab) -> None:
    mode = IpvsMode()
    mode.sync(SERVED, None)
    with connection(lab, ADDRESS, 80, "pod-2") as client:
        assert goes_on(client)
    assert listens(lab, 81)
    with pytest.raises(ConnectionRefusedError):
        ask(lab.client, ADDRESS, 82)
    mode.sync(NOTHING, {WEB})
    until(lambda: differences(NOTHING, mode) == [], lambda: str(differences(NOTHING, mode)))
    assert listens(lab, 80)
