"""A contender in a lab of its own, from the start of its process on, with all that changes under the bench's control.

Nothing here depends on what the proxy says: it serves when the canary answers, and has done its work when it rests.
"""

import re
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bench.canary import Canary
from bench.contender import Proxy
from bench.contestant import NotServing
from bench.feed import Feed, Object, put_node
from bench.kernel_memory import kernel_mib
from bench.lab import Lab
from bench.processes import Memory, Processes
from bench.subject import Subject, last_words, logged


class FirstSync(NamedTuple):
    seconds: float
    """From the start of the process to the first packet that the canary answers."""
    cpu_s: float
    """Until it rests."""
    list_cpu_s: float | None
    """Of it listing and decoding all objects, if they come over the API and the proxy says so, as pyproxy does."""
    memory: Memory
    peak_mib: float
    kernel_mib: float
    """That the kernel holds more than before."""


class Trial:
    """Use as a context manager: what it started and made is gone afterwards."""

    lab: Lab
    feed: Feed
    canary: Canary
    subject: Subject
    processes: Processes

    def __init__(self, contender: Proxy, patience_s: float) -> None:
        self._contender = contender
        self._patience_s = patience_s
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        try:
            self.lab = self._stack.enter_context(Lab(self._contender.iptables))
            folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
            self._log = self._stack.enter_context(tempfile.TemporaryFile())
            self.feed = self._stack.enter_context(self._contender.feed(self.lab, folder))
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def start(self, load: dict[str, list[Object]]) -> FirstSync:
        """Raises NotServing. ``load``: what is to be served besides the canary, by the names of the feed."""
        for name, objects in load.items():
            self.feed.put(name, objects)
        put_node(self.feed)
        self.canary = Canary(self.lab, self.feed)
        self.canary.put()
        command = self._contender.command(self.lab, self.feed)
        before_mib = kernel_mib()
        started = time.perf_counter()
        self.subject = Subject(self.lab, command, self._log)
        self._stack.callback(self.subject.stop)
        self.processes = self._stack.enter_context(Processes(self.subject.pid))
        seconds = self.wait(started)
        try:
            self.processes.wait_for_rest(self._patience_s)
        except TimeoutError:
            raise self._failed(f"the proxy served, but did not come to rest in {self._patience_s:g} s") from None
        self.check(started)
        listing = re.findall(r"listed .*cpu_ms=([0-9.]+)", logged(self._log))
        return FirstSync(
            seconds,
            self.processes.cpu_s(),
            sum(map(float, listing)) / 1000 if listing else None,
            self.processes.memory(),
            self.processes.peak_mib(),
            max(0.0, kernel_mib() - before_mib),
        )

    def wait(self, started: float) -> float:
        """Seconds from ``started`` until the canary is served. Raises NotServing."""
        try:
            return self.canary.wait(self.subject, started, self._patience_s)
        except TimeoutError:
            self.check(started)
            raise

    def check(self, started: float) -> None:
        """Raises NotServing if the proxy has ended, or what began at ``started`` takes too long."""
        if not self.subject.is_alive:
            raise self._failed("the proxy ended")
        if time.perf_counter() - started > self._patience_s:
            raise self._failed(f"the proxy did not get there in {self._patience_s:g} s")

    def _failed(self, what: str) -> NotServing:
        return NotServing(f"{what}; its log: {last_words(self._log)}")
