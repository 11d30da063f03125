"""What came of the suite the last time, by kernel and mode: a whole matrix takes hours, and is made piece by piece."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.kernels.result import Broken, Column, Lacking, Outcome, Result

_KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Result, Lacking, Broken)}


class Kept:
    """In a file that several may write to, each in its turn; it is read anew each time."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, kernel: str, release: str, name: str, outcome: Outcome) -> None:
        """In place of the last one. What came of the same kernel in another release is forgotten."""
        kernels = self._read()
        if kernels.get(kernel, {}).get("release") != release:
            kernels[kernel] = {"release": release, "cells": {}}
        kernels[kernel]["cells"][name] = {"kind": type(outcome).__name__, **asdict(outcome)}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(kernels, indent=1))

    def columns(self) -> list[Column]:
        return [
            Column(kernel, column["release"], {name: _outcome(**cell) for name, cell in column["cells"].items()})
            for kernel, column in sorted(self._read().items())
        ]

    def _read(self) -> dict[str, Any]:
        kernels: dict[str, Any] = json.loads(self._path.read_text()) if self._path.exists() else {}
        return kernels


def _outcome(kind: str, **fields: Any) -> Outcome:
    outcome: Outcome = _KINDS[kind](**fields)
    return outcome
