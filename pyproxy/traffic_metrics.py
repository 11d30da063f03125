"""What a mode counts, as Prometheus reads it: read from the kernel when it is asked for, and at no other time.

By default sums over all services, which are few; with --metrics-per-service also, under names of their own, what each
port of a service had in each family, if it had anything.
"""

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from pyproxy.table import Counts, ModeError, RouteId, Traffic

log = logging.getLogger("pyproxy")


class _Family(NamedTuple):
    name: str
    text: str
    label: str
    fields: Mapping[str, str]
    """Those of Traffic by the values of the label; one without a value where there is no label."""


_FAMILIES = (
    _Family("connections", "Connections to Services.", "level", {"socket": "sockets", "packet": "flows"}),
    _Family("refused", "Connections and datagrams to Services without endpoints.", "", {"": "refused"}),
    _Family("dropped", "Connections and datagrams that had to be dropped, by policy or for lack of ports.", "",
            {"": "dropped"}),
    _Family("lost_packets", "Packets in the midst of connections that are not known any more.", "", {"": "lost"}),
    _Family("packets", "Of connections at level packet.", "to", {"service": "packets_in", "client": "packets_out"}),
    _Family("bytes", "Of these packets, IP headers included.", "to", {"service": "bytes_in", "client": "bytes_out"}),
)  # fmt: skip
_OF_SERVICE = ("namespace", "service", "port", "family")


class TrafficCollector(Collector):
    def __init__(self, mode: Counts, *, per_service: bool = False) -> None:
        self._mode = mode
        self._per_service = per_service

    def collect(self) -> Iterator[Metric]:
        try:
            traffic, fills = self._mode.traffic(), self._mode.fills()
        except ModeError as error:
            log.warning("what was counted can't be read", extra={"reason": error})
            return
        if traffic is None:
            return
        total = Traffic(*map(sum, zip(*traffic.values(), strict=True)))
        yield from _families("pyproxy_", {(): total}, ())
        if self._per_service:
            each = {_labels(route_id): one for route_id, one in traffic.items() if route_id and any(one)}
            yield from _families("pyproxy_service_", each, _OF_SERVICE)
        pressure = GaugeMetricFamily("pyproxy_map_pressure", "How full a map is: 1 is full.", labels=["map"])
        size = GaugeMetricFamily("pyproxy_map_size", "How many entries a map holds.", labels=["map"])
        for fill in fills:
            pressure.add_metric([fill.map], fill.entries / fill.size)
            size.add_metric([fill.map], fill.size)
        yield from (pressure, size)


def _families(prefix: str, traffic: Mapping[tuple[str, ...], Traffic], labels: tuple[str, ...]) -> Iterator[Metric]:
    for family in _FAMILIES:
        own = (family.label,) if family.label else ()
        metric = CounterMetricFamily(prefix + family.name, family.text, labels=(*labels, *own))
        for values, one in traffic.items():
            for value, field in family.fields.items():
                metric.add_metric((*values, *((value,) if value else ())), getattr(one, field))
        yield metric


def _labels(route_id: RouteId) -> tuple[str, ...]:
    return route_id.namespace, route_id.name, route_id.port_name, route_id.family.value
