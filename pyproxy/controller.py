"""The loop: take what sources deliver, plan, sync, verify, and try again when the kernel says no."""

import logging
import random
import resource
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from pyproxy.host import HostOptions
from pyproxy.objects import Event, Key
from pyproxy.observer import Observer, Sync
from pyproxy.planner import Planner
from pyproxy.problem import Problem
from pyproxy.store import Store
from pyproxy.table import Host, Mode, ModeError, RouteId, Table, Watches

log = logging.getLogger("pyproxy")

_LONGEST_RETRY_S = 30.0
_SHARE_OF_VERIFYING = 0.05
"""Of one core, at most, however large the cluster. To wait for a lock or for the kernel takes nothing of it."""
_BETWEEN_REPAIRS_S = 1.0
"""At least, of what is lost again and again."""
_MOST_LOGGED = 10


@dataclass(frozen=True, slots=True)
class Pace:
    """KubeProxyConfiguration syncPeriod and minSyncPeriod, in seconds."""

    sync_period: float = 30.0
    min_sync_period: float = 0.1
    first_retry: float = 0.4
    """After a failed sync; doubled with each further one, give or take half."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What may change while it runs."""

    host: HostOptions
    pace: Pace


class Controller:
    """Owns store, planner and mode; only `run`'s thread touches them."""

    def __init__(
        self,
        store: Store,
        planner: Planner,
        mode: Mode,
        pace: Pace,
        observers: tuple[Observer, ...],
        report: Callable[[Problem], None],
    ) -> None:
        """``report`` is told of each new problem of an object."""
        self._store = store
        self._planner = planner
        self._mode = mode
        self._pace = pace
        self._observers = observers
        self._report = report
        self._inbox: SimpleQueue[list[Event] | Settings | None] = SimpleQueue()
        self._arrivals: deque[float] = deque()  # when each message of the inbox came
        self._oldest: float | None = None  # when the oldest change came that was taken in and is not in the kernel
        self._stopped = False
        self._has_everything = False  # at least one delivery came: a source's first one is complete
        self._written = Table({}, Host())
        self._pending: set[RouteId] | None = None  # what differs from the kernel; None: everything may
        self._failures = 0
        self._next_sync = 0.0
        self._next_verify = float("inf")
        self._reported: Mapping[Key, tuple[Problem, ...]] = {}
        self._orphaned: frozenset[Key] = frozenset()  # at the last verification, and those of them that were told
        self._told: frozenset[Key] = frozenset()
        self._verified = 0.0  # when that was done last
        self._is_damaged = False  # as the mode heard
        if isinstance(mode, Watches):
            mode.watch(self._lost)

    def deliver(self, events: list[Event]) -> None:
        """From any thread: one consistent batch. The first one makes the state complete."""
        self._put(events)

    def change(self, settings: Settings) -> None:
        """From any thread: go on with other settings."""
        self._put(settings)

    @property
    def pending_since(self) -> float | None:
        """From any thread: since when, by time.monotonic(), the oldest change waits to reach the kernel."""
        oldest = self._oldest
        if oldest is not None:
            return oldest
        try:
            return self._arrivals[0]
        except IndexError:
            return None

    @property
    def problems(self) -> Mapping[Key, tuple[Problem, ...]]:
        """From any thread: what of services can't be obeyed. Replaced whole, never changed."""
        return self._reported

    def _lost(self) -> None:
        """From any thread: do not wait for the next verification."""
        self._is_damaged = True
        self._inbox.put(None)

    def _put(self, message: list[Event] | Settings) -> None:
        self._arrivals.append(time.monotonic())
        self._inbox.put(message)

    def stop(self) -> None:
        """From a signal handler or any thread: end `run`, leaving the kernel as it is."""
        self._stopped = True
        self._inbox.put(None)

    def run(self) -> None:
        while not self._stopped:
            self._take_in()
            now = time.monotonic()
            if self._is_damaged:
                self._is_damaged = False
                self._next_verify = min(self._next_verify, max(now, self._verified + _BETWEEN_REPAIRS_S))
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
            message = self._inbox.get(timeout=wait)
            while message is not None:
                self._obey(message)
                message = self._inbox.get_nowait()
        except Empty:
            pass

    def _obey(self, message: list[Event] | Settings) -> None:
        if isinstance(message, Settings):
            self._planner.options, self._pace = message.host, message.pace
            if self._next_verify != float("inf"):
                self._next_verify = min(self._next_verify, time.monotonic() + message.pace.sync_period)
            self._store.touch()
        else:
            self._store.apply(message)
            self._has_everything = True
            for observer in self._observers:
                observer.took_in(message)
        if self._has_everything and self._oldest is None:
            self._oldest = self._arrivals[0]
        self._arrivals.popleft()
        if not self._has_work:
            self._announce(Sync(self._written, self._written, frozenset(), 0.0))

    def _sync(self) -> None:
        started = time.monotonic()
        table, changed = self._planner.plan()
        self._report_problems()
        self._pending = None if changed is None or self._pending is None else self._pending | changed
        if self._pending is not None and not self._pending:
            self._announce(Sync(table, table, frozenset(), time.monotonic() - started))
            return
        for observer in self._observers:
            observer.syncing()
        try:
            self._mode.sync(table, self._pending)
        except ModeError as error:
            self._failures += 1
            wait = min(_LONGEST_RETRY_S, self._pace.first_retry * 2 ** min(self._failures - 1, 10))
            wait *= random.uniform(0.5, 1.5)  # noqa: S311
            log.error("sync failed", extra={"reason": error, "tries": self._failures, "retry_in_s": round(wait, 1)})
            self._pending = None  # whatever the kernel holds now, all of it will be as it must
            for observer in self._observers:
                observer.failed(error)
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
        self._report_problems()
        self._announce(Sync(before, table, changed, now - started))

    def _announce(self, sync: Sync) -> None:
        self._oldest = None
        for observer in self._observers:
            observer.synced(sync)

    def _verify(self) -> None:
        self._report_orphans()
        started, used = time.monotonic(), _cpu_s()
        try:
            drift = self._mode.verify()
        except ModeError as error:
            log.error("could not verify", extra={"reason": error})
            drift = []
            self._repair()
        self._verified = time.monotonic()
        rest = (_cpu_s() - used) / _SHARE_OF_VERIFYING
        self._next_verify = self._verified + max(self._pace.sync_period, rest)
        log.debug("verified", extra={"drift": len(drift), "ms": _milliseconds(self._verified - started)})
        for found in drift[:_MOST_LOGGED]:
            log.warning("drift", extra={"route": found.route or "-", "what": found.what})
        if drift:
            log.warning("the kernel differs from the table; repairing", extra={"drift": len(drift)})
            self._repair()
        self._report_problems()
        for observer in self._observers:
            observer.verified()

    def _repair(self) -> None:
        """Write everything anew; until then it counts as a change that waits."""
        self._pending = None
        self._oldest = self._oldest or time.monotonic()

    def _report_orphans(self) -> None:
        """Slices come before their service and go after it, but not for as long as lies between two verifications."""
        lasting = self._planner.orphaned & self._orphaned
        for key in sorted(lasting - self._told)[:_MOST_LOGGED]:
            log.warning("there are endpoint slices, but no such service", extra={"service": key})
        self._orphaned, self._told = frozenset(self._planner.orphaned), frozenset(lasting)

    def _report_problems(self) -> None:
        """Of the plan, and of what the kernel could not be made to serve: say what is new, once."""
        now = dict(self._planner.problems)
        for route_id, reason in self._mode.shortfalls().items():
            key = Key(route_id.namespace, route_id.name)
            problem = Problem("Service", key, f"spec.ports[{route_id.port_name}]", reason, "Conflict")
            now[key] = (*now.get(key, ()), problem)
        if now == self._reported:
            return
        for key, problems in now.items():
            for problem in problems:
                if problem not in self._reported.get(key, ()):
                    self._report(problem)
        self._reported = now


def _cpu_s() -> float:
    """Of this thread, and of the children of this process that have ended: nft(8) and its like."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.thread_time() + children.ru_utime + children.ru_stime


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
