"""Local routes: how a node takes an address for its own without giving it to a device.

An entry of the kernel's table `local` is all it takes for packets to end here. An address on a device would do the
same, but the kernel looks through all of the device's addresses for each new one, announces it to everybody, and joins
a multicast group for it in IPv6. What each of both costs at 10,000 addresses is in docs/ARCHITECTURE.md.

A claim bears a number of its owner's, in the fields protocol and metric: so each owner finds its own again after a
restart, and two of them may claim the same address.
"""

import errno
import socket
import struct
from collections.abc import Iterable

from pyproxy.address import IP
from pyproxy.kernel.netlink import CREATE, EXCLUSIVE, ROUTE, Message, Netlink, attribute, attributes

_NEW_ROUTE, _DELETE_ROUTE, _GET_ROUTE = 24, 25, 26  # RTM_*
_ROUTE = struct.Struct("=8BI")  # rtmsg
_TABLE_LOCAL, _SCOPE_HOST, _TYPE_LOCAL = 255, 254, 2  # RT_TABLE_LOCAL, RT_SCOPE_HOST, RTN_LOCAL
_DESTINATION, _DEVICE, _METRIC = 1, 4, 6  # RTA_DST, RTA_OIF, RTA_PRIORITY
_LOOPBACK = 1  # the index of lo in every network namespace


class LocalRoutes:
    """All claims of one owner."""

    def __init__(self, owner: int) -> None:
        """``owner``: a routing protocol's number that nobody else has (rtm_protocol), 1 to 255."""
        self._owner = owner

    def add(self, addresses: Iterable[IP]) -> None:
        """Those that are there stay. Raises OSError."""
        self._change(Message(_NEW_ROUTE, b"", CREATE | EXCLUSIVE), addresses, errno.EEXIST)

    def remove(self, addresses: Iterable[IP]) -> None:
        """Those that are not there are no failure. Raises OSError."""
        self._change(Message(_DELETE_ROUTE, b""), addresses, errno.ESRCH)

    def listed(self) -> set[IP]:
        """As the kernel has them. Raises OSError."""
        found = set()
        with Netlink(ROUTE) as netlink:
            for family in (socket.AF_INET, socket.AF_INET6):
                asked = _ROUTE.pack(family, *[0] * 8)
                for answer in netlink.snapshot(Message(_GET_ROUTE, asked)):
                    told, length, _, _, table, protocol, _, kind, _ = _ROUTE.unpack_from(answer)
                    # Without IPv6 the kernel tells of IPv4 again (rtnetlink_rcv_msg asks PF_UNSPEC in its place).
                    if (told, table, protocol, kind) == (family, _TABLE_LOCAL, self._owner, _TYPE_LOCAL):
                        packed = dict(attributes(answer, _ROUTE.size))[_DESTINATION]
                        if length == 8 * len(packed):
                            found.add(IP(socket.inet_ntop(family, packed)))
        return found

    def _change(self, how: Message, addresses: Iterable[IP], harmless: int) -> None:
        with Netlink(ROUTE) as netlink:
            failures = netlink.send(how._replace(payload=self._payload(address)) for address in addresses)
        for failure in failures:
            if failure.code != harmless:
                raise OSError(failure.code, failure.reason)

    def _payload(self, address: IP) -> bytes:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        packed = socket.inet_pton(family, address)
        fields = (family, 8 * len(packed), 0, 0, _TABLE_LOCAL, self._owner, _SCOPE_HOST, _TYPE_LOCAL, 0)
        numbers = attribute(_DEVICE, struct.pack("=I", _LOOPBACK)) + attribute(_METRIC, struct.pack("=I", self._owner))
        return _ROUTE.pack(*fields) + attribute(_DESTINATION, packed) + numbers
