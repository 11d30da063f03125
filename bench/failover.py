"""An endpoint dies, and its EndpointSlice says so at once: until when do connections go there, and how many?

Of three endpoints one dies, in two ways. Its port closes: what goes there is refused. Or its pod is gone together with
its route, and a blackhole route is left, as CNI plugins leave one for the addresses of their node: silence.
"""

import subprocess
import sys
import time
from typing import Any, ClassVar

from bench.contestant import Contestant, NotServing
from bench.disturbance import SERVED_WAYS, Disturbance, Load, Sample, errors
from bench.lab import SERVER_PORT, Host
from bench.measured import measured, tcp_and_udp
from bench.place import place_of
from bench.record import Measure
from bench.steady import Attempt, Stream

_VICTIM, _OTHERS = "pod-2", ("pod-3", "pod-4")
_EVERY_S = 0.002
_STILL_S = 0.2
"""Without a failure for so long, none is to come."""
_STILL_FAILING_S = 30.0
_NS = 1e-9
_CLOSED, _SILENT = "closed", "silent"
_WORDS = {_CLOSED: "its port closes", _SILENT: "its pod falls silent"}


class Failover(Disturbance):
    scenario = "failover"
    kinds: ClassVar[tuple[str, ...]] = (_CLOSED, _SILENT)

    def _measured(self, one: Contestant) -> list[dict[str, Any]]:
        """Without the victim, whose slice is on its own."""
        endpoints = [(_VICTIM, Victim.port), *((pod, SERVER_PORT) for pod in _OTHERS)]
        service, self._slice, *others = measured(tcp_and_udp([(one.host(pod).ipv4, port) for pod, port in endpoints]))
        return [service, *others]

    def _prepare(self, one: Contestant) -> None:
        self._victim = Victim(one.host("node"), one.host(_VICTIM))
        self._victim.open()
        self._revive(one)

    def _streams(self, one: Contestant) -> list[Stream]:
        return [Stream(place_of(one.host(way.who)), target, "TCP", _EVERY_S) for way, target in SERVED_WAYS]

    def _disturb(self, kind: str, one: Contestant, clients: Load) -> list[Sample]:
        clients.take()
        died_ns = time.monotonic_ns()
        if kind == _CLOSED:
            self._victim.close()
        else:
            self._victim.vanish()
        told_ns = time.monotonic_ns()
        one.put(_VICTIM, [self._slice | {"endpoints": []}])
        one.settle()
        found = _until_still(clients)
        if kind == _CLOSED:
            self._victim.open()
        else:
            self._victim.appear()
        self._revive(one)
        samples = []
        for (way, _), attempts in zip(SERVED_WAYS, found, strict=True):
            head, failures = f"{_WORDS[kind]}, {way.words}", errors(attempts)
            last_ns = max((attempt.began_ns for attempt in attempts if attempt.error), default=0)
            samples += [
                Sample(Measure(f"failed-{kind}", f"{head}: failed", "1", way.name), failures.total(), failures),
                Sample(
                    Measure(f"since-death-{kind}", f"{head}: from its end to the last that failed", "s", way.name),
                    max(0, last_ns - died_ns) * _NS,
                ),
                Sample(
                    Measure(f"since-event-{kind}", f"{head}: from the event to the last that failed", "s", way.name),
                    max(0, last_ns - told_ns) * _NS,
                ),
            ]
        return samples

    def _revive(self, one: Contestant) -> None:
        """The proxy hears of the victim, which answers again."""
        one.put(_VICTIM, [self._slice])
        one.settle()


def _until_still(clients: Load) -> list[list[Attempt]]:
    """All attempts until none fails any more. Raises NotServing."""
    found = clients.take()
    end = time.monotonic() + _STILL_FAILING_S
    while True:
        time.sleep(_STILL_S)
        more = clients.take()
        found = [before + after for before, after in zip(found, more, strict=True)]
        if not any(map(errors, more)):
            return found
        if time.monotonic() > end:
            raise NotServing(f"connections still fail {_STILL_FAILING_S:g} s after their endpoint has gone")


class Victim:
    """A server of its own in a pod."""

    port = SERVER_PORT + 1

    def __init__(self, node: Host, pod: Host) -> None:
        self._node, self._pod = node, pod

    def open(self) -> None:
        """The port. Raises ChildProcessError."""
        place = f"{self._pod.name}={self._pod.namespace.path}"
        command = [sys.executable, "-m", "bench.server", str(self.port), place]
        self._process = self._pod.start(command, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise ChildProcessError("the endpoint that is to die did not start; what it said is above")

    def close(self) -> None:
        """The port, and with it all that is open there."""
        self._process.kill()
        self._process.communicate()

    def vanish(self) -> None:
        with self._node.namespace.links() as links:
            links.route("replace", dst=f"{self._pod.ipv4}/32", type="blackhole")

    def appear(self) -> None:
        with self._node.namespace.links() as links:
            links.route("replace", dst=f"{self._pod.ipv4}/32", oif=self._device)

    @property
    def _device(self) -> int:
        """The node's end of its veth."""
        name = f"veth{self._pod.name.removeprefix('pod-')}"
        with self._node.namespace.links() as links:
            return int(links.link_lookup(ifname=name)[0])
