"""What clients notice of a proxy that starts anew: after SIGTERM, as in an upgrade; after SIGKILL, as in a crash."""

import signal
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, ClassVar

from bench.contestant import Contestant
from bench.disturbance import SERVED_WAYS, Disturbance, Load, Sample, errors
from bench.lab import SERVER_PORT
from bench.measured import measured, tcp_and_udp
from bench.place import place_of
from bench.record import Measure
from bench.steady import Attempt, Stream

_PODS = ("pod-2", "pod-3", "pod-4")
_EVERY_S = 0.005
_KEPT, _KEPT_EVERY_S = 10, 0.05
"""Connections that stay open, by each way, and how often something is said on them."""
_NS = 1e-9


class Restart(Disturbance):
    scenario = "restart"
    kinds: ClassVar[tuple[str, ...]] = ("SIGTERM", "SIGKILL")

    def _measured(self, one: Contestant) -> list[dict[str, Any]]:
        return measured(tcp_and_udp([(one.host(pod).ipv4, SERVER_PORT) for pod in _PODS]))

    def _streams(self, one: Contestant) -> list[Stream]:
        """By way: of TCP, of UDP, and the kept ones."""
        streams = []
        for way, target in SERVED_WAYS:
            place = place_of(one.host(way.who))
            streams += [Stream(place, target, "TCP", _EVERY_S), Stream(place, target, "UDP", _EVERY_S)]
            streams += [Stream(place, target, "TCP", _KEPT_EVERY_S, kept=True)] * _KEPT
        return streams

    def _disturb(self, kind: str, one: Contestant, clients: Load) -> list[Sample]:
        number = signal.Signals[kind]
        clients.take()
        status = one.stop(number)
        if status == -signal.SIGKILL != -number:
            self._remark(f"{one.name} was not ended by {kind}, and killed.")
        back_s = one.start()
        one.settle()
        time.sleep(_KEPT_EVERY_S)  # until something was said on each kept connection
        found = clients.take()
        each = len(found) // len(SERVED_WAYS)
        samples = [Sample(Measure(f"back-{kind}", f"after {kind}: from start to serving", "s"), back_s)]
        for index, (way, _) in enumerate(SERVED_WAYS):
            tcp, udp, *kept = found[index * each : (index + 1) * each]
            failures = Counter({f"TCP {error}": count for error, count in errors(tcp).items()})
            failures.update({f"UDP {error}": count for error, count in errors(udp).items()})
            lost = sum(map(errors, kept), Counter[str]())
            head = f"{kind}, {way.words}"
            samples += [
                Sample(
                    Measure(f"attempts-{kind}", f"{head}: new connections and datagrams", "1", way.name, False),
                    len(tcp) + len(udp),
                ),
                Sample(Measure(f"failed-{kind}", f"{head}: of them failed", "1", way.name), failures.total(), failures),
                Sample(
                    Measure(f"longest-gap-{kind}", f"{head}: longest time in which all failed", "s", way.name),
                    max(longest_gap(tcp), longest_gap(udp)),
                ),
                Sample(Measure(f"lost-{kind}", f"{head}: lost of {_KEPT} kept", "1", way.name), lost.total(), lost),
            ]
        return samples


def longest_gap(attempts: Sequence[Attempt]) -> float:
    """Seconds from the first of a run that failed until the next that was answered, or to the last; 0.0: none failed.

    By when they began. ``attempts`` are in that order.
    """
    longest, failing_since = 0, None
    for attempt in attempts:
        if attempt.error and failing_since is None:
            failing_since = attempt.began_ns
        if failing_since is not None:
            longest = max(longest, attempt.began_ns - failing_since)
            failing_since = failing_since if attempt.error else None
    return longest * _NS
