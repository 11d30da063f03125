"""What a mode counts, as Prometheus parses it."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

from pyproxy.metrics import Metrics
from pyproxy.table import Counts, Family, Fill, ModeError, RouteId, Traffic
from pyproxy.traffic_metrics import TrafficCollector

WEB, IDLE = (RouteId("shop", name, "http", Family.IPV4) for name in ("web", "idle"))
TRAFFIC = {WEB: Traffic(1, 2, 3, 4, 5, 6, 7, 8, 9), IDLE: Traffic(), None: Traffic(10, 10, 10, 10, 10)}


class Counting:
    map_sizes: Mapping[str, int] = {"flows": 8}

    def traffic(self) -> dict[RouteId | None, Traffic] | None:
        return TRAFFIC

    def fills(self) -> list[Fill]:
        return [Fill("flows", 2, 8, forgets=True)]


class Silent(Counting):
    def traffic(self) -> None:
        return None


class Failing(Counting):
    def traffic(self) -> None:
        raise ModeError("no")


def read(mode: Counts, **options: bool) -> dict[str, float]:
    metrics = Metrics("ebpf")
    metrics.add(TrafficCollector(mode, **options))
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {
        sample.name + "".join(f" {name}={value}" for name, value in sorted(sample.labels.items())): sample.value
        for sample in samples
        if not sample.name.startswith(("kubeproxy_", "process_", "pyproxy_build_info", "pyproxy_sync"))
    }


TOTALS = {
    "pyproxy_connections_total level=socket": 11,
    "pyproxy_connections_total level=packet": 12,
    "pyproxy_refused_total": 13,
    "pyproxy_dropped_total": 14,
    "pyproxy_lost_packets_total": 15,
    "pyproxy_packets_total to=service": 6,
    "pyproxy_bytes_total to=service": 7,
    "pyproxy_packets_total to=client": 8,
    "pyproxy_bytes_total to=client": 9,
    "pyproxy_map_pressure map=flows": 0.25,
    "pyproxy_map_size map=flows": 8,
}
OF_WEB = "family=IPv4 {}namespace=shop port=http service=web{}"


def test_sums_are_over_all_services_those_that_are_gone_included() -> None:
    assert read(Counting()) == TOTALS


def test_services_have_lines_of_their_own_if_they_are_asked_for_and_had_traffic() -> None:
    found = read(Counting(), per_service=True)
    assert {name: value for name, value in found.items() if "service=web" not in name} == TOTALS
    assert len(found) == len(TOTALS) + 9
    assert found["pyproxy_service_connections_total " + OF_WEB.format("level=packet ", "")] == 2
    assert found["pyproxy_service_bytes_total " + OF_WEB.format("", " to=client")] == 9
    assert found["pyproxy_service_refused_total " + OF_WEB.format("", "")] == 3


def test_before_the_first_sync_and_when_nothing_can_be_read_there_are_no_lines() -> None:
    assert read(Silent()) == {}
    assert read(Failing()) == {}
