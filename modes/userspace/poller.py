"""The event loop: epoll, and a tick for what waits for time to pass.

A relay asks no more of a loop than this, and wants to be told when a side it does not read from breaks.
"""

import select
import time
import traceback
from collections.abc import Callable
from typing import TypeVar

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
ONE_OF_US = select.EPOLLEXCLUSIVE
"""With READ: of several processes that wait at one socket, not all are woken. Not to be changed afterwards."""
BROKEN = select.EPOLLERR | select.EPOLLHUP
"""Told whether it is asked for or not."""
_TICK_S = 0.5
_EVENTS = 512

_Told = TypeVar("_Told")


class Poller:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._ticks: list[Callable[[float], None]] = []
        self._stopped = False
        self._failures = 0
        self._last_failure = ""

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """``callback`` is told what happened. If it fails, that is noted, and all else goes on."""
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def change(self, descriptor: int, events: int) -> None:
        self._epoll.modify(descriptor, events)

    def forget(self, descriptor: int) -> None:
        """Before it is closed. One that is not watched is no mistake."""
        if self._callbacks.pop(descriptor, None):
            self._epoll.unregister(descriptor)

    def every_tick(self, callback: Callable[[float], None]) -> None:
        """Told the time, by time.monotonic(), twice a second."""
        self._ticks.append(callback)

    def stop(self) -> None:
        self._stopped = True

    def take_failures(self) -> tuple[int, str]:
        """How many there were since this was last asked, and where the last one came from."""
        taken = self._failures, self._last_failure
        self._failures, self._last_failure = 0, ""
        return taken

    def run(self) -> None:
        next_tick = time.monotonic() + _TICK_S
        while not self._stopped:
            for descriptor, events in self._epoll.poll(max(0.0, next_tick - time.monotonic()), _EVENTS):
                callback = self._callbacks.get(descriptor)
                if callback is not None:  # else it was closed for what happened before it in this round
                    self._call(callback, events)
            if (now := time.monotonic()) >= next_tick:
                next_tick = now + _TICK_S
                for callback_of_time in self._ticks:
                    self._call(callback_of_time, now)

    def _call(self, callback: Callable[[_Told], None], what: _Told) -> None:
        try:
            callback(what)
        except Exception as error:
            self._failures += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            self._last_failure = f"{type(error).__name__}: {error} ({place.name}, line {place.lineno})"
