"""A UDP client that keeps its socket goes over to another mode, or to another endpoint: no answer is lost by it."""

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from queue import SimpleQueue

import pytest

from bench import flows
from bench.ask import open_socket
from bench.lab import Lab
from modes.nftables.mode import NftablesMode
from modes.userspace.mode import UserspaceMode
from modes.userspace.relay_process import processes
from pyproxy.address import IP
from pyproxy.conntrack import Reconciler
from pyproxy.kernel import flow, masquerade, nft
from pyproxy.kernel.netlink import Failure, Message, Netlink
from pyproxy.observer import Sync
from pyproxy.table import Backend, Host, InUse, Pool, Table, Transport
from tests.conformance.cluster import until
from tests.faults.routes import cluster_ip_route

FRONTEND = ("10.96.0.53", 53)
PORT = 9053  # of the backend's


@pytest.fixture
def server(lab: Lab) -> Iterator[socket.socket]:
    """Of pod-2."""
    with open_socket(lab.pods["pod-2"], FRONTEND[0], "UDP") as one:
        one.settimeout(3)
        one.bind((lab.pods["pod-2"].ipv4, PORT))
        yield one


@pytest.fixture
def client(lab: Lab) -> Iterator[socket.socket]:
    with open_socket(lab.pods["pod-1"], FRONTEND[0], "UDP") as one:
        one.settimeout(3)
        one.connect(FRONTEND)
        yield one


@pytest.fixture
def translation(lab: Lab) -> None:
    """What translates the frontend to the server."""
    with lab.node.namespace.entered():
        nft.load(
            "table ip other { chain services { type nat hook prerouting priority dstnat; "
            f"ip daddr {FRONTEND[0]} udp dport {FRONTEND[1]} dnat to {lab.pods['pod-2'].ipv4}:{PORT}; }}; }}"
        )


def exchange(client: socket.socket, server: socket.socket) -> None:
    client.send(b"?")
    answer(server)
    assert client.recv(10) == b"!"


def answer(server: socket.socket) -> None:
    _, address = server.recvfrom(10)
    server.sendto(b"!", address)


@pytest.mark.usefixtures("translation")
def test_one_that_rests_is_over_a_second_later(lab: Lab, client: socket.socket, server: socket.socket) -> None:
    exchange(client, server)
    with lab.node.namespace.entered():
        assert flow.translated() == 1
        until(lambda: flow.translated() == 0, lambda: "its client still meets the former mode")


