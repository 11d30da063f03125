"""The flows that the packet level knows: who of them is open yet, and whose ports of this node are whose."""

import socket
import time
from collections.abc import Iterable, Iterator, Mapping

from ebpf import layout
from ebpf.layout import Flow, Way
from pyproxy.kernel.masquerade import Use

_ENDED_S = 3.0
"""So long, after its end, the last packets of a connection may come."""
_IDLE_S = {socket.IPPROTO_TCP: 5 * 86400.0, socket.IPPROTO_UDP: 30.0}
"""Who says nothing for so long has gone: what conntrack waits for by default."""


def open_ones(flows: Mapping[Way, Flow]) -> list[tuple[Way, Flow]]:
    """Of ``flows``, the map's, the first of each flow."""
    now = time.clock_gettime(time.CLOCK_MONOTONIC)
    return [
        (way, flow)
        for way, flow in flows.items()
        if way.hook == layout.HOOK_INGRESS
        and flow.flags & layout.FLOW_TO_SERVICE
        and now - flow.seen < (_ENDED_S if flow.has_ended else _IDLE_S.get(way.protocol, 0.0))
    ]


def ports_of(flows: Mapping[Way, Flow]) -> Iterator[Use]:
    """The ports of this node that open ones have."""
    for way, flow in open_ones(flows):
        to = flow.address, flow.port
        client = way.source, flow.client_port or way.source_port
        source = flows.get(Way(*client, *to, way.protocol, layout.HOOK_EGRESS))
        if source is not None and source.port:
            yield Use(way.protocol, source.address, source.port, *to)


def of_others(uses: Iterable[Use]) -> dict[bytes, bytes]:
    """Entries of the map that leave alone what another mode has masqueraded."""
    flow = Flow("::", 0, 0, layout.FLOW_OF_OTHERS, time.clock_gettime(time.CLOCK_MONOTONIC)).packed()
    return {
        Way(use.endpoint, use.endpoint_port, use.address, use.port, use.protocol, layout.HOOK_INGRESS).packed(): flow
        for use in uses
    }
