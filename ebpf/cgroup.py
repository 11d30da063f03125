"""The cgroup whose sockets are served: by default the root, with every process of the host in it."""

from pathlib import Path

_MOUNTS = Path("/proc/self/mounts")


def root() -> Path | None:
    """Where cgroup v2 is mounted, None if it is not."""
    for line in _MOUNTS.read_text().splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(where.replace("\\040", " "))
    return None
