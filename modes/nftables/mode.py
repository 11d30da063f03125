"""The forwarding table as one nftables transaction a sync."""

import time
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet

from modes.nftables import ruleset
from modes.nftables.entries import entries
from modes.nftables.family import DIALECTS
from modes.nftables.family_table import FamilyTable
from modes.nftables.ruleset import TABLE
from pyproxy.kernel import flow, nf_tables, nft, program
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.nf_tables import Heard
from pyproxy.kernel.own_address import speaks
from pyproxy.table import IP, Drift, Family, Host, InUse, Mode, ModeError, Route, RouteId, Table, Transport

_ON_ITS_WAY_S = 0.05
_PLAIN_SETS = (*ruleset.SHARED_SETS, "allowed-sources", *ruleset.HOST_SETS)


class NftablesMode:
    name = "nftables"
    tracks_connections = True
    ends_connections = False
    connects_sockets = False

    def __init__(self) -> None:
        self._tables = {family: FamilyTable(d) for family, d in DIALECTS.items() if speaks(family)}
        self._in_order = False  # whether the kernel holds what self._tables say
        self._watch: nf_tables.Watch | None = None
        self._touched = False  # whether somebody else wrote to our tables since they were in order
        self._fingerprints: dict[Family, bytes] = {}

    def probe(self) -> str | None:
        if program.find("nft") is None:
            return "the program nft is not installed (Debian package nftables)"
        tables = {family: FamilyTable(DIALECTS[family]) for family in self._tables}
        try:
            # Anew, since what is there may be another version's; with -c it stays.
            nft.run(["-c", "-f", "-"], "\n".join(_recreate(tables, Table({}, Host()))))
        except ModeError as error:
            if "Operation not permitted" in str(error):
                return "it takes the capability CAP_NET_ADMIN (run as root)"
            return f"this kernel does not take the ruleset ({error})"
        return None

    def objection(self, route: Route) -> str | None:
        if route.id.family not in self._tables:
            return f"this kernel has no {route.id.family.value}"
        return None

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        if everything:
            self._rebuild(table)
        else:
            self._change(table, changed or frozenset())
        self._in_order = True

    def _rebuild(self, table: Table) -> None:
        """Everything anew."""
        if self._watch:
            self._watch.close()  # the kernel would tell it of each element that we write
        self._watch = None
        before = nf_tables.generation()
        try:
            nft.load("\n".join(self._refill(table)))
        except ModeError:
            # Somebody changed what the sets are made of: affinity is lost, connections are not.
            nft.load("\n".join(_recreate(self._tables, table)))
        self._watch = nf_tables.Watch(TABLE)
        self._fingerprints = {family: nf_tables.fingerprint(family, TABLE) for family in self._tables}
        # Somebody else was at work before the watch began, likely on tables of their own: a full reading will tell.
        self._touched = nf_tables.generation() - before > 1

    def _refill(self, table: Table) -> Iterator[str]:
        """The tables anew, in place where they are of this version."""
        for family, family_table in self._tables.items():
            d = DIALECTS[family]
            present = nft.chains(d.ip, TABLE)
            if present and ruleset.version(d) not in present:
                yield from _recreate({family: family_table}, table)
                continue
            yield from family_table.fill(table)
            stale = sorted(present - family_table.chains)
            yield from (f"flush chain {d.ip} {TABLE} {name}" for name in stale)
            yield from (f"delete chain {d.ip} {TABLE} {name}" for name in stale)

    def _change(self, table: Table, changed: AbstractSet[RouteId]) -> None:
        """Only what differs."""
        behaviours = {family: family_table.behaviours for family, family_table in self._tables.items()}
        script = [
            line
            for family, family_table in self._tables.items()
            for line in family_table.change(table, {id for id in changed if id.family is family})
        ]
        if not script:
            return
        writer = nft.load("\n".join(script))
        rewritten = [family for family, old in behaviours.items() if self._tables[family].behaviours != old]
        for family in rewritten:
            self._fingerprints[family] = nf_tables.fingerprint(family, TABLE)
        heard = self._watch.heard(writer) if self._watch else Heard.NOTHING
        self._touched = self._touched or heard > Heard.NOTHING
        if heard is Heard.TOUCHED:
            for family in rewritten:
                del self._fingerprints[family]

    def shortfalls(self) -> dict[RouteId, str]:
        return {}

    def verify(self) -> list[Drift]:
        """A full reading, but only after somebody else touched the tables."""
        self._touched = self._touched or (self._watch is not None and self._watch.heard() > Heard.NOTHING)
        if not self._touched:
            return []
        drift = [found for family in self._tables for found in self._compare(family)]
        self._touched = bool(drift)  # what was touched during the reading, the watch tells next time
        return drift

    def _compare(self, family: Family) -> Iterator[Drift]:
        ip = DIALECTS[family].ip
        if (ip, TABLE) not in nft.tables():
            yield Drift(None, f"table {ip} {TABLE} is gone")
            return
        try:
            if family not in self._fingerprints:
                yield Drift(None, f"table {ip} {TABLE} was written while somebody else wrote, too; to be sure, again")
            elif nf_tables.fingerprint(family, TABLE) != self._fingerprints[family]:
                yield Drift(None, f"chains or rules of table {ip} {TABLE} were changed")
            found = nft.elements(ip, TABLE, ruleset.MAPS, maps=True)
            found |= nft.elements(ip, TABLE, _PLAIN_SETS, maps=False)
        except ModeError as error:
            yield Drift(None, f"table {ip} {TABLE} can't be read: {error}")
            return
        yield from self._tables[family].differences(found)

    def cleanup(self) -> list[str]:
        """Both tables, of any version."""
        mine = sorted(ip for ip, name in nft.tables() if name == TABLE)
        if mine:
            nft.load("\n".join(f"delete table {ip} {TABLE}" for ip in mine))
        return [f"nftables table {ip} {TABLE}" for ip in mine]

    def retire(self, successor: Mode) -> Iterator[str]:
        """What is open is translated by conntrack, as long as somebody has chains of type nat and a rule about
        connections. A mode that translates has both; for another, a chain and a rule of ours stay until the last of
        these connections is over."""
        mine = {DIALECTS[family].ip: DIALECTS[family] for family in self._tables}
        there = [mine[ip] for ip, name in sorted(nft.tables()) if name == TABLE and ip in mine]
        for d in there:
            if "services" in nft.chains(d.ip, TABLE):
                # What was marked on its way in is to be masqueraded on its way out.
                nft.load(f"flush chain {d.ip} {TABLE} prerouting\nflush chain {d.ip} {TABLE} output")
                time.sleep(_ON_ITS_WAY_S)
        if not successor.tracks_connections and there:
            with as_mode_error("conntrack can't be read"):
                left = flow.translated()
            if left:
                if any("services" in nft.chains(d.ip, TABLE) for d in there):
                    script = [line for d in there for line in (f"delete table {d.ip} {TABLE}", *ruleset.idle(d))]
                    nft.load("\n".join(script))
                    yield from (f"all but the hooks of nftables table {d.ip} {TABLE}" for d in there)
                raise InUse(f"{left} connections are translated yet")
        yield from self.cleanup()

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        """Elements and rules, each as `nft add` would take it."""
        return list(entries(address, port, transport))


def _recreate(tables: Mapping[Family, FamilyTable], table: Table) -> Iterator[str]:
    """The tables anew, whatever is there."""
    for family, family_table in tables.items():
        yield f"add table {DIALECTS[family].ip} {TABLE}"
        yield f"delete table {DIALECTS[family].ip} {TABLE}"
        yield from family_table.fill(table)
