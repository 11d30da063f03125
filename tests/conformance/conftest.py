import shlex
from collections.abc import Iterator

import pytest

from tests.conformance.cluster import OURS, Candidate, Cluster


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "own: what pyproxy alone promises; not asked of --proxy-command")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--proxy-command"):
        skip = pytest.mark.skip(reason="a promise of pyproxy's own")
        for item in items:
            if item.get_closest_marker("own"):
                item.add_marker(skip)


@pytest.fixture(scope="session")
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--mode"))


@pytest.fixture(scope="session")
def candidate(request: pytest.FixtureRequest, mode: str) -> Candidate:
    command, flavour = (request.config.getoption(name) for name in ("--proxy-command", "--iptables"))
    return Candidate(mode, tuple(shlex.split(command)) if command else OURS, flavour)


@pytest.fixture(scope="session")
def cluster(candidate: Candidate) -> Iterator[Cluster]:
    """One for all tests: each uses services of its own."""
    with Cluster(candidate, syncPeriod="1s", minSyncPeriod="5ms") as running:
        yield running


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers of services that no other test has."""
    return iter(range(1, 250))


@pytest.fixture
def number(numbers: Iterator[int]) -> int:
    return next(numbers)
