from collections.abc import Iterator

import pytest

from bench.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as built:
        yield built
