"""Sets of addresses and ports that rules of iptables look into, over netlink: what ipset(8) does.

Elements are spelled as ipset spells them: ``10.96.0.1,tcp:80`` or ``10.96.0.1,tcp:80,192.0.2.0/24``. The layouts are
those of linux/netfilter/ipset/ip_set.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from pyproxy.address import Family
from pyproxy.kernel.error import Lacking, ModeError, as_mode_error
from pyproxy.kernel.netlink import NETFILTER, Failure, Message, Netlink, attribute, attributes, nested

_SUBSYSTEM = 6 << 8  # NFNL_SUBSYS_IPSET
_CREATE, _DESTROY, _LIST, _ADD, _DELETE = (_SUBSYSTEM | command for command in (2, 3, 7, 9, 10))  # IPSET_CMD_*
_PROTOCOL, _NAME, _TYPE, _REVISION, _FAMILY, _FLAGS, _DATA, _ELEMENTS = 1, 2, 3, 4, 5, 6, 7, 8  # IPSET_ATTR_*
_IP, _CIDR, _PORT, _TRANSPORT, _OPTIONS, _MOST, _IP2, _CIDR2, _MARK = 1, 3, 4, 7, 8, 19, 20, 21, 27
_IPV4, _IPV6 = 1, 2  # IPSET_ATTR_IPADDR_*
_WITH_MARKS = 1 << 6  # IPSET_FLAG_WITH_SKBINFO
_NAMES_ONLY = 1 << 1  # IPSET_FLAG_LIST_SETNAME
_VERSION = 6  # of the protocol; Linux 4.20 and later speak 7, too
_NETWORK_ORDER = 0x4000  # NLA_F_NET_BYTEORDER
_HEADER = struct.pack("=BBH", socket.AF_INET, 0, 0)  # nfgenmsg
_LARGEST = 1 << 22  # elements of one set; memory is taken as they come
_WHOLE_MARK = 0xFFFFFFFF
_TRANSPORTS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_TRANSPORT_NAMES = {number: name for name, number in _TRANSPORTS.items()}
_OWN_ERRORS = {4098: "the kernel has no such type of set", 4102: "it is of another type", 4103: "it is there already"}


class Kind(Enum):
    """The type of a set, and the revision of it that has all that is used here."""

    ADDRESS = ("hash:ip", 0)
    SERVICE = ("hash:ip,port", 1)
    MARKED_SERVICE = ("hash:ip,port", 5)
    """A mark goes with each element, for `-j SET --map-set`."""
    SERVICE_SOURCE = ("hash:ip,port,net", 1)
    PAIR = ("hash:net,net", 0)
    PORT = ("bitmap:port", 0)
    """Of others: it is only read."""


@dataclass(frozen=True, slots=True)
class Set:
    name: str
    """31 characters at most."""
    kind: Kind
    family: Family


class Slot(NamedTuple):
    """Where an element stands: the set's name and the key in it."""

    set: str
    key: str


Elements = dict[Slot, int]
"""The mark that goes with each, 0 where the kind of set has none."""


def create(sets: Iterable[Set]) -> None:
    """Those that are there stay, with what is in them. Raises ModeError."""
    sets = list(sets)
    with as_mode_error("sets of addresses can't be made"), Netlink(NETFILTER) as netlink:
        _raise_first(netlink.send(map(_creation, sets)), "can't be made")


def destroy(names: Iterable[str]) -> None:
    """Raises ModeError, also if a rule still looks into one of them."""
    with as_mode_error("sets of addresses can't be removed"), Netlink(NETFILTER) as netlink:
        _raise_first(netlink.send(Message(_DESTROY, _HEADER + _named(name)) for name in names), "can't be removed")


def change(sets: dict[str, Set], gone: Iterable[Slot], come: Elements) -> None:
    """First what comes, then what is gone, each in its order: so what moves from one set to another is always in one.

    Raises ModeError.
    """
    with as_mode_error("sets of addresses can't be changed"), Netlink(NETFILTER) as netlink:
        adding = (_element(_ADD, sets[slot.set], slot, mark) for slot, mark in come.items())
        deleting = (_element(_DELETE, sets[slot.set], slot, 0) for slot in gone)
        failures = [*netlink.send(adding), *netlink.send(deleting)]
    _raise_first(failures, "does not take an element")


def names() -> list[str]:
    """Of all sets in this network namespace, whoever made them. Raises ModeError, without ipset Lacking."""
    flags = attribute(_FLAGS | _NETWORK_ORDER, struct.pack("!I", _NAMES_ONLY))
    try:
        with Netlink(NETFILTER) as netlink:
            return [_text(dict(fields)[_NAME]) for fields in _listed(netlink, flags)]
    except OSError as error:
        # What netfilter's netlink says of a part that it does not have, and the kernel of netfilter's netlink.
        kind = Lacking if error.errno in (errno.EINVAL, errno.EPROTONOSUPPORT) else ModeError
        raise kind(f"the kernel does not talk of sets of addresses: {error.strerror or error}") from error


