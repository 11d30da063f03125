"""What nf_tables tells over netlink and nft(8) can't, or only by reading every element.

The message layouts are those of linux/netfilter/nf_tables.h.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

from pyproxy.address import Family
from pyproxy.kernel.error import ModeError, as_mode_error
from pyproxy.kernel.netlink import CREATE, NETFILTER, Message, Netlink, attribute, attributes, nested

_NFTABLES = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GET_CHAIN, _GET_RULE, _GET_GENERATION = _NFTABLES | 4, _NFTABLES | 7, _NFTABLES | 16  # NFT_MSG_GET*
_BATCH_BEGIN, _NEW_TABLE = 16, _NFTABLES | 0  # NFNL_MSG_BATCH_BEGIN, NFT_MSG_NEWTABLE
_GET_ELEMENT = _NFTABLES | 13  # NFT_MSG_GETSETELEM
_NEW_GENERATION = _NFTABLES | 15  # NFT_MSG_NEWGEN
_GROUP_NFTABLES = 7  # NFNLGRP_NFTABLES
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_WATCH_BYTES = 8 << 20
_TABLE_NAME = 1  # NFTA_CHAIN_TABLE, NFTA_RULE_TABLE
_GENERATION_ID = 1  # NFTA_GEN_ID
_CHAIN_USE, _CHAIN_COUNTERS = 6, 8  # NFTA_CHAIN_*: they change without anybody's doing
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _ELEMENT = 1, 2, 3, 1  # NFTA_SET_ELEM_LIST_*, NFTA_LIST_ELEM
_ELEMENT_KEY, _ELEMENT_DATA, _ELEMENT_USERDATA = 1, 2, 6  # NFTA_SET_ELEM_*
_VALUE, _VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 1, 2, 1, 2  # NFTA_DATA_*, NFTA_VERDICT_*
_VERDICTS = {0: "drop", 1: "accept", -3: "jump", -4: "goto", -5: "return"}  # NF_*, NFT_*
_COMMENT = 0  # libnftnl's NFTNL_UDATA_SET_ELEM_COMMENT
_GENERIC_HEADER = 4  # bytes of nfgenmsg
_RECEIVE_BYTES = 1 << 18
_FAMILY = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}


def has(family: Family) -> bool:
    """Whether the kernel has tables of that family; some are built without.

    Asked by making one in a transaction that is never ended, and so undone.
    """
    begin = Message(_BATCH_BEGIN, struct.pack("=BBH", 0, 0, socket.htons(_NFTABLES >> 8)))
    make = Message(_NEW_TABLE, struct.pack("=BBH", _FAMILY[family], 0, 0) + attribute(1, b"pyproxy-trial\0"), CREATE)
    with as_mode_error("the kernel does not talk of nftables"), Netlink(NETFILTER) as netlink:
        return not netlink.send([begin, make])


def generation() -> int:
    """How many transactions this network namespace has seen, whoever made them (nf_tables base_seq)."""
    for message in _ask(_GET_GENERATION, socket.AF_UNSPEC):
        for kind, payload in attributes(message):
            if kind == _GENERATION_ID:
                return int(struct.unpack("!I", payload)[0])
    raise ModeError("the kernel did not tell its nftables generation")


def fingerprint(family: Family, table: str) -> bytes:
    """All chains and rules of ``table``, with their handles: equal bytes mean that nobody touched them."""
    parts: list[bytes] = []
    for request, volatile in ((_GET_CHAIN, (_CHAIN_USE, _CHAIN_COUNTERS)), (_GET_RULE, ())):
        for message in _ask(request, _FAMILY[family], dump=True):
            fields = list(attributes(message))
            if (_TABLE_NAME, table.encode() + b"\0") in fields:
                parts += [struct.pack("=H", kind) + payload for kind, payload in fields if kind not in volatile]
    return b"".join(parts)


class Element(NamedTuple):
    """What a set or map holds for a key."""

    value: bytes
    """Empty in a set, and where there is a verdict."""
    verdict: str
    comment: str


def element(family: Family, table: str, name: str, key: bytes) -> Element | None:
    """That one element of the set or map ``name``, None if it is not there.

    nft 1.0.6 reads all elements of all sets for this, and gives none of those asked for if one of them is missing.
    """
    asked = nested(_LIST_ELEMENTS, nested(_ELEMENT, nested(_ELEMENT_KEY, attribute(_VALUE, key))))
    names = attribute(_LIST_TABLE, table.encode() + b"\0") + attribute(_LIST_SET, name.encode() + b"\0")
    try:
        (answer,) = _ask(_GET_ELEMENT, _FAMILY[family], fields=names + asked)
    except _NotThere:
        return None
    (found,) = dict(attributes(dict(attributes(answer))[_LIST_ELEMENTS])).values()
    fields = dict(attributes(found))
    data = dict(attributes(fields.get(_ELEMENT_DATA, b"")))
    return Element(data.get(_VALUE, b""), _verdict(data.get(_VERDICT)), _comment(fields.get(_ELEMENT_USERDATA, b"")))


def _verdict(data: bytes | None) -> str:
    """As nft writes it."""
    if data is None:
        return ""
    fields = dict(attributes(data))
    (code,) = struct.unpack("!i", fields[_VERDICT_CODE])
    chain = fields.get(_VERDICT_CHAIN, b"").rstrip(b"\0").decode()
    return f"{_VERDICTS.get(code, code)} {chain}".rstrip()


def _comment(userdata: bytes) -> str:
    """Of libnftnl's type, length, text."""
    return userdata[2:].rstrip(b"\0").decode(errors="replace") if userdata[:1] == bytes([_COMMENT]) else ""


