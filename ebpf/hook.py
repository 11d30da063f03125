"""Where each program belongs."""

from dataclasses import dataclass

SCHED_CLS, CGROUP_SOCK_ADDR = 3, 18  # BPF_PROG_TYPE_*


@dataclass(frozen=True, slots=True)
class Hook:
    source: str
    """The file that holds the program."""
    kind: int
    """BPF_PROG_TYPE_*."""
    attach: int
    """BPF_CGROUP_*, the kernel's enum bpf_attach_type; of no meaning for packet programs."""


_ATTACH = (
    *(("connect4", 10), ("connect6", 11), ("sendmsg4", 14), ("sendmsg6", 15)),
    *(("recvmsg4", 19), ("recvmsg6", 20), ("getpeername4", 29), ("getpeername6", 30)),
)
SOCKET = {name: Hook("socket.c", CGROUP_SOCK_ADDR, attach) for name, attach in _ATTACH}
"""By the names of the programs."""
PACKET = {name: Hook("packet.c", SCHED_CLS, 0) for name in ("ingress", "egress")}
HOOKS = SOCKET | PACKET