@pytest.mark.usefixtures("translation")
def test_who_asks_again_meanwhile_gets_his_answer(
    lab: Lab, client: socket.socket, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange(client, server)
    send = Netlink.send

    def asking(self: Netlink, *messages: object) -> object:
        """Between what was read and what is done about it."""
        client.send(b"?")
        return send(self, *messages)  # type: ignore[arg-type]

    with lab.node.namespace.entered():
        with monkeypatch.context() as patched:
            patched.setattr(Netlink, "send", asking)
            assert flow.translated() == 1
        answer(server)
        assert client.recv(10) == b"!"
        time.sleep(1.1)
        assert flow.translated() == 1  # the time that it had was given again with that answer


@pytest.mark.usefixtures("translation")
def test_a_slow_answer_is_waited_for(lab: Lab, client: socket.socket, server: socket.socket) -> None:
    client.send(b"?")
    later = threading.Timer(0.3, answer, [server])
    later.start()
    with lab.node.namespace.entered():
        assert flow.translated() == 1
    later.join()
    assert client.recv(10) == b"!"


@pytest.mark.usefixtures("translation")
def test_who_is_never_answered_begins_anew(lab: Lab, client: socket.socket, server: socket.socket) -> None:
    is_over = threading.Event()

    def chatter() -> None:
        while not is_over.wait(0.1):
            client.send(b"?")

    client.send(b"?")
    server.recvfrom(10)
    with lab.node.namespace.entered():
        nft.load("flush chain ip other services")
    thread = threading.Thread(target=chatter)
    thread.start()
    try:
        with lab.node.namespace.entered():
            assert flow.translated() == 0
    finally:
        is_over.set()
        thread.join()


@pytest.mark.usefixtures("translation")
def test_who_asks_as_his_endpoint_goes_gets_his_answer(
    lab: Lab, client: socket.socket, server: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange(client, server)
    route = cluster_ip_route(*FRONTEND, Pool(()), transport=Transport.UDP)
    before, after = Table({}, Host()), Table({route.id: route}, Host())
    told: SimpleQueue[int] = SimpleQueue()
    reconciler = Reconciler(lambda ended, _: told.put(ended))
    is_over, send = threading.Event(), Netlink.send

    def asking(self: Netlink, messages: Iterable[Message]) -> list[Failure]:
        """Between what was read and what is done about it."""
        messages = list(messages)
        if messages and not is_over.is_set():
            client.send(b"?")
        failures = send(self, messages)
        if messages:
            is_over.set()
        return failures

    monkeypatch.setattr(Netlink, "send", asking)
    with lab.node.namespace.entered():  # and the thread with it
        threading.Thread(target=reconciler.run, daemon=True).start()
    reconciler.synced(Sync(before, after, None, 0.0))
    assert is_over.wait(10)
    answer(server)
    assert client.recv(10) == b"!"
    assert told.get(timeout=10) == 1
    with lab.node.namespace.entered():
        assert [*flow.udp_flows(socket.AF_INET)] == []  # who has asked on is cut off


def test_an_answer_that_a_relay_owes_does_not_keep_its_client_there(
    lab: Lab, client: socket.socket, server: socket.socket
) -> None:
    pool = Pool((Backend(IP(lab.pods["pod-2"].ipv4), PORT, True),))
    route = cluster_ip_route(*FRONTEND, pool, transport=Transport.UDP)
    table = Table({route.id: route}, Host(userspace_workers=1))
    former, successor = UserspaceMode(), NftablesMode()
    with lab.node.namespace.entered():
        nft.load("table ip watcher { chain entered { type filter hook prerouting priority 0; ct state new accept; }; }")
        former.sync(table, None)
        exchange(client, server)
        client.send(b"?")
        successor.sync(table, None)
        later = threading.Timer(0.3, answer, [server])
        later.start()
        with suppress(InUse):
            list(former.retire(successor))
        later.join()
        assert client.recv(10) == b"!"
        client.send(b"?")
        _, address = server.recvfrom(10)
        assert address[0] == lab.pods["pod-1"].ipv4  # not the relay's
        server.sendto(b"!", address)
        assert client.recv(10) == b"!"
        until(lambda: processes() == [], lambda: "a relay is there yet")


def test_who_is_masqueraded_gets_no_port_that_a_relay_has_open(lab: Lab) -> None:
    backend = (lab.pods["pod-2"].ipv4, PORT)
    route = cluster_ip_route(*FRONTEND, Pool((Backend(IP(backend[0]), PORT, True),)))
    table = Table({route.id: route}, Host(userspace_workers=1, masquerade_all=True))
    former, successor = UserspaceMode(), NftablesMode()
    with ExitStack() as stack:
        listener, first, second = (
            stack.enter_context(open_socket(lab.pods[name], FRONTEND[0])) for name in ("pod-2", "pod-1", "pod-3")
        )
        for one in (listener, first, second):
            one.settimeout(3)
        listener.bind(backend)
        listener.listen()
        with lab.node.namespace.entered():
            former.sync(table, None)
            first.connect(FRONTEND)
            relayed, (_, port) = listener.accept()
            stack.enter_context(relayed)
            successor.sync(table, None)
            with suppress(InUse):
                list(former.retire(successor))
            second.bind(("", port))
            second.connect(FRONTEND)
            masqueraded, (node, other_port) = listener.accept()
            stack.enter_context(masqueraded)
            assert node != lab.pods["pod-3"].ipv4 and other_port != port
            relayed.settimeout(3)
            relayed.sendall(b"still there?")
            assert first.recv(100) == b"still there?"
            relayed.close()
            first.close()
            until(lambda: processes() == [], lambda: "a relay is there yet")


def test_a_connection_is_made_known_in_place_of_a_former_one_with_its_port(lab: Lab) -> None:
    use = masquerade.Use(socket.IPPROTO_TCP, "172.18.0.2", 40000, "10.244.0.12", PORT)
    with lab.node.namespace.entered():
        nft.load("table ip watcher { chain entered { type filter hook prerouting priority 0; ct state new accept; }; }")
        flows.plant(lab.node, "10.96.0.53", 53, [(use.endpoint, use.endpoint_port)], 1)
        assert masquerade.track([use]) == 1
        former = masquerade.Use(socket.IPPROTO_UDP, "10.64.0.0", 30000, use.endpoint, use.endpoint_port)
        assert masquerade.track([former]) == 1  # what was planted had this side
    assert flows.count(lab.node) == 2
