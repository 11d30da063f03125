"""What belongs into one plot: the figures of one measure of a scenario, by way, size and contestant."""

from dataclasses import dataclass, field
from functools import cached_property

from bench.document import Document, Figure, Finding, Outcome, Unit
from bench.estimate import Estimate

Place = tuple[int, str]
"""How many services, and the way."""


@dataclass(slots=True, frozen=True)
class Entry:
    services: int
    figure: Figure
    """One that has a p50: others say nothing but failures."""

    @property
    def value(self) -> Estimate:
        return p50(self.figure)


@dataclass
class Topic:
    scenario: str
    measure: str
    endpoints: int
    """Of each service."""
    several_endpoints: bool
    """Whether there is another topic that only differs in these."""
    shares_words: bool = False
    """Whether another measure of the scenario has the same words, and only the ways say what it is of."""
    entries: list[Entry] = field(default_factory=list)
    """At least one."""
    findings: dict[Place, Finding] = field(default_factory=dict)

    @cached_property
    def words(self) -> str:
        """The measure in words."""
        figure = self.entries[0].figure
        words = figure.title.rpartition(": ")[2] if figure.way else figure.title
        return f"{words}, {self.endpoints} endpoints a service" if self.several_endpoints else words

    @property
    def title(self) -> str:
        """Unique in a scenario."""
        words = f"{self.words} ({self.measure})" if self.shares_words else self.words
        return words[:1].upper() + words[1:]

    def what(self, way: str) -> str:
        """Way and measure in words."""
        return f"{self.ways[way]}: {self.words}" if self.ways[way] else self.words

    @cached_property
    def ways(self) -> dict[str, str]:
        """By name, in words; only the empty one where that is no question."""
        figures = [one.figure for one in self.entries]
        return {one.way: (one.title.rpartition(": ")[0] or one.way) if one.way else "" for one in figures}

    @cached_property
    def places(self) -> list[Place]:
        return list(dict.fromkeys((one.services, one.figure.way) for one in self.entries))

    @cached_property
    def sizes(self) -> list[int]:
        return sorted({one.services for one in self.entries})

    @cached_property
    def contestants(self) -> list[str]:
        return list(dict.fromkeys(one.figure.contestant for one in self.entries))

    @property
    def unit(self) -> Unit:
        return self.entries[0].figure.unit

    @cached_property
    def has_ratios(self) -> bool:
        return any(one.figure.ratios for one in self.entries)

    @cached_property
    def quantiles(self) -> list[str]:
        """Those that anything has, from p50 up."""
        return list(dict.fromkeys(name for one in self.entries for name in one.figure.quantiles))

    def at(self, services: int, way: str) -> dict[str, Figure]:
        """By contestant."""
        found = (one.figure for one in self.entries if (one.services, one.figure.way) == (services, way))
        return {figure.contestant: figure for figure in found}


def p50(figure: Figure) -> Estimate:
    return figure.quantiles["p50"]


def services(count: int) -> str:
    return "1 service" if count == 1 else f"{count:,} services"


def topics(document: Document) -> list[Topic]:
    """In the order in which they came first."""
    found: dict[tuple[str, str, int], Topic] = {}
    for outcome in document.outcomes:
        several = len({one.endpoints for one in document.outcomes if one.scenario == outcome.scenario}) > 1
        for figure in (one for one in outcome.figures if "p50" in one.quantiles):
            topic = found.setdefault(
                (outcome.scenario, figure.measure, outcome.endpoints),
                Topic(outcome.scenario, figure.measure, outcome.endpoints, several),
            )
            topic.entries.append(Entry(outcome.services, figure))
            topic.findings |= _findings(outcome, figure)
    measures: dict[tuple[str, str], set[str]] = {}
    for topic in found.values():
        measures.setdefault((topic.scenario, topic.words), set()).add(topic.measure)
    for topic in found.values():
        topic.shares_words = len(measures[topic.scenario, topic.words]) > 1
    return list(found.values())


def _findings(outcome: Outcome, figure: Figure) -> dict[Place, Finding]:
    what = (figure.way, figure.measure)
    return {(outcome.services, one.way): one for one in outcome.findings if (one.way, one.measure) == what}
