"""A Dockerfile as values, read strictly: what this does not know, `docker build` would do and the tests would not."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path

_KNOWN = ("FROM", "RUN", "COPY", "ENV", "ARG", "WORKDIR", "USER", "ENTRYPOINT", "CMD")


class DockerfileError(Exception):
    """Names the line."""


@dataclass(frozen=True, slots=True)
class Step:
    keyword: str
    text: str
    """All behind the keyword, continued lines joined, comments left out."""

    @property
    def words(self) -> list[str]:
        """Of COPY, ENV, ARG, WORKDIR and USER."""
        return shlex.split(self.text)

    @property
    def command(self) -> list[str]:
        """Of ENTRYPOINT and CMD, in their JSON form: the other one would put a shell in between."""
        command = json.loads(self.text)
        if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
            raise DockerfileError(f"{self.keyword} is no list of words: {self.text}")
        return command


@dataclass(frozen=True, slots=True)
class Stage:
    base: str
    name: str
    """As COPY --from knows it; the last stage has none."""
    steps: tuple[Step, ...]
    start: "Stage | None" = None
    """The earlier one that ``base`` names, if it does."""

    def last(self, keyword: str) -> Step:
        """The one that is in force. Raises DockerfileError."""
        for step in reversed(self.steps):
            if step.keyword == keyword:
                return step
        if self.start:
            return self.start.last(keyword)
        raise DockerfileError(f"no {keyword} in stage {self.name or self.base}")


def parse(text: str) -> list[Stage]:
    """Raises DockerfileError."""
    parts: list[tuple[Step, list[Step]]] = []
    for step in _steps(text):
        if step.keyword == "FROM":
            parts.append((step, []))
        elif not parts:
            raise DockerfileError(f"{step.keyword} before the first FROM")
        else:
            parts[-1][1].append(step)
    if not parts:
        raise DockerfileError("no FROM")
    stages: dict[str, Stage] = {}
    for start, steps in parts:
        base, name = _base_and_name(start)
        stages[name] = Stage(base, name, tuple(steps), stages.get(base))
    return list(stages.values())


def admitted(ignore_file: Path) -> set[str]:
    """What .dockerignore lets through, of the one form used here: all but what is named with ``!``."""
    lines = [line for line in ignore_file.read_text().splitlines() if line and not line.startswith("#")]
    if lines[0] != "*" or lines[-1] != "**/__pycache__":
        raise DockerfileError(f"{ignore_file} has another form")
    if wrong := [line for line in lines[1:-1] if not line.startswith("!") or "*" in line]:
        raise DockerfileError(f"{ignore_file}: {wrong[0]}")
    return {line.removeprefix("!") for line in lines[1:-1]}


def _base_and_name(step: Step) -> tuple[str, str]:
    match step.words:
        case [base]:
            return base, ""
        case [base, "AS", name]:
            return base, name
    raise DockerfileError(f"FROM {step.text}")


def _steps(text: str) -> list[Step]:
    steps = []
    logical = ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or not line.strip():  # also between the lines of one instruction
            continue
        logical += line.strip()
        if logical.endswith("\\"):
            logical = logical.removesuffix("\\")
            continue
        keyword, _, rest = logical.partition(" ")
        if keyword not in _KNOWN or not rest:
            raise DockerfileError(f"line {number}: unknown instruction: {logical}")
        steps.append(Step(keyword, rest.strip()))
        logical = ""
    if logical:
        raise DockerfileError(f"the last line is continued by nothing: {logical}")
    return steps
