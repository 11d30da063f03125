"""Packets made and read by hand, with all their checksums: what programs get and leave is compared in these terms."""

import socket
import struct
from dataclasses import dataclass, replace

MACS = bytes.fromhex("020000000002020000000001")
FIN, SYN, RST, ACK = 1, 2, 4, 16
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_ETHER_TYPE = {4: 0x0800, 6: 0x86DD}


@dataclass(frozen=True, slots=True)
class Packet:
    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int = TCP
    flags: int = SYN
    seq: int = 1000
    ack: int = 0
    payload: bytes = b""
    checksum: bool = True
    """False: UDP without one."""
    options: bytes = b""
    """Of IPv4, in fours."""

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4

    def turned(self, **fields: object) -> "Packet":
        """What the other end sends."""
        back = replace(
            self,
            source=self.destination,
            source_port=self.destination_port,
            destination=self.source,
            destination_port=self.source_port,
        )
        return replace(back, **fields)  # type: ignore[arg-type]

    def l4(self) -> bytes:
        ports = struct.pack("!HH", self.source_port, self.destination_port)
        if self.protocol == UDP:
            data = ports + struct.pack("!HH", 8 + len(self.payload), 0) + self.payload
            at = 6
        else:
            data = ports + struct.pack("!IIBBHHH", self.seq, self.ack, 5 << 4, self.flags, 1024, 0, 0) + self.payload
            at = 16
        if not self.checksum:
            return data
        return _with_sum(data, at, _pseudo(self.source, self.destination, self.protocol, len(data)))

    def ip(self) -> bytes:
        return ip(self.source, self.destination, self.protocol, self.l4(), options=self.options)

    def bytes(self) -> bytes:
        return frame(self.ip())


def frame(packet: bytes) -> bytes:
    return MACS + struct.pack("!H", _ETHER_TYPE[packet[0] >> 4]) + packet


def ip(
    source: str, destination: str, protocol: int, data: bytes, *, fragment: int = 0, id: int = 7, options: bytes = b""
) -> bytes:
    """``fragment``: the field of IPv4, or that of IPv6's fragment header, which is there if it is not 0."""
    if ":" in source:
        if fragment:
            data, protocol = struct.pack("!BBHI", protocol, 0, fragment, id) + data, 44
        head = struct.pack("!IHBB", 6 << 28, len(data), protocol, 61)
        return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination) + data
    length = 20 + len(options)
    head = struct.pack("!BBHHHBBH", 4 << 4 | length // 4, 0, length + len(data), id, fragment, 61, protocol, 0)
    head += socket.inet_aton(source) + socket.inet_aton(destination) + options
    return _with_sum(head, 10, 0) + data


def icmp_error(source: str, destination: str, about: bytes) -> bytes:
    """A frame: packet too big, as each version of IP says it."""
    if ":" in source:
        data = struct.pack("!BBHI", 2, 0, 0, 1280) + about[:200]
        data = _with_sum(data, 2, _pseudo(source, destination, 58, len(data)))
        return frame(ip(source, destination, 58, data))
    data = _with_sum(struct.pack("!BBHHH", 3, 4, 0, 0, 1280) + about[:28], 2, 0)
    return frame(ip(source, destination, 1, data))


@dataclass(frozen=True, slots=True)
class Error:
    """What an error of ICMP says."""

    source: str
    destination: str
    about: Packet


def read(data: bytes) -> Packet:
    """A frame whose checksums are all right, or AssertionError."""
    source, destination, protocol, options, body = _read_ip(data[14:])
    source_port, destination_port = struct.unpack_from("!HH", body)
    some = (source, source_port, destination, destination_port, protocol)
    if protocol == UDP:
        has_sum = body[6:8] != b"\0\0"
        assert not has_sum or _is_right(body, _pseudo(source, destination, protocol, len(body)))
        return Packet(*some, flags=SYN, payload=body[8:], checksum=has_sum, options=options)
    assert _is_right(body, _pseudo(source, destination, protocol, len(body)))
    seq, ack, _, flags = struct.unpack_from("!IIBB", body, 4)
    return Packet(*some, flags=flags, seq=seq, ack=ack, payload=body[20:], options=options)


def read_error(data: bytes) -> Error:
    """As `read`. What it is about has lost its end, and so has no checksum to look at."""
    source, destination, protocol, _, body = _read_ip(data[14:])
    assert _is_right(body, _pseudo(source, destination, protocol, len(body)) if ":" in source else 0)
    inner_source, inner_destination, inner_protocol, _, inner = _read_ip(body[8:])
    source_port, destination_port = struct.unpack_from("!HH", inner)
    return Error(
        source, destination, Packet(inner_source, source_port, inner_destination, destination_port, inner_protocol)
    )


def _read_ip(packet: bytes) -> tuple[str, str, int, bytes, bytes]:
    """Source, destination, protocol, options and what follows."""
    if packet[0] >> 4 == 6:
        source, destination = (socket.inet_ntop(socket.AF_INET6, packet[i : i + 16]) for i in (8, 24))
        return source, destination, packet[6], b"", packet[40:]
    length = 4 * (packet[0] & 15)
    assert _is_right(packet[:length], 0)
    source, destination = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    return source, destination, packet[9], packet[20:length], packet[length:]


def _pseudo(source: str, destination: str, protocol: int, length: int) -> int:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    return _sum(socket.inet_pton(family, source) + socket.inet_pton(family, destination)) + protocol + length


def _with_sum(data: bytes, at: int, start: int) -> bytes:
    total = ~_fold(_sum(data) + start) & 0xFFFF or 0xFFFF
    return data[:at] + struct.pack("!H", total) + data[at + 2 :]


def _is_right(data: bytes, start: int) -> bool:
    return _fold(_sum(data) + start) == 0xFFFF


def _sum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def _fold(total: int) -> int:
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total
