"""`pyproxy demo`: the example manifests served in a lab, in every mode this kernel runs, and who answered whom.

Each row is real requests over real sockets. Each of them is followed by one to the same pod of a twin lab, in which
no proxy ever ran, straight to the pod's address: connect times are compared pair by pair.
"""

import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.progress import Progress
from rich.table import Table

from bench.ask import Answer, ask
from bench.lab import SERVER_PORT, Host, Lab
from bench.subject import Subject, pyproxy_run
from bench.terminal import console
from pyproxy import modes
from pyproxy.table import Mode

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
REQUESTS = 80  # of each row: that four pods answer evenly and one of them never, is a chance of 1 in 2,400,000,000
_PATIENCE_S = 40.0  # ebpf mode compiles its programs, which takes twenty seconds in user-mode Linux
_NODE = {"IPv4": "172.18.0.2", "IPv6": "fd00:172:18::2"}
_SHOP = {"pod-1", "pod-2", "pod-3", "pod-4"}
_FRONTENDS = {
    "ClusterIP": {"IPv4": "10.96.0.80", "IPv6": "fd00:10:96::80"},
    "NodePort": _NODE,
    "external IP": {"IPv4": "203.0.113.80", "IPv6": "2001:db8:113::80"},
    "load balancer": {"IPv4": "198.51.100.80", "IPv6": "2001:db8:100::80"},
}


@dataclass(frozen=True, slots=True)
class Question:
    """One row: who asks what, and what must come of it."""

    who: str
    what: str
    protocol: str
    family: str
    address: str
    port: int
    pods: frozenset[str]
    """All of them must answer, and no others."""
    source: str | None
    """What the pods must see; None: the asker's own address, or the node's where a pod reached itself."""


@dataclass(slots=True)
class Row:
    mode: str
    who: str
    what: str
    target: str
    pods: dict[str, int] = field(default_factory=dict)
    sources: list[str] = field(default_factory=list)
    connect_ms: float | None = None
    direct_ms: float | None = None
    failures: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.failures


def questions() -> Iterator[Question]:
    """The rows for the Services in examples/."""
    for family in ("IPv4", "IPv6"):
        for who in ("pod-1", "node", "client"):
            for what, addresses in _FRONTENDS.items():
                port = 30080 if what == "NodePort" else 80
                source = None if what == "ClusterIP" and who == "pod-1" else _NODE[family]
                yield Question(who, what, "TCP", family, addresses[family], port, frozenset(_SHOP), source)
            source = None if who == "pod-1" else _NODE[family]
            address = _FRONTENDS["ClusterIP"][family]
            yield Question(who, "ClusterIP", "UDP", family, address, 53, frozenset(_SHOP), source)
        # shop-local: policy Local and affinity, so one client sees one local pod, which sees the client.
        yield Question("client", "NodePort, Local", "TCP", family, _NODE[family], 30081, frozenset(), None)


def demo(names: list[str], *, as_json: bool) -> int:
    """The exit status: 0 if every row is as it must be, in at least one mode."""
    if not EXAMPLES.is_dir():
        print(f"pyproxy: there are no examples in {EXAMPLES}; run the demo from a checkout", file=sys.stderr)
        return 1
    stdout = console()
    why_not = {name: modes.load(name).probe() for name in names}
    runnable = [name for name, why in why_not.items() if why is None]
    rows: list[Row] = []
    with Progress(console=console(stderr=True), transient=True) as progress:
        task = progress.add_task("building the lab", total=len(runnable) * len(list(questions())))
        for name in runnable:
            for row in _serve(name):
                rows.append(row)
                progress.update(task, description=f"{name}: {row.who} → {row.what}", advance=1)
    ok = bool(rows) and all(row.ok for row in rows)
    if as_json:
        print(json.dumps({"ok": ok, "modes": why_not, "rows": [asdict(row) | {"ok": row.ok} for row in rows]}))
        return 0 if ok else 1
    if rows:
        stdout.print(_table(runnable, rows))
    for name, why in why_not.items():
        if why is not None:
            stdout.print(f"mode {name} can't run here: {why}", markup=False)
    for row in rows:
        for failure in row.failures[:3]:
            stdout.print(f"FAILED {row.mode}: {row.who} → {row.what} {row.target}: {failure}", markup=False)
    if relaying := [name for name in runnable if modes.load(name).ends_connections]:
        stdout.print(
            f"in mode {', '.join(relaying)} this node relays: pods see its address, whoever asks", markup=False
        )
    stdout.print(f"{sum(row.ok for row in rows)} of {len(rows)} rows are as they must be")
    return 0 if ok else 1


