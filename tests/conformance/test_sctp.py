"""SCTP: this kernel may have no SCTP sockets, so an INIT chunk is sent and received by hand."""

import socket
import struct

import pytest

from bench.lab import Host
from tests.conformance.cluster import Cluster
from tests.conformance.known import known
from tests.conformance.manifests import FAMILIES, Object, addresses, service, slices

SCTP = 132
_CLIENT_PORT = 40000


def _sctp(number: int) -> list[Object]:
    """A service of one SCTP port, and pod-2 behind it."""
    port = {"name": "sctp", "protocol": "SCTP", "port": 3868, "nodePort": 32000 + number}
    pieces = slices(number, ["pod-2"])
    for piece in pieces:
        piece["ports"] = [{"name": "sctp", "protocol": "SCTP", "port": 8080}]
    return [service(number, ports=[port]), *pieces]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("who", "kind", "kept"),
    [("pod-1", "ClusterIP", True), ("node", "ExternalIP", False), ("client", "NodePort", False)],
)
def test_an_association_request_reaches_the_pod(
    cluster: Cluster, number: int, who: str, kind: str, kept: bool, family: str
) -> None:
    said = len(cluster.log())
    cluster.apply("sctp", *_sctp(number))
    if objection := known(cluster.mode).lacks_sctp:
        told = [line for line in cluster.log()[said:].splitlines() if objection in line and f"svc-{number}:" in line]
        assert len(told) == 2, told  # once for each family
        cluster.delete("sctp")
        return
    address = addresses(number)[kind][family]
    port = 32000 + number if kind == "NodePort" else 3868
    with _raw(cluster.host("pod-2"), family) as server, _raw(cluster.host(who), family) as client:
        client.sendto(_init(port), (address, 0))
        source, source_port, target_port = _received(server, family)
    assert target_port == 8080
    assert source == (cluster.host(who) if kept else cluster.lab.node).address(family)
    assert source_port == _CLIENT_PORT or not kept
    cluster.delete("sctp")


def _raw(host: Host, family: str) -> socket.socket:
    with host.namespace.entered():
        raw = socket.socket(socket.AF_INET if family == "IPv4" else socket.AF_INET6, socket.SOCK_RAW, SCTP)
    raw.settimeout(3)
    return raw


def _received(server: socket.socket, family: str) -> tuple[str, int, int]:
    """Source address, source port and destination port of the packet that came."""
    data, sender = server.recvfrom(2000)
    header = data[(data[0] & 15) * 4 :] if family == "IPv4" else data  # IPv6 sockets get no IP header
    source_port, target_port = struct.unpack_from("!HH", header)
    return sender[0], source_port, target_port


def _init(port: int) -> bytes:
    """RFC 9260, section 3.3.2: an INIT chunk, with the checksum that conntrack looks at."""
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    header = struct.pack("!HHI", _CLIENT_PORT, port, 0)
    return header + struct.pack("<I", _crc32c(header + b"\0\0\0\0" + chunk)) + chunk


def _crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF
