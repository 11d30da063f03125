"""The flows that the packet level knows: who of them is open yet."""

import socket
import time
from collections.abc import Iterable

from ebpf import layout

_ENDED_S = 3.0
"""So long, after its end, the last packets of a connection may come."""
_IDLE_S = {socket.IPPROTO_TCP: 5 * 86400.0, socket.IPPROTO_UDP: 30.0}
"""Who says nothing for so long has gone: what conntrack waits for by default."""


def count_open(flows: Iterable[tuple[bytes, bytes]]) -> int:
    """``flows``: the entries of the map."""
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    count = 0
    for key, value in flows:
        way, flow = layout.read_tuple(key), layout.read_flow(value)
        if way.hook == layout.HOOK_INGRESS and flow.flags & layout.FLOW_TO_SERVICE:
            silent = now - flow.seen
            count += silent < (_ENDED_S if flow.has_ended else _IDLE_S.get(way.protocol, 0.0))
    return count
