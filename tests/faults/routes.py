"""Routes by hand, for what is nearer to the kernel than to Kubernetes."""

from pyproxy.address import IP
from pyproxy.table import Family, Frontend, Pool, Route, RouteId, Scope, Transport


def cluster_ip_route(
    address: str,
    port: int,
    pool: Pool,
    *,
    transport: Transport = Transport.TCP,
    affinity_seconds: int | None = None,
) -> Route:
    """One ClusterIP frontend, ``pool`` behind it in every way."""
    return Route(
        id=RouteId("default", f"svc-{address.replace('.', '-')}", "port", Family.IPV4),
        transport=transport,
        frontends=(Frontend(IP(address), port, Scope.CLUSTER_IP),),
        node_port=None,
        internal=pool,
        external=pool,
        short_circuit=pool,
        masquerade_external=True,
        affinity_seconds=affinity_seconds,
        allowed_sources=None,
        health_check_port=None,
    )
