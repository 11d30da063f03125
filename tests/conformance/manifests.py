"""Services and EndpointSlices for the lab's pods, as manifests."""

from collections.abc import Iterable, Mapping
from typing import Any

Object = dict[str, Any]

PODS = {
    "pod-1": ("10.244.0.11", "fd00:10:244::11", "node-1"),
    "pod-2": ("10.244.0.12", "fd00:10:244::12", "node-1"),
    "pod-3": ("10.244.0.13", "fd00:10:244::13", "node-1"),
    "pod-4": ("10.244.1.14", "fd00:10:244:1::14", "node-2"),
}
FAMILIES = ("IPv4", "IPv6")
PORTS = {"TCP": 80, "UDP": 53}
POD_PORT = 8080


def addresses(number: int) -> dict[str, dict[str, str]]:
    """The addresses of service ``number``, by kind and family."""
    return {
        "ClusterIP": {"IPv4": f"10.96.1.{number}", "IPv6": f"fd00:10:96:1::{number:x}"},
        "ExternalIP": {"IPv4": f"203.0.113.{number}", "IPv6": f"2001:db8:113::{number:x}"},
        "LoadBalancer": {"IPv4": f"198.51.100.{number}", "IPv6": f"2001:db8:100::{number:x}"},
        "NodePort": {"IPv4": "172.18.0.2", "IPv6": "fd00:172:18::2"},
    }


def node_port(number: int, protocol: str) -> int:
    return (30000 if protocol == "TCP" else 31000) + number


def target(number: int, kind: str, family: str, protocol: str) -> tuple[str, int]:
    """Where a client connects to for service ``number``."""
    port = node_port(number, protocol) if kind == "NodePort" else PORTS[protocol]
    return addresses(number)[kind][family], port


def service(number: int, *, exposed: bool = True, name: str = "", **spec: Any) -> Object:
    """Dual stack, a TCP and a UDP port; ``exposed`` also outside the cluster, by every kind of frontend."""
    by_kind = addresses(number)
    ports = [
        {"name": protocol.lower(), "protocol": protocol, "port": PORTS[protocol], "targetPort": POD_PORT}
        | ({"nodePort": node_port(number, protocol)} if exposed else {})
        for protocol in PORTS
    ]
    cluster_ips = [by_kind["ClusterIP"][family] for family in FAMILIES]
    outside = {"type": "LoadBalancer", "externalIPs": [by_kind["ExternalIP"][family] for family in FAMILIES]}
    ingress = [{"ip": by_kind["LoadBalancer"][family], "ipMode": "VIP"} for family in FAMILIES]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name or f"svc-{number}", "namespace": "conformance"},
        "spec": {"clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": ports}
        | (outside if exposed else {})
        | spec,
        "status": {"loadBalancer": {"ingress": ingress}} if exposed else {},
    }


def endpoint(pod: str, family: str, **fields: Any) -> Object:
    """``fields`` of discovery.k8s.io/v1 Endpoint; conditions default to absent."""
    ipv4, ipv6, node = PODS[pod]
    return {"addresses": [ipv4 if family == "IPv4" else ipv6], "nodeName": node} | fields


def slices(number: int, pods: Iterable[str] | Mapping[str, Mapping[str, Any]], *, name: str = "") -> list[Object]:
    """Both families; ``pods`` may map each to fields of its endpoint."""
    fields = pods if isinstance(pods, Mapping) else {pod: {} for pod in pods}
    return [
        endpoint_slice(number, family, [endpoint(pod, family, **some) for pod, some in fields.items()], name=name)
        for family in FAMILIES
    ]


def endpoint_slice(number: int, family: str, endpoints: list[Object], *, name: str = "") -> Object:
    service_name = name or f"svc-{number}"
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service_name}-{family.lower()}",
            "namespace": "conformance",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": [{"name": protocol.lower(), "protocol": protocol, "port": POD_PORT} for protocol in PORTS],
    }


def node() -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "node-1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
        "spec": {"podCIDRs": ["10.244.0.0/24", "fd00:10:244::/64"]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": "172.18.0.2"},
                {"type": "InternalIP", "address": "fd00:172:18::2"},
            ]
        },
    }
