"""layout.py against shared.h: what BCC makes of the structs is what user space packs."""

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from ebpf import layout
from ebpf.layout import MAPS
from pyproxy.table import Traffic
from tests.unit.ebpf_world import World, world

# Tells, as JSON, of each map the sizes of its keys and values and the fields in them, as C has them.
_TELL = """
import ctypes, json, os, sys
from ebpf.compiler import HERE, flattened
os.environ["BCC_KERNEL_SOURCE"] = str(HERE)
from bcc import BPF
machine = os.uname().machine
flags = ["-I/usr/include", f"-I/usr/include/{machine}-linux-gnu"]
bpf = BPF(text=flattened("packet.c"), cflags=flags)

def fields(kind, at=0):
    for name, inner, *_ in getattr(kind, "_fields_", ()):
        yield [name, at + getattr(kind, name).offset, ctypes.sizeof(inner)]
        yield from fields(inner, at + getattr(kind, name).offset)

told = {}
for name in sys.argv[1:]:
    table = bpf[name]
    sides = table.Key, table.Leaf
    sides = [one._type_ if issubclass(one, ctypes.Array) else one for one in sides]  # of each processor
    told[name] = [[ctypes.sizeof(one), list(fields(one))] for one in sides]
print(json.dumps(told))
"""

TOLD = [name for name in MAPS if name != "connections"]
"""BCC's Python does not know maps in sockets. The verifier takes a program that uses one for the size that it has."""


@pytest.fixture(scope="module")
def bpf() -> Iterator[World]:
    with world() as loaded:
        yield loaded


@pytest.fixture(scope="module")
def told(bpf: World) -> Any:
    command = [sys.executable, "-c", _TELL, *TOLD]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("name", TOLD)
def test_keys_and_values_are_as_large_as_in_c(told: Any, name: str) -> None:
    (key, _), (value, _) = told[name]
    assert (key, value) == (MAPS[name].key, MAPS[name].value)


# A packed key or value, and where C has which bytes of it.
PACKED: list[tuple[str, int, bytes, dict[str, bytes]]] = [
    ("services", 0, layout.place(layout.address("10.0.0.1"), 80, "udp"), {"port": b"\0\x50", "protocol": b"\x11"}),
    (
        *("services", 1, layout.Service(layout.Pool(1, 2), layout.Pool(3, 4), 5, 6, 7, 8, 9, 10).packed()),
        {
            "counter": b"\x08\0\0\0",
            "guard": b"\5\0\0\0",
            "affinity": b"\6\0\0\0",
            "flags": b"\7\0\0\0",
            "table": b"\x09\0\0\0",
            "places": b"\x0a\0\0\0",
            "inside": bytes([1, 0, 0, 0, 2, 0, 0, 0]),
        },
    ),
    (
        *("maglev", 0, layout.stretch(258, 7, 9)),
        {"pool": b"\2\1\0\0", "version": b"\7\0\0\0", "number": b"\x09\0\0\0"},
    ),
    ("maglev", 1, layout.stretches([258, 7])[0], {"slot": b"\2\1\7\0" + bytes(508)}),
    ("backends", 0, layout.slot(258, 9), {"pool": b"\2\1\0\0", "number": b"\x09\0\0\0"}),
    ("backends", 1, layout.backend("10.0.0.1", 8080), {"port": b"\x1f\x90"}),
    ("members", 0, layout.member(7, layout.backend("fd00::1", 8080)), {"pool": b"\7\0\0\0", "port": b"\x1f\x90"}),
    ("sources", 0, layout.source(3, "10.0.0.0/8"), {"length": bytes([32 + 96 + 8, 0, 0, 0]), "guard": b"\3\0\0\0"}),
    ("pods", 0, layout.prefix("fd00::/64"), {"length": b"\x40\0\0\0"}),
    (
        *("flows", 0, layout.Way("10.0.0.1", 1, "10.0.0.2", 2, 6, 1).packed()),
        {"source_port": b"\0\1", "destination_port": b"\0\2", "protocol": b"\6", "hook": b"\1"},
    ),
    (
        "flows",
        1,
        layout.Flow("10.0.0.1", 8080, 3, 4, 1e-9, 5, 80).packed(),
        {
            "counter": b"\5\0\0\0",
            "pool": b"\3\0\0\0",
            "flags": b"\4\0",
            "port": b"\0\x50",
            "seen": b"\1" + bytes(7),
        },
    ),
    (
        *("counters", 1, layout.counter(range(1, 10))),
        {name: bytes([number + 1]) + bytes(7) for number, name in enumerate(Traffic._fields)},
    ),
    (
        *("names", 1, layout.Name("shop", "web", "http", 6).packed()),
        {
            "namespace": b"shop".ljust(64, b"\0"),
            "service": b"web".ljust(64, b"\0"),
            "port": b"http".ljust(64, b"\0"),
            "family": b"\6",
        },
    ),
    ("devices", 1, layout.device(None, "fd00::1", 2), {"flags": b"\2\0\0\0", "ipv4": bytes(16)}),
    (
        *("config", 1, layout.Config(1, None, None, 10000, 20000, 1).packed()),
        {"namespace": b"\1" + bytes(7), "first_port": b"\x10\x27", "ports": b"\x20\x4e", "flags": b"\1\0\0\0"},
    ),
]


@pytest.mark.skipif(sys.byteorder == "big", reason="the bytes above are of little-endian machines")
@pytest.mark.parametrize(("name", "side", "packed", "holds"), PACKED)
def test_fields_are_where_c_has_them(told: Any, name: str, side: int, packed: bytes, holds: dict[str, bytes]) -> None:
    places = {field: (at, size) for field, at, size in told[name][side][1]}
    for field, expected in holds.items():
        at, size = places[field]
        assert packed[at : at + size] == expected, field


@pytest.mark.parametrize("ip", ["10.96.0.1", "fd00::1", "255.255.255.255", "::ffff:0:0:1"])
def test_addresses_are_read_as_they_are_written(ip: str) -> None:
    assert layout.spelled(layout.address(ip)) == ip


def test_what_is_read_is_what_was_packed() -> None:
    way = layout.Way("10.0.0.1", 1, "10.0.0.2", 2, 6, 1)
    flow = layout.Flow("fd00::1", 8080, 0, 3, 2.0, 7, 40000)
    service = layout.Service(layout.Pool(1, 2), layout.Pool(3, 4), 5, 6, 7, 8, 9, 10)
    name = layout.Name("a" * 63, "b" * 63, "", 4)
    assert layout.read_name(name.packed()) == name
    assert layout.read_tuple(way.packed()) == way
    assert layout.read_flow(flow.packed()) == flow
    assert layout.read_service(service.packed()) == service
    assert layout.read_source(layout.source(3, "fd00::/64")) == (3, "fd00::/64")
    assert layout.read_prefix(layout.prefix("10.0.0.0/8")) == "10.0.0.0/8"
