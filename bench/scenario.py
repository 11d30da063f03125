"""What a scenario is to those who run it: a list of parts, each of which is measured as a whole."""

from collections.abc import Callable
from typing import Protocol

from bench.document import Outcome

Step = Callable[[str], None]
"""Is told what comes next, at moments when nothing is measured."""


class Part(Protocol):
    """One scenario at one size, of all contestants or of one."""

    @property
    def key(self) -> str:
        """As `Outcome.key`."""

    @property
    def steps(self) -> int:
        """How often `measure` calls its ``step``; fewer if somebody falls out."""

    @property
    def outcome(self) -> Outcome:
        """Of what is there: all of it, or after an interruption what was measured until then."""

    def measure(self, step: Step) -> None:
        """Nothing is left behind, whatever happens. Who can't take part is told in the outcome, and the others go on.

        Raises ChildProcessError if a measuring process has ended.
        """


def size(services: int, endpoints: int) -> str:
    """In words, for keys and titles."""
    return f"{services:,} x {endpoints}"
