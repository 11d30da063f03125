"""What the processes of a proxy take: CPU, and memory in user space.

All of them count, those it starts as well: nft(8) for each sync, relays for as long as it runs. What the kernel does
outside of their time, or holds on their behalf, is not theirs; bench/kernel_memory.py tells of the latter.
"""

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

_TICK = os.sysconf("SC_CLK_TCK")
_PAGES_IN_MIB = (1 << 20) / os.sysconf("SC_PAGE_SIZE")
_WATCH_S = 0.05
_REST_S = 0.5
_REST_CPU_S = 0.02  # two ticks: less can't be told from nothing
_FORGET_PEAK = "5"  # proc_pid_clear_refs(5)


class Memory(NamedTuple):
    """In MiB. What processes share is in `resident` once for each, in `proportional` once."""

    resident: float
    proportional: float


class Processes:
    """That of ``pid`` and all below it. Use as a context manager: meanwhile a thread watches for the peak."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_pages = 0
        self._looks = threading.Lock()
        self._is_over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._is_over.set()
        self._watcher.join()

    def cpu_s(self) -> float:
        """Until now, of those that have ended, too."""
        ticks = 0
        for pid, _ in self._all():
            words = _text(pid, "stat").rpartition(")")[2].split()
            ticks += sum(map(int, words[11:15]))  # utime, stime, cutime, cstime
        return ticks / _TICK

    def memory(self) -> Memory:
        resident = proportional = 0
        for pid, _ in self._all():
            fields = _fields(pid, "smaps_rollup")
            resident += fields.get("Rss", 0)
            proportional += fields.get("Pss", 0)
        return Memory(resident / 1024, proportional / 1024)

    def peak_mib(self) -> float:
        """Of the resident memory of all together; at least that, since in between it is not seen."""
        high_water = [_fields(pid, "status").get("VmHWM", 0) / 1024 for pid, _ in self._all()]
        return max([self._peak_pages / _PAGES_IN_MIB, *high_water])

    def forget_peak(self) -> None:
        """`peak_mib` tells of what comes from now on."""
        with self._looks:
            self._peak_pages = 0
        for pid, _ in self._all():
            try:
                Path(f"/proc/{pid}/clear_refs").write_text(_FORGET_PEAK)
            except OSError:
                continue  # it has just ended

    def wait_for_rest(self, patience_s: float) -> None:
        """Until they have used next to no CPU for a while. Raises TimeoutError."""
        end = time.monotonic() + patience_s
        before = self.cpu_s()
        while True:
            time.sleep(_REST_S)
            used = self.cpu_s()
            if used - before <= _REST_CPU_S:
                return
            if time.monotonic() > end:
                raise TimeoutError
            before = used

    def _watch(self) -> None:
        while not self._is_over.wait(_WATCH_S):
            with self._looks:
                self._peak_pages = max(self._peak_pages, self._resident_pages())

    def _resident_pages(self) -> int:
        sizes: dict[int, str] = {}
        total = 0
        for pid, parent in self._all():
            words = _text(pid, "statm").split() or ["0", "0"]
            sizes[pid] = words[0]
            if sizes.get(parent) != words[0]:  # after vfork(2) and before exec(2) it is the parent's memory
                total += int(words[1])
        return total

    def _all(self) -> Iterator[tuple[int, int]]:
        """Each with its parent, which comes first."""
        families = [(self._pid, 0)]
        for pid, parent in families:
            yield pid, parent
            for thread in _threads(pid):
                families += [(int(child), pid) for child in _text(pid, f"task/{thread}/children").split()]


def _fields(pid: int, file: str) -> dict[str, int]:
    """In KiB, those that have this unit."""
    lines = (line.split() for line in _text(pid, file).splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1:] == ["kB"]}


def _threads(pid: int) -> list[str]:
    """None if the process has ended."""
    try:
        return os.listdir(f"/proc/{pid}/task")  # noqa: PTH208
    except OSError:
        return []


def _text(pid: int, file: str) -> str:
    """Empty if the process has ended."""
    try:
        return Path(f"/proc/{pid}/{file}").read_text(errors="replace")
    except OSError:
        return ""
