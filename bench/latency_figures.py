"""What the samples of `bench latency` say, and what they leave open."""

from dataclasses import dataclass
from functools import cached_property

from bench.contestant import CONTROL, FLOOR
from bench.estimate import FEWEST_ROUNDS, Bootstrap, Estimate, Series, is_told_apart, resolution
from bench.latency_result import Cell, LatencyResult

SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p99.9": 0.999}
_SEED = 1
"""Of the bootstrap: the same samples always have the same intervals."""


@dataclass(frozen=True, slots=True)
class Figure:
    """Of one cell."""

    quantiles_ns: dict[str, Estimate]
    """By the names in SHARES, those for which there are samples enough."""
    ratios: dict[str, Estimate]
    """To the floor's."""
    differs: bool
    """Whether the p50 is told apart from the floor's."""


class LatencyFigures:
    def __init__(self, result: LatencyResult, relaying: frozenset[str]) -> None:
        """``relaying``: who answers connect() at the node itself, before any endpoint is asked."""
        self.result = result
        self._relaying = relaying
        self._bootstrap = Bootstrap(result.rounds, _SEED)
        self._series = {cell: Series(rounds) for cell, rounds in result.samples.items()}

    @property
    def modes(self) -> list[str]:
        return [name for name in self.result.contestants if name not in (FLOOR, CONTROL)]

    @property
    def relaying_here(self) -> list[str]:
        return [name for name in self.modes if name in self._relaying]

    @cached_property
    def cells(self) -> dict[Cell, Figure]:
        return {cell: self._figure(cell) for cell in self._series}

    @property
    def says_something(self) -> bool:
        """Whether there are rounds enough to tell anything apart."""
        return self.result.rounds >= FEWEST_ROUNDS

    def resolution(self, way: str, measure: str) -> float | None:
        """What chance does to a ratio of p50, as a share; None if that is not known."""
        control = self._ratio(Cell(CONTROL, way, measure), Cell(FLOOR, way, measure), "p50")
        return None if control is None or not self.says_something else resolution(control)

    def fastest(self, way: str, measure: str) -> list[str]:
        """The mode with the smallest p50, and after it those that are not told apart from it; none if nothing is told.

        A connection that a relay has taken is no connection to an endpoint yet, and does not compete.
        """
        chance = self.resolution(way, measure)
        runners = {name: Cell(name, way, measure) for name in self.modes}
        if measure == "connect" and way != "bystander":
            runners = {name: cell for name, cell in runners.items() if name not in self._relaying}
        ratios = {name: self.cells[cell].ratios["p50"].value for name, cell in runners.items() if self._has(cell)}
        if chance is None or not ratios:
            return []
        best, *others = sorted(ratios, key=ratios.__getitem__)
        between = {name: self._ratio(runners[name], runners[best], "p50") for name in others}
        return [best, *(name for name, ratio in between.items() if ratio and not is_told_apart(ratio, chance))]

    def _has(self, cell: Cell) -> bool:
        return cell in self.cells and "p50" in self.cells[cell].ratios

    def _figure(self, cell: Cell) -> Figure:
        series = self._series[cell]
        quantiles = {
            name: self._bootstrap.estimate(series.quantile(share))
            for name, share in SHARES.items()
            if series.has(share)
        }
        floor = cell._replace(contestant=FLOOR)
        ratios = {name: self._ratio(cell, floor, name) for name in SHARES if cell.contestant != FLOOR}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        chance = self.resolution(cell.way, cell.measure)
        differs = chance is not None and "p50" in known and is_told_apart(known["p50"], chance)
        return Figure(quantiles, known, differs)

    def _ratio(self, cell: Cell, to: Cell, name: str) -> Estimate | None:
        series, other, share = self._series.get(cell), self._series.get(to), SHARES[name]
        if series is None or other is None or not (series.has(share) and other.has(share)):
            return None
        return self._bootstrap.estimate(series.ratio(other, share))
