"""Netlink, spoken directly: many messages in one system call, and answers as they come.

pyroute2 spells a message of this size out in 130 µs, which for the tens of thousands of a first sync is seconds; packed
here it is 3 µs. The layouts are those of linux/netlink.h.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import NamedTuple, Self

ROUTE, NETFILTER, GENERIC = 0, 12, 16  # NETLINK_*
CREATE, EXCLUSIVE = 0x400, 0x200  # NLM_F_CREATE, NLM_F_EXCL
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10  # NLM_F_*
_ERROR, _DONE, _OVERRUN = 2, 3, 4  # NLMSG_*
_HEADER = struct.Struct("=IHHII")  # nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # nlattr
NESTED = 0x8000  # NLA_F_NESTED
_KIND = 0x3FFF  # NLA_TYPE_MASK
_SO_RCVBUFFORCE = 33
_RECEIVE_BYTES = 1 << 20
_BATCH_BYTES = 60_000
_PATIENCE_S = 30.0  # for an answer that the kernel has ready, or will never give
_TRIES = 10
_LARGEST_NUMBER = 1 << 31


class Message(NamedTuple):
    kind: int
    payload: bytes
    """What comes after the header."""
    flags: int = 0
    """Beside the ones that every request has."""


class Failure(NamedTuple):
    message: Message
    code: int
    """An errno."""

    @property
    def reason(self) -> str:
        return os.strerror(self.code)


class Netlink:
    """One conversation with a part of the kernel. Use as a context manager. Every call raises OSError."""

    def __init__(self, protocol: int, receive_bytes: int = 8 << 20) -> None:
        """``receive_bytes``: how much the kernel may answer before it is read; more takes CAP_NET_ADMIN."""
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        self._socket.settimeout(_PATIENCE_S)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, receive_bytes)
        except PermissionError:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._socket.bind((0, 0))
        self._number = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, message: Message) -> bytes:
        """The payload of the one message that answers."""
        number = self._next()
        self._socket.send(_packed(message, _REQUEST, number))
        for kind, payload, _ in self._answers(number):
            _raise_if_error(kind, payload)
            return payload
        raise OSError(errno.EPROTO, "the kernel did not answer")

    def dump(self, message: Message) -> Iterator[bytes]:
        """The payload of each message that answers; BlockingIOError if it changed while it was read."""
        number = self._next()
        self._socket.send(_packed(message, _REQUEST | _DUMP, number))
        interrupted = 0
        for kind, payload, flags in self._answers(number):
            interrupted |= flags & _INTERRUPTED
            if kind == _DONE:
                break
            _raise_if_error(kind, payload)
            yield payload
        if interrupted:
            raise BlockingIOError(errno.EAGAIN, "it changes faster than it can be read")

    def snapshot(self, message: Message) -> list[bytes]:
        """A dump that nothing changed under, from as many tries as it takes."""
        for _ in range(_TRIES - 1):
            try:
                return list(self.dump(message))
            except BlockingIOError:
                continue
        return list(self.dump(message))

    def send(self, messages: Iterable[Message]) -> list[Failure]:
        """Have all of them done, in order, and tell which were refused; the others are done by then.

        The kernel answers only what it refuses, and the last message of a system call: so what it says can't be lost
        unseen. OSError ENOBUFS if it was lost: then nobody knows what is done.
        """
        failures: list[Failure] = []
        batch: list[Message] = []
        length = 0
        for message in messages:
            batch.append(message)
            length += _HEADER.size + len(message.payload)
            if length >= _BATCH_BYTES:
                failures += self._send(batch)
                batch, length = [], 0
        return failures + self._send(batch) if batch else failures

    def _send(self, batch: list[Message]) -> list[Failure]:
        first = self._next(len(batch))
        data = [_packed(message, _REQUEST, first + index) for index, message in enumerate(batch[:-1])]
        last = first + len(batch) - 1
        self._socket.send(b"".join(data) + _packed(batch[-1], _REQUEST | _ACK, last))
        failures = []
        while True:
            for number, kind, payload, _ in self._receive():
                if kind != _ERROR or not first <= number <= last:
                    continue  # late answers to what was given up before
                (code,) = struct.unpack_from("=i", payload)
                if code:
                    failures.append(Failure(batch[number - first], -code))
                if number == last:
                    return failures

    def _answers(self, number: int) -> Iterator[tuple[int, bytes, int]]:
        """Kind, payload and flags of what answers the request of that number."""
        while True:
            for answered, kind, payload, flags in self._receive():
                if answered == number:
                    yield kind, payload, flags

    def _receive(self) -> Iterator[tuple[int, int, bytes, int]]:
        """Number, kind, payload and flags of each message of one datagram."""
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            if error.errno == errno.ENOBUFS:
                self._drain()
            raise
        offset = 0
        while offset < len(data):
            length, kind, flags, number, _ = _HEADER.unpack_from(data, offset)
            if kind == _OVERRUN:
                raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
            yield number, kind, data[offset + _HEADER.size : offset + length], flags
            offset += length + 3 & ~3

    def _drain(self) -> None:
        """Read what is left after an answer was lost: until then the kernel gives no other, and does not say so."""
        self._socket.setblocking(False)
        try:
            while self._socket.recv(_RECEIVE_BYTES):
                pass
        except BlockingIOError:
            pass
        finally:
            self._socket.settimeout(_PATIENCE_S)

    def _next(self, count: int = 1) -> int:
        """The first of ``count`` numbers that no earlier message had."""
        self._number += count
        if self._number >= _LARGEST_NUMBER:
            self._number = count
        return self._number - count + 1


def attribute(kind: int, payload: bytes) -> bytes:
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + b"\0" * (-len(payload) % 4)


def nested(kind: int, payload: bytes) -> bytes:
    return attribute(kind | NESTED, payload)


def attributes(data: bytes, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Kind and payload of each that ``data`` holds from ``start`` on."""
    while start + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < 4:
            return
        yield kind & _KIND, data[start + 4 : start + length]
        start += length + 3 & ~3


def _packed(message: Message, flags: int, number: int) -> bytes:
    kind, payload, more = message
    length = _HEADER.size + len(payload)
    return _HEADER.pack(length, kind, flags | more, number, 0) + payload + b"\0" * (-length % 4)


def _raise_if_error(kind: int, payload: bytes) -> None:
    if kind == _ERROR:
        (code,) = struct.unpack_from("=i", payload)
        if code:
            raise OSError(-code, os.strerror(-code))
