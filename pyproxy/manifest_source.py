"""Manifests in a file or folder as a source of objects, watched with inotify.

A file that can't be read keeps the last good version of its objects in force, and so does an object in it that is
refused: what is wrong on disk must not take down what works.
"""

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from inotify_simple import INotify, flags

from pyproxy.manifest import Broken, parse
from pyproxy.objects import Delete, Event, Key, Object, Upsert
from pyproxy.problem import Problem

log = logging.getLogger("pyproxy.manifests")

SUFFIXES = (".yaml", ".yml", ".json")
_CHANGES = flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.CREATE | flags.DELETE | flags.ATTRIB
_FOLDER_GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
_TRY_AGAIN_S = 1.0
_FOLDER_REMOVAL_S = 0.03

Objects = dict[Delete, Object]


class _File(NamedTuple):
    """A file as it was read last."""

    identity: tuple[int, int, int] | None
    """Inode, size in bytes and time of change in ns; None if it could not be opened."""
    objects: Objects
    problems: tuple[Problem, ...] = ()


class PathError(Exception):
    """A path that can't be a source at all. The message is for the user."""


class ManifestSource:
    """Reads PATH now and whenever it changes, and delivers what became different, a batch at a time."""

    def __init__(self, path: Path, deliver: Callable[[list[Event]], None]) -> None:
        self._folder = path if path.is_dir() else path.parent
        self._only = None if path.is_dir() else path.name
        self._path = path
        self._deliver = deliver
        self._files: dict[str, _File] = {}
        self._holders: dict[Delete, tuple[str, ...]] = {}  # which files define an object, in order of their names
        try:
            self._names()
            if self._only:
                path.open("rb").close()
        except OSError as error:
            raise PathError(f"can't read manifests from {path}: {error.strerror}") from None

    @property
    def problems(self) -> list[Problem]:
        """From any thread: what is wrong with files and objects as they are now."""
        return [problem for file in list(self._files.values()) for problem in file.problems]

    def run(self) -> None:
        """Never returns; made for a daemon thread. The first batch is delivered once all files have been read."""
        while True:
            try:
                with INotify() as inotify:
                    inotify.add_watch(self._folder, _CHANGES | _FOLDER_GONE | flags.ONLYDIR)
                    self._refresh(self._names() | self._files.keys(), always=True)
                    self._follow(inotify)
                reason = "the folder is gone"
            except OSError as error:  # no more inotify instances or watches, or the folder went meanwhile
                reason = error.strerror or str(error)
            note = "manifests can't be watched; their last good version stays in force"
            log.error(note, extra={"path": self._path, "reason": reason})
            time.sleep(_TRY_AGAIN_S)
            while not self._has_manifests():  # a folder that is back but empty is still being filled
                time.sleep(_TRY_AGAIN_S)

    def _follow(self, inotify: INotify) -> None:
        """Until the folder is gone."""
        while True:
            names: set[str] = set()
            events = inotify.read(read_delay=2)
            if any(
                event.mask & (flags.DELETE | flags.MOVED_FROM) and self._is_manifest(event.name) for event in events
            ):
                # Perhaps the whole folder is being removed, which takes nothing out of force.
                time.sleep(_FOLDER_REMOVAL_S)
                events += inotify.read(timeout=0)
            if any(event.mask & _FOLDER_GONE for event in events):
                return
            for event in events:
                # A mounted ConfigMap changes by the swap of a symbolic link, ..data, that all its files lead through.
                if event.mask & flags.Q_OVERFLOW or event.name.startswith(".."):
                    names |= self._names() | self._files.keys()
                elif self._is_manifest(event.name):
                    names.add(event.name)
            self._refresh(names)

    def _names(self) -> set[str]:
        return {entry.name for entry in os.scandir(self._folder) if self._is_manifest(entry.name)}

    def _has_manifests(self) -> bool:
        try:
            return bool(self._names())
        except OSError:
            return False

    def _is_manifest(self, name: str) -> bool:
        if self._only:
            return name == self._only
        return name.endswith(SUFFIXES) and not name.startswith(".")

    def _refresh(self, names: set[str], *, always: bool = False) -> None:
        """Read those of ``names`` that changed, and deliver what came of it in one batch."""
        events: list[Event] = []
        for name in sorted(names):
            events += self._reread(name)
        if not self._files:
            log.warning("no manifests here yet", extra={"path": self._path})
        if events or always:
            self._deliver(events)

    def _reread(self, name: str) -> list[Event]:
        old = self._files.get(name, _File(None, {}))
        path = self._folder / name
        try:
            # Not blocking: what is called x.yaml may be a pipe that nobody writes to.
            with open(path, "rb", opener=_open_at_once) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode):
                    raise OSError(errno.EINVAL, "it is not a file")
                identity = (status.st_ino, status.st_size, status.st_mtime_ns)
                if identity == old.identity:
                    return []
                text = file.read()
        except FileNotFoundError:
            self._files.pop(name, None)
            return self._replace(name, old.objects, {})
        except OSError as error:
            _complain(path, error.strerror or str(error))
            self._files[name] = _File(None, old.objects, (_unreadable(path, error.strerror or str(error)),))
            return []
        objects, problems = _read(path, text, old.objects)
        self._files[name] = _File(identity, objects, problems)
        return self._replace(name, old.objects, objects)

    def _replace(self, name: str, old: Objects, new: Objects) -> list[Event]:
        """What changes when file ``name`` holds ``new`` instead of ``old``; the first file by name counts."""
        events: list[Event] = []
        for identity in {**old, **new}:
            before = self._holders.get(identity, ())
            after = tuple(sorted({*before, name} if identity in new else set(before) - {name}))
            if not after:
                del self._holders[identity]
                events.append(identity)
                continue
            self._holders[identity] = after
            if len(after) > 1 and after != before:
                what = f"{identity.kind.__name__} {identity.key}"
                log.warning("object is in several files", extra={"object": what, "obeyed": after[0], "files": after})
            if after[0] == name or before[:1] == (name,):
                thing = new[identity] if after[0] == name else self._files[after[0]].objects[identity]
                if before[:1] != after[:1] or old.get(identity) != thing:
                    events.append(Upsert(thing))
        return events


