"""Samples of `bench latency` as an Outcome: figures, findings, and what the reader has to know about them."""

import itertools
import statistics
from collections.abc import Iterator

import msgspec

from bench.comparison import visibility
from bench.document import Figure, Finding, Outcome
from bench.latency_figures import LatencyFigures
from bench.latency_result import LatencyResult
from bench.measure import MEASURES
from bench.measured import WAYS, Cell
from bench.place import where
from bench.scenario import size

SCENARIO = "latency"


def key(result: LatencyResult) -> str:
    return f"{SCENARIO}, {size(result.services, result.endpoints)}"


def outcome(result: LatencyResult, relaying: frozenset[str], *, complete: bool) -> Outcome:
    """``relaying``: as for LatencyFigures. Without a complete round there are no figures. Takes seconds: intervals."""
    about = Outcome(
        key=key(result),
        scenario=SCENARIO,
        services=result.services,
        endpoints=result.endpoints,
        complete=complete,
        rounds=result.rounds,
        failed=result.failed,
        load=result.load,
    )
    if not result.rounds:
        return about
    figures = LatencyFigures(result, relaying)
    findings = [
        Finding(
            way=way.name,
            measure=measure,
            resolution=figures.comparison(way.name, measure).resolution,
            fastest=figures.fastest(way.name, measure),
            rivals=figures.rivals(way.name, measure),
        )
        for way, measure in itertools.product(WAYS, MEASURES)
    ]
    return msgspec.structs.replace(
        about, figures=list(_figures(figures)), findings=findings, remarks=list(_remarks(figures))
    )


def _figures(figures: LatencyFigures) -> Iterator[Figure]:
    result = figures.result
    for way, (measure, words) in itertools.product(WAYS, MEASURES.items()):
        for name in result.contestants:
            cell = Cell(name, way.name, measure)
            if found := figures.cells.get(cell):
                yield Figure(
                    contestant=name,
                    way=way.name,
                    measure=measure,
                    title=f"{way.words}: {words}",
                    unit="ns",
                    quantiles=found.quantiles_ns,
                    ratios=found.ratios,
                    differs=found.differs,
                    failures=dict(result.failures[cell]),
                    samples=[list(samples) for samples in result.samples[cell]],
                )


def _remarks(figures: LatencyFigures) -> Iterator[str]:
    result = figures.result
    spent = f"of each time {statistics.median(result.client_ns) / 1000:.2f} µs are the client's own"
    yield f"{where()}; {spent}; it was preempted {result.preempted} times."
    titles = {
        f"{way.words}, {words}": figures.comparison(way.name, measure)
        for way, (measure, words) in itertools.product(WAYS, MEASURES.items())
    }
    yield visibility(titles, result.rounds)
    if relaying := figures.relaying_here:
        yield f"In mode {', '.join(relaying)} connect() ends at this node's relay: it is no rival there."
