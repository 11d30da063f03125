"""What was found, in sentences that claim no more than the figures do."""

from collections.abc import Iterator, Sequence

from bench.contestant import CONTROL, FLOOR
from bench.document import Document, Figure, Finding
from bench.report.plot import label
from bench.report.topic import Topic, p50, services
from bench.tables import amount


def sentences(document: Document, topics: Sequence[Topic]) -> Iterator[str]:
    """Of the first measure of each scenario that has findings: at the largest size, and how it gets there."""
    told = set()
    for topic in topics:
        if topic.findings and topic.scenario not in told:
            told.add(topic.scenario)
            yield from _of(topic)
    if not told:
        yield "No winner is named: nothing here says which differences are more than chance."
    if not document.complete:
        yield "This run is not complete: it says what there was when it ended."


def _of(topic: Topic) -> Iterator[str]:
    largest = topic.sizes[-1]
    told = False
    for way in topic.ways:
        if finding := topic.findings.get((largest, way)):
            said = _verdict(finding, topic.at(largest, way), with_others=not told)
            yield _capital(f"{topic.what(way)}, at {services(largest)}: {said}")
            told = True
    if topic.has_ratios and len(topic.sizes) > 1:
        yield from _growth(topic, next(iter(topic.ways)))


def _verdict(finding: Finding, figures: dict[str, Figure], *, with_others: bool) -> str:
    if not finding.fastest:
        return "no winner is named, since this run can't tell differences from chance."
    others = [name for name in figures if name not in finding.fastest and _competes(name, finding)]
    others.sort(key=lambda name: _worth(figures[name]))
    rest = ""
    if others and with_others:
        rest = f" Then {'comes' if len(others) == 1 else 'come'} {_list([_named(name, figures) for name in others])}."
    if len(finding.fastest) == 1:
        (best,) = finding.fastest
        to_floor = " times the floor" if best in figures and "p50" in figures[best].ratios else ""
        return (
            f"{best} is best, at {_value(figures[best])}{to_floor}.{rest}"
            if best in figures
            else f"{best} is best.{rest}"
        )
    chance = "" if finding.resolution is None else f", which is up to {finding.resolution:.1%} here"
    equal = _list([_named(name, figures) for name in finding.fastest])
    return f"no winner is named; what lies between {equal} is no more than chance does{chance}.{rest}"


def _growth(topic: Topic, way: str) -> Iterator[str]:
    """Who costs more or less with the number of services, and who does not, of what the first sentence is about."""
    ends = topic.sizes[0], topic.sizes[-1]
    before, after = (topic.at(count, way) for count in ends)
    found = [topic.findings[count, way] for count in ends if (count, way) in topic.findings]
    known = [one.resolution for one in found if one.resolution is not None]
    if len(known) < len(ends):
        return
    steady, others = [], []
    for name in after:
        ratios = [one[name].ratios.get("p50") for one in (before, after) if name in one]
        if _competes(name, found[-1]) and len(ratios) == len(ends) and all(ratios):
            first, last = (one.value for one in ratios if one)
            if max(first, last) <= (1 + max(known)) * min(first, last):
                steady.append(name)
            else:
                others.append(f"for {name} it goes from {first:.2f} to {last:.2f}")
    said = _list([*([f"for {_list(steady)} it stays where it is, as far as can be told"] if steady else []), *others])
    if said:
        yield _capital(f"{topic.what(way)}, ratio to the floor from {ends[0]:,} to {services(ends[1])}: {said}.")


def _competes(name: str, finding: Finding) -> bool:
    return name not in (FLOOR, CONTROL) and (not finding.rivals or name in finding.rivals)


def _worth(figure: Figure) -> float:
    """The smaller, the better."""
    value = figure.ratios.get("p50", p50(figure)).value
    return value if figure.less_is_better else -value


def _named(name: str, figures: dict[str, Figure]) -> str:
    """With its p50, if there is one."""
    return f"{name} ({_value(figures[name])})" if name in figures else name


def _value(figure: Figure) -> str:
    return label(figure, "ratio") if "p50" in figure.ratios else amount(p50(figure).value, figure.unit)


def _list(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]
