"""What a small shop runs in its cluster, for pictures of the proxy at work."""

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from bench.lab import NODE_NAME
from tests.conformance import manifests
from tests.conformance.manifests import Object

_NODES = (NODE_NAME, "node-2", "node-3")


@dataclass(frozen=True, slots=True)
class _Example:
    namespace: str
    name: str
    ports: tuple[tuple[str, str, int, int], ...]
    """Name, protocol, port and target port."""
    pods: int
    spec: dict[str, Any] = field(default_factory=dict)
    dual_stack: bool = False


def _http(port: int = 80, target: int = 8080) -> tuple[tuple[str, str, int, int], ...]:
    return (("http", "TCP", port, target),)


_AFFINE = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 10800}}}
_BALANCED = {"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 32140}
_SHOP = (
    _Example("auth", "keycloak", _http(), 2, _AFFINE),
    _Example("default", "kubernetes", (("https", "TCP", 443, 6443),), 3),
    _Example("kube-system", "kube-dns", (("dns", "UDP", 53, 53), ("dns-tcp", "TCP", 53, 53)), 2, {}, True),
    _Example("kube-system", "metrics-server", (("https", "TCP", 443, 10250),), 1),
    _Example("monitoring", "alertmanager", (("web", "TCP", 9093, 9093),), 2),
    _Example("monitoring", "grafana", _http(80, 3000), 1, {"type": "NodePort"}),
    _Example("monitoring", "prometheus", (("web", "TCP", 9090, 9090),), 2, _AFFINE),
    _Example("payments", "ledger", (("grpc", "TCP", 9000, 9000),), 3),
    _Example("payments", "postgres", (("postgres", "TCP", 5432, 5432),), 1),
    _Example("shop", "cart", _http(), 4),
    _Example("shop", "catalog", _http(), 9),
    _Example("shop", "checkout", _http(), 3),
    _Example("shop", "gateway", (("https", "TCP", 443, 8443),), 3, _BALANCED),
    _Example("shop", "image-resizer", _http(), 0),
    _Example("shop", "redis", (("redis", "TCP", 6379, 6379),), 1),
    _Example("shop", "storefront", _http(80, 3000), 6),
)


def shop() -> list[Object]:
    """A node, and Services with EndpointSlices on it and on others."""
    objects = [manifests.node()]
    pods, node_ports = count(), count(31080)
    for number, example in enumerate(_SHOP, start=10):
        objects.append(_service(number, example, node_ports))
        places = [divmod(next(pods), len(_NODES)) for _ in range(example.pods)]
        objects += [_slice(example, family, places) for family in _families(example)]
    return objects


def _families(example: _Example) -> tuple[str, ...]:
    return manifests.FAMILIES if example.dual_stack else ("IPv4",)


def _service(number: int, example: _Example, node_ports: "count[int]") -> Object:
    addresses = {"IPv4": f"10.96.{number * 7 % 60}.{number * 11 % 250}", "IPv6": f"fd00:10:96::{number:x}"}
    cluster_ips = [addresses[family] for family in _families(example)]
    exposed = "type" in example.spec
    ports = [
        {"name": name, "protocol": protocol, "port": port, "targetPort": target}
        | ({"nodePort": next(node_ports)} if exposed else {})
        for name, protocol, port, target in example.ports
    ]
    ingress = [{"ip": "203.0.113.7"}, {"ip": "2001:db8::7"}] if example.spec.get("type") == "LoadBalancer" else []
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": example.name, "namespace": example.namespace},
        "spec": {"clusterIP": cluster_ips[0], "clusterIPs": cluster_ips, "ports": ports, **example.spec},
        "status": {"loadBalancer": {"ingress": ingress}},
    }


def _slice(example: _Example, family: str, places: list[tuple[int, int]]) -> Object:
    template = "10.244.{node}.{pod}" if family == "IPv4" else "fd00:10:244:{node}::{pod}"
    endpoints = [
        {"addresses": [template.format(node=node, pod=pod + 20)], "nodeName": _NODES[node]} for pod, node in places
    ]
    ports = [{"name": name, "protocol": protocol, "port": target} for name, protocol, _, target in example.ports]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{example.name}-{family.lower()}",
            "namespace": example.namespace,
            "labels": {"kubernetes.io/service-name": example.name},
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports,
    }
