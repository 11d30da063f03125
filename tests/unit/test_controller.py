from collections.abc import Set as AbstractSet
from threading import Event, Thread

import pytest

from pyproxy.admission import admit
from pyproxy.controller import Controller, Pace
from pyproxy.host import HostOptions
from pyproxy.objects import Delete, Key, Metadata, Service, ServicePort, ServiceSpec, Upsert
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import Drift, ModeError, RouteId, Table

NEVER = 3600.0


class Recorder:
    """A mode that takes notes instead of writing to a kernel, and fails as often as it is told to."""

    name = "recorder"
    tracks_connections = False

    def __init__(self, failures: int = 0, drifts: int = 0) -> None:
        self.syncs: list[tuple[int, AbstractSet[RouteId] | None]] = []
        self.verified = 0
        self._failures = failures
        self._drifts = drifts
        self.happened = Event()

    def probe(self) -> str | None:
        return None

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        self.syncs.append((len(table.routes), changed))
        self.happened.set()
        if len(self.syncs) <= self._failures:
            raise ModeError("the kernel said no")

    def verify(self) -> list[Drift]:
        self.verified += 1
        self.happened.set()
        return [Drift(None, "gone")] if self.verified <= self._drifts else []

    def cleanup(self) -> list[str]:
        return []

    def wait_for(self, syncs: int = 0, verified: int = 0) -> None:
        while len(self.syncs) < syncs or self.verified < verified:
            assert self.happened.wait(10), f"{len(self.syncs)} syncs, {self.verified} verifications"
            self.happened.clear()


class Running:
    """A controller in a thread."""

    def __init__(self, mode: Recorder, pace: Pace) -> None:
        store = Store("node-1")
        self.observed: list[tuple[int, int]] = []
        self.controller = Controller(
            store,
            Planner(store, HostOptions("node-1")),
            mode,
            pace,
            lambda before, now, _: self.observed.append((len(before.routes), len(now.routes))),
        )
        self._thread = Thread(target=self.controller.run)

    def __enter__(self) -> Controller:
        self._thread.start()
        return self.controller

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
    assert caplog.text.count("sync failed") == failures


def test_drift_is_repaired_in_full_and_found_again_if_it_comes_back() -> None:
    mode = Recorder(drifts=2)
    with Running(mode, Pace(sync_period=0.01, min_sync_period=0)) as controller:
        controller.deliver([_service(1)])
        mode.wait_for(syncs=3, verified=4)
    assert [changed for _, changed in mode.syncs] == [None, None, None]


def test_a_problem_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    mode = Recorder()
    with Running(mode, Pace(sync_period=NEVER, min_sync_period=0)) as controller:
        controller.deliver([_service(1), _service(1, name="twin")])
        mode.wait_for(syncs=1)
        controller.deliver([_service(2)])
        mode.wait_for(syncs=2)
    assert caplog.text.count("not obeyed") == 1
