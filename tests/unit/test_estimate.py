"""The statistics of measurements: what an interval covers, and what is told apart."""

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.estimate import Bootstrap, Estimate, Series, is_told_apart, resolution

_ROUNDS = st.lists(st.lists(st.integers(1, 50), min_size=5, max_size=20), min_size=1, max_size=8)


def test_a_quantile_is_the_median_of_what_rounds_say() -> None:
    series = Series([list(range(10 * number, 10 * number + 20)) for number in (1, 2, 3)])
    assert series.quantile(0.5)(range(3)) == 30
    assert series.quantile(0.5)([0, 0, 1]) == 20


@given(rounds=_ROUNDS, share=st.sampled_from([0.9, 0.99]), data=st.data())
def test_a_quantile_that_no_round_holds_is_of_all_samples_together(
    rounds: list[list[int]], share: float, data: st.DataObject
) -> None:
    drawn = data.draw(st.lists(st.sampled_from(range(len(rounds))), min_size=1, max_size=8))
    together = sorted(sample for number in drawn for sample in rounds[number])
    assert Series(rounds).quantile(share)(drawn) == together[min(len(together) - 1, int(share * len(together) + 1e-6))]


@pytest.mark.parametrize(
    ("rounds", "samples", "share", "has", "in_rounds"),
    [
        (10, 100, 0.5, True, True),
        (10, 100, 0.95, True, True),
        (10, 100, 0.99, True, False),
        (10, 100, 0.999, False, False),
        (50, 100, 0.999, True, False),
        (1, 9, 0.5, False, False),
    ],
)
def test_a_quantile_takes_five_samples_beyond_it(
    rounds: int, samples: int, share: float, has: bool, in_rounds: bool
) -> None:
    series = Series([[1] * samples] * rounds)
    assert series.has(share) is has
    assert series.holds_in_rounds(share) is in_rounds


def test_a_series_with_an_empty_round_says_nothing() -> None:
    assert not Series([[1] * 100, []]).has(0.5)


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_what_slows_a_whole_round_down_cancels_out_of_a_ratio(share: float) -> None:
    """Each round is as slow as it likes, and one thing takes 1.1 times as long as the other in all of them."""
    speeds = [1, 7, 3, 20, 5, 2, 9, 4, 8, 6]
    one = Series([[1100 * speed] * 100 for speed in speeds])
    other = Series([[1000 * speed] * 100 for speed in speeds])
    bootstrap = Bootstrap(len(speeds), 1)
    ratio = bootstrap.estimate(one.ratio(other, share))
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((1.1, 1.1, 1.1))
    alone = bootstrap.estimate(one.quantile(share))
    assert alone.high / alone.low > 2


def test_a_ratio_is_taken_round_by_round() -> None:
    one, other = Series([[100] * 10, [200] * 10, [300] * 10]), Series([[300] * 10, [100] * 10, [200] * 10])
    assert one.ratio(other, 0.5)(range(3)) == 1.5


def test_the_same_samples_have_the_same_interval() -> None:
    series = Series([[random.Random(number).randrange(1000) for _ in range(50)] for number in range(20)])
    first, second = (Bootstrap(20, 1).estimate(series.quantile(0.5)) for _ in range(2))
    assert first == second
    assert first.low <= first.value <= first.high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """Rounds differ by more than samples in a round: an interval that took samples for independent would cover less
    than half of the time."""
    draws = random.Random(4)
    hits, trials = 0, 150
    for _ in range(trials):
        rounds = []
        for _ in range(24):
            level = draws.gauss(1000, 50)
            rounds.append([int(draws.gauss(level, 20)) for _ in range(40)])
        estimate = Bootstrap(24, 1).estimate(Series(rounds).quantile(0.5))
        hits += estimate.low <= 1000 <= estimate.high
    assert 0.88 < hits / trials < 1


def test_an_interval_is_that_of_a_known_distribution() -> None:
    """Of the median of 101 numbers: the order statistics that lie about two standard deviations of a count off it."""
    series = Series([[number] * 10 for number in range(101)])
    estimate = Bootstrap(101, 1).estimate(series.quantile(0.5))
    assert estimate.value == statistics.median(range(101))
    assert estimate.low == pytest.approx(40, abs=3)
    assert estimate.high == pytest.approx(60, abs=3)


@pytest.mark.parametrize(
    ("control", "chance"),
    [((1.0, 0.99, 1.02), 0.02), ((1.0, 0.8, 1.1), 0.25), ((1.05, 1.04, 1.06), 0.06), ((1.0, 1.0, 1.0), 0.0)],
)
def test_chance_is_as_large_as_the_control_says(control: tuple[float, float, float], chance: float) -> None:
    assert resolution(Estimate(*control)) == pytest.approx(chance)


@pytest.mark.parametrize(
    ("ratio", "chance", "told"),
    [
        ((1.10, 1.08, 1.12), 0.02, True),
        ((1.10, 1.01, 1.20), 0.02, False),
        ((1.03, 1.02, 1.04), 0.05, False),
        ((0.90, 0.89, 0.91), 0.02, True),
        ((0.90, 0.80, 1.01), 0.02, False),
        ((0.97, 0.96, 0.98), 0.05, False),
    ],
)
def test_a_difference_is_told_if_it_is_beyond_chance(
    ratio: tuple[float, float, float], chance: float, told: bool
) -> None:
    assert is_told_apart(Estimate(*ratio), chance) is told
