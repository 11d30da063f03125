"""The folder of a report: `index.html`, each plot as SVG and PNG for slides, and `results.json`."""

import gzip
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from bench.document import Document
from bench.merge import Merged
from bench.run import NoPlace

_LIBRARIES = ("vl_convert", "jinja2")
_MOST_BYTES = 6 << 20
"""Of packed results in the page. With more, it has them without samples, and these are only in the file beside it."""
_SCALE = 2.0
"""Of PNG: slides are large."""


def prepare(folder: Path) -> None:
    """Make it, if it is not there, and see to it that a report can be written: before anything is measured.

    Raises NoPlace: also if there is anything in it, since nothing is overwritten, or a library lacks.
    """
    if not all(map(importlib.util.find_spec, _LIBRARIES)):
        raise NoPlace("what draws a report is not installed; install pyproxy[bench]")
    if not folder.parent.is_dir():
        raise NoPlace(f"there is no folder {folder.parent}")
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise NoPlace(f"no report can be written to {folder}: {error.strerror}") from None
    if not is_empty:
        raise NoPlace(f"{folder} is not empty: name another folder for the report, or remove it")


def write_report(documents: Sequence[Document], folder: Path, step: Callable[[str], None] = lambda _: None) -> None:
    """All of it or nothing, but for `results.json`: once written it stays, since the results may be nowhere else.

    ``step`` is told what comes next; it takes a second for each plot. Raises NoPlace, as `prepare` does.
    """
    from bench.report import picture
    from bench.report.chapter import chapters
    from bench.report.page import page

    prepare(folder)
    read = chapters(documents)
    results = _results(documents)
    written: list[Path] = []

    def write(name: str, content: bytes) -> None:
        written.append(folder / name)
        written[-1].write_bytes(content)

    try:
        step("the page")
        write("results.json", results)
        written.clear()
        attached = gzip.compress(results, mtime=0)
        if not (has_samples := len(attached) <= _MOST_BYTES):
            attached = gzip.compress(_results(list(map(_without_samples, documents))), mtime=0)
        write("index.html", page(read, attached, has_samples=has_samples).encode())
        for name, plot in picture.all_of(read):
            step(name)
            svg = picture.svg(plot)
            write(f"{name}.svg", svg.encode())
            write(f"{name}.png", picture.png(svg, _SCALE))
    except BaseException as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise NoPlace(f"no report can be written to {folder}: {error.strerror}") from None
        raise


def _results(documents: Sequence[Document]) -> bytes:
    whole = documents[0] if len(documents) == 1 else Merged(documents=list(documents))
    return msgspec.json.encode(whole) + b"\n"


def _without_samples(document: Document) -> Document:
    replace = msgspec.structs.replace
    outcomes = [
        replace(one, figures=[replace(figure, samples=[]) for figure in one.figures]) for one in document.outcomes
    ]
    return replace(document, outcomes=outcomes)
