"""Maps of another size in place of those that programs use, with what these hold.

    maps-DIGEST/flows …      in force
    next-DIGEST/flows …      all that programs to come are to use: what has the right size is pinned there, too, and so
                             the same; what has not is made there, filled, and put in place of the other in the end

So only a map whose size changes is ever copied. Every call raises OSError.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

from ebpf import pins, syscall
from ebpf.syscall import LRU_HASH, MapSpec
from ebpf.whole_flows import torn

_CHUNK = 4096
_OF_PACKETS = ("flows", "fragments")
"""Maps that only packet programs write."""


class Resizing:
    def __init__(self, in_force: Path, specs: Mapping[str, MapSpec]) -> None:
        self._in_force = in_force
        self._staging = in_force.with_name(in_force.name.replace("maps-", "next-"))
        self._specs = specs
        self._former: dict[str, int] = {}
        """The maps that others take the place of."""
        self._known: dict[str, set[bytes]] = {}
        """Keys that these had when they were copied."""
        self.maps: dict[str, int] = {}

    @property
    def folder(self) -> Path:
        """Where programs that are yet to be loaded find their maps."""
        return self._staging if self._former else self._in_force

    def open(self, programs: Path) -> None:
        """``maps``, made where they are not there. ``programs`` that use others than these are removed."""
        self.close()
        there = {name: syscall.pinned(self._in_force / name) for name in self._specs if self._is_in_force(name)}
        for name, handle in there.items():
            fits = syscall.map_spec(handle).entries == self._specs[name].entries
            (self.maps if fits else self._former)[name] = handle
        if not self._former and self._staging.exists():
            pins.remove(programs)  # they may be those of a change that was given up
            pins.remove(self._staging)
        if self._former:
            self._staging.mkdir(exist_ok=True)
            if not self._stage():
                pins.remove(programs)
        if missing := self._specs.keys() - self.maps.keys():
            pins.remove(programs)
            for name in missing:
                self.maps[name] = _made(self.folder / name, name, self._specs[name])
        for name in self._former.keys() - self._learned:
            self._copy(name)

    def _is_in_force(self, name: str) -> bool:
        return (self._in_force / name).exists()

    def _stage(self) -> bool:
        """Whether nothing had to be replaced there: it is empty, or of this very change, which was interrupted."""
        is_ours = True
        for name, spec in self._specs.items():
            staged = self._staging / name
            if staged.exists():
                handle = syscall.pinned(staged)
                if name not in self.maps and syscall.map_spec(handle).entries == spec.entries:
                    self.maps[name] = handle
                    continue
                is_same = name in self.maps and syscall.map_id(handle) == syscall.map_id(self.maps[name])
                os.close(handle)
                if is_same:
                    continue
                staged.unlink()
                is_ours = False
            if name in self.maps:
                syscall.pin(self.maps[name], staged)
        return is_ours

    def _copy(self, name: str) -> set[bytes]:
        """As much as there is room for: whether all that is needed has some is for others to say. Returns the keys."""
        known: set[bytes] = set()
        try:
            for chunk in _chunks(syscall.entries(self._former[name])):
                known.update(chunk)
                syscall.update(self.maps[name], chunk)
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
        return known

    @property
    def _learned(self) -> list[str]:
        """The former maps that programs write."""
        return [name for name in self._former if self._specs[name].kind == LRU_HASH]

    def catch_up(self) -> None:
        """What programs have put into the former maps by now, and nothing that they have removed: in one go, since what
        is copied early may be another's by the time that the rest is."""
        for name in self._learned:
            left = [key for key, _ in syscall.entries(self.maps[name])]  # of a change that was interrupted
            known = self._known[name] = self._copy(name)
            syscall.delete(self.maps[name], [key for key in left if key not in known])

    def fill_in(self, *, of_packets: bool) -> None:
        """New maps are in use, those of packet programs or the rest: they get what came into the former ones since
        `catch_up`. What was there by then and is not here was removed here. Flows of which both have a part are
        forgotten."""
        for name in self._learned:
            if (name in _OF_PACKETS) is not of_packets:
                continue
            there = {key for key, _ in syscall.entries(self.maps[name])} | self._known.get(name, set())
            for chunk in _chunks(entry for entry in syscall.entries(self._former[name]) if entry[0] not in there):
                syscall.update(self.maps[name], chunk)
            if name == "flows":
                syscall.delete(self.maps[name], torn(self.maps[name]))

    def settle(self) -> None:
        """The new maps get the places of the others: a process that comes after this one finds them in force."""
        if self._former:
            for staged in sorted(self._staging.iterdir()):
                staged.rename(self._in_force / staged.name)
            pins.remove(self._staging)

    def release(self) -> None:
        """Nobody uses the former maps any more."""
        syscall.close_all(self._former)
        self._known.clear()

    def close(self) -> None:
        syscall.close_all(self.maps)
        self.release()


def _chunks(entries: Iterable[tuple[bytes, bytes]]) -> Iterator[dict[bytes, bytes]]:
    rest = iter(entries)
    while chunk := dict(islice(rest, _CHUNK)):
        yield chunk


def _made(path: Path, name: str, spec: MapSpec) -> int:
    try:
        handle = syscall.create_map(name, spec)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"a map {name} of {spec.entries} entries") from None
    try:
        syscall.pin(handle, path)
    except BaseException:
        os.close(handle)
        raise
    return handle
