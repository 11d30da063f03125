"""The canary: a Service with one endpoint, which is one pod or another, and a client that asks it over and over.

Who answers it shows what is served, whatever the mode: a change has come when the pod that it leads to says its name.
"""

import time

from bench.ask import Answer, exchange, open_socket, reset_at_close
from bench.feed import CANARY, Feed, move_canary, put_canary
from bench.lab import Host, Lab
from bench.subject import Subject

_PODS = ("pod-2", "pod-3")
_PATIENCE_S = 300.0
_POLL_S = 0.02  # a connection attempt that nobody answers
_PAUSE_S = 0.0005


class Canary:
    def __init__(self, lab: Lab, feed: Feed) -> None:
        self._lab = lab
        self._feed = feed
        self._moves = 0

    def put(self) -> None:
        put_canary(self._feed, self._pod.ipv4)

    def move(self) -> None:
        """One object changes: its EndpointSlice, which leads to the other pod now."""
        self._moves += 1
        move_canary(self._feed, self._pod.ipv4)

    def is_served(self) -> bool:
        """Whether the pod that it leads to by now answers one connection."""
        try:
            return connection(self._lab.pods["pod-1"], CANARY[1], _POLL_S).pod == self._pod.name
        except OSError:
            return False  # refused, or nobody there yet

    def wait(self, subject: Subject, started: float, patience_s: float = _PATIENCE_S) -> float:
        """Seconds from ``started`` until it is served. Raises TimeoutError, at once if the proxy has ended."""
        while not self.is_served():
            if not subject.is_alive or time.perf_counter() - started > patience_s:
                raise TimeoutError("the proxy has ended" if not subject.is_alive else "the proxy does not get there")
            time.sleep(_PAUSE_S)
        return time.perf_counter() - started

    @property
    def _pod(self) -> Host:
        return self._lab.pods[_PODS[self._moves % 2]]


def connection(client: Host, address: str, timeout: float) -> Answer:
    """One to port 80, from ``client``, ended by a reset: so many that rest for a minute would use up its ports.

    Raises OSError.
    """
    with open_socket(client, address) as stream:
        reset_at_close(stream)
        stream.settimeout(timeout)
        return exchange(stream, address, 80)
