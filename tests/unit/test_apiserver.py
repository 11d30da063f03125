"""The stand-in for the API server answers as the real one did when `tests/transcripts` were recorded.

The transcripts are reproduced to the letter: uids, timestamps and versions can be given, so that nothing is normalised.
"""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import trustme

from bench.api_server import ApiServer
from bench.namespace import Namespace

TRANSCRIPTS = {path.stem: json.loads(path.read_text()) for path in Path(__file__).parents[1].glob("transcripts/*.json")}
SERVICES = "/api/v1/services"
SLICES = "/apis/discovery.k8s.io/v1/endpointslices"
WATCH_LIST = f"{SERVICES}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
Start = Callable[..., ApiServer]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def names(self) -> list[str]:
        return [item["metadata"]["name"] for item in self.json["items"]]


class Client:
    """One connection; ``open`` leaves the body to be read."""

    def __init__(self, server: ApiServer, tls: ssl.SSLContext | None = None, **headers: str) -> None:
        tls = tls or ssl.create_default_context(cafile=server.ca_file)
        self.connection = http.client.HTTPSConnection("127.0.0.1", server.port, timeout=20, context=tls)
        self._headers = headers

    def open(self, path: str, method: str = "GET", body: bytes | None = None) -> http.client.HTTPResponse:
        self.connection.request(method, path, body, self._headers)
        return self.connection.getresponse()

    def ask(self, path: str, method: str = "GET", body: bytes | None = None) -> Answer:
        response = self.open(path, method, body)
        return Answer(response.status, response.headers, response.read())


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(ApiServer(tmp_path, **options))


@pytest.fixture
def server(start: Start) -> ApiServer:
    return start()


def service(name: str, namespace: str = "shop", **labels: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"clusterIP": "10.96.0.9"}}


def summary(events: list[Any]) -> list[tuple[str, str]]:
    return [(event["type"], event["object"]["metadata"].get("name", "")) for event in events]


def next_event(watch: http.client.HTTPResponse) -> Any:
    return json.loads(watch.readline())


# ---- as the real server ----

STAGES = {
    "watch-endpointslices": 231,
    "watch-list-initial-events": 234,
    "watch-services-proxy-selector": 234,
    "watch-expired-410": 396,
}


def recorded_objects() -> list[dict[str, Any]]:
    """What the server held at version 228, when the first lists were recorded."""
    names = ("list-services-page1", "list-services-page2", "list-endpointslices", "list-node")
    bodies = [TRANSCRIPTS[name]["body"] for name in names]
    return [
        {"kind": body["kind"].removesuffix("List"), "apiVersion": body["apiVersion"], **item}
        for body in bodies
        for item in body["items"]
    ]


def advance(server: ApiServer, version: int) -> None:
    """Repeat what happened until ``version``; of most writes only that they were is known, so events are written."""
    changed, added, deleted = (line["object"] for line in TRANSCRIPTS["watch-endpointslices"]["lines"])
    assert changed["metadata"]["resourceVersion"] == "229"
    assert deleted["metadata"]["name"] == added["metadata"]["name"]
    server.apply([changed, added], [("EndpointSlice", "default", added["metadata"]["name"])])
    noise = {"apiVersion": "v1", "kind": "Event", "metadata": {"name": "noise", "namespace": "default"}}
    assert server.apply([noise] * (version - 231)) == version


@pytest.mark.parametrize("name", TRANSCRIPTS)
def test_a_recorded_request_gets_the_recorded_answer(name: str, start: Start, tmp_path: Path) -> None:
    transcript = TRANSCRIPTS[name]
    held = {"kind": "List", "metadata": {"resourceVersion": "228"}, "items": recorded_objects()}
    (tmp_path / "objects.json").write_text(json.dumps(held))
    server = start(tokens=["good"])
    if name in STAGES:
        advance(server, STAGES[name])
    if name == "watch-expired-410":
        server.fault({"expire": True})
    client = Client(server, Authorization="Bearer " + ("bad" if transcript["status"] == 401 else "good"))
    answer = client.ask(transcript["request"]["path"], transcript["request"]["method"])
    assert answer.status == transcript["status"]
    assert {key: answer.headers[key] for key in transcript["headers"]} == transcript["headers"]
    assert ("Content-Length" in answer.headers) == ("Content-Length" in transcript["headers"])
    if "lines" in transcript:
        assert answer.lines == transcript["lines"]
    elif transcript["body"] == "":
        assert answer.body == b""
    else:
        assert answer.json == transcript["body"]


