"""What a measurement in rounds says, and how sure that is.

Samples of one round have much in common (a neighbour on the machine, a warm cache), so not samples but rounds are drawn
anew: an interval is where 95 % of 1,000 such draws fall (percentile bootstrap). Everything is computed from the same
draws, and ratios round by round, so that what slows a whole round down cancels out.
"""

import random
import statistics
from array import array
from collections.abc import Callable, Sequence
from functools import cached_property

import msgspec

_DRAWS = 1000
_OUTSIDE = 0.025
"""The share of draws on either side of an interval."""
_BEYOND = 5
"""So many samples must lie beyond a quantile to say anything of it."""
_EPSILON = 1e-6
FEWEST_ROUNDS = 10
"""With fewer, an interval is not believed."""

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
"""By name: the share of samples that are not above it."""

Rounds = Sequence[int]
"""Which rounds a statistic is to be of, by number, some of them several times."""


class Estimate(msgspec.Struct, frozen=True):
    value: float
    low: float
    high: float


class Bootstrap:
    def __init__(self, rounds: int, seed: int = 1) -> None:
        """``seed``: of the draws. The same samples always have the same intervals."""
        draws = random.Random(seed)
        self._all = range(rounds)
        self._draws = [draws.choices(self._all, k=rounds) for _ in range(_DRAWS)]

    def estimate(self, statistic: Callable[[Rounds], float]) -> Estimate:
        drawn = sorted(statistic(rounds) for rounds in self._draws)
        outside = int(_OUTSIDE * _DRAWS)
        return Estimate(statistic(self._all), drawn[outside], drawn[-1 - outside])


class Series:
    """The samples of one thing that was measured, round by round."""

    def __init__(self, rounds: Sequence[Sequence[int]]) -> None:
        self._rounds = [array("q", sorted(samples)) for samples in rounds]

    def has(self, share: float) -> bool:
        """Whether there are enough samples for that quantile; not if any round has none."""
        return all(self._rounds) and sum(map(len, self._rounds)) * (1 - share) >= _BEYOND - _EPSILON

    def holds_in_rounds(self, share: float) -> bool:
        """Whether each round has samples enough for that quantile by itself."""
        return min(map(len, self._rounds)) * (1 - share) >= _BEYOND - _EPSILON

    def of_each_round(self, share: float) -> list[int]:
        """The quantile of each round by itself."""
        return [samples[_rank(share, len(samples))] for samples in self._rounds]

    def quantile(self, share: float) -> Callable[[Rounds], float]:
        """The median over rounds of what each says; what a round can't say, of all their samples together."""
        if self.holds_in_rounds(share):
            return median_of(self.of_each_round(share))
        return lambda rounds: self._of_all(share, rounds)

    def ratio(self, to: "Series", share: float) -> Callable[[Rounds], float]:
        """Of the same quantiles, round by round where a round says it. ``to`` has the same rounds."""
        if self.holds_in_rounds(share) and to.holds_in_rounds(share):
            pairs = zip(self.of_each_round(share), to.of_each_round(share), strict=True)
            return median_of([one / other for one, other in pairs])
        return lambda rounds: self._of_all(share, rounds) / to._of_all(share, rounds)

    def _of_all(self, share: float, rounds: Rounds) -> float:
        """Walks down from the largest sample to the one of that rank."""
        times = [0] * len(self._rounds)
        for number in rounds:
            times[number] += 1
        count = sum(len(self._rounds[number]) for number in rounds)
        left = count - _rank(share, count)
        for sample, number in zip(*self._descending, strict=True):
            left -= times[number]
            if left <= 0:
                return sample
        raise ValueError("there are no samples")

    @cached_property
    def _descending(self) -> "tuple[array[int], array[int]]":
        """All samples, and the number of the round that each is of."""
        pairs = ((sample, number) for number, samples in enumerate(self._rounds) for sample in samples)
        every = sorted(pairs, reverse=True)
        return array("q", [sample for sample, _ in every]), array("q", [number for _, number in every])


def resolution(control: Estimate) -> float:
    """What chance does in a run, as a share: as far from 1 as the interval of the control's ratio reaches."""
    return max(control.high, 1 / control.low) - 1


def is_told_apart(ratio: Estimate, resolution: float) -> bool:
    """Whether it is another than 1 by more than chance: the whole interval is beyond what the control's reaches."""
    return ratio.low > 1 + resolution or ratio.high < 1 / (1 + resolution)


def _rank(share: float, count: int) -> int:
    """Which of so many samples in order is the quantile, from 0."""
    return min(count - 1, int(share * count + _EPSILON))


def median_of(values: Sequence[float]) -> Callable[[Rounds], float]:
    """Of one value for each round."""
    return lambda rounds: statistics.median([values[number] for number in rounds])
