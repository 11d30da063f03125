"""Answers in every pod of a lab: says who answered and whom it saw. `python -m bench.server PORT POD=NAMESPACE…`

TCP: one line as soon as a connection is accepted, then an echo until the client closes. UDP: one line for each
datagram. The line is ``pod source-address source-port``, and over TCP the address at which the pod was reached.
"""

import asyncio
import ctypes
import socket
import sys
from functools import partial
from pathlib import Path
from typing import cast

_LIBC = ctypes.CDLL(None, use_errno=True)
_BACKLOG = 4096


class _Tcp(asyncio.Protocol):
    def __init__(self, pod: str) -> None:
        self._pod = pod

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        address, port = transport.get_extra_info("peername")[:2]
        reached = transport.get_extra_info("sockname")[0]
        self._transport.write(f"{self._pod} {address} {port} {reached}\n".encode())

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)


class _Udp(asyncio.DatagramProtocol):
    def __init__(self, pod: str) -> None:
        self._pod = pod

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, source: tuple[str, int]) -> None:  # noqa: ARG002
        self._transport.sendto(f"{self._pod} {source[0]} {source[1]}\n".encode(), source)


async def _serve(port: int, places: dict[str, str]) -> None:
    loop = asyncio.get_running_loop()
    servers = []
    for pod, path in places.items():
        with Path(path).open("rb") as namespace:
            if _LIBC.setns(namespace.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), f"can't enter {path}")
        for family, any_address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
            tcp = socket.create_server((any_address, port), family=family, backlog=_BACKLOG)
            servers.append(await loop.create_server(partial(_Tcp, pod), sock=tcp))
            udp = socket.socket(family, socket.SOCK_DGRAM)
            if family == socket.AF_INET6:
                udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            udp.bind((any_address, port))
            await loop.create_datagram_endpoint(partial(_Udp, pod), sock=udp)
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), dict(place.split("=", 1) for place in sys.argv[2:])))
