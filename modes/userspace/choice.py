"""Which endpoint a new connection gets: any at random, or the one that the client had before."""

import random
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from modes.userspace.protocol import Endpoint

MOST_CLIENTS = 262144
"""That are remembered; one more makes the oldest forgotten."""


@dataclass(slots=True)
class _Memory:
    endpoint: Endpoint
    until: float


class Chooser:
    def __init__(self) -> None:
        self._clients: dict[tuple[str, str], _Memory] = {}
        """By route and client's address, in the order in which they were last used."""

    def choose(
        self,
        pool: Sequence[Endpoint],
        route: str,
        client: str,
        sticky_seconds: int,
        failed: Collection[Endpoint] = (),
    ) -> Endpoint | None:
        """None if none is left but those that have failed this very connection."""
        usable = [endpoint for endpoint in pool if endpoint not in failed] if failed else pool
        if not usable:
            return None
        if not sticky_seconds:
            return random.choice(usable)  # noqa: S311
        now = time.monotonic()
        memory = self._clients.pop((route, client), None)
        if memory is None or memory.until < now or memory.endpoint not in usable:
            memory = _Memory(random.choice(usable), 0.0)  # noqa: S311
        memory.until = now + sticky_seconds
        self._clients[route, client] = memory
        if len(self._clients) > MOST_CLIENTS:
            del self._clients[next(iter(self._clients))]
        return memory.endpoint

    def forget(self, now: float) -> None:
        """Those whose time is over, as far as they are the oldest."""
        while self._clients:
            oldest = next(iter(self._clients))
            if self._clients[oldest].until >= now:
                return
            del self._clients[oldest]
