"""What `bench latency` has measured, as it comes: samples by contestant, way and measure."""

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.environment import Load
from bench.measure import Target

CLUSTER_IP, PORT, NODE_PORT = "10.96.0.20", 80, 30080
"""Of the Service that is measured."""


class Way(NamedTuple):
    """From whom to whom."""

    name: str
    words: str
    who: str
    pod: str
    """The one that answers: without a proxy it is asked straight."""
    through: Target | None
    """Where the service is found; None: nobody goes through it here."""


WAYS = (
    Way("cluster-ip", "pod to ClusterIP", "pod-1", "pod-2", (CLUSTER_IP, PORT)),
    Way("node-port", "outside to NodePort", "client", "pod-2", ("172.18.0.2", NODE_PORT)),
    Way("bystander", "bystander: pod to another pod", "pod-1", "pod-3", None),
)
"""The bystander's pod is no endpoint: two paths to one pod would get into each other's way in conntrack."""


class Cell(NamedTuple):
    """One thing that is measured."""

    contestant: str
    way: str
    measure: str


@dataclass(slots=True)
class LatencyResult:
    services: int
    endpoints: int
    contestants: list[str]
    """Whose figures there are; the floor is the first, the control the second."""
    failed: dict[str, str] = field(default_factory=dict)
    """Who fell out, and why."""
    rounds: int = 0
    """That are complete."""
    samples: dict[Cell, list["array[int]"]] = field(default_factory=dict)
    """In ns, by round."""
    failures: dict[Cell, Counter[str]] = field(default_factory=dict)
    """Conversations that came to nothing, by error."""
    client_ns: list[int] = field(default_factory=list)
    """What the client itself takes, which is part of each sample."""
    preempted: int = 0
    """How often the client lost its CPU to others in the midst of measuring."""
    load: Load | None = None
    """Since the warm-up; known with the first round."""
