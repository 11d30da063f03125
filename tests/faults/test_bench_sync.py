"""`bench sync` and `bench memory`, with real proxies: what they measure, and what becomes of those that fail."""

import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from bench import synthetic
from bench.canary import connection
from bench.churn import Churn
from bench.contender import Contender
from bench.contestant import NotServing
from bench.feed import CANARY, Feed, Manifests, Object
from bench.kernel_memory import kernel_mib
from bench.lab import Lab
from bench.memory import MemoryBench
from bench.rollout import Rollout
from bench.scenario import Step
from bench.sync import Plan, SyncBench
from bench.trial import Trial
from ebpf import syscall
from tests.faults.idler import Idler
from tests.faults.traces import traces

_PLAN = Plan(starts=1, changes=3, rollouts=2, churn_rate=20, churn_s=1)
_MEMORY = ("resident", "proportional", "peak", "kernel")
_MIB = 128


@dataclass(frozen=True, slots=True)
class _Stranger(Contender):
    """A proxy that says nothing, and whose work is done by a child."""

    def command(self, lab: Lab, feed: Feed, *flags: str | Path) -> Sequence[str]:
        program = "import subprocess, sys; subprocess.run(sys.argv[1:], stderr=subprocess.DEVNULL)"
        return [sys.executable, "-c", program, *Contender.command(self, lab, feed, *flags)]


class _Notes(Manifests):
    """A feed that notes what is put into it, by name."""

    def __init__(self, feed: Feed) -> None:
        self.feed: Feed | None = feed
        """Where it goes."""
        self.put_there: defaultdict[str, list[list[Object]]] = defaultdict(list)

    def put(self, name: str, objects: list[Object]) -> None:
        self.put_there[name].append(objects)
        if self.feed:
            self.feed.put(name, objects)


def test_all_that_was_asked_for_is_measured() -> None:
    before = traces()
    bench = SyncBench(Contender("nftables", via_api=True), 5, 2, _PLAN)
    steps: list[str] = []
    bench.measure(steps.append)
    outcome = bench.outcome
    assert (outcome.key, outcome.scenario, outcome.complete) == ("sync, nftables, 5 x 2", "sync", True)
    assert (outcome.services, outcome.endpoints, outcome.rounds, outcome.failed) == (5, 2, 1, {})
    counts = {figure.measure: len(figure.samples[0]) for figure in outcome.figures}
    assert counts.pop("churn") >= 1
    once = ("first-sync", "first-sync-cpu", "list-cpu", *_MEMORY, "change-cpu", "rolling-update-cpu")
    several = {"change": 3, "rolling-update": 2, "rolling-update-step": 8, "rolling-update-failed": 2}
    assert counts == {**dict.fromkeys((*once, "churn-cpu", "churn-peak"), 1), **several}
    assert {figure.contestant for figure in outcome.figures} == {"nftables"}
    # On a busy machine an answer may take longer than it is waited for; nothing is refused or reset.
    assert {error for figure in outcome.figures for error in figure.failures} <= {"TimeoutError"}
    assert len(steps) == bench.steps
    assert traces() == before


def test_nothing_depends_on_what_a_proxy_says_and_its_children_count() -> None:
    bench = SyncBench(_Stranger("nftables"), 5, 2, Plan(1, changes=1, rollouts=1, churn_s=0))
    bench.measure(lambda _: None)
    assert bench.outcome.failed == {}
    values = {figure.measure: figure.quantiles["p50"].value for figure in bench.outcome.figures}
    rolled = ["rolling-update", "rolling-update-step", "rolling-update-failed", "rolling-update-cpu"]
    assert list(values)[-4:] == rolled
    assert values["resident"] > 30  # MiB: the wrapper takes less than 20, pyproxy more than 30
    assert values["first-sync-cpu"] > 0


def test_memory_is_some_first_syncs_and_no_more() -> None:
    bench = MemoryBench(Contender("nftables"), 5, 2, starts=2, patience_s=300)
    bench.measure(lambda _: None)
    outcome = bench.outcome
    assert (outcome.key, outcome.scenario, outcome.rounds) == ("memory, nftables, 5 x 2", "memory", 2)
    assert [figure.measure for figure in outcome.figures] == ["first-sync", "first-sync-cpu", *_MEMORY]
    assert all([len(samples) for samples in figure.samples] == [1, 1] for figure in outcome.figures)
    assert bench.steps == 2


def test_a_proxy_that_ends_is_told_with_its_log() -> None:
    before = traces()
    bench = SyncBench(Contender("nonsense"), 2, 1, _PLAN)
    bench.measure(lambda _: None)
    assert (bench.outcome.figures, bench.outcome.complete) == ([], True)
    assert bench.outcome.failed["nonsense"].startswith("the proxy ended; its log: ")
    assert "there is no mode 'nonsense'" in bench.outcome.failed["nonsense"]
    assert traces() == before


