"""A small cluster of network namespaces on one machine, in both IP families.

             lan (a bridge)
     ┌───────────┼────────────┐
   node        node-2       client           node: three pods; node-2: one pod; client: outside the cluster
  ╱  │  ╲        │
pod pod pod     pod                          each pod on a veth of its own with one host route, like most clusters

A proxy runs on the node. A second lab in which none ever ran is the floor to measure against: in it no netfilter
hook, no conntrack entry and no BPF program touches a packet.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench import cgroup
from bench.cgroup import Cgroup
from bench.namespace import Namespace, sweep
from ebpf import pins

PREFIX = "pyproxy"
SERVER_PORT = 8080
NODE_NAME = "node-1"
CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/48"
_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
_POD_GATEWAY = ("169.254.1.1", "fe80::ecee:eeff:feee:eeee")  # nobody's address: the veth's far end answers
_labs = itertools.count()


@dataclass(frozen=True, slots=True)
class Host:
    """A namespace with its addresses."""

    name: str
    namespace: Namespace
    ipv4: str
    ipv6: str
    cgroup: Cgroup | None = None
    """Where its sockets are: the node's and its pods'; None is outside."""

    def address(self, family: str) -> str:
        """``family``: IPv4 or IPv6."""
        return self.ipv4 if family == "IPv4" else self.ipv6

    def start(self, command: Sequence[str | Path], **options: Any) -> subprocess.Popen[bytes]:
        """A process whose sockets are this host's: in its namespace, as `Namespace.start` says, and its cgroup."""

        def start() -> subprocess.Popen[bytes]:
            return self.namespace.start(command, **options)

        return self.cgroup.run(start) if self.cgroup else start()


