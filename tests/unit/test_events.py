"""What is posted as Events, read back from the API server's stand-in."""

import json
import logging
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench import synthetic
from bench.api_server import ApiServer
from pyproxy.api import Api
from pyproxy.events import Events
from pyproxy.objects import Key
from pyproxy.problem import Problem

_PATIENCE_S = 15.0
_WEB = Problem("Service", Key("bench", "web"), "spec.ports[http]", "SCTP is missing in this kernel", "NotSupported")
_LONGEST = f"{'a' * 229}-{'b' * 20}"  # cut in the middle, it would end with a hyphen


class Ended(Exception):
    """Ends the thread of a test that is over."""


class Posting:
    """An Events in its thread, and the stand-in that it posts to."""

    def __init__(self, server: ApiServer, kubeconfig: Path) -> None:
        self.server = server
        self.slept: list[float] = []
        self._over = False
        self._died: list[BaseException] = []
        self._reader = Api(kubeconfig)
        self._asked_before = len(server.requests())
        self._found_before = {place: len(self._all(place)) for place in ("bench", "default", "elsewhere")}
        self.events = Events(Api(kubeconfig), "node-1", self._sleep)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.events.run()
        except Ended:
            pass
        except BaseException as error:
            self._died.append(error)

    def _sleep(self, seconds: float) -> None:
        if self._over:
            raise Ended
        self.slept.append(seconds)

    def end(self) -> None:
        self._over = True
        self.events._tokens = -1e9
        self.events.note(Problem("Service", Key("bench", "the-end"), "", ""))
        self._thread.join(_PATIENCE_S)
        assert self._died == []
        assert not self._thread.is_alive()

    def found(self, namespace: str = "bench") -> list[dict[str, Any]]:
        """In the order in which they were posted."""
        return self._all(namespace)[self._found_before[namespace] :]

    def _all(self, namespace: str) -> list[dict[str, Any]]:
        body = self._reader.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", {})
        items = json.loads(body)["items"]
        assert isinstance(items, list)
        return sorted(items, key=lambda event: int(event["metadata"]["resourceVersion"]))

    def until(self, count: int, namespace: str = "bench") -> list[dict[str, Any]]:
        end = time.monotonic() + _PATIENCE_S
        while len(found := self.found(namespace)) < count:
            assert time.monotonic() < end, f"{len(found)} events, not {count}"
            time.sleep(0.01)
        assert len(found) == count
        return found

    def drain(self) -> None:
        """Wait until all that was noted so far has been dealt with."""
        marker = Problem("Service", Key("bench", "marker"), "", f"{time.monotonic_ns()}")
        before = len(self._about("marker"))
        self.events.note(marker)
        end = time.monotonic() + _PATIENCE_S
        while len(self._about("marker")) == before:
            assert time.monotonic() < end, "the thread stands still"
            time.sleep(0.01)

    def _about(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.found() if event["regarding"]["name"] == name]

    def notes(self, namespace: str = "bench") -> list[str]:
        """But those of `drain`."""
        return [event["note"] for event in self.found(namespace) if event["regarding"]["name"] != "marker"]

    def paths(self) -> list[tuple[str, str]]:
        """Method and path of what it asked for, without what this test asked for."""
        asked = [(one["method"], one["path"]) for one in self.server.requests()[self._asked_before :]]
        return [(method, path) for method, path in asked if method == "POST" or not path.endswith("/events")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    with ApiServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.fixture
def posting(server: ApiServer, tmp_path: Path) -> Iterator[Posting]:
    """In a cluster with the Services web and marker, a slice of web, and a node."""
    piece = synthetic.endpoint_slice("web", [("10.0.0.1", "node-1")])
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
    services = [synthetic.service(name, f"10.96.0.{number}") for number, name in enumerate(("web", "marker"), 1)]
    server.apply([*services, piece, node])
    posting = Posting(server, server.kubeconfig(tmp_path / "kubeconfig"))
    yield posting
    posting.end()


def uid(posting: Posting, path: str) -> str:
    return str(json.loads(posting._reader.get(path, {}))["metadata"]["uid"])


def test_an_event_says_all_that_kubectl_describe_shows(posting: Posting) -> None:
    before = time.time()
    posting.events.note(_WEB)
    (event,) = posting.until(1)
    assert posting.paths() == [
        ("GET", "/api/v1/namespaces/bench/services/web"),
        ("POST", "/apis/events.k8s.io/v1/namespaces/bench/events"),
    ]
    assert event["regarding"] == {
        "apiVersion": "v1",
        "kind": "Service",
        "namespace": "bench",
        "name": "web",
        "uid": uid(posting, "/api/v1/namespaces/bench/services/web"),
    }
    assert event["regarding"]["uid"]
    assert event["note"] == "spec.ports[http]: SCTP is missing in this kernel"
    assert (event["type"], event["reason"], event["action"]) == ("Warning", "NotSupported", "Sync")
    assert (event["reportingController"], event["reportingInstance"]) == ("pyproxy", "node-1")
    assert event["metadata"]["namespace"] == "bench"
    assert event["metadata"]["name"].startswith("web.")
    said = datetime.fromisoformat(event["eventTime"]).astimezone(UTC).timestamp()
    assert before <= said + 1e-5 <= time.time() + 1e-5


def test_of_a_slice(posting: Posting) -> None:
    posting.events.note(Problem("EndpointSlice", Key("bench", "web-1"), "", "has a bad endpoint"))
    (event,) = posting.until(1)
    path = "/apis/discovery.k8s.io/v1/namespaces/bench/endpointslices/web-1"
    expected = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "uid": uid(posting, path)}
    assert event["regarding"].items() >= expected.items()
    assert (event["note"], event["reason"]) == ("has a bad endpoint", "NotObeyed")


