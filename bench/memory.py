"""What it costs in memory to serve N x E, in user space and in the kernel: scenario `memory`.

It is `sync` without what comes after the first sync, and `sync` has the same figures: who measures that needs no more.
"""

from bench.contender import Proxy
from bench.sync import Plan, SyncBench


class MemoryBench(SyncBench):
    scenario = "memory"

    def __init__(self, contender: Proxy, services: int, endpoints: int, starts: int, patience_s: float) -> None:
        plan = Plan(starts, changes=0, rollouts=0, churn_s=0, patience_s=patience_s)
        super().__init__(contender, services, endpoints, plan)
