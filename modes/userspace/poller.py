"""The event loop: epoll, and a tick for what waits for time to pass.

A relay asks no more of a loop than this, and wants to be told when a side it does not read from breaks.
"""

import select
import time
from collections.abc import Callable

READ, WRITE = select.EPOLLIN, select.EPOLLOUT
BROKEN = select.EPOLLERR | select.EPOLLHUP
"""Told whether it is asked for or not."""
_TICK_S = 0.5
_EVENTS = 512


class Poller:
    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._ticks: list[Callable[[float], None]] = []
        self._stopped = False

    def watch(self, descriptor: int, events: int, callback: Callable[[int], None]) -> None:
        """``callback`` is told what happened."""
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

    def run(self) -> None:
        next_tick = time.monotonic() + _TICK_S
        while not self._stopped:
            for descriptor, events in self._epoll.poll(max(0.0, next_tick - time.monotonic()), _EVENTS):
                callback = self._callbacks.get(descriptor)
                if callback is not None:  # else it was closed for what happened before it in this round
                    callback(events)
            if (now := time.monotonic()) >= next_tick:
                next_tick = now + _TICK_S
                for callback_of_time in self._ticks:
                    callback_of_time(now)