def test_of_the_node_it_goes_to_the_namespace_default(posting: Posting, monkeypatch: pytest.MonkeyPatch) -> None:
    namespaces: list[str] = []
    real = posting.events._api.post

    def post(path: str, body: Any) -> None:
        namespaces.append(body["metadata"]["namespace"])
        real(path, body)

    monkeypatch.setattr(posting.events._api, "post", post)
    posting.events.note(Problem("Node", Key("", "node-1"), "spec.podCIDRs", "is odd"))
    (event,) = posting.until(1, "default")
    expected = {"kind": "Node", "namespace": "", "name": "node-1", "uid": uid(posting, "/api/v1/nodes/node-1")}
    assert event["regarding"].items() >= expected.items()
    assert namespaces == ["default"]  # the stand-in does not mind


def test_each_problem_is_said_once_an_hour(posting: Posting, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    other = _WEB._replace(reason="another")
    steps = ((0, _WEB, 1), (1, _WEB, 1), (2, other, 2), (3599, _WEB, 2), (3601, _WEB, 3), (3603, other, 4))
    for seconds, problem, count in steps:
        with monkeypatch.context() as patch:
            patch.setattr("pyproxy.events.time.monotonic", lambda at=now + seconds: at)
            posting.events.note(problem)
            posting.events.note(problem._replace())
        posting.drain()
        assert len(posting.notes()) == count, seconds
    assert [note.partition(": ")[2] for note in posting.notes()] == [_WEB.reason, "another", _WEB.reason, "another"]


def test_a_burst_goes_out_at_once_and_the_rest_slowly(posting: Posting) -> None:
    for number in range(30):
        posting.events.note(_WEB._replace(reason=f"number {number}"))
    posting.until(30)
    assert len(posting.slept) == 5
    # Its sleep takes no time here, so each further one has to make up for those before it.
    assert posting.slept == pytest.approx([10, 20, 30, 40, 50], abs=9)
    assert posting.notes() == [f"spec.ports[http]: number {number}" for number in range(30)]


def test_a_flood_is_dropped_and_does_not_grow(posting: Posting, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    monkeypatch.setattr(posting.events, "_take_token", lambda: gate.wait(_PATIENCE_S))
    for number in range(30_000):
        posting.events.note(_WEB._replace(reason=f"number {number}"))
    assert len(posting.events._said) <= 10_000
    gate.set()
    end = time.monotonic() + _PATIENCE_S
    while len(posting.notes()) < 100:
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.undo()
    posting.drain()
    assert 100 <= len(posting.notes()) <= 101  # one may have been taken already


def test_of_an_object_that_is_gone_nothing_is_posted(posting: Posting) -> None:
    posting.events.note(_WEB._replace(key=Key("bench", "gone")))
    posting.events.note(_WEB._replace(key=Key("elsewhere", "web")))
    posting.drain()
    assert (posting.notes(), posting.found("elsewhere")) == ([], [])
    assert ("GET", "/api/v1/namespaces/bench/services/gone") in posting.paths()


@pytest.mark.parametrize(
    "fault",
    [
        {"answer": 403, "path": "services/web"},
        {"answer": 500, "path": "services/web"},
        {"answer": 403, "path": "/events"},
        {"answer": 409, "path": "/events"},
        {"answer": 429, "path": "/events", "retryAfter": 60},
    ],
    ids=str,
)
def test_a_refusal_costs_that_event_only(posting: Posting, fault: dict[str, Any]) -> None:
    posting.server.fault(fault)
    if fault["path"] == "/events":
        posting.events.note(_WEB)
        end = time.monotonic() + _PATIENCE_S
        while not any(method == "POST" for method, _ in posting.paths()):
            assert time.monotonic() < end
            time.sleep(0.01)
    else:
        posting.events.note(_WEB)
    posting.drain()
    assert posting.notes() == []
    posting.events.note(_WEB._replace(reason="later"))
    posting.drain()
    assert posting.notes() == ["spec.ports[http]: later"]


def test_a_server_that_is_away_is_not_waited_for(posting: Posting, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "pyproxy.events"):
        posting.server.stop()
        posting.events.note(_WEB)
        end = time.monotonic() + _PATIENCE_S
        while "event not posted" not in caplog.text:
            assert time.monotonic() < end
            time.sleep(0.01)
    posting.server.start()
    posting.events.note(_WEB._replace(reason="later"))
    posting.drain()
    assert posting.notes() == ["spec.ports[http]: later"]  # the log has the other


class Strange(Api):
    """A server whose objects make no sense."""

    body = b""

    def get(self, path: str, query: Any) -> bytes:
        return self.body if "services/web" in path else super().get(path, query)


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"metadata": 1}', b'{"metadata": {"uid": 7}}', b"\xff", b"[" * 100_000,
     b'{"metadata": {"uid": "x", "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}"],
    ids=lambda body: repr(body[:30]),
)  # fmt: skip
def test_an_object_that_can_not_be_read_has_no_uid(posting: Posting, body: bytes) -> None:
    strange = Strange(posting.server.kubeconfig(posting.server._folder / "kubeconfig"))
    strange.body = body
    posting.events._api = strange
    posting.events.note(_WEB)
    (event,) = posting.until(1)
    assert event["regarding"]["uid"] == ""


