"""`pyproxy bench report`, `compare` and `merge`: what is made of results that are there already."""

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.document import Document


class CannotMeasure(Exception):
    """What a user can do something about; the message is one sentence that says what."""


def add_to(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    words = "a page and pictures of results"
    report = scenarios.add_parser("report", help=words, description=_report.__doc__)
    report.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of --json or of `merge`")
    report.add_argument("folder", type=Path, metavar="DIR", help="that is new or empty")
    report.set_defaults(command=_report)
    compare = scenarios.add_parser(
        "compare", help="what became of the figures of a run in another", description=_compare.__doc__
    )
    compare.add_argument("before", type=Path, metavar="A.json")
    compare.add_argument("after", type=Path, metavar="B.json")
    compare.add_argument("--threshold", type=_percent, default=0.05, metavar="PERCENT",
                         help="what is smaller is no regression (default: 5)")  # fmt: skip
    compare.add_argument("--json", type=Path, metavar="FILE", help="write it there, too")
    compare.set_defaults(command=_compare)
    merge = scenarios.add_parser("merge", help="results of many nodes in one file", description=_merge.__doc__)
    merge.add_argument("files", nargs="+", type=Path, metavar="FILE", help="of --json or of `merge`")
    merge.add_argument("-o", "--output", type=Path, required=True, metavar="FILE")
    merge.add_argument("--force", action="store_true", help="replace what is there")
    merge.set_defaults(command=_merge)


def report_on(documents: "Sequence[Document]", folder: Path) -> None:
    """Write the report, and show how far it is. Raises CannotMeasure."""
    from rich.console import Console

    from bench.report.folder import write_report
    from bench.run import NoPlace

    try:
        with Console(stderr=True).status("drawing") as status:
            write_report(documents, folder, lambda what: status.update(f"drawing {what}"))
    except NoPlace as error:
        raise CannotMeasure(str(error)) from None
    print(f"pyproxy: the report is {folder / 'index.html'}", file=sys.stderr)


def _report(options: argparse.Namespace) -> int:
    """Draw the results of one run, or of a fleet, as a page that needs nothing else, and each plot as SVG and PNG."""
    _check_installed()
    from bench.document import Unreadable
    from bench.merge import together

    try:
        documents = together(options.files)
    except Unreadable as error:
        raise CannotMeasure(str(error)) from None
    report_on(documents, options.folder)
    return 0


def _compare(options: argparse.Namespace) -> int:
    """What became of each figure of run A in run B: worse, better, the same, or not to be told, by intervals and by
    what chance does. The exit status is 0 if nothing is worse, 1 if something is, 2 if they can't be compared."""
    try:
        _check_installed()
    except CannotMeasure as error:  # 1 would say that something is worse
        print(f"pyproxy: {error}", file=sys.stderr)
        return 2
    from bench.compare_report import compare

    return compare(options.before, options.after, options.threshold, options.json)


def _merge(options: argparse.Namespace) -> int:
    """Put results of many nodes into one file, for `report`, and tell what is best on which kernel."""
    _check_installed()
    from bench.merge import merge

    return merge(options.files, options.output, force=options.force)


def _check_installed() -> None:
    """Raises CannotMeasure."""
    if find_spec("rich") is None:
        raise CannotMeasure("what shows results is not installed; install pyproxy[bench]")


def _percent(text: str) -> float:
    try:
        share = float(text) / 100
    except ValueError:
        share = -1.0
    if not 0 <= share <= 10:
        raise argparse.ArgumentTypeError(f"{text!r} is not a percentage from 0 to 1000")
    return share
