"""Which endpoint a connection gets."""

from collections import Counter

import pytest

from modes.userspace import choice
from modes.userspace.choice import Chooser

POOL = [("10.244.0.1", 80), ("10.244.0.2", 80), ("10.244.0.3", 80)]


def test_endpoints_are_chosen_evenly() -> None:
    chooser = Chooser()
    found = Counter(chooser.choose(POOL, "svc", "10.0.0.1", 0) for _ in range(3000))
    assert set(found) == set(POOL)
    assert min(found.values()) > 800  # 7.7 standard deviations


def test_what_failed_is_not_chosen_again() -> None:
    chooser = Chooser()
    assert {chooser.choose(POOL, "svc", "10.0.0.1", 0, POOL[:2]) for _ in range(50)} == {POOL[2]}
    assert chooser.choose(POOL, "svc", "10.0.0.1", 0, POOL) is None
    assert chooser.choose([], "svc", "10.0.0.1", 10) is None


def test_a_sticky_client_stays_with_its_endpoint_for_each_route() -> None:
    chooser = Chooser()
    mine = chooser.choose(POOL, "svc", "10.0.0.1", 60)
    assert {chooser.choose(POOL[::-1], "svc", "10.0.0.1", 60) for _ in range(50)} == {mine}
    others = {chooser.choose(POOL, f"svc-{number}", "10.0.0.1", 60) for number in range(50)}
    clients = {chooser.choose(POOL, "svc", f"10.0.0.{number}", 60) for number in range(50)}
    assert others == clients == set(POOL)


def test_it_moves_when_its_endpoint_goes_and_stays_there() -> None:
    chooser = Chooser()
    mine = chooser.choose(POOL, "svc", "10.0.0.1", 60)
    rest = [endpoint for endpoint in POOL if endpoint != mine]
    next_one = chooser.choose(rest, "svc", "10.0.0.1", 60)
    assert next_one in rest
    assert {chooser.choose(POOL, "svc", "10.0.0.1", 60) for _ in range(50)} == {next_one}


def test_its_time_begins_anew_with_each_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 9.0, 18.0, 27.0, *(100.0 * turn for turn in range(1, 61))])
    monkeypatch.setattr("time.monotonic", lambda: next(times))
    chooser = Chooser()
    assert len({chooser.choose(POOL, "svc", "10.0.0.1", 10) for _ in range(4)}) == 1
    assert {chooser.choose(POOL, "svc", "10.0.0.1", 10) for _ in range(60)} == set(POOL)


def test_memory_is_bounded_and_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MOST_CLIENTS", 3)
    chooser = Chooser()
    for number in range(10):
        chooser.choose(POOL, "svc", f"10.0.0.{number}", 60)
    assert [client for _, client in chooser._clients] == ["10.0.0.7", "10.0.0.8", "10.0.0.9"]
    chooser.forget(float("inf"))
    assert not chooser._clients
