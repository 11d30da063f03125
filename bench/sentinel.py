"""How it is known by packets alone that a proxy has caught up with all that was written, whichever proxy it is.

A Service of its own changes last. Services and EndpointSlices reach a proxy on ways of their own, each in order, so
both change: another port, another pod. Once that pod answers at that port, a sync has come to its end, or is about to,
that began with all that was written before.
"""

import itertools

from bench import synthetic
from bench.ask import ask
from bench.feed import Feed
from bench.lab import NODE_NAME, SERVER_PORT, Lab

_NAME, _ADDRESS = "sentinel", "10.96.0.11"
_PODS = ("pod-3", "pod-4")
_PORTS = range(1000, 50_000)
_ANSWERS_S = 0.05


class Sentinel:
    def __init__(self, lab: Lab, feed: Feed) -> None:
        self._lab, self._feed = lab, feed
        self._next = zip(itertools.cycle(_PORTS), itertools.cycle(_PODS), strict=False)
        self._port, self._pod = 0, ""

    def move(self) -> None:
        self._port, self._pod = next(self._next)
        service = synthetic.service(_NAME, _ADDRESS, self._port)
        endpoints = [(self._lab.pods[self._pod].ipv4, NODE_NAME)]
        self._feed.put(_NAME, [service, synthetic.endpoint_slice(_NAME, endpoints, SERVER_PORT)])

    def is_served(self) -> bool:
        """As it was moved last."""
        try:
            return ask(self._lab.pods["pod-1"], _ADDRESS, self._port, timeout=_ANSWERS_S).pod == self._pod
        except (OSError, ValueError):
            return False  # refused or dropped yet, or a relay had nobody to ask
