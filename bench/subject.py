"""The proxy under test: a process on the lab's node."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bench.lab import CLUSTER_CIDRS, NODE_NAME, Lab

_TICK = os.sysconf("SC_CLK_TCK")
_ENDS_S = 10.0


@dataclass(frozen=True, slots=True)
class Usage:
    cpu_seconds: float
    """Of the process and of its children that have ended."""
    resident_mib: float
    peak_mib: float


def pyproxy_run(mode: str, *flags: str | Path) -> list[str]:
    """The command for a `pyproxy run` in the lab; ``flags`` say where its Services come from."""
    command = [sys.executable, "-m", "pyproxy", "run", "--mode", mode, *map(str, flags)]
    return [*command, "--hostname-override", NODE_NAME, "--cluster-cidr", CLUSTER_CIDRS]


def logged(log: IO[bytes]) -> str:
    """All of it until now, without moving the place where the proxy writes."""
    return Path(f"/proc/self/fd/{log.fileno()}").read_text(errors="replace")


class Subject:
    """Started in a lab that outlives it. What it wrote to the kernel stays when it ends."""

    def __init__(self, lab: Lab, command: Sequence[str], log: IO[bytes]) -> None:
        self._process = lab.node.namespace.start(command, stdout=log, stderr=log)

    @property
    def pid(self) -> int:
        return self._process.pid

    def usage(self) -> Usage:
        """Until now."""
        text = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = sum(int(text[index]) for index in (11, 12, 13, 14))  # utime, stime, cutime, cstime
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines())
        kib = {name: int(status[name].split()[0]) for name in ("VmRSS", "VmHWM")}
        return Usage(ticks / _TICK, kib["VmRSS"] / 1024, kib["VmHWM"] / 1024)

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
