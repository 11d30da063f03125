"""Who takes part at one size: all of them up at once, each in a lab of its own, measured in orders that are drawn."""

import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

from bench.contender import Proxy
from bench.contestant import CONTROL, FLOOR, PATIENCE_S, Contestant, NotServing
from bench.scenario import Step

Thing = TypeVar("Thing")


class Contest:
    def __init__(self, contenders: Sequence[Proxy], seed: str, patience_s: float = PATIENCE_S) -> None:
        """``seed``: of the orders. ``patience_s``: what each has for each change at most."""
        self._patience_s = patience_s
        self._contenders = contenders
        self._random = random.Random(seed)
        self.names = [FLOOR, CONTROL, *map(str, contenders)]
        """Of those who have not fallen out; the floor is the first, the control the second."""
        self.size = len(self.names)
        """Including who fell out."""
        self.failed: dict[str, str] = {}
        """Who fell out, and why."""
        self.contestants: list[Contestant] = []
        """Who is up, and serves."""

    def gather(self, stack: ExitStack, step: Step, objects: Callable[[str], list[dict[str, Any]]]) -> None:
        """Until ``stack`` ends. ``objects``: what proxies are to serve in a lab whose pod-2 has that address."""
        everybody = [Contestant(FLOOR), Contestant(CONTROL)]
        everybody += [Contestant(str(contender), contender, self._patience_s) for contender in self._contenders]
        for one in everybody:
            step(f"preparing {one.name}")
            stack.enter_context(one)
            self.contestants.append(one)
            try:
                one.serve(objects(one.host("pod-2").ipv4))
            except NotServing as error:
                self.drop(one, str(error))

    def drop(self, one: Contestant, why: str) -> None:
        """The others go on."""
        self.contestants.remove(one)
        self.names.remove(one.name)
        self.failed[one.name] = why

    def check(self) -> None:
        """Whose proxy has ended falls out."""
        for one in list(self.contestants):
            try:
                one.check()
            except NotServing as error:
                self.drop(one, str(error))

    def shuffled(self, things: Sequence[Thing]) -> list[Thing]:
        return self._random.sample(things, len(things))
