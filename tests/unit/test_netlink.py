"""Answers that the kernel may give and mostly does not: late, in another order, or one that tells of a loss."""

import errno
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from pyproxy.kernel.netlink import ROUTE, Failure, Message, Netlink

HEADER = struct.Struct("=IHHII")  # nlmsghdr
ERROR, DONE, OVERRUN, ANSWER = 2, 3, 4, 16
FIRST, SECOND, THIRD = (Message(20, bytes([number]) * 4) for number in range(3))


class Kernel:
    """The other side of a conversation, which says what a test wants it to."""

    def __init__(self) -> None:
        self.netlink = Netlink(ROUTE)
        self.netlink.close()
        self.netlink._socket, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.netlink._socket.settimeout(10)
        self.netlink._number = 100  # so that some are earlier

    def answers(self, *script: Callable[[int], bytes]) -> None:
        """In as many datagrams to the next request, each made of the number of its first message."""

        def answer() -> None:
            (_, _, _, number, _) = HEADER.unpack_from(self._socket.recv(1 << 16))
            for one in script:
                self._socket.send(one(number))

        self._thread = threading.Thread(target=answer, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._thread.join()
        self.netlink.close()
        self._socket.close()


def said(kind: int, payload: bytes, later: int = 0) -> Callable[[int], bytes]:
    """``later``: than the first message of the request, that which it answers."""
    return lambda number: HEADER.pack(HEADER.size + len(payload), kind, 0, number + later, 0) + payload


def refused(code: int, later: int = 0) -> Callable[[int], bytes]:
    return said(ERROR, struct.pack("=i", -code), later)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    one = Kernel()
    yield one
    one.close()


def test_late_answers_to_others_are_none(kernel: Kernel) -> None:
    kernel.answers(said(ANSWER, b"late", -1), refused(errno.EPERM, -2), said(ANSWER, b"mine"))
    assert kernel.netlink.ask(FIRST) == b"mine"
    kernel.answers(said(ANSWER, b"late", -1), said(ANSWER, b"mine"), said(DONE, b"", -1), said(DONE, b""))
    assert list(kernel.netlink.dump(FIRST)) == [b"mine"]


def test_a_refusal_is_that_of_its_own_message_in_whatever_order_they_come(kernel: Kernel) -> None:
    kernel.answers(refused(errno.EPERM, -1), refused(errno.ENOENT, 1), refused(errno.EEXIST), refused(0, 2))
    assert kernel.netlink.send([FIRST, SECOND, THIRD]) == [
        Failure(SECOND, errno.ENOENT),
        Failure(FIRST, errno.EEXIST),
    ]


@pytest.mark.parametrize(
    "ask",
    [
        lambda netlink: netlink.ask(FIRST),
        lambda netlink: list(netlink.dump(FIRST)),
        lambda netlink: netlink.send([FIRST, SECOND]),
    ],
    ids=["ask", "dump", "send"],
)
def test_what_is_said_to_be_lost_is_not_taken_for_whole(kernel: Kernel, ask: Callable[[Netlink], object]) -> None:
    kernel.answers(said(OVERRUN, b""), said(ANSWER, b"mine"), said(DONE, b""), refused(0, 1))
    with pytest.raises(OSError, match="No buffer space"):
        ask(kernel.netlink)
