"""What happens to a packet that is sent somewhere, and why: the forwarding table, read aloud.

Pure: (destination, what is known) → Explanation. It tells three askers apart, as the table does: a pod on this node,
this node, and everybody else. Where nothing is served it says why not, as far as the objects tell.
"""

import ipaddress
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyproxy.address import Prefix, contains, family_of
from pyproxy.explanation import Asker, Destination, Endpoint, Explanation, Outcome, Source, Verdict
from pyproxy.objects import PROXY_NAME_LABEL, Key, Service, ServicePort
from pyproxy.policy import is_skipped
from pyproxy.problem import Problem
from pyproxy.table import Host, OnEmpty, Pool, Route, Scope, Table, Transport

_MOST_NOTES = 10  # of one sort
_WORDS = {
    Scope.CLUSTER_IP: "the ClusterIP",
    Scope.EXTERNAL_IP: "an external IP",
    Scope.LOAD_BALANCER: "a load balancer IP",
    None: "a node port",
}
_UNKNOWN_PODS = "pods can't be told from others here (detectLocalMode)"


@dataclass(frozen=True, slots=True)
class Known:
    """What an explanation is made of."""

    mode: str
    table: Table
    """What the kernel was given."""
    services: Collection[Service]
    """Those that came in, served or not."""
    problems: Mapping[Key, tuple[Problem, ...]]
    """What of them can't be obeyed."""
    refused: Collection[Problem]
    """What is wrong with objects that were not let in."""
    is_own: bool
    """Whether this node has the address that is asked about."""
    relays: bool = False
    """Whether endpoints are connected to by this node (Mode.ends_connections)."""
    connects_sockets: bool = False
    """See Mode.connects_sockets."""


def explain(to: Destination, known: Known) -> Explanation:
    """In the order in which the kernel looks: frontends, other ports of ClusterIPs, node ports."""
    family = family_of(to.address)
    routes = [route for route in known.table.routes.values() if route.id.family is family]
    here = [(route, one) for route in routes for one in route.frontends if one.address == to.address]
    for route, frontend in here:
        if (frontend.port, route.transport) == (to.port, to.transport):
            return _served(to, known, route, frontend.scope)
    if any(frontend.scope is Scope.CLUSTER_IP for _, frontend in here):
        notes = _few(_why_not(to, known, node_ports=False))
        why = "no service port claims it: refused at once"
        summary = f"{to} is a port of a ClusterIP that no service port claims"
        return Explanation(str(to), known.mode, summary, _for_all(Verdict.REFUSED, why), notes=tuple(notes))
    node_ports = _answers_node_ports(to, known)
    for route in routes:
        if node_ports and (route.node_port, route.transport) == (to.port, to.transport):
            return _served(to, known, route, None)
    notes = [
        *_few(_why_not(to, known, node_ports=node_ports)),
        *_few(_about_node_ports(to, routes, known.table.host, answered=node_ports)),
        *_few(_about_endpoints(to, routes)),
    ]
    if not notes and node_ports:
        notes = [f"node ports answer at {to.address}, but no service has {to.port}/{to.transport}"]
    elif not notes:
        refused = (f"not obeyed, so what it wants is not known: {one}" for one in _refused_services(known))
        notes = [f"no such address: no service has {to.address}, and node ports don't answer there", *_few(refused)]
    outcomes = _for_all(Verdict.NOT_HANDLED, "it goes on to where it was sent")
    return Explanation(str(to), known.mode, f"nothing is served at {to}", outcomes, notes=tuple(notes))


def _served(to: Destination, known: Known, route: Route, scope: Scope | None) -> Explanation:
    """``scope`` None: by its node port."""
    allowed = route.allowed_sources if scope is Scope.LOAD_BALANCER else None
    refused = [one for one in _refused_services(known) if one.key == route.id[:2]]
    return Explanation(
        destination=str(to),
        mode=known.mode,
        summary=f"{to} is {_WORDS[scope]} of {route.id}",
        outcomes=tuple(_outcome(asker, route, scope, allowed, known) for asker in Asker),
        route=str(route.id),
        affinity_seconds=route.affinity_seconds,
        allowed_sources=allowed,
        notes=(
            *_few(_rivals(to, known, route, scope)),
            *(f"its newest version is refused, the one before is in force: {one}" for one in refused),
        ),
    )


def _for_all(verdict: Verdict, why: str) -> tuple[Outcome, ...]:
    return tuple(Outcome(asker, verdict, why) for asker in Asker)


