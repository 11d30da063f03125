"""What the samples of `bench latency` say, and what they leave open."""

import itertools
from dataclasses import dataclass
from functools import cached_property

from bench.comparison import Comparison
from bench.contestant import CONTROL, FLOOR
from bench.estimate import QUANTILES, Bootstrap, Estimate, Series
from bench.latency_result import LatencyResult
from bench.measure import MEASURES
from bench.measured import WAYS, Cell


@dataclass(frozen=True, slots=True)
class Figure:
    """Of one cell."""

    quantiles_ns: dict[str, Estimate]
    """By the names in QUANTILES, those for which there are samples enough."""
    ratios: dict[str, Estimate]
    """To the floor's."""
    differs: bool | None
    """Whether the p50 is told apart from the floor's; None if nothing can be said."""


class LatencyFigures:
    def __init__(self, result: LatencyResult, relaying: frozenset[str]) -> None:
        """``relaying``: who answers connect() at the node itself, before any endpoint is asked."""
        self.result = result
        self._relaying = relaying
        self._bootstrap = Bootstrap(result.rounds)
        # Who fell out in the midst has fewer rounds than the others.
        there = {cell: rounds for cell, rounds in result.samples.items() if cell.contestant in result.contestants}
        self._series = {cell: Series(rounds) for cell, rounds in there.items()}
        pairs = itertools.product((way.name for way in WAYS), MEASURES)
        self._comparisons = {(way, measure): self._comparison(way, measure) for way, measure in pairs}

    @property
    def modes(self) -> list[str]:
        return [name for name in self.result.contestants if name not in (FLOOR, CONTROL)]

    @property
    def relaying_here(self) -> list[str]:
        return [name for name in self.modes if name in self._relaying]

    @cached_property
    def cells(self) -> dict[Cell, Figure]:
        return {cell: self._figure(cell) for cell in self._series}

    def comparison(self, way: str, measure: str) -> Comparison:
        return self._comparisons[way, measure]

    def fastest(self, way: str, measure: str) -> list[str]:
        """The rival with the smallest p50, and after it those that are not told apart from it; none if nothing is
        told."""
        return self.comparison(way, measure).fastest(self.rivals(way, measure))

    def rivals(self, way: str, measure: str) -> list[str]:
        """The modes that compete: a connection that a relay has taken is no connection to an endpoint yet."""
        relays_compete = measure != "connect" or way == "bystander"
        return [name for name in self.modes if relays_compete or name not in self._relaying]

    def _comparison(self, way: str, measure: str) -> Comparison:
        def ratio(name: str, to: str) -> Estimate | None:
            return self._ratio(Cell(name, way, measure), Cell(to, way, measure), "p50")

        return Comparison(ratio, self.result.rounds)

    def _figure(self, cell: Cell) -> Figure:
        series = self._series[cell]
        quantiles = {
            name: self._bootstrap.estimate(series.quantile(share))
            for name, share in QUANTILES.items()
            if series.has(share)
        }
        floor = cell._replace(contestant=FLOOR)
        ratios = {name: self._ratio(cell, floor, name) for name in QUANTILES if cell.contestant != FLOOR}
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        return Figure(quantiles, known, self.comparison(cell.way, cell.measure).differs(cell.contestant))

    def _ratio(self, cell: Cell, to: Cell, name: str) -> Estimate | None:
        series, other, share = self._series.get(cell), self._series.get(to), QUANTILES[name]
        if series is None or other is None or not (series.has(share) and other.has(share)):
            return None
        return self._bootstrap.estimate(series.ratio(other, share))
