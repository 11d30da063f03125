"""Which mode passes the conformance suite in which kernel: `python -m tests.kernels matrix`.

There is nothing here about which modes there are: each kernel is asked, by `probe`.
"""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.kernels import probe
from tests.kernels.guest import CHECKOUT, NoKernel
from tests.kernels.kept import Kept
from tests.kernels.probe import Offer, Variant
from tests.kernels.result import Broken, Column, Lacking, Outcome, Result

Run = Callable[[Sequence[str], Path], int]
"""Runs a command in some kernel and brings one file that it makes, at the same place; its exit status."""
_BEGIN, _END = "<!-- what follows is written by `make test-kernels` -->\n", "<!-- up to here -->\n"


class NoPlace(Exception):
    """The file has no place for the table. The message is one sentence for the user."""


def host(command: Sequence[str], _made: Path) -> int:
    """In the kernel at hand, for comparison. It is not ended: it would leave its namespaces."""
    environment = {**os.environ, "PATH": f"{CHECKOUT}/.venv/bin:{os.environ['PATH']}"}
    return subprocess.run(command, check=False, cwd=CHECKOUT, env=environment).returncode


def run_all(kernels: Mapping[str, Callable[[], Run]], modes: Sequence[str], pytest: Sequence[str], kept: Kept) -> None:
    """One suite after the other, each kept as soon as it has ended.

    ``kernels``: by name, what makes them ready and may raise NoKernel. ``modes``: those that are asked for; none: all.
    ``pytest``: arguments for it.
    """
    for kernel, ready in kernels.items():
        try:
            run = ready()
            offer = _offer(run)
        except NoKernel as error:
            print(f"{kernel}: {error}", flush=True)
            kept.keep(kernel, "not here", "any", Broken(str(error)))
            continue
        for variant in offer.variants:
            if not modes or variant.mode in modes or variant.name in modes:
                outcome = Lacking(variant.lacks) if variant.lacks else _suite(run, variant, pytest)
                print(f"\n{kernel}, {variant.name}: {outcome}\n", flush=True)
                kept.keep(kernel, f"Linux {offer.release}", variant.name, outcome)


def table(done: Sequence[Column]) -> str:
    """As Markdown, with reasons and failures below it."""
    names = dict.fromkeys(name for column in done for name in column.cells)
    rows = [["mode", *(f"{column.kernel}: {column.release}" for column in done)], ["---"] * (len(done) + 1)]
    rows += [[name, *(str(column.cells.get(name, "not tried")) for column in done)] for name in names]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    notes = [
        f"- {column.kernel}, {name}: {note}"
        for column in done
        for name, cell in column.cells.items()
        for note in _notes(cell)
    ]
    return "\n".join([*lines, *(["", *notes] if notes else []), ""])


def write(path: Path, content: str) -> None:
    """In place of the table before. Raises NoPlace."""
    before, begin, rest = path.read_text().partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not (begin and end):
        raise NoPlace(f"{path} has no place for the table: put the lines {_BEGIN.strip()} and {_END.strip()} into it")
    path.write_text(f"{before}{begin}\n{content}\n{end}{after}")


def _offer(run: Run) -> Offer:
    """Raises NoKernel."""
    with tempfile.TemporaryDirectory(prefix="pyproxy-matrix-", dir="/var/tmp") as folder:
        path = Path(folder, "offer.json")
        status = run(["python", "-m", "tests.kernels.probe", str(path)], path)
        if not path.exists():
            raise NoKernel(f"asked what it offers, it ended with status {status}")
        return probe.read(path)


def _suite(run: Run, variant: Variant, pytest: Sequence[str]) -> Result | Broken:
    with tempfile.TemporaryDirectory(prefix="pyproxy-matrix-", dir="/var/tmp") as folder:
        report = Path(folder, "report.xml")
        options = ["-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *variant.options, *pytest]
        status = run(["pytest", "tests/conformance", *options], report)
        if not report.exists():
            return Broken(f"ended with status {status}")
        return Result.read(report)


def _notes(cell: Outcome) -> Iterator[str]:
    if isinstance(cell, Lacking):
        yield cell.reason
    if isinstance(cell, Result):
        yield from (f"`{name}` failed" for name in cell.failures)
