"""Services, EndpointSlices and this Node from the API server.

Nothing is delivered before all three are complete, this Node included: a proxy that knew half of a cluster would take
the other half away.
"""

import gc
import logging
from collections.abc import Callable
from threading import Event as Signal
from threading import Lock, Thread

from pyproxy import reflector
from pyproxy.api import Api
from pyproxy.connection import Connection
from pyproxy.objects import Event, Node, Upsert
from pyproxy.problem import Problem
from pyproxy.reflector import Reflector, Sink

log = logging.getLogger("pyproxy.api")

_FIRST_REMINDER_S, _LAST_REMINDER_S = 2.0, 60.0


class KubernetesSource:
    def __init__(
        self, api: Api, node_name: str, deliver: Callable[[list[Event]], None], report: Callable[[Problem], None]
    ) -> None:
        self._api = api
        self._node_name = node_name
        self._deliver = deliver
        self._lock = Lock()
        self._held: list[Event] = []
        self._missing = {"Service", "EndpointSlice", "Node"}
        self._complete = Signal()
        resources = [
            reflector.services(),
            reflector.endpoint_slices(),
            reflector.node(node_name),
        ]
        self._reflectors = [Reflector(api, one, self._sink(one.kind.__name__), report) for one in resources]

    @property
    def connections(self) -> list[Connection]:
        return [one.connection for one in self._reflectors]

    @property
    def problems(self) -> list[Problem]:
        """From any thread: what is wrong with objects as the server has them now."""
        return [problem for one in self._reflectors for problem in one.problems]

    def run(self) -> None:
        """Start the reflectors' threads, and say what is waited for until everything is there."""
        for one in self._reflectors:
            Thread(target=one.run, name=one.connection.kind, daemon=True).start()
        reminder = _FIRST_REMINDER_S
        while not self._complete.wait(reminder):
            reminder = min(_LAST_REMINDER_S, reminder * 2)
            gc.collect()  # nobody else does before the first sync, and each failed request leaves some
            states = {one.kind: one.error or one.state for one in self.connections}
            if self._missing == {"Node"} and all(one.lists and not one.error for one in self.connections):
                reason = f"the API server knows no node {self._node_name!r}; is --hostname-override right?"
            else:
                reason = "; ".join(f"{kind}: {states[kind]}" for kind in sorted(self._missing))
            log.warning("waiting for the cluster's state", extra={"server": self._api.server, "reason": reason})

    def _sink(self, kind: str) -> Sink:
        def take(events: list[Event], complete: bool) -> None:
            with self._lock:
                if not self._missing:
                    self._deliver(events)
                    return
                self._held += events
                if (complete and kind != "Node") or any(_is_node(event) for event in events):
                    self._missing.discard(kind)
                if not self._missing:
                    self._deliver(self._held)
                    self._held = []
                    self._complete.set()

        return take


def _is_node(event: Event) -> bool:
    return isinstance(event, Upsert) and isinstance(event.object, Node)
