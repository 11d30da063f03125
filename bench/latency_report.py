"""What `bench latency` shows: progress while it measures, tables afterwards, and everything as JSON."""

import itertools
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.contestant import CONTROL, FLOOR
from bench.environment import environment
from bench.estimate import FEWEST_ROUNDS, Estimate
from bench.latency import WAYS, Cell, LatencyBench, LatencyResult, Plan
from bench.latency_figures import SHARES, Figure, LatencyFigures
from bench.measure import MEASURES
from bench.place import processors
from pyproxy import modes

FORMAT, VERSION = "pyproxy bench latency", 1
"""Of the JSON."""
_WIDTH = 160
"""Of tables where there is no terminal to fit."""
_INTERRUPTED = 130


def report(benches: Sequence[LatencyBench], plan: Plan, skipped: Mapping[str, str], json_file: Path | None) -> int:
    """Measure one size after the other, print tables, write ``json_file``; the exit status.

    After Ctrl-C with what there is until then. ``skipped``: modes that this kernel can't run, and why.
    """
    if json_file is not None and not json_file.parent.is_dir():
        print(f"pyproxy: there is no folder {json_file.parent}", file=sys.stderr)
        return 1
    for mode, why in skipped.items():
        print(f"pyproxy: mode {mode} is left out: it can't run here: {why}", file=sys.stderr)
    surroundings = environment()
    status = _measure(benches)
    relaying = frozenset(name for name in modes.names() if modes.load(name).ends_connections)
    measured = [LatencyFigures(bench.result, relaying) for bench in benches if bench.result.rounds]
    if not measured:
        print("pyproxy: nothing was measured", file=sys.stderr)
    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    with Console(stderr=True).status("computing intervals"):
        for figures in measured:
            figures.compute()
    for figures in measured:
        console.print(_quantiles(figures))
    for figures in measured:
        console.print(_ratios(figures))
        for line in _remarks(figures):
            console.print(line, markup=False)
    for bench in benches:
        for name, why in bench.result.failed.items():
            print(f"pyproxy: {name} fell out at {_size(bench)}: {why}", file=sys.stderr)
            status = status or 1
    if json_file is not None and measured:
        whole = {
            "format": FORMAT,
            "version": VERSION,
            "complete": all(bench.result.rounds == plan.rounds for bench in benches),
            "environment": surroundings | {"load after": f"{os.getloadavg()[0]:.2f}"},
            "method": _method(plan),
            "skipped": dict(skipped),
            "sizes": [_as_json(figures) for figures in measured],
        }
        try:
            json_file.write_text(json.dumps(whole) + "\n")
        except OSError as error:
            print(f"pyproxy: {json_file} can't be written: {error.strerror}", file=sys.stderr)
            status = status or 1
    return status


def _measure(benches: Sequence[LatencyBench]) -> int:
    """The exit status."""
    # It draws when told to, which is while nothing is measured.
    with Progress(console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=sum(bench.steps for bench in benches))
        try:
            for bench in benches:
                size = _size(bench)

                def step(what: str, size: str = size) -> None:
                    progress.update(task, description=f"{size}: {what}", advance=1)
                    progress.refresh()

                bench.measure(step)
        except KeyboardInterrupt:
            print("pyproxy: interrupted; what counts are the rounds until then", file=sys.stderr)
            return _INTERRUPTED
        except ChildProcessError as error:
            print(f"pyproxy: {error}", file=sys.stderr)
            return 1
    return 0


def _size(bench: LatencyBench) -> str:
    return f"{bench.result.services:,} x {bench.result.endpoints}"


def _quantiles(figures: LatencyFigures) -> Table:
    result = figures.result
    table = _table(result, f"times in µs, {result.rounds} rounds")
    table.add_column("contestant")
    for name in SHARES:
        table.add_column(name, justify="right")
    for way in WAYS:
        for measure, words in MEASURES.items():
            for number, contestant in enumerate(result.contestants):
                figure = figures.cells.get(Cell(contestant, way.name, measure))
                heads = ("", "") if number else (way.words, words)
                last = number == len(result.contestants) - 1
                table.add_row(*heads, contestant, *(_microseconds(figure, name) for name in SHARES), end_section=last)
    return table


def _table(result: LatencyResult, what: str) -> Table:
    """With the columns that all have."""
    title = f"{result.services:,} services x {result.endpoints} endpoints: {what}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("from whom to whom")
    table.add_column("what")
    return table


