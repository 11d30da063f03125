"""What a part of one contender has measured so far, and the Figures that this makes.

There is no floor here, and nothing is measured in rounds that others share. So each sample stands for itself: they are
drawn anew one by one for an interval, which says what another few samples of the same kind would do to the value.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.document import Figure, Unit
from bench.estimate import QUANTILES, Bootstrap, Estimate, Series, median_of

_FINE = 10**9
"""Statistics are of whole numbers."""


class Measure(NamedTuple):
    name: str
    title: str
    unit: Unit
    way: str = ""
    less_is_better: bool = True


class Record:
    def __init__(self, contestant: str) -> None:
        self._contestant = contestant
        self._samples: dict[Measure, list[list[float]]] = {}
        self._failures: dict[Measure, Counter[str]] = {}

    def add(self, measure: Measure, *values: float, start: int = 0) -> None:
        """``start``: of the proxy, or round, from 0; they come in order."""
        rounds = self._samples.setdefault(measure, [])
        rounds += [[] for _ in range(start + 1 - len(rounds))]
        rounds[start] += values

    def add_failures(self, measure: Measure, failures: Mapping[str, int]) -> None:
        self._failures.setdefault(measure, Counter()).update(failures)

    def figures(self) -> list[Figure]:
        return [self._figure(measure, rounds) for measure, rounds in self._samples.items() if any(rounds)]

    def _figure(self, measure: Measure, rounds: list[list[float]]) -> Figure:
        samples = [value for values in rounds for value in values]
        return Figure(
            contestant=self._contestant,
            way=measure.way,
            measure=measure.name,
            title=measure.title,
            unit=measure.unit,
            less_is_better=measure.less_is_better,
            quantiles=_quantiles(samples),
            failures=dict(self._failures.get(measure, {})),
            samples=rounds,
        )


def median(samples: Sequence[float]) -> Estimate:
    return Bootstrap(len(samples)).estimate(median_of(samples))


def _quantiles(samples: list[float]) -> dict[str, Estimate]:
    series = Series([[round(value * _FINE)] for value in samples])
    bootstrap = Bootstrap(len(samples))
    found = {"p50": median(samples)}
    for name, share in QUANTILES.items():
        if name not in found and series.has(share):
            exact = bootstrap.estimate(series.quantile(share))
            found[name] = Estimate(exact.value / _FINE, exact.low / _FINE, exact.high / _FINE)
    if len(samples) > 1:
        most = max(samples)
        found["max"] = Estimate(most, most, most)
    return found
