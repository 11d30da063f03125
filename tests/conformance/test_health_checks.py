"""What kubelet, load balancers and Prometheus are told about a node and its services."""

import http.client
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pytest

from bench.ask import open_socket
from tests.conformance.cluster import Cluster, until
from tests.conformance.manifests import FAMILIES, Object, addresses, node, service, slices

_HEALTHZ = 10256
_METRICS = 10249
_NODE = {"IPv4": "172.18.0.2", "IPv6": "fd00:172:18::2"}
_WEIGHT = "X-Load-Balancing-Endpoint-Weight"
_TERMINATING = {"conditions": {"ready": False, "serving": True, "terminating": True}}
_NOT_READY = {"conditions": {"ready": False, "serving": False, "terminating": False}}
_HEALTHY: Object = {}
_NOT_CAUGHT_UP = -1


class Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


def get(cluster: Cluster, who: str, address: str, port: int, path: str = "/") -> Answer:
    """Over HTTP, from a host of the lab."""
    with open_socket(cluster.host(who), address) as client:
        client.settimeout(3.0)
        client.connect((address, port))
        connection = http.client.HTTPConnection(address, port)
        connection.sock = client
        connection.request("GET", path)
        answer = connection.getresponse()
        return Answer(answer.status, dict(answer.getheaders()), answer.read().decode())


def codes(cluster: Cluster) -> tuple[int, int]:
    """Of /healthz and /livez, as a load balancer hears them."""
    healthz, livez = (get(cluster, "client", _NODE["IPv4"], _HEALTHZ, path).status for path in ("/healthz", "/livez"))
    return healthz, livez


