"""A relay's process: `python -m modes.userspace.worker NUMBER NAME`.

It is started and steered by the proxy, and outlives it. It keeps no capability: the sockets that it listens on are
handed to it.
"""

import os
import resource
import signal
import socket
import sys
import time

from modes.userspace import protocol
from modes.userspace.conversation import Answer, Conversation
from modes.userspace.flows import Flows
from modes.userspace.listener import Crew, Listener
from modes.userspace.origin import Origins
from modes.userspace.poller import READ, Poller
from modes.userspace.protocol import (
    Ask,
    Change,
    Hello,
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
from modes.userspace.unreachable import Unreachable
from pyproxy.kernel.netlink import ROUTE, Netlink

_NOBODY = 65534


class Worker:
    def __init__(self, number: int, name: str) -> None:
        """``number``: which of the relays it is. ``name``: what it is found by."""
        self._number = number
        self._owner = os.geteuid()
        self._version = protocol.version()  # while our files can be read
        self._poller = Poller()
        self._site = Site()
        self._netlink = Netlink(ROUTE)
        self._unreachable = Unreachable()
        flows = Flows(self._poller, self._unreachable.tell)
        self._crew = Crew(self._poller, Origins(self._site, self._netlink), flows)
        self._listeners: dict[Place, Listener] = {}
        self._deaf_at: float | None = None
        self._control = socket.socket(socket.AF_UNIX)
        self._control.setblocking(False)
        self._control.bind(protocol.PREFIX + name)
        self._control.listen()
        self._poller.watch(self._control.fileno(), READ, self._meet)
        self._poller.every_tick(self._tick)

    def run(self) -> None:
        self._poller.run()

    def _meet(self, _: int) -> None:
        channel, _address = self._control.accept()
        _, user = protocol.peer(channel)
        if user in (0, self._owner):
            Conversation(self._poller, channel, self._obey)
        else:
            channel.close()

    def _obey(self, message: Message, sockets: list[socket.socket]) -> Answer:
        match message:
            case Hello():
                entries = [listener.entry for listener in self._listeners.values()]
                most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                tells_errors = not self._unreachable.is_barred
                return Welcome(self._version, self._number, most, entries, self._site, tells_errors), ()
            case Change():
                self._change(message, dict(zip(message.sockets, sockets, strict=True)))
            case Lend():
                places = [place for place in message.places if place in self._listeners]
                return Sockets(places), [self._listeners[place].socket for place in places]
            case Leave():
                self._leave(message.seconds)
            case Ask():
                pass
            case _:
                raise Lost("that is no question")
        return self._state(), ()

    def _change(self, message: Change, fresh: dict[Place, socket.socket]) -> None:
        if message.site != self._site:
            self._site = message.site
            self._crew.origins = Origins(message.site, self._netlink)
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

    def _leave(self, seconds: float) -> None:
        """Be found no more, and end with the last connection."""
        if self._deaf_at is None:
            self._poller.forget(self._control.fileno())
            self._control.close()
        self._deaf_at = time.monotonic() + seconds
        if not seconds:  # another listens at these very sockets; answers to clients of before go out through them yet
            self._stop_all(keep_udp=True)

    def _stop_all(self, *, keep_udp: bool) -> None:
        for listener in self._listeners.values():
            listener.stop(keep=keep_udp and listener.entry.place[0] == "udp")
        self._listeners.clear()

    def _state(self) -> State:
        busy = {relay.address for relay in self._crew.relays}
        return State(sorted(busy), len(self._crew.relays), len(self._crew.flows), *self._poller.take_failures())

    def _tick(self, now: float) -> None:
        self._crew.origins.forget(now)
        self._crew.chooser.forget(now)
        self._crew.flows.tick(now)
        for relay in list(self._crew.relays):
            relay.tick(now)
        if self._deaf_at is None or now < self._deaf_at:
            return
        self._stop_all(keep_udp=False)
        if not self._crew.relays and not len(self._crew.flows):
            self._poller.stop()


def main() -> None:
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what ends the proxy ends no connection; SIGKILL does
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    worker = Worker(int(sys.argv[1]), sys.argv[2])
    try:  # whoever breaks into a relay is nobody
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    except PermissionError:
        pass  # without CAP_SETUID it stays who it is
    worker.run()


if __name__ == "__main__":
    main()
