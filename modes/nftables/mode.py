"""The forwarding table as one nftables transaction a sync."""

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from modes.nftables import kernel, netlink, ruleset
from modes.nftables.family import DIALECTS
from modes.nftables.family_table import FamilyTable
from modes.nftables.ruleset import TABLE
from pyproxy.table import Drift, Family, Host, ModeError, RouteId, Table

_PLAIN_SETS = (*ruleset.SHARED_SETS, "allowed-sources", *ruleset.HOST_SETS)


class NftablesMode:
    name = "nftables"
    tracks_connections = True

    def __init__(self) -> None:
        self._tables = {family: FamilyTable(d) for family, d in DIALECTS.items() if _kernel_speaks(family)}
        self._in_order = False  # whether the kernel holds what self._tables say
        self._generation: int | None = None  # of the kernel, as long as we know all that led to it
        self._fingerprints: dict[Family, bytes] = {}

    def probe(self) -> str | None:
        if kernel.find_nft() is None:
            return "the program nft is not installed (Debian package nftables)"
        empty = Table({}, Host())
        try:
            script = [line for family in self._tables for line in FamilyTable(DIALECTS[family]).fill(empty)]
            kernel.run_nft(["-c", "-f", "-"], "\n".join(script))
        except ModeError as error:
            if "Operation not permitted" in str(error):
                return "it takes the capability CAP_NET_ADMIN (run as root)"
            return f"this kernel does not take the ruleset ({error})"
        return None

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        before = netlink.generation()
        rewritten = self._rebuild(table) if everything else self._change(table, changed or frozenset())
        self._in_order = True
        for family in rewritten:
            self._fingerprints[family] = netlink.fingerprint(family, TABLE)
        after = netlink.generation()
        if after - before > 1:  # somebody else was at work meanwhile, maybe before the fingerprints were taken
            for family in rewritten:
                del self._fingerprints[family]
        ours = after - before <= 1 and (everything or before == self._generation)
        self._generation = after if ours else None

    def _rebuild(self, table: Table) -> list[Family]:
        """Everything anew; returns whose rules were written."""
        try:
            kernel.load("\n".join(self._refill(table)))
        except ModeError:
            # Somebody changed what the sets are made of: affinity is lost, connections are not.
            kernel.load("\n".join(self._recreate(self._tables, table)))
        return list(self._tables)

    def _refill(self, table: Table) -> Iterator[str]:
        """The tables anew, in place where they are of this version."""
        for family, family_table in self._tables.items():
            d = DIALECTS[family]
            present = kernel.chains(d.ip)
            if present and ruleset.version(d) not in present:
                yield from self._recreate([family], table)
                continue
            yield from family_table.fill(table)
            stale = sorted(present - family_table.chains)
            yield from (f"flush chain {d.ip} {TABLE} {name}" for name in stale)
            yield from (f"delete chain {d.ip} {TABLE} {name}" for name in stale)

    def _recreate(self, families: Iterable[Family], table: Table) -> Iterator[str]:
        """The tables anew, whatever is there."""
        for family in families:
            yield f"add table {DIALECTS[family].ip} {TABLE}"
            yield f"delete table {DIALECTS[family].ip} {TABLE}"
            yield from self._tables[family].fill(table)

    def _change(self, table: Table, changed: AbstractSet[RouteId]) -> list[Family]:
        """Only what differs; returns whose rules were written."""
        chains = {family: family_table.chains for family, family_table in self._tables.items()}
        script = [
            line
            for family, family_table in self._tables.items()
            for line in family_table.change(table, {id for id in changed if id.family is family})
        ]
        if script:
            kernel.load("\n".join(script))
        return [family for family, old in chains.items() if self._tables[family].chains != old]

    def verify(self) -> list[Drift]:
        """One message while nobody else has written to nftables since, a full reading otherwise."""
        before = netlink.generation()
        if before == self._generation:
            return []
        drift = [found for family in self._tables for found in self._compare(family)]
        if not drift and netlink.generation() == before:
            self._generation = before
        return drift

    def _compare(self, family: Family) -> Iterator[Drift]:
        ip = DIALECTS[family].ip
        if (ip, TABLE) not in kernel.tables():
            yield Drift(None, f"table {ip} {TABLE} is gone")
            return
        try:
            if family not in self._fingerprints:
                yield Drift(None, f"table {ip} {TABLE} was written while somebody else wrote, too; to be sure, again")
            elif netlink.fingerprint(family, TABLE) != self._fingerprints[family]:
                yield Drift(None, f"chains or rules of table {ip} {TABLE} were changed")
            found = kernel.elements(ip, ruleset.MAPS, maps=True) | kernel.elements(ip, _PLAIN_SETS, maps=False)
        except ModeError as error:
            yield Drift(None, f"table {ip} {TABLE} can't be read: {error}")
            return
        yield from self._tables[family].differences(found)

    def cleanup(self) -> list[str]:
        """Both tables, of any version."""
        mine = sorted(ip for ip, name in kernel.tables() if name == TABLE)
        if mine:
            kernel.load("\n".join(f"delete table {ip} {TABLE}" for ip in mine))
        return [f"nftables table {ip} {TABLE}" for ip in mine]


def _kernel_speaks(family: Family) -> bool:
    return family is Family.IPV4 or Path("/proc/net/if_inet6").exists()
