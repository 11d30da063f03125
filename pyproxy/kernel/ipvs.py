"""IPVS, the kernel's load balancer: virtual servers and the real servers behind them, over generic netlink.

Real servers can only be dumped one virtual server at a time, which would be a conversation for each of ten thousand. So
they are read from /proc/net/ip_vs, which holds all of them, with what ipvsadm shows. But where another network
namespace has virtual servers, too, it leaves some out from its second page on (ip_vs_info_seq_next counts all of them,
ip_vs_info_array only one's own): those are asked for one by one. The layouts are those of linux/ip_vs.h and
net/netfilter/ipvs/ip_vs_ctl.c.
"""

import errno
import re
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pyproxy.address import IP, Family
from pyproxy.kernel.error import Lacking, ModeError, as_mode_error
from pyproxy.kernel.netlink import GENERIC, Failure, Message, Netlink, attribute, attributes, nested

_CONTROLLER, _GET_FAMILY, _FAMILY_ID, _FAMILY_NAME = 16, 3, 1, 2  # GENL_ID_CTRL, CTRL_CMD_*, CTRL_ATTR_*
_NEW_SERVICE, _SET_SERVICE, _DELETE_SERVICE, _GET_SERVICE = 1, 2, 3, 4  # IPVS_CMD_*
_NEW_REAL, _SET_REAL, _DELETE_REAL, _GET_REAL, _SET_CONFIG = 5, 6, 7, 8, 12
_SERVICE, _REAL, _TCP, _TCP_FIN, _UDP = 1, 2, 4, 5, 6  # IPVS_CMD_ATTR_*
_AF, _TRANSPORT, _ADDRESS, _PORT, _MARK, _SCHEDULER, _FLAGS, _TIMEOUT, _NETMASK = 1, 2, 3, 4, 5, 6, 7, 8, 9
_REAL_ADDRESS, _REAL_PORT, _METHOD, _WEIGHT, _UPPER, _LOWER = 1, 2, 3, 4, 5, 6  # IPVS_DEST_ATTR_*
_ACTIVE, _INACTIVE, _REAL_AF = 7, 8, 11
_PERSISTENT, _OURS = 0x1, 0x20  # IP_VS_SVC_F_PERSISTENT, IP_VS_SVC_F_SCHED3
_GENERIC_HEADER = struct.Struct("=BBH")  # genlmsghdr
_MASQUERADING, _METHODS = 0, 0x7  # IP_VS_CONN_F_MASQ, IP_VS_CONN_F_FWD_MASK
_EVERYTHING = Path("/proc/net/ip_vs")
_TRANSPORTS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_TRANSPORT_NAMES = {number: name for name, number in _TRANSPORTS.items()}
_FAMILIES = {socket.AF_INET: Family.IPV4, socket.AF_INET6: Family.IPV6}
_AFS = {family: af for af, family in _FAMILIES.items()}
_NETMASKS = {Family.IPV4: b"\xff" * 4, Family.IPV6: struct.pack("=I", 128)}
"""That make a client of each address: a length in IPv6."""
_WITHOUT_IT = (
    "this kernel has no IPVS: load its module with `modprobe ip_vs` (it comes with the package linux-image of Debian, "
    "linux-modules of Ubuntu, kernel-modules of Fedora)"
)
_PLACE = re.compile(r"\[(\S+)\]:([0-9A-F]{4})|([0-9A-F]{8}):([0-9A-F]{4})")


class Key(NamedTuple):
    """What a virtual server is found by: where packets go, or else the mark that they bear."""

    family: Family
    transport: str
    """``tcp``, ``udp`` or ``sctp``; empty with a mark."""
    address: IP | None
    port: int
    mark: int = 0


class Real(NamedTuple):
    """A real server."""

    address: IP
    port: int


