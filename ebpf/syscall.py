"""bpf(2), as far as it is needed: BCC compiles, but knows no links, no pins of them and no batches of bytes.

The numbers and layouts are those of linux/bpf.h. Every call raises OSError.
"""

import ctypes
import errno
import functools
import os
import platform
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_POSSIBLE = Path("/sys/devices/system/cpu/possible")
_ATTRIBUTE_BYTES = 144
_MAP_CREATE, _MAP_LOOKUP, _MAP_UPDATE, _MAP_DELETE = 0, 1, 2, 3
_PROG_LOAD, _OBJ_PIN, _OBJ_GET, _TEST_RUN, _OBJ_INFO = 5, 6, 7, 10, 15
_LOOKUP_BATCH, _UPDATE_BATCH, _DELETE_BATCH = 24, 26, 27
_PROG_QUERY, _LINK_CREATE, _LINK_UPDATE, _LINK_DETACH = 16, 28, 29, 34
_BTF_LOAD = 18
_BTF_INT, _BTF_ARRAY = 1, 3  # BTF_KIND_*
_BTF_NUMBER, _BTF_VALUE = 1, 2  # types are counted from 1
_COUNT_AT = 32
"""Where a batch tells how many of its entries are done."""
_QUERY_COUNT_AT = 24
_OF_KIND_AT = 16
"""Where the description of a link tells what only its kind has."""
_MEMORY_TRIES, _MEMORY_WAIT_S = 1000, 0.001
_LOG_BYTES = 1 << 24  # what it says of a long program is cut off at the end, where its reason is
_CHUNK = 4096
"""Entries that are read in one call, at least; more if the kernel's bucket is larger."""


@dataclass(frozen=True, slots=True)
class MapSpec:
    """How a map is made: what struct bpf_map_create_opts says, and its sizes."""

    kind: int
    """BPF_MAP_TYPE_*."""
    key: int
    """Bytes, as is the next one."""
    value: int
    entries: int
    flags: int = 0

    @property
    def read_bytes(self) -> int:
        """Of a value as user space reads and writes it: one for each possible processor, if each has its own."""
        return -(-self.value // 8) * 8 * possible_processors() if self.kind == PERCPU_ARRAY else self.value


@functools.cache
def possible_processors() -> int:
    last = _POSSIBLE.read_text().strip().replace(",", "-").rpartition("-")[2]
    return int(last) + 1


HASH, ARRAY, PERCPU_ARRAY, LRU_HASH, LPM_TRIE, SK_STORAGE = 1, 2, 6, 9, 11, 24  # BPF_MAP_TYPE_*
NO_PREALLOC = 1  # BPF_F_NO_PREALLOC


def create_map(name: str, spec: MapSpec) -> int:
    """The file descriptor."""
    packed = struct.pack("=5I", spec.kind, spec.key, spec.value, spec.entries, spec.flags)
    packed += struct.pack("=II16s", 0, 0, name.encode()[:15])
    if spec.kind != SK_STORAGE:
        return _call(_MAP_CREATE, packed)
    types = _described(spec.value)
    try:
        return _call(_MAP_CREATE, packed + struct.pack("=IIII", 0, types, _BTF_NUMBER, _BTF_VALUE))
    finally:
        os.close(types)


def _described(value_bytes: int) -> int:
    """BTF of a number, and of a value as an array of numbers: maps in sockets are made with no less (linux/btf.h)."""
    number = struct.pack("=IIII", 1, _BTF_INT << 24, 4, 32)
    value = struct.pack("=IIIIII", 0, _BTF_ARRAY << 24, 0, _BTF_NUMBER, _BTF_NUMBER, value_bytes // 4)
    types, names = number + value, b"\0number\0"
    data = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names
    given = ctypes.create_string_buffer(data, len(data))
    return _call(_BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(given), 0, len(data), 0, 0))


def load_program(kind: int, attach: int, instructions: bytes, name: str) -> int:
    """The file descriptor. EINVAL and EACCES: the kernel did not take it, `complaint` tells why."""
    return _load(kind, attach, instructions, name, ctypes.create_string_buffer(0))


def complaint(kind: int, attach: int, instructions: bytes) -> str:
    """What the verifier has against a program; empty if it takes it, or says nothing."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        os.close(_load(kind, attach, instructions, "", log))
    except OSError:
        return log.value.decode(errors="replace")
    return ""


def _load(kind: int, attach: int, instructions: bytes, name: str, log: ctypes.Array[ctypes.c_char]) -> int:
    code, license = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"Dual BSD/GPL")
    packed = struct.pack("=IIQQ", kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license))
    where = ctypes.addressof(log) if len(log) else 0
    packed += struct.pack("=IIQII16sII", bool(where), len(log), where, 0, 0, name.encode()[:15], 0, attach)
    return _call(_PROG_LOAD, packed)


def pin(handle: int, path: Path) -> None:
    name = ctypes.create_string_buffer(os.fsencode(path))
    _call(_OBJ_PIN, struct.pack("=QI", ctypes.addressof(name), handle))


def pinned(path: Path) -> int:
    """The file descriptor of what is pinned there."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    return _call(_OBJ_GET, struct.pack("=QI", ctypes.addressof(name), 0))


def close_all(handles: dict[str, int]) -> None:
    """File descriptors, which are forgotten then."""
    for handle in handles.values():
        os.close(handle)
    handles.clear()


def create_link(program: int, target: int, attach: int) -> int:
    """The program runs beside others on the same hook for as long as the link is open or pinned. ``target``: the file
    descriptor of a cgroup, or the index of a device."""
    return _call(_LINK_CREATE, struct.pack("=IIII", program, target, attach, 0))


def count_attached(target: int, attach: int) -> int:
    """How many programs are on a hook of a device, of anybody's. 0 where the kernel does not know such a hook."""
    attribute = _attribute(struct.pack("=IIIIQI", target, attach, 0, 0, 0, 0))
    try:
        _raw(_PROG_QUERY, attribute)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENODEV):
            return 0
        raise
    return int(struct.unpack_from("=I", attribute, _QUERY_COUNT_AT)[0])


