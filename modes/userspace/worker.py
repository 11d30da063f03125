"""A relay's process: `python -m modes.userspace.worker`. It is steered over its socket, and ends when told to.

It is started by the proxy and outlives it. It keeps no capability: the sockets that it listens on are handed to it.
"""

import os
import resource
import signal
import socket
import time

from modes.userspace import protocol
from modes.userspace.flows import Flows
from modes.userspace.listener import Crew, Listener
from modes.userspace.origin import Origins
from modes.userspace.poller import READ, Poller
from modes.userspace.protocol import (
    Ask,
    Change,
    Drain,
    HandOver,
    Hello,
    Lend,
    Lost,
    Message,
    Place,
    Site,
    Sockets,
    State,
    Welcome,
)
from modes.userspace.unreachable import Unreachable

_NOBODY = 65534
_PATIENCE_S = 1.0
"""With a proxy in the midst of a message: nothing is relayed meanwhile."""
_LISTEN_ON_S = 1.0
"""After another mode has taken over, for whose handshake is under way."""


class Worker:
    def __init__(self) -> None:
        self._owner = os.geteuid()
        self._version = protocol.version()  # while our files can be read
        self._poller = Poller()
        self._site = Site()
        flows = Flows(self._poller, Unreachable().tell)
        self._crew = Crew(self._poller, Origins(self._site), flows)
        self._listeners: dict[Place, Listener] = {}
        self._ends_when_idle = False
        self._deaf_at = float("inf")
        self._control = socket.socket(socket.AF_UNIX)
        self._control.bind(protocol.ADDRESS)
        self._control.listen()
        self._poller.watch(self._control.fileno(), READ, self._meet)
        self._poller.every_tick(self._tick)

    def run(self) -> None:
        self._poller.run()

    def _meet(self, _: int) -> None:
        channel, _address = self._control.accept()
        if not protocol.peer_is_allowed(channel, self._owner):
            channel.close()
            return
        self._poller.watch(channel.fileno(), READ, lambda _: self._hear(channel))

    def _hear(self, channel: socket.socket) -> None:
        try:
            self._obey(channel, protocol.receive(channel, _PATIENCE_S))
        except Lost:
            self._poller.forget(channel.fileno())
            channel.close()

    def _obey(self, channel: socket.socket, message: Message) -> None:
        match message:
            case Hello():
                entries = [listener.entry for listener in self._listeners.values()]
                protocol.send(channel, Welcome(self._version, entries, self._site))
            case Change():
                fresh = dict(zip(message.sockets, protocol.receive_sockets(channel, len(message.sockets)), strict=True))
                self._change(message, fresh)
                protocol.send(channel, self._state())
            case Lend():
                places = [place for place in message.places if place in self._listeners]
                descriptors = [self._listeners[place].socket.fileno() for place in places]
                protocol.send(channel, Sockets(places), descriptors)
            case HandOver():
                places = list(self._listeners)
                descriptors = [self._listeners[place].socket.fileno() for place in places]
                self._leave()
                protocol.send(channel, Sockets(places), descriptors)
                for listener in self._listeners.values():
                    listener.stop(keep=listener.entry.place[0] == "udp")
                self._listeners.clear()
            case Ask():
                protocol.send(channel, self._state())
            case Drain():
                self._leave()
                self._deaf_at = time.monotonic() + _LISTEN_ON_S
                protocol.send(channel, self._state())
            case _:
                raise Lost("that is no question")

    def _change(self, message: Change, fresh: dict[Place, socket.socket]) -> None:
        if message.site != self._site:
            self._site = message.site
            self._crew.origins = Origins(message.site)
            for listener in self._listeners.values():
                listener.change(listener.entry)
        for entry in message.put:
            if entry.place in self._listeners:
                self._listeners[entry.place].change(entry)
            elif one := fresh.pop(entry.place, None):
                self._listeners[entry.place] = Listener(self._crew, one, entry)
        for place in message.drop:
            if gone := self._listeners.pop(place, None):
                gone.stop()

    def _leave(self) -> None:
        """Be found no more, and end with the last connection."""
        if not self._ends_when_idle:
            self._poller.forget(self._control.fileno())
            self._control.close()
        self._ends_when_idle = True

    def _state(self) -> State:
        busy = {relay.address for relay in self._crew.relays}
        return State(sorted(busy), len(self._crew.relays), len(self._crew.flows))

    def _tick(self, now: float) -> None:
        self._crew.origins.forget(now)
        self._crew.chooser.forget(now)
        self._crew.flows.tick(now)
        for relay in list(self._crew.relays):
            relay.tick(now)
        if now >= self._deaf_at and self._listeners:
            for listener in self._listeners.values():
                listener.stop()
            self._listeners.clear()
        if self._ends_when_idle and not self._listeners and not self._crew.relays and not len(self._crew.flows):
            self._poller.stop()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what ends the proxy ends no connection; SIGKILL does
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    worker = Worker()
    try:  # whoever breaks into a relay is nobody
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except PermissionError:
        pass  # without CAP_SETUID it stays who it is
    worker.run()


if __name__ == "__main__":
    main()
