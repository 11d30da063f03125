"""What became worse from one run to another, what became better, and what these two can't tell.

Two runs on two days differ in more than what somebody changed. So a figure that has a ratio to the floor of its own run
is compared by that, and a difference counts only if it is beyond the intervals and the chance of both runs together.
docs/benchmarking.md says what is called worse.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from statistics import NormalDist, fmean
from typing import Literal

import msgspec

from bench.contestant import CONTROL, FLOOR
from bench.document import Document, Figure, Outcome, Unit
from bench.estimate import Bootstrap, Estimate

ASSUMED_CHANCE = 0.25
"""What chance does to a figure, where no control shows it: so much do two runs differ on a machine that others use."""
MACHINE = ("cpu", "machine", "virtual", "governor")
"""Fields of an environment. Where one differs, times without a floor say nothing but that the machine is another."""
_OF_THE_MACHINE = ("-cpu", "-retransmits")
"""How measures end that are numbers by their unit, and yet another on a fast machine than on a slow one."""
_DEVIATIONS = 1.96
"""Half an interval of 95 %, in standard deviations."""


class Verdict(StrEnum):
    WORSE = "worse"
    BETTER = "better"
    UNCLEAR = "unclear"
    """It may be either: the difference is too small for the noise of these runs, or the noise too large for it."""
    NOT_JUDGED = "not judged"
    """A time or a rate of another machine, without a floor."""
    SAME = "same"
    """If there is a difference, it is below the threshold."""


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One figure that both runs have."""

    key: str
    """Of the outcome."""
    contestant: str
    way: str
    measure: str
    title: str
    unit: Unit
    basis: Literal["ratio", "value", "mean"]
    """What is compared: the p50's ratio to the floor, the p50, or of failures how many there are a sample."""
    before: Estimate
    after: Estimate
    change: Estimate
    """After / before; infinite (in JSON: null) where it was 0."""
    cost: Estimate
    """The same, but above 1 is worse, whatever is measured."""
    failing: tuple[float, float]
    """The share of what came to nothing, before and after."""
    chance: float
    """What it does to both together, as a share."""
    false_alarm: float | None
    """How probable it is that this is called worse though nothing changed; None: the intervals don't say."""
    verdict: Verdict


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Of one contestant in one outcome: what only one of the runs has."""

    key: str
    contestant: str
    figures: int
    only: Literal["before", "after"]
    why: str
    fell_out: bool
    """It took part in both, and nothing came of it in the other one."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a figure is found in a document."""

    key: str
    contestant: str
    way: str
    measure: str


class BeforeAndAfter:
    def __init__(self, before: Document, after: Document, threshold: float) -> None:
        """``threshold``: a share; no smaller difference is called one."""
        self.before, self.after = before, after
        self.threshold = threshold
        self._places = _places(before), _places(after)

    @cached_property
    def changes(self) -> list[Change]:
        """The worst first. Without what is not judged by itself: floor and control, which others are held against, and
        effort."""
        old, new = self._places
        found = [
            self._change(place, *old[place], *new[place])
            for place in old
            if place in new and place.contestant not in (FLOOR, CONTROL) and not is_effort(new[place][1])
        ]
        order = list(Verdict)
        return sorted(found, key=lambda one: (order.index(one.verdict), -abs(_log(one.cost.value))))

    @cached_property
    def missing(self) -> list[Missing]:
        old, new = self._places
        return [*_missing(old, new, self.after, "before"), *_missing(new, old, self.before, "after")]

    @property
    def has_worse(self) -> bool:
        return any(one.verdict is Verdict.WORSE for one in self.changes) or any(
            one.fell_out and one.only == "before" for one in self.missing
        )

    @property
    def false_alarms(self) -> float:
        """So many would be called worse on average though nothing changed, of those whose intervals say that."""
        return sum(one.false_alarm or 0.0 for one in self.changes)

    @property
    def floors(self) -> list[float]:
        """By what factors the floor itself changed, where it is what others are held against: counts have no ratio."""
        old, new = self._places
        floors = [place for place in old if place in new and place.contestant == FLOOR and new[place][1].unit != "1"]
        times = ((old[place][1].quantiles["p50"].value, new[place][1].quantiles["p50"].value) for place in floors)
        return [after / before for before, after in times if before]

    @property
    def environment(self) -> dict[str, tuple[str, str]]:
        """What differs, by field."""
        return _differences(self.before.environment, self.after.environment)

    @property
    def method(self) -> dict[str, tuple[str, str]]:
        """What differs, by field."""
        return _differences(self.before.method, self.after.method)

    @property
    def is_same_machine(self) -> bool:
        return not self.environment.keys() & set(MACHINE)

    def _change(self, place: _Place, was_in: Outcome, was: Figure, is_in: Outcome, now: Figure) -> Change:
        has_floor = "p50" in was.ratios and "p50" in now.ratios
        is_mean = all(_is_failures(one) and any(one.samples) for one in (was, now))
        if is_mean:
            before, after = _mean(was), _mean(now)
        else:
            before, after = ((one.ratios if has_floor else one.quantiles)["p50"] for one in (was, now))
        change = over(after, before)
        cost = change if was.less_is_better else over(before, after)
        chances = [_chance(outcome, place) for outcome in (was_in, is_in)]
        chance = math.prod(1 + one for one in chances if one is not None) - 1
        if None in chances:
            chance = max(chance, ASSUMED_CHANCE)
        failing = _share_failing(was), _share_failing(now)
        if failing[1] - failing[0] > self.threshold or (_is_failures(now) and after.value > before.value == 0):
            verdict = Verdict.WORSE
        elif not has_floor and not self.is_same_machine and was.unit != "MiB" and not _is_count(was):
            verdict = Verdict.NOT_JUDGED
        else:
            verdict = judge(cost, chance, self.threshold)
        return Change(
            key=place.key,
            contestant=place.contestant,
            way=place.way,
            measure=place.measure,
            title=now.title,
            unit=now.unit,
            basis="mean" if is_mean else "ratio" if has_floor else "value",
            before=before,
            after=after,
            change=change,
            cost=cost,
            failing=failing,
            chance=chance,
            false_alarm=None if verdict is Verdict.NOT_JUDGED else _false_alarm(before, after, chance, self.threshold),
            verdict=verdict,
        )


