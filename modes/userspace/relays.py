"""All relays that serve, one or one for each core: which of them serves what, and how they take over from others.

Who connects by TCP may be relayed by any of them, so they listen at one socket together. Where a client must come to
the same endpoint again, in UDP and where clients stick, all of a route is one relay's.
"""

import logging
import os
import select
import socket
import threading
from collections import ChainMap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from zlib import crc32

from modes.userspace import protocol, relay_process
from modes.userspace.protocol import Entry, Lost, Place, Site, State
from modes.userspace.relay_process import Relay, portions
from pyproxy.kernel import capability

log = logging.getLogger("pyproxy")

_SPARE = 8  # one in so many descriptors is kept for connections, however many places are served


class Relays:
    """Every call raises Lost."""

    def __init__(self) -> None:
        self._relays: list[Relay] = []
        self._watched: set[int] = set()
        self.ended: Callable[[], None] = lambda: None
        """Called from another thread when the process of one of them has ended."""

    def muster(self, count: int) -> None:
        """``count`` of this version are there afterwards. They serve what others served before them, which then leave.

        At no moment nobody listens, and whoever is interrupted in the midst of it finds all that it takes to go on.
        """
        fit, others = self._find(count)
        self._relays = [fit.get(number) or Relay.start(number) for number in range(count)]
        for relay in self._relays:
            self._watch(relay.process)
        for other in others:
            log.info("taking over from another relay", extra={"places": len(other.entries), "version": other.version})
            orphans = other.entries.keys() - self.places()
            for portion in portions(orphans):
                with _closing(other.lend(portion)) as sockets:
                    self.change([other.entries[place] for place in sockets], frozenset(), sockets, other.site)
            other.leave()

    def _watch(self, process: int) -> None:
        if process not in self._watched:
            self._watched.add(process)
            threading.Thread(target=self._await, args=(process,), name=f"relay {process}", daemon=True).start()

    def _await(self, process: int) -> None:
        try:
            handle = os.pidfd_open(process)
        except ProcessLookupError:
            pass
        except OSError:  # before Linux 5.3, or there is no descriptor: the next verification tells
            self._watched.discard(process)
            return
        else:
            end = select.poll()
            end.register(handle, select.POLLIN)
            end.poll()
            os.close(handle)
        self._watched.discard(process)
        self.ended()

    def _find(self, count: int) -> tuple[dict[int, Relay], list[Relay]]:
        """Those that will do, by their number, and the others."""
        self.close()
        fit: dict[int, Relay] = {}
        others = []
        may_tell = not capability.lacking(["CAP_NET_RAW"])
        for relay in relay_process.found():
            does_all = relay.version == protocol.version() and relay.tells_errors >= may_tell
            if does_all and relay.number < count and relay.number not in fit:
                fit[relay.number] = relay
            else:
                others.append(relay)
        return fit, others

    def close(self) -> None:
        for relay in self._relays:
            relay.close()
        self._relays = []

    def places(self) -> AbstractSet[Place]:
        """Where somebody listens."""
        return ChainMap(*(relay.entries for relay in self._relays)).keys()

    def entry(self, place: Place) -> Entry | None:
        """What is served there."""
        return next((relay.entries[place] for relay in self._relays if place in relay.entries), None)

    def serves(self, entry: Entry, site: Site) -> bool:
        """Exactly so, and by none but those that it is up to."""
        own = self._own(entry)
        return all(
            relay.entries.get(entry.place) == (entry if relay.number in own else None) and relay.site == site
            for relay in self._relays
        )

    @property
    def tell_errors(self) -> bool:
        """Whether clients of UDP hear of ICMP errors, whichever relay they meet."""
        return all(relay.tells_errors for relay in self._relays)

    @property
    def most_files(self) -> int:
        """That each of them may have open: one for each place, two or more for each connection."""
        return min(relay.most_files for relay in self._relays)

    @property
    def most_places(self) -> int:
        """That they can listen at."""
        return self.most_files - self.most_files // _SPARE

    def change(
        self, put: Sequence[Entry], drop: AbstractSet[Place], fresh: Mapping[Place, socket.socket], site: Site
    ) -> None:
        """``fresh``: bound sockets for places where nobody listens yet."""
        for relay in self._relays:
            own = [entry for entry in put if relay.number in self._own(entry)]
            gone = drop & relay.entries.keys()
            if not (own or gone or site != relay.site):
                continue
            new = [entry.place for entry in own if entry.place not in relay.entries]
            with _closing(self._lend([place for place in new if place not in fresh])) as lent:
                relay.change(own, gone, {**fresh, **lent}, site)
        # Once others have what is not up to them any more.
        for relay in self._relays:
            strange = {entry.place for entry in put if relay.number not in self._own(entry)} & relay.entries.keys()
            if strange:
                relay.change((), strange, {}, site)

    def states(self) -> list[State]:
        return [relay.state() for relay in self._relays]

    def lend(self, places: Iterable[Place]) -> Iterator[tuple[Place, socket.socket]]:
        """The sockets at these places, each to be closed by who takes it."""
        for portion in portions(places):
            yield from self._lend(portion).items()

    def _lend(self, places: Iterable[Place]) -> dict[Place, socket.socket]:
        left, lent = set(places), {}
        for relay in self._relays:
            if own := left & relay.entries.keys():
                lent.update(relay.lend(list(own)))
                left -= own
        return lent

    def differences(self) -> Iterator[tuple[Place | None, str]]:
        """Between what they should serve and what they do."""
        for relay in self._relays:
            known, site = relay.entries, relay.site
            try:
                relay.learn()
            except Lost as error:
                yield None, f"relay {relay.number} is gone: {error}"
                continue
            for place in known.keys() | relay.entries.keys():
                if known.get(place) != relay.entries.get(place):
                    yield place, f"relay {relay.number} does not serve {place} as it was told"
            if site != relay.site:
                yield None, f"relay {relay.number} knows other pods than it was told"

    def _own(self, entry: Entry) -> AbstractSet[int]:
        """The numbers of those that it is up to."""
        count = len(self._relays)
        if entry.place[0] == "tcp" and not entry.sticky_seconds:
            return frozenset(range(count))
        return frozenset((crc32(entry.route.encode()) % count,))


@contextmanager
def _closing(sockets: dict[Place, socket.socket]) -> Iterator[dict[Place, socket.socket]]:
    try:
        yield sockets
    finally:
        for one in sockets.values():
            one.close()
