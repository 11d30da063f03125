"""Path MTU discovery through a service (RFC 1191, RFC 8201): a router behind this node says: too big."""

from collections.abc import Iterator

import pytest

from bench.ask import open_socket
from tests.conformance.cluster import Cluster
from tests.conformance.manifests import FAMILIES, service, slices, target

_MUCH = b"0123456789abcdef" * 4096


@pytest.fixture
def narrow(cluster: Cluster) -> Iterator[Cluster]:
    """From its node to pod-4 the path is narrower than the pod says, and only that way."""
    pod, node = cluster.host("pod-4"), cluster.lab.node2.namespace
    routes = [
        ["ip", "route", "replace", f"{ip}/{bits}", "dev", "veth4"] for ip, bits in ((pod.ipv4, 32), (pod.ipv6, 128))
    ]
    try:
        for route in routes:
            node.run([*route, "mtu", "1300"])
        yield cluster
    finally:
        for route in routes:
            node.run(route)
        for host in ("node", "client", "pod-1"):  # and forget what was learnt
            for family in ("-4", "-6"):
                cluster.host(host).namespace.run(["ip", family, "route", "flush", "cache"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("who", "kind"), [("pod-1", "ClusterIP"), ("client", "NodePort"), ("client", "LoadBalancer")])
def test_what_is_too_big_for_the_path_is_sent_again_in_smaller_pieces(
    narrow: Cluster, number: int, who: str, kind: str, family: str
) -> None:
    narrow.apply("narrow", service(number), *slices(number, ["pod-4"]))
    address, port = target(number, kind, family, "TCP")
    with open_socket(narrow.host(who), address) as client:
        client.settimeout(10)
        client.connect((address, port))
        client.recv(100)
        client.sendall(_MUCH)
        answered = b""
        while len(answered) < len(_MUCH) and (more := client.recv(1 << 20)):
            answered += more
        assert answered == _MUCH
    narrow.delete("narrow")
