"""Synthetic Services and EndpointSlices as manifests, for measuring at any size."""

import json
from pathlib import Path
from typing import Any

NOBODY = "10.128.0.0"  # where the endpoints of the load begin: nobody lives there


def service(name: str, cluster_ip: str, port: int = 80) -> dict[str, Any]:
    """A ClusterIP service of one TCP port named http."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": "bench", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": cluster_ip,
            "clusterIPs": [cluster_ip],
            "ipFamilies": ["IPv4"],
            "ports": [{"name": "http", "protocol": "TCP", "port": port, "targetPort": 8080}],
        },
    }


def endpoint_slice(service_name: str, addresses: list[tuple[str, str]], port: int = 8080) -> dict[str, Any]:
    """``addresses``: pairs of address and node name."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{service_name}-1",
            "namespace": "bench",
            "labels": {"kubernetes.io/service-name": service_name},
        },
        "addressType": "IPv4",
        "endpoints": [
            {
                "addresses": [address],
                "nodeName": node,
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "targetRef": {"kind": "Pod", "namespace": "bench", "name": f"{service_name}-{number}"},
            }
            for number, (address, node) in enumerate(addresses)
        ],
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    }


def load(services: int, endpoints: int) -> list[dict[str, Any]]:
    """``services`` x ``endpoints``, spread over nodes of 100 pods each, the first of them this one."""
    objects: list[dict[str, Any]] = []
    for number in range(services):
        name = f"svc-{number}"
        objects.append(service(name, _address(10 << 24 | 96 << 16, number)))
        pods = range(number * endpoints, (number + 1) * endpoints)
        objects.append(
            endpoint_slice(name, [(_address(10 << 24 | 128 << 16, pod), f"node-{pod // 100 + 1}") for pod in pods])
        )
    return objects


def write(path: Path, objects: list[dict[str, Any]]) -> None:
    """One JSON List, put in place at once."""
    staging = path.with_name(f".{path.name}.new")
    staging.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    staging.rename(path)


def _address(first: int, offset: int) -> str:
    return ".".join(str((first + offset + 256) >> shift & 255) for shift in (24, 16, 8, 0))