def read(wanted: Iterable[Set]) -> Elements:
    """All that is in those that are there. Raises ModeError."""
    found: Elements = {}
    with as_mode_error("sets of addresses can't be read"), Netlink(NETFILTER) as netlink:
        for one in wanted:
            try:
                for fields in _listed(netlink, attribute(_NAME, one.name.encode() + b"\0")):
                    for kind, payload in fields:
                        if kind == _ELEMENTS:
                            found.update(_elements(one, payload))
            except FileNotFoundError:
                continue
    return found


def _listed(netlink: Netlink, what: bytes) -> Iterator[list[tuple[int, bytes]]]:
    for payload in netlink.dump(Message(_LIST, _HEADER + attribute(_PROTOCOL, bytes([_VERSION])) + what)):
        yield list(attributes(payload, len(_HEADER)))


def _elements(one: Set, payload: bytes) -> Iterator[tuple[Slot, int]]:
    for _, data in attributes(payload):
        fields = dict(attributes(data))
        if one.kind is Kind.PORT:
            yield Slot(one.name, str(struct.unpack("!H", fields[_PORT])[0])), 0
            continue
        key = _address(fields[_IP])
        if one.kind is Kind.PAIR:
            key = f"{key},{_address(fields[_IP2])}"
        elif one.kind is not Kind.ADDRESS:
            transport, (port,) = fields[_TRANSPORT][0], struct.unpack("!H", fields[_PORT])
            key = f"{key},{_TRANSPORT_NAMES.get(transport, transport)}:{port}"
        if one.kind is Kind.SERVICE_SOURCE:
            bits = 32 if one.family is Family.IPV4 else 128
            key = f"{key},{_address(fields[_IP2])}/{fields.get(_CIDR2, bytes([bits]))[0]}"
        mark = struct.unpack("!Q", fields[_MARK])[0] >> 32 if _MARK in fields else 0
        yield Slot(one.name, key), mark


def _address(payload: bytes) -> str:
    ((_, packed),) = attributes(payload)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def _creation(one: Set) -> Message:
    name, revision = one.kind.value
    options = attribute(_MOST | _NETWORK_ORDER, struct.pack("!I", _LARGEST))
    if one.kind is Kind.MARKED_SERVICE:
        options += attribute(_OPTIONS | _NETWORK_ORDER, struct.pack("!I", _WITH_MARKS))
    family = socket.AF_INET if one.family is Family.IPV4 else socket.AF_INET6
    payload = _named(one.name) + attribute(_TYPE, name.encode() + b"\0") + attribute(_REVISION, bytes([revision]))
    return Message(_CREATE, _HEADER + payload + attribute(_FAMILY, bytes([family])) + nested(_DATA, options))


def _element(command: int, one: Set, slot: Slot, mark: int) -> Message:
    address, *rest = slot.key.split(",")
    data = _packed(_IP, address)
    if one.kind is Kind.PAIR:
        data += _packed(_IP2, rest[0])
    elif one.kind is not Kind.ADDRESS:
        transport, _, port = rest[0].partition(":")
        data += attribute(_PORT | _NETWORK_ORDER, struct.pack("!H", int(port)))
        data += attribute(_TRANSPORT, bytes([_TRANSPORTS[transport]]))
    if one.kind is Kind.SERVICE_SOURCE:
        source, _, length = rest[1].partition("/")
        data += _packed(_IP2, source) + attribute(_CIDR2, bytes([int(length)]))
    if mark:
        data += attribute(_MARK | _NETWORK_ORDER, struct.pack("!Q", mark << 32 | _WHOLE_MARK))
    return Message(command, _HEADER + _named(slot.set) + nested(_DATA, data))


def _packed(kind: int, address: str) -> bytes:
    is_ipv6 = ":" in address
    packed = socket.inet_pton(socket.AF_INET6 if is_ipv6 else socket.AF_INET, address)
    return nested(kind, attribute((_IPV6 if is_ipv6 else _IPV4) | _NETWORK_ORDER, packed))


def _named(name: str) -> bytes:
    return attribute(_PROTOCOL, bytes([_VERSION])) + attribute(_NAME, name.encode() + b"\0")


def _raise_first(failures: list[Failure], what: str) -> None:
    for message, code in failures:
        name = _text(dict(attributes(message.payload, len(_HEADER)))[_NAME])
        reason = _OWN_ERRORS.get(code) or f"{os.strerror(code)} ({errno.errorcode.get(code, code)})"
        raise ModeError(f"the set {name} {what}: {reason}")


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")