def _serve(mode: str) -> Iterator[Row]:
    with Lab() as lab, Lab() as twin, tempfile.TemporaryFile() as log:
        subject = Subject(lab, pyproxy_run(mode, *lab.flags, "--manifests", EXAMPLES), log)
        try:
            _wait_until_served(lab)
            for question in questions():
                yield _row(mode, question, lab, twin)
        except TimeoutError:
            log.seek(0)
            row = Row(mode, "-", "-", "-")
            row.failures.append(f"nothing was served; the proxy's log: {log.read()[-2000:].decode()}")
            yield row
        finally:
            subject.stop()


def _wait_until_served(lab: Lab) -> None:
    end = time.monotonic() + _PATIENCE_S
    while time.monotonic() < end:
        try:
            ask(lab.pods["pod-1"], _FRONTENDS["ClusterIP"]["IPv4"], 80, timeout=0.05)
            return
        except OSError:
            time.sleep(0.01)
    raise TimeoutError


def _row(mode: str, question: Question, lab: Lab, twin: Lab) -> Row:
    target = f"[{question.address}]" if question.family == "IPv6" else question.address
    row = Row(mode, question.who, f"{question.what} {question.protocol}", f"{target}:{question.port}")
    asker, twin_asker = _host(lab, question.who), _host(twin, question.who)
    answers: list[Answer] = []
    pairs: list[tuple[float, float]] = []
    for _ in range(REQUESTS):
        try:
            answer = ask(asker, question.address, question.port, question.protocol)
            answers.append(answer)
            if answer.pod != question.who:  # in the twin that would not leave the pod
                pod = twin.pods[answer.pod].address(question.family)
                direct = ask(twin_asker, pod, SERVER_PORT, question.protocol)
                pairs.append((answer.connect_seconds, direct.connect_seconds))
        except OSError as error:
            row.failures.append(f"{type(error).__name__}: {error}")
    row.pods = dict(sorted(Counter(answer.pod for answer in answers).items()))
    row.sources = sorted({answer.source for answer in answers})
    if pairs:
        row.connect_ms, row.direct_ms = (statistics.median(side) * 1000 for side in zip(*pairs, strict=True))
    row.failures += _wrong(question, asker, answers, modes.load(mode))
    return row


def _wrong(question: Question, asker: Host, answers: list[Answer], mode: Mode) -> Iterator[str]:
    pods = {answer.pod for answer in answers}
    if question.pods and pods != question.pods:
        yield f"expected {', '.join(sorted(question.pods))}, answered by {', '.join(sorted(pods)) or 'nobody'}"
    if not question.pods and (len(pods) != 1 or not pods <= {"pod-1", "pod-2"}):
        yield f"expected one pod of this node, answered by {', '.join(sorted(pods)) or 'nobody'}"
    for answer in answers:
        own, node = asker.address(question.family), _NODE[question.family]
        is_masqueraded = mode.ends_connections or answer.pod == question.who
        expected = question.source or (node if is_masqueraded else own)
        if mode.connects_sockets and asker.cgroup:
            expected = own
        if answer.source != expected:
            yield f"{answer.pod} saw {answer.source} instead of {expected}"


def _host(lab: Lab, who: str) -> Host:
    return {"node": lab.node, "client": lab.client}.get(who) or lab.pods[who]


def _table(modes: list[str], rows: list[Row]) -> Table:
    """The modes side by side."""
    table = Table(
        title="times to connect are ratios to a connection past any proxy", title_justify="left", box=SIMPLE_HEAD
    )
    for name in ("who asks", "what", "at", "pods that answered", "source they saw"):
        table.add_column(name, overflow="fold")
    for mode in modes:
        table.add_column(mode, justify="right", no_wrap=True)
    questions = dict.fromkeys((row.who, row.what, row.target) for row in rows)
    for question in questions:
        of_modes = {row.mode: row for row in rows if (row.who, row.what, row.target) == question}
        who, what, target = question
        pods = sorted({pod.removeprefix("pod-") for row in of_modes.values() for pod in row.pods})
        sources = sorted({source for row in of_modes.values() for source in row.sources})
        cells = (_cell(of_modes.get(mode)) for mode in modes)
        table.add_row(who, what, escape(target), " ".join(pods), " ".join(sources), *cells)
    return table


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    ratio = f"{row.connect_ms / row.direct_ms:.2f} " if row.connect_ms is not None and row.direct_ms else ""
    return ratio + ("[green]ok[/green]" if row.ok else "[red]FAILED[/red]")
