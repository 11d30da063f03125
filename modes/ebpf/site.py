"""What of this node goes into the maps beside its services."""

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from ebpf import network_namespace
from pyproxy.kernel import own_address
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.netlink import ROUTE, Message, Netlink, attribute, attributes
from pyproxy.table import IP, Host

_GET_ROUTE = 26  # RTM_GETROUTE
_ROUTE = struct.Struct("=8BI")  # rtmsg
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
    source_to: Callable[[IP], IP | None] = field(default=source_to, compare=False)


def site_of(host: Host) -> Site:
    """Raises ModeError."""
    with as_mode_error("the addresses of this node can't be read"):
        own = own_address.of_devices()
        answering = own_address.node_port_addresses(host.node_port_prefixes, own)
        return Site(network_namespace.cookie(), frozenset(answering))
