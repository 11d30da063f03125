"""Programs and maps of ebpf mode, loaded and not attached, in a network namespace of their own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from bench.lab import PREFIX
from bench.namespace import Namespace
from ebpf import layout, pins, syscall
from ebpf.store import Store
from modes.ebpf.plan import Plan
from modes.ebpf.site import Site
from pyproxy.table import IP, Host, Prefix, Route, Table
from tests.unit.packets import Packet, read

NEXT, DROP, REDIRECT = -1, 2, 7  # TC_ACT_UNSPEC, TC_ACT_SHOT, TC_ACT_REDIRECT
NODE = {4: IP("172.18.0.2"), 6: IP("fd00:172:18::2")}
PORTS = range(20000, 20100)
HOST = Host(
    node_port_prefixes=(Prefix("172.18.0.2/32"), Prefix("fd00:172:18::2/128")),
    pod_prefixes=(Prefix("10.244.0.0/16"), Prefix("fd00:10:244::/48")),
)


@dataclass(frozen=True, slots=True)
class World:
    store: Store

    def write(self, *routes: Route, host: Host = HOST, **config: object) -> None:
        """What the mode would write of them, in place of all that the maps held; ``config``: fields of Config."""
        for name in layout.MAPS:
            handle = self.store.maps[name]
            if name in ("counters", "parties"):
                nothing = layout.counter() if name == "counters" else layout.number(0)
                syscall.update(handle, dict.fromkeys(dict(syscall.entries(handle)), nothing))
            elif name not in ("config", "connections"):
                syscall.delete(handle, [key for key, _ in syscall.entries(handle)])
        self.change(*routes, host=host)
        fields = {"namespace": 1, "ipv4": NODE[4], "ipv6": NODE[6], "first_port": PORTS.start, "ports": len(PORTS)}
        packed = layout.Config(**fields | config).packed()  # type: ignore[arg-type]
        syscall.update(self.store.maps["config"], {layout.number(0): packed})

    def change(self, *routes: Route, host: Host = HOST) -> None:
        """The services alone: flows stay, as do numbers of pools."""
        planned = ("services", "backends", "members", "maglev", "sources", "addresses", "pods", "names")
        found = {name: dict(syscall.entries(self.store.maps[name])) for name in planned}
        plan = Plan(Site(1, frozenset(NODE.values()), source_to=lambda _: None), found)
        plan.change(Table({route.id: route for route in routes}, host), {route.id for route in routes})
        entries = plan.entries()
        for name in planned:
            wanted = {key.key: value for key, value in entries.items() if key.map == name}
            syscall.delete(self.store.maps[name], found[name].keys() - wanted.keys())
            syscall.update(self.store.maps[name], wanted)

    def run(self, hook: str, data: bytes) -> tuple[int, bytes]:
        """The verdict, and the packet afterwards."""
        ran = syscall.test_run(self.store.programs[hook], data)
        return ran.returned - (1 << 32) if ran.returned >> 31 else ran.returned, ran.data

    def passes(self, hook: str, packet: Packet) -> Packet:
        """What becomes of it: it must go on."""
        verdict, data = self.run(hook, packet.bytes())
        assert verdict == NEXT
        return read(data)

    def through(self, packet: Packet) -> Packet:
        """From one side of the node to the other."""
        return self.passes("egress", self.passes("ingress", packet))

    def flows(self) -> dict[layout.Way, layout.Flow]:
        found = syscall.entries(self.store.maps["flows"])
        return {layout.read_tuple(key): layout.read_flow(value) for key, value in found}


@contextmanager
def world(name: str = "ebpf") -> Iterator[World]:
    """The calling thread is in its network namespace meanwhile."""
    namespace = Namespace(f"{PREFIX}{os.getpid()}-{name}")
    try:
        namespace.create()
        with namespace.entered():
            store = Store()
            try:
                store.open()
                yield World(store)
            finally:
                store.close()
                pins.remove(pins.folder())
    finally:
        namespace.remove()
