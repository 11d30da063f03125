"""What measurements say, as tables for a terminal: of any scenario, since figures say what they are."""

import itertools
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.contestant import FLOOR
from bench.document import Figure, Outcome, Unit
from bench.estimate import QUANTILES, Estimate

LEGEND = (
    "A ratio is to the floor, a path where no proxy ever ran; in brackets: where 95 % of 1,000 bootstraps over the "
    "rounds fall. ≈: not told apart, from the floor or from each other, by more than chance does, which control shows: "
    "another path without a proxy."
)
_MANY = 3
"""So many names are a number."""
_QUANTILES = (*QUANTILES, "max")


def overview(outcomes: Sequence[Outcome]) -> Table:
    """The finding at one size of one scenario: who costs how much, in ratios to the floor where there is one."""
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    findings = {(one.way, one.measure): one for outcome in outcomes for one in outcome.findings}
    has_floor = any(figure.ratios for figure in figures)
    names = [name for name in dict.fromkeys(figure.contestant for figure in figures) if name != FLOOR]
    table = _table(outcomes, "p50, as a ratio to the floor's" if has_floor else "p50")
    if has_floor:
        table.add_column(FLOOR, justify="right")
    for name in names:
        table.add_column(name, justify="right")
    if findings:
        table.add_column("best", overflow="fold")
    for (way, measure), group in itertools.groupby(sorted_by_what(figures), key=_what):
        found = {figure.contestant: figure for figure in group}
        row = [next(iter(found.values())).title]
        if has_floor:
            row.append(_value(found[FLOOR]) if FLOOR in found else "")
        row += [_ratio(found[name]) if name in found else "" for name in names]
        if findings:
            finding = findings.get((way, measure))
            row.append(_best(finding.fastest) if finding and finding.fastest else "not told")
        table.add_row(*row)
    return table


def quantiles(outcomes: Sequence[Outcome]) -> Table | None:
    """How what was measured often is spread; None if nothing was."""
    figures = [figure for outcome in outcomes for figure in outcome.figures]
    names = [name for name in _QUANTILES if any(name in figure.quantiles for figure in figures)]
    if len(names) < 2:
        return None
    table = _table(outcomes, "quantiles")
    table.add_column("contestant")
    for name in names:
        table.add_column(name, justify="right")
    spread = (figure for figure in sorted_by_what(figures) if len(figure.quantiles) > 1)
    for _, group in itertools.groupby(spread, key=_what):
        for number, figure in enumerate(rows := list(group)):
            cells = (_amount(figure.quantiles.get(name), figure.unit) for name in names)
            title = "" if number else figure.title
            table.add_row(title, figure.contestant, *cells, end_section=number == len(rows) - 1)
    return table


def by_size(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    """Those that share a table: of one scenario at one size, in the order in which they came."""
    groups: dict[tuple[str, int, int], list[Outcome]] = {}
    for one in outcomes:
        groups.setdefault((one.scenario, one.services, one.endpoints), []).append(one)
    return list(groups.values())


def amount(value: float, unit: Unit) -> str:
    """With the unit that suits it."""
    match unit:
        case "ns":
            return f"{value / 1000:.1f} µs" if value < 1e6 else f"{value / 1e6:.1f} ms"
        case "s":
            return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"
        case "MiB":
            return f"{value:.0f} MiB"
        case "1/s":
            return f"{value:,.0f} /s"
        case "bit/s":
            return f"{value / 1e9:.2f} Gbit/s"
        case "1":
            return f"{value:,g}"


def to_floor(figure: Figure) -> str:
    """Of one that has such a ratio: that of its p50. ≈: not told apart, also where nothing can tell."""
    return f"{'' if figure.differs else '≈ '}{figure.ratios['p50'].value:.2f}"


def sorted_by_what(figures: Sequence[Figure]) -> list[Figure]:
    """Those of the same way and measure together, both in the order in which they came first."""
    order = {what: number for number, what in enumerate(dict.fromkeys(map(_what, figures)))}
    return sorted(figures, key=lambda figure: order[_what(figure)])


def _what(figure: Figure) -> tuple[str, str]:
    return figure.way, figure.measure


def _table(outcomes: Sequence[Outcome], what: str) -> Table:
    one = outcomes[0]
    rounds = f", {one.rounds} rounds" if one.rounds > 1 else ""
    title = f"{one.scenario}, {one.services:,} services x {one.endpoints} endpoints{rounds}: {what}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("what")
    return table


def _best(fastest: Sequence[str]) -> str:
    first, *others = fastest
    return " ≈ ".join(fastest) if len(others) < _MANY else f"{first} ≈ {len(others)} others"


def _value(figure: Figure) -> str:
    return _amount(figure.quantiles.get("p50"), figure.unit)


def _amount(estimate: Estimate | None, unit: Unit) -> str:
    return "" if estimate is None else amount(estimate.value, unit)


def _ratio(figure: Figure) -> str:
    ratio = figure.ratios.get("p50")
    if ratio is None:
        return _value(figure)
    return f"{to_floor(figure)} ({ratio.low:.2f}-{ratio.high:.2f})"
