"""Random histories of a small, crowded cluster, in which names, addresses and ports collide often.

Shared by the tests of modes: after each step of a history the kernel must hold what the table says.
"""

from dataclasses import dataclass
from random import Random

from pyproxy.address import parse_prefix
from pyproxy.objects import (
    AffinityConfig,
    ClientIPConfig,
    Conditions,
    Delete,
    EndpointSlice,
    Event,
    Ingress,
    Key,
    Service,
    ServicePort,
    SlicePort,
    Upsert,
)
from pyproxy.table import Family
from tests.unit.samples import OTHER_NODE, THIS_NODE, admitted, endpoint, endpoint_slice, node, service

CLUSTER_CIDRS = (parse_prefix("10.244.0.0/16"), parse_prefix("fd00:244::/48"))
EXTERNAL_IPS = ("198.51.100.1", "198.51.100.2", "10.96.0.1", "2001:db8::1", "fd00:96::2")
RANGES = ("192.0.2.0/24", "192.0.3.0/24", "192.0.4.7/32", "203.0.113.0/25", "2001:db8:7::/64", "2001:db8:7:1::9/128")
NODES = (("192.0.2.1", "2001:db8::1"), ("192.0.2.1",), ("192.0.2.1", "192.0.2.9", "2001:db8::9"))


@dataclass(frozen=True)
class Crowd:
    """How many there are of what: few, so that they collide, or enough to need another level."""

    services: int = 4
    pods: int = 6
    """In each family."""
    most_endpoints: int = 5
    """Of one slice."""
    node_ports: tuple[int, ...] = (30001, 30002, 30003)

    def event(self, random: Random) -> Event:
        """What happens next."""
        kind = random.random()
        if kind < 0.05:
            return Upsert(admitted(node(*random.choice(NODES))))
        number = random.randint(1, self.services)
        if kind < 0.15:
            return Delete(Service, Key("default", _name(number)))
        if kind < 0.25:
            return Delete(EndpointSlice, Key("default", _slice_name(number, random.choice(list(Family)))))
        if kind < 0.6:
            return Upsert(admitted(self._service(random, number)))
        return Upsert(admitted(self._slice(random, number)))

    def _service(self, random: Random, number: int) -> Service:
        addresses = (f"10.96.0.{number}", f"fd00:96::{number}")
        protocols = random.choice((("TCP", "TCP"), ("TCP", "UDP"), ("UDP", "UDP"), ("UDP", "SCTP")))
        node_ports = random.choice((0, *self.node_ports[:-1])), random.choice((0, *self.node_ports[1:]))
        ports = [
            ServicePort(random.choice((80, 80, 81)), "one", protocols[0], node_ports[0]),
            ServicePort(random.choice((90, 91)), "two", protocols[1], node_ports[1]),
        ]
        sticky = random.random() < 0.4
        config = AffinityConfig(ClientIPConfig(random.choice((10, 10800))))
        return service(
            _name(number),
            *ports[: random.randint(1, 2)],
            cluster_ips=random.choice((addresses, addresses[:1], addresses[1:], addresses[::-1])),
            external_ips=tuple(random.sample(EXTERNAL_IPS, random.randint(0, 2))),
            ingress=tuple(Ingress(ip) for ip in random.sample(EXTERNAL_IPS, random.randint(0, 2))),
            load_balancer_source_ranges=tuple(random.sample(RANGES, random.randint(0, 4))),
            internal_traffic_policy=random.choice(("Cluster", "Local")),
            external_traffic_policy=random.choice(("Cluster", "Local")),
            session_affinity="ClientIP" if sticky else "None",
            session_affinity_config=config if sticky else None,
            created=random.choice((None, "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z")),
        )

    def _slice(self, random: Random, number: int) -> EndpointSlice:
        family = random.choice(list(Family))
        start = "10.244.{}.{}" if family is Family.IPV4 else "fd00:244:0:{}::{}"
        pods = [start.format(pod % 2, pod) for pod in range(1, self.pods + 1)]
        chosen = random.sample(pods, random.randint(0, self.most_endpoints))
        conditions = [None, None, None, Conditions(ready=False, serving=True, terminating=True)]
        places = [
            endpoint(pod, random.choice((THIS_NODE, OTHER_NODE)), conditions=random.choice(conditions))
            for pod in chosen
        ]
        protocol = random.choice(("TCP", "UDP"))
        return endpoint_slice(
            *places,
            name=_slice_name(number, family),
            of=random.choice((_name(number), _name(number), _name(number), _name(1))),
            family=family.value,
            ports=(SlicePort("one", protocol, random.choice((8080, 9090))), SlicePort("two", "UDP", 8181)),
        )


def _name(number: int) -> str:
    return f"svc-{number}"


def _slice_name(number: int, family: Family) -> str:
    return f"{_name(number)}-{family.value.lower()}"
