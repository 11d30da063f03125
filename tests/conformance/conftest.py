from collections.abc import Iterator

import pytest

from tests.conformance.cluster import Cluster


@pytest.fixture(scope="session")
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.config.getoption("--mode"))


@pytest.fixture(scope="session")
def cluster(mode: str) -> Iterator[Cluster]:
    """One for all tests: each uses services of its own."""
    with Cluster(mode, "--sync-period", "1s", "--min-sync-period", "5ms", "-v", "1") as running:
        yield running


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers of services that no other test has."""
    return iter(range(1, 250))


@pytest.fixture
def number(numbers: Iterator[int]) -> int:
    return next(numbers)
