"""Someone else changes what the proxy wrote: found and repaired within a sync period (here one second)."""

import sys

import pytest

from bench.lab import Lab
from tests.conformance.cluster import FOUND_S, Cluster, until
from tests.conformance.manifests import addresses, service, slices

pytestmark = pytest.mark.own

MEDDLE_EBPF = f"{sys.executable} -m tests.conformance.meddle_ebpf"

# What a stranger may do, by mode; {address} is the ClusterIP of a service with one endpoint.
DAMAGE = {
    "nftables": {
        "a table is deleted": "nft delete table ip pyproxy",
        "a table is flushed": "nft flush table ip pyproxy",
        "a map is flushed": "nft flush map ip pyproxy endpoints",
        "an element is deleted": "nft delete element ip pyproxy services {{ {address} . tcp . 80 }}",
        "an element is changed": "nft delete element ip pyproxy endpoints {{ {address} . tcp . 80 . fe00:0 }}; "
        "add element ip pyproxy endpoints {{ {address} . tcp . 80 . fe00:0 : 10.244.0.13 . 8080 }}",
        "a foreign rule comes first": "nft insert rule ip pyproxy services ip daddr {address} drop",
        "a chain is emptied": "nft flush chain ip pyproxy prerouting",
        "a policy is changed": "nft add chain ip pyproxy prerouting {{ policy drop; }}",
    },
    "iptables": {
        "table filter is flushed": "iptables -F",
        "table nat is flushed": "iptables -t nat -F",
        "both are, for IPv6": "ip6tables -F\nip6tables -t nat -F",
        "a firewall daemon restarts": "iptables -t nat -F\niptables -F\niptables -X PYPROXY-VERDICT\n"
        "iptables -t nat -X\niptables -A FORWARD -j ACCEPT",
        "a hook is deleted": "iptables -t nat -D PREROUTING -j PYPROXY-SERVICES",
        "a hook is doubled": "iptables -t nat -A PREROUTING -j PYPROXY-SERVICES",
        "a chain is emptied": "iptables -t nat -F PYPROXY-CLUSTER-IPS",
        "a rule is changed": "iptables -t nat -R PYPROXY-CLUSTER-IPS 2 -j RETURN",
        "a foreign rule comes first": "iptables -t nat -I PYPROXY-SERVICES -d {address} -j RETURN",
        "refusals are dropped": "iptables -I PYPROXY-REJECT -j DROP",
    },
    "ipvs": {
        "a virtual server is deleted": "ipvsadm -D -t {address}:80",
        "all virtual servers are": "ipvsadm -C",
        "a scheduler is changed": "ipvsadm -E -t {address}:80 -s wlc",
        "a real server is deleted": "ipvsadm -d -t {address}:80 -r 10.244.0.12:8080",
        "a real server is silenced": "ipvsadm -e -t {address}:80 -r 10.244.0.12:8080 -m -w 0",
        "a foreign real server is added": "ipvsadm -a -t {address}:80 -r 10.244.0.13:8080 -m -w 9",
        "an element is deleted": "ipset del PYPROXY_IPVS-CLUSTER-4 {address},tcp:80",
        "a set is flushed": "ipset flush PYPROXY_IPVS-CLAIMED-4",
        "a local route is deleted": "ip route del local {address} dev lo table local",
        "table mangle is flushed": "iptables -t mangle -F",
        "table filter is flushed, for both families": "iptables -F\nip6tables -F",
        "a hook is deleted": "iptables -t nat -D POSTROUTING -j PYPROXY_IPVS-POSTROUTING",
        "a foreign rule comes first": "iptables -t mangle -I PYPROXY_IPVS-SERVICES -d {address} -j DROP",
        "a sysctl is changed": "sysctl -w net.ipv4.vs.conntrack=0",
    },
    "ebpf": {
        "everything pinned is removed": f"{MEDDLE_EBPF} unpin",
        "the programs are detached": f"{MEDDLE_EBPF} detach",
        "a program is replaced": f"{MEDDLE_EBPF} replace",
        "a service is deleted": f"{MEDDLE_EBPF} delete {{address}}",
        "all addresses are": f"{MEDDLE_EBPF} empty addresses",
        "all backends are": f"{MEDDLE_EBPF} empty backends",
        "a backend is changed": f"{MEDDLE_EBPF} redirect 10.244.0.12 10.244.0.13",
        "the node is said to be another": f"{MEDDLE_EBPF} move",
    },
    "userspace": {
        "a local route is deleted": "ip route del local {address} dev lo table local",
        "all local routes are": "ip route flush table local proto 112",
        "an endpoint is taken from the relay": f"{sys.executable} -m tests.conformance.meddle take 10.244.0.12",
        "the relay is killed": f"{sys.executable} -m tests.conformance.meddle end",
    },
}
# What it adds, what the log then says, and how to see whether it is there still.
FOREIGN = {
    "nftables": (
        "nft add element ip pyproxy services { 10.96.9.9 . tcp . 80 : drop }",
        "foreign element 10.96.9.9 . tcp . 80",
        "nft list map ip pyproxy services",
        b"10.96.9.9",
    ),
    "iptables": (
        "iptables -t nat -N PYPROXY-STRANGER",
        "chain PYPROXY-STRANGER in table nat of iptables is foreign",
        "iptables -t nat -S",
        b"PYPROXY-STRANGER",
    ),
    "ipvs": (
        "ipset add PYPROXY_IPVS-CLUSTER-4 10.96.9.9,tcp:80",
        "element 10.96.9.9,tcp:80 of set PYPROXY_IPVS-CLUSTER-4 is foreign",
        "ipset list PYPROXY_IPVS-CLUSTER-4",
        b"10.96.9.9",
    ),
    "ebpf": (
        f"{MEDDLE_EBPF} add 10.96.9.9",
        "the entry 10.96.9.9 80/tcp of the map services is foreign",
        f"{MEDDLE_EBPF} show",
        b"10.96.9.9",
    ),
    "userspace": (
        "ip route add local 10.96.9.9 dev lo table local proto 112 metric 112",
        "the local route of 10.96.9.9 is foreign",
        "ip route show table local",
        b"10.96.9.9",
    ),
}
# What is its own: how it is made, seen, and removed.
OTHERS = {
    "nftables": (
        "nft add table ip stranger; add chain ip stranger mine",
        "nft list table ip stranger",
        b"chain mine",
        "nft delete table ip stranger",
    ),
    "iptables": (
        "iptables -t nat -N STRANGER\niptables -t nat -I PREROUTING -d 192.0.2.1 -j STRANGER\n"
        "iptables -A INPUT -j ACCEPT",
        "iptables -t nat -S",
        b"-A PREROUTING -d 192.0.2.1/32 -j STRANGER",
        "iptables -t nat -D PREROUTING -d 192.0.2.1 -j STRANGER\niptables -t nat -X STRANGER\n"
        "iptables -D INPUT -j ACCEPT",
    ),
    "ipvs": (
        "ipvsadm -A -t 192.0.2.1:80 -s rr\nipvsadm -a -t 192.0.2.1:80 -r 10.244.0.12:8080 -m\n"
        "ipset create STRANGER hash:ip\nip route add local 192.0.2.1 dev lo",
        "ipvsadm -Ln",
        b"192.0.2.1:80",
        "ipvsadm -D -t 192.0.2.1:80\nipset destroy STRANGER\nip route del local 192.0.2.1 dev lo table local",
    ),
    "ebpf": (f"{MEDDLE_EBPF} come", f"{MEDDLE_EBPF} show", b"stranger", f"{MEDDLE_EBPF} go"),
    "userspace": (
        "ip route add local 192.0.2.1 dev lo",
        "ip route show table local",
        b"192.0.2.1",
        "ip route del local 192.0.2.1 dev lo table local",
    ),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "damage" in metafunc.fixturenames:
        damages = DAMAGE[metafunc.config.getoption("--mode")]
        metafunc.parametrize("damage", damages.values(), ids=damages)


def run(cluster: Cluster, commands: str) -> bytes:
    """On the node, a command a line, as its operator would; the output of the last one."""
    output = b""
    for line in commands.splitlines():
        program, rest = line.split(" ", 1)
        # What nft takes is one argument.
        words = [flavoured(cluster.lab, program), *([rest] if program == "nft" else rest.split())]
        output = cluster.lab.node.namespace.run(words).stdout
    return output


def flavoured(lab: Lab, program: str) -> str:
    return f"{program}-{lab.iptables}" if lab.iptables and program in ("iptables", "ip6tables") else program


def test_damage_is_repaired(cluster: Cluster, number: int, damage: str) -> None:
    cluster.apply("drift", service(number), *slices(number, ["pod-2"]))
    address = addresses(number)["ClusterIP"]["IPv4"]
    said = len(cluster.log())
    run(cluster, damage.format(address=address))
    until(lambda: "repairing" in cluster.log()[said:], lambda: f"it was not found: {cluster.log()[-3000:]}", FOUND_S)
    until(lambda: cluster.outcome("pod-1", address, 80) == "pod-2", lambda: "the damage was not repaired")
    until(lambda: cluster.outcome("pod-1", address, 9) == "refused", lambda: "an unclaimed port is not refused")
    bystander = cluster.lab.node.ipv4, 9  # nobody's port: the node itself must refuse it
    until(lambda: cluster.outcome("client", *bystander) == "refused", lambda: "others' traffic is still harmed")
    cluster.delete("drift")


def test_what_is_foreign_in_it_is_removed(cluster: Cluster, number: int, mode: str) -> None:
    adding, said, listing, there = FOREIGN[mode]
    cluster.apply("drift", service(number), *slices(number, ["pod-2"]))
    run(cluster, adding)
    until(lambda: said in cluster.log(), lambda: "it was not found", FOUND_S)
    until(lambda: there not in run(cluster, listing), lambda: "it was not removed")
    cluster.delete("drift")


def test_what_is_of_others_is_left_alone(cluster: Cluster, number: int, mode: str) -> None:
    making, listing, there, removing = OTHERS[mode]
    run(cluster, making)
    cluster.apply("drift", service(number), *slices(number, ["pod-2"]))
    said = len(cluster.log())
    until(lambda: "verified drift=0" in cluster.log()[said:], lambda: "never verified", FOUND_S)
    assert there in run(cluster, listing)
    assert "repairing" not in cluster.log()[said:], cluster.log()[said - 500 :]
    run(cluster, removing)
    cluster.delete("drift")
