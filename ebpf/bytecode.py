"""Programs as instructions that are bound to no maps yet. Compiling takes seconds where others are at work, too, or the
kernel is slow; so what comes of it is kept in a file, and a node compiles each version once.

The layout of instructions is that of linux/bpf.h, struct bpf_insn.
"""

import base64
import json
import os
import struct
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

CACHE = Path("/var/cache/pyproxy")
_INSTRUCTION = struct.Struct("=BBhi")  # code, registers, offset, immediate
_LOAD_64, _OF_MAP = 0x18, 1  # BPF_LD | BPF_IMM | BPF_DW, BPF_PSEUDO_MAP_FD


class Bytecode(NamedTuple):
    code: bytes
    maps: dict[int, str]
    """The maps that instructions load, by the offsets of these in bytes."""

    @classmethod
    def of(cls, code: bytes, maps: Mapping[int, str]) -> Self:
        """``maps``: names by the file descriptors that instructions load."""
        found = {}
        for offset in range(0, len(code), _INSTRUCTION.size):
            operation, registers, _, handle = _INSTRUCTION.unpack_from(code, offset)
            source = registers >> 4 if sys.byteorder == "little" else registers & 15
            if (operation, source) == (_LOAD_64, _OF_MAP):
                found[offset] = maps[handle]
        return cls(code, found)

    def bound(self, maps: Mapping[str, int]) -> bytes:
        """The instructions, with these file descriptors."""
        code = bytearray(self.code)
        for offset, name in self.maps.items():
            operation, registers, gap, _ = _INSTRUCTION.unpack_from(code, offset)
            _INSTRUCTION.pack_into(code, offset, operation, registers, gap, maps[name])
        return bytes(code)


def dumped(programs: Mapping[str, Bytecode]) -> str:
    return json.dumps({name: [base64.b64encode(one.code).decode(), one.maps] for name, one in programs.items()})


def read(text: str) -> dict[str, Bytecode]:
    """Raises ValueError."""
    try:
        return {
            name: Bytecode(base64.b64decode(code), {int(offset): of_map for offset, of_map in maps.items()})
            for name, (code, maps) in json.loads(text).items()
        }
    except (AttributeError, TypeError) as error:
        raise ValueError(f"no programs: {error}") from error


def kept(version: str) -> dict[str, Bytecode]:
    """The programs of that version; empty if they are not kept, or somebody else may have written them."""
    try:
        with _file(version).open() as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return {}
            return read(file.read())
    except (OSError, ValueError):
        return {}


def keep(version: str, programs: Mapping[str, Bytecode]) -> None:
    """In place of other versions; where nothing can be written, as in a container, the next one compiles again."""
    place = _file(version)
    staging = place.with_suffix(f".{os.getpid()}")
    with suppress(OSError):
        CACHE.mkdir(mode=0o700, parents=True, exist_ok=True)
        staging.write_text(dumped(programs))
        staging.chmod(0o600)
        staging.rename(place)
        for other in CACHE.glob("programs-*.json"):
            if other != place:
                other.unlink()


def _file(version: str) -> Path:
    return CACHE / f"programs-{version}-{os.uname().machine}.json"
