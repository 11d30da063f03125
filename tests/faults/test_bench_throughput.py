"""`bench throughput` for real: iperf3, wrk and nginx in labs, who falls out, an interruption. No rate is judged."""

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from bench.contender import Contender
from bench.contestant import CONTROL, FLOOR, Contestant
from bench.lab import Lab
from bench.place import processors
from bench.requests import Requests
from bench.throughput import ThroughputBench, ThroughputPlan
from bench.traffic import run
from tests.faults.idler import Idler
from tests.faults.traces import traces

_PLAN = ThroughputPlan(rounds=1, seconds=1, streams=4, warm_up=1, seed=1)
_STREAM, _STREAMS_FROM_OUTSIDE, _CONNECTIONS, _KEPT_FROM_OUTSIDE = 0, 4, 6, 10
"""Which of a bench's tasks: a test has no time for all of them."""


def _bench(contenders: list[Contender], *tasks: int, plan: ThroughputPlan = _PLAN) -> ThroughputBench:
    bench = ThroughputBench(contenders, 3, 2, plan)
    bench._tasks = [bench._tasks[number] for number in tasks]
    return bench


def test_the_service_is_the_proxys() -> None:
    """Every program gets through it, and no connection fails."""
    bench = _bench([], _STREAM, _STREAMS_FROM_OUTSIDE, _CONNECTIONS, _KEPT_FROM_OUTSIDE)
    with Contestant("one", Contender("nftables")) as one:
        one.serve(bench.objects(one.host("pod-2").ipv4))
        for task in bench._tasks:
            assert task.target(one) == task.way.through
            reading = bench._read(task, one, 1)
            assert reading.failures == {}
            assert reading.values.keys() == {measure.name for measure in task.traffic.measures}
            assert reading.values[task.traffic.measures[0].name] > 0


def test_the_floor_has_no_service() -> None:
    bench = _bench([], _STREAM, _CONNECTIONS)
    client, server = processors()
    with Contestant(FLOOR) as floor:
        assert [task.target(floor) for task in bench._tasks] == [("10.244.0.12", 5201), ("10.244.0.12", 9000)]
        traffic, way = bench._tasks[0]
        assert way.through is not None
        with traffic.serving(floor.host("pod-2"), server):
            reading = traffic.read(floor.host("pod-1"), client, way.through, 1)
        assert reading.values == {}
        assert reading.failures


def test_all_that_answer_are_measured_and_the_others_fall_out() -> None:
    bench = _bench([Contender("nftables"), Contender("nonsense")], _CONNECTIONS)
    steps: list[str] = []
    bench.measure(steps.append)
    said = bench.outcome
    assert len(steps) == bench.steps
    assert (said.key, said.complete, said.rounds) == ("throughput, 3 x 2", True, 1)
    assert "there is no mode 'nonsense'" in said.failed["nonsense"]
    assert [(one.contestant, one.way, one.measure) for one in said.figures] == [
        (name, "cluster-ip", "connections") for name in (FLOOR, CONTROL, "nftables")
    ]
    assert all(one.failures == {} and len(one.samples[0]) == 1 for one in said.figures)


def test_who_does_not_answer_falls_out() -> None:
    class CutOff(ThroughputBench):
        def _warm_up(self, step: object) -> None:
            with self._contest.contestants[1].lab.pods["pod-2"].namespace.links() as links:
                links.link("set", index=links.link_lookup(ifname="eth0")[0], state="down")
            super()._warm_up(lambda _: None)

    bench = CutOff([], 1, 1, _PLAN)
    bench._tasks = bench._tasks[:1]
    bench.measure(lambda _: None)
    assert bench.outcome.failed[CONTROL].startswith("nobody answers: pod to ClusterIP: TCP, one stream: ")
    assert {one.contestant for one in bench.outcome.figures} == {FLOOR}


def test_who_takes_too_long_to_serve_falls_out() -> None:
    plan = replace(_PLAN, patience_s=1)
    bench = _bench([Idler("idle")], _STREAM, plan=plan)
    bench.measure(lambda _: None)
    assert bench.outcome.failed["idle"].startswith("the proxy did not get there in 1 s")


def test_who_ends_falls_out_after_that_round() -> None:
    bench = _bench([Contender("nftables")], _STREAM, plan=replace(_PLAN, rounds=2))

    def step(what: str) -> None:
        if what.startswith("round 1"):
            bench._contest.contestants[2].stop()

    bench.measure(step)
    assert bench.outcome.failed["nftables"].startswith("the proxy ended")
    rounds = {cell.contestant: len(samples) for cell, samples in bench._result.samples.items()}
    assert rounds == {FLOOR: 2, CONTROL: 2, "nftables": 1}
    assert {one.contestant for one in bench.outcome.figures} == {FLOOR, CONTROL}


def test_an_interruption_keeps_whole_rounds_and_leaves_nothing_behind() -> None:
    before = traces()

    def step(what: str) -> None:
        if what.startswith("round 2"):
            raise KeyboardInterrupt

    bench = _bench([], _STREAM, plan=ThroughputPlan(rounds=3, seconds=1, streams=4, warm_up=1, seed=1))
    with pytest.raises(KeyboardInterrupt):
        bench.measure(step)
    assert (bench.outcome.rounds, bench.outcome.complete) == (1, False)
    assert all(len(one.samples) == 1 for one in bench.outcome.figures)
    assert traces() == before


def test_a_server_ends_with_who_needs_it(lab: Lab) -> None:
    pod, (_, cpu) = lab.pods["pod-2"], processors()
    with pytest.raises(KeyboardInterrupt), Requests("requests", [9000], kept=True).serving(pod, cpu):
        (process,) = (one for one in pod.namespace._processes if one.poll() is None)
        raise KeyboardInterrupt
    assert process.returncode == -signal.SIGKILL


def test_a_reading_leaves_nothing_open(lab: Lab) -> None:
    """There are a thousand of them in a run: as many as a process may have files."""
    pod, requests = lab.pods["pod-2"], Requests("requests", [9000], kept=True)
    found = []
    for _ in range(3):
        with requests.serving(pod, 0):
            run(pod, 0, ["true"], 1)
        found.append((len(list(Path("/proc/self/fd").iterdir())), len(pod.namespace._processes)))
    assert found == [found[0]] * 3


def test_a_server_that_does_not_start_says_why(lab: Lab) -> None:
    broken = Requests("requests", [70_000], kept=True)
    with (
        pytest.raises(ChildProcessError, match=r"nginx does not serve: .*invalid port"),
        broken.serving(lab.pods["pod-2"], 0),
    ):
        pytest.fail("nobody listens at 70000")


def test_programs_run_on_one_cpu_and_where_the_proxy_knows_them(lab: Lab) -> None:
    cpu, _ = processors()
    files = ("/proc/self/status", "/proc/self/cgroup", "/proc/self/net/fib_trie")
    said, _ = run(lab.pods["pod-2"], cpu, ["cat", *files], 1)
    assert f"Cpus_allowed_list:\t{cpu}\n" in said
    assert lab.cgroup is None or f"/{lab.cgroup.path.name}\n" in said
    assert "10.244.0.12" in said


def test_a_program_that_does_not_end_is_ended(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.traffic._PATIENCE_S", 0.2)
    assert run(lab.client, 0, ["sleep", "infinity"], 0) == ("", "")
