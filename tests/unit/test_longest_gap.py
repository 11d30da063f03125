"""How long nothing but failures came, by when attempts began."""

import pytest

from bench.restart import longest_gap
from bench.steady import Attempt


@pytest.mark.parametrize(
    ("attempts", "seconds"),
    [
        ([], 0.0),
        ([(0, ""), (9, "")], 0.0),
        ([(0, ""), (1, "E"), (2, "E"), (5, ""), (9, "")], 4.0),
        ([(1, "E"), (2, ""), (5, "E"), (6, "E"), (8, ""), (9, "E"), (10, "")], 3.0),
        ([(0, ""), (3, "E"), (7, "E")], 4.0),
        ([(3, "E")], 0.0),
    ],
    ids=["none", "none failed", "a run", "the longest of three", "to the end", "one alone"],
)
def test_from_the_first_that_failed_to_the_next_that_was_answered(
    attempts: list[tuple[int, str]], seconds: float
) -> None:
    assert longest_gap([Attempt(at * 10**9, error) for at, error in attempts]) == pytest.approx(seconds)
