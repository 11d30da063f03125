"""What `bench latency` has measured, as it comes: samples by contestant, way and measure."""

from array import array
from collections import Counter
from dataclasses import dataclass, field

from bench.environment import Load
from bench.measured import Cell


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
