"""The relay of this network namespace, as the proxy sees it: found, started, steered, replaced."""

import logging
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TypeVar

from modes.userspace import protocol
from modes.userspace.protocol import (
    Ask,
    Change,
    Drain,
    Entry,
    HandOver,
    Hello,
    Lost,
    Message,
    Place,
    Site,
    Sockets,
    State,
    Welcome,
)

log = logging.getLogger("pyproxy")

_ROOT = Path(__file__).parents[2]  # where `modes` and `pyproxy` are
_PATIENCE_S = 30.0
_Answer = TypeVar("_Answer", Welcome, Sockets, State)


class Relay:
    """Every call raises Lost."""

    def __init__(self) -> None:
        self._channel: socket.socket | None = None
        self.entries: dict[Place, Entry] = {}
        """What it serves, as far as we know."""
        self.site = Site()

    def muster(self) -> None:
        """There is one of this version afterwards, which serves what one of before served."""
        found = self.find()
        if found == protocol.version():
            return
        served, site, sockets = self.entries, self.site, self.hand_over() if found else {}
        self._start()
        if sockets:
            log.info("took over from a relay of another version", extra={"sockets": len(sockets)})
            self.change([served[place] for place in sockets], [], sockets, site)
            for one in sockets.values():
                one.close()

    def find(self) -> str | None:
        """The version of the one that runs, None if none does."""
        self.close()
        self.entries = {}
        channel = socket.socket(socket.AF_UNIX)
        try:
            channel.connect(protocol.ADDRESS)
        except OSError:
            channel.close()
            return None
        self._channel = channel
        welcome = self._ask(Hello(), Welcome)
        self.entries, self.site = {entry.place: entry for entry in welcome.entries}, welcome.site
        return welcome.version

    def _start(self) -> None:
        """In a session of its own, so that no signal for us reaches it, and with nothing of ours open."""
        command = [sys.executable, "-P", "-m", "modes.userspace.worker"]
        environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(
            command, stdin=nowhere, stdout=nowhere, stderr=nowhere, cwd="/", env=environment, start_new_session=True
        )
        end = time.monotonic() + _PATIENCE_S
        while self.find() is None:
            if process.poll() is not None or time.monotonic() > end:
                raise Lost(f"it did not start (status {process.returncode})")
            time.sleep(0.005)

    def change(self, put: list[Entry], drop: list[Place], fresh: dict[Place, socket.socket], site: Site) -> State:
        """``fresh``: bound sockets for places that are new."""
        message = Change(put, drop, list(fresh), site)
        state = self._ask(message, State, [one.fileno() for one in fresh.values()])
        self.entries.update((entry.place, entry) for entry in put)
        for place in drop:
            self.entries.pop(place, None)
        self.site = site
        return state

    def state(self) -> State:
        return self._ask(Ask(), State)

    def hand_over(self) -> dict[Place, socket.socket]:
        """Its sockets; it ends with its last connection."""
        places = self._ask(HandOver(), Sockets).places
        return dict(zip(places, protocol.receive_sockets(self._open(), len(places)), strict=True))

    def drain(self) -> State:
        """As `hand_over`, but nobody has its sockets."""
        return self._ask(Drain(), State)

    def close(self) -> None:
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self) -> socket.socket:
        if self._channel is None:
            raise Lost("it is not there")
        return self._channel

    def _ask(self, message: Message, kind: type[_Answer], descriptors: list[int] | None = None) -> _Answer:
        try:
            protocol.send(self._open(), message, descriptors)
            answer = protocol.receive(self._open())
        except Lost:
            self.close()
            raise
        if not isinstance(answer, kind):
            self.close()
            raise Lost(f"it answers {type(answer).__name__}")
        return answer


def processes() -> list[int]:
    """The ids of all relays in this network namespace, those that are ending included, of any version."""
    here = Path("/proc/thread-self/ns/net").stat().st_ino
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if b"modes.userspace.worker" in words and (folder / "ns/net").stat().st_ino == here:
                found.append(int(folder.name))
        except OSError:
            continue  # it has just ended
    return found
