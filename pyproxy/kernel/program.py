"""Programs of the host: found where they are, run without a shell."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from pyproxy.kernel.error import as_mode_error

_SBIN = "/usr/sbin:/sbin:/usr/local/sbin"


@dataclass(frozen=True, slots=True)
class Finished:
    """How it ended, and what it said."""

    status: int
    output: str
    errors: str
    pid: int


def find(name: str) -> str | None:
    """Its path, also where PATH does not lead to the programs of administrators."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def run(command: list[str], stdin: str = "") -> Finished:
    """Until it ends, however it ends. Raises ModeError if there is no memory or no process left, for instance."""
    pipe = subprocess.PIPE
    with (
        as_mode_error(f"{Path(command[0]).name} could not be run"),
        subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, errors="replace") as process,
    ):
        output, errors = process.communicate(stdin)
    return Finished(process.returncode, output, errors, process.pid)
