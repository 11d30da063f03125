"""What modes before left is removed after the first sync, whatever one of them says to that."""

import logging
from collections.abc import Iterator
from threading import Event as Signal

import pytest

from pyproxy import modes, takeover
from pyproxy.observer import Sync
from pyproxy.table import Host, InUse, ModeError, Table
from tests.unit.test_command import PaperMode

EMPTY = Table({}, Host())
BUSY = ModeError("the kernel is busy")
SYNCED = Sync(EMPTY, EMPTY, None, 0.1)


class Left:
    """A mode of before, which fails as often as it is told to."""

    def __init__(self, *failures: ModeError) -> None:
        self.asked = 0
        self.done = Signal()
        self._failures = list(failures)

    def retire(self, successor: object) -> Iterator[str]:
        self.asked += 1
        yield f"table {self.asked}"
        if self._failures:
            raise self._failures.pop()
        self.done.set()


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> dict[str, Left]:
    found = {
        "a": Left(),
        "b": Left(*[BUSY] * 2),
        "c": Left(*[BUSY] * 4, *[ModeError("another")] * 5),
        "d": Left(*[InUse("a flow")] * 5),
    }
    monkeypatch.setattr(modes, "names", lambda: sorted(found))
    monkeypatch.setattr(modes, "load", found.__getitem__)
    monkeypatch.setattr(takeover, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(takeover, "_LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(takeover, "_LONGEST_WAIT_FOR_CONNECTIONS_S", 0.02)
    return found


def test_all_others_are_cleaned_up_after_once(left: dict[str, Left], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    observer = takeover.Takeover(PaperMode("a"))
    observer.syncing()
    for _ in range(3):
        observer.synced(SYNCED)
    assert all(left[name].done.wait(5) for name in "bcd")
    assert {name: one.asked for name, one in left.items()} == {"a": 0, "b": 3, "c": 10, "d": 6}
    complaints = [record for record in caplog.records if record.message == "what another mode left can't be removed"]
    warned = [record.__dict__["mode"] for record in complaints if record.levelname == "WARNING"]
    assert sorted(warned) == ["b", "c", "c"]  # once a reason; connections that are open yet are none
    told = [record.__dict__["removed"] for record in caplog.records if record.message == "took over"]
    assert told.count("table 1") == 3
    assert "table 6" in told


def test_nothing_is_removed_before_the_first_sync(left: dict[str, Left]) -> None:
    observer = takeover.Takeover(PaperMode("a"))
    observer.syncing()
    observer.failed(ModeError("no"))
    assert not left["d"].done.wait(0.2)
