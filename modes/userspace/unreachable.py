"""ICMP destination unreachable, for a client whose endpoint was answered for so: RFC 792 and RFC 4443, section 3.1."""

import errno
import socket
import struct

from modes.userspace.protocol import Place

_IPV4 = struct.Struct("!BBHHHBBH4s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_UDP = struct.Struct("!HHHH")
_TYPES = {socket.AF_INET: 3, socket.AF_INET6: 1}
CODES = {
    errno.ECONNREFUSED: {socket.AF_INET: 3, socket.AF_INET6: 4},  # the port
    errno.EHOSTUNREACH: {socket.AF_INET: 13, socket.AF_INET6: 1},  # prohibited, as a firewall says it
    errno.EACCES: {socket.AF_INET: 13, socket.AF_INET6: 1},
    errno.ENETUNREACH: {socket.AF_INET: 9, socket.AF_INET6: 1},  # the same of a network
    errno.ENOPROTOOPT: {socket.AF_INET: 2, socket.AF_INET6: 4},  # the protocol
}
"""By what the kernel makes of them for a connected socket that asks for no more (icmp_err_convert, icmpv6_err_convert):
what the client would have been told without this node in between."""


class Unreachable:
    """Takes CAP_NET_RAW when it is made; without it, nobody is told, and clients wait until they time out."""

    def __init__(self) -> None:
        self.is_barred = False
        """For want of it."""
        self._sockets: dict[int, socket.socket] = {}
        for family, protocol in ((socket.AF_INET, socket.IPPROTO_ICMP), (socket.AF_INET6, socket.IPPROTO_ICMPV6)):
            try:
                self._sockets[family] = socket.socket(family, socket.SOCK_RAW, protocol)
                self._sockets[family].setblocking(False)
                # Nothing is read here.
                self._sockets[family].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            except OSError as error:
                self.is_barred |= isinstance(error, PermissionError)

    def tell(self, place: Place, client: tuple[str, int], error: int) -> None:
        """What became of what it sent there. ``error``: of CODES."""
        _, address, port = place
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        if family not in self._sockets:
            return
        source, target = (socket.inet_pton(family, one) for one in (client[0], address))
        datagram = _UDP.pack(client[1], port, _UDP.size, 0)
        if family == socket.AF_INET:
            header = _IPV4.pack(0x45, 0, _IPV4.size + _UDP.size, 0, 0, 64, socket.IPPROTO_UDP, 0, source, target)
        else:
            header = _IPV6.pack(6 << 28, _UDP.size, socket.IPPROTO_UDP, 64, source, target)
        kind, code = _TYPES[family], CODES[error][family]
        quoted = header + datagram
        # The kernel fills in the checksum in IPv6 (RFC 3542, section 3.1).
        checksum = _checksum(struct.pack("!BBHI", kind, code, 0, 0) + quoted) if family == socket.AF_INET else 0
        try:
            self._sockets[family].sendto(struct.pack("!BBHI", kind, code, checksum, 0) + quoted, (client[0], 0))
        except OSError:
            pass  # an error that is lost is like any that is


def _checksum(data: bytes) -> int:
    """RFC 1071."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
