"""The Service that is measured, the load beside it that nobody contacts, and the ways that lead to it or past it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bench import synthetic
from bench.lab import NODE_NAME
from bench.measure import Target

MOST_ENDPOINTS = 100
PORT, NODE_PORT = 80, 30080
"""Of the Service, as most scenarios have it."""
_CLUSTER_IP, _NODE = "10.96.0.20", "172.18.0.2"
_FIRST_PORT = 9000
"""Of those that endpoints listen on: they are one pod at as many ports."""
_LOAD_NODE_PORTS = range(30100, 32768)
_ONE_NODE_PORT_IN = 10
"""So many of the load's Services have a node port, as long as there are any."""


class ServicePort(NamedTuple):
    """Of the Service that is measured."""

    name: str
    protocol: str
    port: int
    node_port: int
    endpoints: Sequence[Target]


class Way(NamedTuple):
    """From whom to whom."""

    name: str
    words: str
    who: str
    pod: str
    """The one that answers: without a proxy it is asked straight."""
    through: Target | None
    """Where the service is found; None: nobody goes through it here."""


class Cell(NamedTuple):
    """One thing that is measured."""

    contestant: str
    way: str
    measure: str


def ways(port: int, node_port: int) -> tuple[Way, ...]:
    """To a ServicePort. The bystander's pod is no endpoint: two paths to one pod would get into each other's way in
    conntrack."""
    return (
        Way("cluster-ip", "pod to ClusterIP", "pod-1", "pod-2", (_CLUSTER_IP, port)),
        Way("node-port", "outside to NodePort", "client", "pod-2", (_NODE, node_port)),
        Way("bystander", "bystander: pod to another pod", "pod-1", "pod-3", None),
    )


WAYS = ways(PORT, NODE_PORT)


def endpoint_ports(number: int) -> list[int]:
    return list(range(_FIRST_PORT, _FIRST_PORT + number))


def tcp_and_udp(endpoints: Sequence[Target]) -> list[ServicePort]:
    return [ServicePort(name, name.upper(), PORT, NODE_PORT, endpoints) for name in ("tcp", "udp")]


def objects(services: int, endpoints: int, ports: Sequence[ServicePort]) -> list[dict[str, Any]]:
    """The Service that is measured, with those ports, and ``services`` - 1 others of so many endpoints each."""
    load = synthetic.load(services - 1, endpoints)
    others = [thing for thing in load if thing["kind"] == "Service"]
    for service, node_port in zip(others[::_ONE_NODE_PORT_IN], _LOAD_NODE_PORTS, strict=False):
        service["spec"]["type"] = "NodePort"
        service["spec"]["ports"][0]["nodePort"] = node_port
    return load + measured(ports)


def measured(ports: Sequence[ServicePort]) -> list[dict[str, Any]]:
    """The Service, and an EndpointSlice for each endpoint."""
    service = synthetic.service("measured", _CLUSTER_IP)
    service["spec"]["type"] = "NodePort"
    service["spec"]["ports"] = [
        {"name": port.name, "protocol": port.protocol, "port": port.port, "nodePort": port.node_port} for port in ports
    ]
    slices = []
    for number, endpoint in enumerate(dict.fromkeys(endpoint for port in ports for endpoint in port.endpoints)):
        one = synthetic.endpoint_slice("measured", [(endpoint[0], NODE_NAME)])
        one["metadata"]["name"] = f"measured-{number}"
        one["ports"] = [
            {"name": port.name, "protocol": port.protocol, "port": endpoint[1]}
            for port in ports
            if endpoint in port.endpoints
        ]
        slices.append(one)
    return [service, *slices]
