"""Whose packets reach a frontend's socket at all: the filter that it gets before anybody listens on it.

The proxy sets it and not the relay, since it takes CAP_NET_ADMIN on some kernels.
"""

import socket
from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from modes.userspace import packet_filter
from modes.userspace.packet_filter import Network, TooLong
from modes.userspace.protocol import Entry
from pyproxy.table import IP, Host


def is_guarded(entry: Entry) -> bool:
    return entry.sources is not None or entry.drops_outside


def guard(one: socket.socket, entry: Entry, host: Host, own: Iterable[IP]) -> None:
    """``own``: addresses of this node. Whom no filter can tell is turned away when he comes. Raises OSError."""
    allowed = _allowed(entry, host, own)
    if allowed is not None:
        version = ip_address(entry.place[1]).version
        try:
            packet_filter.attach(one, packet_filter.program(some for some in allowed if some.version == version))
            return
        except TooLong:
            pass
    packet_filter.detach(one)


def _allowed(entry: Entry, host: Host, own: Iterable[IP]) -> list[Network] | None:
    """The networks that may come; None if that is not to be told by addresses."""
    sources = None if entry.sources is None else [ip_network(source) for source in entry.sources]
    if not entry.drops_outside:
        return sources
    if host.pod_interfaces:
        return None
    # The node asks itself from the very address that it asks, where that is claimed.
    inside = [ip_network(one) for one in (*host.pod_prefixes, *own, entry.place[1])]
    return inside if sources is None else [one for one in inside for source in sources if _overlap(one, source)]


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)