def judge(cost: Estimate, chance: float, threshold: float) -> Verdict:
    """``cost``: above 1 is worse. ``chance``, ``threshold``: shares."""
    if cost.low > 1 + chance and cost.value > 1 + threshold:
        return Verdict.WORSE
    if cost.high < 1 / (1 + chance) and cost.value < 1 / (1 + threshold):
        return Verdict.BETTER
    is_small = 1 / (1 + threshold) <= cost.low and cost.high <= 1 + threshold
    return Verdict.SAME if is_small else Verdict.UNCLEAR


def over(one: Estimate, other: Estimate) -> Estimate:
    """How many times the other it is. Of two runs nothing is paired, so the interval is from end to opposite end."""
    return Estimate(_quotient(one.value, other.value), _quotient(one.low, other.high), _quotient(one.high, other.low))


def _quotient(one: float, other: float) -> float:
    """Two things of which there are none are equal."""
    if other:
        return one / other
    return math.inf if one else 1.0


def _log(value: float) -> float:
    return math.log(value) if value else -math.inf


def _places(document: Document) -> dict[_Place, tuple[Outcome, Figure]]:
    """Of what has a value."""
    return {
        _Place(outcome.key, figure.contestant, figure.way, figure.measure): (outcome, figure)
        for outcome in document.outcomes
        for figure in outcome.figures
        if "p50" in figure.quantiles
    }


def _chance(outcome: Outcome, place: _Place) -> float | None:
    about = (one for one in outcome.findings if (one.way, one.measure) == (place.way, place.measure))
    return next((one.resolution for one in about), None)


def is_effort(figure: Figure) -> bool:
    """A count of which more is better, such as attempts: how much was done, and not how well."""
    return _is_count(figure) and not figure.less_is_better


def _is_failures(figure: Figure) -> bool:
    return _is_count(figure) and figure.less_is_better


def _is_count(figure: Figure) -> bool:
    return figure.unit == "1" and not figure.measure.endswith(_OF_THE_MACHINE)


def _mean(figure: Figure) -> Estimate:
    """Of all samples: a median over rounds is 0 as long as half of them are without a failure."""
    values = [value for samples in figure.samples for value in samples]
    return Bootstrap(len(values)).estimate(lambda drawn: fmean(values[number] for number in drawn))


def _share_failing(figure: Figure) -> float:
    """Where each sample is something that got done. Counts and rates say by their value what did not."""
    failures = sum(figure.failures.values()) if figure.unit in ("ns", "s") else 0
    return failures / (failures + sum(map(len, figure.samples))) if failures else 0.0


def _false_alarm(before: Estimate, after: Estimate, chance: float, threshold: float) -> float | None:
    """Logarithms of both taken for normal, with one mean: how probable it is that `judge` says worse."""
    if not (before.low and after.low):
        return None
    halves = [math.log(one.high / one.low) / 2 for one in (before, after)]
    deviation = math.hypot(*halves) / _DEVIATIONS
    if not deviation:
        return None
    return 1 - NormalDist(0, deviation).cdf(max(math.log1p(chance) + sum(halves), math.log1p(threshold)))


def _missing(
    there: Mapping[_Place, object],
    not_there: Mapping[_Place, object],
    other: Document,
    only: Literal["before", "after"],
) -> Iterator[Missing]:
    counts: dict[tuple[str, str], int] = {}
    for place in there:
        if place not in not_there:
            whose = place.key, place.contestant
            counts[whose] = counts.get(whose, 0) + 1
    outcomes = {outcome.key: outcome for outcome in other.outcomes}
    for (key, contestant), count in counts.items():
        outcome = outcomes.get(key)
        fell_out = outcome is not None and contestant in outcome.failed
        figures = [one for one in outcome.figures if one.contestant == contestant] if outcome else []
        failures = sum((Counter(one.failures) for one in figures if "p50" not in one.quantiles), Counter[str]())
        names = (contestant, contestant.partition(" (")[0])  # of iptables also one of its flavours may be skipped
        skipped = next((other.skipped[name] for name in names if name in other.skipped), None)
        if outcome is not None and fell_out:
            why = f"fell out: {outcome.failed[contestant]}"
        elif failures:
            why = f"failed: {', '.join(f'{error} {count} times' for error, count in failures.items())}"
        elif skipped is not None:
            why = f"can't run there: {skipped}"
        elif (outcome is None or not outcome.complete) and not other.complete:
            why = "interrupted before that"
        else:
            why = "not measured"
        fell_out |= bool(failures)
        yield Missing(key=key, contestant=contestant, figures=count, only=only, why=why, fell_out=fell_out)


def _differences(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, tuple[str, str]]:
    return {
        field: (str(one.get(field, "")), str(other.get(field, "")))
        for field in dict.fromkeys([*one, *other])
        if one.get(field) != other.get(field)
    }
