"""How long connections, requests and datagrams take: through a Service, past one, and where no proxy ever ran.

All contestants are up at once, each in a lab of its own, and every round measures all of them. For each way and measure
in turn, in an order that is drawn anew each time, they come one right after the other, in an order that is drawn, too:
what the machine does meanwhile hits all of them alike. docs/benchmarking.md says why it is done so.
"""

import itertools
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from bench import latency_outcome, synthetic
from bench.contender import Proxy
from bench.contestant import CONTROL, FLOOR, Contestant, NotServing
from bench.document import Outcome
from bench.echo import Echo, Listener
from bench.environment import Clock
from bench.interrupt import held
from bench.lab import NODE_NAME
from bench.latency_result import CLUSTER_IP, NODE_PORT, PORT, WAYS, Cell, LatencyResult, Way
from bench.measure import MEASURES, NOTHING, Samples, Target
from bench.place import place_of, processors
from bench.prober import Prober
from bench.scenario import Step

_FIRST_PORT = 9000
"""Of those that endpoints listen on: they are one pod at as many ports."""
MOST_ENDPOINTS = 100
_LOAD_NODE_PORTS = range(30100, 32768)
_ONE_NODE_PORT_IN = 10
"""So many of the load's Services have a node port, as long as there are any."""
_AT_ONCE = 5000
"""Conversations of the warm-up before others have their turn: too few to fill a queue."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, at each size."""

    rounds: int
    samples: int
    """Of each cell in a round."""
    warm_up: int
    """Connections by each way that has a Service, before the first round."""
    seed: int
    """Of the orders that are drawn."""


class LatencyBench:
    """All contestants at one size."""

    def __init__(self, contenders: Sequence[Proxy], services: int, endpoints: int, plan: Plan) -> None:
        self._contenders = contenders
        self._plan = plan
        self._random = random.Random(f"{plan.seed}/{services}/{endpoints}")
        self.result = LatencyResult(services, endpoints, [FLOOR, CONTROL, *map(str, contenders)])
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
        return len((FLOOR, CONTROL, *self._contenders)) + self._plan.rounds + 1

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
            for one in list(contestants):
                try:
                    one.check()
                except NotServing as error:
                    self._drop(one, str(error), contestants)

    def listeners(self, contestants: Sequence[Contestant]) -> list[Listener]:
        """Who answers: in each lab the endpoints, and another pod for the bystander."""
        pods = (("pod-2", self._ports), ("pod-3", self._ports[:1]))
        return [Listener(place_of(one.host(pod)), ports) for one in contestants for pod, ports in pods]

    @property
    def _ports(self) -> list[int]:
        return list(range(_FIRST_PORT, _FIRST_PORT + self.result.endpoints))

    def _gather(self, stack: ExitStack, step: Step) -> list[Contestant]:
        """Who is up and serves."""
        everybody = [Contestant(FLOOR), Contestant(CONTROL)]
        everybody += [Contestant(str(contender), contender) for contender in self._contenders]
        contestants = []
        for one in everybody:
            step(f"preparing {one.name}")
            stack.enter_context(one)
            contestants.append(one)
            try:
                one.serve(self.objects(one.host("pod-2").ipv4))
            except NotServing as error:
                self._drop(one, str(error), contestants)
        return contestants

    def _drop(self, one: Contestant, why: str, contestants: list[Contestant]) -> None:
        """The others go on."""
        contestants.remove(one)
        self.result.contestants.remove(one.name)
        self.result.failed[one.name] = why
        for cell in [cell for cell in self.result.samples if cell.contestant == one.name]:
            del self.result.samples[cell]

    def objects(self, pod: str) -> list[dict[str, Any]]:
        """The Service that is measured, with ports of ``pod`` as its endpoints, and a load that nobody contacts."""
        load = synthetic.load(self.result.services - 1, self.result.endpoints)
        services = [thing for thing in load if thing["kind"] == "Service"]
        for service, port in zip(services[::_ONE_NODE_PORT_IN], _LOAD_NODE_PORTS, strict=False):
            service["spec"]["type"] = "NodePort"
            service["spec"]["ports"][0]["nodePort"] = port
        return load + measured([(pod, port) for port in self._ports])

    def _warm_up(self, prober: Prober, contestants: list[Contestant]) -> None:
        """As many connections as were asked for, in turns, and a round that does not count."""
        for left in range(self._plan.warm_up, 0, -_AT_ONCE):
            for one, way in itertools.product(list(contestants), WAYS):
                if one in contestants and way.through:
                    self._ask(prober, contestants, one, Cell(one.name, way.name, "connect"), min(left, _AT_ONCE))
        for one, way, measure in itertools.product(list(contestants), WAYS, MEASURES):
            if one in contestants:
                self._ask(prober, contestants, one, Cell(one.name, way.name, measure), self._plan.samples)

    def _ask(self, prober: Prober, contestants: list[Contestant], one: Contestant, cell: Cell, count: int) -> None:
        """Before it counts. Who does not answer at all falls out."""
        samples = self._sample(prober, one, cell, count)
        if not samples.ns:
            errors = ", ".join(samples.failures)
            self._drop(one, f"nobody answers: {cell.way}, {cell.measure}: {errors}", contestants)

    def _round(self, prober: Prober, contestants: Sequence[Contestant]) -> None:
        found: dict[Cell, Samples] = {}
        for way, measure in self._shuffled(list(itertools.product(WAYS, MEASURES))):
            for one in self._shuffled(contestants):
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

    def _shuffled(self, things: Sequence[Any]) -> list[Any]:
        return self._random.sample(things, len(things))


def measured(endpoints: Sequence[Target]) -> list[dict[str, Any]]:
    """The Service by all ways, for TCP and UDP, and an EndpointSlice for each endpoint."""
    service = synthetic.service("measured", CLUSTER_IP, PORT)
    service["spec"]["type"] = "NodePort"
    service["spec"]["ports"] = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORT, "nodePort": NODE_PORT}
        for protocol in ("TCP", "UDP")
    ]
    slices = []
    for number, (pod, port) in enumerate(endpoints):
        one = synthetic.endpoint_slice("measured", [(pod, NODE_NAME)])
        one["metadata"]["name"] = f"measured-{number}"
        one["ports"] = [{"name": name, "protocol": name.upper(), "port": port} for name in ("tcp", "udp")]
        slices.append(one)
    return [service, *slices]
