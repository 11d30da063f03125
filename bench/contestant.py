"""Who takes part in a measurement: a lab of its own, and in it a proxy, or none."""

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from bench.contender import Contender
from bench.feed import put_node
from bench.lab import Host, Lab
from bench.subject import Subject, logged

FLOOR = "floor"
"""In its lab no proxy ever ran: what all others are held against."""
CONTROL = "control"
"""Another such lab. It differs from the floor by chance alone, so it shows how much chance does."""
_PATIENCE_S = 300.0
_QUIET = ("--sync-period", "1h")
"""A proxy that reads the kernel back meanwhile would be somebody else's p99."""
_LOG_TAIL = 2000


class NotServing(Exception):
    """The proxy ended, or did not get there. The message has the end of its log."""


class Contestant:
    """Use as a context manager: all are up at once, and gone afterwards."""

    def __init__(self, name: str, contender: Contender | None = None) -> None:
        """Without a ``contender`` there is no proxy."""
        self.name = name
        self.has_proxy = contender is not None
        self._contender = contender
        self._stack = ExitStack()
        self._subject: Subject | None = None
        self._log: IO[bytes] | None = None
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

        Raises NotServing.
        """
        if self._contender is None:
            return
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        log = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        feed = self._stack.enter_context(self._contender.feed(self.lab, folder))
        put_node(feed)
        feed.put("objects", objects)
        subject = Subject(self.lab, self._contender.command(self.lab, feed, *_QUIET), log)
        self._stack.callback(subject.stop)
        self._subject, self._log = subject, log
        end = time.monotonic() + _PATIENCE_S
        routes = sum(len(one["spec"]["ports"]) for one in objects if one["kind"] == "Service")
        while f"routes={routes} " not in logged(log):
            self.check()
            if time.monotonic() > end:
                raise NotServing(
                    f"the proxy did not get there in {_PATIENCE_S:g} s; its log: {logged(log)[-_LOG_TAIL:]}"
                )
            time.sleep(0.01)

    def check(self) -> None:
        """Raises NotServing if the proxy has ended."""
        if self._subject and self._log and not self._subject.is_alive:
            raise NotServing(f"the proxy ended; its log: {logged(self._log)[-_LOG_TAIL:]}")
