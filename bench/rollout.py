"""A Service of 100 endpoints, all of which are replaced: what a rolling update of a Deployment is to a proxy.

A Deployment with its maxSurge of 25 % replaces a quarter of its pods at a time. What a proxy sees of it are writes of
EndpointSlices: in each, new pods have become ready, those that they replace are terminating (they still answer, but are
to get no new connections), and those that were terminating have gone. Pods are ready at once here, so that the proxy
alone sets the pace. The EndpointSlice controller puts at most 100 endpoints into a slice, so the old ones are in one,
and the new ones in another.

The 100 pods are 100 addresses of one pod of the lab, their successors those of another.
"""

import time
from collections import Counter
from dataclasses import dataclass, field

from bench import synthetic
from bench.canary import connection
from bench.feed import Object
from bench.lab import NODE_NAME, SERVER_PORT
from bench.trial import Trial

_NAME, _ADDRESS = "rollout", "10.96.0.11"
_PODS = ("pod-2", "pod-3")
_ENDPOINTS, _STEPS = 100, 4
_AT_ONCE = _ENDPOINTS // _STEPS
_IN_A_ROW = 20  # answers by new endpoints alone: nobody who is still served among a fifth hides from them
_TIMEOUT_S = 0.5  # all endpoints answer all the time, so who gets no answer is lost


@dataclass(slots=True)
class Rolled:
    seconds: float = 0.0
    """From the first write to the first packet after which new endpoints alone are served."""
    steps: list[float] = field(default_factory=list)
    """Each from its write to the first packet that one of its new endpoints answers, in seconds."""
    failures: Counter[str] = field(default_factory=Counter)
    """Connections that nobody answered, by error."""


class Rollout:
    def __init__(self, trial: Trial) -> None:
        """Put the Service there, and wait until it is served. Raises NotServing."""
        self._trial = trial
        self._generations = [(pod, _addresses(trial, pod, number)) for number, pod in enumerate(_PODS)]
        trial.feed.put(_NAME, [synthetic.service(_NAME, _ADDRESS)])
        self._put(_STEPS)
        self._wait_for(self._generations[1][1], Counter())

    def roll(self) -> Rolled:
        """Raises NotServing."""
        self._generations.reverse()
        new = self._generations[1][1]
        rolled = Rolled()
        began = time.perf_counter()
        for step in range(_STEPS):
            started = time.perf_counter()
            self._put(step)
            fresh = new[step * _AT_ONCE : (step + 1) * _AT_ONCE]
            rolled.steps.append(self._wait_for(fresh, rolled.failures) - started)
        rolled.seconds = self._wait_for(new, rolled.failures, in_a_row=_IN_A_ROW) - began
        self._put(_STEPS)
        return rolled

    def _put(self, step: int) -> None:
        """So many steps have been before; after the last, what is left of the old ones goes."""
        gone, going = step * _AT_ONCE, min(step + 1, _STEPS) * _AT_ONCE
        (old_pod, old), (new_pod, new) = self._generations
        leaving, coming = _slice(old_pod, old[gone:]), _slice(new_pod, new[:going])
        for endpoint in leaving["endpoints"][: going - gone]:
            endpoint["conditions"] = {"ready": False, "serving": True, "terminating": True}
        self._trial.feed.put(f"zz-{_NAME}", [leaving, coming])

    def _wait_for(self, addresses: list[str], failures: Counter[str], in_a_row: int = 1) -> float:
        """When the first came of so many answers by these, and nobody else in between."""
        client = self._trial.lab.pods["pod-1"]
        started = since = time.perf_counter()
        count = 0
        while count < in_a_row:
            try:
                is_one = connection(client, _ADDRESS, _TIMEOUT_S).address in addresses
            except OSError as error:
                failures[type(error).__name__] += 1
                is_one = False
            count = count + 1 if is_one else 0
            if count == 1:
                since = time.perf_counter()
            if not is_one:
                self._trial.check(started)
        return since


def _slice(pod: str, addresses: list[str]) -> Object:
    one = synthetic.endpoint_slice(_NAME, [(address, NODE_NAME) for address in addresses], SERVER_PORT)
    one["metadata"]["name"] = f"{_NAME}-{pod}"
    return one


def _addresses(trial: Trial, name: str, number: int) -> list[str]:
    """That the pod has from now on besides its own."""
    pod = trial.lab.pods[name]
    addresses = [f"10.244.{2 + number}.{last}" for last in range(1, _ENDPOINTS + 1)]
    with pod.namespace.links() as links:
        eth0 = links.link_lookup(ifname="eth0")[0]
        for address in addresses:
            links.addr("add", index=eth0, address=address, prefixlen=32)
    with trial.lab.node.namespace.links() as links:
        veth = links.link_lookup(ifname=name.replace("pod-", "veth"))[0]
        links.route("add", dst=f"10.244.{2 + number}.0/24", gateway=pod.ipv4, oif=veth, flags=["onlink"])
    return addresses
