"""A kernel that was started with ipv6.disable=1 answers a question about IPv6 with what it knows of IPv4."""

import subprocess
import sys

import pytest

_SCRIPT = """
import sys
from dataclasses import replace
from pyproxy import modes
from pyproxy.address import Family, IP
from pyproxy.table import Backend, Host, Pool, Table
from tests.faults.routes import cluster_ip_route
mode = modes.load(sys.argv[1])
route = cluster_ip_route("10.96.0.1", 80, Pool((Backend(IP("10.244.0.1"), 8080, False),)))
for _ in range(2):
    mode.sync(Table({route.id: route}, Host()), None)
    print(mode.verify())
print(mode.objection(replace(route, id=route.id._replace(family=Family.IPV6))))
print("local routes" in mode.cleanup()[-1])
"""


@pytest.mark.parametrize("mode", ["ipvs", "userspace"])
def test_a_mode_with_local_routes_runs_there(mode: str) -> None:
    command = [sys.executable, "-m", "tests.kernels", "uml", "--append", "ipv6.disable=1", "--", "env"]
    done = subprocess.run([*command, "PYTHONPATH=.", "python", "-c", _SCRIPT, mode], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]", "this kernel has no IPv6", "True"], done.stdout + done.stderr
