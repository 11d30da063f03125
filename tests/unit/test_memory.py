"""What the state of a large cluster weighs, in a process of its own."""

import subprocess
import sys
import tracemalloc

from modes.ebpf.plan import Plan
from modes.ebpf.site import Site
from pyproxy.table import IP, Backend, Family, Frontend, Host, Pool, Route, RouteId, Scope, Table, Transport

MOST_MIB = 60
MOST_OF_PLAN_MIB = 10

_PROGRAM = """
import gc, json, sys
from pathlib import Path
from bench import synthetic
from pyproxy.manifest import parse
from pyproxy.objects import Upsert
from pyproxy.store import Store

def resident():
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024

text = sys.stdin.buffer.read()
before = resident()
store = Store("node-1")
store.apply([Upsert(thing) for thing in parse(text).objects])
gc.collect()
print(len(store.services), len(store.slices), resident() - before)
"""


def test_ten_thousand_services_of_two_endpoints_fit_in_sixty_mebibytes() -> None:
    import json

    from bench import synthetic

    text = json.dumps({"kind": "List", "items": synthetic.load(10_000, 2)}).encode()
    done = subprocess.run([sys.executable, "-c", _PROGRAM], input=text, capture_output=True, check=True)
    services, slices, mebibytes = done.stdout.split()
    assert (int(services), int(slices)) == (10_000, 10_000)
    assert float(mebibytes) < MOST_MIB


def test_what_ebpf_mode_notes_of_ten_thousand_routes_fits_in_ten_mebibytes() -> None:
    routes = {}
    for number in range(10_000):
        pool = Pool((Backend(IP("10.244.0.1"), 80, is_local=False), Backend(IP("10.244.0.2"), 80, is_local=False)))
        frontend = Frontend(IP(f"10.96.{number >> 8}.{number & 255}"), 80, Scope.CLUSTER_IP)
        of = RouteId("default", f"svc-{number}", "", Family.IPV4)
        routes[of] = Route(of, Transport.TCP, (frontend,), *(None, pool, pool, pool), *(True, None, None, None))
    table = Table(routes, Host())
    tracemalloc.start()
    try:
        plan = Plan(Site())
        assert len(plan.change(table, table.routes.keys()).put) == 7 * len(routes)
        assert tracemalloc.get_traced_memory()[0] < MOST_OF_PLAN_MIB << 20
    finally:
        tracemalloc.stop()
