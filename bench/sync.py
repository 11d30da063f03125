"""How long until what has changed is served, and what it takes: scenario `sync`.

The first sync, one endpoint that changes among many, a rolling update of a Service of 100 endpoints, and many changes a
second. All end with the first packet that a new endpoint answers, whatever the mode. The load around it is N services
with E endpoints that nobody contacts. docs/benchmarking.md says how it is done.
"""

import time
from dataclasses import dataclass

from bench import synthetic
from bench.churn import Churn
from bench.contender import Proxy
from bench.contestant import NotServing
from bench.document import Outcome
from bench.record import Measure, Record
from bench.rollout import Rollout
from bench.scenario import Step, size
from bench.trial import FirstSync, Trial

_REST_S = 0.15  # between changes, so that each finds the proxy at rest, past its min sync period
_CLEARLY_LESS = 0.95

_FIRST_SYNC = Measure("first-sync", "first sync", "s")
_FIRST_SYNC_CPU = Measure("first-sync-cpu", "CPU of the first sync", "s")
_LIST_CPU = Measure("list-cpu", "CPU of listing alone", "s")
_RESIDENT = Measure("resident", "resident memory", "MiB")
_PROPORTIONAL = Measure("proportional", "memory, what is shared in parts", "MiB")
_PEAK = Measure("peak", "peak of resident memory", "MiB")
_KERNEL = Measure("kernel", "memory of the kernel", "MiB")
_CHANGE = Measure("change", "one endpoint changed", "s")
_CHANGE_CPU = Measure("change-cpu", "CPU of a change", "s")
_ROLLING = Measure("rolling-update", "rolling update of 100 endpoints", "s")
_ROLLING_STEP = Measure("rolling-update-step", "a step of a rolling update", "s")
_ROLLING_FAILED = Measure("rolling-update-failed", "rolling update: connections that failed", "1")
_ROLLING_CPU = Measure("rolling-update-cpu", "CPU of a rolling update", "s")
_CHURN = Measure("churn", "one endpoint changed, in churn", "s")
_CHURN_CPU = Measure("churn-cpu", "CPUs busy in churn", "1")
_CHURN_PEAK = Measure("churn-peak", "peak of resident memory in churn", "MiB")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured, of each contender at each size. 0 leaves it out."""

    starts: int = 3
    """First syncs, each in a lab of its own. All else comes after the first of them."""
    changes: int = 50
    rollouts: int = 5
    churn_rate: int = 50
    """Changes a second."""
    churn_s: int = 30
    patience_s: float = 600.0
    """Who takes longer for anything falls out."""


class SyncBench:
    """One contender at one size."""

    scenario = "sync"

    def __init__(self, contender: Proxy, services: int, endpoints: int, plan: Plan) -> None:
        self._contender = contender
        self._size = (services, endpoints)
        self._plan = plan
        self._record = Record(str(contender))
        self._failed: dict[str, str] = {}
        self._remarks: list[str] = []
        self._is_complete = False

    @property
    def key(self) -> str:
        return f"{self.scenario}, {self._contender}, {size(*self._size)}"

    @property
    def steps(self) -> int:
        plan = self._plan
        return plan.starts + plan.changes + plan.rollouts + bool(plan.churn_s)

    @property
    def outcome(self) -> Outcome:
        services, endpoints = self._size
        return Outcome(
            key=self.key,
            scenario=self.scenario,
            services=services,
            endpoints=endpoints,
            complete=self._is_complete,
            rounds=self._plan.starts,
            figures=self._record.figures(),
            failed=self._failed,
            remarks=self._remarks,
        )

    def measure(self, step: Step) -> None:
        """Raises FileNotFoundError if objects are to come over the API and its stand-in isn't there."""
        try:
            for number in range(self._plan.starts):
                self._start(number, step)
        except NotServing as error:
            self._failed[str(self._contender)] = str(error)
        self._is_complete = True

    def _start(self, number: int, step: Step) -> None:
        step("first sync")
        churn = Churn(synthetic.load(*self._size))
        with Trial(self._contender, self._plan.patience_s) as trial:
            self._add_first_sync(trial.start(churn.load), number)
            if number == 0:
                self._change(trial, step)
                self._roll_out(trial, step)
                self._churn(trial, churn, step)

    def _add_first_sync(self, first: FirstSync, number: int) -> None:
        self._record.add(_FIRST_SYNC, first.seconds, start=number)
        self._record.add(_FIRST_SYNC_CPU, first.cpu_s, start=number)
        if first.list_cpu_s is not None:
            self._record.add(_LIST_CPU, first.list_cpu_s, start=number)
        self._record.add(_RESIDENT, first.memory.resident, start=number)
        self._record.add(_PROPORTIONAL, first.memory.proportional, start=number)
        self._record.add(_PEAK, first.peak_mib, start=number)
        self._record.add(_KERNEL, first.kernel_mib, start=number)

    def _change(self, trial: Trial, step: Step) -> None:
        before = trial.processes.cpu_s()
        for number in range(self._plan.changes):
            step(f"change {number + 1}")
            time.sleep(_REST_S)
            started = time.perf_counter()
            trial.canary.move()
            self._record.add(_CHANGE, trial.wait(started))
        if self._plan.changes:
            time.sleep(_REST_S)
            self._record.add(_CHANGE_CPU, (trial.processes.cpu_s() - before) / self._plan.changes)

    def _roll_out(self, trial: Trial, step: Step) -> None:
        if not self._plan.rollouts:
            return
        rollout = Rollout(trial)
        time.sleep(_REST_S)
        before = trial.processes.cpu_s()
        for number in range(self._plan.rollouts):
            step(f"rolling update {number + 1}")
            rolled = rollout.roll()
            self._record.add(_ROLLING, rolled.seconds)
            self._record.add(_ROLLING_STEP, *rolled.steps)
            self._record.add(_ROLLING_FAILED, rolled.failures.total())
            self._record.add_failures(_ROLLING_FAILED, rolled.failures)
            time.sleep(_REST_S)
        self._record.add(_ROLLING_CPU, (trial.processes.cpu_s() - before) / self._plan.rollouts)

    def _churn(self, trial: Trial, churn: Churn, step: Step) -> None:
        if not self._plan.churn_s:
            return
        step(f"{self._plan.churn_rate} changes a second for {self._plan.churn_s} s")
        trial.processes.forget_peak()
        before, started = trial.processes.cpu_s(), time.perf_counter()
        for lag in churn.run(trial, self._plan.churn_rate, self._plan.churn_s):
            self._record.add(_CHURN, lag)
        self._record.add(_CHURN_CPU, round((trial.processes.cpu_s() - before) / (time.perf_counter() - started), 3))
        self._record.add(_CHURN_PEAK, trial.processes.peak_mib())
        if churn.changes < _CLEARLY_LESS * self._plan.churn_rate * churn.seconds:
            self._remarks.append(
                f"Only {churn.changes / churn.seconds:.0f} of {self._plan.churn_rate} changes a second could be made."
            )
