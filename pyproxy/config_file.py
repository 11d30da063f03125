"""The configuration file, watched, so that a proxy need not be restarted by hand for a new one.

The file of a mounted ConfigMap is a link through ``..data``, which kubelet swaps for another; editors rename over a
file, or write in place. All of that is told by events of the folder, which outlives the file.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from inotify_simple import Event, INotify, flags

from pyproxy.configuration import LARGEST
from pyproxy.text_file import read_text

log = logging.getLogger("pyproxy.configuration")

_CHANGES = flags.CLOSE_WRITE | flags.MOVED_TO | flags.CREATE
_FOLDER_GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.IGNORED
_TRY_AGAIN_S = 1.0
_LOOK_ANYWAY_MS = 60_000  # what a link leads to elsewhere changes without an event in this folder


class ConfigFile:
    """Calls ``on_change`` with the content whenever it differs from the last one, which is at first that of now.

    So make one before the file is read for use, and no change gets lost in between.
    """

    def __init__(self, path: Path, on_change: Callable[[bytes], None]) -> None:
        self._path = path
        self._on_change = on_change
        self._text = self._read()
        self._inotify: INotify | None = None
        self._has_complained = False

    def run(self) -> None:
        """Never returns; made for a daemon thread."""
        while True:
            self._wait()
            text = self._read()
            if text is not None and text != self._text:
                self._text = text
                self._on_change(text)

    def _read(self) -> bytes | None:
        """None while there is nothing to read: the file is about to be written, to come back, or to be mended."""
        try:
            return read_text(self._path, LARGEST) or None
        except OSError:
            return None

    def _wait(self) -> None:
        """Until the content may have changed, which at first is the moment from which on changes are told."""
        try:
            if self._inotify is None:
                self._inotify = self._watch()
                self._has_complained = False
                return
            while (events := self._inotify.read(timeout=_LOOK_ANYWAY_MS, read_delay=2)) and not self._concern(events):
                pass
            if any(event.mask & _FOLDER_GONE for event in events):
                self._close()
        except OSError as error:  # no more inotify instances or watches, or no such folder now
            self._close()
            if not self._has_complained:
                note = "the configuration file can't be watched; it is looked at every second"
                log.warning(note, extra={"path": self._path, "reason": error.strerror or error})
            self._has_complained = True
            time.sleep(_TRY_AGAIN_S)

    def _watch(self) -> INotify:
        inotify = INotify()
        try:
            inotify.add_watch(self._path.parent, _CHANGES | _FOLDER_GONE | flags.ONLYDIR)
        except OSError:
            inotify.close()
            raise
        return inotify

    def _close(self) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    def _concern(self, events: list[Event]) -> bool:
        return any(self._concerns(event) for event in events)

    def _concerns(self, event: Event) -> bool:
        if event.mask & (_FOLDER_GONE | flags.Q_OVERFLOW) or event.name.startswith(".."):
            return True
        # A file that was just created is still empty; it is complete when its writer closes it. A link is at once.
        is_complete = not event.mask & flags.CREATE or self._path.is_symlink()
        return bool(event.name == self._path.name and is_complete)
