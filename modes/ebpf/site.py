"""What of this node goes into the maps beside its services."""

import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from ebpf import network_namespace
from pyproxy.kernel import own_address
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.netlink import ROUTE, Message, Netlink, attribute, attributes
from pyproxy.table import IP, Family, Host, family_of

_GET_ROUTE = 26  # RTM_GETROUTE
_ROUTE = struct.Struct("=8BI")  # rtmsg
_FAR = {Family.IPV4: IP("198.51.100.1"), Family.IPV6: IP("2001:db8::1")}  # nobody's: RFC 5737, RFC 3849
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_FIRST_PORT, _FIRST_NODE_PORT, _LAST_NODE_PORT = 1024, 30000, 32767
_FEWEST_PORTS = 1024
_LAST_RESORT = range(61000, 65536)
_DESTINATION, _PREFERRED_SOURCE = 1, 7  # RTA_DST, RTA_PREFSRC


def source_to(destination: IP) -> IP | None:
    """The address that this node itself has as its source on the way there; None if there is no way."""
    family = socket.AF_INET6 if ":" in destination else socket.AF_INET
    packed = socket.inet_pton(family, destination)
    asked = _ROUTE.pack(family, 8 * len(packed), *[0] * 7) + attribute(_DESTINATION, packed)
    try:
        with Netlink(ROUTE) as netlink:
            source = dict(attributes(netlink.ask(Message(_GET_ROUTE, asked)), _ROUTE.size)).get(_PREFERRED_SOURCE)
    except OSError:
        return None
    return IP(socket.inet_ntop(family, source)) if source else None


@dataclass(frozen=True, slots=True)
class Site:
    namespace: int = 0
    """The cookie of the node's network namespace."""
    answering: frozenset[IP] = frozenset()
    """The node's addresses where node ports answer."""
    ipv4: IP | None = None
    ipv6: IP | None = None
    """What packets are masqueraded by where the device has no address of its own."""
    ports: range = range(0)
    """That masqueraded packets get; see `ports_beside`."""
    source_to: Callable[[IP], IP | None] = field(default=source_to, compare=False)


def site_of(host: Host) -> Site:
    """Raises ModeError."""
    with as_mode_error("the addresses of this node can't be read"):
        own = own_address.of_devices()
        answering = own_address.node_port_addresses(host.node_port_prefixes, own)
        ipv4, ipv6 = (_own(own, family) for family in Family)
        return Site(network_namespace.cookie(), frozenset(answering), ipv4, ipv6, _ports())


def _own(own: Iterable[IP], family: Family) -> IP | None:
    """The source towards the world; or else any that others could reach."""
    source = source_to(_FAR[family])
    if source:
        return source
    reachable = (ip for ip in own if family_of(ip) is family)
    return min(
        (ip for ip in reachable if not (ip_address(ip).is_loopback or ip_address(ip).is_link_local)), default=None
    )


def _ports() -> range:
    first, last = map(int, _EPHEMERAL.read_text().split())
    return ports_beside(first, last)


def ports_beside(first: int, last: int) -> range:
    """Ports that no socket of this node gets by chance: those are from ``first`` to ``last`` (ip_local_port_range).

    The more there are, the longer until one is given again. Where sockets may have nearly all, we share the last.
    """
    below, above = range(_FIRST_PORT, min(first, _FIRST_NODE_PORT)), range(max(last, _LAST_NODE_PORT) + 1, 65536)
    longer = max(below, above, key=len)
    return longer if len(longer) >= _FEWEST_PORTS else _LAST_RESORT
