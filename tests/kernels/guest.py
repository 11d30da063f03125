"""A machine that boots another kernel for one command, and is gone when that ends.

It lives on this machine's own file system, read-only, with memory of its own laid over it. The two have one folder in
common, a private one: through it the guest learns what to do, and gives back status and files.
"""

import compileall
import os
import select
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

TIMED_OUT, DIED = 124, 125
"""Exit statuses: of timeout(1), and of a kernel that ended without telling any."""
HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
_MODULES = ("ip_vs", "dummy", "veth", "bridge", "sctp")
"""Those that are looked for in /proc before they are used; the kernel loads all others by itself."""
_ENVIRONMENT = {
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": f"{CHECKOUT}/.venv/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "PYPROXY_PATIENCE": "60",  # with what tests wait for: to start the proxy may take ten seconds there
}
_PACKAGES = ("pyproxy", "modes", "ebpf", "bench", "tests")
"""Compiled beforehand: a guest keeps nothing of it, so that each start of a proxy in there would take it anew."""
_BY_ITSELF = ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child=KILL", "unshare", "--fork"]
"""Starts a machine in a namespace of processes that ends when we do, whatever we die of, and takes all with it that
the machine ever started. Its first process is the second unshare, since to a first one aborting means nothing."""
_LAST_LINES = 60  # what a kernel dies of stands above its long trace


class NoKernel(Exception):
    """It can't be run here. The message is one sentence for the user."""


class Machine(Protocol):
    """A program that is a machine, or a kernel."""

    def command(self, folder: Path, memory: str, words: Sequence[str]) -> list[str]:
        """What starts it, with guest.sh of ``folder`` as its first process and PYPROXY_GUEST=``folder`` around that.
        ``words`` are for the kernel's command line.

        What is written to `terminal` comes out as its standard output; its console goes to standard error or to
        the file ``console`` of ``folder``, which are one.
        """

    def settings(self, folder: Path) -> Mapping[str, str]:
        """Of guest.sh and inside.sh, as shell words.

        ``modules``: the folder of the kernel's modules. ``share``: what mount(8) is told to mount ``folder``.
        ``terminal``: a device.
        """


class Guest:
    def __init__(self, machine: Machine, memory: str = "3G", words: Sequence[str] = ()) -> None:
        """``words``: for the kernel's command line. Raises NoKernel."""
        self._machine = machine
        self._memory = memory
        self._words = words
        if os.geteuid() != 0:
            raise NoKernel("the guest is root on this machine's own files, so that takes root; run it with sudo")

    def run(self, command: Sequence[str], timeout: float, bring: Mapping[Path, Path] | None = None) -> int:
        """Its exit status, or one of those above. Output goes to ours as it comes.

        ``bring``: absolute paths of the guest, and where they are put here if they are there in the end.
        """
        # Not in /tmp, over which the guest has its own; sockets and memory of the kernel are in there, too.
        with tempfile.TemporaryDirectory(prefix="pyproxy-guest-", dir="/var/tmp") as scratch:
            folder = Path(scratch)
            self._furnish(folder, command, bring or {})
            status = self._boot(folder, timeout)
            for number, place in enumerate((bring or {}).values()):
                if (brought := folder / "brought" / str(number)).exists():
                    _put(brought, place)
        return status

    def _furnish(self, folder: Path, command: Sequence[str], bring: Mapping[Path, Path]) -> None:
        """All that the guest finds in the common folder."""
        for script in ("guest.sh", "inside.sh"):
            shutil.copy2(HERE / script, folder / script)
            (folder / script).chmod(0o755)
        settings = self._machine.settings(folder)
        (folder / "settings").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        (folder / "command.sh").write_text(f"cd {shlex.quote(str(CHECKOUT))}\nexec {shlex.join(command)}\n")
        (folder / "environment").write_text("".join(f"{name}={value}\n" for name, value in _ENVIRONMENT.items()))
        (folder / "preload").write_text(" ".join(_MODULES))
        (folder / "wanted").write_text("".join(f"{path}\n" for path in bring))
        (folder / "brought").mkdir()
        for package in _PACKAGES:
            compileall.compile_dir(CHECKOUT / package, quiet=2)

    def _boot(self, folder: Path, timeout: float) -> int:
        with (folder / "console").open("ab") as console:
            command = [*_BY_ITSELF, *self._machine.command(folder, self._memory, self._words)]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=console,
                process_group=0,  # Ctrl-C must reach only us, who clean up
            )
            try:
                _follow(process, timeout)
            except subprocess.TimeoutExpired:
                _say(f"the guest took more than {timeout:g} s and was ended")
                return TIMED_OUT
            finally:
                _end(process)
        if (told := folder / "status").exists():
            return int(told.read_text())
        said = (folder / "console").read_text(errors="replace").splitlines()
        _say("\n".join(["the guest died; its console ends:", *said[-_LAST_LINES:]]))
        return DIED


def _follow(process: subprocess.Popen[bytes], timeout: float) -> None:
    """Pass its output on until it ends. Raises subprocess.TimeoutExpired.

    It is not handed our own standard output, since such machines change what they are handed: a terminal becomes raw,
    a pipe non-blocking, for others who write to it as well.
    """
    assert process.stdout is not None
    until = time.monotonic() + timeout
    while True:
        remaining = max(0.0, until - time.monotonic())
        if not select.select([process.stdout], [], [], remaining)[0]:
            raise subprocess.TimeoutExpired(process.args, timeout)
        if not (piece := os.read(process.stdout.fileno(), 1 << 16)):
            break
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
    process.wait(max(0.0, until - time.monotonic()))


def _end(process: subprocess.Popen[bytes]) -> None:
    """With all that runs in its namespace."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself
    with process:
        assert process.stdout is not None
        process.stdout.read()  # until the last of them has let go of it


def _put(brought: Path, place: Path) -> None:
    if brought.is_dir():
        shutil.copytree(brought, place, symlinks=True, dirs_exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(brought, place)


def _say(message: str) -> None:
    """Apart from what the command says."""
    sys.stdout.flush()
    print(message, file=sys.stderr, flush=True)
