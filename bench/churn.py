"""Many EndpointSlices change, one after the other at a steady rate, and now and then that of the canary."""

import time
from collections.abc import Iterator
from ipaddress import IPv4Address

from bench.feed import Object
from bench.trial import Trial

_SLICES = 100
"""Of as many Services, spread over the load."""
_CANARY_IN = 25
"""One change in so many is the canary's, as long as the last of these is served."""
_NOBODY = IPv4Address("10.160.0.0")
_PAUSE_S = 0.0005


class Churn:
    """What it changes is in the feed under names of its own."""

    def __init__(self, load: list[Object]) -> None:
        """``load``: what else there is; what is to be changed is taken out of it."""
        slices = [one for one in load if one["kind"] == "EndpointSlice" and one["endpoints"]]
        self._slices = slices[:: max(1, len(slices) // _SLICES)][:_SLICES]
        chosen = {one["metadata"]["name"] for one in self._slices}
        self.load: dict[str, list[Object]] = {
            "load": [one for one in load if one["kind"] == "Service" or one["metadata"]["name"] not in chosen],
            **{_piece(one): [one] for one in self._slices},
        }
        """By names of the feed."""
        self.changes = 0
        """So far, those of the canary included."""
        self.seconds = 0.0
        """That they took."""

    def run(self, trial: Trial, rate: float, seconds: float) -> Iterator[float]:
        """``rate`` changes a second. Yields of each that is the canary's the seconds until it is served.

        Raises NotServing.
        """
        started = time.perf_counter()
        moved: float | None = None
        try:
            while time.perf_counter() < started + seconds:
                is_due = time.perf_counter() >= started + self.changes / rate
                if is_due and moved is None and self.changes % _CANARY_IN == 0:
                    moved = time.perf_counter()
                    trial.canary.move()
                elif is_due:
                    self._change(trial)
                self.changes += is_due
                if moved is not None and trial.canary.is_served():
                    yield time.perf_counter() - moved
                    moved = None
                elif not is_due:
                    trial.check(moved or time.perf_counter())
                    time.sleep(_PAUSE_S)
        finally:
            self.seconds = time.perf_counter() - started
        if moved is not None:
            yield trial.wait(moved)

    def _change(self, trial: Trial) -> None:
        """An endpoint is somewhere else."""
        one = self._slices[self.changes % len(self._slices)]
        one["endpoints"][-1]["addresses"] = [str(_NOBODY + self.changes)]
        trial.feed.put(_piece(one), [one])


def _piece(one: Object) -> str:
    return f"churn-{one['metadata']['name']}"
