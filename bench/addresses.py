"""What it costs to have many addresses of Services end at this node: on a device, or as local routes.

`python -m bench.addresses [COUNT]`, as root, in a network namespace of its own. It takes a kernel with dummy devices:
`python -m tests.kernels uml -- python -m bench.addresses`.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator

from bench.lab import PREFIX
from bench.namespace import Namespace
from pyproxy.address import IP
from pyproxy.kernel.local_route import LocalRoutes
from pyproxy.kernel.netlink import CREATE, EXCLUSIVE, ROUTE, Message, Netlink, attribute

_NEW_ADDRESS, _DELETE_ADDRESS, _LOCAL, _ROUNDS = 20, 21, 2, 3
_OWNER = 99


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    namespace = Namespace(f"{PREFIX}{os.getpid()}-addresses")
    try:
        namespace.create()
        with namespace.links() as links:
            links.link("add", ifname="services", kind="dummy")
            device = links.link_lookup(ifname="services")[0]
            links.link("set", index=device, state="up")
            for family in ("IPv4", "IPv6"):
                addresses = list(_addresses(family, count))
                routes = LocalRoutes(_OWNER)
                ways: dict[str, tuple[Callable[[list[IP]], None], Callable[[list[IP]], None]]] = {
                    "local routes": (routes.add, routes.remove),
                    "dummy device": (_on(device, _NEW_ADDRESS), _on(device, _DELETE_ADDRESS)),
                }
                for _ in range(_ROUNDS):
                    for name, (add, remove) in ways.items():
                        added, removed = _seconds(add, addresses), _seconds(remove, addresses)
                        print(
                            f"{family} {count} {name}: added in {added:.2f} s, removed in {removed:.2f} s", flush=True
                        )
    finally:
        namespace.remove()


def _on(device: int, kind: int) -> Callable[[list[IP]], None]:
    flags = CREATE | EXCLUSIVE if kind == _NEW_ADDRESS else 0

    def change(addresses: Iterable[IP]) -> None:
        with Netlink(ROUTE) as netlink:
            failures = netlink.send(Message(kind, _payload(device, address), flags) for address in addresses)
        if failures:
            raise OSError(failures[0].code, failures[0].reason)

    return change


def _payload(device: int, address: IP) -> bytes:
    """ifaddrmsg, of a single address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    return struct.pack("=4Bi", family, 8 * len(packed), 0, 0, device) + attribute(_LOCAL, packed)


def _addresses(family: str, count: int) -> Iterator[IP]:
    for number in range(1, count + 1):
        yield IP(f"10.96.{number >> 8}.{number & 255}" if family == "IPv4" else f"fd00:96::{number:x}")


def _seconds(work: Callable[[list[IP]], None], addresses: list[IP]) -> float:
    started = time.perf_counter()
    work(addresses)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
