"""Ports of this node that packets are masqueraded by: read from conntrack, and reserved there for others.

The layouts are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from pyproxy.kernel.netlink import CREATE, EXCLUSIVE, NETFILTER, Message, Netlink, attribute, attributes, nested

_CTNETLINK = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _GET, _DELETE = _CTNETLINK | 0, _CTNETLINK | 1, _CTNETLINK | 2  # IPCTNL_MSG_CT_NEW, …_GET, …_DELETE
_HEADER_BYTES = 4  # of nfgenmsg
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _TIMEOUT, _STATUS_MASK = 1, 2, 3, 4, 7, 26  # CTA_*
_IPS, _PROTO = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_TCP, _STATE = 1, 1  # CTA_PROTOINFO_TCP, CTA_PROTOINFO_TCP_STATE
_FLAGS, _LIBERAL = (4, 5), b"\x08\x08"  # CTA_PROTOINFO_TCP_FLAGS_ORIGINAL, …_REPLY; IP_CT_TCP_FLAG_BE_LIBERAL
_LASTS = Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established")
_ANSWERED, _ASSURED, _CONFIRMED, _MASQUERADED = 1 << 1, 1 << 2, 1 << 3, 1 << 4  # IPS_*, IPS_SRC_NAT
_ESTABLISHED, _TIME_WAIT, _CLOSE = 3, 7, 8  # TCP_CONNTRACK_*


class Use(NamedTuple):
    """A port of this node, by which answers of an endpoint are told from those for others."""

    protocol: int
    """IPPROTO_*."""
    address: str
    """Of this node."""
    port: int
    endpoint: str
    endpoint_port: int


def in_use() -> Iterator[Use]:
    """By connections of TCP that have not ended, and by flows of UDP. Raises OSError."""
    only = attribute(_STATUS, struct.pack("!I", _MASQUERADED)) + attribute(
        _STATUS_MASK, struct.pack("!I", _MASQUERADED)
    )
    with Netlink(NETFILTER) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for data in netlink.dump(Message(_GET, _header(family) + only)):
                fields = dict(attributes(data, _HEADER_BYTES))
                (status,) = struct.unpack("!I", fields[_STATUS])  # before Linux 5.18 all come
                if status & _MASQUERADED and _state(fields) not in (_TIME_WAIT, _CLOSE):
                    use = _use(family, fields[_REPLY])
                    if use:
                        yield use


def reserve(uses: Iterable[Use], seconds: int) -> int:
    """Let netfilter give none of these to others for so long: as connections that it would have to do with. How many
    there are; what is there already stays as it is, but for the time. Raises OSError."""
    return _send(uses, seconds, CREATE)


def track(uses: Iterable[Use]) -> int:
    """Let netfilter know connections of this node, for as long as those that it has seen begin. Raises OSError.

    Whom it remembers by the same port would get what the endpoint sends, and is forgotten. How many it knows now.
    """
    known = list(uses)
    with Netlink(NETFILTER) as netlink:
        netlink.send(Message(_DELETE, _header(_family(use.address)) + _reply(use)) for use in known)
    return _send(known, int(_LASTS.read_text()), CREATE | EXCLUSIVE)


def _send(uses: Iterable[Use], seconds: int, flags: int) -> int:
    messages = [Message(_NEW, _reservation(use, seconds), flags) for use in uses]
    with Netlink(NETFILTER) as netlink:
        failures = netlink.send(messages)
    return len(messages) - len(failures)


def _reservation(use: Use, seconds: int) -> bytes:
    here, there = (use.address, use.port), (use.endpoint, use.endpoint_port)
    payload = nested(_ORIGINAL, _tuple(use.protocol, here, there)) + _reply(use)
    payload += attribute(_STATUS, struct.pack("!I", _ANSWERED | _ASSURED | _CONFIRMED))
    payload += attribute(_TIMEOUT, struct.pack("!I", seconds))
    if use.protocol == socket.IPPROTO_TCP:
        # Whatever window: it was agreed on before netfilter saw anything (tcp_new does the same).
        states = attribute(_STATE, bytes([_ESTABLISHED])) + b"".join(attribute(kind, _LIBERAL) for kind in _FLAGS)
        payload += nested(_PROTOINFO, nested(_TCP, states))
    return _header(_family(use.address)) + payload


def _reply(use: Use) -> bytes:
    there, here = (use.endpoint, use.endpoint_port), (use.address, use.port)
    return nested(_REPLY, _tuple(use.protocol, there, here))


def _tuple(protocol: int, source: tuple[str, int], destination: tuple[str, int]) -> bytes:
    first = 1 if _family(source[0]) == socket.AF_INET else 3  # CTA_IP_V4_SRC, CTA_IP_V6_SRC; the next is DST
    ends = (source, destination)
    ips = (attribute(first + n, socket.inet_pton(_family(ip), ip)) for n, (ip, _) in enumerate(ends))
    ports = (attribute(2 + n, port.to_bytes(2)) for n, (_, port) in enumerate(ends))  # CTA_PROTO_SRC_PORT, then DST
    return nested(_IPS, b"".join(ips)) + nested(_PROTO, attribute(1, bytes([protocol])) + b"".join(ports))


def _use(family: int, reply: bytes) -> Use | None:
    """None unless it is TCP or UDP."""
    sides = {kind: dict(attributes(payload)) for kind, payload in attributes(reply)}
    ips, proto = sides[_IPS], sides[_PROTO]
    (protocol,) = proto[1]
    if protocol not in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
        return None
    first = 1 if family == socket.AF_INET else 3
    endpoint, own = (socket.inet_ntop(family, ips[first + n]) for n in range(2))
    endpoint_port, port = (int.from_bytes(proto[2 + n]) for n in range(2))
    return Use(protocol, own, port, endpoint, endpoint_port)


def _state(fields: dict[int, bytes]) -> int | None:
    """Of a connection of TCP."""
    if _PROTOINFO not in fields:
        return None
    of_tcp = dict(attributes(fields[_PROTOINFO])).get(_TCP)
    state = dict(attributes(of_tcp)).get(_STATE) if of_tcp else None
    return state[0] if state else None


def _family(ip: str) -> int:
    return socket.AF_INET6 if ":" in ip else socket.AF_INET


def _header(family: int) -> bytes:
    """An nfgenmsg."""
    return struct.pack("=BBH", family, 0, 0)
