"""One TCP connection through this node: a client's, and one to an endpoint, and what each says carried to the other.

What one side can't take is held back, and no more is read for it until it can: a slow reader costs 64 KiB. A half that
is closed is closed on the other side, too; a reset is passed on as a reset.
"""

import errno
import os
import socket
import struct
import time
from collections.abc import Callable, Collection

from modes.userspace.held import Memory, Pipe
from modes.userspace.poller import BROKEN, READ, WRITE, Poller
from modes.userspace.protocol import Endpoint

CONNECT_TIMEOUT_S = 5.0
_ATTEMPTS = 2
_MUCH = 256 << 10  # bytes one way, from which on a pipe pays
_AT_ONCE = struct.pack("=ii", 1, 0)  # linger: closing resets
_IDLE_S, _BETWEEN_S, _PROBES = 60, 15, 4  # keepalive, so that what vanished without a word does not stay

Choose = Callable[[Collection[Endpoint]], Endpoint | None]
"""Another endpoint than those that failed."""


class _Side:
    """One of the two sockets, and what it is yet to be sent."""

    __slots__ = ("events", "finished", "pending", "socket", "taken", "watched")

    def __init__(self, one: socket.socket) -> None:
        self.socket = one
        self.pending: Memory | Pipe = Memory()
        self.taken = 0  # bytes, until they are much
        self.finished = False  # it has said all that it will
        self.events = 0
        self.watched = False


class Relay:
    __slots__ = ("_attempts", "_choose", "_client", "_deadline", "_done", "_failed", "_poller", "_server", "address")

    def __init__(
        self, poller: Poller, client: socket.socket, address: str, choose: Choose, done: Callable[["Relay"], None]
    ) -> None:
        """``done`` is called once, when both sockets are closed. ``address``: the one that the client connected to."""
        self._poller = poller
        self._client = _Side(client)
        self._server: _Side | None = None
        self._choose = choose
        self._done = done
        self._failed: list[Endpoint] = []
        self._deadline: float | None = None
        self.address = address
        self._connect()

    @property
    def is_open(self) -> bool:
        return self._client.socket.fileno() >= 0

    def tick(self, now: float) -> None:
        if self._deadline is not None and now > self._deadline:
            self._try_another()

    def _connect(self) -> None:
        """Nothing is read of the client before it is connected, so another endpoint can be tried."""
        endpoint = self._choose(self._failed) if len(self._failed) < _ATTEMPTS else None
        if endpoint is None:
            self.abort()
            return
        self._failed.append(endpoint)  # unless it turns out otherwise
        try:
            server = socket.socket(socket.AF_INET6 if ":" in endpoint[0] else socket.AF_INET, socket.SOCK_STREAM)
        except OSError:  # no descriptor left
            self.abort()
            return
        server.setblocking(False)
        self._server = _Side(server)
        self._deadline = time.monotonic() + CONNECT_TIMEOUT_S
        code = server.connect_ex(endpoint)
        if code not in (0, errno.EINPROGRESS):
            self._try_another()
            return
        self._server.watched = True
        self._poller.watch(server.fileno(), WRITE, self._connected)

    def _connected(self, _: int) -> None:
        if self._server is None:
            return
        if self._server.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._try_another()
            return
        self._deadline = None
        self._poller.forget(self._server.socket.fileno())
        self._server.watched = False
        for side in (self._client, self._server):
            _keep_alive(side.socket)
        self._arrange(self._client, self._server)
        self._arrange(self._server, self._client)

    def _try_another(self) -> None:
        self._deadline = None
        if self._server is not None:
            self._close(self._server)
            self._server = None
        self._connect()

    def _on_client(self, events: int) -> None:
        if self._server is not None:
            self._happened(self._client, self._server, events)

    def _on_server(self, events: int) -> None:
        if self._server is not None:
            self._happened(self._server, self._client, events)

    def _happened(self, side: _Side, other: _Side, events: int) -> None:
        try:
            if events & WRITE and side.pending:
                self._flush(side, other)
            if events & (READ | BROKEN) and not other.pending and not side.finished:
                self._carry(side, other)
            elif events & BROKEN and not events & WRITE:
                if code := side.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code))
                # All has been said both ways, and the rest waits for the other side.
                self._unwatch(side)
        except OSError:  # reset by one side, so by us for the other
            self.abort()
            return
        except Exception:
            self.abort()
            raise
        if side.finished and other.finished and not side.pending and not other.pending:
            self._end()
            return
        self._arrange(side, other)
        self._arrange(other, side)

    def _carry(self, side: _Side, other: _Side) -> None:
        try:
            count = other.pending.fill(side.socket)
        except BlockingIOError:
            return
        if not count:
            side.finished = True
            self._shut(other)
            return
        other.pending.empty(other.socket)
        if other.taken < _MUCH:
            other.taken += count
        elif not other.pending and isinstance(other.pending, Memory):
            try:
                other.pending = Pipe()
            except OSError:
                other.taken = 0  # no descriptor is left; perhaps later

    def _flush(self, side: _Side, other: _Side) -> None:
        side.pending.empty(side.socket)
        if not side.pending and other.finished:
            self._shut(side)

    @staticmethod
    def _shut(side: _Side) -> None:
        """As the other one has nothing more to say."""
        if not side.pending:
            side.socket.shutdown(socket.SHUT_WR)

    def _arrange(self, side: _Side, other: _Side) -> None:
        """Read what the other can take, and write what waits."""
        events = 0 if side.finished or other.pending else READ
        events |= WRITE if side.pending else 0
        if not side.watched and events:
            self._poller.watch(
                side.socket.fileno(), events, self._on_client if side is self._client else self._on_server
            )
            side.watched = True
        elif side.watched and events != side.events:
            self._poller.change(side.socket.fileno(), events)
        side.events = events

    def _unwatch(self, side: _Side) -> None:
        if side.watched:
            self._poller.forget(side.socket.fileno())
            side.watched = False

    def _close(self, side: _Side) -> None:
        self._unwatch(side)
        side.socket.close()
        side.pending.close()

    def abort(self) -> None:
        """Reset whichever side is there."""
        for side in (self._client, self._server):
            if side is not None and side.socket.fileno() >= 0:
                side.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self._end()

    def _end(self) -> None:
        self._deadline = None
        for side in (self._client, self._server):
            if side is not None:
                self._close(side)
        self._server = None
        self._done(self)


def _keep_alive(one: socket.socket) -> None:
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _BETWEEN_S)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