@dataclass(frozen=True, slots=True)
class Service:
    """How a virtual server chooses."""

    scheduler: str
    sticky_seconds: int = 0
    """0: each connection by itself."""
    is_ours: bool = True
    """Told by a flag that no scheduler heeds: the third of those that IPVS keeps for them."""
    tells_clients_apart: bool = True
    """Where they stick, by their addresses; others may take a whole network for one client."""


class Load(NamedTuple):
    weight: int
    connections: int
    """Active and inactive."""
    is_translated: bool = True
    """As all of ours are; others may have theirs reached in other ways."""
    active: int = 0
    """Of ``connections``, those that are established."""


@dataclass(slots=True)
class VirtualServer:
    service: Service
    reals: dict[Real, Load] = field(default_factory=dict)


class Ipvs:
    """A conversation with it. Use `close` in the end. Every call raises ModeError."""

    def __init__(self) -> None:
        """Raises Lacking without IPVS."""
        asked = _GENERIC_HEADER.pack(_GET_FAMILY, 1, 0) + attribute(_FAMILY_NAME, b"IPVS\0")
        with as_mode_error("IPVS can't be reached"):
            self._netlink = Netlink(GENERIC)
        try:
            fields = dict(attributes(self._netlink.ask(Message(_CONTROLLER, asked)), _GENERIC_HEADER.size))
        except OSError as error:
            self.close()
            if error.errno == errno.ENOENT:
                raise Lacking(_WITHOUT_IT) from error
            raise ModeError(f"IPVS can't be reached: {error.strerror or error}") from error
        (self._id,) = struct.unpack("=H", fields[_FAMILY_ID])

    def close(self) -> None:
        self._netlink.close()

    def services(self) -> dict[Key, VirtualServer]:
        """All there are, whoever made them, with their real servers."""
        found: dict[Key, VirtualServer] = {}
        with as_mode_error("IPVS can't be read"):
            for payload in self._netlink.snapshot(self._message(_GET_SERVICE, b"")):
                fields = dict(attributes(dict(attributes(payload, _GENERIC_HEADER.size))[_SERVICE]))
                found[_key(fields)] = VirtualServer(_service(fields))
            lines = _EVERYTHING.read_text().splitlines()[3:]
        server = None
        shown: set[Key | None] = set()
        for line in lines:
            words = line.split()
            if words[0] != "->":
                key = _key_of_line(words, found)
                server = found.get(key) if key else None
                shown.add(key)
            elif server is not None:
                address, port = _place(words[1])
                load = Load(int(words[3]), int(words[4]) + int(words[5]), words[2] == "Masq", int(words[4]))
                server.reals[Real(address, port)] = load
        for key in found.keys() - shown:
            found[key].reals = self._reals(key)
        return found

    def _reals(self, key: Key) -> dict[Real, Load]:
        reals: dict[Real, Load] = {}
        with as_mode_error("IPVS can't be read"):
            try:
                answers = self._netlink.snapshot(self._message(_GET_REAL, _named(key)))
            except ProcessLookupError:
                return reals  # whoever made it has just removed it
            for payload in answers:
                fields = dict(attributes(dict(attributes(payload, _GENERIC_HEADER.size))[_REAL]))
                (port,) = struct.unpack("!H", fields[_REAL_PORT])
                method, weight, active, inactive = (
                    struct.unpack("=I", fields[kind])[0] for kind in (_METHOD, _WEIGHT, _ACTIVE, _INACTIVE)
                )
                load = Load(weight, active + inactive, method & _METHODS == _MASQUERADING, active)
                reals[Real(_unpacked(key.family, fields[_REAL_ADDRESS]), port)] = load
        return reals

    def carry_out(self, changes: Iterable[Message], harmless: Collection[int] = ()) -> None:
        """In order, and those that fit into one system call without anybody seeing the half of them.

        ``harmless``: errnos of one that is as good as done.
        """
        with as_mode_error("IPVS can't be changed"):
            failures = self._netlink.send(changes)
        for failure in failures:
            if failure.code not in harmless:
                raise ModeError(f"IPVS does not take {_spoken(failure)}: {failure.reason}") from OSError(
                    failure.code, failure.reason
                )

    def addition(self, key: Key, service: Service, reals: Iterable[Real]) -> Iterator[Message]:
        """A new one with its real servers, of weight 1, right behind it: without any it refuses who comes."""
        yield self._message(_NEW_SERVICE, _described(key, service))
        for real in reals:
            yield self.new_real(key, real)

    def alteration(self, key: Key, service: Service) -> Message:
        return self._message(_SET_SERVICE, _described(key, service))

    def new_real(self, key: Key, real: Real) -> Message:
        """Of weight 1."""
        return self._message(_NEW_REAL, _named(key) + _weighed(key, real, 1))

    def weight(self, key: Key, real: Real, weight: int) -> Message:
        """For a real server that is there."""
        return self._message(_SET_REAL, _named(key) + _weighed(key, real, weight))

    def remove(self, keys: Iterable[Key]) -> None:
        self.carry_out((self._message(_DELETE_SERVICE, _named(key)) for key in keys), harmless=[errno.ESRCH])

    def remove_reals(self, reals: Iterable[tuple[Key, Real]]) -> None:
        messages = (self._message(_DELETE_REAL, _named(key) + _weighed(key, real, 0)) for key, real in reals)
        self.carry_out(messages, harmless=[errno.ENOENT, errno.ESRCH])  # it is gone, or its virtual server is

    def set_timeouts(self, tcp: int, tcp_fin: int, udp: int) -> None:
        """In seconds; 0 leaves one as it is."""
        given = [(_TCP, tcp), (_TCP_FIN, tcp_fin), (_UDP, udp)]
        if fields := b"".join(attribute(kind, struct.pack("=I", seconds)) for kind, seconds in given if seconds):
            self.carry_out([self._message(_SET_CONFIG, fields)])

    def try_scheduler(self, family: Family, mark: int, name: str) -> None:
        """Whether the kernel has it, by a virtual server that nobody comes to. Raises ModeError that names it."""
        key = Key(family, "", None, 0, mark)
        self.remove([key])  # whoever tried before may not have come so far
        try:
            self.carry_out(self.addition(key, Service(name), ()))
        except ModeError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                reason = f"this kernel has no IPVS scheduler {name} (module ip_vs_{name}); set another, such as rr"
                raise ModeError(reason) from error
            raise
        self.remove([key])

    def _message(self, command: int, payload: bytes) -> Message:
        return Message(self._id, _GENERIC_HEADER.pack(command, 1, 0) + payload)


