"""What forwarding must know of this node, from its Node object and the command line."""

from dataclasses import dataclass, field
from enum import Enum

from pyproxy.address import IP, Family, Prefix, collapse, family_of
from pyproxy.objects import ZONE_LABEL, Node
from pyproxy.policy import Site
from pyproxy.table import EbpfAlgorithm, Host, Ipvs


class DetectLocal(Enum):
    """How a pod on this node is told from the world: KubeProxyConfiguration.detectLocalMode."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


@dataclass(frozen=True, slots=True)
class HostOptions:
    """Options of `pyproxy run` that shape the Host, named as in KubeProxyConfiguration."""

    node_name: str
    detect_local: DetectLocal = DetectLocal.CLUSTER_CIDR
    cluster_cidrs: tuple[Prefix, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    node_port_addresses: tuple[Prefix, ...] | None = None
    """None: the node's InternalIP addresses; the empty tuple: only the first of each family (``primary``)."""
    masquerade_all: bool = False
    ipvs: Ipvs = field(default_factory=Ipvs)
    userspace_workers: int = 1
    cgroup: str = ""
    ebpf_algorithm: EbpfAlgorithm = EbpfAlgorithm.RANDOM
    devices: tuple[str, ...] = ()
    map_sizes: tuple[tuple[str, int], ...] = ()


def site_of(node: Node | None, options: HostOptions) -> Site:
    zone = (node.metadata.labels or {}).get(ZONE_LABEL) if node else None
    return Site(options.node_name, zone)


def host_of(node: Node | None, options: HostOptions) -> Host:
    """Without a Node object no node port is served, unless --nodeport-addresses names networks."""
    interfaces = {
        DetectLocal.BRIDGE_INTERFACE: (options.bridge_interface,),
        DetectLocal.INTERFACE_NAME_PREFIX: (options.interface_name_prefix + "*",),
    }
    pod_cidrs = tuple(Prefix(text) for text in (node.spec and node.spec.pod_cidrs) or ()) if node else ()
    prefixes = {DetectLocal.CLUSTER_CIDR: options.cluster_cidrs, DetectLocal.NODE_CIDR: pod_cidrs}
    answering = options.node_port_addresses or _own_addresses(node, options.node_port_addresses == ())
    return Host(
        node_port_prefixes=_disjoint(answering),
        pod_prefixes=_disjoint(prefixes.get(options.detect_local, ())),
        pod_interfaces=interfaces.get(options.detect_local, ()),
        masquerade_all=options.masquerade_all,
        ipvs=options.ipvs,
        userspace_workers=options.userspace_workers,
        cgroup=options.cgroup,
        ebpf_algorithm=options.ebpf_algorithm,
        devices=options.devices,
        map_sizes=options.map_sizes,
    )


def _disjoint(prefixes: tuple[Prefix, ...]) -> tuple[Prefix, ...]:
    by_family = ([prefix for prefix in prefixes if family_of(prefix) is family] for family in Family)
    return tuple(prefix for some in by_family for prefix in collapse(some))


def _own_addresses(node: Node | None, primary_only: bool) -> tuple[Prefix, ...]:
    """Node.status.addresses of type InternalIP, in the order of the object."""
    addresses = [IP(entry.address) for entry in (node.status and node.status.addresses) or ()] if node else []
    if primary_only:
        first = {family: next((ip for ip in addresses if family_of(ip) is family), None) for family in Family}
        addresses = [ip for ip in first.values() if ip is not None]
    return tuple(Prefix(f"{ip}/{128 if family_of(ip) is Family.IPV6 else 32}") for ip in addresses)