@pytest.mark.parametrize(
    ("kind", "namespace", "name"),
    [
        ("Service", "bench", "a/../web"),
        ("Service", "bench", "'a/../b'"),
        ("Service", "bench", ".."),
        ("Service", "bench", "."),
        ("Service", "..", "web"),
        ("Service", "bench/services", "web"),
        ("Service", "bench", "web?watch=1"),
        ("Service", "bench", "web#"),
        ("Service", "bench", "%2e%2e"),
        ("Service", "bench", "web\r\nX: y"),
        ("Service", "bench", "Web"),
        ("Service", "bench", "\ud800"),
        ("Service", "bench", "\N{LATIN SMALL LETTER E WITH ACUTE}"),
        ("Service", "bench", 'quo"te'),
        ("Service", "bench", "web "),
        ("Service", "bench", "a" * 254),
        ("Service", "bench", "a" * 100_000),
        ("Service", "bench", ""),
        ("Service", "", "web"),
        ("Service", "", ""),
        ("EndpointSlice", "bench", "../services/web"),
        ("Node", "", ""),
        ("Node", "", "../namespaces/bench/services/web"),
        ("Node", "bench", "node-1"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_name_that_no_object_has_reaches_no_path(posting: Posting, kind: str, namespace: str, name: str) -> None:
    posting.events.note(Problem(kind, Key(namespace, name), "", "must not be said"))
    posting.drain()
    assert posting.paths() == [
        ("GET", "/api/v1/namespaces/bench/services/marker"),
        ("POST", "/apis/events.k8s.io/v1/namespaces/bench/events"),
    ]
    assert posting.notes() == []


def test_long_names_and_notes_are_cut_to_what_the_api_allows(posting: Posting) -> None:
    """core/v1 ValidateEvent: a note of 1 kB, an instance of 128 bytes, a name that is a DNS subdomain."""
    posting.server.apply([synthetic.service(_LONGEST, "10.96.0.9")])
    posting.events._node_name = "n" * 253
    posting.events.note(Problem("Service", Key("bench", _LONGEST), "", "x" * 5000))
    (event,) = posting.until(1)
    name = event["metadata"]["name"]
    assert len(name) <= 253
    assert all(part[0].isalnum() and part[-1].isalnum() for part in name.split("."))
    assert event["regarding"]["name"] == _LONGEST
    assert event["note"] == "x" * 1000
    assert event["reportingInstance"] == "n" * 128


def test_names_of_events_differ(posting: Posting) -> None:
    for number in range(20):
        posting.events.note(_WEB._replace(reason=str(number)))
    assert len({event["metadata"]["name"] for event in posting.until(20)}) == 20


def test_many_threads_may_note(posting: Posting) -> None:
    def note(number: int) -> None:
        for turn in range(4):
            posting.events.note(_WEB._replace(reason=f"{number} {turn}"))

    threads = [threading.Thread(target=note, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({event["note"] for event in posting.until(40)}) == 40
