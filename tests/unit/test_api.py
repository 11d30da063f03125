"""The connection to the API server over real TLS: the way there, and what an answer becomes."""

import gzip
import time
from contextlib import suppress
from email.utils import formatdate
from pathlib import Path
from threading import Thread

import pytest
import trustme

from bench.api_server import ApiServer
from pyproxy import api
from pyproxy.api import Api, ApiError, Silent, Unreachable
from tests.unit.api_world import (
    ONE,
    PASSWORD,
    SECRETS,
    SERVICES,
    TWO,
    Relay,
    Scripted,
    answered,
    at_once,
    ca,
    ca_file,
    connected,
    discreet,
    fails,
    foreign,
    no_proxies,
    server,
    statuses,
    written,
)

__all__ = ["at_once", "ca", "ca_file", "connected", "discreet", "foreign", "no_proxies", "server"]  # fixtures

# The way there.


def test_a_server_that_is_not_trusted_hears_nothing(foreign: Scripted, server: ApiServer, tmp_path: Path) -> None:
    for option in ({}, {"insecure_skip_tls_verify": False}):
        kubeconfig = written(tmp_path, foreign.port, server.ca_file, {"token": ONE}, **option)
        with fails(Unreachable, "CERTIFICATE_VERIFY_FAILED"):
            Api(kubeconfig).get("/", {})
    assert foreign.requests == []


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_insecure_skip_tls_verify(foreign: Scripted, tmp_path: Path) -> None:
    kubeconfig = written(tmp_path, foreign.port, None, {"token": ONE}, insecure_skip_tls_verify=True)
    assert Api(kubeconfig).get("/", {}) == b"{}"


def test_tls_server_name(ca: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    with Scripted(ca, "api.example") as server:
        Api(written(tmp_path, server.port, ca_file, {"token": ONE}, tls_server_name="api.example")).get("/", {})
        for wrong in ({}, {"tls_server_name": "other.example"}):
            with fails(Unreachable, "CERTIFICATE_VERIFY_FAILED"):
                Api(written(tmp_path, server.port, ca_file, {"token": ONE}, **wrong)).get("/", {})
        assert len(server.requests) == 1


@pytest.mark.usefixtures("at_once")
def test_a_way_that_changes_is_taken(foreign: Scripted, ca_file: Path, server: ApiServer, tmp_path: Path) -> None:
    connection = Api(written(tmp_path, foreign.port, ca_file, {"token": ONE}))
    for port, trusted, option in (
        (1, ca_file, {}),
        (foreign.port, server.ca_file, {}),
        (foreign.port, ca_file, {"tls_server_name": "other.example"}),
        (foreign.port, ca_file, {"proxy_url": "http://127.0.0.1:1"}),
    ):
        connection.get("/", {})
        written(tmp_path, port, trusted, {"token": ONE}, **option)
        with fails(Unreachable):
            connection.get("/", {})
        written(tmp_path, foreign.port, ca_file, {"token": ONE})
    connection.get("/", {})
    assert len(foreign.requests) == 5
    for skips in (False, True):
        written(tmp_path, foreign.port, server.ca_file, {}, insecure_skip_tls_verify=skips)
        if not skips:
            with fails(Unreachable, "CERTIFICATE_VERIFY_FAILED"):
                connection.get("/", {})
    with pytest.warns(Warning, match="Unverified"):
        connection.get("/", {})


@pytest.mark.parametrize(
    ("proxy_url", "environment", "is_used"),
    [
        ("http://127.0.0.1:{}", {}, True),
        (f"http://me:{PASSWORD}@127.0.0.1:{{}}", {}, True),
        (f"http://me:{PASSWORD.replace('-', '%2D')}@127.0.0.1:{{}}", {"HTTPS_PROXY": "http://127.0.0.1:1"}, True),
        (None, {"HTTPS_PROXY": "http://127.0.0.1:{}"}, True),
        (None, {"https_proxy": "127.0.0.1:{}"}, True),
        (None, {"HTTPS_PROXY": f"http://me:{PASSWORD}@127.0.0.1:{{}}"}, True),
        (None, {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "example.com,127.0.0.0/8"}, False),
        (None, {"HTTPS_PROXY": "http://127.0.0.1:1", "NO_PROXY": "127.0.0.1"}, False),
        (None, {"HTTP_PROXY": "http://127.0.0.1:1"}, False),
    ],
)
def test_a_proxy(
    server: ApiServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    proxy_url: str | None,
    environment: dict[str, str],
    is_used: bool,
) -> None:
    with Relay(server.port, is_proxy=True) as proxy:
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(proxy.port))
        cluster = {"proxy_url": proxy_url.format(proxy.port)} if proxy_url else {}
        connection = Api(written(tmp_path, server.port, server.ca_file, {"token": ONE}, **cluster))
        connection.get(SERVICES, {})
        connection.get(SERVICES, {})
        assert [head.split()[:2] for head in proxy.heads] == [["CONNECT", f"127.0.0.1:{server.port}"]] * is_used
        knows = "me" in f"{proxy_url} {environment}"
        assert all((f"Basic {SECRETS[1]}" in head) == knows for head in proxy.heads)
        assert not [head for head in proxy.heads if ONE in head]


