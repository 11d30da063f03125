"""User-mode Linux: a kernel that is a program, Debian's package user-mode-linux. It boots in two seconds.

Processing costs what it costs outside, a system call sixty times that: fit for right and wrong, and for comparing modes
with each other inside it, not for figures. It has IPVS, and no nftables of ip and ip6.
"""

import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.kernels.guest import NoKernel

PROGRAM = "linux.uml"
_MODULES = "/usr/lib/uml/modules/$(uname -r)"


class Uml:
    def __init__(self) -> None:
        """Raises NoKernel."""
        if shutil.which(PROGRAM) is None or shutil.which("insmod", path="/usr/sbin:/sbin") is None:
            raise NoKernel("there is no user-mode Linux here; install the Debian packages user-mode-linux and kmod")

    def command(self, folder: Path, memory: str, words: Sequence[str]) -> list[str]:
        # On one processor of ours: each of its system calls goes from one process here to another and back, which takes
        # twice as long if that wakes an idle processor.
        return [
            *("taskset", "--cpu-list", str(max(os.sched_getaffinity(0)))),
            PROGRAM,
            *(f"mem={memory}", "rootfstype=hostfs", "rootflags=/", "ro", "quiet", "panic=-1"),
            # It hands words that it does not know to the first process, as environment.
            *(f"init={folder}/guest.sh", f"PYPROXY_GUEST={folder}", f"uml_dir={folder}", "umid=guest"),
            # The kernel's own words go to the first terminal, the command's to the second.
            *("con=null", "con0=null,fd:2", "con1=null,fd:1"),
            *words,
        ]

    def settings(self, folder: Path) -> Mapping[str, str]:
        share = f"(-t hostfs -o {shlex.quote(str(folder))} hostfs)"
        return {"modules": _MODULES, "share": share, "terminal": "/dev/tty1"}
