"""How nft speaks of one IP family."""

from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy.table import Family, Prefix, family_of


@dataclass(frozen=True, slots=True)
class Dialect:
    family: Family
    ip: str
    """The keyword, which is the table's family, too."""
    address_type: str
    loopback: str
    affinity_key: str
    """What a client and the frontend it uses are remembered by."""
    affinity_type: str
    host_length: int

    def own(self, prefixes: Iterable[Prefix]) -> list[str]:
        """Those of this family as nft lists them: a single address without its length."""
        mine = [prefix for prefix in prefixes if family_of(prefix) is self.family]
        return [prefix.removesuffix(f"/{self.host_length}") for prefix in mine]


_IPV6_KEY = "ip6 saddr . ip6 daddr . meta l4proto . th dport mod 4294967295 seed"

DIALECTS = {
    Family.IPV4: Dialect(
        Family.IPV4,
        "ip",
        "ipv4_addr",
        "127.0.0.0/8",
        "ip saddr . ip daddr . meta l4proto . th dport",
        "type ipv4_addr . ipv4_addr . inet_proto . inet_service : classid",
        32,
    ),
    Family.IPV6: Dialect(
        Family.IPV6,
        "ip6",
        "ipv6_addr",
        "::1",
        f"jhash {_IPV6_KEY} 0x1 . jhash {_IPV6_KEY} 0x2",
        # Two 32-bit integers: nft 1.0.6 can't list `typeof jhash`, and a plain integer has no size.
        "typeof numgen random mod 65536 . numgen random mod 65536 : meta priority",
        128,
    ),
}
