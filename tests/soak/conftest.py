from collections.abc import Iterator

import pytest

from tests.conformance.cluster import Candidate, Cluster


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """Of the mode that --mode names."""
    mode, flavour = (request.config.getoption(name) for name in ("--mode", "--iptables"))
    with Cluster(Candidate(str(mode), iptables=flavour), syncPeriod="5s", minSyncPeriod="5ms") as running:
        yield running
