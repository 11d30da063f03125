"""Compiles programs with BCC: `python -m ebpf.compiler` prints what comes of it.

In a process of its own, which ends then: BCC brings a compiler along, which takes 60 MiB that the proxy would never use
again. It would load them, too, but it opens pinned maps by their ids, which takes CAP_SYS_ADMIN.
"""

import importlib.util
import os
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent
_DEBIAN, _OF_DEBIAN = "/usr/bin/python3", Path("/usr/lib/python3/dist-packages/bcc")
_INCLUDE = ("/usr/include", f"/usr/include/{os.uname().machine}-linux-gnu")


def interpreter() -> str | None:
    """A Python that has BCC: this one, or Debian's, for which its package is; None if neither has."""
    if importlib.util.find_spec("bcc") is not None:
        return sys.executable
    return _DEBIAN if _OF_DEBIAN.exists() else None


def main() -> None:
    """Ends with 1 and the reason on standard error."""
    os.environ["BCC_KERNEL_SOURCE"] = str(HERE)  # read as BCC compiles: see include/linux/kconfig.h
    from bcc import BPF
    from bcc.libbcc import lib

    from ebpf.bytecode import Bytecode, dumped
    from ebpf.hook import HOOKS
    from ebpf.layout import MAPS

    flags = [f"-I{folder}" for folder in _INCLUDE]
    sources = sorted({hook.source for hook in HOOKS.values()})
    # All at once: most of the time goes into what they have in common.
    bpf = BPF(text=flattened(*sources), cflags=flags)
    handles = {lib.bpf_table_fd(bpf.module, name.encode()): name for name in MAPS}
    print(dumped({name: Bytecode.of(bpf.dump_func(name.encode()), handles) for name in HOOKS}))


def flattened(*sources: str) -> str:
    """The files with ours that they include, each once: BCC sees maps and their uses in the main file alone."""
    seen: set[str] = set()

    def read(name: str) -> str:
        if name in seen:
            return ""
        seen.add(name)
        text = (HERE / name).read_text().replace("#pragma once\n", "")
        return re.sub(r'^#include "(.+)"$', lambda match: read(match[1]), text, flags=re.MULTILINE)

    return "".join(map(read, sources))


if __name__ == "__main__":
    main()
