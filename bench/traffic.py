"""What loads a path as fast as it can: programs in C, Debian's, each run on a host of a lab and on one CPU.

Server and client are started anew for each reading. How their memory happens to be laid out moves figures by per cents,
and that is so drawn anew as well, instead of being a contestant's for good.
"""

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from bench.document import Unit
from bench.lab import Host
from bench.measure import Target
from pyproxy.kernel import program

_PATIENCE_S = 10.0
_POLL_S = 0.002
_LISTENS = "0A"


class Measure(NamedTuple):
    """Something that a reading has a value of."""

    name: str
    words: str
    unit: Unit
    less_is_better: bool = False
    """False: a rate, which is nought where a reading came to nothing. What it cost is then unknown."""
    is_compared: bool = True
    """False: a number that is mostly zero has no ratio."""


class Reading(NamedTuple):
    values: dict[str, float]
    """By the name of the measure; empty if it came to nothing."""
    failures: dict[str, int]
    """By error."""


class Traffic(Protocol):
    """One kind of it."""

    @property
    def programs(self) -> Sequence[str]:
        """That it takes, each in the Debian package of that name."""

    @property
    def measures(self) -> Sequence[Measure]:
        """Of each reading; the first is what it is done for."""

    @property
    def port(self) -> int:
        """Where a pod is asked straight."""

    def serving(self, host: Host, cpu: int) -> AbstractContextManager[None]:
        """Somebody answers there. Raises ChildProcessError if the server does not start."""

    def read(self, host: Host, cpu: int, target: Target, seconds: int) -> Reading:
        """What a client there gets done with ``target`` in so many ``seconds``."""


def find(name: str) -> str | None:
    """The program's path; also beside this Python, where the Makefile puts what Debian would start as a service."""
    return program.find(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def version(name: str) -> str:
    """Of the program, which is there: the first thing in what it says that looks like one."""
    said = subprocess.run([find(name) or name, "-v"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return f"{name} {found[0]}" if found else name


def run(host: Host, cpu: int, command: Sequence[str | Path], seconds: float) -> tuple[str, str]:
    """What it wrote to its output and to its errors. It is ended if it takes much longer than so many ``seconds``."""
    process = host.start(_on(cpu, command), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, errors = process.communicate(timeout=seconds + _PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, errors = process.communicate()
    return output.decode(errors="replace"), errors.decode(errors="replace")


@contextmanager
def serving(host: Host, cpu: int, command: Sequence[str | Path], ports: Sequence[int]) -> Iterator[None]:
    """From when it listens at all those ports. Raises ChildProcessError if it does not get there."""
    process = host.start(_on(cpu, command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        end = time.monotonic() + _PATIENCE_S
        while not _listening(process.pid) >= set(ports):
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                said = process.communicate()[1].decode(errors="replace").strip()
                raise ChildProcessError(f"{command[0]} does not serve: {said or 'it says nothing'}")
            time.sleep(_POLL_S)
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def _on(cpu: int, command: Sequence[str | Path]) -> list[str | Path]:
    return ["taskset", "--cpu-list", str(cpu), *command]


def _listening(pid: int) -> set[int]:
    """The TCP ports that somebody listens at where that process is."""
    ports = set()
    for table in ("tcp", "tcp6"):
        try:
            rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
        except OSError:
            continue  # it has ended, or there is no IPv6
        for row in rows:
            _, local, _, state, *_ = row.split()
            if state == _LISTENS:
                ports.add(int(local.rpartition(":")[2], 16))
    return ports
