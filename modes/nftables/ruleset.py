"""The tables, maps and chains that do not depend on any service, one table ``pyproxy`` a family.

What a connection meets: `services` looks its destination up and goes to a chain that fits the route's behaviour
(`modes.nftables.behaviour`), which translates it. All of it hangs on nat hooks, which the kernel runs for the first
packet of a connection only, so that later packets, and those of bystanders, pay nothing.

Tricks that nft 1.0.6, Debian 12's, asks for. Between two lookups, the number of the chosen endpoint travels as the
packet's priority, the one register that nobody owns on a first packet, since `numgen` inside a key needs a ``typeof``
map, whose ``th dport`` then makes rules fail, or match TCP alone. A map that packets update takes a key of 16 bytes at
most, so IPv6 affinity is kept under two hashes of its key.
"""

from hashlib import sha256

from modes.nftables.family import Dialect
from pyproxy.table import Host

TABLE = "pyproxy"
MASQUERADE_MARK = 0x4000  # KubeProxyConfiguration iptables.masqueradeBit 14, which other software knows to avoid
CHOICE = 0xFE000000  # a priority that is ours, see the docstring; the lower 24 bits tell the endpoint
CHOICE_MASK = 0xFF000000
AFFINITY_CLIENTS = 262144  # a full map forgets to stick, it refuses nobody

SHARED_SETS = ("cluster-ips", "hairpins")
"""Sets whose elements several routes may want."""
MAPS = (
    *("services", "endpoints", "sticky-ids", "sticky-endpoints"),
    *("node-ports", "node-port-endpoints", "node-port-sticky-ids", "node-port-sticky-endpoints"),
)
SETS = (*MAPS, "allowed-sources", *SHARED_SETS)
"""Everything that routes fill."""
HOST_SETS = ("pods", "node-port-addresses")
"""What the Host fills."""


def declarations(d: Dialect) -> list[str]:
    """The table with its sets, maps and empty chains; adding what is there already changes nothing."""
    return [*_declarations(d), f"add chain {d.ip} {TABLE} {version(d)}"]


def version(d: Dialect) -> str:
    """The name of an empty chain that tells which declarations a table in the kernel was made of.

    The same declarations can be refilled in place, which keeps the affinity of clients; others are replaced.
    """
    return "version-" + sha256("\n".join(_declarations(d)).encode()).hexdigest()[:12]


def _declarations(d: Dialect) -> list[str]:
    port = "inet_proto . inet_service"
    address = f"{d.address_type} . {port}"
    endpoint = f"{d.address_type} . inet_service"
    maps = {
        "services": f"type {address} : verdict;",
        "node-ports": f"type {port} : verdict;",
        "endpoints": f"type {address} . classid : {endpoint};",
        "node-port-endpoints": f"type {port} . classid : {endpoint};",
        "sticky-ids": f"type {address} . classid : classid;",
        "sticky-endpoints": f"type {address} . classid : {endpoint};",
        "node-port-sticky-ids": f"type {port} . classid : classid;",
        "node-port-sticky-endpoints": f"type {port} . classid : {endpoint};",
        "affinity": f"{d.affinity_type}; size {AFFINITY_CLIENTS}; flags dynamic,timeout;",
    }
    sets = {
        "cluster-ips": f"type {d.address_type};",
        "hairpins": f"type {d.address_type} . {d.address_type};",
        "allowed-sources": f"type {address} . {d.address_type}; flags interval;",
        "pods": f"type {d.address_type}; flags interval;",
        "node-port-addresses": f"type {d.address_type}; flags interval;",
    }
    return [
        *hooks(d),
        *(f"add map {d.ip} {TABLE} {name} {{ {spec} }}" for name, spec in maps.items()),
        *(f"add set {d.ip} {TABLE} {name} {{ {spec} }}" for name, spec in sets.items()),
        *(f"add chain {d.ip} {TABLE} {name}" for name in ("services", "refuse", "translated")),
    ]


def hooks(d: Dialect) -> list[str]:
    """The table, and the chains through which the kernel comes to it."""
    chains = {  # with their policy: that of a chain which is there stays as it is otherwise, even drop
        "prerouting": "type nat hook prerouting priority dstnat; policy accept;",
        "output": "type nat hook output priority -100; policy accept;",
        "postrouting": "type nat hook postrouting priority srcnat; policy accept;",
    }
    return [
        f"add table {d.ip} {TABLE}",
        *(f"add chain {d.ip} {TABLE} {name} {{ {spec} }}" for name, spec in chains.items()),
    ]


def idle(d: Dialect) -> list[str]:
    """The table as it translates nothing new, and keeps the kernel translating what it translates."""
    return [*hooks(d), f"add rule {d.ip} {TABLE} postrouting ct status dnat accept"]


def rules(d: Dialect) -> dict[str, list[str]]:
    """The rules of every chain declared above."""
    return {
        "prerouting": ["jump services"],
        "output": ["jump services"],
        "postrouting": ["ct status dnat goto translated"],
        "services": [
            # In the midst of a connection that ends here, such as one through the relay of another mode, which the
            # kernel has not tracked until now.
            "fib daddr type local tcp flags & (fin | syn | rst | ack) != syn return",
            f"{d.ip} daddr . meta l4proto . th dport vmap @services",
            # A port of a ClusterIP that no service port claims.
            f"{d.ip} daddr @cluster-ips goto refuse",
            # Never on loopback (CVE-2020-8558), even if --nodeport-addresses names it.
            f"{d.ip} daddr @node-port-addresses {d.ip} daddr != {d.loopback} fib daddr type local"
            " meta l4proto . th dport vmap @node-ports",
        ],
        # connect() sees ECONNREFUSED either way; resets are not held back by the rate limit of ICMP errors.
        "refuse": ["meta l4proto tcp reject with tcp reset", "reject"],
        "translated": [
            f"meta priority & {CHOICE_MASK:#x} == {CHOICE:#x} meta priority set 0",
            f"meta mark & {MASQUERADE_MARK:#x} != 0 meta mark set meta mark ^ {MASQUERADE_MARK:#x} masquerade",
            # A pod that reached itself must not answer itself directly.
            f"{d.ip} saddr . {d.ip} daddr @hairpins masquerade",
        ],
    }


def host_elements(d: Dialect, host: Host) -> dict[str, list[str]]:
    """The elements of HOST_SETS."""
    return {
        "pods": d.own(host.pod_prefixes),
        "node-port-addresses": d.own(host.node_port_prefixes),
    }
