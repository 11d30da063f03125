"""Connections from a pod of the lab that stay open."""

import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from bench.ask import open_socket
from bench.lab import Lab


@contextmanager
def connection(lab: Lab, address: str, port: int, pod: str) -> Iterator[socket.socket]:
    """One that ``pod`` has greeted.

    In the end it is reset, as are others: IPVS forgets that in ten seconds, what is closed in two minutes.
    """
    greeting = ""
    while not greeting.startswith(pod):
        client = open_socket(lab.pods["pod-1"], address)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.settimeout(10)
        client.connect((address, port))
        greeting = client.recv(100).decode()
    with client:
        yield client


def goes_on(client: socket.socket) -> bool:
    client.sendall(b"still there?")
    return client.recv(100) == b"still there?"
