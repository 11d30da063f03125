"""The scenarios `restart` and `failover` for real: what fails is found, who falls out is told. No time is judged."""

import shlex
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import disturbance, failover
from bench.contender import Contender
from bench.contestant import Contestant
from bench.document import Outcome
from bench.failover import Failover, Victim
from bench.lab import SERVER_PORT, Lab
from bench.measured import measured, tcp_and_udp
from bench.peer import Peer
from bench.place import place_of, processors
from bench.restart import Restart
from bench.steady import Attempt, Steady, Stream
from tests.conformance.cluster import OURS, until
from tests.faults.traces import traces

_NFTABLES = Contender("nftables")
_PUT = Contestant.put
_FORGETS = """
import signal, subprocess, sys, time
proxy = subprocess.Popen(sys.argv[1:])
def stop(*_):
    proxy.kill()
    proxy.wait()
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    time.sleep(0.5)
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
signal.pause()
"""
"""A proxy that takes everything with it when it is asked to end."""
_ONCE = """
import os, pathlib, sys
try:
    pathlib.Path(sys.argv[1]).touch(exist_ok=False)
except FileExistsError:
    sys.exit("once is enough")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""A proxy that starts a single time."""


def _wrapped(code: str, *arguments: str | Path) -> Peer:
    """This pyproxy, started by a program of its own."""
    return Peer.parse(f"peer:nftables={shlex.join([sys.executable, '-c', code, *map(str, arguments), *OURS])}")


def _figures(outcome: Outcome) -> dict[tuple[str, str], Any]:
    return {(figure.way, figure.measure): figure for figure in outcome.figures}


def test_a_restart_is_measured_by_both_ways_and_signals() -> None:
    part = Restart(_NFTABLES, 3, 2, rounds=2)
    steps: list[str] = []
    part.measure(steps.append)
    outcome = part.outcome
    assert (outcome.key, outcome.complete, outcome.rounds, outcome.failed) == ("restart, nftables, 3 x 2", True, 2, {})
    assert len(steps) == part.steps == 5
    figures = _figures(outcome)
    kinds = ("SIGTERM", "SIGKILL")
    expected = {
        (way, f"{measure}-{kind}")
        for way in ("cluster-ip", "node-port")
        for measure in ("attempts", "failed", "longest-gap", "lost")
        for kind in kinds
    }
    assert figures.keys() == expected | {
        (way, f"{m}-{kind}") for way, m in (("", "back"), ("bystander", "failed")) for kind in kinds
    }
    assert all(len(figure.samples) == 2 and figure.contestant == "nftables" for figure in figures.values())
    assert all(value > 0 for kind in kinds for (value,) in figures["node-port", f"attempts-{kind}"].samples)
    # A machine that is busy lets answers wait; but nothing is ever refused, or dropped by the kernel of a client.
    assert {error.split()[-1] for figure in figures.values() for error in figure.failures} <= {"TimeoutError"}


def test_a_proxy_that_takes_its_rules_along_fails_connections_by_both_ways() -> None:
    class OnlyTerm(Restart):
        kinds = ("SIGTERM",)

    part = OnlyTerm(_wrapped(_FORGETS), 1, 1, rounds=1)
    part.measure(lambda _: None)
    assert part.outcome.failed == {}
    figures = _figures(part.outcome)
    for way in ("cluster-ip", "node-port"):
        failed = figures[way, "failed-SIGTERM"]
        assert {error.split()[0] for error in failed.failures} == {"TCP", "UDP"}
        assert failed.samples == [[sum(failed.failures.values())]]
        assert figures[way, "longest-gap-SIGTERM"].quantiles["p50"].value > 0


def test_a_proxy_that_does_not_start_again_falls_out(tmp_path: Path) -> None:
    part = Restart(_wrapped(_ONCE, tmp_path / "once"), 1, 1, rounds=2)
    part.measure(lambda _: None)
    assert list(part.outcome.failed) == ["peer:nftables"]
    assert part.outcome.failed["peer:nftables"].startswith("the proxy ended; its log: ")
    assert "once is enough" in part.outcome.failed["peer:nftables"]
    assert (part.outcome.figures, part.outcome.complete) == ([], True)


def test_who_does_not_answer_falls_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Restart):
        def _measured(self, one: Contestant) -> list[dict[str, Any]]:
            return measured(tcp_and_udp([(one.host("pod-2").ipv4, SERVER_PORT + 1)]))

    monkeypatch.setattr(disturbance, "_ANSWERS_S", 0.3)
    part = Elsewhere(_NFTABLES, 1, 1, rounds=1)
    part.measure(lambda _: None)
    assert list(part.outcome.failed) == ["nftables"]
    assert part.outcome.failed["nftables"].startswith("nobody answers at the service that is measured: ")
    assert "ECONNREFUSED" in part.outcome.failed["nftables"]


