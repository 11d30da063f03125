"""Programs of the socket filter, run by the kernel on packets that a socket gets, and on those that it does not."""

import os
import socket
from ipaddress import ip_network
from pathlib import Path

import pytest

from bench.namespace import Namespace
from modes.userspace import packet_filter


@pytest.mark.parametrize(
    ("networks", "client", "passes"),
    [
        ([], "127.0.0.1", False),
        (["127.0.0.1/32"], "127.0.0.1", True),
        (["127.0.0.1/32"], "127.0.0.2", False),
        (["10.0.0.0/8", "127.0.0.0/30"], "127.0.0.3", True),
        (["10.0.0.0/8", "127.0.0.0/30"], "127.0.0.4", False),
        (["0.0.0.0/0"], "127.9.9.9", True),
        ([f"10.{number}.0.0/16" for number in range(200)] + ["127.0.0.0/8"], "127.1.1.1", True),
        ([f"10.{number}.0.0/16" for number in range(200)], "127.1.1.1", False),
        (["::1/128"], "::1", True),
        (["fd00::/8", "2001:db8::/33"], "::1", False),
        (["fd00::/8", "::/96"], "::1", True),
        (["::/0"], "::1", True),
        (["::2/127"], "::1", False),
    ],
)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["TCP", "UDP"])
def test_only_packets_from_these_networks_reach_the_socket(
    networks: list[str], client: str, passes: bool, kind: socket.SocketKind
) -> None:
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    with socket.socket(family, kind) as server, socket.socket(family, kind) as asker:
        server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        packet_filter.attach(server, packet_filter.program(map(ip_network, networks)))
        asker.bind((client, 0))
        asker.settimeout(0.2)
        server.settimeout(0.2)
        if kind == socket.SOCK_STREAM:
            server.listen()
            if passes:
                asker.connect(server.getsockname())
            else:
                with pytest.raises(TimeoutError):
                    asker.connect(server.getsockname())
            return
        asker.sendto(b"?", server.getsockname())
        if passes:
            assert server.recv(10) == b"?"
        else:
            with pytest.raises(TimeoutError):
                server.recv(10)


def test_without_a_filter_everybody_comes() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker,
    ):
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        packet_filter.detach(server)  # there is none: no mistake
        packet_filter.attach(server, packet_filter.program([]))
        packet_filter.detach(server)
        asker.sendto(b"?", server.getsockname())
        assert server.recv(10) == b"?"


def test_more_networks_than_the_kernel_has_memory_for_are_told() -> None:
    """As before Linux 6.8, whose default this is."""
    code = packet_filter.program(ip_network(f"10.{number >> 8}.{number & 255}.0/24") for number in range(400))
    namespace = Namespace(f"pyproxy{os.getpid()}-filter")
    try:
        namespace.create()
        with namespace.entered(), socket.socket() as one:
            packet_filter.attach(one, code)
            Path("/proc/sys/net/core/optmem_max").write_text("20480")
            with pytest.raises(packet_filter.TooLong):
                packet_filter.attach(one, code)
    finally:
        namespace.remove()


def test_more_networks_than_a_filter_holds_are_told() -> None:
    with pytest.raises(packet_filter.TooLong):
        packet_filter.program(ip_network(f"10.{number >> 8}.{number & 255}.0/24") for number in range(1100))
