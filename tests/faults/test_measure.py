"""What a measurement's client and server do to the machine they measure: nothing that the next sample would feel."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from bench.echo import Echo, Listener
from bench.lab import Lab
from bench.measure import MEASURES, Caller
from bench.place import Place, place_of, processors
from bench.prober import Prober

_PORTS = [9000, 9001]
_TIME_WAIT = "06"


@pytest.fixture
def prober(lab: Lab) -> Iterator[Prober]:
    """Beside a server in pod-2."""
    client, server = processors()
    with Echo(server, [Listener(place_of(lab.pods["pod-2"]), _PORTS)]), Prober(client) as prober:
        yield prober


@pytest.mark.parametrize("who", ["pod-1", "client"])
@pytest.mark.parametrize("measure", MEASURES)
def test_each_conversation_is_a_sample(lab: Lab, prober: Prober, who: str, measure: str) -> None:
    pod = lab.pods["pod-2"].ipv4
    samples = prober.measure(_place(lab, who), measure, [(pod, port) for port in _PORTS], 50)
    assert (len(samples.ns), samples.failures) == (50, {})


@pytest.mark.parametrize("measure", MEASURES)
def test_failures_are_no_samples_and_are_not_tried_for_ever(lab: Lab, prober: Prober, measure: str) -> None:
    samples = prober.measure(_place(lab, "pod-1"), measure, [(lab.pods["pod-3"].ipv4, 9000)], 50)
    assert samples.ns == []
    assert list(samples.failures) == ["ECONNREFUSED"]
    assert samples.failures["ECONNREFUSED"] <= 3
    pod = lab.pods["pod-2"].ipv4
    assert len(prober.measure(_place(lab, "pod-1"), measure, [(pod, 9000)], 5).ns) == 5


def test_an_answer_that_comes_too_late_is_none_to_the_next_question(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """So after a failure there is another connection."""
    monkeypatch.setattr("bench.measure._PATIENCE", struct.pack("@ll", 0, 500_000))
    connections: list[int] = []

    def serve() -> None:
        for swallowed in (7, None):
            client, _ = listening.accept()
            connections.append(0)
            with client, suppress(ConnectionResetError):
                while question := client.recv(2048):
                    connections[-1] += 1
                    if connections[-1] != swallowed:
                        client.send(question)

    with lab.pods["pod-1"].namespace.entered(), socket.create_server(("127.0.0.1", 9000)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        samples = Caller().measure("kept", [("127.0.0.1", 9000)], 10)
    assert (len(samples.ns), samples.failures) == (9, {"EAGAIN": 1})
    assert connections == [7, 5 + 8]


def test_connections_leave_no_port_resting(lab: Lab, prober: Prober) -> None:
    """A closed connection rests for a minute in TIME_WAIT, unless it is reset."""
    pod = lab.pods["pod-2"].ipv4
    for measure in ("connect", "request", "kept"):
        assert len(prober.measure(_place(lab, "pod-1"), measure, [(pod, 9000)], 100).ns) == 100
    for name in ("pod-1", "pod-2"):
        with lab.pods[name].namespace.entered():
            lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]
        assert [line for line in lines if line.split()[3] == _TIME_WAIT] == []


def test_no_port_comes_back_before_all_others_had_their_turn(lab: Lab) -> None:
    caller = Caller()
    with lab.pods["pod-1"].namespace.entered():
        ports = []
        for _ in range(100):
            with caller.stream() as one, caller.datagrams() as other:
                ports += [one.getsockname()[1], other.getsockname()[1]]
    assert len(set(ports)) == 200
    assert ports == sorted(ports)


def test_a_port_that_somebody_has_is_passed_over(lab: Lab) -> None:
    caller, other = Caller(), Caller()
    with lab.pods["pod-1"].namespace.entered(), caller.stream() as one, other.stream() as two:
        assert one.getsockname()[1] != two.getsockname()[1]


def test_client_and_server_keep_to_their_processors(lab: Lab) -> None:
    client, server = processors()
    pod = lab.pods["pod-2"]
    with Echo(server, [Listener(place_of(pod), _PORTS)]) as echo, Prober(client) as prober:
        prober.measure(_place(lab, "pod-1"), "request", [(pod.ipv4, 9000)], 5)
        for process, cpu in ((prober.pid, client), (echo.pid, server)):
            threads = [int(task.name) for task in Path(f"/proc/{process}/task").iterdir()]
            assert len(threads) > 1
            assert {frozenset(os.sched_getaffinity(thread)) for thread in threads} == {frozenset({cpu})}


def test_sockets_are_opened_in_the_cgroup_of_their_place(lab: Lab, prober: Prober) -> None:
    """So mode ebpf serves them as it serves pods. A client from outside is in none of the lab's."""
    assert lab.cgroup is not None
    for who, is_inside in (("pod-1", True), ("client", False)):
        before = set(_threads(lab.cgroup.path))
        prober.measure(_place(lab, who), "connect", [(lab.pods["pod-2"].ipv4, 9000)], 1)
        came = set(_threads(lab.cgroup.path)) - before
        assert bool(came) is is_inside


def _threads(cgroup: Path) -> list[str]:
    return (cgroup / "cgroup.threads").read_text().split()


def _place(lab: Lab, who: str) -> Place:
    return place_of(lab.client if who == "client" else lab.pods[who])
