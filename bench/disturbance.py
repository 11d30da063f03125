"""Scenarios in which something happens to a proxy, or behind it, over and over, while clients go on connecting."""

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

from bench import synthetic
from bench.contender import Proxy
from bench.contestant import PATIENCE_S, Contestant, NotServing
from bench.document import Outcome
from bench.interrupt import held
from bench.lab import SERVER_PORT
from bench.measured import WAYS
from bench.place import place_of, processors
from bench.record import Measure, Record
from bench.scenario import Step, size
from bench.steady import Attempt, Steady, Stream

SERVED_WAYS = tuple((way, way.through) for way in WAYS if way.through)
"""Those that lead through the Service, and where it is found."""
_PAST_POD, _PAST_EVERY_S = "pod-3", 0.02
_ANSWERS_S = 10.0
_PAUSE_S = 0.1


class Sample(NamedTuple):
    """What comes of a round."""

    measure: Measure
    value: float
    failures: Mapping[str, int] = MappingProxyType({})
    """By error."""


class Load(Steady):
    """What clients do meanwhile: connect to the Service, and, in the same way, past the proxy."""

    def __init__(self, one: Contestant, streams: Sequence[Stream]) -> None:
        """``streams``: to the Service."""
        pod = one.host(_PAST_POD).ipv4, SERVER_PORT
        past = [Stream(place_of(one.host(way.who)), pod, "TCP", _PAST_EVERY_S) for way, _ in SERVED_WAYS]
        super().__init__(processors()[0], [*streams, *past])
        self._served = len(streams)
        self.past: Counter[str] = Counter()
        """Failures past the proxy, by error, in all that was taken until now."""

    def take(self) -> list[list[Attempt]]:
        """As of Steady, to the Service alone."""
        found = super().take()
        self.past = sum(map(errors, found[self._served :]), self.past)
        return found[: self._served]


class Disturbance(ABC):
    """A Part: one contender at one size."""

    scenario: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    """What happens, all of it in each round."""

    def __init__(
        self, contender: Proxy, services: int, endpoints: int, rounds: int, patience_s: float = PATIENCE_S
    ) -> None:
        """``patience_s``: as of Contestant."""
        self._contender = contender
        self._services, self._endpoints = services, endpoints
        self._rounds = rounds
        self._patience_s = patience_s
        self._record = Record(str(contender))
        self._done = 0
        """Rounds that are complete."""
        self._failed: dict[str, str] = {}
        self._remarks: list[str] = []

    @property
    def key(self) -> str:
        return f"{self.scenario}, {self._contender}, {size(self._services, self._endpoints)}"

    @property
    def steps(self) -> int:
        return 1 + self._rounds * len(self.kinds)

    @property
    def outcome(self) -> Outcome:
        return Outcome(
            key=self.key,
            scenario=self.scenario,
            services=self._services,
            endpoints=self._endpoints,
            complete=self._done == self._rounds or bool(self._failed),
            rounds=self._done,
            figures=self._record.figures(),
            failed=self._failed,
            remarks=self._remarks,
        )

    def measure(self, step: Step) -> None:
        step("preparing")
        with ExitStack() as stack:
            one = stack.enter_context(Contestant(str(self._contender), self._contender, self._patience_s))
            try:
                one.serve(synthetic.load(self._services - 1, self._endpoints) + self._measured(one))
                self._prepare(one)
                clients = stack.enter_context(Load(one, self._streams(one)))
                _wait_for_answers(clients)
                for number in range(self._rounds):
                    found: list[Sample] = []
                    for kind in self.kinds:
                        step(f"round {number + 1} of {self._rounds}: {kind}")
                        found += self._disturb(kind, one, clients)
                        found.append(self._past(kind, clients))
                    with held():  # a round is there as a whole, or not at all
                        for measure, value, failures in found:
                            self._record.add(measure, value, start=number)
                            self._record.add_failures(measure, failures)
                        self._done += 1
            except NotServing as error:
                self._failed[one.name] = str(error)

    @abstractmethod
    def _measured(self, one: Contestant) -> list[dict[str, Any]]:
        """The Service with its endpoints."""

    def _prepare(self, one: Contestant) -> None:  # noqa: B027
        """Once it serves all of them. Raises NotServing."""

    @abstractmethod
    def _streams(self, one: Contestant) -> list[Stream]:
        """Of the load."""

    @abstractmethod
    def _disturb(self, kind: str, one: Contestant, clients: Load) -> list[Sample]:
        """All is as it was when this returns. Raises NotServing."""

    def _past(self, kind: str, clients: Load) -> Sample:
        """What came of connections past the proxy: of a machine that can't keep up, they fail as well."""
        failures, clients.past = clients.past, Counter()
        if failures:
            self._remark("Connections past the proxy failed as well: look there before you blame it for the others.")
        title = f"{kind}, past the proxy: failed"
        return Sample(Measure(f"failed-{kind}", title, "1", "bystander"), failures.total(), failures)

    def _remark(self, sentence: str) -> None:
        """Once."""
        if sentence not in self._remarks:
            self._remarks.append(sentence)


def errors(attempts: Sequence[Attempt]) -> Counter[str]:
    """Of those that failed."""
    return Counter(attempt.error for attempt in attempts if attempt.error)


def _wait_for_answers(clients: Load) -> None:
    """In each stream; what failed until then is no round's. Raises NotServing."""
    found = clients.take()
    end = time.monotonic() + _ANSWERS_S
    while not all(map(_is_answered, found)):
        if time.monotonic() > end:
            said = ", ".join(sum(map(errors, found), Counter[str]()))
            raise NotServing(f"nobody answers at the service that is measured: {said}")
        time.sleep(_PAUSE_S)
        found = [before + after for before, after in zip(found, clients.take(), strict=True)]
    clients.past.clear()


def _is_answered(attempts: Sequence[Attempt]) -> bool:
    return not all(attempt.error for attempt in attempts)
