"""Who differs from the floor and who is best, where less is better and where more is."""

import pytest

from bench.comparison import Comparison, visibility
from bench.contestant import CONTROL, FLOOR
from bench.estimate import Estimate

_CONTESTANTS = {FLOOR: 100.0, CONTROL: 101.0, "one": 50.0, "other": 50.5, "third": 80.0}


def _ratio(name: str, to: str) -> Estimate | None:
    """With an interval of ± 1 %."""
    if name not in _CONTESTANTS:
        return None
    value = _CONTESTANTS[name] / _CONTESTANTS[to]
    return Estimate(value, value * 0.99, value * 1.01)


@pytest.mark.parametrize(("less_is_better", "best"), [(True, ["one", "other"]), (False, ["third"])])
def test_the_best_has_the_least_or_the_most(less_is_better: bool, best: list[str]) -> None:
    compared = Comparison(_ratio, 10, less_is_better=less_is_better)
    assert compared.fastest(["third", "other", "one", "absent"]) == best
    assert [compared.differs(name) for name in ("one", CONTROL, FLOOR, "absent")] == [True, False, None, None]


def test_who_can_not_be_compared_to_the_best_is_not_told_apart_from_it() -> None:
    compared = Comparison(lambda name, to: None if to == "one" else _ratio(name, to), 10)
    assert compared.fastest(["third", "one"]) == ["one", "third"]


def test_with_too_few_rounds_nothing_is_told() -> None:
    compared = Comparison(_ratio, 9)
    assert (compared.resolution, compared.fastest(["one"]), compared.differs("one")) == (None, [], None)
    assert visibility({"a title": compared}, 9).startswith("With 9 rounds nothing is told apart")


def test_it_says_how_small_a_difference_is_seen() -> None:
    near = Comparison(lambda name, to: Estimate(1, 0.99, 1.01), 10)
    assert visibility({"near": near, "far": Comparison(_ratio, 10)}, 10).endswith("up to 2.0% here (far).")
