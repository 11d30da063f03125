"""What the programs need of this machine, and which of it is missing."""

import errno
import os
import struct
from pathlib import Path

from ebpf import cgroup, network_namespace, pins, syscall
from ebpf.compiler import interpreter
from ebpf.hook import SOCKET
from pyproxy.kernel import capability

_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF")
_SET_RETVAL = 187  # BPF_FUNC_set_retval


def missing() -> str | None:
    """One sentence, None if nothing is."""
    if interpreter() is None:
        return "the Python package of BCC is not installed (Debian package python3-bpfcc)"
    if not Path("/usr/include/linux/bpf.h").exists():
        return "the kernel's headers for user space are not installed (Debian package linux-libc-dev)"
    if lacking := capability.lacking(_CAPABILITIES):
        return f"it takes the capability {' and '.join(lacking)} (run as root)"
    root = cgroup.root()
    if root is None:
        return "cgroup v2 is not mounted"
    if cgroup.is_own(root):
        return f"the cgroup at {root} is this container's own: mount the host's there"
    if not pins.is_mounted() and capability.lacking(["CAP_SYS_ADMIN"]):
        return f"the BPF file system is not mounted at {pins.FILE_SYSTEM}, and mounting it takes CAP_SYS_ADMIN"
    try:
        network_namespace.cookie()
        os.close(syscall.create_map("pyproxy_trial", syscall.MapSpec(syscall.HASH, 4, 4, 1)))
        return _lacking_helper()
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return "this kernel has no bpf(2)"
        return f"this kernel does not take what is needed of eBPF ({error.strerror})"


def _lacking_helper() -> str | None:
    """A program that refuses a connection: call bpf_set_retval(-1), return 0."""
    instructions = [(0xB7, 1, -1), (0x85, 0, _SET_RETVAL), (0xB7, 0, 0), (0x95, 0, 0)]
    code = b"".join(struct.pack("=BBhi", kind, register, 0, value) for kind, register, value in instructions)
    hook = SOCKET["connect4"]
    try:
        os.close(syscall.load_program(hook.kind, hook.attach, code, "pyproxy_trial"))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return "this kernel can't refuse connections by eBPF (bpf_set_retval, Linux 5.18)"
    return None
