"""`pyproxy cleanup --kube-proxy` after kube-proxy's ipvs mode: what it left goes, and nothing else."""

from bench.lab import Lab
from modes.ipvs.mode import IpvsMode
from pyproxy import kube_proxy
from pyproxy.table import IP, Backend, Pool
from tests.ipvs.traffic import connection, goes_on
from tests.ipvs.world import NODE, everything, node, plant_foreigners, table_of
from tests.unit.iptables_world import run
from tests.unit.test_iptables_route import CLUSTER_IP, endpoints, route

# As `ipset list -name` shows them where kube-proxy 1.36 runs with two IP families, and the type of each.
SETS = {
    "KUBE-LOOP-BACK": "hash:ip,port,ip",
    "KUBE-CLUSTER-IP": "hash:ip,port",
    "KUBE-EXTERNAL-IP": "hash:ip,port",
    "KUBE-EXTERNAL-IP-LOCAL": "hash:ip,port",
    "KUBE-LOAD-BALANCER": "hash:ip,port",
    "KUBE-LOAD-BALANCER-LOCAL": "hash:ip,port",
    "KUBE-LOAD-BALANCER-FW": "hash:ip,port",
    "KUBE-LOAD-BALANCER-SOURCE-IP": "hash:ip,port,ip",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR": "hash:ip,port,net",
    "KUBE-NODE-PORT-TCP": "bitmap:port",
    "KUBE-NODE-PORT-LOCAL-TCP": "bitmap:port",
    "KUBE-NODE-PORT-UDP": "bitmap:port",
    "KUBE-NODE-PORT-LOCAL-UDP": "bitmap:port",
    "KUBE-NODE-PORT-SCTP-HASH": "hash:ip,port",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH": "hash:ip,port",
    "KUBE-HEALTH-CHECK-NODE-PORT": "bitmap:port",
    "KUBE-IPVS-IPS": "hash:ip",
}
CUT = {
    "KUBE-6-LOAD-BALANCER-SOURCE-CIDR": "KUBE-6-LOAD-BALANCER-SOURCE-CID",
    "KUBE-6-NODE-PORT-LOCAL-SCTP-HASH": "KUBE-6-NODE-PORT-LOCAL-SCTP-HAS",
}
ELEMENTS = """\
add KUBE-CLUSTER-IP 10.96.0.10,udp:53
add KUBE-NODE-PORT-TCP 30080
add KUBE-NODE-PORT-TCP 30081
add KUBE-NODE-PORT-UDP 30053
add KUBE-NODE-PORT-SCTP-HASH 192.0.2.1,sctp:30090
add KUBE-6-NODE-PORT-TCP 30080
"""
RULES = """\
*nat
:KUBE-SERVICES - [0:0]
:KUBE-NODE-PORT - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-SERVICES -m set --match-set {prefix}CLUSTER-IP dst,dst -j RETURN
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODE-PORT
-A KUBE-NODE-PORT -p tcp -m set --match-set {prefix}NODE-PORT-TCP dst -j RETURN
-A KUBE-POSTROUTING -m set --match-set {prefix}LOOP-BACK dst,dst,src -j MASQUERADE
COMMIT
*filter
:KUBE-IPVS-FILTER - [0:0]
-A INPUT -m comment --comment "kubernetes ipvs access filter" -j KUBE-IPVS-FILTER
-A KUBE-IPVS-FILTER -m set --match-set {prefix}IPVS-IPS dst -j RETURN
COMMIT
"""
SERVERS = (
    "-u 10.96.0.10:53",
    "-t 10.96.0.10:53",
    "-t [fd00:96::10]:53",
    f"-t {NODE[0]}:30080",
    f"-u {NODE[0]}:30053",
    f"--sctp-service {NODE[0]}:30090",
    f"-t [{NODE[1]}]:30080",
)
FOREIGN = (f"-t {NODE[0]}:9999", f"-u {NODE[0]}:30080", f"-t [{NODE[1]}]:30081")
"""On the node's addresses, with ports that are no node ports, or not of that protocol or family."""


def leave_behind() -> None:
    run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    for address in ("10.96.0.1", "10.96.0.10", "fd00:96::10"):
        run("ip", "addr", "add", address, "dev", "kube-ipvs0")
    sets = [f"create {name} {kind}{_options(kind, 'inet')}" for name, kind in SETS.items()]
    for name, kind in SETS.items():
        name = name.replace("KUBE-", "KUBE-6-", 1)
        sets.append(f"create {CUT.get(name, name)} {kind}{_options(kind, 'inet6')}")
    run("ipset", "restore", stdin="\n".join(sets) + "\n" + ELEMENTS)
    run("iptables-legacy-restore", "--noflush", stdin=RULES.format(prefix="KUBE-"))
    run("ip6tables-legacy-restore", "--noflush", stdin=RULES.format(prefix="KUBE-6-"))
    make(SERVERS)


def _options(kind: str, family: str) -> str:
    return " range 0-65535" if kind == "bitmap:port" else f" family {family}"


def make(servers: tuple[str, ...]) -> None:
    for words in servers:
        run("ipvsadm", "-A", *words.split(), "-s", "rr")
        real = "[fd00:244::9]:53" if "[" in words else "10.244.0.9:53"
        run("ipvsadm", "-a", *words.split(), "-r", real, "-m")


def test_connections_through_it_go_on_in_our_ipvs_mode(lab: Lab) -> None:
    """Which takes over the virtual servers of Services."""
    lab.node.namespace.sysctl(ipv4__vs__conntrack=1)
    run("ip", "link", "add", "kube-ipvs0", "type", "dummy")
    run("ip", "addr", "add", "10.96.0.1", "dev", "kube-ipvs0")
    run("ipvsadm", "-A", "-t", "10.96.0.1:80", "-s", "rr")
    run("ipvsadm", "-a", "-t", "10.96.0.1:80", "-r", "10.244.0.12:8080", "-m")
    with connection(lab, "10.96.0.1", 80, "pod-2") as client:
        pool = Pool((Backend(IP("10.244.0.12"), 8080, True),))
        mode = IpvsMode()
        mode.sync(table_of(route(CLUSTER_IP, internal=pool)), None)
        assert kube_proxy.cleanup() == ["device kube-ipvs0"]
        assert mode.verify() == []
        assert goes_on(client)


def test_all_that_it_left_goes_and_nothing_else() -> None:
    """Our own virtual servers stay, where kube-proxy had one at the same address and port, too."""
    with node():
        plant_foreigners()
        make(FOREIGN)
        mode = IpvsMode()
        mode.sync(table_of(route(CLUSTER_IP, internal=endpoints(1), node_port=30081)), None)
        before = everything()
        leave_behind()
        *chains, servers, device, sets = kube_proxy.cleanup()
        assert set(chains) == {
            f"{count} chains of {program}-legacy table {table}"
            for program in ("ip6tables", "iptables")
            for count, table in ((1, "filter"), (3, "nat"))
        }
        assert [servers, device, sets] == [
            f"{len(SERVERS)} virtual servers of kube-proxy",
            "device kube-ipvs0",
            f"{2 * len(SETS)} sets of kube-proxy",
        ]
        assert everything() == before
        assert mode.verify() == []
        assert kube_proxy.cleanup() == []
