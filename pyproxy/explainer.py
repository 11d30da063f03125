"""Who knows enough to explain what becomes of a packet: an observer of what came in and what the kernel was given."""

from collections.abc import Callable, Collection, Mapping

from pyproxy.explain import Known, explain
from pyproxy.explanation import Destination, Explanation
from pyproxy.kernel.own_address import is_own
from pyproxy.objects import Delete, Event, Key, Service
from pyproxy.observer import Observer, Sync
from pyproxy.problem import Problem
from pyproxy.table import Table


class Explainer(Observer):
    """Told by the controller's thread, asked by others; it keeps references to what is there anyway."""

    def __init__(self, mode: str, *, relays: bool = False, connects_sockets: bool = False) -> None:
        """``relays``: Mode.ends_connections; ``connects_sockets``: as there."""
        self._mode = mode
        self._relays = relays
        self._connects_sockets = connects_sockets
        self._table: Table | None = None
        self._services: dict[Key, Service] = {}
        self.problems: Callable[[], Mapping[Key, tuple[Problem, ...]]] = dict
        """See Controller.problems."""
        self.refused: Callable[[], Collection[Problem]] = list
        """What is wrong with objects that the source did not let in."""

    def took_in(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Delete):
                if event.kind is Service:
                    self._services.pop(event.key, None)
            elif isinstance(event.object, Service):
                self._services[event.object.key] = event.object

    def synced(self, sync: Sync) -> None:
        self._table = sync.now

    def explain(self, to: Destination) -> Explanation | None:
        """None before the first sync."""
        table = self._table
        if table is None:
            return None
        services = list(self._services.values())  # in one step, while the controller's thread may change them
        problems, refused = self.problems(), self.refused()
        known = Known(
            self._mode,
            table,
            services,
            problems,
            refused,
            is_own(to.address),
            relays=self._relays,
            connects_sockets=self._connects_sockets,
        )
        return explain(to, known)
