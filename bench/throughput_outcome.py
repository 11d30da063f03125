"""Readings of `bench throughput` as an Outcome: figures, findings, and what the reader has to know about them."""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from bench.comparison import Comparison, visibility
from bench.contestant import CONTROL, FLOOR
from bench.document import Figure, Finding, Outcome
from bench.environment import Load
from bench.estimate import FEWEST_ROUNDS, Estimate
from bench.measured import Cell, Way
from bench.place import where
from bench.record import median
from bench.scenario import size
from bench.traffic import Measure

SCENARIO = "throughput"


@dataclass(slots=True)
class ThroughputResult:
    services: int
    endpoints: int
    contestants: list[str]
    """Whose figures there are."""
    failed: dict[str, str]
    """Who fell out, and why."""
    ways: Sequence[Way]
    measures: list[Measure]
    lacking: dict[tuple[str, ...], list[str]]
    """By programs that are not installed: what is not measured without them, in words."""
    programs: Sequence[str] = ()
    """Those that are, with their versions."""
    rounds: int = 0
    """That are complete."""
    samples: dict[Cell, list[list[float]]] = field(default_factory=dict)
    """By round: a value, which of a rate is nought if nothing got through, or none."""
    failures: dict[Cell, Counter[str]] = field(default_factory=dict)
    """What came to nothing, by error; counted at the first measure of a reading."""
    load: Load | None = None
    """Since the warm-up; known with the first round."""


def key(result: ThroughputResult) -> str:
    return f"{SCENARIO}, {size(result.services, result.endpoints)}"


def outcome(result: ThroughputResult, seconds: int, *, complete: bool) -> Outcome:
    """``seconds``: of a reading. Without a complete round there are no figures."""
    lacking = [
        f"Not measured, for want of {' and '.join(programs)} (apt install {' '.join(programs)}): {'; '.join(words)}."
        for programs, words in result.lacking.items()
    ]
    about = Outcome(
        key=key(result),
        scenario=SCENARIO,
        services=result.services,
        endpoints=result.endpoints,
        complete=complete,
        rounds=result.rounds,
        failed=result.failed,
        remarks=lacking,
        load=result.load,
    )
    if not result.rounds:
        return about
    compared = {
        (way, measure): _comparison(result, way, measure)
        for way, measure in itertools.product(result.ways, result.measures)
        if measure.is_compared
    }
    modes = [name for name in result.contestants if name not in (FLOOR, CONTROL)]
    findings = [
        Finding(way=way.name, measure=measure.name, resolution=one.resolution, fastest=one.fastest(modes), rivals=modes)
        for (way, measure), one in compared.items()
        if one.ratio(CONTROL, FLOOR)
    ]
    titles = {f"{way.words}, {measure.words}": one for (way, measure), one in compared.items()}
    spent = (
        f"{where()}; by {', '.join(result.programs)}; each reading took {seconds} s. "
        "A relay's own CPU time is not in that of client and server."
    )
    remarks = [spent, visibility(titles, result.rounds), *lacking]
    return msgspec.structs.replace(about, figures=list(_figures(result, compared)), findings=findings, remarks=remarks)


def _comparison(result: ThroughputResult, way: Way, measure: Measure) -> Comparison:
    def ratio(name: str, to: str) -> Estimate | None:
        """Of readings of the same round; None if too many rounds lack one, or have nought to divide by."""
        ours, theirs = (result.samples.get(Cell(one, way.name, measure.name), []) for one in (name, to))
        ratios = [one[0] / other[0] for one, other in zip(ours, theirs, strict=False) if one and other and other[0]]
        return median(ratios) if len(ratios) >= min(FEWEST_ROUNDS, result.rounds) else None

    return Comparison(ratio, result.rounds, less_is_better=measure.less_is_better)


def _figures(result: ThroughputResult, compared: Mapping[tuple[Way, Measure], Comparison]) -> Iterator[Figure]:
    for way, measure, name in itertools.product(result.ways, result.measures, result.contestants):
        cell = Cell(name, way.name, measure.name)
        samples = result.samples.get(cell, [])
        values = [*itertools.chain(*samples)]
        if not values:
            continue
        comparison = compared.get((way, measure))
        ratio = comparison.ratio(name, FLOOR) if comparison and name != FLOOR else None
        yield Figure(
            contestant=name,
            way=way.name,
            measure=measure.name,
            title=f"{way.words}: {measure.words}",
            unit=measure.unit,
            less_is_better=measure.less_is_better,
            quantiles={"p50": median(values)},
            ratios={"p50": ratio} if ratio else {},
            differs=comparison.differs(name) if comparison else None,
            failures=dict(result.failures.get(cell, {})),
            samples=samples,
        )
