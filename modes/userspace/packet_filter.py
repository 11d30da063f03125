"""Who may come at all, as a classic socket filter: packets of others never reach the socket, as if lost on the way.

A listening socket's filter sees the SYN (tcp_v4_rcv calls tcp_filter), so no connection is ever made. This is the
filter of linux/filter.h that tcpdump uses; it takes neither a capability nor the bpf system call.
"""

import ctypes
import errno
import socket
import struct
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network

_SO_ATTACH_FILTER, _SO_DETACH_FILTER = 26, 27
_LOAD_WORD, _AND, _JUMP_IF_EQUAL, _RETURN = (
    0x20,
    0x54,
    0x15,
    0x06,
)  # BPF_LD|W|ABS, BPF_ALU|AND|K, BPF_JMP|JEQ|K, BPF_RET
_NETWORK_HEADER = 0xFFF00000  # SKF_NET_OFF
_SOURCE = {4: 12, 6: 8}  # where it stands in the header
_WHOLE_PACKET = 0xFFFFFFFF
_LONGEST = 4096  # BPF_MAXINSNS

Network = IPv4Network | IPv6Network
Instruction = tuple[int, int, int, int]


class TooLong(Exception):
    """More networks than a filter holds, or than the kernel has memory for (net.core.optmem_max: 20 KiB before Linux
    6.8, some 200 networks of IPv4)."""


def program(networks: Iterable[Network]) -> list[Instruction]:
    """Lets packets pass whose source is in one of them. Raises TooLong."""
    code: list[Instruction] = []
    for network in networks:
        start, length = _SOURCE[network.version], network.max_prefixlen // 8
        masks = struct.unpack(f"!{length // 4}I", network.netmask.packed)
        words = struct.unpack(f"!{length // 4}I", network.network_address.packed)
        both = enumerate(zip(words, masks, strict=True))
        steps = [(start + 4 * index, word, mask) for index, (word, mask) in both if mask]
        for index, (offset, word, mask) in enumerate(steps):
            rest = 3 * (len(steps) - index - 1) + 1  # instructions of this network that a mismatch jumps over
            code.append((_LOAD_WORD, 0, 0, _NETWORK_HEADER + offset))
            code.append((_AND, 0, 0, mask))
            code.append((_JUMP_IF_EQUAL, 0, rest, word))
        code.append((_RETURN, 0, 0, _WHOLE_PACKET))
    code.append((_RETURN, 0, 0, 0))
    if len(code) > _LONGEST:
        raise TooLong
    return code


def attach(listener: socket.socket, code: list[Instruction]) -> None:
    """In place of the one before. Raises TooLong, OSError."""
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in code)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    described = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    try:
        listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise TooLong from error
        raise


def detach(one: socket.socket) -> None:
    """An accepted socket inherits its listener's."""
    try:
        one.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)
    except FileNotFoundError:
        pass  # there is none