def _outcome(
    asker: Asker, route: Route, scope: Scope | None, allowed: tuple[Prefix, ...] | None, known: Known
) -> Outcome:
    host = known.table.host
    pods = [prefix for prefix in host.pod_prefixes if family_of(prefix) is route.id.family]
    if allowed is not None and (not allowed or (asker is Asker.POD and pods and not _overlap(pods, allowed))):
        return Outcome(asker, Verdict.DROPPED, f"the source ranges let in {', '.join(allowed) or 'nobody'} only")
    knows_pods = bool(pods or host.pod_interfaces)
    if scope is Scope.CLUSTER_IP:
        pool, policy = route.internal, "internal"
        source, why = _to_cluster_ip(asker, knows_pods, host.masquerade_all)
    else:
        policy = "external"
        pool, source, why = _to_others(asker, knows_pods or known.connects_sockets, route)
    rest = f"; this holds for {', '.join(allowed)}, all others are dropped (source ranges)" if allowed else ""
    if not pool.backends:
        verdict, why = _without_endpoints(pool, policy)
        return Outcome(asker, verdict, why + rest)
    if known.relays and source is Source.KEPT:
        source, why = Source.MASQUERADED, f"{why}; but in this mode the node relays, and endpoints see its address"
    of_sockets = known.connects_sockets and not (scope is Scope.CLUSTER_IP and host.masquerade_all)
    if of_sockets and asker is Asker.POD:
        source, why = Source.KEPT, "in this mode a pod's sockets are connected to endpoints directly"
    elif asker is Asker.POD and source is Source.KEPT and any(backend.is_local for backend in pool.backends):
        why += "; a pod that reaches itself is masqueraded"
    endpoints = tuple(Endpoint(one.ip, one.port, one.is_local) for one in pool.backends)
    return Outcome(asker, Verdict.TRANSLATED, why + rest, source, endpoints)


def _to_cluster_ip(asker: Asker, knows_pods: bool, masquerade_all: bool) -> tuple[Source, str]:
    if masquerade_all:
        return Source.MASQUERADED, "masqueradeAll is on"
    if asker is Asker.NODE:
        return Source.NODE, "it sends from an address of its own"
    if not knows_pods:
        return Source.KEPT, f"{_UNKNOWN_PODS}, so nobody is masqueraded"
    if asker is Asker.POD:
        return Source.KEPT, "endpoints can answer a pod directly"
    return Source.MASQUERADED, "answers must come back through this node"


def _to_others(asker: Asker, knows_pods: bool, route: Route) -> tuple[Pool, Source, str]:
    """To external and load balancer IPs, and node ports."""
    if route.masquerade_external:
        return route.external, Source.MASQUERADED, "external policy Cluster: answers must come back through this node"
    if asker is Asker.NODE:
        return route.short_circuit, Source.MASQUERADED, "external policy Local does not bind this node itself"
    if asker is Asker.POD and knows_pods:
        return route.short_circuit, Source.KEPT, "external policy Local does not bind pods of this node"
    why = "external policy Local: endpoints on this node alone, and they see who asks"
    return route.external, Source.KEPT, why if asker is Asker.OUTSIDE else f"{_UNKNOWN_PODS}; {why}"


def _without_endpoints(pool: Pool, policy: str) -> tuple[Verdict, str]:
    if pool.on_empty is OnEmpty.REJECT:
        return Verdict.REFUSED, "no usable endpoint anywhere: refused at once"
    return Verdict.DROPPED, f"endpoints elsewhere, none on this node, and the {policy} policy is Local: dropped"


def _answers_node_ports(to: Destination, known: Known) -> bool:
    if not known.is_own or ipaddress.ip_address(to.address).is_loopback:
        return False
    return any(contains(prefix, to.address) for prefix in known.table.host.node_port_prefixes)


def _rivals(to: Destination, known: Known, route: Route, scope: Scope | None) -> Iterator[str]:
    """Other services that want what ``route`` has."""
    for service in known.services:
        wanted = _by_node_port(service, to) if scope is None else _scope(service, to) and _by_port(service, to)
        if wanted and service.key != route.id[:2] and _why_left_out(service) is None:
            yield f"{service.key} wants it, too; {route.id} goes first: a ClusterIP before others, then the older"


