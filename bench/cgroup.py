"""A cgroup of a lab's own: the sockets of its node and pods are in it, those of the world outside are not.

Mode ebpf serves the sockets of a cgroup. All of a lab is one process, whose own cgroup would be outside and node at
once; so a thread lives in this one, and opens what is the node's.
"""

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from ebpf import cgroup

Result = TypeVar("Result")

_EMPTIES_S = 5.0


class Cgroup:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._worker = ThreadPoolExecutor(1, "cgroup", self._enter)

    @classmethod
    def named(cls, name: str) -> "Cgroup | None":
        """Below that of this process; None if there is no cgroup v2. Made by `create`, removed by `remove`."""
        parent = _own()
        return cls(parent / name) if parent else None

    def create(self) -> None:
        self.path.mkdir()
        (self.path / "cgroup.type").write_text("threaded")

    def run(self, work: Callable[[], Result]) -> Result:
        """In the thread that lives here: sockets it opens and processes it starts are here, too."""
        return self._worker.submit(work).result()

    def remove(self) -> None:
        """When all processes in it have been ended."""
        self._worker.shutdown()
        end = time.monotonic() + _EMPTIES_S
        while self.path.exists():
            try:
                self.path.rmdir()
            except OSError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _enter(self) -> None:
        (self.path / "cgroup.threads").write_text(str(threading.get_native_id()))


def sweep(prefix: str) -> None:
    """Remove those that a run which was killed left behind: named ``prefix``, a process id that is gone, ``-``."""
    for path in (_own() or Path("/nowhere")).glob(f"{prefix}*"):
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if pid.isdigit() and not Path("/proc", pid).exists():
            try:
                path.rmdir()
            except OSError:
                continue  # somebody is in it yet


def _own() -> Path | None:
    """This process's cgroup."""
    root = cgroup.root()
    of_process = Path("/proc/self/cgroup").read_text().splitlines()
    inside = next((line[len("0::/") :] for line in of_process if line.startswith("0::/")), None)
    if root is None or inside is None or not os.access(root / inside, os.W_OK):
        return None
    return root / inside
