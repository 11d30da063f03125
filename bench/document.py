"""What measurements say, as a file: `--json FILE`, which reports, comparisons and merges are made of.

A Document has an Outcome for each part that was measured (one scenario at one size), and that has a Figure for each
thing that has a value. Whoever reads them needs to know nothing about scenarios. With the suffix `.gz` it is packed.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

import msgspec

from bench.environment import Load
from bench.estimate import Estimate

FORMAT, VERSION = "pyproxy bench", 2
Unit = Literal["ns", "s", "MiB", "1/s", "bit/s", "1"]
"""1: a number of things."""


class Unreadable(Exception):
    """The file is no document of this version. The message is one sentence for the user that names it."""


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was measured of one contestant. What identifies it is (contestant, way, measure)."""

    contestant: str
    way: str = ""
    """From whom to whom, such as ``cluster-ip``; empty where that is no question."""
    measure: str
    """Such as ``connect``."""
    title: str
    """Way and measure in words."""
    unit: Unit
    less_is_better: bool = True
    quantiles: dict[str, Estimate] = {}
    """``p50``, ``p90``, ``p99``, ``p99.9`` and ``max``: those for which there are samples enough. What was measured
    once only has a p50 whose interval has no width."""
    ratios: dict[str, Estimate] = {}
    """The same, to the floor's."""
    differs: bool | None = None
    """Whether p50 is told apart from the floor's by more than chance; None: no floor, or too few rounds."""
    failures: dict[str, int] = {}
    """What came to nothing, by error."""
    samples: list[list[float]] = []
    """All of them, in order, by round."""


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What the contestants' figures of one way and measure say together."""

    way: str = ""
    measure: str
    resolution: float | None = None
    """What chance does to a ratio in this run, as a share; None: not known."""
    fastest: list[str] = []
    """The best, and after it those that are not told apart from it; empty: nothing is told."""
    rivals: list[str] = []
    """Who competes for that; empty: all but floor and control."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one part."""

    key: str
    """Names the part, such as ``sync, nftables, 1,000 x 2``; unique in a document."""
    scenario: str
    services: int
    endpoints: int
    """Of each service."""
    complete: bool
    """False: it was interrupted, and says what there was until then."""
    seconds: float = 0.0
    """That it took, preparations included."""
    rounds: int = 1
    figures: list[Figure] = []
    findings: list[Finding] = []
    failed: dict[str, str] = {}
    """Contestants that fell out, and why, with the end of their log."""
    remarks: list[str] = []
    """For the reader, each a sentence."""
    load: Load | None = None
    """Of the machine while this was measured."""


class Document(msgspec.Struct, kw_only=True):
    format: str = FORMAT
    version: int = VERSION
    environment: dict[str, str]
    """As `environment()` says; ``node`` is its name."""
    method: dict[str, Any]
    """What was asked for. Parts of two documents go together only if these are equal."""
    skipped: dict[str, str] = {}
    """Modes that this kernel can't run, and why."""
    outcomes: list[Outcome] = []
    """In the order in which they were measured."""
    complete: bool = False
    """Whether all that was asked for is there."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises Unreadable."""
        return decode(path, unpacked(path), cls, FORMAT)

    def write(self, path: Path) -> None:
        """As a whole or not at all, unless it is a device. Raises OSError."""
        put(path, msgspec.json.encode(self))


Kind = TypeVar("Kind")
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError)
"""What msgspec raises: the other one if a string is no UTF-8."""


def unpacked(path: Path) -> bytes:
    """What is in the file. Raises Unreadable."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from None


def format_of(path: Path, content: bytes) -> tuple[str, int]:
    """What format it says it is of, and which version of that. Raises Unreadable."""
    try:
        about = msgspec.json.decode(content, type=_About)
    except _UNDECODABLE as error:
        raise _unreadable(path, error) from None
    return about.format, about.version


def decode(path: Path, content: bytes, kind: type[Kind], expected: str) -> Kind:
    """``content`` of ``path``, if it is of that format. Raises Unreadable."""
    said, version = format_of(path, content)
    if said != expected:
        raise Unreadable(f"{path} is no result of `{expected}`")
    if version != VERSION:
        raise Unreadable(f"{path} is of version {version}, and this pyproxy reads {VERSION}: measure again")
    try:
        return msgspec.json.decode(content, type=kind)
    except _UNDECODABLE as error:
        raise _unreadable(path, error) from None


def put(path: Path, content: bytes) -> None:
    """As a whole or not at all, unless it is a device; packed if it is named so. Raises OSError."""
    content += b"\n"
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    if path.exists() and not path.is_file():
        path.write_bytes(content)
        return
    staging = path.with_name(f".{path.name}.new")
    try:
        staging.write_bytes(content)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _unreadable(path: Path, error: Exception) -> Unreadable:
    return Unreadable(f"{path} can't be read: {getattr(error, 'strerror', None) or error}")


class _About(msgspec.Struct):
    format: str = ""
    version: int = 0
