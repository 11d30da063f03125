"""`pyproxy explain` in front of whatever may answer at the metrics address."""

import json
import socket
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import msgspec
import pytest

from pyproxy import explain_command, modes
from pyproxy.explanation import Asker, Endpoint, Explanation, Outcome, Source, Verdict
from pyproxy.table import IP, ModeError, Transport
from tests.unit.test_command import only_error, outcome

POOL = tuple(Endpoint(f"10.244.0.{number}", 8080, number < 3) for number in range(1, 16))
SERVED = Explanation(
    destination="10.96.0.10:53/udp",
    mode="paper",
    summary="10.96.0.10:53/udp is the ClusterIP of kube-system/dns:dns IPv4",
    outcomes=(
        Outcome(Asker.POD, Verdict.TRANSLATED, "because", Source.KEPT, POOL[:2]),
        Outcome(Asker.NODE, Verdict.TRANSLATED, "because", Source.NODE, (Endpoint("fd00::1", 8080, False),)),
        Outcome(Asker.OUTSIDE, Verdict.DROPPED, "because not"),
    ),
    route="kube-system/dns:dns IPv4",
    affinity_seconds=10800,
    allowed_sources=("10.0.0.0/8",),
    notes=("default/other wants it, too",),
)
UNSERVED = msgspec.structs.replace(SERVED, outcomes=(Outcome(Asker.POD, Verdict.NOT_HANDLED, "because"),))
ENTRIES = ["element ip pyproxy services { 10.96.0.10 . udp . 53 : goto cluster-ip-2 }"]


