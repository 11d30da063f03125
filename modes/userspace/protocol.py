"""What the proxy and its relays say to each other, over a Unix socket.

The socket has a name in the abstract namespace: it belongs to the network namespace, needs no file system, and goes
with whoever listens. A message is its length in four bytes and msgpack; descriptors follow the one they belong to.
"""

import socket
import struct
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

ADDRESS = "\0pyproxy-relay"
MOST_DESCRIPTORS = 200
"""In one message; the kernel takes 253 (SCM_MAX_FD)."""
_LENGTH = struct.Struct("!I")
_LONGEST = 256 << 20
_PATIENCE_S = 30.0

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
    entries: list[Entry]
    """All that are served."""
    site: Site


class Change(msgspec.Struct, tag=True):
    """Serve ``put``, in place of what was served there, and ``drop`` no more. Sockets for places that are new follow in
    the order of ``sockets``. Answered by State."""

    put: list[Entry]
    drop: list[Place]
    sockets: list[Place]
    site: Site


class Lend(msgspec.Struct, tag=True):
    """Answered by Sockets: those of these places that are served."""

    places: list[Place]


class HandOver(msgspec.Struct, tag=True):
    """Another relay takes over: answered by Sockets, whose descriptors follow; what is open is relayed to its end."""


class Sockets(msgspec.Struct, tag=True):
    places: list[Place]


class Ask(msgspec.Struct, tag=True):
    """Answered by State."""


class Drain(msgspec.Struct, tag=True):
    """Listen no more, and end with the last connection. Answered by State."""


class State(msgspec.Struct, tag=True):
    busy: list[str]
    """Addresses that connections are open to."""
    connections: int
    flows: int


Message = Hello | Welcome | Change | Lend | HandOver | Sockets | Ask | Drain | State
_DECODER: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


class Lost(Exception):
    """The other side is gone, or does not speak as it should."""


def version() -> str:
    """Of this mode's code: relays of another are replaced."""
    sources = sorted(Path(__file__).parent.glob("*.py"))
    return sha256(b"\0".join(source.read_bytes() for source in sources)).hexdigest()[:16]


def send(channel: socket.socket, message: Message, descriptors: list[int] | None = None) -> None:
    """Raises Lost."""
    body = msgspec.msgpack.encode(message)
    channel.settimeout(_PATIENCE_S)
    try:
        channel.sendall(_LENGTH.pack(len(body)) + body)
        for start in range(0, len(descriptors or ()), MOST_DESCRIPTORS):
            socket.send_fds(channel, [b"+"], (descriptors or [])[start : start + MOST_DESCRIPTORS])
    except OSError as error:
        raise Lost(str(error)) from error


def receive(channel: socket.socket, patience: float = _PATIENCE_S) -> Message:
    """Raises Lost, also if nothing comes for ``patience`` seconds."""
    channel.settimeout(patience)
    (length,) = _LENGTH.unpack(_exactly(channel, _LENGTH.size))
    if length > _LONGEST:
        raise Lost(f"a message of {length} bytes")
    try:
        return _DECODER.decode(_exactly(channel, length))
    except msgspec.MsgspecError as error:
        raise Lost(str(error)) from error


def receive_sockets(channel: socket.socket, count: int) -> list[socket.socket]:
    """Those that follow a message. Raises Lost."""
    found: list[socket.socket] = []
    try:
        while len(found) < count:
            _, descriptors, *_ = socket.recv_fds(channel, 1, MOST_DESCRIPTORS)
            if not descriptors:
                raise Lost("descriptors are missing")
            found += [socket.socket(fileno=descriptor) for descriptor in descriptors]
    except OSError as error:
        raise Lost(str(error)) from error
    return found


def _exactly(channel: socket.socket, length: int) -> bytes:
    data = bytearray()
    while len(data) < length:
        try:
            more = channel.recv(min(length - len(data), 1 << 20))
        except OSError as error:
            raise Lost(str(error)) from error
        if not more:
            raise Lost("it hung up")
        data += more
    return bytes(data)


def peer_is_allowed(channel: socket.socket, owner: int) -> bool:
    """Abstract names have no permissions, so who may steer a relay is asked of the kernel: root, or who started it."""
    credentials: Any = channel.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    _, user, _ = struct.unpack("=3i", credentials)
    return user in (0, owner)