@pytest.mark.parametrize("says", ["407 who are you?", "502 \x1b[31mno", "nonsense"])
def test_a_proxy_that_refuses(server: ApiServer, tmp_path: Path, says: str) -> None:
    with Relay(server.port, is_proxy=True, says=says) as proxy:
        proxy_url = f"http://me:{PASSWORD}@127.0.0.1:{proxy.port}"
        connection = Api(written(tmp_path, server.port, server.ca_file, {"token": ONE}, proxy_url=proxy_url))
        with fails(Unreachable, says[:3]):
            connection.get(SERVICES, {})
    with fails(Unreachable, "refused"):
        connection.get(SERVICES, {})
    assert statuses(server) == []


# What is answered.


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        ("403 Forbidden", b'{"kind": "Status", "message": "not\\nyou", "code": 403}', "403: not you"),
        ("404 Not Found", b'{"message": "", "details": {"a": 1}}', "404: Not Found"),
        ("503 Away", b"<h1>no such luck</h1>", "503: <h1>no such luck</h1>"),
        ("500 Oops", b"x" * 5_000_000, "500: " + "x" * 300),
        ("500 Oops", b'{"message": "' + b"y" * 60_000 + b'"}', "500: " + "y" * 300),
        ("500 Oops", b'{"message": "\\u001b[31mred\\u202e"}', r"500: '\x1b[31mred\u202e'"),
        ("500 Oops", b"\x1b[31m\xff\x00", r"500: '\x1b[31m" + "\ufffd" + r"\x00'"),
        ("500 " + "z" * 9000, b"", "500: " + "z" * 300),
        ("500 \x1b[31m", b"", r"500: '\x1b[31m'"),
        ("500", b"", "500: no reason given"),
        ("500 Oops", b'{"message": 7}', '500: {"message": 7}'),
        ("500 Oops", b'{"details": ' + b"[" * 60_000, '500: {"details": ' + "[" * 288),
        ("302 Found", b"", "302: Found"),
    ],
)
def test_a_refusal_is_told_in_one_short_line(
    foreign: Scripted, connected: Api, status: str, body: bytes, says: str
) -> None:
    foreign.give(answered(body, status), then_close=len(body) > 1 << 16)
    with fails(ApiError) as caught:
        connected.get("/", {})
    assert str(caught.value) == says.replace("\ufffd", r"\ufffd")
    assert isinstance(caught.value, ApiError)
    assert (caught.value.status, caught.value.retry_after) == (int(status[:3]), None)
    assert connected.get("/", {}) == b"{}"


def test_of_an_endless_refusal_only_the_beginning_is_read(
    foreign: Scripted, connected: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_READ_S", 2.0)
    foreign.give(b"HTTP/1.1 500 Oops\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 100_000)
    with fails(ApiError, "^500: x{300}$"):
        connected.get("/", {})


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("Sun Nov  6 08:49:37 1994", 0.0),
        ("Fri, 31 Dec 2199 23:59:59 GMT", 600.0),
        ("31536000", 600.0),
        ("9" * 400, 600.0),
        ("9" * 5000, None),
        ("soon", None),
        ("²", None),
        ("", None),
        ("Wed, 21 Oct 99999 07:28:00 GMT", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_retry_after_is_a_number_or_a_date(
    foreign: Scripted, connected: Api, header: str, seconds: float | None
) -> None:
    foreign.give(answered(b"", "429 Slower", f"Retry-After: {header}"))
    with fails(ApiError, "429: Slower") as caught:
        connected.get("/", {})
    assert isinstance(caught.value, ApiError)
    assert caught.value.retry_after == seconds


def test_retry_after_a_date_is_counted_from_now(foreign: Scripted, connected: Api) -> None:
    foreign.give(answered(b"", "503 Away", f"Retry-After: {formatdate(time.time() + 300, usegmt=True)}"))
    with fails(ApiError) as caught:
        connected.get("/", {})
    assert isinstance(caught.value, ApiError)
    assert 0 < (caught.value.retry_after or 0) <= 300


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 There", "308 For Good"])
def test_a_redirect_is_not_followed(foreign: Scripted, connected: Api, ca: trustme.CA, status: str) -> None:
    with Scripted(ca) as other:
        foreign.give(answered(b"", status, f"Location: https://127.0.0.1:{other.port}/"))
        with fails(ApiError, f"^{status[:3]}: "):
            connected.get("/", {})
        assert other.connections == 0
        assert len(foreign.requests) == 1


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        b"nonsense\x1b[31m\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}",
        CHUNKED,
        CHUNKED + b"5\r\n{}",
        CHUNKED + b"2\r\n{}\r\n",
        CHUNKED + b"z\r\n{}\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 500 Oops\r\nContent-Length: 10\r\n\r\n{}",
    ],
)
def test_an_answer_that_breaks_off_is_no_answer(foreign: Scripted, connected: Api, answer: bytes) -> None:
    foreign.give(answer, then_close=True)
    with fails(Unreachable):
        connected.get("/", {})
    assert connected.get("/", {}) == b"{}"


def test_nobody_there(tmp_path: Path, ca: trustme.CA, ca_file: Path) -> None:
    with Scripted(ca) as gone:
        pass
    with fails(Unreachable, "refused"):
        Api(written(tmp_path, gone.port, ca_file, {"token": ONE})).get("/", {})


def test_a_watch_without_a_byte_is_silent(tmp_path: Path) -> None:
    with ApiServer(tmp_path, tokens=[ONE], bookmark_every=3) as server:
        server.apply([{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n"}}])
        connection = Api(written(tmp_path, server.port, server.ca_file, {"token": ONE}))
        for idle in (30.0, 0.2):
            chunks = connection.stream("/api/v1/nodes", {"watch": "1", "allowWatchBookmarks": "1"}, idle)
            assert b'"name":"n"' in next(chunks)
            if idle > 3:
                assert b"BOOKMARK" in next(chunks)
            else:
                with fails(Silent, "nothing came for 0 s"):
                    next(chunks)


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ("Content-Length: 16", b'{"some": "body"}'),
        ("Transfer-Encoding: chunked", b'7\r\n{"some"\r\n9\r\n: "body"}\r\n0\r\n\r\n'),
        ("Transfer-Encoding: chunked\r\nContent-Encoding: gzip", None),
        ("Content-Encoding: gzip", None),
        ("X-Nothing: said", b'{"some": "body"}'),
    ],
)
def test_a_body_comes_whole_however_it_is_sent(
    foreign: Scripted, connected: Api, headers: str, body: bytes | None
) -> None:
    if body is None:
        body = gzip.compress(b'{"some": "body"}')
        if "chunked" in headers:
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:9], body[9:])) + b"0\r\n\r\n"
    foreign.give(f"HTTP/1.1 200 OK\r\n{headers}\r\n\r\n".encode() + body, then_close=b"0\r\n\r\n" not in body)
    assert connected.get("/", {}) == b'{"some": "body"}'