class Lab:
    """Use as a context manager; everything it made is gone afterwards, whatever happened inside."""

    node: Host
    node2: Host
    client: Host

    def __init__(self, iptables: str | None = None) -> None:
        """``iptables``: the flavour that the node says it uses, ``legacy`` or ``nft``, as kubelet does."""
        self.iptables = iptables
        self._prefix = f"{PREFIX}{os.getpid()}-{next(_labs)}-"
        self._stack = ExitStack()
        self.cgroup = Cgroup.named(self._prefix + "node")
        self._pins: Path | None = None
        self.pods: dict[str, Host] = {}

    @property
    def flags(self) -> tuple[str, ...]:
        """What a `pyproxy run` on the node must be told of it."""
        return ("--cgroup", str(self.cgroup.path)) if self.cgroup else ()

    def host(self, name: str) -> Host:
        """``node``, ``client`` (outside) or a pod."""
        return {"node": self.node, "client": self.client}.get(name) or self.pods[name]

    def __enter__(self) -> Self:
        sweep(PREFIX)
        cgroup.sweep(PREFIX)
        try:
            self._build()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def _build(self) -> None:
        if self.cgroup:
            self._stack.callback(self.cgroup.remove)
            self.cgroup.create()
        lan = self._namespace("lan")
        with lan.links() as links:
            links.link("add", ifname="lan", kind="bridge")
            bridge = links.link_lookup(ifname="lan")[0]
            links.link("set", index=bridge, state="up")
            for address, length in (("172.18.0.1", 24), ("fd00:172:18::1", 64)):
                _add_address(links, bridge, address, length)
        self._stack.callback(self._unpin)
        self.node = self._join(lan, "node", 2)
        with self.node.namespace.entered():
            self._pins = pins.folder()
        self.node2 = self._join(lan, "node-2", 3)
        self.client = self._join(lan, "client", 100)
        for number in (1, 2, 3):
            self._add_pod(self.node, number, f"10.244.0.{10 + number}", f"fd00:10:244::{10 + number}")
        self._add_pod(self.node2, 4, "10.244.1.14", "fd00:10:244:1::14")
        _add_routes(self.node, {"10.244.1.0/24": self.node2.ipv4, "fd00:10:244:1::/64": self.node2.ipv6})
        _add_routes(self.node2, {"10.244.0.0/24": self.node.ipv4, "fd00:10:244::/64": self.node.ipv6})
        for node in (self.node, self.node2):
            _add_routes(node, {"default": "172.18.0.1", "::/0": "fd00:172:18::1"})
        if self.iptables:
            self.node.namespace.run([f"iptables-{self.iptables}", "-t", "mangle", "-N", "KUBE-IPTABLES-HINT"])
        # Outside, everything of the cluster is behind the node.
        _add_routes(self.client, {"default": self.node.ipv4, "::/0": self.node.ipv6})
        self._serve()

    def _namespace(self, name: str) -> Namespace:
        namespace = Namespace(self._prefix + name)
        self._stack.callback(namespace.remove)
        namespace.create()
        # Addresses work at once: nobody else could have them.
        namespace.sysctl(ipv6__conf__all__accept_dad=0, ipv6__conf__default__accept_dad=0)
        return namespace

    def _join(self, lan: Namespace, name: str, number: int) -> Host:
        """A host on the shared segment."""
        inside = self.cgroup if name == "node" else None
        host = Host(name, self._namespace(name), f"172.18.0.{number}", f"fd00:172:18::{number}", inside)
        if name != "client":
            # Without the kernel's limit on ICMP errors a client: redirects use it up, and refusals would be silent.
            host.namespace.sysctl(ipv4__ip_forward=1, ipv6__conf__all__forwarding=1, ipv4__icmp_ratelimit=0)
        with lan.links() as links:
            links.link("add", ifname=name, kind="veth", peer={"ifname": "eth0", "net_ns_fd": host.namespace.name})
            port = links.link_lookup(ifname=name)[0]
            links.link("set", index=port, master=links.link_lookup(ifname="lan")[0], state="up")
        with host.namespace.links() as links:
            eth0 = links.link_lookup(ifname="eth0")[0]
            links.link("set", index=eth0, state="up")
            _add_address(links, eth0, host.ipv4, 24)
            _add_address(links, eth0, host.ipv6, 64)
        return host

    def _add_pod(self, node: Host, number: int, ipv4: str, ipv6: str) -> None:
        name = f"pod-{number}"
        pod = Host(name, self._namespace(name), ipv4, ipv6, node.cgroup)
        self.pods[name] = pod
        mac = f"02:00:00:00:00:{number:02x}"
        with node.namespace.links() as links:
            peer = {"ifname": "eth0", "address": mac, "net_ns_fd": pod.namespace.name}
            links.link("add", ifname=f"veth{number}", kind="veth", address=_GATEWAY_MAC, peer=peer)
            veth = links.link_lookup(ifname=f"veth{number}")[0]
            links.link("set", index=veth, state="up")
            for address, length in ((ipv4, 32), (ipv6, 128)):
                links.route("add", dst=f"{address}/{length}", oif=veth)
                links.neigh("add", dst=address, lladdr=mac, ifindex=veth, state="permanent")
        with pod.namespace.links() as links:
            eth0 = links.link_lookup(ifname="eth0")[0]
            links.link("set", index=eth0, state="up")
            _add_address(links, eth0, ipv4, 32)
            _add_address(links, eth0, ipv6, 128)
            links.route("add", dst=f"{_POD_GATEWAY[0]}/32", oif=eth0, scope="link")
            for gateway, default in zip(_POD_GATEWAY, ("0.0.0.0/0", "::/0"), strict=True):
                links.neigh("add", dst=gateway, lladdr=_GATEWAY_MAC, ifindex=eth0, state="permanent")
                links.route("add", dst=default, gateway=gateway, oif=eth0)

    def _unpin(self) -> None:
        """What mode ebpf pinned: it would stay, since the file system for it is the machine's."""
        if self._pins:
            pins.remove(self._pins)

    def _serve(self) -> None:
        """One process answers in every pod; it is ready when it says so."""
        places = [f"{pod.name}={pod.namespace.path}" for pod in self.pods.values()]
        command = [sys.executable, "-m", "bench.server", str(SERVER_PORT), *places]
        server = self.node.start(command, stdout=subprocess.PIPE)
        assert server.stdout is not None
        if server.stdout.readline() != b"ready\n":
            raise RuntimeError("the lab's server did not start")


def _add_address(links: object, index: int, address: str, length: int) -> None:
    links.addr("add", index=index, address=address, prefixlen=length)  # type: ignore[attr-defined]


def _add_routes(host: Host, routes: dict[str, str]) -> None:
    with host.namespace.links() as links:
        for destination, gateway in routes.items():
            links.route("add", dst="0.0.0.0/0" if destination == "default" else destination, gateway=gateway)