@pytest.mark.parametrize("path", ["/healthz", "/livez"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("who", ["client", "node", "pod-1"])
def test_a_proxy_that_keeps_up_is_healthy(cluster: Cluster, who: str, family: str, path: str) -> None:
    """0.0.0.0, the default, is every address of both families in Go."""
    until(lambda: codes(cluster) == (200, 200), lambda: "never healthy")
    answer = get(cluster, who, _NODE[family], _HEALTHZ, path)
    assert answer.status == 200
    assert answer.json.keys() >= {"lastUpdated", "currentTime", "nodeEligible"}
    assert answer.json["nodeEligible"] is True


def test_health_is_told_on_loopback_too(cluster: Cluster) -> None:
    assert get(cluster, "node", "127.0.0.1", _HEALTHZ, "/healthz").status == 200


@pytest.fixture
def restored(cluster: Cluster) -> Iterator[None]:
    """The Node is as it was, whatever a test made of it."""
    yield
    cluster.apply("node", node())
    until(lambda: codes(cluster) == (200, 200), lambda: f"not healthy again: {codes(cluster)}")


_AUTOSCALER = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1700000000", "effect": "NoSchedule"}
_LEAVING: dict[str, dict[str, dict[str, Any]]] = {
    "deleted": {"metadata": {"deletionTimestamp": "2026-11-22T10:00:00Z", "finalizers": ["example.com/keep"]}},
    "tainted": {"spec": {"taints": [{"key": "other", "effect": "NoSchedule"}, _AUTOSCALER]}},
}


def changed_node(change: Mapping[str, Mapping[str, Any]]) -> Object:
    thing = node()
    for part, fields in change.items():
        thing[part] |= fields
    return thing


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("how", _LEAVING)
def test_a_node_that_is_leaving_gets_no_new_traffic_but_lives(cluster: Cluster, number: int, how: str) -> None:
    cluster.apply("leaving", service(number), *slices(number, ["pod-2"]))
    cluster.apply("node", changed_node(_LEAVING[how]))
    until(lambda: codes(cluster) == (503, 200), lambda: f"{codes(cluster)}")
    assert get(cluster, "client", _NODE["IPv4"], _HEALTHZ, "/healthz").json["nodeEligible"] is False
    assert cluster.ask("client", number, "NodePort", "IPv4").pod == "pod-2"  # what still comes is served
    cluster.apply("node", node())
    until(lambda: codes(cluster) == (200, 200), lambda: f"{codes(cluster)}")
    cluster.delete("leaving")


@pytest.mark.usefixtures("restored")
def test_other_taints_change_nothing(cluster: Cluster) -> None:
    taints = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]
    cluster.apply("node", changed_node({"spec": {"taints": taints, "unschedulable": True}}))
    assert codes(cluster) == (200, 200)


def check_port(number: int) -> int:
    return 32000 + number


def balanced(number: int, **spec: Any) -> Object:
    """A service that a load balancer asks this node about."""
    return service(number, externalTrafficPolicy="Local", healthCheckNodePort=check_port(number), **spec)


def local_endpoints(cluster: Cluster, number: int, family: str = "IPv4", shift: int = 0) -> int | None:
    """As the load balancer hears them, None if nobody listens, _NOT_CAUGHT_UP while the proxy is not healthy."""
    try:
        answer = get(cluster, "client", _NODE[family], check_port(number) + shift)
    except (ConnectionRefusedError, ConnectionResetError):  # the latter from a port that closes just now
        return None
    if not answer.json["serviceProxyHealthy"]:  # in a slow kernel a change may take longer than two sync periods
        assert answer.status == 503
        return _NOT_CAUGHT_UP
    told = answer.json["localEndpoints"]
    assert isinstance(told, int)
    assert answer.status == (200 if told else 503)
    assert answer.headers[_WEIGHT] == str(told)
    expected = {"namespace": "conformance", "name": f"svc-{number}"}
    assert answer.json == {"service": expected, "localEndpoints": told, "serviceProxyHealthy": True}
    return told


def becomes(cluster: Cluster, number: int, wanted: int | None, *where: Any) -> None:
    """``where``: family and shift of `local_endpoints`."""
    until(
        lambda: local_endpoints(cluster, number, *where) == wanted,
        lambda: f"{local_endpoints(cluster, number, *where)} local endpoints, not {wanted}",
    )


def one_family(number: int, pods: Any) -> list[Object]:
    return slices(number, pods)[:1]


def test_a_health_check_follows_the_local_endpoints(cluster: Cluster, number: int) -> None:
    steps: list[tuple[dict[str, Object], int]] = [
        ({"pod-4": _HEALTHY}, 0),
        ({"pod-1": _HEALTHY, "pod-4": _HEALTHY}, 1),
        ({"pod-1": _HEALTHY, "pod-2": _HEALTHY, "pod-3": _HEALTHY, "pod-4": _HEALTHY}, 3),
        ({"pod-1": _NOT_READY, "pod-2": _HEALTHY, "pod-4": _HEALTHY}, 1),
        ({"pod-1": _TERMINATING, "pod-2": _NOT_READY, "pod-4": _HEALTHY}, 0),
        ({}, 0),
        ({"pod-3": _HEALTHY}, 1),
    ]
    for pods, wanted in steps:
        cluster.apply("balanced", balanced(number), *one_family(number, pods))
        becomes(cluster, number, wanted)
    cluster.delete("balanced")
    becomes(cluster, number, None)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_health_check_answers_in_both_families_and_counts_both(cluster: Cluster, number: int, family: str) -> None:
    cluster.apply("balanced", balanced(number), *slices(number, ["pod-1", "pod-2", "pod-4"]))
    becomes(cluster, number, 4, family)
    cluster.delete("balanced")


@pytest.mark.parametrize("family", FAMILIES)
def test_terminating_endpoints_turn_the_load_balancer_away_while_they_still_serve(
    cluster: Cluster, number: int, family: str
) -> None:
    """KEP-1669: no packet is lost while the load balancer takes the node out."""
    cluster.apply("balanced", balanced(number), *slices(number, ["pod-1", "pod-4"]))
    becomes(cluster, number, 2)
    cluster.apply("balanced", balanced(number), *slices(number, {"pod-1": _TERMINATING, "pod-4": _HEALTHY}))
    becomes(cluster, number, 0)
    for kind in ("NodePort", "LoadBalancer"):
        assert cluster.pods_of(5, "client", number, kind, family) == {"pod-1"}
    cluster.apply("balanced", balanced(number), *slices(number, ["pod-4"]))
    becomes(cluster, number, 0)
    address, port = addresses(number)["LoadBalancer"][family], 80
    assert cluster.outcome("client", address, port) == "dropped"
    cluster.delete("balanced")


def test_a_health_check_moves_with_its_port_and_ends_with_the_policy(cluster: Cluster, number: int) -> None:
    cluster.apply("balanced", balanced(number), *one_family(number, ["pod-1"]))
    becomes(cluster, number, 1)
    moved = balanced(number)
    moved["spec"]["healthCheckNodePort"] = check_port(number) + 500
    cluster.apply("balanced", moved, *one_family(number, ["pod-1"]))
    becomes(cluster, number, None)
    becomes(cluster, number, 1, "IPv4", 500)
    cluster.apply("balanced", balanced(number), *one_family(number, ["pod-1"]))
    becomes(cluster, number, 1)
    cluster.apply("balanced", service(number), *one_family(number, ["pod-1"]))
    becomes(cluster, number, None)
    cluster.delete("balanced")


@pytest.mark.own
def test_a_health_check_is_not_answered_elsewhere(cluster: Cluster, number: int) -> None:
    """Like a node port: on the node's addresses, not on those of services, and not on loopback."""
    cluster.apply("balanced", balanced(number), *one_family(number, ["pod-1"]))
    becomes(cluster, number, 1)
    assert cluster.outcome("client", addresses(number)["ClusterIP"]["IPv4"], check_port(number)) == "refused"
    for address in ("127.0.0.1", "::1"):
        assert cluster.outcome("node", address, check_port(number)) == "refused"
    cluster.delete("balanced")


def test_metrics_are_for_the_node_alone(cluster: Cluster) -> None:
    answer = get(cluster, "node", "127.0.0.1", _METRICS, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    assert "\nkubeproxy_sync_proxy_rules_duration_seconds_count " in answer.text
    for who in ("client", "pod-1", "node"):
        for family in FAMILIES:
            assert cluster.outcome(who, _NODE[family], _METRICS) == "refused"
    assert cluster.outcome("node", "::1", _METRICS) == "refused"


def test_the_metrics_port_says_that_it_lives_and_in_what_mode(cluster: Cluster, mode: str) -> None:
    healthz = get(cluster, "node", "127.0.0.1", _METRICS, "/healthz")
    assert (healthz.status, healthz.text) == (200, "ok")
    named = get(cluster, "node", "127.0.0.1", _METRICS, "/proxyMode")
    assert (named.status, named.text) == (200, mode)


def test_probes_are_counted(cluster: Cluster) -> None:
    def counted() -> float:
        lines = get(cluster, "node", "127.0.0.1", _METRICS, "/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith("kubeproxy_proxy_livez_total{"))

    before = counted()
    for _ in range(3):
        get(cluster, "client", _NODE["IPv4"], _HEALTHZ, "/livez")
    assert counted() == before + 3


@pytest.mark.own
def test_it_is_ready_once_it_has_synced(cluster: Cluster) -> None:
    assert get(cluster, "client", _NODE["IPv4"], _HEALTHZ, "/readyz").status == 200


@pytest.mark.own
@pytest.mark.usefixtures("restored")
def test_a_node_that_is_leaving_is_not_ready(cluster: Cluster) -> None:
    cluster.apply("node", changed_node(_LEAVING["tainted"]))
    until(
        lambda: get(cluster, "client", _NODE["IPv4"], _HEALTHZ, "/readyz").status == 503,
        lambda: "still ready",
    )


@pytest.mark.own
def test_the_status_page_shows_what_is_served(cluster: Cluster, number: int) -> None:
    cluster.apply("shown", balanced(number), *slices(number, ["pod-1", "pod-4"]))
    page = get(cluster, "node", "127.0.0.1", _METRICS, "/")
    assert (page.status, page.headers["X-Frame-Options"]) == (200, "DENY")
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"

    def shown() -> Any:
        path = f"/status.json?search=svc-{number}+tcp+ipv4"
        return get(cluster, "node", "127.0.0.1", _METRICS, path).json

    def row() -> Any:
        return next(iter(shown()["table"]), {"internal": {"backends": []}})

    wanted = ["10.244.0.11", "10.244.1.14"]
    until(lambda: [one["address"] for one in row()["internal"]["backends"]] == wanted, lambda: f"{row()}")
    assert (row()["service"], row()["port"]) == (f"conformance/svc-{number}", "tcp")
    assert [one["address"] for one in row()["external"]["backends"]] == ["10.244.0.11"]
    assert {one["kind"]: one["state"] for one in shown()["api"]} == dict.fromkeys(
        ("Service", "EndpointSlice", "Node"), "watching"
    )
    cluster.delete("shown")
