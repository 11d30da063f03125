"""What relays have open to endpoints, as the kernel's table of this node's connections tells.

Its lines are those of get_tcp4_sock and get_tcp6_sock: each word of an address is in the machine's order.
"""

import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path

from modes.userspace.protocol import Endpoint
from pyproxy.kernel.masquerade import Use

_TABLES = {"tcp": socket.AF_INET, "tcp6": socket.AF_INET6}
_OPEN = {"01", "04", "05", "08"}  # TCP_ESTABLISHED, TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_CLOSE_WAIT


def to_endpoints(endpoints: Collection[Endpoint]) -> Iterator[Use]:
    """Connections of this node to any of them, whoever has begun them. Raises OSError."""
    for name, family in _TABLES.items():
        path = Path("/proc/thread-self/net", name)
        for line in path.read_text().splitlines()[1:] if path.exists() else ():
            _, here, there, state = line.split(maxsplit=4)[:4]
            if state in _OPEN and (endpoint := _read(there, family)) in endpoints:
                yield Use(socket.IPPROTO_TCP, *_read(here, family), *endpoint)


def _read(text: str, family: int) -> Endpoint:
    address, port = text.split(":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    return socket.inet_ntop(family, struct.pack(f"={len(words)}I", *words)), int(port, 16)
