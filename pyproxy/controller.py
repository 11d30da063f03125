"""The loop: take what sources deliver, plan, sync, verify, and try again when the kernel says no."""

import logging
import random
import time
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from pyproxy.objects import Event, Key
from pyproxy.planner import Planner
from pyproxy.problem import Problem
from pyproxy.store import Store
from pyproxy.table import Host, Mode, ModeError, RouteId, Table

log = logging.getLogger("pyproxy")

_LONGEST_RETRY_S = 30.0
_SHARE_OF_VERIFYING = 0.05
"""Of one core, at most, however large the cluster."""
_MOST_LOGGED = 10


@dataclass(frozen=True, slots=True)
class Pace:
    """KubeProxyConfiguration syncPeriod and minSyncPeriod, in seconds."""

    sync_period: float = 30.0
    min_sync_period: float = 0.1
    first_retry: float = 0.4
    """After a failed sync; doubled with each further one, give or take half."""


Observer = Callable[[Table, Table, AbstractSet[RouteId] | None], None]
"""Called after each sync with the table before, the one now in the kernel, and which routes differ (None: all may).

Must return at once.
"""


class Controller:
    """Owns store, planner and mode; only `run`'s thread touches them."""

    def __init__(self, store: Store, planner: Planner, mode: Mode, pace: Pace, on_sync: Observer) -> None:
        self._store = store
        self._planner = planner
        self._mode = mode
        self._pace = pace
        self._on_sync = on_sync
        self._inbox: SimpleQueue[list[Event] | None] = SimpleQueue()
        self._stopped = False
        self._has_everything = False  # at least one delivery came: a source's first one is complete
        self._written = Table({}, Host())
        self._pending: set[RouteId] | None = None  # what differs from the kernel; None: everything may
        self._failures = 0
        self._next_sync = 0.0
        self._next_verify = float("inf")
        self._reported: Mapping[Key, tuple[Problem, ...]] = {}

    def deliver(self, events: list[Event]) -> None:
        """From any thread: one consistent batch. The first one makes the state complete."""
        self._inbox.put(events)

    def stop(self) -> None:
        """From a signal handler or any thread: end `run`, leaving the kernel as it is."""
        self._stopped = True
        self._inbox.put(None)

    def run(self) -> None:
        while not self._stopped:
            self._take_in()
            now = time.monotonic()
            if self._stopped or not self._has_everything:
                continue
            if self._has_work and now >= self._next_sync:
                self._sync()
            elif now >= self._next_verify:
                self._verify()

    @property
    def _has_work(self) -> bool:
        return self._store.is_dirty or self._pending is None or bool(self._pending)

    def _take_in(self) -> None:
        """Wait until something is due or comes, and take in all that is there."""
        due = min(self._next_sync if self._has_work else float("inf"), self._next_verify)
        wait = None if not self._has_everything or due == float("inf") else max(0.0, due - time.monotonic())
        try:
            events = self._inbox.get(timeout=wait)
            while events is not None:
                self._store.apply(events)
                self._has_everything = True
                events = self._inbox.get_nowait()
        except Empty:
            pass

    def _sync(self) -> None:
        started = time.monotonic()
        table, changed = self._planner.plan()
        self._report_problems()
        self._pending = None if changed is None or self._pending is None else self._pending | changed
        if self._pending is not None and not self._pending:
            return
        try:
            self._mode.sync(table, self._pending)
        except ModeError as error:
            self._failures += 1
            wait = min(_LONGEST_RETRY_S, self._pace.first_retry * 2 ** (self._failures - 1))
            wait *= random.uniform(0.5, 1.5)  # noqa: S311
            log.error("sync failed", extra={"reason": error, "tries": self._failures, "retry_in_s": round(wait, 1)})
            self._pending = None  # whatever the kernel holds now, all of it will be as it must
            self._next_sync = time.monotonic() + wait
            return
        now = time.monotonic()
        count = len(table.routes if self._pending is None else self._pending)
        log.info("synced", extra={"changed": count, "routes": len(table.routes), "ms": _milliseconds(now - started)})
        if self._pending is None:
            self._next_verify = now + self._pace.sync_period
        changed, self._pending = self._pending, set()
        self._failures = 0
        self._next_sync = started + self._pace.min_sync_period
        before, self._written = self._written, table
        self._on_sync(before, table, changed)

    def _verify(self) -> None:
        started = time.monotonic()
        try:
            drift = self._mode.verify()
        except ModeError as error:
            log.error("could not verify", extra={"reason": error})
            drift = []
            self._pending = None
        took = time.monotonic() - started
        self._next_verify = time.monotonic() + max(self._pace.sync_period, took / _SHARE_OF_VERIFYING)
        log.debug("verified", extra={"drift": len(drift), "ms": _milliseconds(took)})
        for found in drift[:_MOST_LOGGED]:
            log.warning("drift", extra={"route": found.route or "-", "what": found.what})
        if drift:
            log.warning("the kernel differs from the table; repairing", extra={"drift": len(drift)})
            self._pending = None

    def _report_problems(self) -> None:
        """Say what is new, once."""
        now = dict(self._planner.problems)
        if now == self._reported:
            return
        for key, problems in now.items():
            for problem in problems:
                if problem not in self._reported.get(key, ()):
                    log.warning("not obeyed", extra={"object": f"{problem.kind} {problem.key}", "reason": problem})
        self._reported = now


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
