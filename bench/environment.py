"""What a measurement was made on and with, so that its figures can be told from those of another machine or day."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pyproxy import __version__

_CPUS = Path("/sys/devices/system/cpu")
_STEAL = 7
"""Which number of a line of /proc/stat; the first is user."""
_IDLE = (3, 4)


def environment() -> dict[str, str]:
    """Empty where this machine does not say."""
    return {
        "node": os.environ.get("NODE_NAME") or platform.node(),  # a pod has a name of its own
        "date": datetime.now(UTC).date().isoformat(),
        "pyproxy": __version__,
        "kernel": platform.release(),
        "machine": f"{os.cpu_count()} cores",
        "cpu": _cpu("model name"),
        "virtual": "yes" if "hypervisor" in _cpu("flags").split() else "no",
        "governor": ", ".join(sorted({_text(path) for path in _CPUS.glob("cpu[0-9]*/cpufreq/scaling_governor")})),
        "idle": _text(_CPUS / "cpuidle/current_governor"),
        "mitigations": "; ".join(f"{path.name}: {_text(path)}" for path in sorted(_CPUS.glob("vulnerabilities/*"))),
        "bpf_jit": _text(Path("/proc/sys/net/core/bpf_jit_enable")),
        "python": platform.python_version(),
        "nft": _version("nft"),
        "iptables": _version("iptables"),
        "load": f"{os.getloadavg()[0]:.2f}",
    }


class Load(msgspec.Struct, frozen=True):
    """What kept the machine busy between two moments, as shares of the time of all its CPUs."""

    busy: float
    """All work, that of the measurement included."""
    stolen: float
    """The hypervisor gave a CPU to others while it had work here."""


class Clock:
    """Reads /proc/stat as it is made, and again when asked."""

    def __init__(self) -> None:
        self._before = _ticks()

    def load(self) -> Load:
        """Since then."""
        passed = [after - before for before, after in zip(self._before, _ticks(), strict=True)]
        total = sum(passed) or 1
        idle = sum(passed[index] for index in _IDLE)
        return Load(1 - (idle + passed[_STEAL]) / total, passed[_STEAL] / total)


def _ticks() -> list[int]:
    """user, nice, system, idle, iowait, irq, softirq, steal."""
    return [int(number) for number in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]


def _cpu(field: str) -> str:
    """Of the first CPU."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == field:
            return value.strip()
    return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _version(program: str) -> str:
    """The second word of what it says; empty without the program."""
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout if found else ""
    return "".join(said.split()[1:2])
