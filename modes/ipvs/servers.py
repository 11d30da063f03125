"""The kernel's virtual servers: from what they are to what they should be, and how those that go are let finish.

A real server of TCP or SCTP that goes gets the weight 0: no new connection, and those that are open go on. It is
removed when its connections are gone, or after a quarter of an hour. One of UDP goes at once, and the kernel with it
forgets its flows: a client that keeps its port is sent elsewhere with its next packet.
"""

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from modes.ipvs.route import Server
from pyproxy.kernel.ipvs import Ipvs, Key, Load, Real, Service, VirtualServer, spell
from pyproxy.kernel.netlink import Message
from pyproxy.table import IP

LONGEST_DRAIN_S = 15 * 60.0
_ON_ITS_WAY_S = 0.2
"""So long may an answer be on its way when its endpoint goes: once the flow is forgotten, it would not get through."""


_NOT_OURS = -1


@dataclass(slots=True)
class Held:
    """A virtual server of ours as it is in the kernel."""

    service: Service
    drains: bool
    weights: dict[Real, int] = field(default_factory=dict)


class Servers:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """``clock``: seconds since some moment."""
        self._clock = clock
        self.held: dict[Key, Held] = {}
        self._draining: dict[tuple[Key, Real], float] = {}
        """Since when, by the clock."""

    def adopt(self, found: Mapping[Key, VirtualServer], wanted: Iterable[Key]) -> None:
        """What is there and ours, and what others have where ours should be."""
        mine = {key: server for key, server in found.items() if server.service.is_ours} | {
            key: found[key] for key in wanted if key in found
        }
        self.held = {
            key: Held(server.service, not _is_udp(key), {real: _weight(load) for real, load in server.reals.items()})
            for key, server in mine.items()
        }
        # A sync may have failed before it told the kernel, and the next one want the endpoint again.
        self._draining = {
            (key, real): since
            for (key, real), since in self._draining.items()
            if key in self.held and self.held[key].weights.get(real) == 0
        }

    def let_flows_finish(self) -> None:
        """Of UDP, too, where who comes does not find them forgotten: a datagram is lost as IPVS forgets its flow."""
        for held in self.held.values():
            held.drains = True

    def extend(self, ipvs: Ipvs, wanted: Mapping[Key, Server]) -> None:
        """All that is to come, and nothing that is to go."""
        ipvs.carry_out(self._coming(ipvs, wanted))

    def quieten(self, ipvs: Ipvs, keys: Iterable[Key], wanted: Mapping[Key, Server]) -> None:
        """No new connections to what of those ``keys`` is not wanted any more."""
        ipvs.carry_out(self._going(ipvs, keys, wanted))

    def exchange(self, ipvs: Ipvs, wanted: Mapping[Key, Server]) -> None:
        """Both at once: who sees what comes does not see what goes."""
        ipvs.carry_out([*self._coming(ipvs, wanted), *self._going(ipvs, wanted, wanted)])

    def _coming(self, ipvs: Ipvs, wanted: Mapping[Key, Server]) -> Iterator[Message]:
        old = {key: server for key, server in wanted.items() if key in self.held}
        for key in wanted:
            if key in old:
                continue
            server, reals = wanted[key], list(wanted[key].reals)
            # The schedulers begin with the first one: not the same on all nodes, nor for all services.
            random.shuffle(reals)
            yield from ipvs.addition(key, server.service, reals)
            self.held[key] = Held(server.service, server.drains, dict.fromkeys(reals, 1))
        for key, server in old.items():
            held = self.held[key]
            if server.service != held.service:
                yield ipvs.alteration(key, server.service)
            held.service, held.drains = server.service, server.drains
            for real in server.reals:
                if held.weights.get(real) != 1:
                    yield ipvs.weight(key, real, 1) if real in held.weights else ipvs.new_real(key, real)
                    held.weights[real] = 1
                    self._draining.pop((key, real), None)

    def _going(self, ipvs: Ipvs, keys: Iterable[Key], wanted: Mapping[Key, Server]) -> Iterator[Message]:
        now = self._clock()
        for key in keys:
            held = self.held.get(key)
            if held is None:
                continue
            stay = set(wanted[key].reals) if key in wanted else set()
            for real in held.weights.keys() - stay:
                self._draining.setdefault((key, real), now)
                if held.weights[real]:
                    yield ipvs.weight(key, real, 0)
                    held.weights[real] = 0

    def remove(self, ipvs: Ipvs, keys: Iterable[Key], wanted: Mapping[Key, Server]) -> None:
        """What was quietened and lets nothing finish, after what is on its way has had its answer."""
        gone, empty = [], []
        for key in keys:
            held = self.held.get(key)
            if held is None:
                continue
            if not held.drains:
                gone += [(key, real) for real, weight in held.weights.items() if not weight]
            if key not in wanted and (not held.drains or not held.weights):
                empty.append(key)
        if gone:
            time.sleep(_ON_ITS_WAY_S)
        self._forget(ipvs, gone, empty)

    def reap(self, ipvs: Ipvs, found: Mapping[Key, VirtualServer], wanted: Mapping[Key, Server]) -> None:
        """Remove what has drained, by the connections that the kernel tells in ``found``."""
        too_long = self._clock() - LONGEST_DRAIN_S
        gone = [
            (key, real)
            for (key, real), since in self._draining.items()
            if (load := found[key].reals.get(real)) is None or not load.connections or since < too_long
        ]
        drained = {key for key, _ in gone if key not in wanted}
        empty = [key for key in drained if all((key, real) in gone for real in self.held[key].weights)]
        self._forget(ipvs, gone, empty)

    def _forget(self, ipvs: Ipvs, reals: list[tuple[Key, Real]], keys: list[Key]) -> None:
        ipvs.remove_reals(reals)
        ipvs.remove(keys)
        for key, real in reals:
            self._draining.pop((key, real), None)
            self.held[key].weights.pop(real, None)
        for key in keys:
            del self.held[key]

    def busy(self, addresses: AbstractSet[IP], wanted: Mapping[Key, Server]) -> set[IP]:
        """Those that connections still need. Nobody knows the addresses of one that is found by a mark."""
        draining = [key for key in self.held if key not in wanted]
        if any(key.mark for key in draining):
            return set(addresses)
        return {key.address for key in draining if key.address in addresses and key.address is not None}

    def differences(self, found: Mapping[Key, VirtualServer]) -> Iterator[tuple[Key, str]]:
        """How the kernel's are other than they were written."""
        mine = {key for key, server in found.items() if server.service.is_ours}
        for key in mine | self.held.keys():
            held, server = self.held.get(key), found.get(key)
            if held is None or server is None:
                yield key, f"the virtual server {spell(key)} is {'foreign' if held is None else 'missing'}"
                continue
            if server.service != held.service:
                yield key, f"the virtual server {spell(key)} is changed"
            for real in held.weights.keys() | server.reals.keys():
                load = server.reals.get(real)
                if load is None or _weight(load) != held.weights.get(real):
                    how = "missing" if load is None else "changed" if real in held.weights else "foreign"
                    yield key, f"real server {real.address} port {real.port} of {spell(key)} is {how}"


def _weight(load: Load) -> int:
    """One that is not reached as ours are has a weight that none of ours has: so it is written anew, or quietened."""
    return load.weight if load.is_translated else _NOT_OURS


def _is_udp(key: Key) -> bool:
    return key.transport == "udp"
