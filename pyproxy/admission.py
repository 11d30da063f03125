"""The boundary: an object is checked here once, and everything behind it may trust what it reads.

A Service or Node that makes no sense is refused whole, since half of a service may be worse than its last good
version. In an EndpointSlice each endpoint and port stands for itself: a bad one is left out, the rest is served.
What comes out has canonical addresses and shared strings.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from sys import intern

from msgspec.structs import replace

from pyproxy import objects
from pyproxy.address import IP, Family, family_of, parse_ip, parse_prefix, shorten, why_not_an_endpoint
from pyproxy.objects import Endpoint, EndpointSlice, Key, Metadata, Node, Object, Service, ServicePort, SlicePort
from pyproxy.problem import Problem

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", re.ASCII)  # RFC 1123
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*", re.ASCII)
_PROTOCOLS = ("TCP", "UDP", "SCTP")
_MOST_PROBLEMS = 10  # of one object; the rest is counted
_KEPT_LABELS = (objects.PROXY_NAME_LABEL, objects.HEADLESS_LABEL, objects.SERVICE_NAME_LABEL, objects.ZONE_LABEL)
_MOST_AFFINITY = 86400  # core/v1 ClientIPConfig.timeoutSeconds: at most one day


class Refused(Exception):
    """An object that can't be obeyed at all."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


class _Field(Exception):
    """A field with a wrong value; becomes Refused or a Problem once the object's name is known."""


def admit(thing: Object) -> tuple[Object, list[Problem]]:
    """``thing`` in canonical form, and what of it is left out. Raises Refused."""
    kind = type(thing).__name__
    try:
        if isinstance(thing, Service):
            return _service(thing), []
        if isinstance(thing, Node):
            return _node(thing), []
        admitted, left_out = _slice(thing)
    except _Field as wrong:
        field, reason = wrong.args
        raise Refused(Problem(kind, printable_key(thing.key), field, reason)) from None
    problems = [Problem(kind, admitted.key, *wrong.args) for wrong in islice(left_out, _MOST_PROBLEMS)]
    if len(left_out) > _MOST_PROBLEMS:
        problems.append(Problem(kind, admitted.key, "", f"{len(left_out) - _MOST_PROBLEMS} more like these"))
    return admitted, problems


def printable_key(key: Key) -> Key:
    """``key`` fit for a log line even if it is not fit for anything else."""
    return Key(*(part if _SUBDOMAIN.fullmatch(part) or not part else shorten(part) for part in key))


def _service(service: Service) -> Service:
    spec = service.spec
    metadata = _metadata(service.metadata, _LABEL, namespaced=True)
    _one_of("spec.type", spec.type, ("ClusterIP", "NodePort", "LoadBalancer", "ExternalName"))
    if spec.type == "ExternalName":
        return Service(metadata, objects.ServiceSpec(type="ExternalName"))
    _one_of("spec.sessionAffinity", spec.session_affinity, ("None", "ClientIP"))
    _one_of("spec.internalTrafficPolicy", spec.internal_traffic_policy, ("Cluster", "Local"))
    _one_of("spec.externalTrafficPolicy", spec.external_traffic_policy, ("Cluster", "Local"))
    config = spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    if seconds is not None and not 1 <= seconds <= _MOST_AFFINITY:
        raise _Field(
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds", f"{seconds} is not between 1 and {_MOST_AFFINITY}"
        )
    if spec.health_check_node_port:
        _port("spec.healthCheckNodePort", spec.health_check_node_port)
    given = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    cluster_ips = given if given in ((), ("None",)) else _each("spec.clusterIPs", given, _reachable)
    families = [family_of(IP(address)) for address in cluster_ips if address != "None"]
    if len(families) > len(set(families)):
        raise _Field("spec.clusterIPs[1]", "is of the same family as the first")
    ingress = (service.status and service.status.load_balancer and service.status.load_balancer.ingress) or ()
    vips = tuple(entry.ip if entry.ip_mode == "VIP" else "" for entry in ingress)  # "": a hostname, or ipMode Proxy
    vips = _each("status.loadBalancer.ingress", vips, _reachable)
    return Service(
        metadata,
        replace(
            spec,
            ports=_service_ports(spec.ports or ()),
            type=intern(spec.type),
            cluster_ip=cluster_ips[0] if cluster_ips else "",
            cluster_ips=cluster_ips,
            external_ips=_each("spec.externalIPs", spec.external_ips or (), _reachable) or None,
            load_balancer_source_ranges=_each(
                "spec.loadBalancerSourceRanges", spec.load_balancer_source_ranges or (), parse_prefix
            )
            or None,
        ),
        objects.ServiceStatus(objects.LoadBalancerStatus(tuple(objects.Ingress(ip) for ip in vips))) if vips else None,
    )


def _service_ports(ports: tuple[ServicePort, ...]) -> tuple[ServicePort, ...]:
    names: set[str] = set()
    sockets: set[tuple[int, str]] = set()
    for index, port in enumerate(ports):
        field = f"spec.ports[{index}]"
        _one_of(f"{field}.protocol", port.protocol, _PROTOCOLS)
        _port(f"{field}.port", port.port)
        if port.node_port:
            _port(f"{field}.nodePort", port.node_port)
        if port.name or len(ports) > 1:
            _name(f"{field}.name", port.name, _LABEL)
        if port.name in names:
            raise _Field(f"{field}.name", f"{port.name} is the name of another port of this service")
        if (port.port, port.protocol) in sockets:
            raise _Field(f"{field}.port", f"{port.port}/{port.protocol} is another port of this service")
        names.add(port.name)
        sockets.add((port.port, port.protocol))
        port.name = intern(port.name)
        port.protocol = intern(port.protocol)
    return ports


