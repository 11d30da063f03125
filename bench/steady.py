"""Clients that begin a conversation every few milliseconds, whatever became of those before.

A client that waits for an answer before it asks again asks least when most fails, and so finds hardly any failure. Here
each attempt is a task of its own. `python -m bench.steady CPU STREAMS`, the latter as JSON: a process that does nothing
else, with a thread for each place and an event loop in each.
"""

import asyncio
import errno
import os
import resource
import socket
import sys
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from typing import Literal

import msgspec

from bench.helper import Helper
from bench.measure import Caller, Target, error_name
from bench.place import Place

PATIENCE_S = 1.0
"""Who has no answer by then failed. It is as long as TCP waits before it asks for a connection a second time."""
_BYTES = 200


class Stream(msgspec.Struct, frozen=True):
    """To a `bench.server`, through a Service or straight."""

    place: Place
    target: Target
    protocol: Literal["TCP", "UDP"]
    every_s: float
    kept: bool = False
    """All on one connection; if that is lost, on another one. Else each on a connection, or socket, of its own."""


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    began_ns: int
    """As time.monotonic_ns() has it."""
    error: str
    """Its name; empty: answered. Of a kept stream it means that the connection is lost."""


class Steady(Helper):
    """The process, for who wants the load. Use as a context manager, inside of that of its places."""

    def __init__(self, cpu: int, streams: Sequence[Stream]) -> None:
        super().__init__("bench.steady", str(cpu), msgspec.json.encode(streams).decode())

    def take(self) -> list[list[Attempt]]:
        """By stream, what was tried since the last time; the outcome of all that has begun is waited for.

        Raises ChildProcessError if the process has ended.
        """
        return msgspec.json.decode(self.exchange(b""), type=list[list[Attempt]])


class _Client:
    """All streams of one place."""

    def __init__(self, place: Place, streams: dict[int, Stream]) -> None:
        self._place, self._streams = place, streams
        self._caller = Caller()
        self._attempts: dict[int, list[Attempt]] = {number: [] for number in streams}
        self._pending: set[asyncio.Task[str]] = set()
        self._loop: Future[asyncio.AbstractEventLoop] = Future()

    def start(self) -> None:
        """Raises OSError if the place can't be entered."""
        threading.Thread(target=self._live, daemon=True).start()
        self._loop.result()

    def take(self) -> dict[int, list[Attempt]]:
        return asyncio.run_coroutine_threadsafe(self._take(), self._loop.result()).result()

    def _live(self) -> None:
        try:
            self._place.enter()
        except OSError as error:
            self._loop.set_exception(error)
        else:
            asyncio.run(self._run())

    async def _run(self) -> None:
        self._loop.set_result(asyncio.get_running_loop())
        async with asyncio.TaskGroup() as group:
            for number, stream in self._streams.items():
                group.create_task((self._keep if stream.kept else self._begin)(number, stream))

    async def _take(self) -> dict[int, list[Attempt]]:
        if begun := self._pending.copy():
            await asyncio.wait(begun)
        taken, self._attempts = self._attempts, {number: [] for number in self._streams}
        return {number: sorted(attempts, key=lambda one: one.began_ns) for number, attempts in taken.items()}

    async def _begin(self, number: int, stream: Stream) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            self._start(self._attempt(number, stream))
            due = max(due + stream.every_s, loop.time())  # what a slow machine made it miss is not made up for
            await asyncio.sleep(due - loop.time())

    def _start(self, attempt: Coroutine[None, None, str]) -> asyncio.Task[str]:
        """Whose outcome `take` waits for."""
        task = asyncio.get_running_loop().create_task(attempt)
        self._pending.add(task)
        task.add_done_callback(self._pending.discard)
        return task

    async def _attempt(self, number: int, stream: Stream, kept: socket.socket | None = None) -> str:
        """Its error. ``kept``: where something is said, instead of on a socket of its own."""
        began, error = time.monotonic_ns(), ""
        try:
            if kept:
                await self._exchange(kept)
            else:
                (await self._answered(stream)).close()
        except OSError as raised:
            error = error_name(raised)
        self._attempts[number].append(Attempt(began, error))
        return error

    async def _keep(self, number: int, stream: Stream) -> None:
        while True:
            try:
                client = await self._answered(stream)
            except OSError:
                await asyncio.sleep(stream.every_s)  # nothing is lost that was not there
                continue
            with client:
                error = ""
                while not error:
                    await asyncio.sleep(stream.every_s)
                    error = await self._start(self._attempt(number, stream, client))

    async def _answered(self, stream: Stream) -> socket.socket:
        """A socket that has had its first answer: of TCP the server's greeting. Raises OSError."""
        client = self._caller.stream() if stream.protocol == "TCP" else self._caller.datagrams()
        try:
            client.setblocking(False)
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_connect(client, stream.target)
                if stream.protocol == "TCP":
                    await _receive(client)
                else:
                    await self._exchange(client)
        except BaseException:
            client.close()
            raise
        return client

    async def _exchange(self, client: socket.socket) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await asyncio.get_running_loop().sock_sendall(client, b"?")
            await _receive(client)


async def _receive(client: socket.socket) -> None:
    if not await asyncio.get_running_loop().sock_recv(client, _BYTES):
        raise ConnectionAbortedError(errno.ECONNABORTED, "closed before any answer")


def main() -> None:
    """A line of attempts for each line of input; ends with its standard input."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # each attempt that nobody answers is a socket
    streams = msgspec.json.decode(sys.argv[2], type=list[Stream])
    clients = [
        _Client(place, {number: stream for number, stream in enumerate(streams) if stream.place == place})
        for place in dict.fromkeys(stream.place for stream in streams)
    ]
    for client in clients:
        client.start()
    for _ in sys.stdin.buffer:
        taken = {number: attempts for client in clients for number, attempts in client.take().items()}
        sys.stdout.buffer.write(msgspec.json.encode([taken[number] for number in range(len(streams))]) + b"\n")
        sys.stdout.buffer.flush()
    os._exit(0)  # past threads that go on for ever


if __name__ == "__main__":
    main()
