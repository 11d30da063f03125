"""Objects that make no sense, or mean harm: refused with a message that names them, and nothing else is touched."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.conformance.cluster import FOUND_S, Cluster, until
from tests.conformance.manifests import Object, service, slices, target

pytestmark = pytest.mark.own  # a real API server refuses most of these

NASTY = ['a"b', "a'b", "a\nb", "a; flush ruleset", "a } ; flush ruleset", "$(reboot)", "../..", "ä", "", "x" * 10_000]


def _metadata(**fields: Any) -> Callable[[Object], None]:
    return partial(_update, ("metadata",), fields)


def _spec(**fields: Any) -> Callable[[Object], None]:
    return partial(_update, ("spec",), fields)


def _port(**fields: Any) -> Callable[[Object], None]:
    return partial(_update, ("spec", "ports", 0), fields)


def _update(path: tuple[str | int, ...], fields: Object, thing: Any) -> None:
    for step in path:
        thing = thing[step]
    thing.update(fields)


SERVICES: dict[str, tuple[Callable[[Object], None], str]] = {
    **{f"name {text[:20]!r}": (_metadata(name=text), "metadata.name") for text in NASTY},
    **{f"port name {text[:20]!r}": (_port(name=text), "spec.ports[0].name") for text in NASTY},
    **{f"cluster IP {text[:20]!r}": (_spec(clusterIPs=[text]), "spec.clusterIPs[0]") for text in NASTY if text},
    "namespace": (_metadata(namespace="a\nb"), "metadata.namespace"),
    "port 0": (_port(port=0), "spec.ports[0].port"),
    "port 70000": (_port(port=70000), "spec.ports[0].port"),
    "port of text": (_port(port="80; drop"), "spec.ports[0].port"),
    "node port 70000": (_port(nodePort=70000), "spec.ports[0].nodePort"),
    "protocol": (_port(protocol="ICMP"), "spec.ports[0].protocol"),
    "external IP": (_spec(externalIPs=["203.0.113.300"]), "spec.externalIPs[0]"),
    "loopback external IP": (_spec(externalIPs=["127.0.0.1"]), "spec.externalIPs[0]"),
    "source range": (_spec(loadBalancerSourceRanges=["10.0.0.0/33"]), "spec.loadBalancerSourceRanges[0]"),
    "affinity": (_spec(sessionAffinity="Cookie"), "spec.sessionAffinity"),
    "affinity time": (
        _spec(sessionAffinity="ClientIP", sessionAffinityConfig={"clientIP": {"timeoutSeconds": 0}}),
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    ),
    "policy": (_spec(externalTrafficPolicy="Nearby"), "spec.externalTrafficPolicy"),
    "ports of text": (_spec(ports="all"), "spec.ports"),
}


@pytest.mark.parametrize("case", SERVICES)
def test_a_service_that_makes_no_sense_is_refused_and_named(cluster: Cluster, number: int, case: str) -> None:
    spoil, field = SERVICES[case]
    good, bad = service(number), service(number + 300, name="hostile", exposed=False)
    address = bad["spec"]["clusterIP"] = "10.96.3.1"
    bad["spec"]["clusterIPs"] = ["10.96.3.1", "fd00:10:96:3::1"]
    spoil(bad)
    said = len(cluster.log())
    cluster.apply("hostile", bad, good, *slices(number, ["pod-2"]), *slices(number, ["pod-3"], name="hostile"))
    new = cluster.log()[said:]
    complaints = [line for line in new.splitlines() if "not obeyed" in line and field in line]
    assert complaints, new
    assert len(complaints[0]) < 1000
    assert all(line[:4].isdigit() for line in new.splitlines())  # nothing of it begins a line of its own
    assert cluster.outcome("pod-1", address, 80) == "dropped"
    assert cluster.ask("client", number, "NodePort", "IPv4").pod == "pod-2"
    assert cluster.proxy.is_alive
    cluster.delete("hostile")


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1"),
        *("10.0.0.256", "::1", "fe80::1", "fd00::1", "", "10.0.0.1 . 80 } ; flush ruleset"),
    ],
)
def test_an_endpoint_that_must_not_be_one_is_left_out(cluster: Cluster, number: int, address: str) -> None:
    ipv4 = slices(number, ["pod-2"])[0]
    ipv4["endpoints"].insert(0, {"addresses": [address], "nodeName": "node-1\n"})
    said = len(cluster.log())
    cluster.apply("endpoint", service(number), ipv4)
    assert "endpoints[0].addresses[0]" in cluster.log()[said:]
    assert cluster.pods_of(20, "node", number, "ClusterIP", "IPv4") == {"pod-2"}
    cluster.delete("endpoint")


def test_the_last_good_version_of_a_spoiled_service_stays(cluster: Cluster, number: int) -> None:
    cluster.apply("spoiled", service(number), *slices(number, ["pod-2"]))
    spoiled = service(number)
    spoiled["spec"]["ports"][0]["port"] = 70000
    cluster.apply("spoiled", spoiled, *slices(number, ["pod-2"]))
    assert cluster.ask("client", number, "NodePort", "IPv4").pod == "pod-2"
    cluster.delete("spoiled")


def test_a_slice_for_no_service_is_named(cluster: Cluster, number: int) -> None:
    cluster.apply("orphan", *slices(number, ["pod-2"], name="nobody"))
    complaint = "no such service service=conformance/nobody"
    # At the second verification, not at once: its service might be on its way.
    until(lambda: complaint in cluster.log(), lambda: "not told", FOUND_S)
    time.sleep(1.5)
    assert cluster.log().count(complaint) == 1
    assert cluster.outcome("pod-1", *target(number, "ClusterIP", "IPv4", "TCP")) == "dropped"
    cluster.delete("orphan")
