"""The HTTP server over real sockets: what good clients get, and what bad ones can't take from them."""

import errno
import http.client
import logging
import random
import socket
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus
from threading import Event, Thread

import pytest

from pyproxy import http_server
from pyproxy.http_server import Address, Handler, HttpServer, Listener, Request, Response

_PATIENCE_S = 15.0
_PROBE = b"GET /probe HTTP/1.1\r\nHost: node\r\n\r\n"
_MANY = 300  # more than the server keeps open

Serve = Callable[..., list[Address]]


def echo(request: Request, local: Address) -> Response:
    if request.path == "/nowhere":
        return Response(HTTPStatus.NOT_FOUND, b"nothing here\n", "text/plain")
    query = "&".join(f"{name}={value}" for name, value in request.query.items())
    return Response(HTTPStatus.OK, f"{request.path}?{query} at {local[0]}".encode(), "text/plain", {"X-More": "yes"})


@pytest.fixture(scope="module")
def server() -> HttpServer:
    server = HttpServer()
    server.start()
    return server


@pytest.fixture
def serve(server: HttpServer) -> Iterator[Serve]:
    """Answers with a handler on a new port of each host; gives the addresses."""
    listeners: list[Listener] = []

    def listen(
        handler: Handler = echo, hosts: tuple[str, ...] = ("127.0.0.1",), *, slow: bool = False
    ) -> list[Address]:
        addresses = [(host, free_port(host)) for host in hosts]
        listeners.append(server.listen(addresses, handler, slow=slow))
        return addresses

    yield listen
    for listener in listeners:
        listener.close()


def free_port(host: str) -> int:
    """Below the range from which the kernel serves those who take any."""
    while True:
        port = random.randint(10_000, 30_000)
        try:
            socket.create_server((host, port), family=family(host)).close()
        except OSError:
            continue
        return port


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connect(address: Address, source: str | None = None) -> socket.socket:
    return socket.create_connection(address, timeout=_PATIENCE_S, source_address=(source, 0) if source else None)


def is_open(address: Address) -> bool:
    try:
        connect(address).close()
    except ConnectionRefusedError:
        return False
    return True


def ask(address: Address, target: str = "/probe", method: str = "GET", body: bytes | None = None) -> tuple[int, bytes]:
    status, _, text = full(address, target, method, body)
    return status, text


def full(
    address: Address, target: str, method: str = "GET", body: bytes | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection(*address, timeout=_PATIENCE_S)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def rest(client: socket.socket) -> bytes:
    """All that still comes until the server hangs up."""
    received = b""
    try:
        while data := client.recv(1 << 16):
            received += data
    except ConnectionResetError:
        pass
    return received


def answer_to(address: Address, *parts: bytes) -> bytes:
    with connect(address) as client:
        for part in parts:
            client.sendall(part)
        return rest(client)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_get_is_answered(serve: Serve, host: str) -> None:
    (address,) = serve(hosts=(host,))
    assert ask(address, "/some/path?a=1&b=x%20y+z&a=2") == (200, f"/some/path?a=2&b=x y z at {host}".encode())


def test_head_is_answered_without_the_body(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    (address,) = serve()
    got, head = full(address, "/probe"), full(address, "/probe", "HEAD")
    assert head == (200, got[1], b"")
    assert head[1]["Content-Length"] == str(len(got[2]))
    with connect(address) as client:  # http.client would not look for a body
        client.sendall(_PROBE.replace(b"GET", b"HEAD"))
        assert rest(client).endswith(b"\r\n\r\n")
    assert caplog.records == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "PROPFIND"])
def test_any_other_method_is_refused_and_reaches_no_handler(serve: Serve, method: str) -> None:
    called: list[Request] = []
    (address,) = serve(lambda request, local: called.append(request) or echo(request, local))  # type: ignore[func-returns-value]
    body = b"x" * 100 if method in ("POST", "PUT") else None
    status, headers, text = full(address, "/probe", method, body)
    assert (status, text, called) == (405, b"only GET here\n", [])
    assert headers["Content-Type"] == "text/plain"


