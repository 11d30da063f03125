"""Lists and watches against the stand-in of the API server, over TLS: what is delivered, and what is asked for."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from threading import Event as Signal
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from bench import synthetic
from bench.api_server import ApiServer
from pyproxy import reflector
from pyproxy.api import Api
from pyproxy.kubernetes_source import KubernetesSource
from pyproxy.objects import Delete, EndpointSlice, Event, Key, Node, Service, Upsert
from pyproxy.problem import Problem
from pyproxy.reflector import Reflector

_PATIENCE_S = 15.0


@pytest.fixture(params=["watch-list", "list"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path, tokens=["one"], watch_list=request.param == "watch-list", bookmark_every=0.2) as running:
        yield running


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are followed by a short wait only."""
    monkeypatch.setattr(reflector, "_FIRST_RETRY_S", 0.02)
    monkeypatch.setattr(reflector, "_LONGEST_RETRY_S", 0.1)


class Closable(Api):
    """Stills the threads that use it, once its test is over."""

    closed = False

    def stream(self, path: str, query: Mapping[str, str], idle: float) -> Iterator[bytes]:
        for chunk in super().stream(path, query, idle):
            self._rest()
            yield chunk

    def _request(self, *arguments: Any) -> Any:
        self._rest()
        return super()._request(*arguments)

    def _rest(self) -> None:
        if self.closed:
            Signal().wait()


@pytest.fixture
def connect(server: ApiServer, tmp_path: Path) -> Iterator[Callable[..., Api]]:
    """Makes an Api, from what ApiServer.kubeconfig takes."""
    made: list[Closable] = []

    def make(**credentials: Any) -> Api:
        made.append(Closable(server.kubeconfig(tmp_path / "kubeconfig", **credentials)))
        return made[-1]

    yield make
    for api in made:
        api.closed = True


class Seen:
    """The state that a reflector's events add up to."""

    def __init__(self, connect: Callable[..., Api], tmp_path: Path, resource: reflector.Resource) -> None:
        self.objects: dict[Key, Any] = {}
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.completed = 0
        self.problems: list[Problem] = []
        self.token_file = tmp_path / "token"
        self.token_file.write_text("one")
        self.reflector = Reflector(connect(token_file=self.token_file), resource, self._take, self.problems.append)
        Thread(target=self.reflector.run, daemon=True).start()

    def _take(self, events: list[Event], complete: bool) -> None:
        for event in events:
            if isinstance(event, Delete):
                self.objects.pop(event.key, None)
            else:
                self.objects[event.object.key] = event.object
        self.events += events
        self.batches.append(len(events))
        self.completed += complete

    def names(self) -> set[str]:
        return {key.name for key in self.objects}

    def until(self, *names: str) -> None:
        wait_for(lambda: self.names() == set(names), lambda: f"{sorted(self.names())}, not {sorted(names)}")


