"""What kube-proxy's ipvs mode leaves in the kernel beside rules: a device, virtual servers and sets of addresses.

kube-proxy itself would flush all virtual servers. But somebody else may have some, too, and so may pyproxy, which takes
over those of Services. So only those go whose address is on kube-proxy's device, or is the node's own with a port that
stands in kube-proxy's sets of node ports. The names are those of kube-proxy's pkg/proxy/ipvs/ipset.go.
"""

from collections.abc import Iterator
from contextlib import closing

from pyproxy.kernel import device, ipset, own_address
from pyproxy.kernel.error import Lacking, as_mode_error
from pyproxy.kernel.ipset import Kind, Set
from pyproxy.kernel.ipvs import Ipvs
from pyproxy.table import Family

_DEVICE = own_address.KUBE_PROXY_DEVICE
_NODE_PORTS = {
    "tcp": ("NODE-PORT-TCP", Kind.PORT),
    "udp": ("NODE-PORT-UDP", Kind.PORT),
    "sctp": ("NODE-PORT-SCTP-HASH", Kind.SERVICE),
}
_KINDS = (
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    *(name for name, _ in _NODE_PORTS.values()),
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "NODE-PORT-SCTP",  # until 1.13
    "NODE-PORT-LOCAL-SCTP",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
)
_LONGEST_NAME = 31  # IPSET_MAXNAMELEN less the end; kube-proxy cuts longer ones


def cleanup() -> list[str]:
    """Remove it all, once no rule looks into the sets any more, and say what it was. Raises ModeError."""
    return list(_cleanup())


def _cleanup() -> Iterator[str]:
    try:
        sets = {_set_name(kind, family) for kind in _KINDS for family in Family} & set(ipset.names())
    except Lacking:
        sets = set()
    if count := _remove_virtual_servers():
        yield f"{count} virtual servers of kube-proxy"
    with as_mode_error(f"the device {_DEVICE} can't be removed"):
        if device.remove(_DEVICE):
            yield f"device {_DEVICE}"
    if sets:
        ipset.destroy(sets)
        yield f"{len(sets)} sets of kube-proxy"


def _remove_virtual_servers() -> int:
    """How many there were."""
    try:
        ipvs = Ipvs()
    except Lacking:
        return 0
    with closing(ipvs):
        with as_mode_error("the addresses of this node can't be read"):
            services, own = own_address.of_device(_DEVICE), own_address.of_devices()
        ports = _node_ports()
        theirs = [
            key
            for key, server in ipvs.services().items()
            if not server.service.is_ours
            and (key.address in services or (key.address in own and (key.family, key.transport, key.port) in ports))
        ]
        ipvs.remove(theirs)
    return len(theirs)


def _node_ports() -> set[tuple[Family, str, int]]:
    sets = {
        Set(_set_name(name, family), kind, family): transport
        for transport, (name, kind) in _NODE_PORTS.items()
        for family in Family
    }
    transports = {one.name: (one.family, transport) for one, transport in sets.items()}
    # The port alone, or the address and sctp before it.
    return {(*transports[slot.set], int(slot.key.rpartition(":")[2])) for slot in ipset.read(sets)}


def _set_name(kind: str, family: Family) -> str:
    return f"KUBE-{'6-' if family is Family.IPV6 else ''}{kind}"[:_LONGEST_NAME]
