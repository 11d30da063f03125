"""Who owns an address and port, or a node port, when several services ask for it.

The API server allocates ClusterIPs, so a ClusterIP goes before external addresses: nobody takes over a port of it by
naming it as an external IP (CVE-2020-8554). Among equals the older service wins, then the order of names.
"""

from collections.abc import Iterator
from typing import NamedTuple

from pyproxy.address import IP, Family
from pyproxy.objects import Key
from pyproxy.table import Route, RouteId, Scope, Transport


class Claim(NamedTuple):
    """A frontend, or a node port in one family."""

    transport: Transport
    address: IP | Family
    port: int


class Claimant(NamedTuple):
    """Smaller goes first."""

    is_external: bool
    created: str
    route: RouteId


_UNKNOWN_AGE = "9999"  # an object without a creationTimestamp is the youngest


class Claims:
    def __init__(self) -> None:
        self._claimants: dict[Claim, tuple[Claimant, ...]] = {}
        self._claims_of: dict[Key, tuple[tuple[Claim, Claimant], ...]] = {}

    def replace(self, service: Key, routes: list[Route], created: str | None) -> set[Key]:
        """``service`` now asks for ``routes``. Returns the other services that won or lost something by it."""
        before = self._claims_of.get(service, ())
        after = tuple(pair for route in routes for pair in _wishes(route, created or _UNKNOWN_AGE))
        if after == before:
            return set()
        if after:
            self._claims_of[service] = after
        else:
            del self._claims_of[service]
        affected: set[RouteId] = set()
        for claim, claimant in before:
            rest = tuple(other for other in self._claimants[claim] if other != claimant)
            affected.update(other.route for other in rest)
            if rest:
                self._claimants[claim] = rest
            else:
                del self._claimants[claim]
        for claim, claimant in after:
            others = self._claimants.get(claim, ())
            affected.update(other.route for other in others)
            self._claimants[claim] = tuple(sorted((*others, claimant), key=_rank)) if others else (claimant,)
        return {Key(route.namespace, route.name) for route in affected} - {service}

    def holder(self, claim: Claim) -> RouteId:
        return self._claimants[claim][0].route


def frontend_claims(route: Route) -> list[Claim]:
    """In the order of route.frontends."""
    return [Claim(route.transport, frontend.address, frontend.port) for frontend in route.frontends]


def node_port_claim(route: Route) -> Claim | None:
    return Claim(route.transport, route.id.family, route.node_port) if route.node_port else None


def _wishes(route: Route, created: str) -> Iterator[tuple[Claim, Claimant]]:
    for claim, frontend in zip(frontend_claims(route), route.frontends, strict=True):
        yield claim, Claimant(frontend.scope is not Scope.CLUSTER_IP, created, route.id)
    if claim_of_port := node_port_claim(route):
        yield claim_of_port, Claimant(True, created, route.id)


def _rank(claimant: Claimant) -> tuple[bool, str, tuple[str, ...]]:
    return claimant.is_external, claimant.created, claimant.route[:3]