def test_pages_show_one_version(server: ApiServer) -> None:
    version = server.apply([service(f"s{number}") for number in range(7)])
    client = Client(server)
    first = client.ask(f"{SERVICES}?limit=3&resourceVersion=0").json
    assert first["metadata"]["remainingItemCount"] == 4
    server.apply([service("s3", changed="yes"), service("new")], [("Service", "shop", "s4")])
    second = client.ask(f"{SERVICES}?limit=3&continue={first['metadata']['continue']}").json
    assert [item["metadata"]["name"] for item in second["items"]] == ["s3", "s4", "s5"]
    assert second["items"][0]["metadata"]["labels"] == {}
    assert second["metadata"]["resourceVersion"] == str(version)
    third = client.ask(f"{SERVICES}?limit=3&continue={second['metadata']['continue']}")
    assert (third.names, third.json["metadata"]) == (["s6"], {"resourceVersion": str(version)})
    assert client.ask(SERVICES).names == ["new", "s0", "s1", "s2", "s3", "s5", "s6"]


def test_an_expired_page_offers_a_token_to_go_on_with(server: ApiServer) -> None:
    server.apply([service("a"), service("b")])
    client = Client(server)
    token = client.ask(f"{SERVICES}?limit=1").json["metadata"]["continue"]
    server.apply([service("c")])
    server.fault({"expire": True})
    expired = client.ask(f"{SERVICES}?limit=1&continue={token}")
    assert (expired.status, expired.json["reason"], expired.json["code"]) == (410, "Expired", 410)
    rest = client.ask(f"{SERVICES}?continue={expired.json['metadata']['continue']}")
    assert rest.names == ["b", "c"]
    assert client.ask(f"{SERVICES}?resourceVersion=2&resourceVersionMatch=Exact").status == 410


def test_lists_at_versions(server: ApiServer) -> None:
    old = server.apply([service("a")])
    new = server.apply([service("b")])
    client = Client(server)
    assert client.ask(f"{SERVICES}?resourceVersion={old}").names == ["a", "b"]
    assert client.ask(f"{SERVICES}?resourceVersion={old}&resourceVersionMatch=Exact").names == ["a"]
    future = client.ask(f"{SERVICES}?resourceVersion={new + 1}")
    assert (future.status, future.json["details"]["causes"][0]["reason"]) == (504, "ResourceVersionTooLarge")
    token = client.ask(f"{SERVICES}?limit=1").json["metadata"]["continue"]
    assert client.ask(f"{SERVICES}?limit=1&continue={token}&resourceVersion={old}").status == 400
    assert client.ask(f"{SERVICES}?watch=1&resourceVersion=x").status == 400


def test_one_namespace_and_one_object(server: ApiServer) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}
    server.apply([service("b", "two"), service("a", "two"), service("a", "one"), node])
    client = Client(server)
    assert client.ask(SERVICES).names == ["a", "a", "b"]
    assert client.ask("/api/v1/namespaces/two/services").names == ["a", "b"]
    one = client.ask("/api/v1/namespaces/one/services/a").json
    assert (one["kind"], one["apiVersion"], one["metadata"]["namespace"]) == ("Service", "v1", "one")
    assert client.ask("/api/v1/nodes/n").json["kind"] == "Node"
    missing = client.ask("/apis/discovery.k8s.io/v1/namespaces/one/endpointslices/x").json
    assert missing["message"] == 'endpointslices.discovery.k8s.io "x" not found'
    assert missing["details"] == {"name": "x", "group": "discovery.k8s.io", "kind": "endpointslices"}


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("!tier", "plain"),
        ("tier", "back front odd"),
        ("tier=front", "front"),
        ("tier==front", "front"),
        ("tier!=front", "back odd plain"),
        ("tier in (front,back)", "back front"),
        ("tier notin (front, back)", "odd plain"),
        ("tier,x/y!=1", "back odd"),
        ("!tier, tier", ""),
        ("", "back front odd plain"),
    ],
)
def test_label_selectors(selector: str, names: str, server: ApiServer) -> None:
    front, back, odd = (service(name, tier=name) for name in ("front", "back", "odd"))
    front["metadata"]["labels"]["x/y"] = "1"
    odd["metadata"]["labels"]["tier"] = [1]  # hostile: no label, but it is there
    server.apply([front, back, odd, service("plain")])
    path = f"{SERVICES}?labelSelector={quote(selector)}"
    assert Client(server).ask(path).names == names.split()


