"""A file of bounded size, read whole. What its name leads to may be a pipe nobody writes to, or have no end."""

import errno
import os
import stat
from pathlib import Path


def read_text(path: Path, most: int) -> bytes:
    """At most ``most`` bytes, and one more if there are more. Raises OSError, also for what is no regular file."""
    with open(path, "rb", opener=_open_at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a file")
        return file.read(most + 1)


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)
