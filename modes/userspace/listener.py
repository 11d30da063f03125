"""A frontend's socket: who may come, which endpoints there are for whom, and what is done with who comes."""

import os
import socket
import struct
from collections.abc import Collection, Sequence
from ipaddress import ip_address, ip_network

from modes.userspace import packet_filter
from modes.userspace.choice import Chooser
from modes.userspace.descriptors import is_kept
from modes.userspace.flows import Client, Flows
from modes.userspace.origin import Origins
from modes.userspace.poller import ONE_OF_US, READ, Poller
from modes.userspace.protocol import Endpoint, Entry
from modes.userspace.relay import Relay

_BACKLOG = 4096
_AT_ONCE = 64  # connections or datagrams, before others have their turn
_LARGEST = 65536
_RESET = struct.pack("=ii", 1, 0)


class Crew:
    """What all listeners share."""

    def __init__(self, poller: Poller, origins: Origins, flows: Flows) -> None:
        self.poller = poller
        self.origins = origins
        self.chooser = Chooser()
        self.flows = flows
        self.relays: set[Relay] = set()
        self._reserve: int | None = os.open(os.devnull, os.O_RDONLY)

    def turn_away(self, listener: socket.socket) -> None:
        """No descriptor is left at all: take the next client with one that was kept for it, to tell it at once."""
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None
        try:
            client, _ = listener.accept()
            reset(client)
            self._reserve = os.open(os.devnull, os.O_RDONLY)
        except OSError:
            pass  # it is gone, or the machine has no more files; the next one tries again


class Listener:
    def __init__(self, crew: Crew, one: socket.socket, entry: Entry) -> None:
        """``one`` is bound and has its filter, but does not listen yet, unless another relay had it."""
        self._crew = crew
        self.socket = one
        self._is_tcp = entry.place[0] == "tcp"
        self._begins = True
        one.setblocking(False)
        self.change(entry)

    def change(self, entry: Entry) -> None:
        self.entry = entry
        self._sources = None if entry.sources is None else [ip_network(source) for source in entry.sources]
        if self._begins:
            self._begins = False
            if self._is_tcp:
                self.socket.listen(_BACKLOG)
                self._crew.poller.watch(self.socket.fileno(), READ | ONE_OF_US, self._accept)
            else:
                self._crew.poller.watch(self.socket.fileno(), READ, self._take)
        elif not self._is_tcp:
            self._crew.flows.keep_only(entry.place, lambda client: self._pool(client[0]))

    def stop(self, *, keep: bool = False) -> None:
        """``keep``: the socket, through which answers go out."""
        self._crew.poller.forget(self.socket.fileno())
        if not keep:
            self._crew.flows.keep_only(self.entry.place, lambda _: ())
            self.socket.close()

    def _pool(self, client: str) -> Sequence[Endpoint]:
        if self._sources is not None and not any(ip_address(client) in source for source in self._sources):
            return ()
        return self.entry.inside if self._crew.origins.is_inside(client) else self.entry.outside

    def _choose(self, client: str, failed: Collection[Endpoint] = ()) -> Endpoint | None:
        entry = self.entry
        return self._crew.chooser.choose(self._pool(client), entry.route, client, entry.sticky_seconds, failed)

    def _accept(self, _: int) -> None:
        for _turn in range(_AT_ONCE):
            try:
                one, address = self.socket.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError:
                self._crew.turn_away(self.socket)
                return
            if is_kept(one.fileno()):
                reset(one)
                continue
            client = address[0]
            one.setblocking(False)
            packet_filter.detach(one)
            relay = Relay(
                self._crew.poller,
                one,
                self.entry.place[1],
                lambda failed, client=client: self._choose(client, failed),  # type: ignore[misc]
                self._crew.relays.discard,
            )
            if relay.is_open:
                self._crew.relays.add(relay)

    def _take(self, _: int) -> None:
        for _turn in range(_AT_ONCE):
            try:
                data, client = self.socket.recvfrom(_LARGEST)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error for an answer of before
            self._carry(client, data)

    def _carry(self, client: Client, data: bytes) -> None:
        self._crew.flows.carry(self.entry.place, self.socket, client, data, lambda: self._choose(client[0]))


def reset(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    one.close()
