"""Connections that netfilter translates: they need its NAT hooks, which go with the last chain of type nat.

The layouts are those of linux/netfilter/nfnetlink_conntrack.h.
"""

import socket
import struct

from pyproxy.kernel.netlink import NETFILTER, Message, Netlink, attributes

_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_STATUS = 3  # CTA_STATUS
_DESTINATION = 1 << 5  # IPS_DST_NAT
_HEADER_BYTES = 4  # of nfgenmsg


def count() -> int:
    """How many have another destination than their client asked for. Raises OSError."""
    found = 0
    with Netlink(NETFILTER) as netlink:
        for family in (socket.AF_INET, socket.AF_INET6):
            for payload in netlink.dump(Message(_GET, struct.pack("=BBH", family, 0, 0))):
                (status,) = struct.unpack("!I", dict(attributes(payload, _HEADER_BYTES))[_STATUS])
                found += bool(status & _DESTINATION)
    return found
