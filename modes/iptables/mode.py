"""The forwarding table as one iptables-restore a family and sync."""

import logging
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

from modes.iptables import ruleset
from modes.iptables.family_table import FamilyTable
from modes.iptables.ruleset import SHARE
from modes.iptables.tree import Chains
from modes.iptables.walk import rules_for
from pyproxy.kernel import flow, iptables
from pyproxy.kernel.error import as_mode_error
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS, Dialect
from pyproxy.kernel.own_address import speaks
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
    family_of,
)

log = logging.getLogger("pyproxy")

_TRIAL = "PYPROXY-TRIAL"
_OPEN: Chains = {"PYPROXY-OPEN": ("-m conntrack --ctstate DNAT -j RETURN",)}
"""Nobody comes to it: that there is such a rule keeps the kernel tracking."""
_TRIALS = {
    "recent": f"-m recent --rcheck --name {_TRIAL} --mask {{everyone}} --rsource",
    "sctp": "-p sctp -m sctp --dport 9",
}
"""Matches that only some services need, and a rule with each."""
_RECENT_LIMIT = Path("/sys/module/xt_recent/parameters/ip_list_tot")


class IptablesMode:
    name = "iptables"
    tracks_connections = True
    ends_connections = False
    connects_sockets = False

    def __init__(self) -> None:
        self._tables = {family: FamilyTable(d) for family, d in DIALECTS.items() if speaks(family)}
        self._flavour: Flavour | None = None
        self._in_order = False  # whether the kernel holds what self._tables say
        self._is_alone = False  # whether the other flavour is known to hold nothing of ours
        self._lacking: dict[tuple[Family, str], bool] = {}
        """Matches that were tried."""

    @property
    def flavour(self) -> Flavour:
        """Found out once: a host does not change it while it runs."""
        if self._flavour is None:
            self._flavour = iptables.detect()
        return self._flavour

    def probe(self) -> str | None:
        try:
            for family in self._tables:
                table = FamilyTable(DIALECTS[family])
                chains = self._wanted(family, table.fill(Table({}, Host())))
                script = "".join(iptables.script(name, of_table) for name, of_table in chains.items())
                iptables.load(DIALECTS[family], self.flavour, script, "--test")
        except ModeError as error:
            refused = "Permission denied" in str(error) or "must be root" in str(error)
            if refused and (lacking := iptables.lacking_capabilities()):
                return f"it takes the capability {lacking} (run as root)"
            return str(error)
        return None

    def objection(self, route: Route) -> str | None:
        if route.id.family not in self._tables:
            return f"this kernel has no {route.id.family.value}"
        matches = {Transport.SCTP: "sctp"}.get(route.transport), "recent" if route.affinity_seconds else None
        for match in filter(None, matches):
            if self._lacks(route.id.family, match):
                return f"this kernel lacks the iptables match `{match}` (module xt_{match})"
        return None

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        everything = changed is None or not self._in_order
        self._in_order = False
        for family, family_table in self._tables.items():
            if everything:
                self._rebuild(family, table)
            elif mine := {id for id in changed or () if id.family is family}:
                chains, gone = family_table.change(table, mine)
                if chains or gone:
                    iptables.load(DIALECTS[family], self.flavour, iptables.script("nat", chains, gone))
        if everything and not self._is_alone:
            self._is_alone = iptables.clear_other(SHARE, self.flavour)
        self._in_order = True

    def _rebuild(self, family: Family, table: Table) -> None:
        """Whatever is not as it must be, in place."""
        wanted = self._wanted(family, self._tables[family].fill(table))
        iptables.put(SHARE, DIALECTS[family], self.flavour, wanted)

    @staticmethod
    def _wanted(family: Family, nat: Chains) -> dict[str, Chains]:
        """All of our chains by table, in the order in which tables are written: marks must find their verdict."""
        return {"filter": ruleset.filter_chains(DIALECTS[family]), "nat": nat}

    def shortfalls(self) -> dict[RouteId, str]:
        return {}

    def verify(self) -> list[Drift]:
        return [drift for family in self._tables for drift in self._compare(family)]

    def _compare(self, family: Family) -> Iterator[Drift]:
        wanted = self._wanted(family, self._tables[family].chains)
        found = list(iptables.differences(SHARE, DIALECTS[family], self.flavour, wanted))
        owners = self._tables[family].owners({chain for chain, _ in found if chain}) if found else {}
        for chain, what in found:
            yield Drift(owners.get(chain or ""), what)

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        d = DIALECTS[family_of(address)]
        return rules_for(iptables.read(SHARE, d, self.flavour)["nat"].chains, address, port, transport)

    def cleanup(self) -> list[str]:
        """Of any version, in both flavours; what can't be done in one keeps nobody from the other."""
        removed: list[str] = []
        errors: list[ModeError] = []
        for flavour in Flavour:
            try:
                removed += iptables.remove(SHARE, flavour)
            except ModeError as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return removed

    def retire(self, successor: Mode) -> Iterator[str]:
        """What is open is translated by conntrack, as long as somebody has a rule about connections in table nat. A
        mode that translates has some; for another, one of ours stays until the last of these connections is over."""
        if not iptables.is_there(SHARE):
            return
        for flavour in Flavour:
            iptables.shut(SHARE, flavour)
        with as_mode_error("conntrack can't be read"):
            left = 0 if successor.tracks_connections else flow.translated()
        for flavour in Flavour:
            yield from iptables.remove(SHARE, flavour, {"nat": _OPEN} if left else {})
        if left:
            raise InUse(f"{left} connections are translated yet")

    def _lacks(self, family: Family, match: str) -> bool:
        """Whether the kernel has no such match. Found out by trying, in a chain that nobody comes to: a rule that it
        does not take fails a whole sync, and with it other services."""
        if (family, match) not in self._lacking:
            d, is_news = DIALECTS[family], not any(tried == match for _, tried in self._lacking)
            takes = self._takes(d, _TRIALS[match].format(everyone=d.everyone))
            if not takes and not self._takes(d, "-j RETURN"):
                return False  # it takes nothing now, so this tells nothing
            self._lacking[family, match] = not takes
            if takes and is_news and match == "recent" and _RECENT_LIMIT.exists():  # /sys may not be mounted
                clients = _RECENT_LIMIT.read_text().strip()
                what = "session affinity remembers the latest of each endpoint (ip_list_tot)"
                log.info(what, extra={"clients": clients})
        return self._lacking[family, match]

    def _takes(self, d: Dialect, rule: str) -> bool:
        script = iptables.script("nat", {_TRIAL: (rule,)}) + iptables.script("nat", {}, [_TRIAL])
        try:
            iptables.load(d, self.flavour, script)
        except ModeError:
            return False
        return True
