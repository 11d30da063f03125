"""Where a client is, by its address: in a pod of this node, on the node itself, or outside."""

import struct
from ipaddress import ip_address, ip_network

from modes.userspace.protocol import Site
from pyproxy.address import IP
from pyproxy.kernel.netlink import Message, Netlink, attributes
from pyproxy.kernel.own_address import way_to

_GET_LINK, _NAME = 18, 3  # RTM_GETLINK, IFLA_IFNAME
_LINK = struct.Struct("=BxHiII")  # ifinfomsg
_MOST_REMEMBERED = 65536
_REMEMBERED_S = 10.0


class Origins:
    """Remembers for a while, as each new client takes a question to the kernel."""

    def __init__(self, site: Site, netlink: Netlink) -> None:
        """``netlink``: of routes, and open for as long as this is used: it must answer when no descriptor is left."""
        self._site = site
        self._netlink = netlink
        self._prefixes = [ip_network(prefix) for prefix in site.pod_prefixes]
        self._inside: dict[str, bool] = {}
        self._forget_at = 0.0

    def forget(self, now: float) -> None:
        """What was learnt, if it is old or too much."""
        if now >= self._forget_at or len(self._inside) > _MOST_REMEMBERED:
            self._forget_at = now + _REMEMBERED_S
            self._inside.clear()

    def is_inside(self, client: str) -> bool:
        """Whether it is a pod of this node, or the node."""
        known = self._inside.get(client)
        if known is None:
            known = self._inside[client] = self._ask(client)
        return known

    def _ask(self, client: str) -> bool:
        address = ip_address(client)
        if any(address in prefix for prefix in self._prefixes):
            return True
        way = way_to(self._netlink, IP(client))
        if way is None:
            return False
        if way.ends_here or not self._site.pod_interfaces:
            return way.ends_here
        # It comes in by the device that leads to it, since pods are where their routes lead.
        device = self._name(way.device)
        return any(
            device.startswith(name[:-1]) if name.endswith("*") else device == name for name in self._site.pod_interfaces
        )

    def _name(self, device: int) -> str:
        """By its index; if_indextoname(3) would take a descriptor. Empty if it is gone."""
        try:
            answer = self._netlink.ask(Message(_GET_LINK, _LINK.pack(0, 0, device, 0, 0)))
        except OSError:
            return ""
        return dict(attributes(answer, _LINK.size)).get(_NAME, b"").rstrip(b"\0").decode(errors="replace")