def update_link(link: int, program: int) -> None:
    """In one step: there is no moment without a program."""
    _call(_LINK_UPDATE, struct.pack("=IIII", link, program, 0, 0))


def detach_link(link: int) -> None:
    """At once, where the last one to close it would have to wait. One whose device has vanished is no failure."""
    _call(_LINK_DETACH, struct.pack("=I", link))


def program_id(handle: int) -> int:
    """Of a program."""
    return int(struct.unpack_from("=II", _info(handle))[1])


@dataclass(frozen=True, slots=True)
class LinkInfo:
    program: int
    """The id of the program that runs."""
    cgroup: int
    """The id of the cgroup, if it is to one; 0 if that has been removed."""
    device: int
    """The index of the device, if it is to one; 0 if that has been removed."""


def link_info(handle: int) -> LinkInfo:
    _, _, program, _, cgroup = struct.unpack_from("=IIIIQ", info := _info(handle))
    (device,) = struct.unpack_from("=I", info, _OF_KIND_AT)
    return LinkInfo(program, cgroup, device)


def map_id(handle: int) -> int:
    return int(struct.unpack_from("=II", _info(handle))[1])


def map_spec(handle: int) -> MapSpec:
    kind, _, key, value, entries, flags = struct.unpack_from("=6I", _info(handle))
    return MapSpec(kind, key, value, entries, flags)


def lookup(handle: int, key: bytes, value_bytes: int) -> bytes | None:
    """None if it is not there."""
    asked, value = ctypes.create_string_buffer(key, len(key)), ctypes.create_string_buffer(value_bytes)
    try:
        _call(_MAP_LOOKUP, struct.pack("=IIQQQ", handle, 0, ctypes.addressof(asked), ctypes.addressof(value), 0))
    except FileNotFoundError:
        return None
    return value.raw


