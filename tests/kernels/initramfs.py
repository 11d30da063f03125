"""The first files of a kernel that has no disk: an archive that it unpacks into memory (cpio, format newc).

Documentation/driver-api/early-userspace/buffer-format.rst has the format.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

_TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class Initramfs:
    _archive: bytearray = field(default_factory=bytearray)
    _number: int = 0

    def folders(self, names: Iterable[str]) -> None:
        for name in names:
            self._add(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, content: bytes, *, is_program: bool = False) -> None:
        self._add(name, stat.S_IFREG | (0o755 if is_program else 0o644), content)

    def write(self, path: Path) -> None:
        path.write_bytes(bytes(self._archive) + _entry(0, _TRAILER, 0, b""))

    def _add(self, name: str, kind: int, content: bytes) -> None:
        self._number += 1
        self._archive += _entry(self._number, name, kind, content)


def _entry(number: int, name: str, kind: int, content: bytes) -> bytes:
    path = name.encode() + b"\0"
    # inode, mode, owner, group, links, time, size, device, device of a node, length of the name, checksum
    fields = (number, kind, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(path), 0)
    return _padded(b"070701" + b"".join(b"%08X" % value for value in fields) + path) + _padded(content)


def _padded(piece: bytes) -> bytes:
    return piece + bytes(-len(piece) % 4)