def _ratios(figures: LatencyFigures) -> Table:
    """The finding: who costs how much."""
    table = _table(figures.result, "p50 as a ratio to the floor's")
    table.add_column(f"{FLOOR}, µs", justify="right")
    for name in (CONTROL, *figures.modes):
        table.add_column(name, justify="right")
    if len(figures.modes) > 1:
        table.add_column("fastest", overflow="fold")
    for way in WAYS:
        for number, (measure, words) in enumerate(MEASURES.items()):
            cells = [figures.cells.get(Cell(name, way.name, measure)) for name in (CONTROL, *figures.modes)]
            row = ["" if number else way.words, words]
            row.append(_microseconds(figures.cells.get(Cell(FLOOR, way.name, measure)), "p50"))
            row += [_ratio(figure) for figure in cells]
            if len(figures.modes) > 1:
                row.append(_fastest(figures, way.name, measure))
            table.add_row(*row, end_section=number == len(MEASURES) - 1)
    return table


def _microseconds(figure: Figure | None, name: str) -> str:
    if figure is None or name not in figure.quantiles_ns:
        return ""
    return f"{figure.quantiles_ns[name].value / 1000:.1f}"


def _ratio(figure: Figure | None) -> str:
    if figure is None or "p50" not in figure.ratios:
        return ""
    ratio = figure.ratios["p50"]
    sign = "" if figure.differs else "≈ "
    return f"{sign}{ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f})"


def _fastest(figures: LatencyFigures, way: str, measure: str) -> str:
    return " ≈ ".join(figures.fastest(way, measure)) or "not told"


def _remarks(figures: LatencyFigures) -> Iterator[str]:
    result, load = figures.result, figures.result.load
    client, server = processors()
    yield (
        "In brackets: where 95 % of 1,000 bootstraps over the rounds fall. ≈: not told apart, from the floor or from "
        "each other, by more than chance does, which control shows: another path without a proxy."
    )
    where = f"Client on CPU {client}, server on CPU {server}" if client != server else "Client and server on one CPU"
    spent = f"of each time {statistics.median(result.client_ns) / 1000:.2f} µs are the client's own"
    busy = f"; all CPUs were {load.busy:.0%} busy, {load.stolen:.1%} stolen by the hypervisor" if load else ""
    yield f"{where}; {spent}; it was preempted {result.preempted} times{busy}."
    if chances := list(_chances(figures)):
        chance, which = max(chances)
        yield f"What is smaller than chance is not seen, and that is up to {chance:.1%} here ({which})."
    else:
        yield f"With {result.rounds} rounds nothing is told apart: that takes {FEWEST_ROUNDS}, better 60."
    if relaying := figures.relaying_here:
        yield f"In mode {', '.join(relaying)} connect() ends at this node's relay: it is no rival there."
    for cell, failures in result.failures.items():
        if failures:
            said = ", ".join(f"{name} {count} times" for name, count in failures.items())
            yield f"FAILED: {cell.contestant}, {cell.way}, {cell.measure}: {said}"


def _chances(figures: LatencyFigures) -> Iterator[tuple[float, str]]:
    """What chance does to each ratio, and to which."""
    for way, (measure, words) in itertools.product(WAYS, MEASURES.items()):
        chance = figures.resolution(way.name, measure)
        if chance is not None:
            yield chance, f"{way.words}, {words}"


def _method(plan: Plan) -> dict[str, Any]:
    client, server = processors()
    return {
        "rounds": plan.rounds,
        "samples": plan.samples,
        "warm up": plan.warm_up,
        "seed": plan.seed,
        "client cpu": client,
        "server cpu": server,
    }


def _as_json(figures: LatencyFigures) -> dict[str, Any]:
    result = figures.result
    return {
        "services": result.services,
        "endpoints": result.endpoints,
        "rounds": result.rounds,
        "failed": result.failed,
        "client_ns": statistics.median(result.client_ns),
        "preempted": result.preempted,
        "load": msgspec.structs.asdict(result.load) if result.load else None,
        "findings": [
            {
                "way": way.name,
                "measure": measure,
                "resolution": figures.resolution(way.name, measure),
                "fastest": figures.fastest(way.name, measure),
            }
            for way in WAYS
            for measure in MEASURES
        ],
        "cells": [
            cell._asdict()
            | {
                "quantiles_ns": _estimates(figure.quantiles_ns),
                "ratios": _estimates(figure.ratios),
                "differs": figure.differs,
                "failures": dict(result.failures[cell]),
                "samples_ns": [list(samples) for samples in result.samples[cell]],
            }
            for cell, figure in figures.cells.items()
        ],
    }


def _estimates(some: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: msgspec.structs.asdict(one) for name, one in some.items()}
