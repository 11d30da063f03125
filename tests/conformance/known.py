"""What a mode is known to do otherwise than the rest, and why. No test is skipped for it: each asks for that."""

import platform
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Known:
    affinity_lingers: bool = False
    """IPVS keeps a client with its endpoint for as long as it remembers a connection of the client's, and it remembers
    one for two minutes after its end (ip_vs_proto_tcp.c, ip_vs_conn_expire). So a shorter time-out has no effect."""
    datagrams_lost_with_an_endpoint: int = 0
    """IPVS forgets the flows to an endpoint that is gone a tick of the kernel's clock later, and drops a datagram of
    one of them that comes in between (ip_vs_in_hook, where conntrack knows the flow). It remembers a flow for five
    minutes, and a port that a client gets may be that of one of them."""
    relays: bool = False
    """Endpoints are connected to by this node, and so see its address and ports of its own, whoever asks."""
    connects_sockets: bool = False
    """The sockets of the node and its pods are connected to endpoints themselves, nobody translates their packets. So
    endpoints see who asks, whatever the policy and however pods are detected, and a UDP socket whose endpoint goes is
    ended with ECONNABORTED: it has to connect anew."""
    answers_for_its_own: int = 0
    """IPVS remembers a connection for two minutes after its end, and takes whatever the endpoint sends to that port of
    that client for an answer of it (ip_vs_out_hook). So a socket that ebpf mode has connected to the endpoint itself
    hears nothing if it got a port by which IPVS was asked before, until IPVS has forgotten all that, when it retires.
    The same is true of a client from outside, if it asked another Service with that endpoint by that port. So many may
    meet that. Where a switch takes seconds one does for sure: of a client that asked 1,200 times before, one request in
    a hundred meets its own port and endpoint again."""
    datagrams_lost_with_devices: int = 0
    """Before Linux 6.6 a device stands still as it gets its qdisc clsact and as it loses it (qdisc_graft): a datagram
    that comes by then is lost, one as the mode comes and one as it goes. TCP sends again."""
    loses_open_connections_to: tuple[str, ...] = ()
    """Modes that end, by taking over, what is open: userspace listens where virtual servers of ipvs are found, so those
    have to go, and their connections with them."""
    lacks_sctp: str = ""
    """What is then said of a service that has it."""


def _release() -> tuple[int, ...]:
    return tuple(int(number) for number in platform.release().split("-")[0].split(".")[:2])


_KNOWN = {
    "ebpf": Known(
        connects_sockets=True,
        datagrams_lost_with_devices=2 if _release() < (6, 6) else 0,
        lacks_sctp="ebpf mode forwards TCP and UDP, not SCTP",
    ),
    "ipvs": Known(
        affinity_lingers=True,
        datagrams_lost_with_an_endpoint=1,
        answers_for_its_own=3,
        loses_open_connections_to=("userspace",),
    ),
    "userspace": Known(relays=True, lacks_sctp="userspace mode relays TCP and UDP, not SCTP"),
}


def known(mode: str) -> Known:
    return _KNOWN.get(mode, Known())