def test_a_proxy_that_never_serves_is_given_up() -> None:
    bench = SyncBench(Idler("idle"), 2, 1, Plan(patience_s=1))
    bench.measure(lambda _: None)
    assert bench.outcome.figures == []
    assert bench.outcome.failed == {"idle": "the proxy did not get there in 1 s; its log: I am idle\n"}


def test_a_proxy_that_ends_later_leaves_what_was_measured_before() -> None:
    class Mortal(SyncBench):
        def _change(self, trial: Trial, step: Step) -> None:
            trial.subject.stop(signal.SIGKILL)
            super()._change(trial, step)

    bench = Mortal(Contender("nftables"), 2, 1, _PLAN)
    bench.measure(lambda _: None)
    assert bench.outcome.failed["nftables"].startswith("the proxy ended; its log: ")
    assert [figure.measure for figure in bench.outcome.figures] == ["first-sync", "first-sync-cpu", *_MEMORY]


def test_an_interruption_leaves_what_was_measured_before() -> None:
    before = traces()

    def interrupt(what: str) -> None:
        if what == "change 3":
            raise KeyboardInterrupt

    bench = SyncBench(Contender("nftables"), 2, 1, _PLAN)
    with pytest.raises(KeyboardInterrupt):
        bench.measure(interrupt)
    assert (bench.outcome.complete, bench.outcome.failed) == (False, {})
    assert len(bench.outcome.figures[-1].samples[0]) == 2
    assert traces() == before


@pytest.fixture
def trial() -> Iterator[Trial]:
    """Whose feed notes what is put into it."""
    with Trial(Contender("nftables"), 60) as trial:
        trial.start({})
        trial.feed = trial.canary._feed = _Notes(trial.feed)
        yield trial


def test_a_rollout_replaces_a_quarter_at_a_time_and_ends_with_the_new_ones_alone(trial: Trial) -> None:
    notes = cast(_Notes, trial.feed)
    rollout = Rollout(trial)
    assert list(notes.put_there) == ["rollout", "zz-rollout"]
    for old, new in (("10.244.3.", "10.244.2."), ("10.244.2.", "10.244.3.")):
        notes.put_there.clear()
        rolled = rollout.roll()
        assert (len(rolled.steps), rolled.failures) == (4, {})
        assert rolled.seconds >= sum(rolled.steps)
        counted = []
        for leaving, coming in notes.put_there["zz-rollout"]:
            terminating = [endpoint["conditions"]["terminating"] for endpoint in leaving["endpoints"]]
            assert all(endpoint["conditions"]["ready"] for endpoint in coming["endpoints"])
            assert all(endpoint["addresses"][0].startswith(old) for endpoint in leaving["endpoints"])
            assert all(endpoint["addresses"][0].startswith(new) for endpoint in coming["endpoints"])
            counted.append((terminating.count(False), terminating.count(True), len(coming["endpoints"])))
        assert counted == [(75, 25, 25), (50, 25, 50), (25, 25, 75), (0, 25, 100), (0, 0, 100)]
        reached = {connection(trial.lab.pods["pod-1"], "10.96.0.11", 5).address for _ in range(40)}
        assert len(reached) > 5
        assert all(address.startswith(new) for address in reached)
    notes.feed = None  # from now on the proxy hears nothing
    trial._patience_s = 0.3
    with pytest.raises(NotServing, match=r"the proxy did not get there in 0\.3 s"):
        rollout.roll()


def test_churn_changes_no_more_often_than_asked_for_and_waits_for_its_last_canary(trial: Trial) -> None:
    notes = cast(_Notes, trial.feed)
    churn = Churn(synthetic.load(3, 2))
    assert len(list(churn.run(trial, rate=20, seconds=0.5))) == len(notes.put_there["zz-canary"]) == 1
    assert 2 <= churn.changes <= 10
    assert sum(map(len, notes.put_there.values())) == churn.changes
    assert trial.canary.is_served()
    answer = connection(trial.lab.pods["pod-1"], CANARY[1], 5)
    assert answer.address == trial.lab.pods["pod-3"].ipv4
    changed = [put[-1][0]["endpoints"][-1]["addresses"][0] for name, put in notes.put_there.items() if "churn" in name]
    assert len(set(changed)) == len(changed)
    assert all(address.startswith("10.160.0.") for address in changed)
    assert len(list(Churn([]).run(trial, rate=1, seconds=0.001))) == 1
    notes.feed = None  # from now on the proxy hears nothing
    trial.canary.move()
    assert not trial.canary.is_served()


def test_what_the_kernel_takes_for_a_map_is_told() -> None:
    before = kernel_mib()
    handle = syscall.create_map("pyproxy_trial", syscall.MapSpec(syscall.ARRAY, 4, 4096, (_MIB << 20) // 4096))
    try:
        assert kernel_mib() - before > _MIB / 2
    finally:
        os.close(handle)
