"""Who takes part in a measurement: a lab of its own, and in it a proxy, or none."""

import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.contender import Proxy
from bench.feed import Feed, put_node
from bench.lab import Host, Lab
from bench.sentinel import Sentinel
from bench.subject import Subject, last_words

FLOOR = "floor"
"""In its lab no proxy ever ran: what all others are held against."""
CONTROL = "control"
"""Another such lab. It differs from the floor by chance alone, so it shows how much chance does."""
PATIENCE_S = 600.0
"""For a proxy that has all of it to do: kube-proxy takes some minutes for the iptables rules of 10,000 Services."""
_QUIET = ("--sync-period", "1h")
"""A proxy that reads the kernel back meanwhile would be somebody else's p99."""
_PAUSE_S = 0.002


class NotServing(Exception):
    """The proxy ended, or did not get there. The message has the end of its log."""


class Contestant:
    """Use as a context manager: all are up at once, and gone afterwards."""

    def __init__(self, name: str, contender: Proxy | None = None, patience_s: float = PATIENCE_S) -> None:
        """Without a ``contender`` there is no proxy. ``patience_s``: what it has for each change at most."""
        self.name = name
        self.has_proxy = contender is not None
        self._contender = contender
        self._patience_s = patience_s
        self._stack = ExitStack()
        self._feed: Feed | None = None
        self._log: IO[bytes] | None = None
        self._sentinel: Sentinel | None = None
        self._subject: Subject | None = None
        self.lab = Lab(contender.iptables if contender else None)

    def __enter__(self) -> Self:
        self._stack.enter_context(self.lab)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """``name``: client, node, or of a pod."""
        return self.lab.host(name)

    def serve(self, objects: list[dict[str, Any]]) -> None:
        """Start the proxy, if there is one, and wait until all of these, of IPv4, are in the kernel.

        When it serves the sentinel for the first time, it is in the midst of its first sync, or past it. So a change
        that is written only then, and served, was part of another: the first is done. Raises NotServing.
        """
        if self._contender is None:
            return
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._log = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        self._feed = self._stack.enter_context(self._contender.feed(self.lab, folder))
        self._sentinel = Sentinel(self.lab, self._feed)
        put_node(self._feed)
        self.put("objects", objects)
        self._stack.callback(self.stop)
        self.start()
        self.settle()

    def put(self, name: str, objects: list[dict[str, Any]]) -> None:
        """As `Feed.put`."""
        assert self._feed is not None
        self._feed.put(name, objects)

    def start(self) -> float:
        """The proxy, which is not running. Seconds until it served what was written last before. Raises NotServing."""
        assert self._contender is not None and self._feed is not None
        assert self._sentinel is not None and self._log is not None
        self._sentinel.move()
        command = self._contender.command(self.lab, self._feed, *_QUIET)
        started = time.perf_counter()
        self._subject = Subject(self.lab, command, self._log)
        self._wait()
        return time.perf_counter() - started

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """As `Subject.stop`."""
        return self._subject.stop(number) if self._subject else 0

    def settle(self) -> None:
        """Wait until all that was written so far is served. Raises NotServing."""
        assert self._sentinel is not None
        self._sentinel.move()
        self._wait()

    def check(self) -> None:
        """Raises NotServing if the proxy has ended."""
        if self._subject and not self._subject.is_alive:
            raise NotServing(f"the proxy ended; its log: {self._last_words}")

    def _wait(self) -> None:
        assert self._sentinel is not None
        end = time.monotonic() + self._patience_s
        while not self._sentinel.is_served():
            self.check()
            if time.monotonic() > end:
                raise NotServing(f"the proxy did not get there in {self._patience_s:g} s; its log: {self._last_words}")
            time.sleep(_PAUSE_S)

    @property
    def _last_words(self) -> str:
        return last_words(self._log) if self._log else ""