def test_field_selectors_and_bad_ones(server: ApiServer) -> None:
    server.apply([service("a", "one"), service("a", "two"), service("b", "two")])
    client = Client(server)
    query = "metadata.name%3D%3Da,metadata.namespace!%3Done"
    found = client.ask(f"{SERVICES}?fieldSelector={query}").json
    assert [item["metadata"]["namespace"] for item in found["items"]] == ["two"]
    page = client.ask(f"{SERVICES}?fieldSelector=metadata.namespace%3Dtwo&limit=1").json["metadata"]
    assert "continue" in page
    assert "remainingItemCount" not in page
    assert client.ask(f"{SERVICES}?labelSelector=a%20b").status == 400
    assert client.ask(f"{SERVICES}?fieldSelector=spec.clusterIP%3Dx").status == 400


def test_a_watch_sees_objects_enter_and_leave_its_selector(server: ApiServer) -> None:
    version = server.apply([service("stays", app="x"), service("leaves", app="x"), service("enters"), service("other")])
    watch = Client(server).open(f"{SERVICES}?watch=true&resourceVersion={version}&labelSelector=app%3Dx")
    server.apply(
        [service("stays", app="x", more="y"), service("leaves", app="z"), service("enters", app="x"), service("other")],
        [("Service", "shop", "stays"), ("Service", "shop", "nobody")],
    )
    events = [next_event(watch) for _ in range(4)]
    assert summary(events) == [
        ("MODIFIED", "stays"),
        ("DELETED", "leaves"),
        ("ADDED", "enters"),
        ("DELETED", "stays"),
    ]
    versions = [int(event["object"]["metadata"]["resourceVersion"]) - version for event in events]
    assert versions == [1, 2, 3, 5]
    assert events[1]["object"]["metadata"]["labels"] == {"app": "x"}  # as it was when last seen
    assert events[3]["object"]["metadata"]["labels"] == {"app": "x", "more": "y"}


def test_a_burst_is_one_chunk(server: ApiServer) -> None:
    watch = Client(server).open(f"{SERVICES}?watch=1&resourceVersion=1")
    assert watch.fp is not None
    server.apply([service("a"), service("b"), service("c")])
    size = int(watch.fp.readline(), 16)
    assert watch.fp.read(size).count(b"\n") == 3


@pytest.mark.parametrize("version", ["", "&resourceVersion=0"])
def test_a_watch_without_a_version_begins_with_what_is_there(version: str, server: ApiServer) -> None:
    server.apply([service("a"), service("b", "other")])
    watch = Client(server).open(f"/api/v1/namespaces/shop/services?watch=1{version}")
    assert summary([next_event(watch)]) == [("ADDED", "a")]
    server.apply([service("c", "other"), service("c")])
    assert summary([next_event(watch)]) == [("ADDED", "c")]


def test_a_connection_serves_on_after_a_watch(server: ApiServer) -> None:
    client = Client(server)
    for _ in range(2):
        assert client.ask(f"{SERVICES}?watch=1&timeoutSeconds=1").body == b""
        assert client.ask(SERVICES).status == 200


def test_a_watch_list_goes_on_with_changes(server: ApiServer) -> None:
    server.apply([service("b"), service("a")])
    watch = Client(server).open(WATCH_LIST)
    assert summary([next_event(watch) for _ in range(3)]) == [("ADDED", "a"), ("ADDED", "b"), ("BOOKMARK", "")]
    server.apply([service("a", changed="yes")])
    assert summary([next_event(watch)]) == [("MODIFIED", "a")]


