"""The Kubernetes objects that a proxy reads, with the fields it reads and no others.

Shapes are those of core/v1 and discovery.k8s.io/v1. Decoding checks types; `pyproxy.admission` checks meaning.
The structs hold no cycles, so they are kept out of the garbage collector: 100,000 of them would slow every pass.
"""

from typing import Annotated, NamedTuple

import msgspec

PROXY_NAME_LABEL = "service.kubernetes.io/service-proxy-name"
HEADLESS_LABEL = "service.kubernetes.io/headless"
SERVICE_NAME_LABEL = "kubernetes.io/service-name"
ZONE_LABEL = "topology.kubernetes.io/zone"
TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"
REMOVAL_TAINT = "ToBeDeletedByClusterAutoscaler"


class Key(NamedTuple):
    """Namespace and name of an object; the namespace of a Node is empty."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""As the API has them; a longer number could not even be printed."""


class _Wire(msgspec.Struct, rename="camel", omit_defaults=True, gc=False):
    pass


class Metadata(_Wire):
    name: str
    namespace: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    resource_version: str = ""
    deletion_timestamp: str | None = None
    creation_timestamp: str | None = None  # RFC 3339 in UTC, so that text order is time order


class ClientIPConfig(_Wire):
    timeout_seconds: Int32 | None = None


class AffinityConfig(_Wire):
    client_ip: ClientIPConfig | None = msgspec.field(name="clientIP", default=None)


class ServicePort(_Wire):
    port: Int32
    name: str = ""
    protocol: str = "TCP"
    node_port: Int32 = 0


class ServiceSpec(_Wire):
    ports: tuple[ServicePort, ...] | None = None
    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: tuple[str, ...] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: tuple[str, ...] | None = msgspec.field(name="externalIPs", default=None)
    load_balancer_source_ranges: tuple[str, ...] | None = None
    session_affinity: str = "None"
    session_affinity_config: AffinityConfig | None = None
    internal_traffic_policy: str = "Cluster"
    external_traffic_policy: str = "Cluster"
    health_check_node_port: Int32 = 0


class Ingress(_Wire):
    ip: str = ""
    ip_mode: str = "VIP"


class LoadBalancerStatus(_Wire):
    ingress: tuple[Ingress, ...] | None = None


class ServiceStatus(_Wire):
    load_balancer: LoadBalancerStatus | None = None


class Service(_Wire):
    metadata: Metadata
    spec: ServiceSpec
    status: ServiceStatus | None = None

    @property
    def key(self) -> Key:
        return Key(self.metadata.namespace, self.metadata.name)


class Conditions(_Wire):
    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(_Wire):
    name: str


class Hints(_Wire):
    for_zones: tuple[Hint, ...] | None = None
    for_nodes: tuple[Hint, ...] | None = None


class Endpoint(_Wire):
    addresses: tuple[str, ...]
    conditions: Conditions | None = None
    node_name: str | None = None
    hints: Hints | None = None


class SlicePort(_Wire):
    name: str | None = None
    protocol: str | None = None
    port: Int32 | None = None


class EndpointSlice(_Wire):
    metadata: Metadata
    address_type: str
    endpoints: tuple[Endpoint, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None

    @property
    def key(self) -> Key:
        return Key(self.metadata.namespace, self.metadata.name)

    @property
    def service_key(self) -> Key:
        return Key(self.metadata.namespace, (self.metadata.labels or {}).get(SERVICE_NAME_LABEL, ""))


class NodeAddress(_Wire):
    type: str
    address: str


class Taint(_Wire):
    key: str


class NodeSpec(_Wire):
    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(name="podCIDRs", default=None)
    taints: tuple[Taint, ...] | None = None


class NodeStatus(_Wire):
    addresses: tuple[NodeAddress, ...] | None = None


class Node(_Wire):
    metadata: Metadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None

    @property
    def key(self) -> Key:
        return Key("", self.metadata.name)

    @property
    def is_leaving(self) -> bool:
        """Whether load balancers should send no new traffic here (KEP-3836)."""
        taints = (self.spec and self.spec.taints) or ()
        return self.metadata.deletion_timestamp is not None or any(taint.key == REMOVAL_TAINT for taint in taints)


Object = Service | EndpointSlice | Node

Kind = type[Service] | type[EndpointSlice] | type[Node]

KINDS: dict[tuple[str, str], Kind] = {
    ("v1", "Service"): Service,
    ("discovery.k8s.io/v1", "EndpointSlice"): EndpointSlice,
    ("v1", "Node"): Node,
}
"""apiVersion and kind of what a proxy reads."""


class Upsert(NamedTuple):
    """A source saw this object, new or changed."""

    object: Object
    triggered: float | None = None
    """When the change of endpoints that led to it happened, in seconds since the epoch, if it is known."""


class Delete(NamedTuple):
    """A source saw that this object is gone."""

    kind: Kind
    key: Key


Event = Upsert | Delete
