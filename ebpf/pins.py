"""What is pinned in the BPF file system: maps, programs and links, by the network namespace that they forward for.

    /sys/fs/bpf/pyproxy/NAMESPACE/maps-DIGEST/services …       DIGEST tells layouts of maps from each other
                                 /programs-DIGEST/connect4 …   and here versions of the programs
                                 /links/connect4 …
                                 /devices/7-ingress …          by the index of the device

A node has one network namespace, so there is one folder; labs on one machine have one each.
"""

import ctypes
import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from ebpf import network_namespace

FILE_SYSTEM = Path("/sys/fs/bpf")
_MAGIC = 0xCAFE4A11  # BPF_FS_MAGIC
_LIBC = ctypes.CDLL(None, use_errno=True)


def folder() -> Path:
    """Of this network namespace. Raises OSError."""
    return FILE_SYSTEM / "pyproxy" / str(network_namespace.cookie())


def is_mounted() -> bool:
    room = ctypes.create_string_buffer(256)  # struct statfs, whose first field is a long in every architecture
    if _LIBC.statfs(os.fsencode(FILE_SYSTEM), room) != 0:
        return False
    return int.from_bytes(room.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder) == _MAGIC


def mount() -> None:
    """The BPF file system, if it is not there. Raises OSError."""
    if is_mounted():
        return
    FILE_SYSTEM.mkdir(exist_ok=True)
    if _LIBC.mount(b"bpf", os.fsencode(FILE_SYSTEM), b"bpf", 0, b"mode=0700") != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(FILE_SYSTEM))


def remove(path: Path) -> bool:
    """All that is pinned under it; whether there was anything. Links end, maps and programs go with their last user.

    Raises OSError.
    """
    if not path.is_dir():
        return False
    shutil.rmtree(path)
    try:
        path.parent.rmdir()
    except OSError:
        pass  # others are left in it
    return True


def digest(*parts: bytes) -> str:
    """A short name for all of them."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()[:12]


def others(folder: Path, prefix: str, current: str) -> Iterable[Path]:
    """Folders of other versions beside the current one."""
    return sorted(path for path in folder.glob(f"{prefix}-*") if path.name != f"{prefix}-{current}")
