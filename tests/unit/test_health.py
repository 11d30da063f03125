"""What kubelet and load balancers are told, for each state of the proxy."""

import json
import re
import time
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any

import pytest

from pyproxy.health import Health
from pyproxy.http_server import Request, Response
from pyproxy.objects import REMOVAL_TAINT, Delete, Event, Key, Metadata, Node, NodeSpec, Taint, Upsert
from pyproxy.observer import Sync
from pyproxy.status import Status
from pyproxy.table import Family, Host, ModeError, RouteId, Table
from tests.unit.samples import node, service

SYNC_PERIOD_S = 30.0
SYNCED = Sync(Table({}, Host()), Table({}, Host()), None, 0.1)
LEAVING = Node(Metadata("node-a"), NodeSpec(taints=(Taint("other"), Taint(REMOVAL_TAINT))))
DELETED = Node(Metadata("node-a", deletion_timestamp="2026-11-22T10:00:00Z"))


class Asked:
    """A Health, its Status, and what it told the metrics."""

    def __init__(self, *, age: float | None = None, synced: bool = True, leaving: bool = False) -> None:
        """``age``: for how long the oldest change waits, in seconds."""
        self.status = Status("nftables", "node-a")
        self.told: list[tuple[str, HTTPStatus]] = []
        self.health = Health(self.status, SYNC_PERIOD_S, lambda *answer: self.told.append(answer))
        self.status.took_in([Upsert(LEAVING if leaving else node())])
        self.wait(age)
        if synced:
            self.status.synced(SYNCED)

    def wait(self, age: float | None) -> None:
        self.status.pending_since = lambda: None if age is None else time.monotonic() - age

    def answer(self, path: str) -> Response:
        return self.health.answer(Request(path, {}), ("127.0.0.1", 10256))

    def codes(self) -> tuple[int, ...]:
        return tuple(int(self.answer(path).status) for path in ("/healthz", "/livez", "/readyz"))

    def body(self, path: str = "/healthz") -> dict[str, Any]:
        body = json.loads(self.answer(path).body)
        assert isinstance(body, dict)
        return body


CASES = {
    # age of the oldest change that waits, synced, leaving: healthz, livez, readyz
    (None, True, False): (200, 200, 200),
    (None, False, False): (200, 200, 503),
    (None, True, True): (503, 200, 503),
    (None, False, True): (503, 200, 503),
    (0.0, True, False): (200, 200, 200),
    (0.0, False, False): (200, 200, 503),
    (59.0, True, False): (200, 200, 200),
    (59.0, True, True): (503, 200, 503),
    (61.0, True, False): (503, 503, 503),
    (61.0, False, False): (503, 503, 503),
    (61.0, True, True): (503, 503, 503),
    (1e9, True, False): (503, 503, 503),
}


@pytest.mark.parametrize("state", CASES, ids=str)
def test_codes(state: tuple[float | None, bool, bool]) -> None:
    age, synced, leaving = state
    asked = Asked(age=age, synced=synced, leaving=leaving)
    assert asked.codes() == CASES[state]
    assert [(path, int(status)) for path, status in asked.told] == [
        *zip(("/healthz", "/livez", "/readyz"), CASES[state], strict=True)
    ]
    for path in ("/healthz", "/livez", "/readyz"):
        assert asked.body(path).keys() == {"lastUpdated", "currentTime", "nodeEligible"}
        assert asked.body(path)["nodeEligible"] is not leaving
        assert asked.answer(path).content_type == "application/json"


def test_the_patience_follows_the_configuration() -> None:
    asked = Asked(age=30.0)
    assert asked.codes() == (200, 200, 200)
    asked.health.patience = 20.0
    assert asked.codes() == (503, 503, 503)


def test_it_recovers_when_the_kernel_has_it_all() -> None:
    asked = Asked(age=100.0)
    assert asked.codes()[0] == 503
    asked.wait(None)
    assert asked.codes() == (200, 200, 200)


def test_a_failing_kernel_is_not_ready_before_the_first_sync_that_lands() -> None:
    asked = Asked(age=1.0, synced=False)
    asked.status.failed(ModeError("no memory"))
    assert asked.codes() == (200, 200, 503)
    asked.status.synced(SYNCED)
    assert asked.codes() == (200, 200, 200)
    asked.status.failed(ModeError("no memory"))
    assert asked.codes() == (200, 200, 200)  # the kernel still has what it had


@pytest.mark.parametrize(
    ("events", "leaves"),
    [
        ([Upsert(LEAVING)], True),
        ([Upsert(DELETED)], True),
        ([Upsert(node())], False),
        ([Upsert(Node(Metadata("node-a")))], False),
        ([Upsert(Node(Metadata("node-a"), NodeSpec(taints=(Taint("node.kubernetes.io/not-ready"),))))], False),
        ([Upsert(LEAVING), Upsert(node())], False),
        ([Upsert(node()), Delete(Node, Key("", "node-a"))], True),
        ([Delete(Node, Key("", "node-a")), Upsert(node())], False),
        ([Upsert(LEAVING), Upsert(service())], True),
        # Manifests may hold all the nodes of a cluster.
        ([Upsert(Node(Metadata("node-b"), LEAVING.spec))], False),
        ([Upsert(LEAVING), Upsert(node(name="node-b"))], True),
        ([Delete(Node, Key("", "node-b"))], False),
        ([Upsert(LEAVING), Delete(Node, Key("", "node-b"))], True),
        ([Delete(type(service()), Key("", "node-a"))], False),
    ],
    ids=range(14),
)
def test_when_this_node_is_leaving(events: list[Event], leaves: bool) -> None:
    asked = Asked()
    asked.status.took_in(events)
    assert asked.codes() == ((503, 200, 503) if leaves else (200, 200, 200))
    assert asked.body()["nodeEligible"] is not leaves


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz/", "/healthz/x", "", "/Healthz"])
def test_other_paths_are_not_found_and_not_counted(path: str) -> None:
    asked = Asked()
    answer = asked.answer(path)
    assert (answer.status, asked.told) == (404, [])
    assert b"/healthz" in answer.body


def go_time(text: str) -> float:
    """What Go's time.Time.String prints."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{6})\d{3} \+0000 UTC", text)
    assert match, text
    return datetime.strptime(match[1], "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC).timestamp()


def test_the_times_are_those_of_the_last_write_and_of_now() -> None:
    asked = Asked(synced=False)
    before = time.time()
    body = asked.body()
    assert body["lastUpdated"] == "0001-01-01 00:00:00 +0000 UTC"  # as Go prints the zero time
    asked.status.synced(SYNCED)
    written = asked.status.last_sync
    assert written is not None
    asked.status.synced(Sync(SYNCED.now, SYNCED.now, frozenset(), 0.1))  # nothing was written
    asked.status.failed(ModeError("no"))
    body = asked.body()
    assert go_time(body["lastUpdated"]) == pytest.approx(written, abs=1e-5)
    assert before <= go_time(body["lastUpdated"]) + 1e-5 <= go_time(body["currentTime"]) + 1e-5 <= time.time() + 1e-5
    asked.status.synced(Sync(SYNCED.now, SYNCED.now, frozenset({RouteId("a", "b", "c", Family.IPV4)}), 0.1))
    assert go_time(asked.body()["lastUpdated"]) > written
