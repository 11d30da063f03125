import time
from collections.abc import Set as AbstractSet
from threading import Event as Signal
from threading import Thread

import pytest

from pyproxy.admission import admit
from pyproxy.controller import Controller, Pace, Settings
from pyproxy.host import HostOptions
from pyproxy.objects import Delete, Event, Key, Metadata, Service, ServicePort, ServiceSpec, Upsert
from pyproxy.observer import Observer, Sync
from pyproxy.planner import Planner
from pyproxy.problem import Problem
from pyproxy.store import Store
from pyproxy.table import IP, Drift, Family, Mode, ModeError, Route, RouteId, Table, Transport

NEVER = 3600.0


class Recorder:
    """A mode that takes notes instead of writing to a kernel, and fails as often as it is told to."""

    name = "recorder"
    tracks_connections = False
    ends_connections = False
    connects_sockets = False

    def __init__(self, failures: int = 0, drifts: int = 0) -> None:
        self.syncs: list[tuple[int, AbstractSet[RouteId] | None]] = []
        self.verified = 0
        self._failures = failures
        self.unreadable = False
        self.waits_s = 0.0
        self._drifts = drifts
        self.happened = Signal()

    def probe(self) -> str | None:
        return None

    def objection(self, route: Route) -> str | None:
        return None

    short: dict[RouteId, str] = {}  # noqa: RUF012

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        self.syncs.append((len(table.routes), changed))
        self.happened.set()
        if len(self.syncs) <= self._failures:
            raise ModeError("the kernel said no")

    def fail_from_now_on(self) -> None:
        self._failures = 10**6

    def shortfalls(self) -> dict[RouteId, str]:
        return self.short

    def verify(self) -> list[Drift]:
        time.sleep(self.waits_s)
        self.verified += 1
        self.happened.set()
        if self.unreadable:
            raise ModeError("the kernel can't be read")
        return [Drift(None, "gone")] if self.verified <= self._drifts else []

    def cleanup(self) -> list[str]:
        return []

    def retire(self, successor: Mode) -> list[str]:
        raise AssertionError

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        raise AssertionError

    def wait_for(self, syncs: int = 0, verified: int = 0) -> None:
        while len(self.syncs) < syncs or self.verified < verified:
            assert self.happened.wait(10), f"{len(self.syncs)} syncs, {self.verified} verifications"
            self.happened.clear()


class Notes(Observer):
    """Takes down what it hears."""

    def __init__(self) -> None:
        self.synced_: list[Sync] = []
        self.taken = 0
        self.failures = 0
        self.heard: list[str] = []

    def took_in(self, events: list[Event]) -> None:
        self.taken += len(events)

    def syncing(self) -> None:
        self.heard.append("syncing")

    def synced(self, sync: Sync) -> None:
        self.synced_.append(sync)
        self.heard.append("synced")

    def failed(self, reason: ModeError) -> None:
        self.failures += 1
        self.heard.append("failed")


class Running:
    """A controller in a thread."""

    def __init__(self, mode: Recorder, pace: Pace) -> None:
        store = Store("node-1")
        self.notes = Notes()
        self.problems: list[Problem] = []
        self.controller = Controller(
            store,
            Planner(store, HostOptions("node-1"), lambda _: None),
            mode,
            pace,
            (self.notes,),
            self.problems.append,
        )
        self._thread = Thread(target=self.controller.run)

    def __enter__(self) -> Controller:
        self._thread.start()
        return self.controller

    @property
    def observed(self) -> list[tuple[int, int]]:
        """How many routes there were before and after each sync."""
        return [(len(sync.before.routes), len(sync.now.routes)) for sync in self.notes.synced_]

    def __exit__(self, *_: object) -> None:
        self.controller.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()


def _service(number: int, name: str = "") -> Upsert:
    port = ServicePort(port=80, name="http")
    spec = ServiceSpec(ports=(port,), cluster_ips=(f"10.96.{number >> 8}.{number & 255}",))
    return Upsert(admit(Service(Metadata(name or f"svc-{number}", "default"), spec))[0])


