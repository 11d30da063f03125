"""What is fastest on each kernel of a fleet, and whether the nodes agree."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.compare import ASSUMED_CHANCE, is_effort, over
from bench.contestant import CONTROL, FLOOR
from bench.document import Document, Figure, Outcome
from bench.estimate import is_told_apart
from bench.scenario import size
from bench.tables import amount


@dataclass(frozen=True, slots=True)
class Question:
    """That every node is asked."""

    scenario: str
    services: int
    endpoints: int
    way: str
    measure: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one node."""

    kernel: str
    title: str
    fastest: tuple[str, ...]
    """The best, and after it those that are not told apart from it; empty: nothing is told."""
    best: Figure | None


def verdicts(documents: Sequence[Document]) -> dict[Question, list[Verdict]]:
    """By question, of the nodes on which more than one contestant has figures."""
    found: dict[Question, list[Verdict]] = {}
    for document in documents:
        for question, rivals in _rivals(document).items():
            if len(rivals) > 1:
                fastest = _fastest(question, rivals)
                title = next(iter(rivals.values()))[1].title
                best = rivals[fastest[0]][1] if fastest else None
                found.setdefault(question, []).append(Verdict(_kernel(document), title, fastest, best))
    return found


def table(documents: Sequence[Document], found: Mapping[Question, Sequence[Verdict]]) -> Table:
    """A row for each question and kernel."""
    shown = Table(title="What is fastest", title_justify="left", box=SIMPLE_HEAD)
    for head in ("scenario", "what", "kernel"):
        shown.add_column(head, overflow="fold")
    shown.add_column("nodes", justify="right")
    shown.add_column("fastest", overflow="fold")
    shown.add_column("of it", justify="right")
    kernels = list(dict.fromkeys(map(_kernel, documents)))
    for question, said in found.items():
        heads = f"{question.scenario}, {size(question.services, question.endpoints)}", said[0].title
        for kernel in kernels:
            mine = [one for one in said if one.kernel == kernel]
            if mine:
                shown.add_row(*heads, kernel, str(len(mine)), _names(mine), _range(mine))
                heads = "", ""
        shown.add_section()
    return shown


def summary(documents: Sequence[Document], found: Mapping[Question, Sequence[Verdict]]) -> Iterator[str]:
    """In sentences."""
    kernels = Counter(map(_kernel, documents))
    runs = f"{len(documents)} runs" if len(documents) > 1 else "1 run"
    yield f"{runs}: {', '.join(f'{count} of kernel {kernel}' for kernel, count in kernels.items())}."
    agreed = Counter(name for said in found.values() for name in _agreed(said))
    if found:
        best = ", ".join(f"{name} {count} times" for name, count in agreed.most_common()) or "nobody"
        yield (
            f"Of {len(found)} questions, so often a contestant is the fastest on every node, or not told apart from "
            f"it: {best}. In brackets: how many nodes say so, where they disagree."
        )
    skipped = {(_kernel(document), mode): why for document in documents for mode, why in document.skipped.items()}
    for (kernel, mode), why in skipped.items():
        yield f"On kernel {kernel} mode {mode} can't run: {why}"
    for document in documents:
        node = document.environment.get("node", "")
        if not document.complete:
            yield f"The run of {node} was interrupted."
        for outcome in document.outcomes:
            for name in outcome.failed:
                yield f"On {node} {name} fell out: {outcome.key}"


def _kernel(document: Document) -> str:
    return document.environment.get("kernel", "")


def _rivals(document: Document) -> dict[Question, dict[str, tuple[Outcome, Figure]]]:
    found: dict[Question, dict[str, tuple[Outcome, Figure]]] = {}
    for outcome in document.outcomes:
        for figure in outcome.figures:
            if figure.contestant not in (FLOOR, CONTROL) and "p50" in figure.quantiles and not is_effort(figure):
                question = Question(outcome.scenario, outcome.services, outcome.endpoints, figure.way, figure.measure)
                found.setdefault(question, {})[figure.contestant] = outcome, figure
    return found


def _fastest(question: Question, rivals: Mapping[str, tuple[Outcome, Figure]]) -> tuple[str, ...]:
    """As the scenario says; where its parts have one contestant each, by their values."""
    outcomes = {outcome.key: outcome for outcome, _ in rivals.values()}
    if len(outcomes) == 1:
        (outcome,) = outcomes.values()
        asked = (one for one in outcome.findings if (one.way, one.measure) == (question.way, question.measure))
        return next((tuple(one.fastest) for one in asked), ())
    values = {name: figure.quantiles["p50"] for name, (_, figure) in rivals.items()}
    less_is_better = next(iter(rivals.values()))[1].less_is_better
    best, *others = sorted(values, key=lambda name: values[name].value, reverse=not less_is_better)
    return best, *(name for name in others if not is_told_apart(over(values[name], values[best]), ASSUMED_CHANCE))


def _names(said: Sequence[Verdict]) -> str:
    counts = Counter(" ≈ ".join(one.fastest) or "not told" for one in said)
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{names} ({count})" for names, count in counts.most_common())


def _range(said: Sequence[Verdict]) -> str:
    """From the best node's best to the worst node's."""
    figures = [one.best for one in said if one.best]
    ratios = sorted(figure.ratios["p50"].value for figure in figures if "p50" in figure.ratios)
    if ratios and len(ratios) == len(figures):
        ends = [f"{ratio:.2f}" for ratio in (ratios[0], ratios[-1])]
        return f"{' … '.join(dict.fromkeys(ends))} x floor"
    values = sorted(figure.quantiles["p50"].value for figure in figures)
    return " … ".join(dict.fromkeys(amount(value, figures[0].unit) for value in (values[:1] + values[-1:])))


def _agreed(said: Sequence[Verdict]) -> list[str]:
    """Who is among the fastest on every node."""
    return [name for name in said[0].fastest if all(name in one.fastest for one in said)]
