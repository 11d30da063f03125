"""shared.h for user space: how keys and values are packed, and how large the maps are."""

import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from ebpf.syscall import ARRAY, HASH, LPM_TRIE, LRU_HASH, NO_PREALLOC, PERCPU_ARRAY, SK_STORAGE, MapSpec

_PLACE = struct.Struct("=16s2sBB")
_SERVICE = struct.Struct("=10I")
_SLOT = struct.Struct("=II")
_BACKEND = struct.Struct("=16s2sH")
_STRETCH, _PLACES = struct.Struct("=III"), struct.Struct("=256H")
_MEMBER = struct.Struct("=I16s2sH")
_SOURCE = struct.Struct("=II16s")
_PEER = struct.Struct("=Q16s2sHI")
_ORIGIN = struct.Struct("=16s2sBBIQ")
_CONNECTION = struct.Struct("=16s2sH16s2sBB")
_CONFIG, _COOKIE = struct.Struct("=Q16s16sHHI"), struct.Struct("=Q")
_DEVICE, _PREFIX = struct.Struct("=16s16sI"), struct.Struct("=I16s")
_TUPLE, _FLOW = struct.Struct("=16s16s2s2sBBH"), struct.Struct("=16s2sHIH2sIQ")
_FRAGMENT = struct.Struct("=16s16sIBBH")
_CLIENT, _CHOICE = struct.Struct("=II16s"), struct.Struct("=16s2sHIQ")
_NUMBER = struct.Struct("=I")
_COUNTER, _NAME = struct.Struct("=9Q"), struct.Struct("=64s64s64sB7x")
_NOTHING = (0,) * 9
_MAPPED = b"\0" * 10 + b"\xff\xff"
_GUARD_BITS = 32

ADDRESS_FRONTEND, ADDRESS_CLUSTER_IP, ADDRESS_NODE = 1, 2, 4
INSIDE_DROPS, OUTSIDE_DROPS, MASQUERADES_PODS, MASQUERADES_OUTSIDE, LETS_NODE_IN, LEAVES_PODS = 1, 2, 4, 8, 16, 32
DEVICE_OF_PODS, DEVICE_NO_ETHERNET = 1, 2
DRAINING = 1
HOOK_INGRESS, HOOK_EGRESS = 0, 1
FLOW_TO_SERVICE, FLOW_CLIENT_FIN, FLOW_BACKEND_FIN, FLOW_RESET = 1, 2, 4, 8
FLOW_OF_OTHERS, FLOW_FROM_SERVICE = 16, 32
COUNTER_OTHERS, COUNTER_GONE, COUNTER_FIRST = 0, 1, 2
PROTOCOLS = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}
ANY_ADDRESS = {"IPv4": _MAPPED + bytes(4), "IPv6": bytes(16)}
"""Of node ports, in a place, by family."""

# Only what is used takes memory where NO_PREALLOC stands; LRU maps are made whole.
MAPS = {
    "addresses": MapSpec(HASH, 16, 4, 1 << 17, NO_PREALLOC),
    "services": MapSpec(HASH, _PLACE.size, _SERVICE.size, 1 << 17, NO_PREALLOC),
    "backends": MapSpec(HASH, _SLOT.size, _BACKEND.size, 1 << 20, NO_PREALLOC),
    "members": MapSpec(HASH, _MEMBER.size, 4, 1 << 20, NO_PREALLOC),
    "maglev": MapSpec(HASH, _STRETCH.size, _PLACES.size, 1 << 16, NO_PREALLOC),
    "choices": MapSpec(LRU_HASH, _CLIENT.size, _CHOICE.size, 1 << 16),
    "sources": MapSpec(LPM_TRIE, _SOURCE.size, 4, 1 << 16, NO_PREALLOC),
    "connections": MapSpec(SK_STORAGE, 4, _CONNECTION.size, 0, NO_PREALLOC),
    "udp_peers": MapSpec(LRU_HASH, _PEER.size, _ORIGIN.size, 1 << 16),
    "flows": MapSpec(LRU_HASH, _TUPLE.size, _FLOW.size, 1 << 18),
    "parties": MapSpec(ARRAY, 4, 4, 1 << 16),
    "fragments": MapSpec(LRU_HASH, _FRAGMENT.size, 4, 1 << 12),
    "pods": MapSpec(LPM_TRIE, _PREFIX.size, 4, 1 << 10, NO_PREALLOC),
    "devices": MapSpec(HASH, 4, _DEVICE.size, 1 << 14, NO_PREALLOC),
    "counters": MapSpec(PERCPU_ARRAY, 4, _COUNTER.size, 1 << 14),
    "names": MapSpec(HASH, 4, _NAME.size, 1 << 14, NO_PREALLOC),
    "config": MapSpec(ARRAY, 4, _CONFIG.size, 1),
}
SIZES = {name: spec.entries for name, spec in MAPS.items() if name not in ("connections", "config", "names", "parties")}
"""Those that may be others."""
ONE = _NUMBER.pack(1)


