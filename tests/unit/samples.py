"""Kubernetes objects in one line each, as the API server would hand them out before admission."""

from typing import Any, TypeVar

from pyproxy.admission import admit
from pyproxy.objects import (
    SERVICE_NAME_LABEL,
    ZONE_LABEL,
    Conditions,
    Endpoint,
    EndpointSlice,
    Hint,
    Hints,
    Ingress,
    LoadBalancerStatus,
    Metadata,
    Node,
    NodeAddress,
    NodeSpec,
    NodeStatus,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SlicePort,
)
from pyproxy.policy import Site, routes_of
from pyproxy.table import Host, Route, RouteId, Table

THIS_NODE = "node-a"
OTHER_NODE = "node-b"
THIS_ZONE = "zone-a"
OTHER_ZONE = "zone-b"

T = TypeVar("T", Service, EndpointSlice, Node)


def service(
    name: str = "web",
    *ports: ServicePort,
    cluster_ips: tuple[str, ...] = ("10.96.0.1",),
    ingress: tuple[Ingress, ...] = (),
    labels: dict[str, str] | None = None,
    created: str | None = None,
    namespace: str = "default",
    **spec: Any,
) -> Service:
    """Fields of the spec go by their Python names; without ports it has TCP 80."""
    return Service(
        Metadata(name, namespace, labels, creation_timestamp=created),
        ServiceSpec(ports=ports or (ServicePort(80),), cluster_ips=cluster_ips, **spec),
        ServiceStatus(LoadBalancerStatus(ingress)) if ingress else None,
    )


def endpoint(
    address: str,
    node: str | None = None,
    *,
    conditions: Conditions | None = None,
    zones: tuple[str, ...] | None = None,
    nodes: tuple[str, ...] | None = None,
) -> Endpoint:
    hinted = zones is not None or nodes is not None
    hints = Hints(tuple(map(Hint, zones or ())) or None, tuple(map(Hint, nodes or ())) or None)
    return Endpoint((address,), conditions, node, hints if hinted else None)


def endpoint_slice(
    *endpoints: Endpoint,
    name: str = "web-1",
    of: str = "web",
    ports: tuple[SlicePort, ...] | None = None,
    family: str = "IPv4",
    labels: dict[str, str] | None = None,
    namespace: str = "default",
) -> EndpointSlice:
    """Without ports it has TCP 8080, for a service port without a name."""
    metadata = Metadata(name, namespace, {SERVICE_NAME_LABEL: of, **(labels or {})})
    return EndpointSlice(metadata, family, endpoints, (SlicePort("", "TCP", 8080),) if ports is None else ports)


def node(*addresses: str, name: str = THIS_NODE, zone: str | None = THIS_ZONE, pod_cidrs: tuple[str, ...] = ()) -> Node:
    return Node(
        Metadata(name, labels={ZONE_LABEL: zone} if zone else None),
        NodeSpec(pod_cidrs=pod_cidrs),
        NodeStatus(tuple(NodeAddress("InternalIP", address) for address in addresses)),
    )


def admitted(thing: T) -> T:
    """``thing`` as it leaves admission, which must have nothing to say about it."""
    result, problems = admit(thing)
    assert not problems
    assert isinstance(result, type(thing))
    return result


def table(*objects: Service | EndpointSlice) -> Table:
    """What policy makes of them on THIS_NODE."""
    slices = [admitted(one) for one in objects if isinstance(one, EndpointSlice)]
    routes: dict[RouteId, Route] = {}
    for one in objects:
        if isinstance(one, Service):
            mine = [piece for piece in slices if piece.service_key == one.key]
            routes |= {route.id: route for route in routes_of(admitted(one), mine, Site(THIS_NODE))[0]}
    return Table(routes, Host())