def test_bookmarks_tell_the_version(start: Start) -> None:
    server = start(bookmark_every=0.05)
    watch = Client(server).open(f"{SLICES}?watch=1&resourceVersion=1&allowWatchBookmarks=true")
    assert next_event(watch) == {
        "type": "BOOKMARK",
        "object": {
            "kind": "EndpointSlice",
            "apiVersion": "discovery.k8s.io/v1",
            "metadata": {"resourceVersion": "1"},
            "addressType": "",
            "endpoints": None,
            "ports": None,
        },
    }
    version = server.apply([service("elsewhere")])
    while (event := next_event(watch))["object"]["metadata"]["resourceVersion"] == "1":
        pass
    assert event["object"]["metadata"]["resourceVersion"] == str(version)
    for unasked_or_ahead in ("resourceVersion=1", "resourceVersion=99&allowWatchBookmarks=true"):
        assert Client(server).ask(f"{SLICES}?watch=1&timeoutSeconds=1&{unasked_or_ahead}").body == b""


def test_a_server_without_watch_list_says_so(start: Start) -> None:
    refused = Client(start(watch_list=False)).ask(WATCH_LIST)
    assert (refused.status, refused.json["reason"]) == (422, "Invalid")
    assert refused.json["message"].endswith(
        "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for watch unless the WatchList feature gate"
        " is enabled"
    )


@pytest.mark.parametrize("query", ["sendInitialEvents=true", "resourceVersionMatch=NotOlderThan"])
def test_options_of_a_watch_that_need_each_other(query: str, server: ApiServer) -> None:
    assert Client(server).ask(f"{SERVICES}?watch=1&{query}").status == 422


def test_events_are_kept_as_sent(server: ApiServer) -> None:
    client = Client(server)
    sent = {"metadata": {"name": "e"}, "reason": "Why"}
    answer = client.ask("/api/v1/namespaces/shop/events", "POST", json.dumps(sent).encode())
    assert (answer.status, answer.json["reason"], answer.json["metadata"]["namespace"]) == (201, "Why", "shop")
    protobuf = client.ask("/apis/events.k8s.io/v1/namespaces/shop/events", "POST", b"k8s\0\xff\xfe")
    assert (protobuf.status, protobuf.json["apiVersion"]) == (201, "events.k8s.io/v1")
    assert client.ask("/api/v1/namespaces/shop/events/e").json == answer.json
    assert len(client.ask("/apis/events.k8s.io/v1/events").names) == 1


def test_what_it_does_not_have(server: ApiServer) -> None:
    client = Client(server)
    for path in ("/api/v1/pods", "/", "/stand-in/objects", "/api/v1/namespaces/shop/nodes"):
        assert (client.ask(path).status, client.ask(path).json["reason"]) == (404, "NotFound")
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert client.ask(SERVICES, method, b"{}").json["code"] == 405
    assert client.ask("/version").json["minor"] == "36"
    assert [client.ask(path).body for path in ("/healthz", "/livez", "/readyz")] == [b"ok"] * 3


# ---- who is let in ----


def test_tokens(start: Start) -> None:
    server = start(tokens=["one", "two"])
    for scheme in ("Bearer", "bearer", "BEARER"):
        assert Client(server, Authorization=f"{scheme} two").ask(SERVICES).status == 200
    assert Client(server, Authorization="Basic one").ask(SERVICES).status == 401
    assert Client(server).ask(SERVICES).status == 401
    assert Client(server).ask("/healthz").status == 200
    assert Client(server, Authorization="Bearer three").ask("/healthz").status == 401
    server.fault({"tokens": ["three"]})
    assert Client(server, Authorization="Bearer one").ask(SERVICES).status == 401
    assert Client(server, Authorization="Bearer three").ask(SERVICES).status == 200


def test_client_certificates(start: Start, tmp_path: Path) -> None:
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "client-ca.pem"))
    server = start(client_ca=tmp_path / "client-ca.pem", tokens=["one"])
    assert Client(server).ask(SERVICES).status == 401
    assert Client(server, Authorization="Bearer one").ask(SERVICES).status == 200
    tls = ssl.create_default_context(cafile=server.ca_file)
    ca.issue_cert("proxy.example").configure_cert(tls)
    assert Client(server, tls).ask(SERVICES).status == 200


