"""What of root's powers this thread has: capabilities(7), by their names."""

from collections.abc import Iterable
from pathlib import Path

_BITS = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_STATUS = Path("/proc/thread-self/status")
_OF_BPF = frozenset({"CAP_BPF", "CAP_PERFMON"})


def lacking(wanted: Iterable[str]) -> list[str]:
    """Those of ``wanted`` that are not in effect, in their order."""
    status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    effective = int(status["CapEff"], 16)
    has = {name for name, bit in _BITS.items() if effective >> bit & 1}
    if "CAP_SYS_ADMIN" in has:
        has |= _OF_BPF  # which were split off it in Linux 5.8
    return [name for name in wanted if name not in has]
