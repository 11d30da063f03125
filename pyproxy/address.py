"""IP addresses, prefixes and ports as canonical, validated text.

A proxy holds hundreds of thousands of addresses. ``ipaddress`` objects cost a microsecond and a hundred bytes
each, and every mode wants text in the end, so an address here is the canonical string that ``inet_ntop`` gives.
The types are made by the parsers below and by nothing else: what has one of them is safe to hand to the kernel.
"""

import ipaddress
import re
import socket
from collections.abc import Iterable
from enum import Enum
from typing import Any, NewType

IP = NewType("IP", str)
"""An IPv4 or IPv6 address in canonical text: ``10.96.0.1``, ``fd00::1``."""

Prefix = NewType("Prefix", str)
"""A network in canonical text, host bits zero: ``10.96.0.0/12``."""


class Family(Enum):
    """An IP family, named as EndpointSlice.addressType names it."""

    IPV4 = "IPv4"
    IPV6 = "IPv6"


def parse_ip(text: str) -> IP:
    """``text`` as an address. IPv4-mapped IPv6 (``::ffff:10.0.0.1``) and zones (``fe80::1%eth0``) are refused.

    Raises ValueError with a sentence that quotes ``text``.
    """
    kind = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        packed = socket.inet_pton(kind, text)
    except (OSError, ValueError):  # ValueError: a NUL or a surrogate inside
        raise ValueError(f"{shorten(text)} is not an IP address") from None
    if packed[:12] == b"\0" * 10 + b"\xff\xff":
        raise ValueError(f"{shorten(text)} is an IPv4-mapped address; write it as IPv4")
    return IP(socket.inet_ntop(kind, packed))


def parse_prefix(text: str) -> Prefix:
    """``text`` as a network; white space around it is allowed (Service.spec.loadBalancerSourceRanges).

    Host bits are cleared, as kube-proxy does. Raises ValueError with a sentence that quotes ``text``.
    """
    try:
        address, slash, _ = text.strip().partition("/")
        parse_ip(address)
        if not slash:
            raise ValueError
        return _spelled(ipaddress.ip_network(text.strip(), strict=False))
    except ValueError:
        raise ValueError(f"{shorten(text)} is not a range such as 10.0.0.0/8 or fd00::/64") from None


def family_of(address: IP | Prefix) -> Family:
    return Family.IPV6 if ":" in address else Family.IPV4


def parse_socket(text: str) -> tuple[IP, int | None]:
    """``IP``, ``IP:port`` or ``[IP]:port``, as Go's flags have them; None if there is no port. Raises ValueError."""
    split = re.fullmatch(r"(?:\[([^\]]*)\]|([^:]*)):([0-9]{1,5})", text)
    host, port = (split[1] or split[2] or "", int(split[3])) if split else (text, None)
    try:
        if port is not None and port > 65535:
            raise ValueError
        return parse_ip(host), port
    except ValueError:
        raise ValueError(f"{shorten(text)} is not an address such as 0.0.0.0:10256 or [::]:10256") from None


def contains(prefix: Prefix, address: IP) -> bool:
    """Whether ``address`` lies in ``prefix``; never across families."""
    return ipaddress.ip_address(address) in ipaddress.ip_network(prefix)


def collapse(prefixes: Iterable[Prefix]) -> tuple[Prefix, ...]:
    """The same addresses in the fewest, disjoint, sorted prefixes. All of one family."""
    networks: Any = [ipaddress.ip_network(prefix) for prefix in prefixes]
    return tuple(_spelled(network) for network in ipaddress.collapse_addresses(networks))


def _spelled(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> Prefix:
    """As inet_ntop does: ipaddress has a spelling of its own for ``::1.2.3.4``."""
    kind = socket.AF_INET if network.version == 4 else socket.AF_INET6
    return Prefix(f"{socket.inet_ntop(kind, network.network_address.packed)}/{network.prefixlen}")


def why_not_an_endpoint(address: IP) -> str | None:
    """Why no endpoint may have this address (CVE-2021-25737), or None.

    A slice that could name loopback or link-local addresses would turn the proxy against its own node.
    """
    if family_of(address) is Family.IPV4:
        first, second = address.split(".", 2)[:2]
        if first == "127":
            return "is a loopback address"
        if (first, second) == ("169", "254"):
            return "is a link-local address"
        return "is the unspecified address" if first == "0" else _multicast(int(first) >> 4 == 0b1110)
    if address in ("::", "::1"):
        return "is the unspecified address" if address == "::" else "is a loopback address"
    group = int(address.partition(":")[0] or "0", 16)
    return "is a link-local address" if group & 0xFFC0 == 0xFE80 else _multicast(group >> 8 == 0xFF)


def _multicast(is_it: bool) -> str | None:
    return "is a multicast address" if is_it else None


def shorten(text: str, most: int = 60) -> str:
    """``text`` quoted for a message: printable, one line, bounded, whatever a hostile object put in it."""
    return ascii(text if len(text) <= most else text[:most] + "…")