def test_nothing_is_written_before_a_source_has_delivered() -> None:
    mode = Recorder()
    with Running(mode, Pace(sync_period=0.01)):
        pass
    assert (mode.syncs, mode.verified) == ([], 0)


def test_the_first_change_goes_out_at_once_and_a_storm_waits_for_its_period() -> None:
    mode = Recorder()
    with Running(mode, Pace(sync_period=NEVER, min_sync_period=NEVER)) as controller:
        controller.deliver([_service(0)])
        mode.wait_for(syncs=1)
        for number in range(1, 2000):
            controller.deliver([_service(number)])
    assert len(mode.syncs) == 1
    assert mode.syncs[0][1] is None


def test_observers_hear_of_each_sync_before_and_after() -> None:
    mode = Recorder(failures=1)
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0, first_retry=0.01))
    with running as controller:
        controller.deliver([_service(0)])
        mode.wait_for(syncs=2)
    assert running.notes.heard == ["syncing", "failed", "syncing", "synced"]


def test_a_storm_is_taken_together_and_the_last_state_wins() -> None:
    mode = Recorder()
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0.2))
    with running as controller:
        controller.deliver([])
        mode.wait_for(syncs=1)
        for number in range(1000):
            controller.deliver([_service(number)])
        controller.deliver([Delete(Service, Key("default", "svc-5"))])
        mode.wait_for(syncs=2)
        while mode.syncs[-1][0] != 999:
            mode.wait_for(syncs=len(mode.syncs) + 1)
    assert len(mode.syncs) < 10
    assert running.observed[0] == (0, 0)
    assert running.observed[-1][1] == 999


def test_only_what_changed_is_named_after_the_first_sync() -> None:
    mode = Recorder()
    with Running(mode, Pace(sync_period=NEVER, min_sync_period=0)) as controller:
        controller.deliver([_service(1), _service(2)])
        mode.wait_for(syncs=1)
        controller.deliver([_service(2), _service(3)])
        mode.wait_for(syncs=2)
    changed = mode.syncs[1][1]
    assert changed is not None
    assert {route.name for route in changed} == {"svc-3"}


def test_what_changes_nothing_is_not_written() -> None:
    mode = Recorder()
    with Running(mode, Pace(sync_period=NEVER, min_sync_period=0)) as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1)
        controller.deliver([_service(1)])
        controller.deliver([_service(2)])
        mode.wait_for(syncs=2)
    assert len(mode.syncs) == 2


@pytest.mark.parametrize("failures", [1, 3])
def test_a_failed_sync_is_tried_again_in_full(failures: int, caplog: pytest.LogCaptureFixture) -> None:
    mode = Recorder(failures)
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0, first_retry=0.01))
    with running as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=failures + 1)
        controller.deliver([_service(2)])
        mode.wait_for(syncs=failures + 2)
    assert [changed for _, changed in mode.syncs[: failures + 1]] == [None] * (failures + 1)
    assert mode.syncs[-1][1] is not None
    assert running.observed == [(0, 1), (1, 2)]
    assert caplog.text.count("sync failed") == running.notes.failures == failures


def test_drift_is_repaired_in_full_and_found_again_if_it_comes_back() -> None:
    mode = Recorder(drifts=2)
    with Running(mode, Pace(sync_period=0.01, min_sync_period=0)) as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=3, verified=4)
    assert [changed for _, changed in mode.syncs] == [None, None, None]


def test_a_verification_that_had_to_wait_does_not_put_off_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyproxy.controller._SHARE_OF_VERIFYING", 0.001)
    mode = Recorder()
    mode.waits_s = 0.1  # a hundred seconds, if that counted
    with Running(mode, Pace(sync_period=0.01, min_sync_period=0)) as controller:
        controller.deliver([_service(1)])
        mode.wait_for(verified=3)