class Stub:
    """An HTTP server that gives one answer and takes down what it was asked."""

    def __init__(self) -> None:
        self.status, self.body = 200, msgspec.json.encode(SERVED)
        self.paths: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                stub.paths.append(self.path)
                self.send_response(stub.status)
                self.end_headers()
                self.wfile.write(stub.body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"


class PaperMode:
    """What the kernel would say."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, str]] = []
        self.entries_: list[str] | ModeError = ENTRIES

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        self.asked.append((address, port, transport))
        if isinstance(self.entries_, ModeError):
            raise self.entries_
        return self.entries_


@pytest.fixture
def stub() -> Iterator[Stub]:
    stub = Stub()
    thread = Thread(target=stub.server.serve_forever, args=(0.01,))
    thread.start()
    yield stub
    stub.server.shutdown()
    stub.server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def mode(monkeypatch: pytest.MonkeyPatch) -> PaperMode:
    mode = PaperMode()
    load = modes.load
    monkeypatch.setattr("pyproxy.modes.load", lambda name: mode if name == "paper" else load(name))
    return mode


def explain(stub: Stub, *arguments: str) -> int:
    return outcome("explain", "10.96.0.10:53/UDP", "--metrics-address", stub.address, *arguments)


def test_it_says_in_words_what_the_proxy_and_the_kernel_say(
    stub: Stub, mode: PaperMode, capsys: pytest.CaptureFixture[str]
) -> None:
    assert explain(stub) == 0
    assert stub.paths == ["/explain.json?to=10.96.0.10%3A53/udp"]
    assert mode.asked == [("10.96.0.10", 53, "udp")]
    assert (
        capsys.readouterr().out
        == f"""\
10.96.0.10:53/udp is the ClusterIP of kube-system/dns:dns IPv4
default/other wants it, too
session affinity: a client keeps its endpoint until 10800 s after its last connection

from a pod on this node: to one of 2 endpoints, which sees who sent it
    because
    10.244.0.1:8080 on this node
    10.244.0.2:8080 on this node

from this node: to the only endpoint, which sees an address of this node
    because
    [fd00::1]:8080

from outside: dropped
    because not

in the kernel, paper mode:
    {ENTRIES[0]}
"""
    )


def test_what_is_alike_is_said_once(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    refused = [Outcome(asker, Verdict.REFUSED, "because") for asker in (Asker.POD, Asker.NODE)]
    stub.body = msgspec.json.encode(msgspec.structs.replace(SERVED, outcomes=(*refused, SERVED.outcomes[2])))
    assert explain(stub) == 1
    out = capsys.readouterr().out
    assert "\nfrom a pod on this node, this node: refused\n    because\n\nfrom outside: dropped\n" in out


def test_json_holds_all_of_it(stub: Stub, mode: PaperMode, capsys: pytest.CaptureFixture[str]) -> None:
    mode.entries_ = ENTRIES * 100
    stub.body = msgspec.json.encode(msgspec.structs.replace(SERVED, outcomes=UNSERVED.outcomes))
    assert explain(stub, "--json") == 1
    out, error = capsys.readouterr()
    told = json.loads(out)
    assert (told.pop("entries"), told.pop("entriesMissing"), error) == (ENTRIES * 100, None, "")
    assert told == json.loads(stub.body)


def test_text_is_cut(stub: Stub, mode: PaperMode, capsys: pytest.CaptureFixture[str]) -> None:
    mode.entries_ = ENTRIES * 100
    everywhere = Outcome(Asker.POD, Verdict.TRANSLATED, "because", Source.MASQUERADED, POOL)
    stub.body = msgspec.json.encode(msgspec.structs.replace(SERVED, outcomes=(everywhere,)))
    assert explain(stub) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum("10.244." in line for line in lines) == 10
    assert "    and 5 more" in lines
    assert lines.count(f"    {ENTRIES[0]}") == 40
    assert lines[-1] == "    and 60 more"


def test_nobody_who_is_handled_is_an_exit_status(stub: Stub, capsys: pytest.CaptureFixture[str]) -> None:
    stub.body = msgspec.json.encode(UNSERVED)
    assert explain(stub) == 1
    assert "from a pod on this node: not handled\n" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.parametrize("name", ["paper", "unheard-of"])
def test_without_the_kernel_it_explains_all_the_same(
    stub: Stub, mode: PaperMode, name: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    mode.entries_ = ModeError("it takes CAP_NET_ADMIN")
    stub.body = msgspec.json.encode(msgspec.structs.replace(SERVED, mode=name))
    why = "it takes CAP_NET_ADMIN" if name == "paper" else "there is no mode 'unheard-of'"
    assert explain(stub, *arguments) == 0
    out = capsys.readouterr().out
    assert SERVED.summary in out
    if arguments:
        assert json.loads(out)["entries"] == []
        assert why in json.loads(out)["entriesMissing"]
    else:
        assert f"the kernel's entries could not be read: {why}" in out.splitlines()[-1]


def test_nothing_in_the_kernel_is_said(stub: Stub, mode: PaperMode, capsys: pytest.CaptureFixture[str]) -> None:
    mode.entries_ = []
    assert explain(stub) == 0
    assert capsys.readouterr().out.endswith("\nin the kernel, paper mode: nothing\n")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b"404 page not found\n", "(status 404) is not a pyproxy of this version; is it kube-proxy?"),
        (500, msgspec.json.encode(SERVED), "(status 500) is not a pyproxy of this version"),
        (200, b"ok", "(status 200) is not a pyproxy"),
        (200, b"\xff\xfe", "(status 200) is not a pyproxy"),
        (200, b"{}", "(status 200) is not a pyproxy"),
        (200, b'{"mode": 1}', "(status 200) is not a pyproxy"),
        (200, b'{"x":' + b"[" * 100_000, "(status 200) is not a pyproxy"),
        (503, b"the first sync has not reached the kernel yet\n", "the first sync has not reached the kernel yet"),
    ],
)
def test_other_answers(
    stub: Stub, status: int, body: bytes, said: str, mode: PaperMode, capsys: pytest.CaptureFixture[str]
) -> None:
    stub.status, stub.body = status, body
    assert explain(stub) == 1
    assert said in only_error(capsys)
    assert mode.asked == []


def silent(client: socket.socket) -> None:
    client.recv(1)  # until the other side gives up


def hang_up(client: socket.socket) -> None:
    client.close()


def babble(client: socket.socket) -> None:
    client.sendall(b"\x1b[31mSSH-2.0-OpenSSH\n" * 10)


@pytest.mark.parametrize("behave", [silent, hang_up, babble])
def test_what_speaks_no_http(
    behave: Callable[[socket.socket], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(explain_command, "_PATIENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.recv(10_000)
                behave(client)

        thread = Thread(target=serve)
        thread.start()
        port = server.getsockname()[1]
        assert outcome("explain", "10.0.0.1:1", "--metrics-address", f"127.0.0.1:{port}") == 1
        thread.join()
    said = only_error(capsys)
    assert f"no proxy answers at 127.0.0.1 port {port} (" in said
    assert said.isprintable()


def test_without_a_proxy_it_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert outcome("explain", "10.0.0.1:1", "--metrics-address", f"127.0.0.1:{port}") == 1
    said = only_error(capsys)
    assert said.startswith(f"pyproxy: no proxy answers at 127.0.0.1 port {port} (Connection refused); is `pyproxy run`")
    assert all(part in said for part in ("metricsBindAddress", "--metrics-address", "--manifests"))


def test_proxies_of_the_environment_are_not_asked(
    stub: Stub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert explain(stub) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: ADDRESS:PORT"),
        (["10.96.0.1"], "'10.96.0.1' is not a destination such as 10.96.0.10:53/udp or [fd00:10:96::a]:443"),
        (["10.96.0.1:80/icmp"], "'10.96.0.1:80/icmp' is not a destination"),
        (["fd00::1:80"], "'fd00::1:80' is not a destination"),
        (["10.96.0.1:80", "--metrics-address", "localhost:1"], "'localhost:1' is not an address such as"),
    ],
)
def test_a_wrong_command_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("explain", *arguments) == 2
    assert said in only_error(capsys)


def test_its_help_teaches_by_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("explain", "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "`pyproxy explain 10.96.0.10:53/udp`" in said
    assert "127.0.0.1:10249" in said
