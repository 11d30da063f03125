"""One network namespace: made, entered by a thread, used by processes, removed."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pyroute2 import IPRoute, netns

from bench.interrupt import held

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_NAMED = Path("/run/netns")


class Namespace:
    """Named as ip-netns(8) names them, so that a stopped test can be looked into."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = _NAMED / name
        self._processes: list[subprocess.Popen[bytes]] = []

    def create(self) -> None:
        """Once it is certain that `remove` will be called, as an interrupt may come in the midst of this."""
        netns.create(self.name)
        with self.links() as links:
            links.link("set", index=links.link_lookup(ifname="lo")[0], state="up")

    @contextmanager
    def entered(self) -> Iterator[None]:
        """The calling thread, and no other, lives in the namespace: sockets it opens stay there."""
        with Path("/proc/thread-self/ns/net").open("rb") as home, self.path.open("rb") as inside:
            setns(inside)
            try:
                yield
            finally:
                setns(home)

    @contextmanager
    def links(self) -> Iterator[Any]:
        """A pyroute2 IPRoute in the namespace."""
        with held(), self.entered(), IPRoute() as links:
            yield links

    def sysctl(self, **values: str | int) -> None:
        """Set ``net.*`` sysctls, with ``__`` for the dots: ``ipv4__ip_forward=1``."""
        with self.entered():
            for name, value in values.items():
                Path("/proc/sys/net", *name.split("__")).write_text(str(value))

    def run(self, command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self._inside(command), check=True, capture_output=True, **options)

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """A process that ends with the namespace at the latest. nsenter becomes ``command``, so the pid is its own.

        In a process group of its own, so that Ctrl-C reaches only the one who cleans up. ``options`` of Popen.
        """
        process = subprocess.Popen(self._inside(command), stdin=subprocess.DEVNULL, process_group=0, **options)
        self._processes = [*filter(_needs_care, self._processes), process]
        return process

    def remove(self) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for pipe in _pipes(process):
                pipe.close()
        if self.path.exists():
            self._end_strangers()
            netns.remove(self.name)

    def _end_strangers(self) -> None:
        """Processes that outlive who started them live on here: they would keep the namespace."""
        inside = self.path.stat().st_ino
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "ns/net").stat().st_ino == inside:
                    os.kill(int(folder.name), signal.SIGKILL)
            except OSError:
                continue  # it has just ended

    def _inside(self, command: Sequence[str | Path]) -> list[str]:
        return ["/usr/bin/nsenter", f"--net={self.path}", "--", *map(str, command)]


def sweep(prefix: str) -> None:
    """Remove namespaces that a run which was killed left behind: named ``prefix``, a process id that is gone, ``-``."""
    for name in netns.listnetns():
        pid = name.removeprefix(prefix).partition("-")[0]
        if name.startswith(prefix) and pid.isdigit() and not Path("/proc", pid).exists():
            netns.remove(name)


def _needs_care(process: subprocess.Popen[bytes]) -> bool:
    """Nobody has seen its end, or closed what it wrote to."""
    return process.returncode is None or not all(pipe.closed for pipe in _pipes(process))


def _pipes(process: subprocess.Popen[bytes]) -> list[IO[bytes]]:
    return [pipe for pipe in (process.stdout, process.stderr) if pipe]


def setns(handle: IO[bytes]) -> None:
    """The calling thread moves there. Raises OSError."""
    if _LIBC.setns(handle.fileno(), _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"setns: {os.strerror(error)}")
