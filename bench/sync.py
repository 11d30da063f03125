"""How long until a change is served: the first sync, and one endpoint that changes among many.

Both end with the first packet that the new endpoint answers, whatever the mode: a client connects over and over to a
canary service until the pod it waits for says its name. The load around it is N services with E endpoints that
nobody contacts. The canary is in a file of its own, as one object of an API would change.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench import synthetic
from bench.ask import ask
from bench.lab import NODE_NAME, SERVER_PORT, Lab
from bench.subject import Subject, Usage

CANARY = ("canary", "10.96.0.10")
_PATIENCE_S = 300.0
_POLL_S = 0.02  # a connection attempt that nobody answers
_REST_S = 0.15  # between changes, so that each finds the proxy at rest, past its min sync period


@dataclass(frozen=True, slots=True)
class SyncResult:
    mode: str
    services: int
    endpoints: int
    first_sync_s: float
    first_sync_cpu_s: float
    change_s: list[float]
    """Samples, in order."""
    resident_mib: float
    peak_mib: float
    environment: dict[str, str]

    def quantile(self, share: float) -> float:
        """Of the changes, in ms."""
        ordered = sorted(self.change_s)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000


class SyncBench:
    """One mode at one size."""

    def __init__(self, mode: str, services: int, endpoints: int, changes: int) -> None:
        self._mode = mode
        self._size = (services, endpoints)
        self._changes = changes

    def report(self, json_file: Path | None) -> int:
        """Measure, print a table, write ``json_file``; the exit status."""
        console = Console()
        if json_file is not None and not json_file.parent.is_dir():
            console.print(f"pyproxy: there is no folder {json_file.parent}")
            return 1
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("preparing the lab", total=self._changes + 1)
            result = self.measure(lambda what: progress.update(task, description=what, advance=1))
        console.print(_table(result))
        if json_file is not None:
            json_file.write_text(json.dumps(asdict(result), indent=1) + "\n")
        return 0

    def measure(self, step: Callable[[str], None]) -> SyncResult:
        """``step`` is told what comes next. Raises TimeoutError with the end of the proxy's log."""
        with Lab() as lab, tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
            manifests = Path(folder)
            synthetic.write(manifests / "load.json", synthetic.load(*self._size))
            write_node(manifests)
            pods = [lab.pods["pod-2"], lab.pods["pod-3"]]
            write_canary(manifests, pods[0].ipv4)
            step("first sync")
            started = time.perf_counter()
            subject = Subject(lab, self._mode, manifests, log)
            try:
                first = until_served(lab, pods[0].name, started, subject)
                _wait_until_done(log)
                usage = subject.usage()
                samples = []
                for number in range(self._changes):
                    step(f"change {number + 1}")
                    time.sleep(_REST_S)
                    pod = pods[(number + 1) % 2]
                    started = time.perf_counter()
                    write_canary(manifests, pod.ipv4)
                    samples.append(until_served(lab, pod.name, started, subject))
                after = subject.usage()
            except (TimeoutError, FileNotFoundError):
                log.seek(0)
                raise TimeoutError(f"the proxy did not get there; its log: {log.read()[-2000:].decode()}") from None
            subject.stop()
        return self._result(first, samples, usage, after)

    def _result(self, first: float, samples: list[float], usage: Usage, after: Usage) -> SyncResult:
        return SyncResult(
            mode=self._mode,
            services=self._size[0],
            endpoints=self._size[1],
            first_sync_s=first,
            first_sync_cpu_s=usage.cpu_seconds,
            change_s=samples,
            resident_mib=after.resident_mib,
            peak_mib=after.peak_mib,
            environment=_environment(),
        )


def until_served(lab: Lab, pod: str, started: float, subject: Subject) -> float:
    """Seconds from ``started`` to the first answer of ``pod``. Raises TimeoutError, at once if the proxy has ended."""
    while subject.is_alive and time.perf_counter() - started < _PATIENCE_S:
        try:
            if ask(lab.pods["pod-1"], CANARY[1], 80, timeout=_POLL_S).pod == pod:
                return time.perf_counter() - started
        except OSError:
            pass  # refused, or nobody there yet
    raise TimeoutError


def _wait_until_done(log: IO[bytes]) -> None:
    """Until the proxy says that it has synced: its children have ended, and their CPU is counted."""
    end = time.monotonic() + _PATIENCE_S
    while b"synced" not in Path(f"/proc/self/fd/{log.fileno()}").read_bytes():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def write_node(folder: Path) -> None:
    addresses = [{"type": "InternalIP", "address": "172.18.0.2"}]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}, "status": {"addresses": addresses}}
    synthetic.write(folder / "node.json", [node])


def write_canary(folder: Path, pod: str) -> None:
    name, address = CANARY
    pieces = [synthetic.service(name, address), synthetic.endpoint_slice(name, [(pod, NODE_NAME)], SERVER_PORT)]
    synthetic.write(folder / "zz-canary.json", pieces)


def _environment() -> dict[str, str]:
    command = [shutil.which("nft") or "/usr/sbin/nft", "--version"]
    nft = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "kernel": platform.release(),
        "machine": f"{os.cpu_count()} cores",
        "python": platform.python_version(),
        "nft": nft[1] if len(nft) > 1 else "",
        "load": f"{os.getloadavg()[0]:.2f}",
    }


def _table(result: SyncResult) -> Table:
    title = f"sync, {result.mode} mode, {result.services:,} services x {result.endpoints} endpoints"
    table = Table(title=title, title_justify="left")
    for name in ("first sync", "CPU", "change p50", "p99", "max", "resident", "peak"):
        table.add_column(name, justify="right")
    median = statistics.median(result.change_s) * 1000 if result.change_s else 0.0
    changes = (median, result.quantile(0.99), max(result.change_s) * 1000) if result.change_s else (0.0, 0.0, 0.0)
    table.add_row(
        f"{result.first_sync_s:.2f} s",
        f"{result.first_sync_cpu_s:.2f} s",
        *(f"{value:.1f} ms" for value in changes),
        f"{result.resident_mib:.0f} MiB",
        f"{result.peak_mib:.0f} MiB",
    )
    return table
