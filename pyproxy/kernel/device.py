"""Network devices, as far as they are removed. The message layouts are those of linux/rtnetlink.h."""

import errno
import os
import struct

from pyproxy.kernel.netlink import ROUTE, Message, Netlink, attribute

_DELETE_LINK = 17  # RTM_DELLINK
_NAME = 3  # IFLA_IFNAME
_LINK = struct.Struct("=BxHiII")  # ifinfomsg


def remove(name: str) -> bool:
    """With its addresses; False if there was none. Raises OSError."""
    payload = _LINK.pack(0, 0, 0, 0, 0) + attribute(_NAME, name.encode() + b"\0")
    with Netlink(ROUTE) as netlink:
        failures = netlink.send([Message(_DELETE_LINK, payload)])
    for failure in failures:
        if failure.code != errno.ENODEV:
            raise OSError(failure.code, os.strerror(failure.code))
    return not failures
