"""Flows of conntrack: read in one dump, deleted many a system call.

The layouts are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import errno
import socket
import struct
import time
from collections.abc import Collection, Iterable, Iterator
from typing import NamedTuple

from pyproxy.kernel.netlink import NESTED, NETFILTER, Message, Netlink, attribute, attributes, nested

Socket = bytes
"""Address and port in network order, as conntrack gives them: 100,000 flows are compared without being spelled out."""

_CTNETLINK = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_CHANGE, _GET, _DELETE = _CTNETLINK, _CTNETLINK | 1, _CTNETLINK | 2  # IPCTNL_MSG_CT_NEW, …_GET, …_DELETE
_ORIGINAL, _REPLY, _STATUS, _TIMEOUT, _ID, _ZONE, _FILTER, _STATUS_MASK = 1, 2, 3, 7, 12, 18, 25, 26  # CTA_*
_FILTER_ORIGINAL = 1  # CTA_FILTER_ORIG_FLAGS
_BY_PROTOCOL = 1 << 3  # CTA_FILTER_F_CTA_PROTO_NUM, Linux 5.8; without it every flow is dumped and passed over here
_HEADER_BYTES = 4  # of nfgenmsg
_IPS, _PROTO = 1, 2  # CTA_TUPLE_IP, CTA_TUPLE_PROTO
_ANSWERED, _TRANSLATED = 1 << 1, 1 << 5  # IPS_SEEN_REPLY, IPS_DST_NAT
_RESTS_S = 1
"""In whole seconds, as conntrack counts. A client that waits for an answer has rested for less."""


class Flow(NamedTuple):
    """One that conntrack knows, of a protocol with ports."""

    destination: Socket
    """What the client sends to."""
    endpoint: Socket
    """Who answers."""
    attributes: bytes
    """All that the kernel said of it."""

    @property
    def family(self) -> int:
        """Of addresses, as sockets count them."""
        return socket.AF_INET if len(self.destination) == 6 else socket.AF_INET6

    @property
    def source(self) -> Socket:
        """The client, or whoever spoke first."""
        _, source = _side(dict(attributes(self.attributes))[_ORIGINAL], source=True)
        return source

    @property
    def handle(self) -> bytes:
        """What names it to the kernel: original tuple, id and zone."""
        fields = dict(attributes(self.attributes))
        ids = (attribute(kind, fields[kind]) for kind in (_ID, _ZONE) if kind in fields)
        return nested(_ORIGINAL, fields[_ORIGINAL]) + b"".join(ids)


def translated() -> int:
    """How many connections have another destination than their client asked for, when no more of them begin. Raises
    OSError.

    Of UDP, one that rests ends in a second, and one that has no answer after a second is deleted: their clients' next
    datagrams begin anew.
    """
    found = list(_translated())
    if any(one.is_one_way for one in found):
        time.sleep(_RESTS_S)
        found = list(_translated())
    one_way = [one.flow for one in found if one.flow and one.is_one_way]
    delete(one_way)
    let_end(one.flow for one in found if one.flow and not one.is_one_way and not one.is_about_to_end)
    return len(found) - len(one_way)


class _Translated(NamedTuple):
    flow: Flow | None
    """Of UDP."""
    is_one_way: bool
    """And of UDP."""
    is_about_to_end: bool


def _translated() -> Iterator[_Translated]:
    with Netlink(NETFILTER) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for data in netlink.dump(Message(_GET, _header(family))):
                fields = dict(attributes(data, _HEADER_BYTES))
                (status,) = struct.unpack("!I", fields[_STATUS])
                if not status & _TRANSLATED:
                    continue
                flow = _flow(data[_HEADER_BYTES:], socket.IPPROTO_UDP)
                (left,) = struct.unpack("!I", fields[_TIMEOUT])
                is_one_way = flow is not None and not status & _ANSWERED
                yield _Translated(flow, is_one_way, left <= _RESTS_S)


def end_untranslated(places: Collection[tuple[str, str, int]]) -> None:
    """Flows of UDP that whoever listens at these (transport, address, port) has had for himself: the next datagram of
    each begins anew, and so meets whoever translates by now. Raises OSError."""
    own = {
        socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address) + port.to_bytes(2)
        for transport, address, port in places
        if transport == "udp"
    }
    for family in (socket.AF_INET, socket.AF_INET6):
        delete([one for one in udp_flows(family) if one.endpoint in own or one.source in own])


def udp_flows(family: int) -> Iterator[Flow]:
    """Every UDP flow of one address family in this network namespace, in one dump. Raises OSError."""
    return _dump(family, socket.IPPROTO_UDP)


def unserved(family: int, protocol: int) -> Iterator[Flow]:
    """Connections that nobody has translated, nor answered yet, in one dump. Raises OSError."""
    # Linux 5.18; before, every connection is dumped and passed over here.
    state = attribute(_STATUS, struct.pack("!I", 0))
    state += attribute(_STATUS_MASK, struct.pack("!I", _ANSWERED | _TRANSLATED))
    for flow in _dump(family, protocol, state):
        (status,) = struct.unpack("!I", dict(attributes(flow.attributes))[_STATUS])
        if not status & (_ANSWERED | _TRANSLATED):
            yield flow


def _dump(family: int, protocol: int, choice: bytes = b"") -> Iterator[Flow]:
    choice += nested(_ORIGINAL, nested(_PROTO, attribute(1, bytes([protocol]))))
    choice += nested(_FILTER, attribute(_FILTER_ORIGINAL, struct.pack("=I", _BY_PROTOCOL)))
    with Netlink(NETFILTER) as netlink:
        for data in netlink.dump(Message(_GET, _header(family) + choice)):
            flow = _flow(data[_HEADER_BYTES:], protocol)
            if flow is not None:
                yield flow


def _flow(data: bytes, protocol: int) -> Flow | None:
    """None if it is of another protocol."""
    for layout in _LAYOUTS:
        if data.startswith(layout.original) and data.startswith(layout.reply, layout.length):
            to, to_port, source, source_port = layout.offsets
            destination = data[to : to + layout.address] + data[to_port : to_port + 2]
            endpoint = data[source : source + layout.address] + data[source_port : source_port + 2]
            return Flow(destination, endpoint, data) if data[layout.protocol] == protocol else None
    sides = dict(attributes(data))
    if _ORIGINAL not in sides or _REPLY not in sides:
        return None
    of, destination = _side(sides[_ORIGINAL], source=False)
    _, endpoint = _side(sides[_REPLY], source=True)
    return Flow(destination, endpoint, data) if of == protocol else None


class _Layout:
    """Where the kernel puts what is asked for, unless connection tracking zones move it (ctnetlink_fill_info)."""

    def __init__(self, address: int) -> None:
        ips = 4 + 2 * (4 + address)  # CTA_TUPLE_IP with source and destination
        self.address = address
        self.length = 4 + ips + 28  # CTA_TUPLE_PROTO with number, source and destination port
        self.original = struct.pack("=HH", self.length, _ORIGINAL | NESTED)
        self.reply = struct.pack("=HH", self.length, _REPLY | NESTED)
        self.protocol = 4 + ips + 8
        self.offsets = (
            8 + 4 + address + 4,  # destination of the original tuple
            4 + ips + 24,  # its port
            self.length + 8 + 4,  # source of the reply tuple
            self.length + 4 + ips + 16,  # its port
        )


_LAYOUTS = (_Layout(4), _Layout(16))


def _side(tuple_: bytes, *, source: bool) -> tuple[int, Socket]:
    """The protocol of a tuple, and its source or destination."""
    address = port = b""
    protocol = 0
    for kind, payload in attributes(tuple_):
        for inner, value in attributes(payload):
            if kind == _IPS and inner in ((1, 3) if source else (2, 4)):  # CTA_IP_V4_SRC, V6_SRC; V4_DST, V6_DST
                address = value
            elif kind == _PROTO and inner == 1:  # CTA_PROTO_NUM
                protocol = value[0]
            elif kind == _PROTO and inner == (2 if source else 3):  # CTA_PROTO_SRC_PORT, CTA_PROTO_DST_PORT
                port = value
    return protocol, address + port


def delete(flows: list[Flow]) -> int:
    """Remove them and count those that were there still, many messages a system call. Raises OSError."""
    return len(flows) - _send(Message(_DELETE, _header(flow.family) + flow.handle) for flow in flows)


def let_end(flows: Iterable[Flow]) -> int:
    """Let them end in a second, and count those that were there still. Raises OSError.

    A flow that is deleted takes an answer with it that is on its way. One that rests for a second has none; and if its
    client asks before, the kernel gives the flow all its time again with that datagram (nf_ct_refresh_acct).
    """
    a_second = attribute(_TIMEOUT, struct.pack("!I", _RESTS_S))
    messages = [Message(_CHANGE, _header(flow.family) + flow.handle + a_second) for flow in flows]
    return len(messages) - _send(messages)


def _send(messages: Iterable[Message]) -> int:
    """How many are of flows that have just ended by themselves."""
    with Netlink(NETFILTER) as netlink:
        failures = netlink.send(messages)
    for failure in failures:
        if failure.code != errno.ENOENT:
            raise OSError(failure.code, f"a conntrack flow can't be ended: {failure.reason}")
    return len(failures)


def _header(family: int) -> bytes:
    """An nfgenmsg."""
    return struct.pack("=BBH", family, 0, 0)
