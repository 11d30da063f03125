"""What is timed: four ways to talk to a server, one conversation after the other, over blocking sockets.

What is not meant is outside of the clock: making a socket, its options, its port, and its end.
"""

import errno
import itertools
import os
import resource
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Generator, Sequence

import msgspec

Target = tuple[str, int]
"""Address and port."""
Talk = tuple[socket.socket, Target, Callable[[socket.socket, Target], object]]
"""A socket, whom it is to talk to, and what of it is timed."""
Talks = Generator[Talk, None, None]

PORTS = range(10_000, 65_536)
"""That a client binds its sockets to, one after the other."""
_REQUEST = b"?" * 64
_PATIENCE = struct.pack("@ll", 2, 0)  # struct timeval
_RESET_AT_CLOSE = struct.pack("@ii", 1, 0)  # struct linger
_SETTLES = 5
"""Exchanges on a kept connection before the first that counts."""
_ENOUGH_FAILURES = 3


class Samples(msgspec.Struct):
    ns: list[int]
    failures: dict[str, int]
    """By the name of the error. A failure is no sample, and after three the rest is not tried."""
    preempted: int
    """How often the kernel took the CPU away from the client meanwhile."""


class Caller:
    """Opens the sockets of one place; for the thread that lives there.

    It gives each socket a port, the next one every time. Left to connect(), the kernel's search for a free port would
    be timed, too, and would take the longer the more ports were used before; and a port that comes back within seconds
    meets what conntrack yet knows of its last connection.
    """

    def __init__(self) -> None:
        self._ports = itertools.cycle(PORTS)

    def measure(self, name: str, targets: Sequence[Target], count: int) -> Samples:
        """``count`` conversations, with each of ``targets`` in turn. ``name``: of MEASURES, or NOTHING."""
        before = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        samples: list[int] = []
        failures: Counter[str] = Counter()
        talks = _WAYS[name](self, targets)
        try:
            for client, target, converse in itertools.islice(talks, count):
                try:
                    started = time.perf_counter_ns()
                    converse(client, target)
                    samples.append(time.perf_counter_ns() - started)
                except OSError as error:
                    client.close()  # an answer that comes too late is none to the next question
                    failures[error_name(error)] += 1
                    if failures.total() == _ENOUGH_FAILURES:
                        break
        except OSError as error:  # of a connection that was to be kept
            failures[error_name(error)] += 1
        finally:
            talks.close()
        after = resource.getrusage(resource.RUSAGE_THREAD).ru_nivcsw
        return Samples(samples, dict(failures), after - before)

    def stream(self) -> socket.socket:
        """It ends by a reset: else ports would rest in TIME_WAIT for a minute, until there is none left."""
        client = self.bound(socket.SOCK_STREAM)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return client

    def datagrams(self) -> socket.socket:
        return self.bound(socket.SOCK_DGRAM)

    def bound(self, kind: socket.SocketKind) -> socket.socket:
        """Its time-outs are the kernel's: Python's would make three system calls out of one."""
        client = socket.socket(socket.AF_INET, kind)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _PATIENCE)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _PATIENCE)
        while True:
            try:
                client.bind(("0.0.0.0", next(self._ports)))  # noqa: S104
                return client
            except OSError as error:
                if error.errno != errno.EADDRINUSE:  # else a reset may be on its way yet
                    client.close()
                    raise


def _connect(caller: Caller, targets: Sequence[Target]) -> Talks:
    for target in itertools.cycle(targets):
        with caller.stream() as client:
            yield client, target, socket.socket.connect


def _request(caller: Caller, targets: Sequence[Target]) -> Talks:
    for target in itertools.cycle(targets):
        with caller.stream() as client:
            yield client, target, _connect_and_ask


def _kept(caller: Caller, targets: Sequence[Target]) -> Talks:
    """All on one connection, until one fails."""
    while True:
        with caller.stream() as client:
            client.connect(targets[0])
            for _ in range(_SETTLES):
                _ask(client, targets[0])
            while client.fileno() >= 0:
                yield client, targets[0], _ask


def _udp(caller: Caller, targets: Sequence[Target]) -> Talks:
    """A socket for each question, as resolvers do it: each is a flow of its own."""
    for target in itertools.cycle(targets):
        with caller.datagrams() as client:
            yield client, target, _connect_and_ask


def _nothing(caller: Caller, targets: Sequence[Target]) -> Talks:
    for target in itertools.cycle(targets):
        with caller.stream() as client:
            yield client, target, _call_for_nothing


def _connect_and_ask(client: socket.socket, target: Target) -> None:
    client.connect(target)
    client.send(_REQUEST)
    _expect(client.recv(len(_REQUEST)))


def _ask(client: socket.socket, _: Target) -> None:
    client.send(_REQUEST)
    _expect(client.recv(len(_REQUEST)))


def _expect(answer: bytes) -> None:
    if answer != _REQUEST:
        raise ConnectionError(errno.EPROTO, "another answer than was asked for")


def _call_for_nothing(_client: socket.socket, _target: Target) -> None:
    os.getppid()


def error_name(error: OSError) -> str:
    """Such as ``ECONNREFUSED``."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


NOTHING = "nothing"
"""What the client itself costs: the clock, and a system call that does nothing."""
MEASURES = {
    "connect": "TCP connect",
    "request": "connect, request, response",
    "kept": "request, response (kept)",
    "udp": "UDP round trip",
}
"""By name, and in words."""
_WAYS: dict[str, Callable[[Caller, Sequence[Target]], Talks]] = {
    "connect": _connect,
    "request": _request,
    "kept": _kept,
    "udp": _udp,
    NOTHING: _nothing,
}
