"""A long run under load: endpoints come and go hundreds of times, and not one connection fails.

Slow, so a bare `pytest` leaves it out: `make soak MODE=ebpf`, or `pytest tests/soak --mode ebpf`.
"""

from random import Random

import pytest

from tests.conformance.cluster import Cluster, until
from tests.soak.traffic import WAYS, Connection, Endpoints, Short

SHORT, LONG, CHANGES = 20_000, 200, 300
LONG_ONES_TALK_EVERY = 10
"""Changes."""
PODS = ["pod-1", "pod-2", "pod-3", "pod-4"]
_STILL_S = 60.0


def test_no_connection_fails_while_endpoints_come_and_go(
    cluster: Cluster, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    random = Random(0)
    endpoints = Endpoints(cluster)
    endpoints.change(frozenset(PODS))
    long = [Connection(cluster, WAYS[number % len(WAYS)]) for number in range(LONG)]
    broken: list[str] = []
    try:
        with Short(cluster, endpoints, SHORT // len(WAYS)) as short:
            for change in range(1, CHANGES + 1):
                # Evenly among the connections: whichever of both is slower waits.
                short.wait_for(change * SHORT // (CHANGES + 1), _STILL_S)
                endpoints.change(frozenset(random.sample(PODS, random.randint(1, len(PODS)))))
                if change % LONG_ONES_TALK_EVERY == 0:
                    broken += _talk(long)
            short.wait()
        broken += _talk(long)
    finally:
        for connection in long:
            connection.close()
    log = cluster.log()
    with capsys.disabled():
        print(
            f"\n{pytestconfig.getoption('--mode')}: {short.answered.total()} short connections answered and "
            f"{len(short.failures)} failed, {len(long)} long ones intact and {len(broken)} broken, {CHANGES} changes"
        )
    assert short.failures == []
    assert broken == []
    assert len(long) == LONG
    assert short.answered.total() == SHORT
    assert {pod for _, pod in short.answered} == set(PODS)
    assert " ERROR " not in log
    said = len(log)
    until(lambda: "verified drift=0" in cluster.log()[said:], lambda: cluster.log()[said:], _STILL_S)


def _talk(connections: list[Connection]) -> list[str]:
    """What is wrong with those that are not as they should be: these are closed and taken out."""
    found = []
    for connection in list(connections):
        try:
            connection.talk()
        except (OSError, ValueError) as error:
            found.append(f"{connection.way} to {connection.pod}: {error!r}")
            connections.remove(connection)
            connection.close()
    return found
