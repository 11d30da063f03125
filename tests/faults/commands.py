"""Runs `pyproxy` as a user does, in the namespace of a lab's node."""

import subprocess
import sys
from collections.abc import Sequence

from bench.lab import Lab


def pyproxy(lab: Lab, *arguments: str, inside: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """``inside``: a command that runs it, such as setpriv."""
    command = ["nsenter", f"--net={lab.node.namespace.path}", "--", *inside, sys.executable, "-m", "pyproxy"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60)


def is_one_sentence(error: str) -> bool:
    """What a user's mistake gets: one line, no traceback."""
    return error.count("\n") == 1 and error.startswith("pyproxy: ") and "Traceback" not in error
