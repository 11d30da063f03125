"""What the proxy and its relays say to each other, over a Unix socket.

The socket has a name in the abstract namespace: it belongs to the network namespace, needs no file system, and goes
with whoever listens. A message is its length in four bytes and msgpack; its descriptors follow it, some with each of as
many bytes as they take.

A relay of any version is spoken to when a newer one takes its sockets over: Hello, Lend and Leave stay as they are, and
what is said of an Entry only grows.
"""

import socket
import struct
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

PREFIX = "\0pyproxy-relay-"
"""Of names; anything may follow."""
_PORTION = 200  # descriptors with one byte; the kernel takes 253 (SCM_MAX_FD)
_LENGTH = struct.Struct("!I")
_LONGEST = 256 << 20
_READ_BYTES = 1 << 20

Place = tuple[str, str, int]
"""Transport, address and port that clients connect to."""
Endpoint = tuple[str, int]


class Entry(msgspec.Struct, frozen=True):
    """One frontend."""

    place: Place
    route: str
    """Whose it is: clients stick to an endpoint of a route, whichever of its frontends they use."""
    outside: tuple[Endpoint, ...]
    """For clients outside the cluster; the other one for pods and this node."""
    inside: tuple[Endpoint, ...]
    sources: tuple[str, ...] | None = None
    """Networks that may come; None is everyone. All others are dropped."""
    sticky_seconds: int = 0
    drops_outside: bool = False
    """Whether those outside are dropped, since there are endpoints elsewhere, rather than refused."""


class Site(msgspec.Struct, frozen=True):
    """What tells a pod of this node from the world."""

    pod_prefixes: tuple[str, ...] = ()
    pod_interfaces: tuple[str, ...] = ()
    """With a trailing ``*``: what begins so."""


class Hello(msgspec.Struct, tag=True):
    """Who are you? Answered by Welcome."""


class Welcome(msgspec.Struct, tag=True):
    version: str
    number: int
    """Which of the relays it is, from 0."""
    most_files: int
    """That it may have open."""
    entries: list[Entry]
    """All that are served."""
    site: Site
    tells_errors: bool = False
    """Whether it may send ICMP errors."""


class Change(msgspec.Struct, tag=True):
    """Serve ``put``, in place of what was served there, and ``drop`` no more. Answered by State."""

    put: list[Entry]
    drop: list[Place]
    sockets: list[Place]
    """Places that are new, whose descriptors follow."""
    site: Site


class Lend(msgspec.Struct, tag=True):
    """Answered by Sockets: those of these places that are served."""

    places: list[Place]


class Sockets(msgspec.Struct, tag=True):
    sockets: list[Place]
    """Whose descriptors follow."""


class Leave(msgspec.Struct, tag=True):
    """Listen no more after ``seconds``, and end with the last connection. At once if another relay listens at the same
    sockets by now. Answered by State."""

    seconds: float


class Ask(msgspec.Struct, tag=True):
    """Answered by State."""


class State(msgspec.Struct, tag=True):
    busy: list[str]
    """Addresses that connections are open to."""
    connections: int
    flows: int
    failures: int = 0
    """Mistakes of ours that it survived since it was last asked…"""
    last_failure: str = ""
    """…and what the last one was."""


Message = Hello | Welcome | Change | Lend | Sockets | Leave | Ask | State
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Lost(Exception):
    """The other side is gone, or does not speak as it should."""


def version() -> str:
    """Of this mode's code: relays of another are replaced."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def pack(message: Message, sockets: Sequence[socket.socket] = ()) -> Iterator[tuple[bytes, Sequence[socket.socket]]]:
    """As what is to be sent with which sockets' descriptors, one after the other."""
    body = msgspec.msgpack.encode(message)
    yield _LENGTH.pack(len(body)) + body, ()
    for start in range(0, len(sockets), _PORTION):
        yield b"+", sockets[start : start + _PORTION]


def send(channel: socket.socket, data: bytes, sockets: Sequence[socket.socket]) -> int:
    """One of these; returns how many bytes went. Raises OSError, also if a socket was closed meanwhile."""
    return socket.send_fds(channel, [data], [one.fileno() for one in sockets])


class Inbox:
    """What has come through a channel, until it makes a message."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._data = bytearray()
        self._descriptors: list[socket.socket] = []
        self._message: Message | None = None  # while its descriptors are on their way

    def read(self) -> None:
        """What is there; blocks as the channel does. Raises Lost, BlockingIOError, TimeoutError."""
        try:
            data, descriptors, *_ = socket.recv_fds(self._channel, _READ_BYTES, _PORTION)
        except (BlockingIOError, TimeoutError):
            raise
        except OSError as error:
            raise Lost(str(error)) from error
        self._descriptors += [socket.socket(fileno=descriptor) for descriptor in descriptors]
        if not data:
            raise Lost("it hung up")
        self._data += data

    def take(self) -> tuple[Message, list[socket.socket]] | None:
        """The next message with its descriptors; None if it has not come yet. Raises Lost."""
        if self._message is None:
            self._message = self._decode()
        if self._message is None:
            return None
        expected = len(self._message.sockets) if isinstance(self._message, Change | Sockets) else 0
        portions = -(-expected // _PORTION)
        if len(self._data) < portions:
            return None
        if len(self._descriptors) < expected:
            raise Lost("descriptors are missing")
        message, sockets = self._message, self._descriptors[:expected]
        del self._data[:portions], self._descriptors[:expected]
        self._message = None
        return message, sockets

    def _decode(self) -> Message | None:
        if len(self._data) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._data)
        if length > _LONGEST:
            raise Lost(f"a message of {length} bytes")
        end = _LENGTH.size + length
        if len(self._data) < end:
            return None
        try:
            message = _DECODER.decode(bytes(self._data[_LENGTH.size : end]))
        except msgspec.MsgspecError as error:
            raise Lost(str(error)) from error
        del self._data[:end]
        return message

    def close(self) -> None:
        for one in self._descriptors:
            one.close()
        self._descriptors.clear()


def peer(channel: socket.socket) -> tuple[int, int]:
    """The process that is on the other side, or that began to listen there, and its user (SO_PEERCRED).

    Abstract names have no permissions, so who may steer a relay, and who is one, is asked of the kernel.
    """
    credentials: Any = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    process, user, _ = struct.unpack("=3i", credentials)
    return process, user
