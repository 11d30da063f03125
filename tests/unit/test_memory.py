"""What the state of a large cluster weighs, in a process of its own."""

import subprocess
import sys

MOST_MIB = 60

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
