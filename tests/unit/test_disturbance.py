"""What counts for a round in which something happens to a proxy."""

from collections import Counter

from bench.disturbance import Load, _wait_for_answers
from bench.steady import Attempt


class _Clients(Load):
    """Who are answered at the second try."""

    def __init__(self) -> None:
        self.past = Counter()
        self._errors = ["ECONNREFUSED", ""]

    def take(self) -> list[list[Attempt]]:
        self.past["ECONNREFUSED"] += 1
        return [[Attempt(0, self._errors.pop(0))]]


def test_what_fails_before_the_first_round_is_not_counted() -> None:
    clients = _Clients()
    _wait_for_answers(clients)
    assert clients._errors == []
    assert clients.past == {}