def _spoken(failure: Failure) -> str:
    """What was refused."""
    fields = dict(attributes(failure.message.payload, _GENERIC_HEADER.size))
    if _SERVICE not in fields:
        return "these time-outs"
    spoken = spell(_key(dict(attributes(fields[_SERVICE]))))
    if _REAL in fields:
        real = dict(attributes(fields[_REAL]))
        family = Family.IPV6 if any(real[_REAL_ADDRESS][4:]) else Family.IPV4
        spoken += f" -> {_unpacked(family, real[_REAL_ADDRESS])} port {struct.unpack('!H', real[_REAL_PORT])[0]}"
    return spoken


def spell(key: Key) -> str:
    """As ipvsadm(8) takes it."""
    if key.mark:
        return f"-f {key.mark}" + (" -6" if key.family is Family.IPV6 else "")
    host = f"[{key.address}]" if key.family is Family.IPV6 else key.address
    return f"{ {'tcp': '-t', 'udp': '-u', 'sctp': '--sctp-service'}[key.transport] } {host}:{key.port}"


def _named(key: Key) -> bytes:
    return nested(_SERVICE, _key_fields(key))


def _key_fields(key: Key) -> bytes:
    fields = attribute(_AF, struct.pack("=H", _AFS[key.family]))
    if key.mark or key.address is None:
        return fields + attribute(_MARK, struct.pack("=I", key.mark))
    fields += attribute(_TRANSPORT, struct.pack("=H", _TRANSPORTS[key.transport]))
    return fields + attribute(_ADDRESS, _filled(key.address)) + attribute(_PORT, struct.pack("!H", key.port))