# ---- stops and starts ----


@pytest.mark.parametrize("end", [ApiServer.stop, ApiServer.kill])
def test_a_restart_keeps_port_certificate_and_objects(end: Callable[[ApiServer], Any], server: ApiServer) -> None:
    server.apply([service("a"), service("b")], [("Service", "shop", "b")])
    before, port = Client(server).ask(SERVICES), server.port
    tls = ssl.create_default_context(cafile=server.ca_file)
    end(server)
    with pytest.raises(ConnectionRefusedError):
        Client(server, tls).ask(SERVICES)
    server.start()
    assert server.port == port
    client = Client(server, tls)
    assert client.ask(SERVICES).body == before.body
    version = int(before.json["metadata"]["resourceVersion"])
    too_old = client.ask(f"{SERVICES}?watch=1&resourceVersion={version - 1}")
    assert too_old.lines[0]["object"]["code"] == 410
    assert client.ask(f"{SERVICES}?watch=1&resourceVersion={version}&timeoutSeconds=1").body == b""
    assert server.apply([service("c")]) == version + 1


def test_a_restart_may_set_versions_back(server: ApiServer) -> None:
    server.apply([service(f"s{number}") for number in range(20)])
    server.stop()
    server.start(first_version=5)
    listed = Client(server).ask(SERVICES).json
    assert listed["metadata"]["resourceVersion"] == "25"
    assert sorted(int(item["metadata"]["resourceVersion"]) for item in listed["items"]) == list(range(6, 26))
    watch = Client(server).open(f"{SERVICES}?watch=1&resourceVersion=27")
    server.apply([service("unseen"), service("unseen"), service("seen")])
    assert summary([next_event(watch)]) == [("ADDED", "seen")]


def test_it_ends_at_once_with_work_in_hand(server: ApiServer) -> None:
    server.fault({"stall": 1000, "path": "nodes"})
    watch, stalled = Client(server).open(f"{SERVICES}?watch=1"), Client(server).open("/api/v1/nodes")
    assert (watch.status, stalled.status) == (200, 200)
    assert server.stop() == 0


def test_it_ends_with_whoever_started_it(tmp_path: Path) -> None:
    starts = "server = ApiServer(Path(sys.argv[1])); server.start(); print(server.pid, flush=True); os._exit(0)"
    code = f"import os, sys; from pathlib import Path; from bench.api_server import ApiServer; {starts}"
    command = [sys.executable, "-c", code, str(tmp_path)]
    # It inherits stderr, whose end is waited for.
    assert int(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout) > 0


def test_it_lives_in_a_namespace(start: Start) -> None:
    namespace = Namespace(f"pyproxy{os.getpid()}-api")
    try:
        namespace.create()
        server = start(namespace=namespace)
        assert server.apply([service("a")]) == 2
        with pytest.raises(ConnectionRefusedError):
            Client(server).ask(SERVICES)
        with namespace.entered():
            assert Client(server).ask(SERVICES).names == ["a"]
    finally:
        namespace.remove()


def test_a_kubeconfig(start: Start, tmp_path: Path) -> None:
    server = start(tokens=["one"])
    config = json.loads(server.kubeconfig(tmp_path / "config", token_file=tmp_path / "token").read_text())
    assert config["users"][0]["user"] == {"tokenFile": str(tmp_path / "token")}
    assert config["clusters"][0]["cluster"]["server"] == server.url
    assert "token" in server.kubeconfig(tmp_path / "config", token="one").read_text()


# ---- control ----


def test_hostile_objects_are_kept_as_they_are(server: ApiServer) -> None:
    hostile = service("../\u2028\n'; DROP", "", a="b") | {"spec": [None, {"ports": -1}], "": 1e400}
    hostile["metadata"]["annotations"] = "none"
    nameless = {"apiVersion": "v1", "kind": "Service", "metadata": {}}
    wanted = json.loads(json.dumps(hostile | {"": None}))
    server.apply([hostile | {"": None}, nameless])
    items = {item["metadata"].get("name"): item for item in Client(server).ask(SERVICES).json["items"]}
    found = items[hostile["metadata"]["name"]]
    assert found["spec"] == wanted["spec"]
    assert wanted["metadata"].items() <= found["metadata"].items()
    assert set(items[None]["metadata"]) == {"resourceVersion", "uid", "creationTimestamp"}


