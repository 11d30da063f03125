"""How iptables speaks of one IP family."""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from pyproxy.address import IP, Family, Prefix, family_of

_LONGEST_INTERFACE = 15  # IFNAMSIZ less the end


@dataclass(frozen=True, slots=True)
class Dialect:
    family: Family
    program: str
    """``iptables`` or ``ip6tables``; its flavour and what it does are appended."""
    bits: int
    """Of an address."""
    loopback: str
    everyone: str
    """The mask with which `recent` remembers each client by itself."""
    unreachable: str
    """What a refused UDP client is sent."""

    def own(self, prefixes: Iterable[Prefix]) -> list[Prefix]:
        """Those of this family."""
        return [prefix for prefix in prefixes if family_of(prefix) is self.family]

    def host(self, address: IP) -> str:
        """One address as iptables lists it."""
        return f"{address}/{self.bits}"

    def number(self, address: IP) -> int:
        return int(ip_address(address))

    def address(self, number: int) -> str:
        """As inet_ntop spells it, and so iptables: ipaddress has a spelling of its own for ``::1.2.3.4``."""
        kind = socket.AF_INET if self.bits == 32 else socket.AF_INET6
        return socket.inet_ntop(kind, number.to_bytes(self.bits // 8, "big"))

    def sources(self, prefixes: Iterable[Prefix], interfaces: Iterable[str]) -> list[str]:
        """What tells traffic from there: the beginnings of rules, each to be followed by what becomes of it."""
        by_address = ["" if prefix.endswith("/0") else f"-s {prefix} " for prefix in self.own(prefixes)]
        return by_address + [f"-i {_interface(name)} " for name in interfaces]

    def endpoint(self, address: IP, port: int) -> str:
        """As DNAT takes it."""
        return f"[{address}]:{port}" if self.family is Family.IPV6 else f"{address}:{port}"


DIALECTS = {
    Family.IPV4: Dialect(Family.IPV4, "iptables", 32, "127.0.0.0/8", "255.255.255.255", "icmp-port-unreachable"),
    Family.IPV6: Dialect(
        Family.IPV6, "ip6tables", 128, "::1/128", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", "icmp6-port-unreachable"
    ),
}


def _interface(name: str) -> str:
    """iptables says + where others say *. A prefix as long as a name can be is a name, and leaves no room for it."""
    if not name.endswith("*"):
        return name
    prefix = name[:-1]
    return prefix if len(prefix) == _LONGEST_INTERFACE else f"{prefix}+"
