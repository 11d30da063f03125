"""Where a socket is opened: in a network namespace, and in a cgroup, which is what mode ebpf knows its clients by.

Both are properties of the thread that opens it. So whoever measures or answers in many places is one process with a
thread for each, of which one is awake at a time: processes of their own would differ in how their memory happens to be
laid out, and that alone moves times by per cents.
"""

import os
import threading
from pathlib import Path

import msgspec

from bench.lab import Host
from bench.namespace import setns


class Place(msgspec.Struct, frozen=True):
    """Sent to the process that is to be there."""

    namespace: str
    """The path of the network namespace."""
    cgroup: str | None
    """The folder of a threaded cgroup; None leaves the process's."""

    def enter(self) -> None:
        """For good, and the calling thread alone. Raises OSError."""
        with Path(self.namespace).open("rb") as namespace:
            setns(namespace)
        if self.cgroup is not None:
            Path(self.cgroup, "cgroup.threads").write_text(str(threading.get_native_id()))


def place_of(host: Host) -> Place:
    return Place(str(host.namespace.path), str(host.cgroup.path) if host.cgroup else None)


def processors() -> tuple[int, int]:
    """Where the measuring client runs, and where who answers it: two CPUs, where there are two."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1], allowed[0]


def where() -> str:
    """The same, in words."""
    client, server = processors()
    return f"Client on CPU {client}, server on CPU {server}" if client != server else "Client and server on one CPU"
