"""The forwarding table as virtual servers, sets and local routes, each written in a few system calls.

Netlink knows no transaction over all of them. So a sync first writes all that comes and then takes away what goes, each
in an order in which nothing is served to those who must not have it; and one that fails is repaired by the next, which
reads the kernel and writes what differs.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import closing
from types import MappingProxyType

from modes.ipvs import ruleset, tuning
from modes.ipvs.entries import entries
from modes.ipvs.plan import Plan, gone_in_order, in_order
from modes.ipvs.route import Site
from modes.ipvs.ruleset import SHARE, set_name, sets
from modes.ipvs.servers import Servers
from pyproxy.kernel import ipset, iptables, own_address
from pyproxy.kernel.claimed_address import ClaimedAddresses
from pyproxy.kernel.error import Lacking, as_mode_error
from pyproxy.kernel.ipset import Elements, Slot
from pyproxy.kernel.iptables import Chains, Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS
from pyproxy.kernel.ipvs import Ipvs, Key, VirtualServer, spell
from pyproxy.table import (
    IP,
    Drift,
    Family,
    Host,
    InUse,
    Mode,
    ModeError,
    Route,
    RouteId,
    Table,
    Transport,
    contains,
    family_of,
)

log = logging.getLogger("pyproxy")

_OWNER = 113
"""Of local routes; see pyproxy.kernel.local_route."""
_TRIAL_MARK = 0x30D60000
_CLAIMED = {set_name("CLAIMED", family) for family in Family}
_BARRING = {set_name(kind, family) for kind in ("REFUSED", "DROPPED") for family in Family}
_HAIRPIN = {set_name("HAIRPIN", family) for family in Family}


class IpvsMode:
    name = "ipvs"
    tracks_connections = True
    ends_connections = False
    connects_sockets = False

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._families = [family for family in DIALECTS if own_address.speaks(family)]
        self._sets = {name: one for family in self._families for name, one in sets(family).items()}
        self._addresses = ClaimedAddresses(_OWNER)
        self._flavour: Flavour | None = None
        self._is_alone = False  # nothing of an earlier run is in the other flavour
        self._ipvs: Ipvs | None = None
        self._scheduler = ""  # the last one that the kernel was seen to have
        self._host = Host()
        self._site = Site()
        self._plan = Plan(self._site)
        self._servers = Servers(clock)
        self._in_order = False  # whether the kernel holds what all of these say

    @property
    def flavour(self) -> Flavour:
        """Found out once: a host does not change it while it runs."""
        if self._flavour is None:
            self._flavour = iptables.detect()
        return self._flavour

    @property
    def ipvs(self) -> Ipvs:
        if self._ipvs is None:
            self._ipvs = Ipvs()
        return self._ipvs

    def probe(self) -> str | None:
        try:
            Ipvs().services()
            before = set(ipset.names())
            try:
                ipset.create(self._sets.values())
                for family in self._families:
                    chains = ruleset.chains(DIALECTS[family], Host())
                    script = "".join(iptables.script(table, some) for table, some in chains.items())
                    iptables.load(DIALECTS[family], self.flavour, script, "--test")
            finally:
                ipset.destroy((self._sets.keys() - before) & set(ipset.names()))
        except ModeError as error:
            if "permitted" in str(error) and (lacking := iptables.lacking_capabilities()):
                return f"it takes the capability {lacking} (run as root)"
            return str(error)
        return tuning.objection()

    def objection(self, route: Route) -> str | None:
        if route.id.family not in self._families:
            return f"this kernel has no {route.id.family.value}"
        return None

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        if everything:
            self._rebuild(table)
            self._is_alone = self._is_alone or iptables.clear_other(SHARE, self.flavour)
        else:
            change = self._plan.change(table, changed or frozenset())
            self._write(change.servers, change.come, change.gone, _claims(change.come))
        self._in_order = True

    def _rebuild(self, table: Table) -> None:
        """Whatever is not as it must be, in place."""
        self._host = table.host
        tuning.tune(self.ipvs, table.host.ipvs)
        if self._scheduler != table.host.ipvs.scheduler:
            for family in self._families:
                self.ipvs.try_scheduler(family, _TRIAL_MARK, table.host.ipvs.scheduler)
            self._scheduler = table.host.ipvs.scheduler
        self._site = _site(table.host)
        found = self.ipvs.services()
        self._plan = Plan(self._site, self._others(found))
        self._plan.change(table, table.routes.keys())
        for key, owner in self._plan.left().items():
            log.warning("left to others, by excludeCIDRs", extra={"virtual_server": spell(key), "service": str(owner)})
        self._servers.adopt(found, self._plan.servers)
        ipset.create(self._sets.values())
        for family in self._families:
            iptables.put(SHARE, DIALECTS[family], self.flavour, ruleset.chains(DIALECTS[family], self._host))
        there = ipset.read(self._sets.values())
        wanted = self._plan.elements
        self._addresses.adopt(_claims(wanted))
        wanted = wanted | {_draining(ip): 0 for ip in self._addresses.leaving}
        come = {slot: mark for slot, mark in wanted.items() if there.get(slot) != mark}
        keys = self._servers.held.keys() | self._plan.servers.keys()
        self._write(keys, come, there.keys() - wanted.keys(), _claims(wanted))

    def _others(self, found: Mapping[Key, VirtualServer]) -> set[Key]:
        """Virtual servers that stay theirs: KubeProxyConfiguration.ipvs.excludeCIDRs."""
        prefixes = self._host.ipvs.exclude_cidrs
        theirs = (key for key, server in found.items() if not server.service.is_ours)
        return {key for key in theirs if key.address and any(contains(prefix, key.address) for prefix in prefixes)}

    def _write(self, keys: AbstractSet[Key], come: Elements, gone: Iterable[Slot], claims: AbstractSet[IP]) -> None:
        """In an order in which whoever sees something new sees all of it, and does not see any more what it replaced.

        What only goes, or kept somebody out, goes first, but endpoints that come are there before, and before them what
        lets them reach themselves. What else moves from one set to another comes first. An address is claimed when all
        is ready for it; and at last others get new ports, and servers other endpoints and nothing else, at once.
        """
        wanted, come, gone = self._plan.servers, in_order(come), gone_in_order(gone)
        leaving, moving = _claims(gone) & self._addresses.claimed, {slot.key for slot in come}
        later = [slot for slot in gone if slot.key in moving and slot.set not in _BARRING]
        hairpins = {slot: mark for slot, mark in come.items() if slot.set in _HAIRPIN}
        late = [slot for slot in gone if slot.set in _HAIRPIN]
        new = claims - self._addresses.claimed
        last = self._last(keys & wanted.keys(), new, moving, gone)
        ipset.change(self._sets, [], hairpins)
        self._servers.extend(self.ipvs, {key: wanted[key] for key in (keys & wanted.keys()) - set(last)})
        # Nobody new comes to an address that is about to go.
        ipset.change(self._sets, [], {_draining(ip): 0 for ip in leaving})
        ipset.change(self._sets, [slot for slot in gone if slot not in later and slot not in late], {})
        self._servers.quieten(self.ipvs, keys - set(last), wanted)
        ipset.change(self._sets, [], {slot: mark for slot, mark in come.items() if _address(slot) in new})
        returning = self._addresses.leaving & claims
        self._addresses.claim(claims)
        rest = {slot: mark for slot, mark in come.items() if _address(slot) not in new and slot not in hairpins}
        ipset.change(self._sets, later, rest)
        self._servers.exchange(self.ipvs, {key: wanted[key] for key in last})
        ipset.change(self._sets, [*late, *map(_draining, returning)], {})
        self._addresses.leave(leaving - claims)
        self._servers.remove(self.ipvs, keys, wanted)
        self._let_go()

    def _last(
        self, keys: AbstractSet[Key], new: AbstractSet[IP], moving: AbstractSet[str], gone: Iterable[Slot]
    ) -> list[Key]:
        """Those of ``keys`` that are written when all else is, in order: node ports, other new ports, endpoints."""
        going = {slot.key: slot.set in _BARRING for slot in gone}
        held, claimed = self._servers.held.keys(), self._addresses.claimed
        found = []
        for key in keys:
            if key.address is None or key.address in new:
                continue
            place = _place(key)
            gets_only_endpoints = place not in moving and place not in going
            if gets_only_endpoints if key in held else not going.get(place):
                found.append(key)
        return sorted(found, key=lambda key: (key in held, key.address in claimed))

    def _let_go(self) -> None:
        """Of addresses that no service has any more, as soon as no connection needs them."""
        free = self._addresses.let_go(self._servers.busy(self._addresses.leaving, self._plan.servers))
        ipset.change(self._sets, map(_draining, free), {})

    def shortfalls(self) -> dict[RouteId, str]:
        return {}

    def verify(self) -> list[Drift]:
        """All of it is read; and what has drained is removed."""
        found = self.ipvs.services()
        drift = list(self._compare(found))
        if not drift:
            self._servers.reap(self.ipvs, found, self._plan.servers)
            self._let_go()
        return drift

    def _compare(self, found: dict[Key, VirtualServer]) -> Iterator[Drift]:
        if _site(self._host) != self._site:
            yield Drift(None, "the addresses of this node are others now")
        owners = self._plan.owners()
        for key, what in self._servers.differences(found):
            yield Drift(owners.get(key), what)
        for key, owner in self._plan.left().items():
            if key not in found:
                yield Drift(owner, f"the virtual server {spell(key)}, left to others by excludeCIDRs, is gone")
        there, wanted = ipset.read(self._sets.values()), self._plan.elements
        wanted = wanted | {_draining(ip): 0 for ip in self._addresses.leaving}
        for slot in there.keys() | wanted.keys():
            if there.get(slot) != wanted.get(slot):
                how = "foreign" if slot not in wanted else "missing" if slot not in there else "changed"
                yield Drift(owners.get(slot), f"element {slot.key} of set {slot.set} is {how}")
        for what in self._addresses.differences():
            yield Drift(None, what)
        for family in self._families:
            d = DIALECTS[family]
            for _, what in iptables.differences(SHARE, d, self.flavour, ruleset.chains(d, self._host)):
                yield Drift(None, what)
        if reason := tuning.drift(self._host.ipvs):
            yield Drift(None, reason)

    def cleanup(self) -> list[str]:
        """Of any version, in both flavours of iptables. Virtual servers first: without the rules, what they translate
        would not be masqueraded."""
        removed = []
        ipvs = _conversation()
        if ipvs is not None:
            mine = [key for key, server in ipvs.services().items() if server.service.is_ours]
            ipvs.remove(mine)
            removed += [f"{len(mine)} virtual servers of IPVS"] if mine else []
        return [*removed, *_remove_rules_and_sets(), *self._addresses.release()]

    def retire(self, successor: Mode) -> Iterator[str]:
        """Virtual servers take no new connection, and stay until those that are open have ended; with them a rule, if
        the other mode does not let the kernel track connections, since they may be masqueraded. Unless connections end
        at this node with the other mode: its own would be taken away from it."""
        if successor.ends_connections:
            yield from self.cleanup()
            return
        for flavour in Flavour:
            iptables.shut(SHARE, flavour)
        ipvs = _conversation()
        servers = Servers()
        if ipvs is not None:
            found = ipvs.services()
            if successor.connects_sockets:
                found = _without_remembered(found)
            servers.adopt(found, ())
            if successor.tracks_connections:
                servers.let_flows_finish()
            servers.quieten(ipvs, list(servers.held), {})
            servers.remove(ipvs, list(servers.held), {})
            servers.reap(ipvs, found, {})
            if gone := len([key for key in found if found[key].service.is_ours and key not in servers.held]):
                yield f"{gone} virtual servers of IPVS"
        yield from _remove_rules_and_sets(
            {} if successor.tracks_connections or not servers.held else {"nat": ruleset.OPEN}
        )
        listed = self._addresses.listed()
        yield from self._addresses.release(listed - servers.busy(listed, {}))
        if servers.held:
            raise InUse(f"{len(servers.held)} virtual servers of IPVS have open connections")

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        """In the words of ip(8), ipset(8) and ipvsadm(8)."""
        is_claimed = address in self._addresses.listed()
        with closing(Ipvs()) as ipvs:  # one's own: another thread may be in the midst of a sync
            servers = ipvs.services()
        return list(entries(address, port, transport, servers, ipset.read(self._sets.values()), is_claimed))


def _without_remembered(found: Mapping[Key, VirtualServer]) -> dict[Key, VirtualServer]:
    """No connection that has ended, where there has been nothing new since we were asked before.

    IPVS remembers each for two minutes, and takes what the endpoint sends to that port of that client for an answer of
    it: a socket that is connected to the endpoint itself would not know from whom that is. Without its endpoint the
    kernel forgets it at once (expire_nodest_conn).
    """
    return {
        key: VirtualServer(
            server.service,
            {
                real: load if load.weight else load._replace(connections=load.active)
                for real, load in server.reals.items()
            },
        )
        for key, server in found.items()
    }


def _site(host: Host) -> Site:
    with as_mode_error("the addresses of this node can't be read"):
        own = own_address.of_devices()
    answering = own_address.node_port_addresses(host.node_port_prefixes, own)
    return Site(host.ipvs.scheduler, own, answering)


def _claims(slots: Iterable[Slot]) -> set[IP]:
    """The addresses that some of them claim."""
    return {IP(slot.key) for slot in slots if slot.set in _CLAIMED}


def _address(slot: Slot) -> str:
    """The first part of its key."""
    return slot.key.partition(",")[0]


def _place(key: Key) -> str:
    """As sets have it."""
    return f"{key.address},{key.transport}:{key.port}"


def _draining(address: IP) -> Slot:
    return Slot(set_name("DRAINING", family_of(address)), address)


def _conversation() -> Ipvs | None:
    """None where the kernel has no IPVS, and so nothing of ours in it."""
    try:
        return Ipvs()
    except Lacking:
        return None


def _remove_rules_and_sets(stays: Mapping[str, Chains] = MappingProxyType({})) -> Iterator[str]:
    """``stays``: what is left of a table of iptables."""
    for flavour in Flavour:
        yield from iptables.remove(SHARE, flavour, stays)
    try:
        mine = [name for name in ipset.names() if ruleset.is_own(name)]
    except Lacking:
        return
    if mine:
        ipset.destroy(mine)
        yield f"{len(mine)} sets of addresses"