def _described(key: Key, service: Service) -> bytes:
    flags = (_OURS if service.is_ours else 0) | (_PERSISTENT if service.sticky_seconds else 0)
    return nested(
        _SERVICE,
        _key_fields(key)
        + attribute(_SCHEDULER, service.scheduler.encode() + b"\0")
        + attribute(_FLAGS, struct.pack("=II", flags, 0xFFFFFFFF))
        + attribute(_TIMEOUT, struct.pack("=I", service.sticky_seconds))
        + attribute(_NETMASK, _NETMASKS[key.family]),
    )


def _weighed(key: Key, real: Real, weight: int) -> bytes:
    return nested(
        _REAL,
        attribute(_REAL_AF, struct.pack("=H", _AFS[key.family]))
        + attribute(_REAL_ADDRESS, _filled(real.address))
        + attribute(_REAL_PORT, struct.pack("!H", real.port))
        + attribute(_METHOD, struct.pack("=I", _MASQUERADING))
        + attribute(_WEIGHT, struct.pack("=I", weight))
        + attribute(_UPPER, bytes(4))
        + attribute(_LOWER, bytes(4)),
    )


def _filled(address: IP) -> bytes:
    """As union nf_inet_addr has it."""
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address).ljust(16, b"\0")


def _unpacked(family: Family, packed: bytes) -> IP:
    af = _AFS[family]
    return IP(socket.inet_ntop(af, packed[: 4 if af == socket.AF_INET else 16]))


def _key(fields: dict[int, bytes]) -> Key:
    family = _FAMILIES[struct.unpack("=H", fields[_AF])[0]]
    if _MARK in fields:
        return Key(family, "", None, 0, struct.unpack("=I", fields[_MARK])[0])
    transport = _TRANSPORT_NAMES.get(struct.unpack("=H", fields[_TRANSPORT])[0], "")
    (port,) = struct.unpack("!H", fields[_PORT])
    return Key(family, transport, _unpacked(family, fields[_ADDRESS]), port)


def _service(fields: dict[int, bytes]) -> Service:
    (flags,) = struct.unpack_from("=I", fields[_FLAGS])
    seconds = struct.unpack("=I", fields[_TIMEOUT])[0] if flags & _PERSISTENT else 0
    family = _FAMILIES[struct.unpack("=H", fields[_AF])[0]]
    tells_apart = not seconds or fields[_NETMASK] == _NETMASKS[family]
    return Service(fields[_SCHEDULER].rstrip(b"\0").decode(), seconds, bool(flags & _OURS), tells_apart)


def _key_of_line(words: list[str], found: dict[Key, VirtualServer]) -> Key | None:
    """Of a virtual server in /proc/net/ip_vs. A mark there tells no family, so ours are other in each."""
    if words[0] == "FWM":
        marked = (Key(family, "", None, 0, int(words[1], 16)) for family in Family)
        return next((key for key in marked if key in found), None)
    address, port = _place(words[1])
    return Key(Family.IPV6 if ":" in address else Family.IPV4, words[0].lower(), address, port)


def _place(text: str) -> tuple[IP, int]:
    match = _PLACE.fullmatch(text)
    if match is None:
        raise ModeError(f"{_EVERYTHING} says {text[:60]!a}, which is no address")
    if match[1]:
        return IP(socket.inet_ntop(socket.AF_INET6, socket.inet_pton(socket.AF_INET6, match[1]))), int(match[2], 16)
    return IP(socket.inet_ntop(socket.AF_INET, bytes.fromhex(match[3]))), int(match[4], 16)
