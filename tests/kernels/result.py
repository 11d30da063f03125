"""How a mode fared in a kernel."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from xml.etree import ElementTree


@dataclass(frozen=True, slots=True)
class Result:
    """The suite has come to its end."""

    passed: int
    skipped: int
    failures: list[str]
    """Names of tests."""
    seconds: float
    day: str
    """On which it began, as ISO 8601 has it."""

    @classmethod
    def read(cls, report: Path) -> Self:
        """From pytest's report in JUnit's format."""
        suite = next(ElementTree.parse(report).getroot().iter("testsuite"))  # noqa: S314 - pytest wrote it
        fates: dict[str, str] = {}
        for case in suite.iter("testcase"):
            # One that fails in its body and in what follows it is there twice.
            name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
            fates[name] = "failed" if fates.get(name) == "failed" else _fate(case)
        failures = [name for name, fate in fates.items() if fate == "failed"]
        count = Counter(fates.values())
        day = suite.get("timestamp", "").partition("T")[0]
        return cls(count["passed"], count["skipped"], failures, float(suite.get("time", "0")), day)

    def __str__(self) -> str:
        counts = [f"{self.passed} passed"]
        counts += [f"**{len(self.failures)} failed**"] if self.failures else []
        counts += [f"{self.skipped} skipped"] if self.skipped else []
        return f"{', '.join(counts)} in {self.seconds / 60:.0f} min, {self.day}"


@dataclass(frozen=True, slots=True)
class Lacking:
    """The kernel can't run it, so nothing has failed."""

    reason: str

    def __str__(self) -> str:
        return "not in this kernel"


@dataclass(frozen=True, slots=True)
class Broken:
    """The suite has not come to its end, or not to its beginning."""

    reason: str

    def __str__(self) -> str:
        return f"**{self.reason}**"


Outcome = Result | Lacking | Broken


@dataclass(frozen=True, slots=True)
class Column:
    kernel: str
    release: str
    cells: Mapping[str, Outcome]
    """By the names of variants."""

    @property
    def is_green(self) -> bool:
        return not any(isinstance(c, Broken) or (isinstance(c, Result) and c.failures) for c in self.cells.values())


def _fate(case: ElementTree.Element) -> str:
    inside = {child.tag for child in case}
    if inside & {"failure", "error"}:
        return "failed"
    return "skipped" if "skipped" in inside else "passed"