def update(handle: int, entries: dict[bytes, bytes]) -> None:
    """Put ``entries`` in, in their order; each by itself is replaced in one step."""
    key_bytes, value_bytes = (sum(map(len, side)) for side in (entries.keys(), entries.values()))
    keys = ctypes.create_string_buffer(b"".join(entries), key_bytes)
    values = ctypes.create_string_buffer(b"".join(entries.values()), value_bytes)
    done, tries = 0, 0  # since there was the last progress
    while done < len(entries):
        places = (ctypes.addressof(keys) + done * (key_bytes // len(entries)),
                  ctypes.addressof(values) + done * (value_bytes // len(entries)))  # fmt: skip
        attribute = _attribute(struct.pack("=QQQQIIQQ", 0, 0, *places, len(entries) - done, handle, 0, 0))
        try:
            _raw(_UPDATE_BATCH, attribute)
            return
        except OSError as error:
            # Memory for programs is kept in small stocks, which the kernel fills up in between.
            (count,) = struct.unpack_from("=I", attribute, _COUNT_AT)
            progress = count if done + count < len(entries) else 0  # what was asked for: it has not begun
            tries = 0 if progress else tries + 1
            if error.errno != errno.ENOMEM or tries > _MEMORY_TRIES:
                raise
        done += progress
        time.sleep(_MEMORY_WAIT_S)


def delete(handle: int, keys: Iterable[bytes]) -> None:
    """Those that are not there are no failure."""
    for key in keys:
        asked = ctypes.create_string_buffer(key, len(key))
        try:
            _call(_MAP_DELETE, struct.pack("=IIQQQ", handle, 0, ctypes.addressof(asked), 0, 0))
        except FileNotFoundError:
            continue


def entries(handle: int) -> Iterator[tuple[bytes, bytes]]:
    """All keys and values. What comes or goes meanwhile may be there or not."""
    spec = map_spec(handle)
    batch = _Batch(handle, spec)
    while not batch.is_last:
        count = batch.read()
        raw_keys, raw_values = batch.keys.raw, batch.values.raw
        for index in range(count):
            key, value = index * spec.key, index * spec.read_bytes
            yield raw_keys[key : key + spec.key], raw_values[value : value + spec.read_bytes]


def estimated(handle: int) -> int:
    """How many entries a hash has, without reading all of it: exact if one batch holds them; else by how many of its
    buckets the first batch fills, which is a percent or two off."""
    spec = map_spec(handle)
    batch = _Batch(handle, spec)
    count = batch.read()
    if batch.is_last:
        return count
    buckets = 1 << (spec.entries - 1).bit_length()
    return min(spec.entries, count * buckets // max(1, int.from_bytes(batch.cursor.raw[:4], sys.byteorder)))


class _Batch:
    """Entries of a map, some thousand a call."""

    def __init__(self, handle: int, spec: MapSpec) -> None:
        self._handle = handle
        self._spec = spec
        self._started = False
        self._make_room(min(_CHUNK, max(spec.entries, 1)))
        self.cursor = ctypes.create_string_buffer(max(4, spec.key))
        """Where to go on: the number of a bucket in a hash, in other maps a key."""
        self.is_last = False

    def _make_room(self, entries: int) -> None:
        self._room = entries
        self.keys = ctypes.create_string_buffer(entries * self._spec.key)
        self.values = ctypes.create_string_buffer(entries * self._spec.read_bytes)

    def read(self) -> int:
        """How many entries there are in ``keys`` and ``values`` now."""
        at = ctypes.addressof(self.cursor)
        places = (at if self._started else 0, at, ctypes.addressof(self.keys), ctypes.addressof(self.values))
        attribute = _attribute(struct.pack("=QQQQIIQQ", *places, self._room, self._handle, 0, 0))
        try:
            _raw(_LOOKUP_BATCH, attribute)
        except OSError as error:
            if error.errno == errno.ENOSPC:  # a bucket holds more than there is room for
                self._make_room(2 * self._room)
                return self.read()
            if error.errno != errno.ENOENT:
                raise
            self.is_last = True
        self._started = True
        (count,) = struct.unpack_from("=I", attribute, _COUNT_AT)
        self.is_last = self.is_last or not count
        return int(count)


@dataclass(frozen=True, slots=True)
class Ran:
    returned: int
    data: bytes
    """The packet as the program left it."""
    context: bytes


def test_run(program: int, data: bytes, context: bytes = b"") -> Ran:
    """Run a program once on a packet (BPF_PROG_TEST_RUN)."""
    given, room = ctypes.create_string_buffer(data, len(data)), ctypes.create_string_buffer(len(data) + 256)
    before, after = ctypes.create_string_buffer(context or b"\0"), ctypes.create_string_buffer(max(len(context), 1))
    attribute = _attribute(
        struct.pack("=IIIIQQIIIIQQ", program, 0, len(data), len(room), ctypes.addressof(given), ctypes.addressof(room),
                    1, 0, len(context), len(context), ctypes.addressof(before) if context else 0,
                    ctypes.addressof(after) if context else 0)
    )  # fmt: skip
    _raw(_TEST_RUN, attribute)
    returned, _, length = struct.unpack_from("=III", attribute, 4)
    return Ran(returned, room.raw[:length], after.raw[: len(context)])


def _info(handle: int) -> bytes:
    room = ctypes.create_string_buffer(256)
    _call(_OBJ_INFO, struct.pack("=IIQ", handle, len(room), ctypes.addressof(room)))
    return room.raw


def _attribute(packed: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(packed, max(_ATTRIBUTE_BYTES, len(packed)))


def _call(command: int, packed: bytes) -> int:
    return _raw(command, _attribute(packed))


def _raw(command: int, attribute: ctypes.Array[ctypes.c_char]) -> int:
    number = _NUMBERS.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known")
    result = _LIBC.syscall(number, command, ctypes.byref(attribute), len(attribute))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)