def resized(sizes: Mapping[str, int]) -> dict[str, MapSpec]:
    """MAPS with other numbers of entries, for names of SIZES. Each counter has its name."""
    entries = {name: spec.entries for name, spec in MAPS.items()} | dict(sizes)
    entries["names"] = entries["counters"]
    return {name: replace(spec, entries=entries[name]) for name, spec in MAPS.items()}


class Pool(NamedTuple):
    id: int
    size: int


class Service(NamedTuple):
    inside: Pool
    outside: Pool
    guard: int = 0
    affinity: int = 0
    flags: int = 0
    counter: int = COUNTER_OTHERS
    table: int = 0
    places: int = 0

    def packed(self) -> bytes:
        return _SERVICE.pack(*self.inside, *self.outside, *self[2:])


class Name(NamedTuple):
    """Of a service's port in one family; all of them labels of DNS."""

    namespace: str
    service: str
    port: str
    family: int
    """4 or 6."""

    def packed(self) -> bytes:
        return _NAME.pack(*map(str.encode, self[:3]), self.family)


class Peer(NamedTuple):
    """A socket, the backend it talks to, and the place that it thinks it talks to."""

    cookie: int
    backend: bytes
    place: bytes
    namespace: int


def address(ip: str) -> bytes:
    """IPv4 as an IPv4-mapped address."""
    return socket.inet_pton(socket.AF_INET6, ip) if ":" in ip else _MAPPED + socket.inet_aton(ip)


def spelled(packed: bytes) -> str:
    """The address in text."""
    if packed[:12] == _MAPPED:
        return socket.inet_ntoa(packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed)


def port(number: int) -> bytes:
    return number.to_bytes(2, "big")


def place(packed_address: bytes, number: int, protocol: str) -> bytes:
    return _PLACE.pack(packed_address, port(number), PROTOCOLS[protocol], 0)


def read_place(packed: bytes) -> tuple[bytes, int, int]:
    """Address, port and protocol."""
    packed_address, number, protocol, _ = _PLACE.unpack(packed)
    return packed_address, int.from_bytes(number, "big"), protocol


def read_service(packed: bytes) -> Service:
    inside, inside_count, outside, outside_count, *others = _SERVICE.unpack(packed)
    return Service(Pool(inside, inside_count), Pool(outside, outside_count), *others)


def counter(counts: Sequence[int] = _NOTHING) -> bytes:
    """The fields of struct counter, in order, as if the first processor had counted all of it."""
    return _COUNTER.pack(*counts).ljust(MAPS["counters"].read_bytes, b"\0")


def read_counter(packed: bytes) -> Sequence[int]:
    """The same of all processors together."""
    if packed.count(0) == len(packed):  # most are, and there may be many processors
        return _NOTHING
    return [*map(sum, zip(*_COUNTER.iter_unpack(packed), strict=True))]


def read_name(packed: bytes) -> Name:
    *texts, family = _NAME.unpack(packed)
    namespace, service, port = (text.rstrip(b"\0").decode() for text in texts)
    return Name(namespace, service, port, family)


def slot(pool: int, number: int) -> bytes:
    return _SLOT.pack(pool, number)


def read_slot(packed: bytes) -> tuple[int, int]:
    """The pool and the slot's number."""
    pool, number = _SLOT.unpack(packed)
    return pool, number


def backend(ip: str, number: int) -> bytes:
    return _BACKEND.pack(address(ip), port(number), 0)


def read_backend(packed: bytes) -> tuple[str, int]:
    """Address and port."""
    packed_address, number, _ = _BACKEND.unpack(packed)
    return spelled(packed_address), int.from_bytes(number, "big")


def stretch(pool: int, version: int, number: int) -> bytes:
    return _STRETCH.pack(pool, version, number)


def read_stretch(packed: bytes) -> tuple[int, int, int]:
    """The pool, the version of its table, and the stretch's number."""
    pool, version, number = _STRETCH.unpack(packed)
    return pool, version, number


def stretches(slots: Sequence[int]) -> tuple[bytes, ...]:
    """A table of Maglev's, cut as the map has it: 512 bytes each, the last one filled up by zeroes."""
    length = _PLACES.size // 2
    cut = (slots[at : at + length] for at in range(0, len(slots), length))
    return tuple(_PLACES.pack(*some, *[0] * (length - len(some))) for some in cut)


