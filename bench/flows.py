"""Conntrack entries by the hundred thousand, as if as many clients had asked a UDP service."""

import socket
import struct
from pathlib import Path

from bench.lab import Host

_NETLINK_NETFILTER = 12
_NEW = 1 << 8  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_NEW
_REQUEST_CREATE_EXCLUSIVE = 0x1 | 0x400 | 0x200
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT = 1, 2, 3, 7  # CTA_*
_TRANSLATED = 1 << 1 | 1 << 3 | 1 << 5 | 1 << 7 | 1 << 8  # IPS_SEEN_REPLY, CONFIRMED, DST_NAT, both NATs done
_SECONDS = 600
_BATCH_BYTES = 50_000


def plant(
    host: Host, address: str, port: int, backends: list[tuple[str, int]], count: int, client_port: int = 30000
) -> None:
    """``count`` flows of different clients to ``address``, translated to each of ``backends`` in turn. IPv4.

    The kernel's nf_conntrack_max, which no namespace but the first can change, bounds them.
    """
    with host.namespace.entered(), socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER) as netlink:
        batch = b""
        for number in range(count):
            client = f"10.{64 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
            backend, backend_port = backends[number % len(backends)]
            batch += _message(
                _tuple(_ORIGINAL, client, address, client_port, port)
                + _tuple(_REPLY, backend, client, backend_port, client_port)
                + _attribute(_STATUS, struct.pack("!I", _TRANSLATED))
                + _attribute(_TIMEOUT, struct.pack("!I", _SECONDS))
            )
            if len(batch) > _BATCH_BYTES or number == count - 1:
                netlink.send(batch)
                batch = b""


def count(host: Host) -> int:
    """How many flows conntrack holds, of all protocols."""
    with host.namespace.entered():
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def _tuple(kind: int, source: str, destination: str, source_port: int, port: int) -> bytes:
    addresses = _attribute(1, socket.inet_aton(source)) + _attribute(2, socket.inet_aton(destination))
    protocol = _attribute(1, bytes([socket.IPPROTO_UDP]))
    protocol += _attribute(2, struct.pack("!H", source_port)) + _attribute(3, struct.pack("!H", port))
    return _attribute(kind | _NESTED, _attribute(1 | _NESTED, addresses) + _attribute(2 | _NESTED, protocol))


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def _message(attributes: bytes) -> bytes:
    header = struct.pack("=IHHIIBBH", 20 + len(attributes), _NEW, _REQUEST_CREATE_EXCLUSIVE, 0, 0, socket.AF_INET, 0, 0)
    return header + attributes
