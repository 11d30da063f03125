"""Processes beside the one that measures, which may end at any time: that is told, and nothing stays open."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.echo import Echo
from bench.place import Place
from bench.prober import Prober
from bench.steady import Steady

_NO_CPU = 1 << 16


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = _open()
    yield
    assert _open() == before


def test_who_measures_says_that_it_has_ended() -> None:
    with Prober(0) as prober:
        prober._process.kill()
        prober._process.wait()
        for _ in range(2):
            with pytest.raises(ChildProcessError, match=r"bench\.prober has ended; what it said is above"):
                prober.measure(Place("/", None), "connect", [("127.0.0.1", 1)], 1)


def test_who_does_not_start_says_so() -> None:
    with pytest.raises(ChildProcessError, match=r"bench\.echo has ended"), Echo(_NO_CPU, []):
        pytest.fail("there is no such CPU")
    with Steady(_NO_CPU, []) as clients, pytest.raises(ChildProcessError, match=r"bench\.steady has ended"):
        clients.take()


def _open() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}