def test_a_rewritten_object_keeps_its_identity(server: ApiServer) -> None:
    server.apply([service("a")])
    client = Client(server)
    first = client.ask(SERVICES).json["items"][0]["metadata"]
    server.apply([service("a")])
    second = client.ask(SERVICES).json["items"][0]["metadata"]
    assert (first["uid"], first["creationTimestamp"]) == (second["uid"], second["creationTimestamp"])
    assert first["resourceVersion"] != second["resourceVersion"]
    server.apply([service("a")], [("Service", "shop", "a")])
    server.apply([service("a")])
    assert client.ask(SERVICES).json["items"][0]["metadata"]["uid"] != first["uid"]


@pytest.mark.parametrize(
    "bad", [{"apiVersion": "v1", "kind": "Pod", "metadata": {}}, {}, service("x") | {"metadata": {"name": 1}}]
)
def test_a_burst_with_an_object_without_a_key_is_refused_whole(bad: dict[str, Any], server: ApiServer) -> None:
    with pytest.raises(RuntimeError, match="no key"):
        server.apply([service("a"), bad])
    with pytest.raises(RuntimeError, match="no such kind"):
        server.apply([service("a")], [("Pod", "x", "y")])
    assert Client(server).ask(SERVICES).names == []


def test_what_is_no_fault_is_refused(server: ApiServer) -> None:
    with pytest.raises(RuntimeError, match="no fault"):
        server.fault({"path": "/api"})
    with pytest.raises(RuntimeError, match="answr"):
        server.fault({"answr": 500})


def test_requests_are_remembered(server: ApiServer) -> None:
    Client(server, None, **{"User-Agent": "me"}).ask(f"{SERVICES}?limit=1")
    Client(server).ask("/nothing")
    listed, missing = server.requests()
    assert listed == {"method": "GET", "path": f"{SERVICES}?limit=1", "userAgent": "me", "status": 200}
    assert missing["status"] == 404


# ---- faults ----


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (401, "Unauthorized"),
        (410, "Expired"),
        (429, "TooManyRequests"),
        (500, "InternalError"),
        (503, "ServiceUnavailable"),
    ],
)
def test_an_answer_of_another_status(code: int, reason: str, server: ApiServer) -> None:
    server.fault({"answer": code, "times": 2, "path": "services", "retryAfter": 7})
    client = Client(server)
    assert client.ask(SLICES).status == 200
    for _ in range(2):
        answer = client.ask(SERVICES)
        assert (answer.status, answer.json["code"], answer.json["reason"]) == (code, code, reason)
        assert (answer.headers["Retry-After"], answer.json["details"]["retryAfterSeconds"]) == ("7", 7)
    assert client.ask(SERVICES).status == 200


def test_an_error_in_a_watch(server: ApiServer) -> None:
    server.fault({"watchAnswer": 410, "path": "services"})
    client = Client(server)
    assert client.ask(SERVICES).status == 200
    answer = client.ask(WATCH_LIST)
    assert [(line["type"], line["object"]["code"]) for line in answer.lines] == [("ERROR", 410)]
    assert summary(client.ask(f"{WATCH_LIST}&timeoutSeconds=1").lines) == [("BOOKMARK", "")]


def test_cut_connections(server: ApiServer) -> None:
    idle, watch = Client(server), Client(server).open(f"{SERVICES}?watch=1")
    idle.ask(SERVICES)
    server.fault({"cut": True})
    with pytest.raises((OSError, http.client.HTTPException)):
        watch.read()
    with pytest.raises((OSError, http.client.HTTPException)):
        idle.ask(SERVICES)
    assert Client(server).ask(SERVICES).status == 200