def test_ctrl_c_keeps_complete_rounds_and_leaves_nothing_behind() -> None:
    part, before = Restart(_NFTABLES, 1, 1, rounds=3), traces()

    def step(what: str) -> None:
        if what == "round 2 of 3: SIGTERM":
            assert traces() > before
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        part.measure(step)
    assert traces() == before
    assert (part.outcome.rounds, part.outcome.complete, part.outcome.failed) == (1, False, {})
    assert all(len(figure.samples) == 1 for figure in part.outcome.figures)
    assert len(part.outcome.figures) == 20


def test_a_failover_fails_connections_until_its_event_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event comes late, so that some certainly fail before it."""

    def put(one: Contestant, name: str, objects: list[dict[str, Any]]) -> None:
        if objects[0].get("endpoints") == []:
            time.sleep(0.5)
        _PUT(one, name, objects)

    monkeypatch.setattr(Contestant, "put", put)
    part = Failover(_NFTABLES, 3, 2, rounds=1)
    part.measure(lambda _: None)
    assert part.outcome.failed == {}
    figures = _figures(part.outcome)
    for way in ("cluster-ip", "node-port"):
        assert figures[way, "failed-closed"].failures.keys() & {"ECONNREFUSED", "ECONNRESET"}
        assert figures[way, "failed-silent"].failures.keys() == {"TimeoutError"}
        for kind in ("closed", "silent"):
            failed = figures[way, f"failed-{kind}"]
            assert failed.samples == [[sum(failed.failures.values())]]
            death, event = (
                figures[way, f"since-{moment}-{kind}"].quantiles["p50"].value for moment in ("death", "event")
            )
            assert death >= event > 0
    assert len(figures) == 14


def test_a_proxy_that_never_hears_of_the_end_falls_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(one: Contestant, name: str, objects: list[dict[str, Any]]) -> None:
        if objects[0].get("endpoints") != []:
            _PUT(one, name, objects)

    monkeypatch.setattr(Contestant, "put", put)
    monkeypatch.setattr(failover, "_STILL_FAILING_S", 0.5)
    part = Failover(_NFTABLES, 1, 1, rounds=1)
    part.measure(lambda _: None)
    assert part.outcome.failed == {"nftables": "connections still fail 0.5 s after their endpoint has gone"}


def test_clients_tell_what_became_of_each_attempt() -> None:
    with Lab() as lab:
        pod = lab.pods["pod-2"]
        place = place_of(lab.pods["pod-1"])
        targets = (pod.ipv4, SERVER_PORT), (pod.ipv4, SERVER_PORT + 7)
        streams = [Stream(place, target, protocol, 0.01) for target in targets for protocol in ("TCP", "UDP")]
        victim = Victim(lab.node, pod)
        victim.open()
        kept = Stream(place, (pod.ipv4, victim.port), "TCP", 0.01, kept=True)
        with Steady(processors()[0], [*streams, kept]) as clients:
            found: list[list[Attempt]] = [[] for _ in range(5)]

            def take() -> list[list[Attempt]]:
                for before, after in zip(found, clients.take(), strict=True):
                    before += after
                return found

            until(lambda: all(take()), lambda: f"not all have tried: {found}")
            *short, long = found
            assert [{one.error for one in attempts} for attempts in short] == [{""}] * 2 + [{"ECONNREFUSED"}] * 2
            assert {one.error for one in long} == {""}
            long.clear()
            victim.close()
            until(lambda: any(one.error for one in take()[4]), lambda: f"the connection lives: {long}")
            assert [one.error for one in long if one.error] in (["ECONNRESET"], ["ECONNABORTED"])
            long.clear()
            victim.open()
            until(lambda: bool(take()[4]), lambda: "it is not opened anew")
            assert {one.error for one in long} == {""}


def test_a_kept_connection_that_falls_silent_is_waited_for() -> None:
    """It takes a second to know, and who takes the attempts before would have it in those of the next round."""
    with Lab() as lab:
        pod = lab.pods["pod-2"]
        kept = Stream(place_of(lab.pods["pod-1"]), (pod.ipv4, SERVER_PORT), "TCP", 0.01, kept=True)
        with Steady(processors()[0], [kept]) as clients:
            until(lambda: any(clients.take()), lambda: "nobody answers")
            Victim(lab.node, pod).vanish()
            time.sleep(0.2)
            assert [one.error for one in clients.take()[0] if one.error] == ["TimeoutError"]