def test_a_problem_is_said_once() -> None:
    mode = Recorder()
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0))
    with running as controller:
        controller.deliver([_service(1), _service(1, name="twin")])
        mode.wait_for(syncs=1)
        controller.deliver([_service(2)])
        mode.wait_for(syncs=2)
    assert [problem.code for problem in running.problems] == ["Conflict"]
    assert list(controller.problems.values()) == [tuple(running.problems)]


def test_a_change_is_pending_from_its_delivery_until_the_kernel_has_it() -> None:
    mode = Recorder(failures=1)
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0, first_retry=0.05))
    assert running.controller.pending_since is None
    before = time.monotonic()
    running.controller.deliver([_service(1)])
    delivered = running.controller.pending_since
    assert delivered is not None
    assert delivered >= before
    with running:
        mode.wait_for(syncs=1)
        assert running.controller.pending_since == delivered  # the first one failed
        mode.wait_for(syncs=2)
        running.controller.deliver([_service(1)])  # nothing new
        running.controller.deliver([_service(2)])
        mode.wait_for(syncs=3)
    assert running.controller.pending_since is None
    assert running.notes.taken == 3


def test_other_settings_take_effect_at_once_and_in_full() -> None:
    mode = Recorder()
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0))
    with running as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1)
        controller.change(Settings(HostOptions("node-1", masquerade_all=True), Pace(sync_period=0.01)))
        mode.wait_for(syncs=2, verified=1)
    assert mode.syncs[1] == (1, None)
    assert running.notes.synced_[-1].now.host.masquerade_all


def test_settings_before_the_first_delivery_are_no_change_that_waits() -> None:
    mode = Recorder()
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0))
    with running as controller:
        controller.change(Settings(HostOptions("node-1"), Pace()))
        while controller._arrivals:
            time.sleep(0.001)
        assert controller.pending_since is None
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1)


def test_a_kernel_that_can_not_be_read_counts_as_a_change_that_waits() -> None:
    mode = Recorder()
    mode.unreadable = True
    running = Running(mode, Pace(sync_period=0.01, min_sync_period=0, first_retry=NEVER))
    with running as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1)
        mode.fail_from_now_on()
        mode.wait_for(syncs=2)
        assert controller.pending_since is not None


def test_a_thousand_failures_are_not_too_many() -> None:
    mode = Recorder(failures=1200)
    with Running(mode, Pace(sync_period=NEVER, min_sync_period=0, first_retry=0.0)) as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1201)


def test_a_shorter_sync_period_takes_effect_at_once() -> None:
    mode = Recorder()
    with Running(mode, Pace(sync_period=NEVER, min_sync_period=0)) as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1)
        controller.change(Settings(HostOptions("node-1"), Pace(sync_period=0.01)))
        mode.wait_for(verified=2)


def test_what_makes_no_difference_is_done_with() -> None:
    mode = Recorder()
    running = Running(mode, Pace(sync_period=NEVER, min_sync_period=0))
    with running as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=1)
        controller.deliver([_service(1)])
        while len(running.notes.synced_) < 2:
            time.sleep(0.001)
    assert running.notes.synced_[1].changed == frozenset()


def test_what_a_mode_falls_short_of_is_told_once_for_as_long_as_it_lasts() -> None:
    mode = Recorder()
    taken = {RouteId("default", "svc-1", "http", family): "port 80 is taken" for family in Family}
    mode.short = dict(taken)
    running = Running(mode, Pace(NEVER, 0.0))
    with running as controller:
        for number in (1, 2):
            controller.deliver([_service(number)])
            mode.wait_for(syncs=number)
        assert [one.reason for one in controller.problems[Key("default", "svc-1")]] == ["port 80 is taken"] * 2
        mode.short = {}
        controller.deliver([_service(3)])
        mode.wait_for(syncs=3)
        mode.short = dict(list(taken.items())[:1])
        controller.deliver([_service(4)])
        mode.wait_for(syncs=4)
    told = [(problem.key.name, problem.reason, problem.field) for problem in running.problems]
    assert told == [("svc-1", "port 80 is taken", "spec.ports[http]")] * 3
