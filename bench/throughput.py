"""How much gets through in a second: bytes of TCP streams, connections, and requests on kept connections.

Done as `bench latency` does it: all contestants are up at once, each in a lab of its own, and every round measures all
of them, one right after the other, in an order that is drawn. docs/benchmarking.md says why it is done so.
"""

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

from bench import throughput_outcome
from bench.contender import Proxy
from bench.contest import Contest
from bench.contestant import PATIENCE_S, Contestant
from bench.document import Outcome
from bench.environment import Clock
from bench.interrupt import held
from bench.lab import Host
from bench.measure import Target
from bench.measured import NODE_PORT, PORT, WAYS, Cell, ServicePort, Way, endpoint_ports, objects, ways
from bench.place import processors
from bench.requests import Requests
from bench.scenario import Step
from bench.streams import Streams
from bench.throughput_outcome import ThroughputResult
from bench.traffic import Measure, Reading, Traffic, find, version

_STREAM, _STREAM_NODE_PORT = 5201, 30081
_CLIENTS = {way.who for way in WAYS}
_FORGETS_S = 10


@dataclass(frozen=True, slots=True)
class ThroughputPlan:
    """How much is measured, at each size."""

    rounds: int
    seconds: int
    """Of each reading."""
    streams: int
    """At once, where there are several."""
    warm_up: int
    """Seconds of connections by each way that has a Service, before the first round."""
    seed: int
    """Of the orders that are drawn."""
    patience_s: float = PATIENCE_S
    """Who takes longer to serve everything falls out."""


class _Task(NamedTuple):
    """What is read of all contestants, one after the other."""

    traffic: Traffic
    way: Way

    def __str__(self) -> str:
        return f"{self.way.words}: {self.traffic.measures[0].words}"

    def cell(self, one: Contestant, measure: str) -> Cell:
        return Cell(one.name, self.way.name, measure)

    def target(self, one: Contestant) -> Target:
        """The Service, or where nobody goes through it, what is behind it."""
        return self.way.through if self.way.through and one.has_proxy else (self.server(one).ipv4, self.traffic.port)

    def server(self, one: Contestant) -> Host:
        return one.host(self.way.pod)


class ThroughputBench:
    """All contestants at one size."""

    def __init__(self, contenders: Sequence[Proxy], services: int, endpoints: int, plan: ThroughputPlan) -> None:
        self._plan = plan
        self._contest = Contest(contenders, f"{plan.seed}/{services}/{endpoints}", plan.patience_s)
        self._http_ports = endpoint_ports(endpoints)
        http, stream = WAYS, ways(_STREAM, _STREAM_NODE_PORT)
        kinds: list[tuple[Traffic, tuple[Way, ...]]] = [
            (Streams("stream", 1, _STREAM), stream),
            (Streams("streams", plan.streams, _STREAM), stream),
            (Requests("connections", self._http_ports, kept=False), http),
            (Requests("requests", self._http_ports, kept=True), http),
        ]
        lacking: dict[tuple[str, ...], list[str]] = {}
        self._tasks: list[_Task] = []
        for kind, its_ways in kinds:
            if missing := tuple(name for name in kind.programs if not find(name)):
                lacking.setdefault(missing, []).append(kind.measures[0].words)
            else:
                self._tasks += [_Task(kind, way) for way in its_ways]
        names = [name for kind, _ in kinds for name in kind.programs]
        self._result = ThroughputResult(
            services,
            endpoints,
            self._contest.names,
            self._contest.failed,
            ways=http,
            measures=[measure for kind, _ in kinds for measure in kind.measures],
            lacking=lacking,
            programs=[version(name) for name in dict.fromkeys(names) if find(name)],
        )

    @property
    def key(self) -> str:
        return throughput_outcome.key(self._result)

    @property
    def outcome(self) -> Outcome:
        complete = self._result.rounds == self._plan.rounds
        return throughput_outcome.outcome(self._result, self._plan.seconds, complete=complete)

    @property
    def steps(self) -> int:
        rounds = (self._plan.rounds + 1) * len(self._tasks)
        return self._contest.size + self._plan.warm_up * len(self._filling) + rounds if self._tasks else 0

    def measure(self, step: Step) -> None:
        if not self._tasks:
            return
        with ExitStack() as stack:
            self._contest.gather(stack, step, self.objects)
            for one in self._contest.contestants:
                _forget_soon(one)
            self._warm_up(step)
            clock = Clock()
            for number in range(self._plan.rounds):
                self._round(step, f"round {number + 1} of {self._plan.rounds}")
                self._result.load = clock.load()
                self._contest.check()

    def objects(self, pod: str) -> list[dict[str, Any]]:
        """What proxies are to serve: the Service that is measured, and the load beside it.

        Only its port for HTTP has several endpoints: iperf3's connections of one session go to one server.
        """
        ports = (
            ServicePort("http", "TCP", PORT, NODE_PORT, [(pod, port) for port in self._http_ports]),
            ServicePort("stream", "TCP", _STREAM, _STREAM_NODE_PORT, [(pod, _STREAM)]),
        )
        return objects(self._result.services, self._result.endpoints, ports)

    @property
    def _filling(self) -> list[_Task]:
        """What fills the tables that remember connections."""
        return [task for task in self._tasks if task.traffic.measures[0].name == "connections" and task.way.through]

    def _warm_up(self, step: Step) -> None:
        """Seconds of connections, in turns, and a round that does not count. Who does not answer at all falls out."""
        for task in self._filling * self._plan.warm_up + self._tasks:
            step(f"warming up: {task}")
            for one in list(self._contest.contestants):
                reading = self._read(task, one, seconds=1)
                if not reading.values:
                    errors = ", ".join(reading.failures)
                    self._contest.drop(one, f"nobody answers: {task}: {errors}")

    def _round(self, step: Step, which: str) -> None:
        found: list[tuple[_Task, Contestant, Reading]] = []
        for task in self._contest.shuffled(self._tasks):
            step(f"{which}: {task}")
            for one in self._contest.shuffled(self._contest.contestants):
                reading = self._read(task, one, self._plan.seconds)
                found.append((task, one, reading))
        with held():  # a round is there as a whole, or not at all
            for task, one, reading in found:
                measures = task.traffic.measures
                for measure in measures:
                    values = samples(measure, reading)
                    self._result.samples.setdefault(task.cell(one, measure.name), []).append(values)
                self._result.failures.setdefault(task.cell(one, measures[0].name), Counter()).update(reading.failures)
            self._result.rounds += 1

    def _read(self, task: _Task, one: Contestant, seconds: int) -> Reading:
        client, server = processors()
        with task.traffic.serving(task.server(one), server):
            return task.traffic.read(one.host(task.way.who), client, task.target(one), seconds)


def samples(measure: Measure, reading: Reading) -> list[float]:
    """Nothing got through where a reading came to nothing: left out, it would be as good as the others' median."""
    if not reading.values:
        return [] if measure.less_is_better else [0.0]
    return [reading.values[measure.name]]


def _forget_soon(one: Contestant) -> None:
    """Ports come back before there is none left, and conntrack does not remember what they were used for.

    nginx closes first, so it is its side that waits; of the others, a client may use their port again after a second.
    """
    for name in _CLIENTS:
        one.host(name).namespace.sysctl(ipv4__ip_local_port_range="1024 65535", ipv4__tcp_tw_reuse=1)
    try:
        one.host("node").namespace.sysctl(netfilter__nf_conntrack_tcp_timeout_time_wait=_FORGETS_S)
    except FileNotFoundError:
        pass  # a kernel that has not loaded conntrack has nothing to remember
