"""The maps and programs of this node: made or found again, and bound to their hooks."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ebpf import bytecode, cgroup, layout, pins, syscall
from ebpf.bytecode import Bytecode
from ebpf.compiler import HERE, interpreter
from ebpf.hook import HOOKS, SOCKET
from ebpf.layout import MAPS
from ebpf.resizing import Resizing

_PATIENCE_S = 60.0
_SHAPES = [(name, replace(spec, entries=0)) for name, spec in MAPS.items()]
_LAYOUT = pins.digest(*(Path(HERE, name).read_bytes() for name in ("shared.h", "maps.h")), repr(_SHAPES).encode())
_SOURCES = sorted(path for path in HERE.rglob("*") if path.suffix in (".c", ".h"))
_PROGRAMS = pins.digest(_LAYOUT.encode(), *(path.read_bytes() for path in _SOURCES))


class BadProgram(Exception):
    """The compiler or the kernel's verifier did not take a program. The message is what it said last."""


class Store:
    """Open file descriptors of what is pinned. Every call raises OSError."""

    def __init__(self, specs: Mapping[str, syscall.MapSpec] = MAPS) -> None:
        self._folder = pins.folder()
        self.folder = self._folder / f"maps-{_LAYOUT}"
        """Where the maps are pinned."""
        self.specs = specs
        self._resizing = Resizing(self.folder, specs)
        self.programs: dict[str, int] = {}
        self._links: dict[str, int] = {}

    def open(self) -> None:
        """Everything that is needed, made where it is not there, but nothing is attached."""
        self.close()
        pins.mount()
        self.folder.mkdir(parents=True, exist_ok=True)
        programs = self._folder / f"programs-{_PROGRAMS}"
        has_lost_parties = (self.folder / "flows").exists() and not (self.folder / "parties").exists()
        self._resizing.open(programs)
        if has_lost_parties:  # so anybody may be one
            everybody = map(layout.number, range(layout.MAPS["parties"].entries))
            syscall.update(self.maps["parties"], dict.fromkeys(everybody, layout.ONE))
        if not all((programs / name).exists() for name in HOOKS):
            pins.remove(programs)
            compiled = bytecode.kept(_PROGRAMS)
            if compiled.keys() != HOOKS.keys():
                compiled = _compiled()
            loaded = {name: _loaded(name, compiled[name].bound(self.maps)) for name in HOOKS}
            bytecode.keep(_PROGRAMS, compiled)
            programs.mkdir()
            for name, handle in loaded.items():
                syscall.pin(handle, programs / name)
            syscall.close_all(loaded)
        self.programs = {name: syscall.pinned(programs / name) for name in HOOKS}

    @property
    def maps(self) -> dict[str, int]:
        return self._resizing.maps

    def catch_up(self) -> None:
        """Maps that are there in another size have gone on meanwhile: what they hold by now, just before programs are
        replaced…"""
        self._resizing.catch_up()

    def fill_in(self) -> None:
        """…and what came in just before that, as soon as packet programs are: from now on these maps are in force."""
        self._resizing.fill_in(of_packets=True)
        self._resizing.settle()

    @property
    def is_attached(self) -> bool:
        """Whether programs are at sockets, of any version."""
        return all((self._folder / "links" / name).exists() for name in SOCKET)

    def attach(self, group: Path) -> None:
        """In place of another version's programs, one hook after the other; then that version is removed."""
        links = self._folder / "links"
        links.mkdir(exist_ok=True)
        target = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name, hook in SOCKET.items():
                self._links[name] = self._attached(links / name, target, name, hook.attach)
        finally:
            os.close(target)
        self._resizing.fill_in(of_packets=False)
        self._resizing.release()
        for prefix, current in (("programs", _PROGRAMS), ("maps", _LAYOUT), ("next", _LAYOUT)):
            for other in pins.others(self._folder, prefix, current):
                pins.remove(other)

    def _attached(self, place: Path, target: int, name: str, attach: int) -> int:
        if name in self._links:
            os.close(self._links.pop(name))
        program = self.programs[name]
        if place.exists():
            link = syscall.pinned(place)
            if syscall.link_info(link).cgroup == os.fstat(target).st_ino:
                syscall.update_link(link, program)
                return link
            os.close(link)
            place.unlink()
        link = syscall.create_link(program, target, attach)
        syscall.pin(link, place)
        return link

    def differences(self, group: Path) -> list[str]:
        """What of it is not pinned or attached as it was."""
        found = []
        folder, links = self.folder, self._folder / "links"
        found += [f"the map {name} is not pinned any more" for name in MAPS if not (folder / name).exists()]
        for name in SOCKET:
            program = self.programs[name]
            if not (links / name).exists():
                found.append(f"the program {name} is not pinned to its hook any more")
                continue
            info = syscall.link_info(self._links[name])
            if info.cgroup != group.stat().st_ino or info.program != syscall.program_id(program):
                found.append(f"the program {name} is not attached to {group} any more")
        return found

    def close(self) -> None:
        self._resizing.close()
        for handles in (self.programs, self._links):
            syscall.close_all(handles)


def detach() -> bool:
    """The programs of sockets from their hooks, of any version; whether there were any. Raises OSError."""
    return pins.remove(pins.folder() / "links")


def opened_maps() -> dict[str, int]:
    """The maps of this version as they are pinned, to be closed; empty if they are not. Raises OSError."""
    folder = pins.folder() / f"maps-{_LAYOUT}"
    if not all((folder / name).exists() for name in MAPS):
        return {}
    return {name: syscall.pinned(folder / name) for name in MAPS}


@contextmanager
def using_maps() -> Iterator[dict[str, int]]:
    """`opened_maps` of the caller's own, which are closed then: so any thread may ask. Raises OSError."""
    maps = opened_maps()
    try:
        yield maps
    finally:
        syscall.close_all(maps)


def remove_all() -> bool:
    """Of any version; whether there was anything."""
    return pins.remove(pins.folder())


def default_group() -> Path | None:
    return cgroup.root()


def _compiled() -> dict[str, Bytecode]:
    command = [interpreter() or sys.executable, "-m", "ebpf.compiler"]
    done = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False, cwd=HERE.parent)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        complaints = [line for line in said if "error:" in line] or said[-3:]
        raise BadProgram("; ".join(complaints[:3]) or f"exit status {done.returncode}")
    return bytecode.read(done.stdout.decode())


def _loaded(name: str, instructions: bytes) -> int:
    hook = HOOKS[name]
    try:
        return syscall.load_program(hook.kind, hook.attach, instructions, name)
    except OSError as error:
        if error.errno == errno.EPERM:
            raise
        said = syscall.complaint(hook.kind, hook.attach, instructions).strip().splitlines()[-3:]
        raise BadProgram(f"{name}: {'; '.join(said) or error.strerror}") from error
