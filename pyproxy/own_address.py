"""Whether this node has an address, as the kernel's routing tells: what `fib daddr type local` and `addrtype` ask.

The message layouts are those of linux/rtnetlink.h.
"""

import socket
import struct

from pyproxy.address import IP

_GET_ROUTE, _NEW_ROUTE = 26, 24  # RTM_*
_REQUEST = 1
_DESTINATION = 1  # RTA_DST
_LOCAL = 2  # RTN_LOCAL
_HEADER, _ROUTE = struct.Struct("=IHHII"), struct.Struct("=8BI")  # nlmsghdr, rtmsg
_TYPE = _HEADER.size + 7  # where rtmsg.rtm_type is


def is_own(address: IP) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    packed = socket.inet_pton(family, address)
    asked = _ROUTE.pack(family, 8 * len(packed), *[0] * 7) + struct.pack("=HH", 4 + len(packed), _DESTINATION) + packed
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as netlink:
        netlink.send(_HEADER.pack(_HEADER.size + len(asked), _GET_ROUTE, _REQUEST, 0, 0) + asked)
        answer = netlink.recv(8192)
    _, kind, *_ = _HEADER.unpack_from(answer)
    # Otherwise an error: there is no route. The unspecified address would be asked as if it were loopback.
    return any(packed) and kind == _NEW_ROUTE and answer[_TYPE] == _LOCAL
