"""The cgroup whose sockets are served: by default the root, with every process of the host in it."""

import os
from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")


def root() -> Path | None:
    """Where cgroup v2 is mounted, None if it is not."""
    for line in _MOUNTS.read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where.replace("\\040", " "))
    return None


def is_own(group: Path) -> bool:
    """Whether this very process is in it, and it is not the root of a host: so a container sees its own cgroup."""
    return (group / "cgroup.type").exists() and str(os.getpid()) in (group / "cgroup.procs").read_text().split()
