"""What churn takes out of a load."""

import pytest

from bench import synthetic
from bench.churn import Churn


@pytest.mark.parametrize(("services", "changing"), [(1, 1), (99, 99), (150, 100), (1000, 100)])
def test_all_of_the_load_stays_and_a_part_can_be_changed_one_by_one(services: int, changing: int) -> None:
    load = synthetic.load(services, 2)
    pieces = Churn(load).load
    assert len(pieces) == 1 + changing
    assert all(len(objects) == 1 for name, objects in pieces.items() if name != "load")
    put = [(one["kind"], one["metadata"]["name"]) for objects in pieces.values() for one in objects]
    assert sorted(put) == sorted((one["kind"], one["metadata"]["name"]) for one in load)


def test_what_changes_is_spread_over_the_load() -> None:
    names = list(Churn(synthetic.load(1000, 2)).load)
    assert (names[1], names[2], names[-1]) == ("churn-svc-0-1", "churn-svc-10-1", "churn-svc-990-1")
