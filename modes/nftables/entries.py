"""What in the kernel serves one destination, read back as nft writes it.

Elements are asked for one by one over netlink, rules of nft: once for all chains, since there are few.
"""

import re
import socket
import struct
from collections.abc import Iterator
from ipaddress import ip_address
from typing import NamedTuple, Self

from modes.nftables.elements import classid
from modes.nftables.family import DIALECTS, Dialect
from modes.nftables.ruleset import TABLE
from pyproxy.kernel import nf_tables, nft
from pyproxy.kernel.nf_tables import Element
from pyproxy.table import IP, Transport, family_of, is_own

_PROTOCOLS = {
    Transport.TCP: socket.IPPROTO_TCP,
    Transport.UDP: socket.IPPROTO_UDP,
    Transport.SCTP: socket.IPPROTO_SCTP,
}
_CHOICE = re.compile(r"numgen random mod (\d+) offset (\d+)")
_GOTO = re.compile(r"\bgoto (\S+)")


class Key(NamedTuple):
    """Of an element, as nft writes it and as the kernel has it: each part fills whole registers of four bytes."""

    text: str
    packed: bytes

    @classmethod
    def of_address(cls, address: IP) -> Self:
        return cls(address, socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address))

    @classmethod
    def of_port(cls, transport: Transport, port: int) -> Self:
        return cls(f"{transport} . {port}", struct.pack("!B3xH2x", _PROTOCOLS[transport], port))

    @classmethod
    def of_number(cls, number: int) -> Self:
        return cls(classid(number), struct.pack("=I", number))

    def then(self, other: "Key") -> "Key":
        return Key(f"{self.text} . {other.text}", self.packed + other.packed)


def entries(address: IP, port: int, transport: Transport) -> Iterator[str]:
    """In the order in which a packet meets them. Raises ModeError."""
    d = DIALECTS[family_of(address)]
    at, service = Key.of_address(address), Key.of_port(transport, port)
    if element := _element(d, "services", at.then(service)):
        yield from _lead(d, "services", at.then(service), element)
    elif element := _element(d, "cluster-ips", at):
        yield from _lead(d, "cluster-ips", at, element)
    elif (
        _element(d, "node-port-addresses", at)
        and is_own(address)
        and not ip_address(address).is_loopback
        and (element := _element(d, "node-ports", service))
    ):
        yield from _lead(d, "node-ports", service, element, "node-port-")


def _lead(d: Dialect, name: str, key: Key, element: Element, prefix: str = "") -> Iterator[str]:
    """``element`` of the set ``name``, and where it leads."""
    chains = nft.rules(d.ip, TABLE)
    first = [rule for rule in chains.get("services", ()) if rule.split().count(f"@{name}")]
    yield from (f"rule {d.ip} {TABLE} services {rule}" for rule in first)
    yield _written(d, name, key, element, element.verdict)
    visited = _GOTO.findall(" ".join([element.verdict, *first]))
    for chain in visited:
        for rule in chains.get(chain, ()):
            yield f"rule {d.ip} {TABLE} {chain} {rule}"
            visited += [other for other in _GOTO.findall(rule) if other not in visited]
    rules = [rule for chain in visited for rule in chains.get(chain, ())]
    if any("@allowed-sources" in rule for rule in rules):
        for slot in nft.elements(d.ip, TABLE, ["allowed-sources"], maps=False):
            if slot.key.startswith(f"{key.text} . "):
                yield f"element {d.ip} {TABLE} {slot.set} {{ {slot.key} }}"
    sticky = any("sticky-ids" in rule for rule in rules)
    choices = {(int(size), int(offset)) for rule in rules for size, offset in _CHOICE.findall(rule)}
    for size, offset in sorted(choices):
        for number in range(offset, offset + size):
            yield from _endpoint(d, prefix, key, number, sticky=sticky)


def _endpoint(d: Dialect, prefix: str, key: Key, number: int, *, sticky: bool) -> Iterator[str]:
    """What the choice of ``number`` leads to."""
    if sticky:
        slot = key.then(Key.of_number(number))
        found = _element(d, f"{prefix}sticky-ids", slot)
        if found is None:
            return
        (number,) = struct.unpack("=I", found.value)
        yield _written(d, f"{prefix}sticky-ids", slot, found, classid(number))
    name, slot = f"{prefix}{'sticky-' if sticky else ''}endpoints", key.then(Key.of_number(number))
    if found := _element(d, name, slot):
        length = d.host_length // 8
        ip = socket.inet_ntop(socket.AF_INET if length == 4 else socket.AF_INET6, found.value[:length])
        (port,) = struct.unpack_from("!H", found.value, length)
        yield _written(d, name, slot, found, f"{ip} . {port}")


def _element(d: Dialect, name: str, key: Key) -> Element | None:
    return nf_tables.element(d.family, TABLE, name, key.packed)


def _written(d: Dialect, name: str, key: Key, element: Element, value: str) -> str:
    comment = f' comment "{element.comment}"' if element.comment else ""
    return f"element {d.ip} {TABLE} {name} {{ {key.text}{comment}{f' : {value}' if value else ''} }}"
