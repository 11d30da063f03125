"""User-mode Linux: a kernel that is a program, Debian's package user-mode-linux. It boots in two seconds.

Processing costs what it costs outside, a system call two hundred times that: fit for right and wrong, and for comparing
modes with each other inside it, not for figures.
"""

import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

PROGRAM = "linux.uml"
TIMED_OUT, DIED = 124, 125
"""Exit statuses: of timeout(1), and of a kernel that ended without telling any."""
_HERE = Path(__file__).parent
_CHECKOUT = _HERE.parents[1]
_MODULES = ("ip_vs", "dummy", "veth", "bridge", "sctp")
"""Those that are looked for in /proc before they are used."""
_PATIENCE_S = 60  # with what tests wait for: to start the proxy may take ten seconds here
_LAST_LINES = 60  # what a kernel dies of stands above its long trace


class NoKernel(Exception):
    """It can't be run here. The message is one sentence for the user."""


class Uml:
    def __init__(self, memory: str = "3G") -> None:
        """Raises NoKernel."""
        self._memory = memory
        if shutil.which(PROGRAM) is None or shutil.which("insmod", path="/usr/sbin:/sbin") is None:
            raise NoKernel("there is no user-mode Linux here; install the Debian packages user-mode-linux and kmod")
        if os.geteuid() != 0:
            raise NoKernel("the guest is root on this machine's own files, so that takes root; run it with sudo")

    def run(self, command: Sequence[str], timeout: float, bring: Sequence[Path] = ()) -> int:
        """Its exit status, or one of those above. Output goes to ours as it comes.

        ``bring``: absolute paths of the guest that are put to the same place here, if they are there in the end.
        """
        # Not in /tmp, over which the guest has its own; sockets and memory of the kernel are in there, too.
        with tempfile.TemporaryDirectory(prefix="pyproxy-guest-", dir="/var/tmp") as scratch:
            folder = Path(scratch)
            _furnish(folder, command, bring)
            status = self._boot(folder, timeout)
            for path in bring:
                if (brought := folder / "bring" / path.relative_to("/")).exists():
                    _put(brought, path)
        return status

    def _boot(self, folder: Path, timeout: float) -> int:
        with (folder / "console").open("wb") as console:
            options = [f"mem={self._memory}", "rootfstype=hostfs", "rootflags=/", "rw", "quiet", "panic=-1"]
            options += [f"init={folder}/guest.sh", f"PYPROXY_GUEST={folder}", f"uml_dir={folder}", "umid=guest"]
            # The kernel's own words go to the first terminal, the command's to the second.
            terminals = ["con=null", f"con0=null,fd:{console.fileno()}", "con1=null,fd:1"]
            process = subprocess.Popen(
                [PROGRAM, *options, *terminals],
                stdin=subprocess.DEVNULL,
                stderr=console,
                pass_fds=[console.fileno()],
                process_group=0,  # Ctrl-C must reach only us, who clean up
            )
            try:
                process.wait(timeout)
            except subprocess.TimeoutExpired:
                print(f"the guest took more than {timeout:g} s and was ended", flush=True)
                return TIMED_OUT
            finally:
                _end(process)
        if (told := folder / "status").exists():
            return int(told.read_text())
        said = (folder / "console").read_text(errors="replace").splitlines()
        print("\n".join(["the guest died; its console ends:", *said[-_LAST_LINES:]]), flush=True)
        return DIED


def _furnish(folder: Path, command: Sequence[str], bring: Sequence[Path]) -> None:
    """All that the guest finds in /run/guest."""
    for script in ("guest.sh", "inside.sh"):
        shutil.copy2(_HERE / script, folder / script)
        (folder / script).chmod(0o755)
    path = f"{_CHECKOUT}/.venv/bin:$PATH"
    lines = [f"cd {shlex.quote(str(_CHECKOUT))}", f"export PYPROXY_PATIENCE={_PATIENCE_S} PATH={path}"]
    (folder / "command.sh").write_text("\n".join([*lines, f"exec {shlex.join(command)}", ""]))
    (folder / "modules").write_text(" ".join(_MODULES))
    (folder / "wanted").write_text("".join(f"{path}\n" for path in bring))


def _put(brought: Path, place: Path) -> None:
    if brought.is_dir():
        shutil.copytree(brought, place, symlinks=True, dirs_exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(brought, place)


def _end(process: subprocess.Popen[bytes]) -> None:
    """With the processes of the guest, which are processes here as well."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended by itself
    process.wait()
