"""UDP through this node: a socket to an endpoint for each client of a frontend, until it is idle for too long.

The time-outs are conntrack's (nf_conntrack_udp_timeout and …_stream), so that a client is served for as long as it
would be in the modes that translate.
"""

import resource
import socket
import time
from collections import defaultdict
from collections.abc import Callable, Collection
from typing import Any

from modes.userspace.descriptors import is_kept
from modes.userspace.poller import READ, Poller
from modes.userspace.protocol import Endpoint, Place
from modes.userspace.unreachable import CODES

MOST_FLOWS = 16384
"""In all; one more ends the one that was idle for longest."""
_PART = 4
"""Of the files that this process may open: the others are for connections, of which nobody can end the oldest."""
_ONE_WAY_S, _BOTH_WAYS_S = 30.0, 120.0
_ON_ITS_WAY_S = 1.0
_LARGEST = 65536
_AT_ONCE = 64  # datagrams, before others have their turn

Client = tuple[Any, ...]
"""As recvfrom has it."""


class Flow:
    __slots__ = ("answered", "client", "endpoint", "last", "place", "server")

    def __init__(self, place: Place, client: Client, endpoint: Endpoint, server: socket.socket) -> None:
        self.place = place
        self.client = client
        self.endpoint = endpoint
        self.server = server
        self.answered = False
        self.last = time.monotonic()


class Flows:
    """Of all frontends."""

    def __init__(self, poller: Poller, tell: Callable[[Place, Client, int], None]) -> None:
        """``tell`` tells a client of an error of CODES."""
        self._poller = poller
        self._tell = tell
        self._flows: dict[tuple[Place, Client], Flow] = {}
        """In the order in which they were last used."""
        self._clients: defaultdict[Place, set[Client]] = defaultdict(set)
        self._ending: set[Flow] = set()
        self._most = min(MOST_FLOWS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _PART)

    def __len__(self) -> int:
        return len(self._flows) + len(self._ending)

    def carry(
        self, place: Place, front: socket.socket, client: Client, data: bytes, choose: Callable[[], Endpoint | None]
    ) -> None:
        """What a client sent, to its endpoint."""
        flow = self._flows.get((place, client))
        if flow is None:
            endpoint = choose()
            if endpoint is None:
                return
            flow = self._open(place, front, client, endpoint)
            if flow is None:
                return
        self._use(flow)
        try:
            flow.server.send(data)
        except OSError as error:
            if error.errno in CODES:  # the answer to an earlier one, or this node's own routing says so
                self._fail(flow, error.errno)
            # else there is no room: a datagram may be lost

    def _use(self, flow: Flow) -> None:
        if flow in self._ending:
            return
        flow.last = time.monotonic()
        self._flows.pop((flow.place, flow.client), None)
        self._flows[flow.place, flow.client] = flow

    def _open(self, place: Place, front: socket.socket, client: Client, endpoint: Endpoint) -> Flow | None:
        if len(self._flows) >= self._most:
            self._make_room()
        try:
            server = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_DGRAM)
        except OSError:
            self._make_room()
            return None
        if is_kept(server.fileno()):
            server.close()
            self._make_room()
            return None
        server.setblocking(False)
        flow = Flow(place, client, endpoint, server)
        try:
            server.connect(endpoint)
        except OSError:
            server.close()
            return None
        self._clients[place].add(client)
        self._poller.watch(server.fileno(), READ, lambda _: self._answers(flow, front))
        return flow

    def _make_room(self) -> None:
        """No descriptor is left for the next one: at the cost of the oldest."""
        if self._flows:
            self._end(next(iter(self._flows.values())))

    def _answers(self, flow: Flow, front: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                data = flow.server.recv(_LARGEST)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in CODES:
                    self._fail(flow, error.errno)
                else:
                    self._end(flow)
                return
            flow.answered = True
            self._use(flow)
            try:
                front.sendto(data, flow.client)
            except OSError:
                pass  # as above

    def _fail(self, flow: Flow, error: int) -> None:
        self._end(flow)
        self._tell(flow.place, flow.client, error)

    def tick(self, now: float) -> None:
        """End what has been idle for too long."""
        over = [flow for flow in self._ending if now - flow.last > _ON_ITS_WAY_S]
        for flow in self._flows.values():
            idle = now - flow.last
            if idle <= _ONE_WAY_S:
                break  # and so are all after it
            if not flow.answered or idle > _BOTH_WAYS_S:
                over.append(flow)
        for flow in over:
            self._end(flow)

    def keep_only(self, place: Place, allowed: Callable[[Client], Collection[Endpoint]]) -> None:
        """End those of a frontend that lead elsewhere, but let answers through that are on their way: their clients'
        next datagrams choose anew."""
        for client in list(self._clients.get(place, ())):
            flow = self._flows[place, client]
            if flow.endpoint not in allowed(client):
                self._leave(flow)
                flow.last = time.monotonic()
                self._ending.add(flow)

    def _leave(self, flow: Flow) -> None:
        """Its client may begin another."""
        del self._flows[flow.place, flow.client]
        self._clients[flow.place].discard(flow.client)
        if not self._clients[flow.place]:
            del self._clients[flow.place]

    def _end(self, flow: Flow) -> None:
        if flow in self._ending:
            self._ending.discard(flow)
        else:
            self._leave(flow)
        self._poller.forget(flow.server.fileno())
        flow.server.close()
