"""A proxy that steers this relay. What it says is read as it comes, so that a slow one keeps nobody waiting."""

import socket
from collections import deque
from collections.abc import Callable, Sequence

from modes.userspace import protocol
from modes.userspace.poller import READ, WRITE, Poller
from modes.userspace.protocol import Inbox, Lost, Message

Answer = tuple[Message, Sequence[socket.socket]]
"""With the sockets whose descriptors follow it."""


class Conversation:
    """Ends itself when the proxy hangs up, or does not speak as it should."""

    def __init__(
        self, poller: Poller, channel: socket.socket, obey: Callable[[Message, list[socket.socket]], Answer]
    ) -> None:
        """``obey`` raises Lost at what is no question."""
        channel.setblocking(False)
        self._poller = poller
        self._channel = channel
        self._obey = obey
        self._inbox = Inbox(channel)
        self._outbox: deque[tuple[bytes, Sequence[socket.socket]]] = deque()
        poller.watch(channel.fileno(), READ, self._happened)

    def _happened(self, events: int) -> None:
        try:
            if events & WRITE:
                self._flush()
            else:
                self._inbox.read()
                while heard := self._inbox.take():
                    self._outbox += protocol.pack(*self._obey(*heard))
                    self._flush()
        except BlockingIOError:
            return
        except Exception as error:
            self._end()
            if not isinstance(error, Lost | OSError):
                raise

    def _flush(self) -> None:
        """As much as it takes; and nothing is read while something is left."""
        while self._outbox:
            data, sockets = self._outbox[0]
            try:
                sent = protocol.send(self._channel, data, sockets)
            except BlockingIOError:
                break
            if sent < len(data):
                self._outbox[0] = data[sent:], ()
            else:
                self._outbox.popleft()
        self._poller.change(self._channel.fileno(), WRITE if self._outbox else READ)

    def _end(self) -> None:
        self._poller.forget(self._channel.fileno())
        self._inbox.close()
        self._channel.close()
