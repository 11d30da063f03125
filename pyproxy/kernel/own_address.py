"""Which addresses this node has, as the kernel's routing and its devices tell.

The message layouts are those of linux/rtnetlink.h and linux/if_addr.h.
"""

import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

from pyproxy.address import IP, Family, Prefix, contains, family_of
from pyproxy.kernel.netlink import ROUTE, Message, Netlink, attribute, attributes

_GET_ADDRESS, _GET_ROUTE = 22, 26  # RTM_*
_DESTINATION, _DEVICE = 1, 4  # RTA_DST, RTA_OIF
_LOCAL = 2  # RTN_LOCAL
_ROUTE = struct.Struct("=8BI")  # rtmsg
_TYPE = 7  # where rtmsg.rtm_type is
_ADDRESS = struct.Struct("=4Bi")  # ifaddrmsg
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_SECONDARY = 0x1
_LINK_LOCAL = Prefix("fe80::/10")

KUBE_PROXY_DEVICE = "kube-ipvs0"
"""It holds the addresses of Services where kube-proxy was in its mode ipvs: they are not the node's own."""


def speaks(family: Family) -> bool:
    """Whether this kernel does; without IPv6 (ipv6.disable=1) it has no address of it either."""
    return family is Family.IPV4 or Path("/proc/net/if_inet6").exists()


class Way(NamedTuple):
    """Of packets to some address."""

    ends_here: bool
    device: int
    """The index of the one that leads there."""


def is_own(address: IP) -> bool:
    """Whether packets to it end here: what `fib daddr type local` and `addrtype` ask."""
    try:
        with Netlink(ROUTE) as netlink:
            way = way_to(netlink, address)
    except OSError:
        return False  # nobody can tell
    return way is not None and way.ends_here


def way_to(netlink: Netlink, address: IP) -> Way | None:
    """None if there is no route."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    if not any(packed):
        return None  # it would be asked as if it were loopback
    asked = _ROUTE.pack(family, 8 * len(packed), *[0] * 7) + attribute(_DESTINATION, packed)
    try:
        answer = netlink.ask(Message(_GET_ROUTE, asked))
    except OSError:
        return None
    device = dict(attributes(answer, _ROUTE.size)).get(_DEVICE, bytes(4))
    return Way(answer[_TYPE] == _LOCAL, int.from_bytes(device, sys.byteorder))


def of_devices() -> frozenset[IP]:
    """All that devices have, in both families, loopback ones too, but not those of Services on kube-proxy's device.

    Those of IPv6 that are link-local don't count: each device gives itself one, so with each pod there is another set
    of them, and no Service may have one (core/v1 validation). Raises OSError.
    """
    found = (ip for device, ip in _by_name() if device != KUBE_PROXY_DEVICE)
    return frozenset(ip for ip in found if not contains(_LINK_LOCAL, ip))


def of_device(name: str) -> frozenset[IP]:
    """All that one has; none if there is none of that name. Raises OSError."""
    return frozenset(ip for device, ip in _by_name() if device == name)


def _by_name() -> Iterator[tuple[str, IP]]:
    """Each address, and the device that has it."""
    names = dict(socket.if_nameindex())
    with Netlink(ROUTE) as netlink:
        for one in listed(netlink):
            yield names.get(one.device, ""), one.ip


class OwnAddress(NamedTuple):
    ip: IP
    device: int
    """Its index."""
    is_secondary: bool
    """IFA_F_SECONDARY, in IPv6 IFA_F_TEMPORARY: others should be preferred."""


def listed(netlink: Netlink) -> Iterator[OwnAddress]:
    """All that devices have, in the order in which they were given. Raises OSError."""
    for answer in netlink.snapshot(Message(_GET_ADDRESS, _ADDRESS.pack(*[0] * 5))):
        family, _, flags, _, index = _ADDRESS.unpack_from(answer)
        fields = dict(attributes(answer, _ADDRESS.size))
        # Between two points IFA_ADDRESS is the far one.
        packed = fields.get(_IFA_LOCAL, fields.get(_IFA_ADDRESS, b""))
        if family in (socket.AF_INET, socket.AF_INET6) and packed:
            yield OwnAddress(IP(socket.inet_ntop(family, packed)), index, bool(flags & _SECONDARY))


def node_port_addresses(prefixes: Iterable[Prefix], own: Iterable[IP]) -> tuple[IP, ...]:
    """Those of ``own`` where node ports answer: never on loopback (CVE-2020-8558), even if a prefix names it."""
    outward = (ip for ip in own if not (ip_address(ip).is_loopback or ip_address(ip).is_link_local))
    prefixes = list(prefixes)
    return tuple(
        sorted(
            ip
            for ip in outward
            if any(family_of(prefix) is family_of(ip) and contains(prefix, ip) for prefix in prefixes)
        )
    )
