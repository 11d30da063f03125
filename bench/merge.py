"""Results of many nodes in one file: `pyproxy bench merge`."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench import fleet
from bench.document import VERSION, Document, Unreadable, decode, format_of, put, unpacked
from bench.terminal import console

FORMAT = "pyproxy bench merged"
_WHOSE = ("node", "kernel", "date")


class Merged(msgspec.Struct, kw_only=True):
    format: str = FORMAT
    version: int = VERSION
    documents: list[Document]
    """One or more, each of another node, kernel, day or method."""


def read_all(path: Path) -> list[Document]:
    """Those of a merged file, or the one of a run. Raises Unreadable."""
    content = unpacked(path)
    if format_of(path, content)[0] == FORMAT:
        return decode(path, content, Merged, FORMAT).documents
    return [Document.read(path)]


def merge(files: Sequence[Path], output: Path, *, force: bool = False) -> int:
    """Write ``output`` and print what the nodes say; the exit status. ``force``: replace a file that is there."""
    if output.exists() and not force:
        return _refuse(f"{output} exists: name another file, or say --force")
    try:
        documents = together(files)
        put(output, msgspec.json.encode(Merged(documents=documents)))
    except Unreadable as error:
        return _refuse(str(error))
    except OSError as error:
        return _refuse(f"{output} can't be written: {error.strerror}")
    stdout = console()
    verdicts = fleet.verdicts(documents)
    if verdicts:
        stdout.print(fleet.table(documents, verdicts))
    for line in fleet.summary(documents, verdicts):
        stdout.print(line, markup=False)
    return 0


def together(files: Sequence[Path]) -> list[Document]:
    """All documents of these files, in their order. Raises Unreadable, also if one is there twice."""
    seen: dict[bytes, Path] = {}
    documents = []
    for path in files:
        for document in read_all(path):
            whose = [document.environment.get(field, "") for field in _WHOSE]
            identity = msgspec.json.encode([whose, document.method], order="sorted")
            if identity in seen:
                raise Unreadable(f"{path} has what {seen[identity]} has, of {', '.join(whose)}: leave one of them out")
            seen[identity] = path
            documents.append(document)
    return documents


def _refuse(why: str) -> int:
    print(f"pyproxy: {why}", file=sys.stderr)
    return 1