def wait_for(condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, complaint()
        time.sleep(0.005)


@pytest.fixture
def seen(server: ApiServer, connect: Callable[..., Api], tmp_path: Path) -> Seen:
    """Of services, of which there is one."""
    server.apply([service("first")])
    seen = Seen(connect, tmp_path, reflector.services())
    wait_for(lambda: seen.completed == 1, lambda: "never listed")
    assert seen.names() == {"first"}
    wait_for_watch(server)
    return seen


def wait_for_watch(server: ApiServer) -> None:
    """Until one is open, so that what is written to all watches reaches it."""
    wait_for(lambda: any("watch=1" in one["path"] and one["status"] == 200 for one in server.requests()), lambda: "")


def service(name: str, number: int = 1, **metadata: Any) -> dict[str, Any]:
    made = synthetic.service(name, f"10.96.0.{number}")
    made["metadata"].update(metadata)
    return made


def queries(server: ApiServer) -> list[dict[str, str]]:
    """Of the requests for services so far."""
    paths = [request["path"] for request in server.requests() if request["path"].startswith("/api/v1/services")]
    return [{name: values[0] for name, values in parse_qs(urlsplit(path).query).items()} for path in paths]


def lists(server: ApiServer) -> list[dict[str, str]]:
    """Of the lists' first pages."""
    return [query for query in queries(server) if query.get("limit") == "500" and "continue" not in query]


def test_changes_follow_a_list(server: ApiServer, seen: Seen) -> None:
    server.apply([service("second", 2)])
    seen.until("first", "second")
    server.apply([service("second", 3)])
    wait_for(lambda: seen.objects[Key("bench", "second")].spec.cluster_ip == "10.96.0.3", lambda: "not changed")
    server.apply(delete=[("Service", "bench", "first")])
    seen.until("second")
    assert seen.completed == 1
    asked = queries(server)
    assert all(query["labelSelector"] == "!service.kubernetes.io/service-proxy-name" for query in asked)
    watches = [query for query in asked if "watch" in query]
    assert all(query["allowWatchBookmarks"] == "true" for query in watches)
    assert all(300 <= int(query["timeoutSeconds"]) <= 600 for query in watches)


def test_a_list_comes_in_pages_of_500_and_is_delivered_at_once(
    server: ApiServer, connect: Callable[..., Api], tmp_path: Path
) -> None:
    server.apply([service(f"s{number}", number % 250 + 1) for number in range(1201)])
    seen = Seen(connect, tmp_path, reflector.services())
    wait_for(lambda: seen.completed == 1, lambda: "never listed")
    assert seen.batches == [1201]
    pages = [query for query in queries(server) if "watch" not in query]
    if pages:
        assert [query["limit"] for query in pages] == ["500"] * 3
        assert pages[0]["resourceVersion"] == "0"
        assert ["continue" in query for query in pages] == [False, True, True]


def test_a_server_without_watch_list_is_asked_for_it_once(server: ApiServer, seen: Seen) -> None:
    server.fault({"line": "nonsense"})
    wait_for(lambda: seen.completed == 2, lambda: "never listed again")
    asked = sum("sendInitialEvents" in query for query in queries(server))
    assert (asked, len(lists(server))) in ((2, 0), (1, 2))


def test_after_a_cut_it_goes_on_where_it_was(server: ApiServer, seen: Seen) -> None:
    server.apply([service("second", 2)])
    seen.until("first", "second")
    server.fault({"cut": True})
    server.apply([service("third", 3)], [("Service", "bench", "first")])
    seen.until("second", "third")
    assert seen.completed == 1
    head = [query for query in queries(server) if query.get("limit") == "1"]
    assert head, "the server's version was not asked for"
    assert "resourceVersion" not in head[0]


@pytest.mark.parametrize(
    "fault",
    [
        {"answer": 503, "times": 4, "path": "services"},
        {"watchAnswer": 410, "times": 1, "path": "services"},
        {"answer": 410, "times": 2, "path": "services"},
        {"line": '{"type": "ADDED", "object": {"metadata"'},
        {"line": "not json at all"},
        {"line": '{"type": "MODIFIED", "object": {"metadata": {"name": 7}}}'},
        {"line": '{"type": "ERROR", "object": "what?"}'},
        {"line": '{"type": "MODIFIED", "object": {"metadata": {"name": "old", "resourceVersion": "1"}}}'},
    ],
    ids=lambda fault: str(fault)[:40],
)
def test_what_can_not_go_on_is_listed_again_and_deletions_are_noticed(
    server: ApiServer, seen: Seen, fault: dict[str, Any]
) -> None:
    server.apply([service("second", 2)])
    seen.until("first", "second")
    if "line" in fault:
        server.fault(fault)
    else:
        server.fault(fault, {"cut": True})
    server.apply([service("third", 3)], [("Service", "bench", "first")])
    server.fault({"expire": True})  # before it is back, where it was away
    wait_for(lambda: seen.completed >= 2, lambda: "never listed again")
    seen.until("second", "third")
    assert Delete(Service, Key("bench", "first")) in seen.events
    again = lists(server)[1:]
    assert all("resourceVersion" not in query for query in again), "a later list may not be older than what we know"


@pytest.mark.parametrize("end", ['{"type": "ERROR", "object": {"code": 500}}', '{"type": "ADDED", "object": {}}'])
def test_what_came_before_the_line_that_ends_a_watch_is_not_lost(server: ApiServer, seen: Seen, end: str) -> None:
    metadata = '{"namespace": "bench", "name": "first", "resourceVersion": "9999"}'
    gone = f'{{"type": "DELETED", "object": {{"metadata": {metadata}}}}}'
    server.apply(delete=[("Service", "bench", "other")])
    server.fault({"line": f"{gone}\n{end}"})
    wait_for(lambda: Delete(Service, Key("bench", "first")) in seen.events, lambda: f"only {seen.events}")
    seen.until("first")  # it was not the server's word: listed again, since versions went backwards


@pytest.mark.parametrize(
    "fault",
    [
        {"answer": 500, "times": 3, "path": "services"},
        {"answer": 429, "times": 1, "path": "services", "retryAfter": 1},
        {"answer": 503, "times": 2, "path": "services", "retryAfter": 0},
        {"answer": 401, "times": 2, "path": "services"},
        {"answer": 403, "times": 2, "path": "services"},
        {"torn": True, "path": "services"},
        {"line": '{"type": "PATCHED", "object": {"metadata": {"name": "x"}}}'},
        {"line": ""},
        {"refuseConnections": 0.3},
    ],
    ids=lambda fault: str(fault)[:40],
)
def test_what_passes_needs_no_new_list(server: ApiServer, seen: Seen, fault: dict[str, Any]) -> None:
    faults = [fault] if "line" in fault or "torn" in fault else [fault, {"cut": True}]
    server.fault(*faults)
    end = time.monotonic() + _PATIENCE_S
    while True:  # while connections are refused, ours are, too
        try:
            server.apply([service("second", 2)])
            break
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
    seen.until("first", "second")
    assert seen.completed == 1


def test_retry_after_is_obeyed(
    server: ApiServer, seen: Seen, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(reflector, "_sleep", slept.append)
    with caplog.at_level(logging.WARNING):
        server.fault({"answer": 429, "times": 1, "path": "services", "retryAfter": 77}, {"cut": True})
        wait_for(lambda: any(seconds > 77 for seconds in slept), lambda: f"waited only for {slept}")
    assert any("429" in record.__dict__["reason"] for record in caplog.records)


def test_half_a_list_is_no_list(server: ApiServer, connect: Callable[..., Api], tmp_path: Path) -> None:
    server.apply([service(f"s{number}", number + 1) for number in range(100)])
    server.fault({"halfList": True, "times": 3, "path": "services"})
    seen = Seen(connect, tmp_path, reflector.services())
    wait_for(lambda: seen.completed == 1, lambda: "never listed")
    assert seen.batches[0] == 100
    wait_for_watch(server)
    server.fault({"halfList": True, "times": 2, "path": "services"}, {"line": "nonsense"})
    wait_for(lambda: seen.completed == 2, lambda: "never listed again")
    assert len(seen.objects) == 100
    assert not [event for event in seen.events if isinstance(event, Delete)]


def test_a_continue_token_that_is_not_known_starts_the_list_again(
    server: ApiServer, connect: Callable[..., Api], tmp_path: Path
) -> None:
    server.apply([service(f"s{number}", number % 250 + 1) for number in range(600)])
    server.fault({"answer": 410, "times": 1, "path": "continue"}, {"answer": 400, "times": 1, "path": "continue"})
    seen = Seen(connect, tmp_path, reflector.services())
    wait_for(lambda: seen.completed == 1, lambda: "never listed")
    assert len(seen.objects) == 600


def test_versions_that_go_backwards_are_noticed(server: ApiServer, seen: Seen) -> None:
    for number in range(2, 30):
        server.apply([service("second", number)])
    seen.until("first", "second")
    server.stop()
    server.start(first_version=1)
    server.apply([service("third", 3)], [("Service", "bench", "first")])
    seen.until("second", "third")
    assert seen.completed == 2


def test_versions_that_go_backwards_behind_a_quiet_watch_are_noticed(
    server: ApiServer, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load balancer may keep the connection while the server behind it is another one: it is silent for ever."""
    monkeypatch.setattr(reflector, "_IDLE_S", 0.3)
    server.fault({"cut": True}, {"stall": 5, "times": 1, "path": "watch"})
    server.apply([service("second", 2)])
    seen.until("first", "second")


def test_a_rotated_token_is_used_from_the_file(server: ApiServer, seen: Seen) -> None:
    server.fault({"tokens": ["two"]}, {"cut": True})
    wait_for(lambda: "401" in seen.reflector.connection.error, lambda: "still let in")
    seen.token_file.write_text("two")
    server.apply([service("second", 2)])
    seen.until("first", "second")
    assert seen.completed == 1


def test_an_object_that_makes_no_sense_harms_only_itself(server: ApiServer, seen: Seen) -> None:
    bad, good = service("bad", 2), service("good", 3)
    bad["spec"]["ports"] = "all of them"
    server.apply([bad, good])
    seen.until("first", "good")
    assert [(p.key.name, p.field) for p in seen.problems] == [("bad", "spec.ports")]
    assert seen.reflector.problems == seen.problems
    server.apply([service("bad", 2)])
    seen.until("first", "good", "bad")
    wait_for(lambda: seen.reflector.problems == [], lambda: "it still has problems")
    spoiled = service("bad", 2)
    spoiled["spec"]["clusterIPs"] = ["10.96.0.300"]
    server.apply([spoiled, service("last", 4)])
    seen.until("first", "good", "bad", "last")  # its last good version stays
    assert [p.field for p in seen.problems] == ["spec.ports", "spec.clusterIPs[0]"]
    server.fault({"line": "nonsense"})
    wait_for(lambda: seen.completed == 2, lambda: "never listed again")
    assert seen.names() == {"first", "good", "bad", "last"}
    assert len(seen.problems) == 2, "said again"
    assert seen.reflector.problems == seen.problems[1:]
    server.apply(delete=[("Service", "bench", "bad")])
    seen.until("first", "good", "last")


def test_fields_of_a_newer_schema_are_passed_over(server: ApiServer, seen: Seen) -> None:
    newer = service("newer", 2, brandNew={"a": [1]})
    newer["spec"]["quantumPolicy"] = {"entangled": True}
    server.apply([newer])
    seen.until("first", "newer")
    assert seen.problems == []


def test_the_time_of_the_change_is_told_for_what_is_watched(
    server: ApiServer, connect: Callable[..., Api], tmp_path: Path
) -> None:
    piece = synthetic.endpoint_slice("svc", [("10.0.0.1", "node-1")])
    piece["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": "2026-11-22T10:00:00Z"}
    server.apply([piece])
    seen = Seen(connect, tmp_path, reflector.endpoint_slices())
    wait_for(lambda: seen.completed == 1, lambda: "never listed")
    piece["metadata"]["annotations"]["endpoints.kubernetes.io/last-change-trigger-time"] = "2026-11-22T10:00:01.5Z"
    server.apply([piece])
    wait_for(lambda: len(seen.events) == 2, lambda: "not changed")
    assert [event.triggered for event in seen.events if isinstance(event, Upsert)] == [None, 1795341601.5]


def test_a_server_that_ends_every_watch_at_once_is_not_asked_without_a_pause(server: ApiServer, seen: Seen) -> None:
    server.fault({"answer": 200, "times": 10_000, "path": "watch=1"}, {"cut": True})
    time.sleep(0.6)
    assert len(queries(server)) < 60


class Delivered:
    """What a KubernetesSource delivers."""

    def __init__(self, connect: Callable[..., Api]) -> None:
        self.batches: list[list[Event]] = []
        self.source = KubernetesSource(connect(token="one"), "node-1", self.batches.append, lambda _: None)
        Thread(target=self.source.run, daemon=True).start()


NODE = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}


def test_nothing_is_delivered_before_all_three_are_complete(
    server: ApiServer, connect: Callable[..., Api], tmp_path: Path
) -> None:
    server.apply([*synthetic.load(3, 2), {**NODE, "metadata": {"name": "node-2"}}])
    server.fault({"answer": 500, "times": 3, "path": "endpointslices"})
    delivered = Delivered(connect)
    states = delivered.source.connections
    wait_for(lambda: [one.lists for one in states] == [1, 1, 1], lambda: str(states))
    assert delivered.batches == []  # this node is missing
    server.apply([service("late", 9)])
    time.sleep(0.1)
    assert delivered.batches == []
    server.apply([NODE])
    wait_for(lambda: len(delivered.batches) == 1, lambda: "never delivered")
    objects = [event.object for event in delivered.batches[0] if isinstance(event, Upsert)]
    assert [sum(isinstance(one, kind) for one in objects) for kind in (Service, EndpointSlice, Node)] == [4, 3, 1]
    server.apply([service("later", 10)])
    wait_for(lambda: len(delivered.batches) == 2, lambda: "never delivered")


def test_it_says_what_it_waits_for(
    server: ApiServer,
    connect: Callable[..., Api],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def reminders() -> list[str]:
        """Of this server, not of those that other tests had."""
        records = [record.__dict__ for record in caplog.records if "waiting for" in record.message]
        return [record["reason"] for record in records if record["server"] == server.url]

    monkeypatch.setattr("pyproxy.kubernetes_source._FIRST_REMINDER_S", 0.1)
    with caplog.at_level(logging.WARNING):
        Delivered(connect)
        wait_for(lambda: any("is --hostname-override right?" in one for one in reminders()), lambda: str(reminders()))
    assert "no node 'node-1'" in reminders()[-1]


def test_a_server_that_is_not_trusted_is_not_told_our_token(server: ApiServer, tmp_path: Path) -> None:
    """Its certificate is another's."""
    other = tmp_path / "other"
    other.mkdir()
    with ApiServer(other, tokens=["one"]) as stranger:
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token="one")
        kubeconfig.write_text(kubeconfig.read_text().replace(str(server.port), str(stranger.port)))
        api = Api(kubeconfig)
        with pytest.raises(Exception, match="CERTIFICATE_VERIFY_FAILED"):
            api.get("/api/v1/services", {})
        assert stranger.requests() == []
