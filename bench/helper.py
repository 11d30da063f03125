"""A process of its own for what must not wait for anything else: it is told a line, and says one."""

import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self


class Helper:
    """Use as a context manager."""

    def __init__(self, module: str, *arguments: str) -> None:
        """``module``: of bench, whose `main` ends with its standard input."""
        self._module = module
        self._command = [sys.executable, "-m", module, *arguments]

    def __enter__(self) -> Self:
        # In a process group of its own, so that Ctrl-C reaches only the one who cleans up.
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # of a line that it did not live to read
            self._process.stdin.close()
        self._process.stdout.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def exchange(self, line: bytes) -> bytes:
        """What it says to that. Raises ChildProcessError if it has ended."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        return self.answer()

    def answer(self) -> bytes:
        """Its next line. Raises ChildProcessError if it has ended."""
        assert self._process.stdout is not None
        answer = self._process.stdout.readline()
        if not answer.endswith(b"\n"):
            raise ChildProcessError(f"{self._module} has ended; what it said is above")
        return answer