def test_a_path_that_the_handler_does_not_know(serve: Serve) -> None:
    (address,) = serve()
    assert ask(address, "/nowhere") == (404, b"nothing here\n")


@pytest.mark.parametrize("target", [b"//[", b"http://[::1/probe"])
def test_a_target_that_is_no_path_is_a_bad_request(
    serve: Serve, target: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (address,) = serve()
    assert answer_to(address, _PROBE.replace(b"/probe", target)).startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert caplog.records == []  # or anybody could fill the log


@pytest.mark.parametrize("target", ["http://elsewhere/probe", "/probe?&&==&%", "/probe#there"])
def test_odd_targets_still_have_a_path(serve: Serve, target: str) -> None:
    (address,) = serve()
    status, text = ask(address, target)
    assert (status, text.partition(b"?")[0]) == (200, b"/probe")


@pytest.mark.parametrize("path", ["/probe", "/nowhere"])
def test_nothing_may_be_framed_sniffed_or_stored(serve: Serve, path: str) -> None:
    (address,) = serve()
    headers = full(address, path)[1]
    expected = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Cache-Control": "no-store"}
    assert headers.items() >= {**expected, "Connection": "close"}.items()
    assert headers.get("X-More") == ("yes" if path == "/probe" else None)
    assert "Server" not in headers


def test_each_listener_has_its_handler_and_all_its_addresses(serve: Serve) -> None:
    first = serve(hosts=("127.0.0.1", "127.0.0.2", "::1"))
    second = serve(lambda *_: Response(HTTPStatus.OK, b"second"), hosts=("127.0.0.1", "::1"))
    assert [ask(address)[1] for address in first] == [
        *(b"/probe? at 127.0.0.1", b"/probe? at 127.0.0.2", b"/probe? at ::1"),
    ]
    assert [ask(address)[1] for address in second] == [b"second"] * 2


def test_both_wildcards_share_a_port_and_tell_where_a_client_came_in(server: HttpServer) -> None:
    port = free_port("0.0.0.0")
    listener = server.listen([("0.0.0.0", port), ("::", port)], echo)
    assert [ask((host, port))[1][-9:] for host in ("127.0.0.1", "127.0.0.3")] == [b"127.0.0.1", b"127.0.0.3"]
    assert ask(("::1", port))[1].endswith(b" at ::1")
    listener.close()


def test_a_handler_that_fails_is_a_500_and_logged(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: Request, local: Address) -> Response:
        if request.path == "/late":
            raise TimeoutError("of its own")
        raise KeyError("a bug")

    (address,) = serve(fail)
    with caplog.at_level(logging.ERROR, "pyproxy.http"):
        assert ask(address) == (500, b"the answer failed; the log says why\n")
        assert ask(address, "/late")[0] == 500
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [KeyError, TimeoutError]


def test_an_answer_that_takes_long_keeps_nobody_waiting(serve: Serve) -> None:
    go, began = Event(), Event()

    def slow(request: Request, local: Address) -> Response:
        if request.path == "/slow":
            began.set()
            assert go.wait(_PATIENCE_S)
        return echo(request, local)

    (address,) = serve(slow, slow=True)
    with connect(address) as waiting:
        waiting.sendall(_PROBE.replace(b"/probe", b"/slow"))
        assert began.wait(_PATIENCE_S)
        assert ask(address)[0] == 200
        go.set()
        assert rest(waiting).endswith(b"/slow? at 127.0.0.1")


def test_slow_answers_are_made_two_at_a_time(serve: Serve) -> None:
    go, running, most = Event(), [0], [0]

    def slow(request: Request, local: Address) -> Response:
        running[0] += 1
        most[0] = max(most[0], running[0])
        assert go.wait(_PATIENCE_S)
        running[0] -= 1
        return echo(request, local)

    (address,) = serve(slow, slow=True)
    (other,) = serve()
    waiting = [connect(address) for _ in range(6)]
    for client in waiting:
        client.sendall(_PROBE)
    until(lambda: running[0] == 2, "they wait for each other")
    assert [ask(other)[0] for _ in range(20)] == [200] * 20
    go.set()
    for client in waiting:
        assert rest(client).startswith(b"HTTP/1.1 200 OK\r\n")
        client.close()
    assert most == [2]


def test_a_server_that_was_stopped_answers_nothing() -> None:
    server = HttpServer()
    server.start()
    address = ("127.0.0.1", free_port("127.0.0.1"))
    listener = server.listen([address], echo)
    assert ask(address)[0] == 200
    listener.close()
    server.stop()
    until(lambda: not server._loop.is_running(), "still running")
    server._loop.close()


def test_a_request_may_come_byte_by_byte(serve: Serve) -> None:
    (address,) = serve()
    with connect(address) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in _PROBE:
            client.send(bytes([byte]))
        assert rest(client).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize(
    "rubbish", [_PROBE, b"\0\xff" * 2000, b"GET / HTTP/9.9\r\n\r\n", b"\r\n" * 100], ids=lambda data: repr(data[:12])
)
def test_one_connection_gets_one_answer_whatever_follows(serve: Serve, rubbish: bytes) -> None:
    (address,) = serve()
    answer = answer_to(address, _PROBE + rubbish)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"/probe? at 127.0.0.1")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),  # TLS
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET /probe\r\n\r\n",
        b"GET /probe HTTP/1.1\r\n\r\n",  # without Host
        b"GET /pr\xc3\xb6be HTTP/1.1\r\nHost: node\r\n\r\n",
        b"GET /probe HTTP/1.1\r\nHost: node\r\nContent-Length: -1\r\n\r\n",
        b"GET /probe HTTP/1.1\r\nHost: node\r\nA\0: b\r\n\r\n",
        b"\0" * 100_000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_garbage_gets_no_answer_and_harms_nobody(
    serve: Serve, garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (address,) = serve()
    with connect(address) as client:
        try:
            client.sendall(garbage)
        except OSError:
            pass  # the server need not read all of it
        assert rest(client) == b""
    assert ask(address)[0] == 200
    assert caplog.records == []


def test_a_head_without_end_is_not_kept(serve: Serve) -> None:
    (address,) = serve()
    with connect(address) as client:
        client.sendall(_PROBE[:-2] + b"X-Long: ")
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            for _ in range(10_000):  # more than the kernel would hold for it
                client.sendall(b"x" * 10_000)
    assert ask(address)[0] == 200


@pytest.mark.parametrize("sent", [b"", b"GET", _PROBE[:-2]], ids=repr)
def test_silence_is_not_waited_for_for_ever(serve: Serve, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_PATIENCE_S", 0.1)
    (address,) = serve()
    assert answer_to(address, sent) == b""


def test_a_byte_now_and_then_buys_no_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "_PATIENCE_S", 0.3)
    (address,) = serve()
    with connect(address) as client, pytest.raises(OSError, match=r"reset|Broken pipe"):
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            client.send(b"G")
            time.sleep(0.02)


def test_a_client_that_leaves_does_no_harm(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    (address,) = serve()
    for sent in (b"", b"GET /pro", _PROBE):
        with connect(address) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
            client.sendall(sent)
    assert ask(address)[0] == 200
    assert caplog.records == []


def test_an_answer_that_is_not_read_is_dropped(
    server: HttpServer, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "_PATIENCE_S", 0.2)
    large = bytes(64 << 20)
    (address,) = serve(lambda *_: Response(HTTPStatus.OK, large))
    with connect(address) as client:
        client.sendall(_PROBE)
        received = len(client.recv(1000))
        until(lambda: not server._clients, "still there")
        assert 0 < received + len(rest(client)) < len(large)


def until(condition: Callable[[], bool], complaint: str) -> None:
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < end, complaint
        time.sleep(0.005)


def is_alive(client: socket.socket) -> bool:
    client.setblocking(False)
    try:
        return client.recv(1) != b""
    except BlockingIOError:
        return True
    except ConnectionResetError:
        return False
    finally:
        client.settimeout(_PATIENCE_S)


@pytest.fixture
def idle(serve: Serve) -> Iterator[Callable[..., list[socket.socket]]]:
    """Opens connections on which nothing is said."""
    opened: list[socket.socket] = []

    def hold(address: Address, *sources: str) -> list[socket.socket]:
        new = [connect(address, source) for source in sources]
        opened.extend(new)
        return new

    yield hold
    for client in opened:
        client.close()


Hold = Callable[..., list[socket.socket]]


def test_whoever_holds_many_connections_keeps_no_probe_out(serve: Serve, idle: Hold) -> None:
    health, other = serve(hosts=("127.0.0.1", "127.0.0.2"))
    slow = idle(health, "127.0.0.8", "127.0.0.9")
    hostile = idle(health, *["127.0.0.7"] * _MANY)
    for address in (health, other):
        assert [ask(address)[0] for _ in range(20)] == [200] * 20
    until(lambda: sum(map(is_alive, hostile)) < http_server._MOST_CLIENTS, "all of them are kept")
    alive = [is_alive(client) for client in hostile]
    assert alive == sorted(alive), "not the oldest had to go"
    assert sum(alive) > http_server._MOST_CLIENTS // 2
    for client in slow:  # though they are the oldest of all
        client.sendall(_PROBE)
        assert rest(client).startswith(b"HTTP/1.1 200 OK\r\n")


def test_many_who_hold_a_connection_each_keep_no_probe_out(serve: Serve, idle: Hold) -> None:
    (address,) = serve()
    hostile = idle(address, *(f"127.0.{1 + number // 250}.{1 + number % 250}" for number in range(_MANY)))
    assert [ask(address)[0] for _ in range(20)] == [200] * 20
    alive = [is_alive(client) for client in hostile]
    assert alive == sorted(alive), "not the oldest had to go"


def test_probes_are_answered_while_connections_pour_in(serve: Serve) -> None:
    (address,) = serve()
    over = Event()

    def flood() -> None:
        held: list[socket.socket] = []
        while not over.is_set():
            held.append(connect(address, "127.0.0.7"))
            if len(held) > _MANY:
                held.pop(0).close()
        for client in held:
            client.close()

    thread = Thread(target=flood)
    thread.start()
    try:
        assert [ask(address)[0] for _ in range(100)] == [200] * 100
    finally:
        over.set()
        thread.join()


def test_a_port_is_free_as_soon_as_it_is_closed(server: HttpServer) -> None:
    addresses = [(host, free_port(host)) for host in ("127.0.0.1", "::1", "127.0.0.2")]
    for turn in range(50):
        server.listen(addresses, echo).close()  # at once, before the server's thread may have come to it
        assert [is_open(address) for address in addresses] == [False] * 3, turn
    listener = server.listen(addresses, echo)
    with connect(addresses[0]) as client:
        assert ask(addresses[1])[0] == 200
        listener.close()
        listener.close()
        again = server.listen(addresses, lambda *_: Response(HTTPStatus.OK, b"again"))
        client.sendall(_PROBE)  # who is in is still served
        assert rest(client).endswith(b"127.0.0.1")
        assert ask(addresses[0]) == (200, b"again")
        again.close()


def test_a_port_that_is_taken_is_an_error_that_leaves_nothing_open(server: HttpServer) -> None:
    free = [(host, free_port(host)) for host in ("127.0.0.1", "::1")]
    with socket.create_server(("127.0.0.1", free_port("127.0.0.1"))) as holder:
        taken = holder.getsockname()
        with pytest.raises(OSError, match="in use") as caught:
            server.listen([*free, taken], echo)
        assert caught.value.errno == errno.EADDRINUSE
        assert [is_open(address) for address in free] == [False] * 2
    server.listen([*free, taken], echo).close()


def test_an_address_of_another_host_is_an_error(server: HttpServer) -> None:
    with pytest.raises(OSError, match="assign") as caught:
        server.listen([("192.0.2.1", 10256)], echo)
    assert caught.value.errno == errno.EADDRNOTAVAIL
