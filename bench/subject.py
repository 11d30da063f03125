"""The proxy under test: a process on the lab's node."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from bench.lab import CLUSTER_CIDRS, NODE_NAME, Lab

_ENDS_S = 10.0
_LOG_TAIL = 2000


def pyproxy_run(mode: str, *flags: str | Path) -> list[str]:
    """The command for a `pyproxy run` in the lab; ``flags`` say where its Services come from."""
    command = [sys.executable, "-m", "pyproxy", "run", "--mode", mode, *map(str, flags)]
    return [*command, "--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDRS]


def logged(log: IO[bytes]) -> str:
    """All of it until now, without moving the place where the proxy writes."""
    return Path(f"/proc/self/fd/{log.fileno()}").read_text(errors="replace")


def last_words(log: IO[bytes]) -> str:
    """The end of it, as much as tells why a proxy has ended."""
    return logged(log)[-_LOG_TAIL:]


class Subject:
    """Started in a lab that outlives it. What it wrote to the kernel stays when it ends."""

    def __init__(self, lab: Lab, command: Sequence[str], log: IO[bytes]) -> None:
        self._process = lab.node.namespace.start(command, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def stop(self, number: signal.Signals = signal.SIGTERM, patience_s: float = _ENDS_S) -> int:
        """The exit status; of who had to be killed, since the signal did not end it in time, -9."""
        self._process.send_signal(number)
        try:
            return self._process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
