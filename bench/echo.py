"""Says back what it is told, in many places: `python -m bench.echo CPU LISTENERS`, the latter as JSON.

As cheap as Python can: a thread for each port, which blocks in accept, recv or recvfrom and serves one client at a
time. What it costs is in the floor as well as in what is held against it, so it draws their ratio towards 1; with an
event loop it would be most of what is measured.
"""

import os
import socket
import sys
import threading
from collections.abc import Sequence
from typing import Self

import msgspec

from bench.helper import Helper
from bench.place import Place

_BACKLOG = 4096
_BYTES = 2048
_STACK = 256 * 1024


class Listener(msgspec.Struct, frozen=True):
    place: Place
    ports: list[int]
    """Each for TCP and UDP, of IPv4."""


class Echo(Helper):
    """The process, for who needs it. Use as a context manager, inside of that of its places."""

    def __init__(self, cpu: int, listeners: Sequence[Listener]) -> None:
        super().__init__("bench.echo", str(cpu), msgspec.json.encode(listeners).decode())

    def __enter__(self) -> Self:
        """Once it listens. Raises ChildProcessError if it does not get there."""
        super().__enter__()
        try:
            self.answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self


def main() -> None:
    """Says ``ready`` when all of it listens, and ends with its standard input."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    threading.stack_size(_STACK)
    for listener in msgspec.json.decode(sys.argv[2], type=list[Listener]):
        _listen(listener)
    print("ready", flush=True)
    sys.stdin.read()
    os._exit(0)  # past threads that wait for ever


def _listen(listener: Listener) -> None:
    """Sockets are opened by a thread that lives there; so are those that accept makes of them."""
    failed: list[OSError] = []

    def open_all() -> None:
        try:
            listener.place.enter()
            for port in listener.ports:
                tcp = socket.create_server(("0.0.0.0", port), backlog=_BACKLOG)  # noqa: S104
                udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                udp.bind(("0.0.0.0", port))  # noqa: S104
                for answer, at in ((_streams, tcp), (_datagrams, udp)):
                    # A new thread is where the one that starts it is.
                    threading.Thread(target=answer, args=(at,), daemon=True).start()
        except OSError as error:
            failed.append(error)

    opener = threading.Thread(target=open_all)
    opener.start()
    opener.join()
    if failed:
        raise failed[0]


def _streams(listening: socket.socket) -> None:
    buffer = memoryview(bytearray(_BYTES))
    while True:
        client, _ = listening.accept()
        with client:
            try:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while count := client.recv_into(buffer):
                    client.send(buffer[:count])
            except ConnectionError:
                continue  # reset, which is how the client ends it


def _datagrams(bound: socket.socket) -> None:
    buffer = memoryview(bytearray(_BYTES))
    while True:
        try:
            count, client = bound.recvfrom_into(buffer)
            bound.sendto(buffer[:count], client)
        except ConnectionError:
            continue  # the client had gone


if __name__ == "__main__":
    main()
