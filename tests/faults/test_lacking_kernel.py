"""A kernel that lacks a part: what needs that part is named, service by service, and the rest is served."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pyproxy.api import Api
from tests.conformance.cluster import Candidate, Cluster, until
from tests.conformance.manifests import FAMILIES, service, slices


@contextmanager
def _cluster(hide: str, families: tuple[str, ...] = FAMILIES) -> Iterator[Cluster]:
    """``hide``: shell commands in a mount namespace of the proxy's own, after which it finds less of /proc."""
    command = ("unshare", "--mount", "sh", "-c", f'{hide} && exec "$0" "$@"', *Candidate("nftables").command)
    with Cluster(Candidate("nftables", command, families=families), minSyncPeriod="5ms") as cluster:
        yield cluster


def _events(cluster: Cluster) -> list[dict[str, Any]]:
    """Those that the proxy posted."""
    items: list[dict[str, Any]] = _get(cluster, "/apis/events.k8s.io/v1/namespaces/conformance/events")["items"]
    return items


def _get(cluster: Cluster, path: str) -> Any:
    with cluster.lab.node.namespace.entered():
        return json.loads(Api(cluster.kubeconfig).get(path, {}))


def test_a_conntrack_without_sctp(tmp_path: Path) -> None:
    (tmp_path / "nf_conntrack_max").write_text("1")
    with _cluster(f"mount --bind {tmp_path} /proc/sys/net/netfilter") as cluster:
        ports = [{"name": "a", "protocol": "SCTP", "port": 3868}, {"name": "tcp", "protocol": "TCP", "port": 80}]
        cluster.apply("mixed", service(1, exposed=False, ports=ports), *slices(1, ["pod-2"]))
        assert cluster.ask("pod-1", 1, "ClusterIP", "IPv4").pod == "pod-2"
        until(lambda: len(_events(cluster)) == 2, lambda: str(_events(cluster)))
        first, second = sorted(_events(cluster), key=lambda event: event["note"])
        uid = _get(cluster, "/api/v1/namespaces/conformance/services/svc-1")["metadata"]["uid"]
    assert first["note"] == "spec.ports[a]: IPv4: this kernel's conntrack does not know SCTP"
    assert second["note"] == "spec.ports[a]: IPv6: this kernel's conntrack does not know SCTP"
    assert (first["reason"], first["type"], first["reportingController"]) == ("NotSupported", "Warning", "pyproxy")
    assert first["reportingInstance"] == "node-1"
    assert first["regarding"]["uid"] == second["regarding"]["uid"] == uid


def test_a_kernel_without_ipv6() -> None:
    with _cluster("mount -t tmpfs none /proc/$$/net", families=("IPv4",)) as cluster:
        cluster.apply("dual", service(1), *slices(1, ["pod-2"]))
        assert cluster.ask("client", 1, "NodePort", "IPv4").pod == "pod-2"
        until(lambda: "IPv6: this kernel has no IPv6" in str(_events(cluster)), lambda: str(_events(cluster)))
        assert b"table ip6" not in cluster.lab.node.namespace.run(["nft", "list", "tables"]).stdout


def test_a_port_that_somebody_else_has_is_told() -> None:
    """The health check of a load balancer: the rest of the service is served."""
    with Cluster(Candidate("nftables"), minSyncPeriod="5ms") as cluster:
        with cluster.lab.node.namespace.entered():
            taker = socket.create_server(("172.18.0.2", 32001))
        cluster.apply("lb", service(1, externalTrafficPolicy="Local", healthCheckNodePort=32001), *slices(1, ["pod-2"]))
        assert cluster.ask("client", 1, "NodePort", "IPv4").pod == "pod-2"
        until(lambda: bool(_events(cluster)), lambda: "no event")
        (event,) = _events(cluster)
        taker.close()
    assert event["reason"] == "Conflict"
    assert event["note"] == "spec.healthCheckNodePort: port 32001 of 172.18.0.2 can't be opened: Address already in use"
