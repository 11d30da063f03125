"""A relayed connection, on loopback: endpoints that do not answer, and bulk through memory and pipes."""

import os
import socket
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack

import pytest

from modes.userspace import relay
from modes.userspace.held import Pipe
from modes.userspace.poller import Poller
from modes.userspace.protocol import Endpoint
from modes.userspace.relay import Relay


class Run:
    """A relay from one socket to endpoints, and its event loop in a thread."""

    def __init__(self, choose: Callable[[Collection[Endpoint]], Endpoint | None]) -> None:
        self.poller = Poller()
        with socket.create_server(("127.0.0.1", 0)) as front:
            self.client = socket.create_connection(front.getsockname(), 10)
            inner, _ = front.accept()
        inner.setblocking(False)
        self.ended = threading.Event()
        self.relay = Relay(self.poller, inner, "10.96.0.1", choose, lambda _: self.ended.set())

    def start(self) -> None:
        threading.Thread(target=self.poller.run, daemon=True).start()

    def close(self) -> None:
        self.poller.stop()
        self.client.close()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def full(stack: ExitStack) -> socket.socket:
    """A listener whose queue is full: the kernel ignores who else connects."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    while True:
        one = stack.enter_context(socket.socket())
        one.settimeout(0.2)
        try:
            one.connect(listener.getsockname())
        except TimeoutError:
            return listener


def connected(stack: ExitStack) -> tuple[Run, socket.socket]:
    """A relay at work, and the endpoint's side of its connection."""
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    server.settimeout(10)
    run = Run(lambda _: server.getsockname())
    stack.callback(run.close)
    run.start()
    end, _ = server.accept()
    stack.enter_context(end)
    end.settimeout(10)
    return run, end


def test_who_does_not_answer_in_time_is_given_up_for_another(stack: ExitStack) -> None:
    silent = full(stack).getsockname()
    server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    run = Run(lambda failed: server.getsockname() if silent in failed else silent)
    stack.callback(run.close)
    run.client.send(b"said before anybody listens")
    run.relay.tick(float("inf"))
    run.start()
    server.settimeout(10)
    end, _ = server.accept()
    stack.enter_context(end)
    assert end.recv(100) == b"said before anybody listens"


def test_after_two_that_do_not_answer_the_client_is_told(stack: ExitStack) -> None:
    silent = full(stack).getsockname()
    tried: list[int] = []

    def choose(failed: Collection[Endpoint]) -> Endpoint:
        tried.append(len(failed))
        return silent  # type: ignore[no-any-return]

    run = Run(choose)
    stack.callback(run.close)
    run.relay.tick(float("inf"))
    assert not run.ended.is_set()
    run.relay.tick(float("inf"))
    assert run.ended.is_set()
    assert tried == [0, 1]
    with pytest.raises(ConnectionResetError):
        run.client.recv(1)


def test_who_accepts_and_says_nothing_keeps_its_client_for_as_long_as_that_stays(stack: ExitStack) -> None:
    run, end = connected(stack)
    for said in (b"is anybody there?", b"and now?"):
        run.client.send(said)
        assert end.recv(100) == said  # so the relay knows by now that it is connected
        run.relay.tick(float("inf"))
    assert not run.ended.is_set()
    run.client.close()
    assert end.recv(100) == b""
    end.close()
    assert run.ended.wait(10)


@pytest.mark.parametrize("much", [0, 1 << 60], ids=["pipes", "memory"])
def test_bulk_arrives_whole_both_ways(stack: ExitStack, monkeypatch: pytest.MonkeyPatch, much: int) -> None:
    pipes: list[Pipe] = []

    class Noted(Pipe):
        def __init__(self) -> None:
            super().__init__()
            pipes.append(self)

    monkeypatch.setattr(relay, "_MUCH", much)
    monkeypatch.setattr(relay, "Pipe", Noted)
    run, end = connected(stack)
    data = os.urandom(3 << 20)
    for source, target in ((run.client, end), (end, run.client)):
        assert _carried(source, target, data) == data
    assert run.ended.wait(10)
    assert len(pipes) == (0 if much else 2)


def _carried(source: socket.socket, target: socket.socket, data: bytes) -> bytes:
    """What arrives of ``data``, until the source has nothing more to say."""

    def send() -> None:
        source.sendall(data)
        source.shutdown(socket.SHUT_WR)

    target.settimeout(10)
    threading.Thread(target=send, daemon=True).start()
    received = bytearray()
    while some := target.recv(1 << 20):
        received += some
    return bytes(received)