# What is asked.


def test_what_a_request_says(foreign: Scripted, connected: Api) -> None:
    connected.get("/api", {"labelSelector": "!a/b,c in (d)"})
    connected.post("/api", {"note": "ż"})
    got, posted = ([line.lower() for line in head.splitlines()] for head in foreign.requests)
    assert got[0] == "get /api?labelselector=%21a%2fb%2cc+in+%28d%29 http/1.1"
    assert {"accept: application/json", f"authorization: bearer {ONE}", "accept-encoding: identity"} <= set(got)
    assert sum(line.startswith("user-agent: pyproxy/") for line in got) == 1
    assert not [line for line in got if line.startswith("content-type")]
    assert posted[0] == "post /api http/1.1"
    assert "content-type: application/json" in posted


def test_one_connection_serves_all_that_is_asked_in_turn(server: ApiServer, tmp_path: Path) -> None:
    services = [
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": f"s{number}", "namespace": "default"}}
        for number in range(100)
    ]
    server.apply(services)
    event = {"apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"}}
    with Relay(server.port) as relay:
        connection = Api(written(tmp_path, relay.port, server.ca_file, {"token": ONE}))
        for path in ("/version", SERVICES, f"{SERVICES}/x", "/version"):  # measured, in chunks, refused
            with suppress(ApiError):
                connection.get(path, {})
        connection.post("/apis/events.k8s.io/v1/namespaces/default/events", event)
        list(connection.stream(SERVICES, {"watch": "1", "timeoutSeconds": "1"}, 9))
        connection.get("/version", {})
        assert len(relay.heads) == 1
        given_up = connection.stream(SERVICES, {"watch": "1"}, 9)
        next(given_up)
        given_up.close()  # type: ignore[attr-defined]
        connection.get("/version", {})
        assert len(relay.heads) == 2
    assert statuses(server) == [200, 200, 404, 200, 201, 200, 200, 200, 200]


@pytest.mark.usefixtures("at_once")
def test_three_threads_at_once_while_the_token_rotates(server: ApiServer, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(ONE)
    got: list[bytes] = []
    broken: list[Exception] = []
    with Relay(server.port) as relay:
        connection = Api(written(tmp_path, relay.port, server.ca_file, {"tokenFile": str(tmp_path / "token")}))

        def ask() -> None:
            try:
                got.extend(connection.get("/api/v1/nodes", {"limit": str(number)}) for number in range(30))
            except Exception as error:
                broken.append(error)

        threads = [Thread(target=ask) for _ in range(3)]
        server.fault({"tokens": [ONE, TWO]})
        for thread in threads:
            thread.start()
        (tmp_path / "next").write_text(TWO)
        (tmp_path / "next").rename(tmp_path / "token")
        for thread in threads:
            thread.join()
        assert broken == []
        assert len(relay.heads) <= 3
    assert statuses(server) == [200] * 90
    assert len(set(got)) == 1
