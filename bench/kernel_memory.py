"""What the kernel holds: unreclaimable slab, vmalloc and per-CPU memory, of the whole machine.

What a proxy writes is in these three, whatever the mode: rules and sets are slab and vmalloc, maps of BPF all three,
virtual servers of IPVS slab. So the difference between before and after a first sync is the proxy's, plus what others
on the machine made the kernel take or give back meanwhile. The accounts of a cgroup would be the proxy's alone, but
they leave out much of it (IPVS, conntrack, what kernel threads allocate), and not every machine keeps them.
"""

import time
from pathlib import Path

_SHARES = ("SUnreclaim", "VmallocUsed", "Percpu")
_STEADY_MIB = 1.0
_STEP_S = 0.2
_PATIENCE_S = 3.0


def kernel_mib() -> float:
    """Once it hardly changes: the kernel frees what a removed namespace held only a while after. At most 3 s."""
    end = time.monotonic() + _PATIENCE_S
    before = _read()
    while True:
        time.sleep(_STEP_S)
        now = _read()
        if abs(now - before) < _STEADY_MIB or time.monotonic() > end:
            return now
        before = now


def _read() -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return sum(int(lines[name].split()[0]) for name in _SHARES) / 1024
