"""Who hears of what the controller does: metrics, status, conntrack, health-check ports."""

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from pyproxy.objects import Event
from pyproxy.table import ModeError, RouteId, Table


@dataclass(frozen=True, slots=True)
class Sync:
    """One that reached the kernel."""

    before: Table
    now: Table
    changed: AbstractSet[RouteId] | None
    """Which routes differ; None: all may. Empty if what came made no difference."""
    seconds: float
    """From planning to the kernel."""


class Observer:
    """Called in the controller's thread, which waits: no call may take long. Override what is of interest."""

    def took_in(self, events: list[Event]) -> None:
        """These are in the store now."""

    def syncing(self) -> None:
        """The mode is about to write: until `synced` or `failed` the kernel may be as it was or as it will be."""

    def synced(self, sync: Sync) -> None:
        """The kernel is as the table says."""

    def verified(self) -> None:
        """The kernel was compared with the table, whatever came of it; every sync period while nothing else is due."""

    def failed(self, reason: ModeError) -> None:
        """A sync changed nothing and will be tried again."""
