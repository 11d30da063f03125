"""The chains that do not depend on any service, and the hooks that lead into them.

What a connection meets, in table nat: `PYPROXY-SERVICES` looks for its destination in three trees, of external
addresses, of ClusterIPs and of node ports. The rules there translate it, or mark it to be refused or dropped, which
table nat may not do itself: `PYPROXY-VERDICT` in table filter does it. `PYPROXY-POSTROUTING` masquerades what was
marked for it, and pods that reached themselves.
"""

from modes.iptables.tree import Chains, Rules, Tree
from pyproxy.kernel.iptables import Share
from pyproxy.kernel.iptables_dialect import Dialect
from pyproxy.table import Host

_ALL = 0xFFFFFFFF
MASQUERADE = 0x4000  # KubeProxyConfiguration iptables.masqueradeBit 14, which other software knows to avoid
DROPPED, REFUSED = 0x30D4, 0x30D5
"""Whole marks: who shares a bit with them, as wg-quick's 0xca6c does with many, must not lose a packet."""
_EITHER = f"-m mark --mark {DROPPED:#x}/{_ALL - 1:#x}"

SHARE = Share(
    "PYPROXY-",
    {
        "filter": dict.fromkeys(("INPUT", "FORWARD", "OUTPUT"), f"{_EITHER} -j PYPROXY-VERDICT"),
        "nat": {
            "PREROUTING": "-j PYPROXY-SERVICES",
            "OUTPUT": "-j PYPROXY-SERVICES",
            "POSTROUTING": "-m conntrack --ctstate DNAT -j PYPROXY-POSTROUTING",
        },
    },
)

REFUSE, DROP, MARK = "-g PYPROXY-REFUSE", "-g PYPROXY-DROP", "-j PYPROXY-MASQUERADE-MARK"


def filter_chains(d: Dialect) -> Chains:
    return {
        "PYPROXY-VERDICT": (f"-m mark --mark {REFUSED:#x} -g PYPROXY-REJECT", "-j DROP"),
        # connect() sees ECONNREFUSED either way; resets are not held back by the rate limit of ICMP errors.
        "PYPROXY-REJECT": (
            "-p tcp -j REJECT --reject-with tcp-reset",
            f"-j REJECT --reject-with {d.unreachable}",
        ),
    }


def fixed_chains() -> Chains:
    """Of table nat. Their ACCEPT keeps what is to be refused or dropped away from others' translations."""
    return {
        "PYPROXY-REFUSE": (f"-j MARK --set-xmark {REFUSED:#x}/{_ALL:#x}", "-j ACCEPT"),
        "PYPROXY-DROP": (f"-j MARK --set-xmark {DROPPED:#x}/{_ALL:#x}", "-j ACCEPT"),
        "PYPROXY-MASQUERADE-MARK": (f"-j MARK --set-xmark {MASQUERADE:#x}/{MASQUERADE:#x}",),
        "PYPROXY-MASQUERADE": (f"-j MARK --set-xmark 0x0/{MASQUERADE:#x}", "-j MASQUERADE"),
    }


def host_chains(d: Dialect, host: Host) -> Chains:
    """What depends on this node."""
    if host.masquerade_all:
        outside: Rules = (MARK,)
    elif pods := d.sources(host.pod_prefixes, host.pod_interfaces):
        # What is neither a pod's nor the node's must come back this way; the node's own gets the address that fits.
        outside = (*(f"{match}-j RETURN" for match in pods), MARK)
    else:  # pods can't be told from others, and nobody is masqueraded
        outside = ()
    return {"PYPROXY-OUTSIDE": outside}


def entry_chains(d: Dialect, host: Host, external: Tree, cluster: Tree, ports: dict[str, Tree], own: Tree) -> Chains:
    """The chains from which the trees are reached: they change when a tree's first prefix does."""
    node_ports = tuple(rule for tree in ports.values() for rule in tree.entry("-j"))
    local = "-m addrtype --dst-type LOCAL -j PYPROXY-NODE-PORTS"
    prefixes = d.own(host.node_port_prefixes) if node_ports else []
    return {
        "PYPROXY-SERVICES": (
            # In the midst of a connection that ends here, such as one through the relay of another mode, which the
            # kernel has not tracked until now.
            "-p tcp -m addrtype --dst-type LOCAL -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN -j RETURN",
            *external.entry("-j"),
            *cluster.entry("-j PYPROXY-CLUSTER-IPS"),
            *(f"{'' if prefix.endswith('/0') else f'-d {prefix} '}{local}" for prefix in prefixes),
        ),
        # The mark goes on first, once for all services, and off again if the packet is for none of them.
        "PYPROXY-CLUSTER-IPS": (
            "-j PYPROXY-OUTSIDE",
            *cluster.entry("-j"),
            f"-j MARK --set-xmark 0x0/{MASQUERADE:#x}",
        ),
        # Never on loopback (CVE-2020-8558), even if --nodeport-addresses names it.
        "PYPROXY-NODE-PORTS": (f"-d {d.loopback} -j RETURN", *node_ports),
        "PYPROXY-POSTROUTING": (
            f"-m mark --mark {MASQUERADE:#x}/{MASQUERADE:#x} -g PYPROXY-MASQUERADE",
            # A pod that reached itself must not answer itself directly.
            *own.entry("-g"),
        ),
    }
