"""One relay of this network namespace, as the proxy sees it: found, started, steered."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, TypeVar

from modes.userspace import protocol
from modes.userspace.protocol import (
    Ask,
    Change,
    Entry,
    Hello,
    Inbox,
    Leave,
    Lend,
    Lost,
    Message,
    Place,
    Site,
    Sockets,
    State,
    Welcome,
)

_ROOT = Path(__file__).parents[2]  # where `modes` and `pyproxy` are
_PATIENCE_S = 30.0
_PORTION = 500  # descriptors that are on their way at a time: few enough for any process to have
_Answer = TypeVar("_Answer", Welcome, Sockets, State)


class Relay:
    """Every call raises Lost, and the relay is not spoken to any more after that."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._inbox = Inbox(channel)
        self.process, self._user = protocol.peer(channel)
        self.entries: dict[Place, Entry] = {}
        """What it serves, as far as we know."""
        self.site = Site()
        self.version, self.number, self.most_files, self.tells_errors = "", 0, 0, False
        self.learn()

    def learn(self) -> None:
        """What it is, and all that it serves."""
        welcome = self._ask(Hello(), Welcome)
        self.version, self.number, self.most_files = welcome.version, welcome.number, welcome.most_files
        self.entries = {entry.place: entry for entry in welcome.entries}
        self.site, self.tells_errors = welcome.site, welcome.tells_errors

    @classmethod
    def start(cls, number: int) -> Self:
        """It belongs to no terminal, no folder and no group of ours, and has nothing of ours open."""
        name = secrets.token_hex(8)
        command = [sys.executable, "-P", "-m", "modes.userspace.worker", str(number), name]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        nowhere = subprocess.DEVNULL
        try:
            process = subprocess.Popen(
                command, stdin=nowhere, stdout=nowhere, stderr=nowhere, cwd="/", env=environment, start_new_session=True
            )
        except OSError as error:  # no memory, or no process more than there are (pids.max)
            raise Lost(f"it can't be started: {error.strerror}") from error
        end = time.monotonic() + _PATIENCE_S
        while (channel := _reached(protocol.PREFIX + name)) is None:
            if process.poll() is not None or time.monotonic() > end:
                raise Lost(f"it did not start (status {process.returncode})")
            time.sleep(0.005)
        return cls(channel)

    def change(
        self, put: Sequence[Entry], drop: Iterable[Place], fresh: Mapping[Place, socket.socket], site: Site
    ) -> State:
        """``fresh``: bound sockets for those places of ``put`` that are new to it."""
        given = [place for entry in put if (place := entry.place) in fresh]
        state = self._ask(Change(list(put), list(drop), given, site), State, [fresh[place] for place in given])
        self.entries.update((entry.place, entry) for entry in put)
        for place in drop:
            self.entries.pop(place, None)
        self.site = site
        return state

    def state(self) -> State:
        return self._ask(Ask(), State)

    def lend(self, places: Sequence[Place]) -> dict[Place, socket.socket]:
        """The sockets of those of them that are served. At most `portions` of them at a time."""
        answer, sockets = self._converse(Lend(list(places)), Sockets)
        return dict(zip(answer.sockets, sockets, strict=True))

    def leave(self, seconds: float = 0) -> None:
        """It is lost to us afterwards, and ends with its last connection."""
        self._ask(Leave(seconds), State)
        self.close()

    def close(self) -> None:
        self._inbox.close()
        self._channel.close()

    def _ask(self, message: Message, kind: type[_Answer], sockets: Sequence[socket.socket] = ()) -> _Answer:
        return self._converse(message, kind, sockets)[0]

    def _converse(
        self, message: Message, kind: type[_Answer], sockets: Sequence[socket.socket] = ()
    ) -> tuple[_Answer, list[socket.socket]]:
        try:
            self._channel.settimeout(_PATIENCE_S)
            for data, some in protocol.pack(message, sockets):
                sent = protocol.send(self._channel, data, some)
                self._channel.sendall(data[sent:])
            while (heard := self._inbox.take()) is None:
                self._inbox.read()
            answer, received = heard
        except TimeoutError as error:
            # It relays nothing either, as there is but one thread.
            self._kill()
            raise Lost(f"it does not answer for {_PATIENCE_S:.0f} s, and was ended") from error
        except (Lost, OSError) as error:
            self.close()
            raise Lost(str(error)) from error
        if not isinstance(answer, kind):
            self.close()
            raise Lost(f"it answers {type(answer).__name__}")
        return answer, received

    def _kill(self) -> None:
        self.close()
        with suppress(ProcessLookupError, PermissionError):
            if self.process in processes():
                os.kill(self.process, signal.SIGKILL)


def found() -> list[Relay]:
    """All that listen in this network namespace, of any version, but not those that are leaving. Raises Lost."""
    prefix = "@" + protocol.PREFIX[1:]
    try:
        names = [line.split()[-1] for line in Path("/proc/thread-self/net/unix").read_text().splitlines()]
    except OSError as error:
        raise Lost(f"names can't be read: {error.strerror}") from error
    channels = (_reached("\0" + name[1:]) for name in dict.fromkeys(names) if name.startswith(prefix))
    return [Relay(channel) for channel in channels if channel is not None]


def _reached(name: str) -> socket.socket | None:
    """None if nobody listens there, or somebody else than root or we: anybody may take a name. Raises Lost."""
    try:
        channel = socket.socket(socket.AF_UNIX)
    except OSError as error:
        raise Lost(f"it can't be spoken to: {error.strerror}") from error
    try:
        channel.connect(name)
        if protocol.peer(channel)[1] in (0, os.geteuid()):
            return channel
    except OSError:
        pass  # it has just ended, or has not begun
    channel.close()
    return None


def portions(places: Iterable[Place]) -> Iterable[list[Place]]:
    """As many at a time as may have their sockets on the way."""
    rest = list(places)
    for start in range(0, len(rest), _PORTION):
        yield rest[start : start + _PORTION]


def processes() -> list[int]:
    """The ids of all relays in this network namespace, those that are ending included, of any version."""
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    running = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"modes.userspace.worker" in words and (folder / "ns/net").stat().st_ino == here:
                running.append(int(folder.name))
        except OSError:
            continue  # it has just ended
    return running
