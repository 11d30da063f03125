"""What a process has of labs: so that a test can tell that nothing is left of those it made."""

import os
from pathlib import Path

from pyroute2 import netns

from bench.lab import PREFIX
from ebpf import cgroup


def traces(pid: int | None = None) -> set[str]:
    """Namespaces, cgroups and command lines of the labs that ``pid`` has made, by default this process: others of its
    tests may have some that last longer, so compare with what there was before."""
    name = f"{PREFIX}{pid or os.getpid()}-"
    found = {one for one in netns.listnetns() if one.startswith(name)}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            text = path.read_text(errors="replace")
        except OSError:
            continue
        if name in text:
            found.add(text)
    return found | {str(path) for path in (cgroup.root() or Path("/nowhere")).rglob(f"{name}*")}