def _why_not(to: Destination, known: Known, *, node_ports: bool) -> Iterator[str]:
    """Of services that have the address, or such a node port: why they are not served there."""
    for service in known.services:
        key, port = service.key, None
        if scope := _scope(service, to):
            port = _by_port(service, to)
            mine = f"{to.address} is {_WORDS[scope]} of {key}"
        elif node_ports and (port := _by_node_port(service, to)):
            mine = f"{to.port}/{to.transport} is a node port of {key}"
        else:
            continue
        if reason := _why_left_out(service):
            yield f"{mine}, which {reason}"
        elif port is None:
            ports = ", ".join(f"{one.port}/{one.protocol.lower()}" for one in service.spec.ports or ())
            yield f"{mine}, which serves {ports or 'no port'}"
        elif problems := [one for one in known.problems.get(key, ()) if _concerns(one, port, to)]:
            yield from map(str, problems)
        else:
            yield f"{mine}, but that is not in the kernel yet; the log says why"


def _scope(service: Service, to: Destination) -> Scope | None:
    """What the address is to the service, if it has it."""
    balancer = service.status and service.status.load_balancer
    if to.address in (service.spec.cluster_ips or ()):
        return Scope.CLUSTER_IP
    if any(entry.ip == to.address for entry in (balancer and balancer.ingress) or ()):
        return Scope.LOAD_BALANCER
    return Scope.EXTERNAL_IP if to.address in (service.spec.external_ips or ()) else None


def _by_port(service: Service, to: Destination) -> ServicePort | None:
    wanted = to.port, to.transport.upper()
    return next((one for one in service.spec.ports or () if (one.port, one.protocol) == wanted), None)


def _by_node_port(service: Service, to: Destination) -> ServicePort | None:
    wanted = to.port, to.transport.upper()
    return next((one for one in service.spec.ports or () if (one.node_port, one.protocol) == wanted), None)


def _why_left_out(service: Service) -> str | None:
    if PROXY_NAME_LABEL in (service.metadata.labels or {}):
        return f"is left to another proxy (label {PROXY_NAME_LABEL})"
    if not is_skipped(service):
        return None
    if service.spec.type == "ExternalName":
        return "is skipped: type ExternalName is an alias of a DNS name"
    return "is skipped: it is headless (clusterIP None)" if service.spec.cluster_ip else "has no ClusterIP yet"


def _concerns(problem: Problem, port: ServicePort, to: Destination) -> bool:
    """Conflicts are about what another service has, which is then served."""
    mine = problem.field == f"spec.ports[{port.name}]" and problem.code != "Conflict"
    return mine or problem.reason.startswith(f"{to.address} ")


def _about_node_ports(to: Destination, routes: list[Route], host: Host, *, answered: bool) -> Iterator[str]:
    holders = [route for route in routes if route.node_port == to.port]
    for route in holders:
        yield f"{to.port}/{route.transport} is a node port of {route.id}"
    if holders and not answered:
        mine = [prefix for prefix in host.node_port_prefixes if family_of(prefix) is family_of(to.address)]
        ranges = ", ".join(mine) or "no range"
        yield f"node ports answer on this node's own addresses within {ranges}, never on loopback"
    for route in routes:
        if answered and route.health_check_port == to.port and to.transport is Transport.TCP:
            yield f"{to.port}/tcp is the health check node port of {route.id}, which pyproxy itself answers"


def _about_endpoints(to: Destination, routes: list[Route]) -> Iterator[str]:
    for route in routes:
        pools = {id(pool): pool for pool in route.pools}.values() if route.transport is to.transport else ()
        if any((one.ip, one.port) == (to.address, to.port) for pool in pools for one in pool.backends):
            yield f"{to} is an endpoint of {route.id}, reached there without any proxy"


def _refused_services(known: Known) -> list[Problem]:
    return [problem for problem in known.refused if problem.kind not in ("EndpointSlice", "Node")]


def _few(notes: Iterable[str]) -> list[str]:
    """A crowd may share an address."""
    rest = list(notes)
    more = [f"{len(rest) - _MOST_NOTES} more like these"] if len(rest) > _MOST_NOTES else []
    return rest[:_MOST_NOTES] + more


def _overlap(some: Iterable[Prefix], others: Iterable[Prefix]) -> bool:
    """All of one family."""
    networks: list[Any] = [ipaddress.ip_network(prefix) for prefix in others]
    return any(network.overlaps(ipaddress.ip_network(prefix)) for prefix in some for network in networks)
