"""What Kubernetes wants of a service proxy, as pure functions: (Service, its EndpointSlices, this node) → Routes.

Every decision of the API is taken here, once, for all modes: which endpoints are usable, what each traffic policy
makes of them, whose source address is kept. The rules are those of core/v1 ServiceSpec and discovery.k8s.io/v1 as
kube-proxy 1.36 reads them.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pyproxy.address import IP, Family, Prefix, collapse, family_of
from pyproxy.objects import Endpoint, EndpointSlice, Service, ServicePort
from pyproxy.problem import Problem
from pyproxy.table import Backend, Frontend, OnEmpty, Pool, Route, RouteId, Scope, Transport

DEFAULT_AFFINITY_SECONDS = 10800  # core/v1 ClientIPConfig.timeoutSeconds

_Endpoints = dict[tuple[IP, int], Endpoint]


@dataclass(frozen=True, slots=True)
class Site:
    """Where this proxy runs, for topology: spec.nodeName of its pods, and the node's zone label."""

    node_name: str
    zone: str | None = None


def routes_of(service: Service, slices: Iterable[EndpointSlice], site: Site) -> tuple[list[Route], list[Problem]]:
    """One route per port and IP family, and what of the service can't be obeyed. Empty for a skipped service."""
    if is_skipped(service):
        return [], []
    spec = service.spec
    pieces = list(slices)
    routes: list[Route] = []
    families = [family_of(IP(address)) for address in spec.cluster_ips or ()]
    for family, cluster_ip in zip(families, spec.cluster_ips or (), strict=True):
        for port in spec.ports or ():
            endpoints = _endpoints_of(port, family, pieces)
            routes.append(_route(service, port, family, IP(cluster_ip), endpoints, site))
    return routes, _foreign_addresses(service, families)


def is_skipped(service: Service) -> bool:
    """Headless services and names for something outside have no virtual address."""
    return service.spec.type == "ExternalName" or service.spec.cluster_ip in ("", "None")


def _route(
    service: Service, port: ServicePort, family: Family, cluster_ip: IP, endpoints: _Endpoints, site: Site
) -> Route:
    spec = service.spec
    cluster, local = _pools(endpoints, site)
    # Endpoints elsewhere but none here: not refused, so that a load balancer's probe fails and it goes elsewhere.
    local = Pool(local.backends, OnEmpty.DROP if cluster.backends else OnEmpty.REJECT)
    external_local = spec.external_traffic_policy == "Local"
    has_health_check = external_local and spec.type == "LoadBalancer" and spec.health_check_node_port > 0
    return Route(
        id=RouteId(service.metadata.namespace, service.metadata.name, port.name, family),
        transport=Transport(port.protocol.lower()),
        frontends=_frontends(service, port.port, family, cluster_ip),
        node_port=port.node_port or None,
        internal=local if spec.internal_traffic_policy == "Local" else cluster,
        external=local if external_local else cluster,
        short_circuit=cluster,
        masquerade_external=not external_local,
        affinity_seconds=_affinity(service),
        allowed_sources=_allowed_sources(service, family),
        health_check_port=spec.health_check_node_port if has_health_check else None,
        ready_local=_ready_local(endpoints, site) if has_health_check else (),
    )


def _frontends(service: Service, port: int, family: Family, cluster_ip: IP) -> tuple[Frontend, ...]:
    """The addresses of one family; one that is listed twice is a load balancer's, whose source ranges then hold."""
    scopes = dict.fromkeys(_external_ips(service, family), Scope.EXTERNAL_IP)
    scopes.update(dict.fromkeys(_ingress_ips(service, family), Scope.LOAD_BALANCER))
    scopes[cluster_ip] = Scope.CLUSTER_IP
    return tuple(Frontend(address, port, scope) for address, scope in sorted(scopes.items()))


def _external_ips(service: Service, family: Family) -> list[IP]:
    return [IP(address) for address in service.spec.external_ips or () if family_of(IP(address)) is family]


def _ingress_ips(service: Service, family: Family) -> list[IP]:
    balancer = service.status.load_balancer if service.status else None
    entries = (balancer.ingress if balancer else None) or ()
    return [IP(entry.ip) for entry in entries if family_of(IP(entry.ip)) is family]


def _foreign_addresses(service: Service, families: list[Family]) -> list[Problem]:
    """External addresses of a family that the service does not have: nothing could answer there."""
    problems: list[Problem] = []
    if not service.spec.external_ips and service.status is None:
        return problems
    for family in set(Family) - set(families):
        for field, addresses in (
            ("spec.externalIPs", _external_ips(service, family)),
            ("status.loadBalancer.ingress", _ingress_ips(service, family)),
        ):
            problems += [
                Problem("Service", service.key, field, f"{address} is {family.value}, which the service does not have")
                for address in addresses
            ]
    return problems


