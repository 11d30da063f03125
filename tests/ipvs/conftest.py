from collections.abc import Iterator

import pytest

from bench.lab import Lab
from modes.ipvs.mode import IpvsMode
from tests.unit.iptables_world import run


@pytest.fixture(scope="session")
def common_lab() -> Iterator[Lab]:
    with Lab("legacy") as built:
        yield built


@pytest.fixture
def lab(common_lab: Lab) -> Iterator[Lab]:
    """On whose node the thread lives."""
    with common_lab.node.namespace.entered():
        try:
            yield common_lab
        finally:
            IpvsMode().cleanup()
            run("ipvsadm", "-C")
