"""Compiles programs with BCC and loads them: `python -m ebpf.compiler MAPS PROGRAMS`, two folders of pins.

In a process of its own, which ends as soon as the programs are pinned: BCC brings a compiler along, which takes 60 MiB
that the proxy would never use again.

BCC would load them itself, too, but it opens pinned maps by their ids, which takes CAP_SYS_ADMIN.
"""

import importlib.util
import os
import re
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
_INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn
_LOAD_64_BITS, _OF_A_MAP = 0x18, 1  # BPF_LD | BPF_DW | BPF_IMM, BPF_PSEUDO_MAP_FD
_DEBIAN, _OF_DEBIAN = "/usr/bin/python3", Path("/usr/lib/python3/dist-packages/bcc")
_INCLUDE = ("/usr/include", f"/usr/include/{os.uname().machine}-linux-gnu")


def interpreter() -> str | None:
    """A Python that has BCC: this one, or Debian's, for which its package is; None if neither has."""
    if importlib.util.find_spec("bcc") is not None:
        return sys.executable
    return _DEBIAN if _OF_DEBIAN.exists() else None


def main(maps: Path, programs: Path) -> None:
    """The maps are there, the programs are put there. Ends with 1 and the reason on standard error."""
    os.environ["BCC_KERNEL_SOURCE"] = str(HERE)  # read as BCC compiles: see include/linux/kconfig.h
    from bcc import BPF

    from ebpf import syscall
    from ebpf.hook import HOOKS
    from ebpf.layout import MAPS

    flags = [f"-I{folder}" for folder in _INCLUDE]
    sources = sorted({hook.source for hook in HOOKS.values()})
    # All at once: most of the time goes into what they have in common.
    bpf = BPF(text=flattened(*sources), cflags=flags)
    ours = {bpf[name].map_fd: syscall.pinned(maps / name) for name in MAPS}
    for name, hook in HOOKS.items():
        code = with_maps(bpf.dump_func(name.encode()), ours)
        try:
            program = syscall.load_program(hook.kind, hook.attach, code, name)
        except OSError as error:
            log = syscall.verifier_log(hook.kind, hook.attach, code).splitlines()
            sys.exit(f"{name}: error: {error.strerror}: {' / '.join(log[-4:])}")
        syscall.pin(program, programs / name)


def with_maps(code: bytes, others: Mapping[int, int]) -> bytes:
    """Instructions with other maps in them: file descriptors by those that they replace."""
    changed = bytearray(code)
    for at in range(0, len(code), _INSTRUCTION.size):
        operation, registers, offset, value = _INSTRUCTION.unpack_from(code, at)
        source = registers >> 4 if sys.byteorder == "little" else registers & 15
        if (operation, source) == (_LOAD_64_BITS, _OF_A_MAP):
            _INSTRUCTION.pack_into(changed, at, operation, registers, offset, others[value])
    return bytes(changed)


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
    main(*map(Path, sys.argv[1:3]))
