"""Network namespaces, by the cookies that programs know them by."""

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Generator
from pathlib import Path

_SO_NETNS_COOKIE = 71
_CLONE_NEWNET = 0x40000000
_OWN, _NAMED, _OF_PROCESSES = Path("/proc/thread-self/ns/net"), Path("/run/netns"), Path("/proc")
_LIBC = ctypes.CDLL(None, use_errno=True)


def cookie() -> int:
    """Of the calling thread's namespace: a number that no other one has until the next boot. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        return int.from_bytes(any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)


def each() -> Generator[int, None, None]:
    """The cookies of all that have a name or a process, while the calling thread is in it: a thread of its own, then.

    The one that it is in comes first. Raises PermissionError if others may not be entered, which takes CAP_SYS_ADMIN.
    """
    home = os.open(_OWN, os.O_RDONLY)
    has_left = False
    seen = {os.fstat(home).st_ino}
    try:
        yield cookie()
        for path in (*_NAMED.glob("*"), *_OF_PROCESSES.glob("[0-9]*/ns/net")):
            try:
                handle = os.open(path, os.O_RDONLY)
            except OSError:
                continue  # a process that has just ended
            try:
                if os.fstat(handle).st_ino in seen:
                    continue
                seen.add(os.fstat(handle).st_ino)
                if _enter(handle):
                    has_left = True
                    yield cookie()
            finally:
                os.close(handle)
    finally:
        if has_left:
            _enter(home)
        os.close(home)


def _enter(namespace: int) -> bool:
    if _LIBC.setns(namespace, _CLONE_NEWNET) != 0:
        code = ctypes.get_errno()
        if code == errno.EINVAL:
            return False  # a name whose namespace is gone
        raise OSError(code, f"a network namespace can't be entered: {os.strerror(code)}")
    return True
