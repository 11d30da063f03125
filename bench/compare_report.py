"""`pyproxy bench compare`: what became of the figures of one run in another, as tables, as JSON, and as exit status."""

import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench.compare import ASSUMED_CHANCE, BeforeAndAfter, Change, Missing, Verdict
from bench.document import Document, Unreadable, put
from bench.estimate import Estimate
from bench.run import STDOUT
from bench.tables import amount
from bench.terminal import console

FORMAT, VERSION = "pyproxy bench compared", 1
"""Of the JSON."""
_NOTHING_WORSE, _SOMETHING_WORSE, _CAN_NOT_COMPARE = 0, 1, 2
_COLOURS = {Verdict.WORSE: "bold red", Verdict.BETTER: "green", Verdict.UNCLEAR: "yellow"}
_LONGEST_REASON = 160


def compare(before: Path, after: Path, threshold: float, json_file: Path | None) -> int:
    """Print what changed, write ``json_file``; the exit status: 0 nothing is worse, 1 something is, 2 that can't be
    said. ``threshold``: a share. ``json_file``: nothing is overwritten; STDOUT as in `run`."""
    to_stdout = json_file == STDOUT
    if json_file is not None and not to_stdout and json_file.is_file():
        return _refuse(f"{json_file} exists: name another file, or remove it")
    try:
        runs = BeforeAndAfter(Document.read(before), Document.read(after), threshold)
    except Unreadable as error:
        return _refuse(str(error))
    if not runs.changes and not runs.has_worse:
        return _refuse(f"{before} and {after} have no figure in common: measure the same scenarios, sizes and modes")
    place = console(stderr=to_stdout)
    for name, path, document in (("before", before, runs.before), ("after", after, runs.after)):
        said = document.environment
        about = [said[field] for field in ("node", "date", "kernel") if said.get(field)]
        place.print(f"{name}: {path}: {', '.join(about)}", markup=False)
    if runs.environment or runs.method:
        place.print(_differences(runs))
    if any(one.verdict is not Verdict.SAME for one in runs.changes):
        place.print(_changes(runs))
    for missing in runs.missing:
        place.print(_absence(missing), markup=False)
    for line in _summary(runs):
        place.print(line, markup=False)
    content = msgspec.json.encode(_as_json(runs))
    if to_stdout:
        sys.stdout.buffer.write(content + b"\n")
    elif json_file is not None:
        try:
            put(json_file, content)
        except OSError as error:
            return _refuse(f"{json_file} can't be written: {error.strerror}")
    if runs.has_worse:
        return _SOMETHING_WORSE
    if all(one.verdict is Verdict.NOT_JUDGED for one in runs.changes):
        return _refuse("of these two runs nothing can be judged")
    return _NOTHING_WORSE


def _refuse(why: str) -> int:
    print(f"pyproxy: {why}", file=sys.stderr)
    return _CAN_NOT_COMPARE


def _differences(runs: BeforeAndAfter) -> Table:
    table = Table(title="What else differs", title_justify="left", box=SIMPLE_HEAD)
    for head in ("", "before", "after"):
        table.add_column(head, overflow="fold")
    for of, differences in (("", runs.environment), ("method: ", runs.method)):
        for field, both in differences.items():
            table.add_row(of + field, *both)
    return table


def _changes(runs: BeforeAndAfter) -> Table:
    """All but what is the same."""
    table = Table(title="What changed", title_justify="left", box=SIMPLE_HEAD)
    for head in ("", "scenario", "contestant", "what"):
        table.add_column(head, overflow="fold")
    for head in ("before", "after", "change", "chance"):
        table.add_column(head, justify="right")
    told = [one for one in runs.changes if one.verdict is not Verdict.SAME]
    for verdict, group in groupby(told, key=lambda one: one.verdict):
        for one in group:
            table.add_row(verdict, one.key, one.contestant, one.title, *_amounts(one), style=_COLOURS.get(verdict))
        table.add_section()
    return table


def _amounts(one: Change) -> tuple[str, str, str, str]:
    before, after = (_said(each.value, one) for each in (one.before, one.after))
    if one.failing[0] < one.failing[1]:
        after += f", {one.failing[1]:.1%} fail"
    return before, after, _percent(one.change), f"{one.chance:.1%}"


def _said(value: float, one: Change) -> str:
    match one.basis:
        case "ratio":
            return f"{value:.3f} x floor"
        case "mean":
            return f"{round(value, 3):,g} on average"
        case "value":
            return amount(value, one.unit)


def _percent(change: Estimate) -> str:
    value, low, high = ((number - 1) * 100 for number in (change.value, change.low, change.high))
    return f"{value:+.1f} %" if low == high else f"{value:+.1f} % ({low:+.1f} … {high:+.1f})"


def _absence(one: Missing) -> str:
    """In one line: a reason may have the log of a proxy in it."""
    why = " ".join(one.why.split())
    why = why if len(why) <= _LONGEST_REASON else f"{why[:_LONGEST_REASON]}…"
    other = "after" if one.only == "before" else "before"
    verdict = "worse: " if one.fell_out and one.only == "before" else ""
    count = f"{one.figures} figures" if one.figures > 1 else "1 figure"
    return f"{verdict}only {one.only}: {one.key}: {one.contestant}: {count}; {other}: {why}"


def _summary(runs: BeforeAndAfter) -> Iterator[str]:
    changes, threshold = runs.changes, runs.threshold
    counts = ((verdict, sum(one.verdict is verdict for one in changes)) for verdict in Verdict)
    yield f"Of {len(changes)} figures: {', '.join(f'{count} {verdict}' for verdict, count in counts if count)}."
    for name, document in (("before", runs.before), ("after", runs.after)):
        if not document.complete:
            yield f"The run {name} was interrupted."
    if runs.floors:
        low, high = ((factor - 1) * 100 for factor in (min(runs.floors), max(runs.floors)))
        yield (
            f"The floor, where no proxy ever ran, changed by {low:+.1f} to {high:+.1f} %: that is the machine, the "
            "kernel or the day, and ratios to the floor leave it out."
        )
    if not runs.is_same_machine:
        yield "The machines differ: times and rates without a floor are shown and not judged."
    elif any(one.basis != "ratio" for one in changes):
        yield "What has no floor is compared as it is: that says something if both runs had the machine to themselves."
    if runs.method:
        yield "The runs were measured in different ways: a difference may come of that."
    yield (
        f"Worse or better is what differs by more than {threshold:.1%}, with intervals that lie apart by more than "
        f"chance: what the controls of both runs show, and {ASSUMED_CHANCE:.0%} where there is none. Failures where "
        "there were none are worse, however few. Unclear: these runs can't tell."
    )
    silent = sum(one.false_alarm is None for one in changes)
    unknown = f" ({silent} have no intervals to say that)" if silent else ""
    yield (
        f"If nothing had changed, {runs.false_alarms:.2g} of {len(changes)} would be called worse by chance"
        f"{unknown}. Measure again before you believe a single one: chance seldom picks the same figure twice."
    )


def _as_json(runs: BeforeAndAfter) -> dict[str, object]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "threshold": runs.threshold,
        "worse": runs.has_worse,
        "before": runs.before.environment,
        "after": runs.after.environment,
        "environment": runs.environment,
        "method": runs.method,
        "false_alarms": runs.false_alarms,
        "changes": runs.changes,
        "missing": runs.missing,
    }
