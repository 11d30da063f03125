"""How long connections, requests and datagrams take: through a Service, past one, and where no proxy ever ran.

All contestants are up at once, each in a lab of its own, and every round measures all of them. For each way and measure
in turn, in an order that is drawn anew each time, they come one right after the other, in an order that is drawn, too:
what the machine does meanwhile hits all of them alike. docs/benchmarking.md says why it is done so.
"""

import itertools
import time
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench import latency_outcome
from bench.contender import Proxy
from bench.contest import Contest
from bench.contestant import PATIENCE_S, Contestant
from bench.document import Outcome
from bench.echo import Echo, Listener
from bench.environment import Clock
from bench.interrupt import held
from bench.latency_result import LatencyResult
from bench.measure import MEASURES, NOTHING, PORTS, Samples, Target
from bench.measured import WAYS, Cell, Way, endpoint_ports, objects, tcp_and_udp
from bench.place import place_of, processors
from bench.prober import Prober
from bench.scenario import Step

_AT_ONCE = 5000
"""Conversations of the warm-up before others have their turn: too few to fill a queue."""
_REMEMBERED_S = 30.0
"""So long conntrack remembers a datagram and its answer (nf_conntrack_udp_timeout): a client that has the same port
again is served by what it remembers, which is no measure of a new flow."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, at each size."""

    rounds: int
    samples: int
    """Of each cell in a round."""
    warm_up: int
    """Connections by each way that has a Service, and datagrams from pods, before the first round."""
    seed: int
    """Of the orders that are drawn."""
    patience_s: float = PATIENCE_S
    """Who takes longer to serve everything falls out."""


class LatencyBench:
    """All contestants at one size."""

    def __init__(self, contenders: Sequence[Proxy], services: int, endpoints: int, plan: Plan) -> None:
        self._contenders = contenders
        self._plan = plan
        self._contest = Contest(contenders, f"{plan.seed}/{services}/{endpoints}", plan.patience_s)
        self._ports = endpoint_ports(endpoints)
        self.result = LatencyResult(services, endpoints, self._contest.names, self._contest.failed)
        """Grows with each round, so that it is of use after an interruption, too."""

    @property
    def key(self) -> str:
        return latency_outcome.key(self.result)

    @property
    def outcome(self) -> Outcome:
        there = (one for one in self._contenders if str(one) in self.result.contestants)
        relaying = frozenset(str(one) for one in there if one.relays)
        return latency_outcome.outcome(self.result, relaying, complete=self.result.rounds == self._plan.rounds)

    @property
    def steps(self) -> int:
        return self._contest.size + self._plan.rounds + 1

    def measure(self, step: Step) -> None:
        with ExitStack() as stack:
            contestants = self._gather(stack, step)
            client, server = processors()
            stack.enter_context(Echo(server, self.listeners(contestants)))
            prober = stack.enter_context(Prober(client))
            step("warming up")
            self._warm_up(prober, contestants)
            clock = Clock()
            for number in range(self._plan.rounds):
                step(f"round {number + 1} of {self._plan.rounds}")
                self._round(prober, contestants)
                self.result.load = clock.load()
                self._contest.check()

    def listeners(self, contestants: Sequence[Contestant]) -> list[Listener]:
        """Who answers: in each lab the endpoints, and another pod for the bystander."""
        pods = (("pod-2", self._ports), ("pod-3", self._ports[:1]))
        return [Listener(place_of(one.host(pod)), ports) for one in contestants for pod, ports in pods]

    def _gather(self, stack: ExitStack, step: Step) -> list[Contestant]:
        """Who is up and serves, as long as he does."""
        self._contest.gather(stack, step, self.objects)
        return self._contest.contestants

    def objects(self, pod: str) -> list[dict[str, Any]]:
        """What proxies are to serve: the Service that is measured, of TCP and UDP, and the load beside it."""
        ports = tcp_and_udp([(pod, port) for port in self._ports])
        return objects(self.result.services, self.result.endpoints, ports)

    def _warm_up(self, prober: Prober, contestants: list[Contestant]) -> None:
        """As many conversations of each kind as were asked for, in turns, and a round that does not count."""
        self._fill(prober, contestants, "cluster-ip", "udp")
        forgotten = time.monotonic() + _REMEMBERED_S
        self._fill(prober, contestants, "cluster-ip", "connect")
        self._fill(prober, contestants, "node-port", "connect")
        if 2 * self._plan.warm_up > len(PORTS):  # else none comes again for long
            time.sleep(max(0.0, forgotten - time.monotonic()))
        for one, way, measure in itertools.product(list(contestants), WAYS, MEASURES):
            if one in contestants:
                self._ask(prober, one, Cell(one.name, way.name, measure), self._plan.samples)

    def _fill(self, prober: Prober, contestants: list[Contestant], way: str, measure: str) -> None:
        """What a proxy that remembers sockets and flows is full of on a node."""
        for left in range(self._plan.warm_up, 0, -_AT_ONCE):
            for one in list(contestants):
                self._ask(prober, one, Cell(one.name, way, measure), min(left, _AT_ONCE))

    def _ask(self, prober: Prober, one: Contestant, cell: Cell, count: int) -> None:
        """Before it counts. Who does not answer at all falls out."""
        samples = self._sample(prober, one, cell, count)
        if not samples.ns:
            errors = ", ".join(samples.failures)
            self._contest.drop(one, f"nobody answers: {cell.way}, {cell.measure}: {errors}")

    def _round(self, prober: Prober, contestants: Sequence[Contestant]) -> None:
        found: dict[Cell, Samples] = {}
        for way, measure in self._contest.shuffled(list(itertools.product(WAYS, MEASURES))):
            for one in self._contest.shuffled(contestants):
                cell = Cell(one.name, way.name, measure)
                found[cell] = self._sample(prober, one, cell, self._plan.samples)
        nothing = prober.measure(place_of(contestants[0].host("pod-1")), NOTHING, [("0.0.0.0", 0)], self._plan.samples)  # noqa: S104
        with held():  # a round is there as a whole, or not at all
            for cell, samples in found.items():
                self.result.samples.setdefault(cell, []).append(array("q", samples.ns))
                self.result.failures.setdefault(cell, Counter()).update(samples.failures)
                self.result.preempted += samples.preempted
            self.result.client_ns += nothing.ns
            self.result.rounds += 1

    def _sample(self, prober: Prober, one: Contestant, cell: Cell, count: int) -> Samples:
        way = next(way for way in WAYS if way.name == cell.way)
        return prober.measure(place_of(one.host(way.who)), cell.measure, self.targets(one, way), count)

    def targets(self, one: Contestant, way: Way) -> list[Target]:
        """The Service, or where nobody goes through it, what is behind it."""
        if way.through and one.has_proxy:
            return [way.through]
        return [(one.host(way.pod).ipv4, port) for port in (self._ports if way.through else self._ports[:1])]
