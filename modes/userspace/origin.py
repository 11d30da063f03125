"""Where a client is, by its address: in a pod of this node, on the node itself, or outside."""

import socket
import struct
from ipaddress import ip_address, ip_network

from modes.userspace.packet_filter import Network
from modes.userspace.protocol import Site
from pyproxy.address import IP
from pyproxy.kernel.netlink import ROUTE, Message, Netlink, attribute, attributes
from pyproxy.kernel.own_address import is_own, of_devices

_GET_ROUTE, _DESTINATION, _DEVICE = 26, 1, 4  # RTM_GETROUTE, RTA_DST, RTA_OIF
_ROUTE = struct.Struct("=8BI")  # rtmsg
_MOST_REMEMBERED = 65536
_REMEMBERED_S = 10.0


class Origins:
    """Remembers for a while, as each new client takes a question to the kernel."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._prefixes = [ip_network(prefix) for prefix in site.pod_prefixes]
        self._inside: dict[str, bool] = {}
        self._forget_at = 0.0

    @property
    def by_device(self) -> bool:
        """Whether pods can't be told by their addresses alone."""
        return bool(self._site.pod_interfaces)

    @property
    def inside(self) -> list[Network]:
        """Where pods of this node, and the node itself, come from."""
        return [*self._prefixes, *(ip_network(address) for address in of_devices())]

    def forget(self, now: float) -> None:
        """What was learnt, if it is old or too much."""
        if now >= self._forget_at or len(self._inside) > _MOST_REMEMBERED:
            self._forget_at = now + _REMEMBERED_S
            self._inside.clear()

    def is_inside(self, client: str) -> bool:
        """Whether it is a pod of this node, or the node."""
        known = self._inside.get(client)
        if known is None:
            known = self._inside[client] = self._is_pod(client) or is_own(IP(client))
        return known

    def _is_pod(self, client: str) -> bool:
        address = ip_address(client)
        if any(address in prefix for prefix in self._prefixes):
            return True
        if not self._site.pod_interfaces:
            return False
        device = _device_towards(client)
        return any(
            device.startswith(name[:-1]) if name.endswith("*") else device == name for name in self._site.pod_interfaces
        )


def _device_towards(client: str) -> str:
    """The name of the device that leads to it: where it comes from, since pods are where their routes lead."""
    family = socket.AF_INET6 if ":" in client else socket.AF_INET
    packed = socket.inet_pton(family, client)
    asked = _ROUTE.pack(family, 8 * len(packed), *[0] * 7) + attribute(_DESTINATION, packed)
    try:
        with Netlink(ROUTE) as netlink:
            fields = dict(attributes(netlink.ask(Message(_GET_ROUTE, asked)), _ROUTE.size))
        return socket.if_indextoname(struct.unpack("=I", fields[_DEVICE])[0])
    except (OSError, KeyError):
        return ""
