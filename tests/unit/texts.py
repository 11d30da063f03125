"""Manifests as text that several test modules start from."""

import json
from typing import Any

SERVICE = """\
apiVersion: v1
kind: Service
metadata:
  name: web
  creationTimestamp: 2024-01-02T03:04:05Z
spec:
  clusterIP: 10.96.0.1
  ports:
  - name: http
    port: 80
  - name: https
    port: 443
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  namespace: shop
  labels:
    kubernetes.io/service-name: web
addressType: IPv4
endpoints:
- addresses: [10.244.1.1]
- addresses:
  - 10.244.1.2
ports:
- name: http
  port: 8080
"""
NODE = """\
apiVersion: v1
kind: Node
metadata:
  name: node-a
status:
  addresses:
  - {type: InternalIP, address: 192.0.2.1}
"""


def service(name: str = "web", **spec: Any) -> dict[str, Any]:
    port = {"port": 80}
    metadata = {"name": name}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"clusterIP": "10.96.0.1", "ports": [port], **spec},
    }


def as_json(document: object) -> bytes:
    """One value a line."""
    return json.dumps(document, indent=1).encode()