def read_places(packed: bytes) -> tuple[int, ...]:
    """The slots of a stretch."""
    return _PLACES.unpack(packed)


def member(pool: int, packed_backend: bytes) -> bytes:
    return _NUMBER.pack(pool) + packed_backend


def number(value: int) -> bytes:
    return _NUMBER.pack(value)


def read_number(packed: bytes) -> int:
    return int(_NUMBER.unpack(packed)[0])


def source(guard: int, prefix: str) -> bytes:
    """A key of the map sources."""
    ip, _, length = prefix.partition("/")
    inner = int(length) + (0 if ":" in ip else 8 * len(_MAPPED))
    return _SOURCE.pack(_GUARD_BITS + inner, guard, address(ip))


def read_source(packed: bytes) -> tuple[int, str]:
    """The guard and the prefix."""
    length, guard, packed_address = _SOURCE.unpack(packed)
    ip = spelled(packed_address)
    return guard, f"{ip}/{length - _GUARD_BITS - (0 if ':' in ip else 8 * len(_MAPPED))}"


def read_peer(key: bytes, value: bytes) -> Peer:
    (cookie,), (namespace,) = _COOKIE.unpack_from(key), _COOKIE.unpack_from(value, _ORIGIN.size - _COOKIE.size)
    return Peer(cookie, key[8:28], value[: _PLACE.size], namespace)


class Way(NamedTuple):
    """A packet's way at a hook: addresses in text."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    protocol: int
    hook: int

    def packed(self) -> bytes:
        ends = address(self.source), address(self.destination), port(self.source_port), port(self.destination_port)
        return _TUPLE.pack(*ends, self.protocol, self.hook, 0)


class Flow(NamedTuple):
    """What becomes of packets on a way."""

    address: str
    port: int
    pool: int
    flags: int
    seen: float
    """Seconds of CLOCK_MONOTONIC."""
    counter: int = COUNTER_OTHERS
    client_port: int = 0
    """On the other side of the service, where it is another."""

    @property
    def has_ended(self) -> bool:
        both = FLOW_CLIENT_FIN | FLOW_BACKEND_FIN
        return bool(self.flags & FLOW_RESET) or self.flags & both == both

    def packed(self) -> bytes:
        nanoseconds = int(self.seen * 1e9)
        own = address(self.address), port(self.port)
        return _FLOW.pack(*own, 0, self.pool, self.flags, port(self.client_port), self.counter, nanoseconds)


def read_tuple(packed: bytes) -> Way:
    source, destination, source_port, destination_port, protocol, hook, _ = _TUPLE.unpack(packed)
    ports = int.from_bytes(source_port, "big"), int.from_bytes(destination_port, "big")
    return Way(spelled(source), ports[0], spelled(destination), ports[1], protocol, hook)


def read_flow(packed: bytes) -> Flow:
    to, number, _, pool, flags, client_port, counter, seen = _FLOW.unpack(packed)
    ports = int.from_bytes(number, "big"), int.from_bytes(client_port, "big")
    return Flow(spelled(to), ports[0], pool, flags, seen / 1e9, counter, ports[1])


def device(ipv4: str | None, ipv6: str | None, flags: int) -> bytes:
    return _DEVICE.pack(*_both(ipv4, ipv6), flags)


def prefix(text: str) -> bytes:
    """A key of the map pods."""
    ip, _, length = text.partition("/")
    return _PREFIX.pack(int(length) + (0 if ":" in ip else 8 * len(_MAPPED)), address(ip))


def read_prefix(packed: bytes) -> str:
    length, packed_address = _PREFIX.unpack(packed)
    ip = spelled(packed_address)
    return f"{ip}/{length - (0 if ':' in ip else 8 * len(_MAPPED))}"


class Config(NamedTuple):
    namespace: int
    ipv4: str | None = None
    ipv6: str | None = None
    """Of this node."""
    first_port: int = 0
    """That masqueraded packets may have, and how many."""
    ports: int = 0
    flags: int = 0

    def packed(self) -> bytes:
        addresses = _both(self.ipv4, self.ipv6)
        return _CONFIG.pack(self.namespace, *addresses, self.first_port, self.ports, self.flags)


def with_flags(packed_config: bytes, flags: int) -> bytes:
    """A configuration as the map has it, with other flags."""
    return _CONFIG.pack(*_CONFIG.unpack(packed_config)[:-1], flags)


def _both(ipv4: str | None, ipv6: str | None) -> tuple[bytes, bytes]:
    return address(ipv4) if ipv4 else bytes(16), address(ipv6) if ipv6 else bytes(16)
