"""Measures one part after the other: shows how far it is, keeps each result at once, tells all at the end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import tables
from bench.document import Document, Outcome, Unreadable
from bench.environment import Clock, Load, environment
from bench.interrupt import held
from bench.scenario import Part
from bench.terminal import console

_INTERRUPTED = 130
_PASSING = ("date", "load", "load after")
"""What of an environment may change while the same thing is measured."""
STDOUT = Path("-")
"""In place of a file: JSON goes to standard output, and tables to standard error."""


class NoPlace(Exception):
    """Results can't be put where the user wants them. The message is one sentence for him."""


def begin(method: dict[str, object], skipped: dict[str, str], file: Path | None, *, resume: bool) -> Document:
    """A document that is empty, or with ``resume`` has what ``file`` has already.

    ``method``: what is asked for; only what was measured in the same way goes together with it.
    Raises NoPlace, Unreadable.
    """
    fresh = Document(environment=environment(), method=method, skipped=skipped)
    if file is None or file == STDOUT:
        if resume:
            raise NoPlace("--resume goes on with what a file has: name it by --json FILE")
        return fresh
    if not file.parent.is_dir():
        raise NoPlace(f"there is no folder {file.parent}")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise NoPlace(f"{file} can't be written: name another file")
    if not file.is_file():  # a device, such as /dev/full, can't be overwritten
        return fresh
    if not resume:
        raise NoPlace(f"{file} exists: name another file, remove it, or go on with it by --resume")
    kept = Document.read(file)
    # As JSON has it: what is asked for now still has its tuples.
    if kept.method != msgspec.json.decode(msgspec.json.encode(method)):
        raise Unreadable(f"{file} was measured with other options: give the same ones, or name another file")
    for field, value in fresh.environment.items():
        if field not in _PASSING and (before := kept.environment.get(field)) != value:
            raise Unreadable(f"{file} was measured with {field} {before!r}, now it is {value!r}: name another file")
    return kept


def run(
    parts: Sequence[Part], document: Document, file: Path | None, finish: Callable[[Document], None] | None = None
) -> int:
    """Measure what ``document`` has not, print tables of all of it; the exit status: 1 if a contestant fell out.

    After Ctrl-C with what there is until then. ``finish``: is given the document when all is told, also then.
    """
    done = {outcome.key for outcome in document.outcomes if outcome.complete}
    left = [part for part in parts if part.key not in done]
    for name, why in document.skipped.items():
        _say(f"{name} is left out: it can't run here: {why}")
    if done:
        _say(f"{len(done)} of {len(parts)} parts are there already")
    try:
        status = _measure(left, document, file)
    except KeyboardInterrupt:
        status = _INTERRUPTED
        _say("interrupted; what counts is what was measured until then")
    document.complete = {part.key for part in parts} <= {one.key for one in document.outcomes if one.complete}
    document.environment["load after"] = f"{os.getloadavg()[0]:.2f}"
    if not any(outcome.figures for outcome in document.outcomes):
        _say("nothing was measured")
        status = status or 1
    with held():
        status = _keep(document, file) or status
    try:
        show(document, to_stderr=file == STDOUT)
    finally:  # also if whoever reads the tables has enough
        if finish is not None:
            finish(document)
    for outcome in document.outcomes:
        for name, why in outcome.failed.items():
            _say(f"{outcome.key}: {name} fell out: {why}")
            status = status or 1
    if file == STDOUT:
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    return status


def show(document: Document, *, to_stderr: bool = False) -> None:
    """Tables of all of it, and what a reader has to know about them."""
    place = console(stderr=to_stderr)
    has_ratios = False
    for group in tables.by_size([one for one in document.outcomes if one.figures]):
        if (table := tables.quantiles(group)) is not None:
            place.print(table)
        place.print(tables.overview(group))
        for remark in _remarks(group):
            place.print(remark, markup=False)
        has_ratios |= any(figure.ratios for outcome in group for figure in outcome.figures)
    if has_ratios:
        place.print(tables.LEGEND, markup=False)


def _remarks(group: Sequence[Outcome]) -> Iterator[str]:
    yield from dict.fromkeys(remark for outcome in group for remark in outcome.remarks)
    if loads := [outcome.load for outcome in group if outcome.load]:
        busy, stolen = max(load.busy for load in loads), max(load.stolen for load in loads)
        each = "" if len(group) == 1 else " at most"
        yield f"All CPUs were{each} {busy:.0%} busy, {stolen:.1%} stolen by the hypervisor."
    for outcome in group:
        if not outcome.complete:
            yield f"{outcome.key} was interrupted: it says what there was until then."
        for figure in outcome.figures:
            if figure.failures:
                said = ", ".join(f"{error} {count} times" for error, count in figure.failures.items())
                yield f"FAILED: {figure.contestant}, {figure.title}: {said}"


def _measure(parts: Sequence[Part], document: Document, file: Path | None) -> int:
    """The exit status. Whatever ends it, what was measured until then is in ``document``, and in ``file``."""
    stderr = console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    silent = not stderr.is_terminal
    status = 0
    # It draws when told to, which is while nothing is measured.
    with Progress(*columns, console=stderr, transient=True, auto_refresh=False, disable=silent) as progress:
        task = progress.add_task("", total=sum(part.steps for part in parts))
        reached = 0
        for number, part in enumerate(parts, 1):
            if silent:
                _say(f"{part.key} ({number} of {len(parts)})")

            def step(what: str, part: Part = part) -> None:
                progress.update(task, description=f"{part.key}: {what}", advance=1)
                progress.refresh()

            started, clock = time.monotonic(), Clock()
            try:
                part.measure(step)
            except (OSError, RuntimeError, subprocess.SubprocessError) as error:
                _say(f"{part.key}: {error}")
                status = 1
            finally:
                with held():
                    progress.update(task, description=f"{part.key}: computing intervals")
                    progress.refresh()
                    _add(document, part.outcome, round(time.monotonic() - started, 1), clock.load())
                    _keep(document, file)
            reached += part.steps
            progress.update(task, completed=reached)  # who fell out took steps along
    return status


def _add(document: Document, outcome: Outcome, seconds: float, load: Load) -> None:
    """In place of what was there of the same part, unless that had come further."""
    if not (outcome.figures or outcome.failed):
        for remark in outcome.remarks:  # such as what it takes
            _say(f"{outcome.key}: {remark}")
        return
    outcome = msgspec.structs.replace(outcome, seconds=seconds, load=outcome.load or load)
    for index, before in enumerate(document.outcomes):
        if before.key == outcome.key:
            if outcome.complete or outcome.rounds >= before.rounds:
                document.outcomes[index] = outcome
            return
    document.outcomes.append(outcome)


def _keep(document: Document, file: Path | None) -> int:
    """The exit status."""
    if file is None or file == STDOUT or not document.outcomes:
        return 0
    try:
        document.write(file)
    except OSError as error:
        _say(f"{file} can't be written: {error.strerror}")
        return 1
    return 0


def _say(what: str) -> None:
    print(f"pyproxy: {what}", file=sys.stderr)