def _slice(piece: EndpointSlice) -> tuple[EndpointSlice, list[_Field]]:
    metadata = _metadata(piece.metadata, _SUBDOMAIN, namespaced=True)
    _one_of("addressType", piece.address_type, ("IPv4", "IPv6", "FQDN"))
    service = (metadata.labels or {}).get(objects.SERVICE_NAME_LABEL, "")
    if not service:
        raise _Field(f"metadata.labels[{objects.SERVICE_NAME_LABEL}]", "is missing, so the slice belongs to no service")
    _name(f"metadata.labels[{objects.SERVICE_NAME_LABEL}]", service, _LABEL)
    if piece.address_type == "FQDN":
        return EndpointSlice(metadata, "FQDN"), []
    family = Family(piece.address_type)
    left_out: list[_Field] = []
    endpoints = tuple(_endpoints(piece.endpoints or (), family, left_out))
    ports = tuple(_slice_ports(piece.ports or (), left_out))
    return EndpointSlice(metadata, family.value, endpoints, ports), left_out


def _endpoints(endpoints: Iterable[Endpoint], family: Family, left_out: list[_Field]) -> Iterator[Endpoint]:
    for index, endpoint in enumerate(endpoints):
        try:
            endpoint.addresses = (_endpoint_address(endpoint.addresses, family),)
        except ValueError as wrong:
            left_out.append(_Field(f"endpoints[{index}].addresses[0]", f"{wrong}; the endpoint is left out"))
            continue
        if endpoint.node_name is not None:
            endpoint.node_name = intern(endpoint.node_name)
        if endpoint.conditions is not None:
            endpoint.conditions = _shared_conditions(endpoint.conditions)
        yield endpoint


def _endpoint_address(addresses: tuple[str, ...], family: Family) -> str:
    """The first address alone counts (discovery.k8s.io/v1 Endpoint.addresses)."""
    if not addresses:
        raise ValueError("is missing")
    address = parse_ip(addresses[0])
    if family_of(address) is not family:
        raise ValueError(f"{address} is not an {family.value} address, as addressType says")
    if reason := why_not_an_endpoint(address):
        raise ValueError(f"{address} {reason}")
    return address


_CONDITIONS = {
    (ready, serving, terminating): objects.Conditions(ready, serving, terminating)
    for ready in (None, True, False)
    for serving in (None, True, False)
    for terminating in (None, True, False)
}


def _shared_conditions(conditions: objects.Conditions) -> objects.Conditions:
    return _CONDITIONS[conditions.ready, conditions.serving, conditions.terminating]


def _slice_ports(ports: Iterable[SlicePort], left_out: list[_Field]) -> Iterator[SlicePort]:
    for index, port in enumerate(ports):
        try:
            if port.port is None:
                continue  # discovery.k8s.io/v1: "all ports", which no proxy can serve
            _port(f"ports[{index}].port", port.port)
            _one_of(f"ports[{index}].protocol", port.protocol or "TCP", _PROTOCOLS)
            if port.name:
                _name(f"ports[{index}].name", port.name, _LABEL)
        except _Field as wrong:
            left_out.append(wrong)
            continue
        yield SlicePort(intern(port.name or ""), intern(port.protocol or "TCP"), port.port)


def _node(node: Node) -> Node:
    metadata = _metadata(node.metadata, _SUBDOMAIN, namespaced=False)
    metadata.deletion_timestamp = node.metadata.deletion_timestamp
    spec = node.spec or objects.NodeSpec()
    cidrs = spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else ())
    taints = tuple(taint for taint in spec.taints or () if taint.key == objects.REMOVAL_TAINT)
    addresses = [a for a in (node.status and node.status.addresses) or () if a.type == "InternalIP"]
    ips = _each("status.addresses", tuple(a.address for a in addresses), parse_ip)
    return Node(
        metadata,
        objects.NodeSpec(pod_cidrs=_each("spec.podCIDRs", cidrs, parse_prefix), taints=taints or None),
        objects.NodeStatus(tuple(objects.NodeAddress("InternalIP", ip) for ip in ips)),
    )


def _metadata(metadata: Metadata, pattern: re.Pattern[str], *, namespaced: bool) -> Metadata:
    _name("metadata.name", metadata.name, pattern)
    if namespaced:
        _name("metadata.namespace", metadata.namespace, _LABEL)
    labels = {name: (metadata.labels or {})[name] for name in _KEPT_LABELS if name in (metadata.labels or {})}
    return Metadata(
        metadata.name,
        intern(metadata.namespace) if namespaced else "",
        labels or None,
        creation_timestamp=intern(metadata.creation_timestamp) if metadata.creation_timestamp else None,
    )


def _reachable(text: str) -> str:
    """An address that traffic from elsewhere may be sent to (CVE-2020-8558: never the node's own loopback)."""
    address = parse_ip(text)
    if reason := why_not_an_endpoint(address):
        raise ValueError(f"{address} {reason}")
    return address


def _each(field: str, values: tuple[str, ...], parse: Callable[[str], str]) -> tuple[str, ...]:
    """Every non-empty value parsed; an error names the field and the index."""
    result = []
    for index, value in enumerate(values):
        try:
            if value:
                result.append(parse(value))
        except ValueError as wrong:
            raise _Field(f"{field}[{index}]", str(wrong)) from None
    return tuple(result)


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _Field(field, f"{shorten(value)} is none of {', '.join(allowed)}")


def _port(field: str, value: int) -> None:
    if not 1 <= value <= 65535:
        raise _Field(field, f"{value} is not a port (1 to 65535)")


def _name(field: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        what = "label" if pattern is _LABEL else "subdomain"
        raise _Field(field, f"{shorten(value) if value else 'an empty name'} is not a DNS {what}")
