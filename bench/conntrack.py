"""How long it takes to remove stale UDP flows among many, and whether a sync waits for it."""

import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import IO

from rich.box import SIMPLE_HEAD
from rich.table import Table

from bench import flows, synthetic
from bench.canary import Canary
from bench.feed import Feed, Manifests, put_node
from bench.lab import NODE_NAME, SERVER_PORT, Lab
from bench.subject import Subject, pyproxy_run
from bench.terminal import console

_DNS = "10.96.0.53"
_ROUNDS = 10
_REST_S = 0.11  # past the proxy's min sync period
_PATIENCE_S = 60.0


class ConntrackBench:
    """A UDP service of four endpoints loses one while ``count`` flows lead to them, a quarter to each."""

    def __init__(self, mode: str, count: int) -> None:
        self._mode = mode
        self._count = count

    def report(self) -> int:
        """Measure and print; the exit status."""
        with Lab() as lab, tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
            feed = Manifests(Path(folder))
            put_node(feed)
            pods = list(lab.pods.values())
            canary = Canary(lab, feed)
            canary.put()
            _put_dns(feed, [pod.ipv4 for pod in pods])
            subject = Subject(lab, pyproxy_run(self._mode, *lab.flags, *feed.flags), log)
            canary.wait(subject, time.perf_counter())
            flows.plant(lab.node, _DNS, 53, [(pod.ipv4, SERVER_PORT) for pod in pods], self._count)
            quiet = [_change(canary, subject) for _ in range(_ROUNDS)]
            time.sleep(_REST_S)
            started = time.perf_counter()
            _put_dns(feed, [pod.ipv4 for pod in pods[1:]])
            busy = [_change(canary, subject)]
            while _deleted(log) < self._count // len(pods):
                busy.append(_change(canary, subject))
                if time.perf_counter() - started > _PATIENCE_S:
                    raise TimeoutError("the stale flows are still there")
            took = time.perf_counter() - started
            subject.stop()
        table = Table(
            title=f"conntrack, {self._mode} mode, {self._count:,} flows", title_justify="left", box=SIMPLE_HEAD
        )
        for name in ("stale flows gone after", "one change at rest, median", "meanwhile, median", "meanwhile, max"):
            table.add_column(name, justify="right")
        times = (statistics.median(quiet), statistics.median(busy), max(busy))
        table.add_row(f"{took:.2f} s", *(f"{value * 1000:.1f} ms" for value in times))
        console().print(table)
        return 0


def _deleted(log: IO[bytes]) -> int:
    """How many flows the proxy says that it removed."""
    text = Path(f"/proc/self/fd/{log.fileno()}").read_bytes()  # without moving the place where the proxy writes
    return sum(int(number) for number in re.findall(rb"conntrack reconciled deleted=(\d+)", text))


def _change(canary: Canary, subject: Subject) -> float:
    """Seconds until a change of the canary is served, past the proxy's min sync period."""
    time.sleep(_REST_S)
    started = time.perf_counter()
    canary.move()
    return canary.wait(subject, started)


def _put_dns(feed: Feed, pods: list[str]) -> None:
    service = synthetic.service("dns", _DNS, 53)
    piece = synthetic.endpoint_slice("dns", [(pod, NODE_NAME) for pod in pods], SERVER_PORT)
    service["spec"]["ports"][0]["protocol"] = piece["ports"][0]["protocol"] = "UDP"
    feed.put("dns", [service, piece])
