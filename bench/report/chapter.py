"""A document in the order in which it is read: what was found, then each scenario with its plots and their figures."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from bench.document import Document, Figure, Outcome
from bench.report.finding import sentences
from bench.report.palette import Palette
from bench.report.plot import VIEWS, Plot, View, label, plots
from bench.report.topic import Entry, Topic, topics
from bench.tables import amount


@dataclass(frozen=True)
class Card:
    """A topic: its plots, and a table of what they show."""

    name: str
    """Unique in a report, and good for a file."""
    topic: Topic
    plots: dict[str, Plot]
    """By the name of their file, without its suffix."""

    @property
    def is_wide(self) -> bool:
        """Whether its first plot has panels side by side."""
        return next(iter(self.plots.values())).columns > 1

    @cached_property
    def _has_intervals(self) -> bool:
        return any(one.value.low < one.value.high for one in self.topic.entries)

    @property
    def about(self) -> list[str]:
        """The heads of the columns that say what a row is of."""
        return ["contestant", "services", *(["way"] if any(self.topic.ways) else [])]

    @property
    def said(self) -> list[str]:
        """The heads of the other columns."""
        p50, *others = self.topic.quantiles
        interval = ["95 % interval"] if self._has_intervals else []
        ratio = ["p50 to the floor's", "95 % interval"] if self.topic.has_ratios else []
        return [p50 if others or self.topic.has_ratios else "value", *interval, *others, *ratio]

    def rows(self) -> Iterator[tuple[list[str], list[str]]]:
        """What each is of, and what it says."""
        ways = list(self.topic.ways)
        for one in sorted(self.topic.entries, key=lambda one: (ways.index(one.figure.way), one.services)):
            way = [self.topic.ways[one.figure.way]] if any(ways) else []
            yield [one.figure.contestant, f"{one.services:,}", *way], list(self._cells(one))

    def _cells(self, entry: Entry) -> Iterator[str]:
        figure, value = entry.figure, entry.value
        yield amount(value.value, figure.unit)
        if self._has_intervals:
            yield f"{amount(value.low, figure.unit)} to {amount(value.high, figure.unit)}"
        for name in self.topic.quantiles[1:]:
            yield amount(figure.quantiles[name].value, figure.unit) if name in figure.quantiles else ""
        if self.topic.has_ratios:
            ratio = figure.ratios.get("p50")
            yield label(figure, "ratio") if ratio else ""
            yield f"{ratio.low:.2f} to {ratio.high:.2f}" if ratio else ""


@dataclass(frozen=True)
class Section:
    """A scenario."""

    scenario: str
    cards: list[Card]
    outcomes: list[Outcome]

    @property
    def views(self) -> dict[View, str]:
        """That any card has, in words."""
        there = {plot.view for card in self.cards for plot in card.plots.values()}
        return {view: words for view, words in VIEWS.items() if view in there}

    @cached_property
    def services(self) -> int:
        """The largest size, which the overview is of."""
        return max(one.services for one in self.outcomes)

    @cached_property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(name for card in self.cards for name in card.topic.contestants))

    def overview(self) -> Iterator[tuple[str, list[str], str]]:
        """At the largest size: what it is, what it is for each contestant, and who is best."""
        for card in self.cards:
            for way in card.topic.ways:
                figures = card.topic.at(self.services, way)
                finding = card.topic.findings.get((self.services, way))
                best = "" if finding is None else " ≈ ".join(finding.fastest) or "not told"
                yield card.topic.what(way), [_cell(figures.get(name)) for name in self.contestants], best

    def remarks(self) -> Iterator[tuple[str, list[str]]]:
        """Of each part."""
        for one in self.outcomes:
            said = list(one.remarks)
            if one.load:
                busy, stolen = one.load.busy, one.load.stolen
                said.append(f"All CPUs were {busy:.0%} busy, {stolen:.1%} stolen by the hypervisor.")
            if not one.complete:
                said.append("It was interrupted, and says what there was until then.")
            for figure in one.figures:
                if figure.failures:
                    errors = ", ".join(f"{error} {count} times" for error, count in figure.failures.items())
                    said.append(f"{figure.contestant}, {figure.title}: {errors}.")
            yield one.key, said


@dataclass(frozen=True)
class Chapter:
    document: Document
    name: str
    """The node's, or something like it; not unique: a node is measured twice with two kernels."""
    key: str
    """Unique in a report, and good for an identifier."""
    sections: list[Section]

    @cached_property
    def findings(self) -> list[str]:
        return list(sentences(self.document, [card.topic for one in self.sections for card in one.cards]))

    @property
    def failed(self) -> list[tuple[str, str, str]]:
        """What part, who, and why."""
        return [(one.key, name, why) for one in self.document.outcomes for name, why in one.failed.items()]


def chapters(documents: Sequence[Document]) -> list[Chapter]:
    """Of a whole report: contestants have the same signs in all of it."""
    figures = (figure for one in documents for outcome in one.outcomes for figure in outcome.figures)
    palette = Palette(figure.contestant for figure in figures)
    taken: set[str] = set()
    return [_chapter(one, palette, taken, alone=len(documents) == 1) for one in documents]


def _chapter(document: Document, palette: Palette, taken: set[str], *, alone: bool) -> Chapter:
    name = document.environment.get("node") or "a node without a name"
    key = _unused(_slug(name), taken)
    prefix = "" if alone else f"{key}-"
    sections = []
    found = topics(document)
    for scenario in dict.fromkeys(topic.scenario for topic in found):
        cards = [_card(topic, palette, prefix, taken) for topic in found if topic.scenario == scenario]
        outcomes = [one for one in document.outcomes if one.scenario == scenario]
        sections.append(Section(scenario, cards, outcomes))
    return Chapter(document, name, key, sections)


def _card(topic: Topic, palette: Palette, prefix: str, taken: set[str]) -> Card:
    endpoints = f"-{topic.endpoints}" if topic.several_endpoints else ""
    name = _unused(f"{prefix}{_slug(topic.scenario)}-{_slug(topic.measure)}{endpoints}", taken)
    return Card(name, topic, {f"{name}-{plot.view}": plot for plot in plots(topic, palette)})


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "unnamed"


def _unused(name: str, taken: set[str]) -> str:
    """The name, or with a number after it; it is taken from now on."""
    tries = (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
    free = next(one for one in tries if one not in taken)
    taken.add(free)
    return free


def _cell(figure: Figure | None) -> str:
    """≈: not told apart from the floor."""
    if figure is None:
        return ""
    return label(figure, "ratio" if figure.ratios.get("p50") else "absolute")
