"""Servers, honest and scripted, kubeconfigs that lead to them, and a watch over secrets, for tests of `pyproxy.api`."""

import json
import logging
import ssl
import time
import traceback
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import create_connection, socket
from socketserver import BaseRequestHandler, ThreadingTCPServer
from threading import Thread
from typing import Any, Self

import pytest
import trustme

from bench.api_server import ApiServer
from pyproxy import api
from pyproxy.api import Api

ONE, TWO = "s3cret-one", "s3cret-two"
PASSWORD = "s3cret-password"
SECRETS = ("s3cret", b64encode(f"me:{PASSWORD}".encode()).decode(), "PRIVATE KEY")
SERVICES = "/api/v1/services"
PATIENCE_S = 15.0


@pytest.fixture(autouse=True)
def discreet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Whatever a test does, no logger says a secret, at any level."""
    caplog.set_level(logging.DEBUG)
    yield
    assert logging.getLogger().filters == []
    for record in caplog.get_records("call"):
        assert_discreet(f"{record.getMessage()} {record.__dict__}")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each request is made more than _TOKEN_LASTS_S after the last."""
    monkeypatch.setattr(api, "_TOKEN_LASTS_S", -1.0)


def assert_discreet(text: str) -> None:
    assert not [secret for secret in SECRETS if secret in text], text


@contextmanager
def fails(kind: type[Exception], match: str | None = None) -> Iterator[pytest.ExceptionInfo[Exception]]:
    """Like pytest.raises: with exactly this kind, in one line of which a log can be made, and without secrets."""
    with pytest.raises(kind, match=match) as caught:
        yield caught
    assert type(caught.value) is kind
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000
    assert_discreet("".join(traceback.format_exception(caught.value)) + repr(caught.value))


class Listener:
    """Serves each connection in a thread."""

    def __init__(self) -> None:
        listener = self

        class Handler(BaseRequestHandler):
            def handle(self) -> None:
                with suppress(OSError):
                    listener.serve(self.request)

        self._server = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = int(self._server.server_address[1])

    def serve(self, connection: socket) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Scripted(Listener):
    """A TLS server that gives each request the next of its answers, and then an empty object."""

    def __init__(self, ca: trustme.CA, *names: str) -> None:
        super().__init__()
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert(*(names or ("127.0.0.1",))).configure_cert(self._tls)
        ca.configure_trust(self._tls)
        self._tls.verify_mode = ssl.CERT_OPTIONAL
        self.answers: list[tuple[bytes, bool]] = []
        self.requests: list[str] = []
        """The heads."""
        self.peers: list[str] = []
        """The common name of each one's client certificate."""
        self.connections = 0

    def give(self, answer: bytes, then_close: bool = False) -> None:
        self.answers.append((answer, then_close))

    def serve(self, connection: socket) -> None:
        with self._tls.wrap_socket(connection, server_side=True) as tls, tls.makefile("rb") as sent:
            self.connections += 1
            while first := sent.readline():
                lines = [first, *iter(sent.readline, b"\r\n")]
                subject: Any = (tls.getpeercert() or {}).get("subject", ())
                names = dict(pair for part in subject for pair in part)
                self.peers.append(names.get("commonName", ""))
                self.requests.append(b"".join(lines).decode("latin-1"))
                answer, closes = self.answers.pop(0) if self.answers else (answered(b"{}"), False)
                tls.sendall(answer)
                if closes:
                    break


class Relay(Listener):
    """Passes bytes on to ``port``; as a proxy only after a CONNECT, which it answers with ``says``."""

    def __init__(self, port: int, *, is_proxy: bool = False, says: str = "200 fine") -> None:
        super().__init__()
        self._target = port
        self._is_proxy = is_proxy
        self._says = says
        self.heads: list[str] = []
        """One for each connection."""

    def serve(self, connection: socket) -> None:
        head = b""
        while self._is_proxy and not head.endswith(b"\r\n\r\n"):
            head += connection.recv(1)
        self.heads.append(head.decode())
        if self._is_proxy:
            connection.sendall(f"HTTP/1.1 {self._says}\r\n\r\n".encode())
        with create_connection(("127.0.0.1", self._target)) as onward:
            Thread(target=_pump, args=(onward, connection), daemon=True).start()
            _pump(connection, onward)


def _pump(source: socket, sink: socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)


def answered(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, f"Content-Length: {len(body)}", "", ""]).encode() + body


def wait_for(condition: Callable[[], bool], complaint: str) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.005)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tmp_path, tokens=[ONE]) as running:
        yield running


@pytest.fixture(scope="session")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(ca: trustme.CA, tmp_path: Path) -> Path:
    path = tmp_path / "foreign-ca.crt"
    path.write_bytes(ca.cert_pem.bytes())
    return path


@pytest.fixture
def foreign(ca: trustme.CA) -> Iterator[Scripted]:
    with Scripted(ca) as running:
        yield running


@pytest.fixture
def connected(foreign: Scripted, tmp_path: Path, ca_file: Path) -> Api:
    """To ``foreign``, with a token."""
    return Api(written(tmp_path, foreign.port, ca_file, {"token": ONE}))


def written(folder: Path, port: int, ca_file: Path | None, user: dict[str, Any], **cluster: Any) -> Path:
    """A kubeconfig; ``cluster`` and ``user`` are fields of those sections, their names with a _ for a -."""
    cluster = {name.replace("_", "-"): value for name, value in cluster.items()}
    trust = {"certificate-authority": str(ca_file)} if ca_file else {}
    return raw(folder, {"server": f"https://127.0.0.1:{port}", **trust, **cluster}, user)


def raw(folder: Path, cluster: Any, user: Any, **fields: Any) -> Path:
    config = {
        "clusters": [{"name": "it", "cluster": cluster}],
        "users": [{"name": "me", "user": user}],
        "contexts": [{"name": "there", "context": {"cluster": "it", "user": "me"}}],
        "current-context": "there",
        **fields,
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return path


def statuses(server: ApiServer) -> list[int]:
    return [request["status"] for request in server.requests()]