def _affinity(service: Service) -> int | None:
    if service.spec.session_affinity != "ClientIP":
        return None
    config = service.spec.session_affinity_config
    seconds = config.client_ip.timeout_seconds if config and config.client_ip else None
    return seconds or DEFAULT_AFFINITY_SECONDS


def _allowed_sources(service: Service, family: Family) -> tuple[Prefix, ...] | None:
    """loadBalancerSourceRanges of one family; without any, or with a /0 among them, everyone may come."""
    ranges = [Prefix(text) for text in service.spec.load_balancer_source_ranges or ()]
    disjoint = collapse(prefix for prefix in ranges if family_of(prefix) is family)
    return None if not disjoint or disjoint[0].endswith("/0") else disjoint


def _endpoints_of(port: ServicePort, family: Family, slices: Iterable[EndpointSlice]) -> _Endpoints:
    """Every endpoint of one service port. The same address in two slices is one endpoint, the livelier one."""
    found: _Endpoints = {}
    for piece in slices:
        if piece.address_type != family.value:
            continue
        for slice_port in piece.ports or ():
            if slice_port.name != port.name or slice_port.protocol != port.protocol or slice_port.port is None:
                continue
            number = slice_port.port
            for endpoint in piece.endpoints or ():
                key = (IP(endpoint.addresses[0]), number)
                other = found.get(key)
                if other is None or _liveliness(endpoint) > _liveliness(other):
                    found[key] = endpoint
    return found


def _liveliness(endpoint: Endpoint) -> tuple[bool, bool, bool, str, str]:
    """Orders two entries of one address, whatever order they came in: a non-terminating one wins."""
    return (
        not _is_terminating(endpoint),
        _is_ready(endpoint),
        _is_serving(endpoint),
        endpoint.node_name or "",
        repr(endpoint.hints),
    )


def _pools(endpoints: _Endpoints, site: Site) -> tuple[Pool, Pool]:
    """The cluster pool and the local one."""
    order = sorted(endpoints)
    ready = [key for key in order if _is_ready(endpoints[key])]
    last_resort = [key for key in order if _is_serving(endpoints[key]) and _is_terminating(endpoints[key])]
    cluster = _available(ready, endpoints, site) or last_resort
    local = [key for key in ready if endpoints[key].node_name == site.node_name] or [
        key for key in last_resort if endpoints[key].node_name == site.node_name
    ]
    backends = {key: Backend(*key, endpoints[key].node_name == site.node_name) for key in {*cluster, *local}}
    return Pool(tuple(backends[key] for key in cluster)), Pool(tuple(backends[key] for key in local))


def _ready_local(endpoints: _Endpoints, site: Site) -> tuple[IP, ...]:
    """By address, terminating ones left out, so that a load balancer turns away while they finish."""
    return tuple(
        sorted({ip for (ip, _), one in endpoints.items() if one.node_name == site.node_name and _is_ready(one)})
    )


def _available(ready: list[tuple[IP, int]], endpoints: _Endpoints, site: Site) -> list[tuple[IP, int]]:
    """Ready endpoints under topology (discovery.k8s.io/v1 EndpointHints): all must be hinted, or none is heeded."""
    if not all(endpoints[key].hints for key in ready):
        return ready
    by_node = [_hinted(endpoints[key], "for_nodes") for key in ready]
    if all(by_node) and any(site.node_name in names for names in by_node):
        return [key for key, names in zip(ready, by_node, strict=True) if site.node_name in names]
    by_zone = [_hinted(endpoints[key], "for_zones") for key in ready]
    if site.zone and all(by_zone) and any(site.zone in names for names in by_zone):
        return [key for key, names in zip(ready, by_zone, strict=True) if site.zone in names]
    return ready


def _hinted(endpoint: Endpoint, field: str) -> set[str]:
    hints = getattr(endpoint.hints, field) if endpoint.hints else None
    return {hint.name for hint in hints or ()}


# A condition that is absent reads as ready, serving, not terminating (discovery.k8s.io/v1 EndpointConditions).


def _is_ready(endpoint: Endpoint) -> bool:
    return endpoint.conditions is None or endpoint.conditions.ready is not False


def _is_serving(endpoint: Endpoint) -> bool:
    return endpoint.conditions is None or endpoint.conditions.serving is not False


def _is_terminating(endpoint: Endpoint) -> bool:
    return endpoint.conditions is not None and endpoint.conditions.terminating is True