class Heard(IntEnum):
    NOTHING = 0
    TOO_MUCH = 1
    """More was announced than the socket holds: somebody may have touched the table."""
    TOUCHED = 2


class Watch:
    """Hears of every transaction from now on, and tells whether somebody else touched a table.

    What others do to tables of their own costs a look at each message, not a reading of ours. Elements that packets
    add, or that time out, are not announced.
    """

    def __init__(self, table: str) -> None:
        self._name = (_TABLE_NAME, table.encode() + b"\0")
        with as_mode_error("the kernel does not talk of nftables"):
            self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, NETFILTER)
            self._netlink.bind((0, 0))
            self._netlink.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _WATCH_BYTES)
            self._netlink.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, _GROUP_NFTABLES)

    def close(self) -> None:
        self._netlink.close()

    def heard(self, ours: int | None = None) -> Heard:
        """What anybody but the process ``ours`` did to the table since the last call."""
        found = Heard.NOTHING
        while True:
            try:
                data = self._netlink.recv(_RECEIVE_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise ModeError(f"nftables can't be watched: {error.strerror}") from None
                found = max(found, Heard.TOO_MUCH)
                continue
            offset = 0
            while offset < len(data):
                length, kind, _, _, port = struct.unpack_from("=IHHII", data, offset)
                # The port of a netlink socket is its process's id (netlink_autobind).
                theirs = kind != _NEW_GENERATION and port != ours
                if theirs and self._name in attributes(data[offset + 20 : offset + length]):
                    found = Heard.TOUCHED
                offset += length + 3 & ~3


class _NotThere(ModeError):
    """What was asked for."""


def _ask(kind: int, family: int, *, dump: bool = False, fields: bytes = b"") -> Iterator[bytes]:
    """The attributes of each message of the answer. Raises ModeError."""
    message = Message(kind, struct.pack("=BBH", family, 0, 0) + fields)
    try:
        with Netlink(NETFILTER) as netlink:
            for payload in netlink.snapshot(message) if dump else [netlink.ask(message)]:
                yield payload[_GENERIC_HEADER:]
    except OSError as error:
        reason = f"nftables can't be read: {error.strerror} ({errno.errorcode.get(error.errno or 0)})"
        raise _NotThere(reason) if error.errno == errno.ENOENT else ModeError(reason) from error