def _read(path: Path, text: bytes, old: Objects) -> tuple[Objects, tuple[Problem, ...]]:
    """The objects to be in force from now on, and what is wrong with those in the file."""
    try:
        manifest = parse(text)
    except Broken as broken:
        _complain(path, f"{broken}; its last good version stays in force")
        return old, (_unreadable(path, str(broken)),)
    except Exception:  # whatever a text does to its parser, it must not take down what works
        log.exception("manifest not obeyed; its last good version stays in force", extra={"path": path})
        return old, (_unreadable(path, "the log says why"),)
    objects: Objects = {}
    for thing in manifest.objects:
        identity = Delete(type(thing), thing.key)
        if identity in objects:
            _complain(path, f"{type(thing).__name__} {thing.key} is there twice; the later one counts")
        objects[identity] = thing
    for mishap in manifest.mishaps:
        # Without a name it could be any that is missing now.
        meant = old.keys() if mishap.identity is None else old.keys() & {mishap.identity}
        kept = {identity: old[identity] for identity in meant - objects.keys()} if mishap.refused else {}
        objects.update(kept)
        note = "; its last good version stays in force" if kept else ""
        where = f"line {mishap.line}: " if mishap.line else ""
        _complain(path, f"{where}{mishap.problem}{note}")
    return objects, tuple(mishap.problem for mishap in manifest.mishaps)


def _unreadable(path: Path, reason: str) -> Problem:
    return Problem("Manifest", Key("", path.name), "", f"it can't be read: {reason}")


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _complain(path: Path, reason: str) -> None:
    log.error("manifest not obeyed", extra={"path": path, "reason": reason})
