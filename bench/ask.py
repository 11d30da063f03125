"""One request from a host of the lab, over a real socket."""

import errno
import socket
import struct
import time
from typing import NamedTuple

from bench.lab import Host

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger


class Answer(NamedTuple):
    pod: str
    source: str
    """The client's address as the pod saw it."""
    connect_seconds: float
    """For UDP the round trip."""
    address: str = ""
    """Of the pod's, the one that was reached; told over TCP alone."""


def ask(host: Host, address: str, port: int, protocol: str = "TCP", timeout: float = 2.0) -> Answer:
    """Raises ConnectionRefusedError at once where nobody is to answer, TimeoutError where packets are dropped."""
    with open_socket(host, address, protocol) as client:
        client.settimeout(timeout)
        return exchange(client, address, port)


def open_socket(host: Host, address: str, protocol: str = "TCP") -> socket.socket:
    """A socket of the host, of the family of ``address``, bound to nothing yet."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def opened() -> socket.socket:
        with host.namespace.entered():
            return socket.socket(family, socket.SOCK_STREAM if protocol == "TCP" else socket.SOCK_DGRAM)

    return host.cgroup.run(opened) if host.cgroup else opened()


def reset_at_close(client: socket.socket) -> None:
    """It leaves nothing in TIME_WAIT, and conntrack forgets it in ten seconds."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)


def exchange(client: socket.socket, address: str, port: int) -> Answer:
    """Connect and read the pod's line. Raises ConnectionAbortedError if there is none."""
    started = time.perf_counter()
    client.connect((address, port))
    connected = time.perf_counter()
    if client.type == socket.SOCK_DGRAM:
        return datagram(client)
    line = client.recv(200).decode().split()
    if not line:
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed before any answer")
    pod, source, _, reached = line
    return Answer(pod, source, connected - started, reached)


def datagram(client: socket.socket) -> Answer:
    """One round trip on a connected UDP socket."""
    started = time.perf_counter()
    try:
        client.send(b"?")
    except PermissionError:
        pass  # dropped on the way out of this very host; if it was a refusal, the ICMP error is waiting
    pod, source, _ = client.recv(200).decode().split()
    return Answer(pod, source, time.perf_counter() - started)
