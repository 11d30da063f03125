"""Results of the benchmark, made by hand."""

from collections.abc import Mapping, Sequence
from typing import Any

from bench.document import Document, Figure, Finding, Outcome, Unit
from bench.estimate import Estimate

Told = tuple[float, float, float]
"""value, low, high"""


def figure(
    contestant: str,
    value: Told | float,
    ratio: Told | None = None,
    *,
    measure: str = "connect",
    unit: Unit = "ns",
    **more: Any,
) -> Figure:
    """A number without an interval was measured once."""
    value = (value, value, value) if isinstance(value, float | int) else value
    ratios = {"p50": Estimate(*ratio)} if ratio else {}
    title, quantiles = f"the {measure}", {"p50": Estimate(*value)}
    return Figure(
        contestant=contestant, measure=measure, title=title, unit=unit, quantiles=quantiles, ratios=ratios, **more
    )


def outcome(
    figures: Sequence[Figure],
    *,
    chance: float | None = None,
    fastest: Sequence[str] = (),
    key: str = "latency, 10 x 2",
    failed: Mapping[str, str] | None = None,
) -> Outcome:
    """``chance`` and ``fastest`` are of every measure."""
    measures = dict.fromkeys(one.measure for one in figures)
    findings = [Finding(measure=one, resolution=chance, fastest=list(fastest)) for one in measures]
    return Outcome(
        key=key,
        scenario=key.partition(",")[0],
        services=10,
        endpoints=2,
        complete=True,
        figures=list(figures),
        findings=findings,
        failed=dict(failed or {}),
    )


def document(*outcomes: Outcome, method: Any = None, **more: Any) -> Document:
    """``more``: fields of the environment, or ``skipped`` and ``complete``."""
    skipped, complete = more.pop("skipped", {}), more.pop("complete", True)
    environment = {"node": "node-1", "kernel": "6.1", "date": "2026-01-01", "cpu": "some"} | more
    return Document(
        environment=environment, method=method or {}, outcomes=list(outcomes), skipped=skipped, complete=complete
    )
