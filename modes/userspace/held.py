"""What one side of a connection has said and the other has not taken yet: 64 KiB at most.

In memory, which is quickest for a few messages; or, for who has much to say, in a pipe of the kernel's, through which
it goes from socket to socket without being copied to us and back.
"""

import errno
import os
import socket

from modes.userspace.descriptors import is_kept

_CHUNK = 64 << 10
_NON_BLOCKING = 2  # SPLICE_F_NONBLOCK


class Memory:
    __slots__ = ("_rest",)

    def __init__(self) -> None:
        self._rest = memoryview(b"")

    def __bool__(self) -> bool:
        return bool(self._rest)

    def fill(self, source: socket.socket) -> int:
        """Once it is empty. Returns how many bytes came, 0 if none ever will. Raises OSError."""
        self._rest = memoryview(source.recv(_CHUNK))
        return len(self._rest)

    def empty(self, target: socket.socket) -> None:
        """As far as that takes it. Raises OSError."""
        try:
            self._rest = self._rest[target.send(self._rest) :]
        except BlockingIOError:
            pass

    def close(self) -> None:
        self._rest = memoryview(b"")


class Pipe:
    __slots__ = ("_from", "_held", "_to")

    def __init__(self) -> None:
        """Raises OSError if there is no descriptor left."""
        self._from, self._to = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._held = 0
        if is_kept(self._to):
            self.close()
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def __bool__(self) -> bool:
        return self._held > 0

    def fill(self, source: socket.socket) -> int:
        """As Memory does."""
        self._held = os.splice(source.fileno(), self._to, _CHUNK, flags=_NON_BLOCKING)
        return self._held

    def empty(self, target: socket.socket) -> None:
        """As Memory does."""
        try:
            while self._held:
                self._held -= os.splice(self._from, target.fileno(), self._held, flags=_NON_BLOCKING)
        except BlockingIOError:
            pass

    def close(self) -> None:
        os.close(self._from)
        os.close(self._to)
