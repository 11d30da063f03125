"""Measures one part after the other: shows how far it is, keeps each result at once, tells all at the end."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from bench import tables
from bench.document import Document, Outcome, Unreadable
from bench.environment import Clock, environment
from bench.interrupt import held
from bench.scenario import Part

_WIDTH = 160
"""Of tables where there is no terminal to fit."""
_INTERRUPTED = 130
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
    if not file.is_file():  # a device, such as /dev/stdout, can't be overwritten
        return fresh
    if not resume:
        raise NoPlace(f"{file} exists: name another file, remove it, or go on with it by --resume")
    kept = Document.read(file)
    # As JSON has it: what is asked for now still has its tuples.
    if kept.method != msgspec.json.decode(msgspec.json.encode(method)):
        raise Unreadable(f"{file} was measured with other options: give the same ones, or name another file")
    if (kernel := kept.environment.get("kernel")) != fresh.environment["kernel"]:
        raise Unreadable(f"{file} was measured in kernel {kernel}: name another file")
    kept.outcomes = [outcome for outcome in kept.outcomes if outcome.complete]
    return kept


def run(
    parts: Sequence[Part], document: Document, file: Path | None, finish: Callable[[Document], None] | None = None
) -> int:
    """Measure what ``document`` has not, print tables of all of it; the exit status: 1 if a contestant fell out.

    After Ctrl-C with what there is until then. ``finish``: is given the document when all is told, also then.
    """
    done = {outcome.key for outcome in document.outcomes}
    left = [part for part in parts if part.key not in done]
    for mode, why in document.skipped.items():
        _say(f"mode {mode} is left out: it can't run here: {why}")
    if done:
        _say(f"{len(done)} of {len(parts)} parts are there already")
    status = _measure(left, document, file)
    document.complete = {part.key for part in parts} <= {one.key for one in document.outcomes if one.complete}
    document.environment["load after"] = f"{os.getloadavg()[0]:.2f}"
    if not any(outcome.figures for outcome in document.outcomes):
        _say("nothing was measured")
    status = _keep(document, file) or status
    show(document, to_stderr=file == STDOUT)
    for outcome in document.outcomes:
        for name, why in outcome.failed.items():
            _say(f"{outcome.key}: {name} fell out: {why}")
            status = status or 1
    if file == STDOUT:
        sys.stdout.buffer.write(msgspec.json.encode(document) + b"\n")
    if finish is not None:
        finish(document)
    return status


def show(document: Document, *, to_stderr: bool = False) -> None:
    """Tables of all of it, and what a reader has to know about them."""
    stream = sys.stderr if to_stderr else sys.stdout
    console = Console(width=None if stream.isatty() else _WIDTH, highlight=False, stderr=to_stderr)
    has_ratios = False
    for group in tables.by_size([one for one in document.outcomes if one.figures]):
        if (table := tables.quantiles(group)) is not None:
            console.print(table)
        console.print(tables.overview(group))
        for remark in _remarks(group):
            console.print(remark, markup=False)
        has_ratios |= any(figure.ratios for outcome in group for figure in outcome.figures)
    if has_ratios:
        console.print(tables.LEGEND, markup=False)


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
    """The exit status."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(elapsed_when_finished=True))
    # It draws when told to, which is while nothing is measured.
    silent = not console.is_terminal
    with Progress(*columns, console=console, transient=True, auto_refresh=False, disable=silent) as progress:
        task = progress.add_task("", total=sum(part.steps for part in parts))
        for number, part in enumerate(parts, 1):
            if silent:
                _say(f"{part.key} ({number} of {len(parts)})")
            reached = sum(one.steps for one in parts[: number - 1])

            def step(what: str, part: Part = part) -> None:
                progress.update(task, description=f"{part.key}: {what}", advance=1)
                progress.refresh()

            progress.update(task, completed=reached)  # who fell out took steps along
            status = 0
            started, clock = time.monotonic(), Clock()
            try:
                part.measure(step)
            except KeyboardInterrupt:
                status = _INTERRUPTED
            except ChildProcessError as error:
                _say(str(error))
                status = 1
            try:
                with held():
                    seconds, load = round(time.monotonic() - started, 1), clock.load()
                    progress.update(task, description=f"{part.key}: computing intervals")
                    progress.refresh()
                    outcome = part.outcome
                    if outcome.figures or outcome.failed:
                        load = outcome.load or load
                        document.outcomes.append(msgspec.structs.replace(outcome, seconds=seconds, load=load))
                    else:
                        for remark in outcome.remarks:  # such as what it takes
                            _say(f"{part.key}: {remark}")
                    if number < len(parts):
                        _keep(document, file)
            except KeyboardInterrupt:
                status = _INTERRUPTED
            if status == _INTERRUPTED:
                _say("interrupted; what counts is what was measured until then")
            if status:
                return status
    return 0


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
