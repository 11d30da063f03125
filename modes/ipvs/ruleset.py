"""The rules that netfilter keeps for IPVS: as many for one service as for ten thousand. What they ask stands in sets.

IPVS chooses and translates. It knows neither who must be masqueraded, nor source ranges, nor that pods have other
endpoints than the world where the external policy is Local. So, before IPVS sees it, a new connection meets `SERVICES`
in table mangle: it drops, marks for masquerading, or gives the packet the mark of a virtual server that holds the
endpoints for pods and this node. `CLAIMED`, in table filter, refuses. `POSTROUTING`, in table nat, masquerades.
"""

from pyproxy.kernel.ipset import Kind, Set
from pyproxy.kernel.iptables import Chains, Share
from pyproxy.kernel.iptables_dialect import Dialect
from pyproxy.table import Family, Host

_PREFIX = "PYPROXY_IPVS-"
MASQUERADE = 0x4000  # KubeProxyConfiguration iptables.masqueradeBit 14, which other software knows to avoid
_MARK = f"-j MARK --set-xmark {MASQUERADE:#x}/{MASQUERADE:#x}"
_NEW = "-m conntrack --ctstate NEW"
SERVICES, CLAIMED, POSTROUTING = (f"{_PREFIX}{name}" for name in ("SERVICES", "CLAIMED", "POSTROUTING"))
_CLUSTER, _INSIDE, _POD, _NODE = (f"{_PREFIX}{name}" for name in ("CLUSTER", "INSIDE", "POD", "NODE"))
_REFUSE, _MASQUERADE = f"{_PREFIX}REFUSE", f"{_PREFIX}MASQUERADE"

SHARE = Share(
    _PREFIX,
    {
        "mangle": dict.fromkeys(("PREROUTING", "OUTPUT"), f"{_NEW} -j {SERVICES}"),
        "filter": {"INPUT": f"{_NEW} -j {CLAIMED}"},
        "nat": {"POSTROUTING": f"-j {POSTROUTING}"},
    },
)

OPEN: Chains = {f"{_PREFIX}OPEN": ("-m conntrack --ctstate DNAT -j RETURN",)}
"""Nobody comes to it: that there is such a rule keeps the kernel tracking, and so masquerading what is open."""

KINDS = {
    "ALLOWED": Kind.SERVICE_SOURCE,  # who may use a frontend that is guarded
    "GUARDED": Kind.SERVICE,  # frontends with source ranges
    "HAIRPIN": Kind.PAIR,  # endpoints on this node, each with itself
    "REFUSED": Kind.SERVICE,  # frontends that have no endpoints anywhere
    "DROPPED": Kind.SERVICE,  # frontends that have no endpoints here, while there are some elsewhere
    "INSIDE": Kind.MARKED_SERVICE,  # external policy Local: the mark of the virtual server for pods and this node
    "KEPT": Kind.SERVICE,  # external policy Local: the source stays
    "EXTERNAL": Kind.SERVICE,  # external policy Cluster: everybody is masqueraded
    "CLUSTER": Kind.SERVICE,  # ClusterIPs: whoever is neither pod nor node is masqueraded
    "CLAIMED": Kind.ADDRESS,  # addresses that are only here for services: other ports are refused
    "DRAINING": Kind.ADDRESS,  # those of them that are only left for connections which are open
}
"""Sets, in an order in which they can be filled: what lets nobody in comes before what lets everybody."""


def set_name(kind: str, family: Family) -> str:
    return f"{_PREFIX}{kind}-{family.value[-1]}"


def sets(family: Family) -> dict[str, Set]:
    """By name."""
    names = {set_name(name, family): kind for name, kind in KINDS.items()}
    return {name: Set(name, kind, family) for name, kind in names.items()}


def is_own(name: str) -> bool:
    """Of a set."""
    return name.startswith(_PREFIX)


def chains(d: Dialect, host: Host) -> dict[str, Chains]:
    """All of them, by table, in the order in which tables are written."""

    def among(kind: str, where: str = "dst,dst") -> str:
        return f"-m set --match-set {set_name(kind, d.family)} {where}"

    pods = d.sources(host.pod_prefixes, host.pod_interfaces)
    inside = f"-j SET --map-set {set_name('INSIDE', d.family)} dst,dst --map-mark"
    outside = f"-m set ! --match-set {set_name('ALLOWED', d.family)} dst,dst,src"
    # Who is no pod must come back this way. If pods can't be told from others, that is the node alone: it asks from the
    # very address that it asks, since that is its own (ip_route_output_key_hash_rcu), and nobody else could answer it.
    cluster = (*(f"{pod}-j RETURN" for pod in pods), _MARK) if pods else (f"-m addrtype --src-type LOCAL {_MARK}",)
    return {
        "mangle": {
            SERVICES: (
                f"{among('GUARDED')} {outside} -j DROP",
                f"{among('INSIDE')} -g {_INSIDE}",
                f"{among('DROPPED')} -j DROP",
                f"{among('EXTERNAL')} {_MARK}",
                f"{among('CLUSTER')} -j {_CLUSTER}",
            ),
            _CLUSTER: (_MARK,) if host.masquerade_all else cluster,
            _INSIDE: (
                f"-m addrtype --src-type LOCAL -g {_NODE}",
                *(f"{pod}-g {_POD}" for pod in pods),
                f"{among('DROPPED')} -j DROP",
            ),
            _POD: (inside,),
            _NODE: (inside, _MARK),
        },
        "filter": {
            CLAIMED: (
                f"{among('REFUSED')} -g {_REFUSE}",
                f"{among('DRAINING', 'dst')} -j DROP",
                f"-m set ! --match-set {set_name('CLAIMED', d.family)} dst -j RETURN",
                *(f"{among(kind)} -j RETURN" for kind in ("CLUSTER", "EXTERNAL", "KEPT", "INSIDE")),
                f"-j {_REFUSE}",
            ),
            # connect() sees ECONNREFUSED either way; resets are not held back by the rate limit of ICMP errors.
            _REFUSE: ("-p tcp -j REJECT --reject-with tcp-reset", f"-j REJECT --reject-with {d.unreachable}"),
        },
        "nat": {
            POSTROUTING: (
                f"-m mark --mark {MASQUERADE:#x}/{MASQUERADE:#x} -g {_MASQUERADE}",
                # A pod that reached itself must not answer itself directly.
                f"{among('HAIRPIN', 'src,dst')} -j MASQUERADE",
            ),
            _MASQUERADE: (f"-j MARK --set-xmark 0x0/{MASQUERADE:#x}", "-j MASQUERADE"),
        },
    }
