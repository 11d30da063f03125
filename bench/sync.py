"""How long until a change is served: the first sync, and one endpoint that changes among many.

Both end with the first packet that the new endpoint answers, whatever the mode: a client connects over and over to a
canary service until the pod it waits for says its name. The load around it is N services with E endpoints that
nobody contacts. Of the canary one object changes: in a file of its own, or at the API server's stand-in.
"""

import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from bench import synthetic
from bench.ask import ask
from bench.contender import Contender
from bench.environment import environment
from bench.feed import CANARY, Manifests, ViaApi, move_canary, put_canary, put_node
from bench.lab import Lab
from bench.subject import Subject, logged, pyproxy_run

_PATIENCE_S = 300.0
_POLL_S = 0.02  # a connection attempt that nobody answers
_PAUSE_S = 0.0005  # or a client runs out of ports: each rests for a minute after its connection
_REST_S = 0.15  # between changes, so that each finds the proxy at rest, past its min sync period


@dataclass(frozen=True, slots=True)
class SyncResult:
    mode: str
    via: str
    """``manifests`` or ``API``."""
    services: int
    endpoints: int
    first_sync_s: float
    first_sync_cpu_s: float
    list_cpu_s: float | None
    """Of listing and decoding everything, which only the API needs."""
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
    """One contender at one size."""

    def __init__(self, contender: Contender, services: int, endpoints: int, changes: int, *, via_api: bool) -> None:
        self._contender = contender
        self._size = (services, endpoints)
        self._changes = changes
        self._via_api = via_api

    @property
    def steps(self) -> int:
        return self._changes + 1

    def measure(self, step: Callable[[str], None]) -> SyncResult:
        """``step`` is told what comes next. Raises TimeoutError with the end of the proxy's log."""
        with (
            Lab(self._contender.iptables) as lab,
            tempfile.TemporaryDirectory() as folder,
            tempfile.TemporaryFile() as log,
            ViaApi(lab, Path(folder)) if self._via_api else Manifests(Path(folder)) as feed,
        ):
            feed.put("load", synthetic.load(*self._size))
            put_node(feed)
            pods = [lab.pods["pod-2"], lab.pods["pod-3"]]
            put_canary(feed, pods[0].ipv4)
            command = pyproxy_run(self._contender.mode, *lab.flags, *feed.flags)
            step("first sync")
            started = time.perf_counter()
            subject = Subject(lab, command, log)
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
                    move_canary(feed, pod.ipv4)
                    samples.append(until_served(lab, pod.name, started, subject))
                after = subject.usage()
            except (TimeoutError, FileNotFoundError):
                raise TimeoutError(f"the proxy did not get there; its log: {logged(log)[-2000:]}") from None
            subject.stop()
            listing = [int(float(ms)) for ms in re.findall(r"listed .*cpu_ms=([0-9.]+)", logged(log))]
        return SyncResult(
            mode=str(self._contender),
            via="API" if self._via_api else "manifests",
            services=self._size[0],
            endpoints=self._size[1],
            first_sync_s=first,
            first_sync_cpu_s=usage.cpu_seconds,
            list_cpu_s=sum(listing) / 1000 if listing else None,
            change_s=samples,
            resident_mib=after.resident_mib,
            peak_mib=after.peak_mib,
            environment=environment(),
        )


def report(benches: list[SyncBench], json_file: Path | None) -> int:
    """Measure one after the other, print a table, write ``json_file``; the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if json_file is not None and not json_file.parent.is_dir():
        console.print(f"pyproxy: there is no folder {json_file.parent}")
        return 1
    results = []
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for bench in benches:
            task = progress.add_task("preparing the lab", total=bench.steps)

            def step(what: str, task: TaskID = task) -> None:
                progress.update(task, description=what, advance=1)

            results.append(bench.measure(step))
    console.print(_table(results))
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 0


def until_served(lab: Lab, pod: str, started: float, subject: Subject) -> float:
    """Seconds from ``started`` to the first answer of ``pod``. Raises TimeoutError, at once if the proxy has ended."""
    while subject.is_alive and time.perf_counter() - started < _PATIENCE_S:
        try:
            if ask(lab.pods["pod-1"], CANARY[1], 80, timeout=_POLL_S).pod == pod:
                return time.perf_counter() - started
        except OSError:
            pass  # refused, or nobody there yet
        time.sleep(_PAUSE_S)
    raise TimeoutError


def _wait_until_done(log: IO[bytes]) -> None:
    """Until the proxy says that it has synced: its children have ended, and their CPU is counted."""
    end = time.monotonic() + _PATIENCE_S
    while "synced" not in logged(log):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.01)


def _table(results: list[SyncResult]) -> Table:
    table = Table(title=f"sync, objects by {results[0].via}", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("mode")
    columns = [
        "services x endpoints",
        "first sync",
        "CPU",
        "of it listing",
        "change p50",
        "p99",
        "max",
        "resident",
        "peak",
    ]
    for name in columns:
        table.add_column(name, justify="right")
    for one in results:
        changes = (statistics.median(one.change_s) * 1000, one.quantile(0.99), max(one.change_s) * 1000)
        table.add_row(
            one.mode,
            f"{one.services:,} x {one.endpoints}",
            f"{one.first_sync_s:.2f} s",
            f"{one.first_sync_cpu_s:.2f} s",
            "" if one.list_cpu_s is None else f"{one.list_cpu_s:.2f} s",
            *(f"{value:.1f} ms" for value in changes),
            f"{one.resident_mib:.0f} MiB",
            f"{one.peak_mib:.0f} MiB",
        )
    return table