def test_a_torn_event(server: ApiServer) -> None:
    torn, whole = Client(server).open(f"{SERVICES}?watch=1"), Client(server).open(f"{SLICES}?watch=1")
    server.fault({"torn": True, "path": "services"}, {"line": "x", "path": "endpointslices"})
    assert torn.fp is not None
    size = int(torn.fp.readline(), 16)
    line = torn.fp.read(size)
    assert line.startswith(b'{"type":')
    with pytest.raises(json.JSONDecodeError):
        json.loads(line)
    assert torn.fp.read() == b"\r\n"  # and no last chunk
    assert whole.readline() == b"x\n"


def test_a_raw_line(server: ApiServer) -> None:
    watch, other = Client(server).open(f"{SERVICES}?watch=1"), Client(server).open(f"{SLICES}?watch=1")
    server.fault({"line": '{"type":"NEW"', "path": "services"}, {"line": "", "path": "endpointslices"})
    assert (watch.readline(), other.readline()) == (b'{"type":"NEW"\n', b"\n")
    server.apply([service("a")])
    assert summary([next_event(watch)]) == [("ADDED", "a")]


@pytest.mark.parametrize("path", [SERVICES, f"{SERVICES}?limit=1", WATCH_LIST])
def test_half_a_list(path: str, server: ApiServer) -> None:
    server.apply([service(f"s{number}") for number in range(50)])
    server.fault({"halfList": True, "path": "services"})
    client = Client(server)
    assert client.ask(f"{SERVICES}?watch=1&resourceVersion=9999&timeoutSeconds=1").status == 200  # is not a list
    response = client.open(path)
    assert response.fp is not None
    half = response.fp.read()
    whole = Client(server).ask(f"{path}&timeoutSeconds=1" if path == WATCH_LIST else path).body
    body = half if "Content-Length" in response.headers else half.partition(b"\r\n")[2]
    assert whole.startswith(body)
    assert len(whole) * 0.4 < len(body) < len(whole) * 0.6


def test_a_stalled_answer(server: ApiServer) -> None:
    server.fault({"stall": 1000, "path": "services"})
    client = Client(server)
    response = client.open(SERVICES)
    client.connection.sock.settimeout(0.2)
    assert response.status == 200
    with pytest.raises(TimeoutError):
        response.read()
    server.fault({"stall": 0.01})
    assert Client(server).ask(SERVICES).json["items"] == []


def test_a_slow_answer(server: ApiServer) -> None:
    server.apply([service(f"s{number}") for number in range(50)])
    server.fault({"slow": 10, "path": "services"})
    slow = Client(server).open(SERVICES)
    for _ in range(3):
        assert Client(server).ask(SERVICES).status == 200
    assert 0 < len(slow.read1(5000)) < 2500
    server.fault({"slow": 100_000, "path": "services"})
    assert len(Client(server).ask(SERVICES).names) == 50


def test_running_watches_outlive_expired_versions(server: ApiServer) -> None:
    watch = Client(server).open(f"{SERVICES}?watch=1&resourceVersion=1")
    server.apply([service("a")])
    server.fault({"expire": True})
    server.apply([service("b")])
    assert summary([next_event(watch), next_event(watch)]) == [("ADDED", "a"), ("ADDED", "b")]
    client = Client(server)
    assert client.ask(f"{SERVICES}?watch=1&resourceVersion=1").lines[0]["object"]["code"] == 410
    assert summary([next_event(client.open(f"{SERVICES}?watch=1&resourceVersion=2"))]) == [("ADDED", "b")]


def test_refused_connections(server: ApiServer) -> None:
    kept = Client(server)
    assert kept.ask(SERVICES).status == 200
    server.fault({"refuseConnections": 2})
    with pytest.raises(ConnectionRefusedError):
        Client(server).ask(SERVICES)
    assert kept.ask(SERVICES).status == 200
    for _ in range(100):
        try:
            assert Client(server).ask(SERVICES).status == 200
            return
        except ConnectionRefusedError:
            time.sleep(0.1)
    pytest.fail("it never came back")


def test_steering_a_dead_server_fails(server: ApiServer) -> None:
    os.kill(server.pid, signal.SIGTERM)
    with pytest.raises((OSError, http.client.HTTPException)):
        while True:
            server.requests()
