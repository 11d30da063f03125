"""Connections to pods of the lab that stay open."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

from bench.ask import open_socket, reset_at_close
from bench.lab import Host, Lab


@contextmanager
def connection(lab: Lab, address: str, port: int, pod: str, who: Host | None = None) -> Iterator[socket.socket]:
    """One that ``pod`` has greeted, of pod-1 or ``who``.

    In the end it is reset, as are others: IPVS forgets that in ten seconds, what is closed in two minutes.
    """
    greeting = ""
    while not greeting.startswith(pod):
        client = open_socket(who or lab.pods["pod-1"], address)
        reset_at_close(client)
        client.settimeout(10)
        client.connect((address, port))
        greeting = client.recv(100).decode()
    with client:
        yield client


def goes_on(client: socket.socket) -> bool:
    client.sendall(b"still there?")
    return client.recv(100) == b"still there?"
