"""What the metrics port answers at /explain.json, from what the controller told."""

import json
from http import HTTPStatus
from typing import Any

import pytest

from pyproxy.explainer import Explainer
from pyproxy.explanation import parse
from pyproxy.http_server import Request, Response
from pyproxy.metrics import Metrics
from pyproxy.metrics_port import MetricsPort
from pyproxy.objects import Delete, Key, Service, Upsert
from pyproxy.observer import Sync
from pyproxy.policy import Site, routes_of
from pyproxy.problem import Problem
from pyproxy.status import Status
from pyproxy.table import Host, Prefix, Table
from tests.unit.samples import THIS_NODE, admitted, endpoint, endpoint_slice, service

WEB = admitted(service("web", external_ips=("203.0.113.1",)))
PODS = admitted(endpoint_slice(endpoint("10.244.0.1", THIS_NODE)))
TABLE = Table({route.id: route for route in routes_of(WEB, [PODS], Site(THIS_NODE))[0]}, Host())
UNTIL_NOW = Table({}, Host())


@pytest.fixture
def explainer() -> Explainer:
    return Explainer("nftables")


@pytest.fixture
def synced(explainer: Explainer) -> Explainer:
    explainer.took_in([Upsert(WEB), Upsert(PODS)])
    explainer.synced(Sync(UNTIL_NOW, TABLE, None, 0.1))
    return explainer


def ask(explainer: Explainer, **query: str) -> Response:
    port = MetricsPort("nftables", Metrics("nftables"), Status("nftables", THIS_NODE), explainer)
    return port.answer(Request("/explain.json", query), ("127.0.0.1", 10249))


def explained(explainer: Explainer, to: str) -> Any:
    response = ask(explainer, to=to)
    assert (response.status, response.content_type) == (HTTPStatus.OK, "application/json")
    return json.loads(response.body)


def test_the_answer_is_json(synced: Explainer) -> None:
    found = explained(synced, "10.96.0.1:80")
    assert found == {
        "destination": "10.96.0.1:80/tcp",
        "mode": "nftables",
        "summary": "10.96.0.1:80/tcp is the ClusterIP of default/web IPv4",
        "route": "default/web IPv4",
        "affinitySeconds": None,
        "allowedSources": None,
        "notes": [],
        "outcomes": found["outcomes"],
    }
    pod, node, outside = found["outcomes"]
    assert [one.pop("why") != "" for one in (pod, node, outside)] == [True] * 3
    endpoints = [{"address": "10.244.0.1", "port": 8080, "local": True}]
    assert pod == {"asker": "pod", "verdict": "translated", "source": "kept", "endpoints": endpoints}
    assert node == {"asker": "node", "verdict": "translated", "source": "a node address", "endpoints": endpoints}
    assert outside == {"asker": "outside", "verdict": "translated", "source": "kept", "endpoints": endpoints}


@pytest.mark.parametrize("to", ["", "x", "10.96.0.1", "<script>:80", "10.96.0.1:80/tcp\0", "\ud800", "9" * 10_000])
def test_what_is_no_destination_is_told_in_one_sentence(synced: Explainer, to: str) -> None:
    response = ask(synced, to=to)
    assert (response.status, response.content_type) == (HTTPStatus.BAD_REQUEST, "text/plain; charset=utf-8")
    said = response.body.decode()
    assert "is not a destination such as" in said
    assert said.count("\n") == 1
    assert len(said) < 200


def test_a_question_without_a_destination(synced: Explainer) -> None:
    assert ask(synced).status == HTTPStatus.BAD_REQUEST


def test_nothing_is_known_before_the_first_sync(explainer: Explainer) -> None:
    explainer.took_in([Upsert(WEB)])
    assert explainer.explain(parse("10.96.0.1:80")) is None
    response = ask(explainer, to="10.96.0.1:80")
    assert response.status == HTTPStatus.SERVICE_UNAVAILABLE
    assert b"first sync" in response.body


def test_it_goes_by_the_kernel_not_by_what_came_in(synced: Explainer) -> None:
    synced.took_in([Delete(Service, WEB.key)])
    assert explained(synced, "10.96.0.1:80")["route"] == "default/web IPv4"
    synced.took_in([Upsert(admitted(service("new", cluster_ips=("10.96.0.2",))))])
    assert "not in the kernel yet" in explained(synced, "10.96.0.2:80")["notes"][0]
    synced.synced(Sync(TABLE, UNTIL_NOW, None, 0.1))
    assert explained(synced, "10.96.0.1:80")["notes"][0].startswith("no such address")


def test_problems_are_those_of_now(synced: Explainer) -> None:
    problem = Problem("Service", WEB.key, "spec.externalIPs", "203.0.113.1 is not ours")
    synced.problems = lambda: {WEB.key: (problem,)}
    synced.synced(Sync(TABLE, UNTIL_NOW, None, 0.1))
    assert explained(synced, "203.0.113.1:80")["notes"] == [str(problem)]
    refused = Problem("Service", Key("default", "bad"), "spec.type", "'<b>' is none of these")
    synced.refused = lambda: [refused]
    assert str(refused) in explained(synced, "10.9.9.9:80")["notes"][1]


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "192.0.2.1", "0.0.0.0", "255.255.255.255", "[::1]", "[::]", "[ff02::1]"]
)
def test_a_wide_range_of_node_ports_is_about_the_nodes_own_addresses(explainer: Explainer, address: str) -> None:
    """And not about loopback. That one of its own answers is proved in the lab."""
    host = Host(node_port_prefixes=(Prefix("0.0.0.0/0"), Prefix("::/0")))
    explainer.synced(Sync(UNTIL_NOW, Table({}, host), None, 0.1))
    assert explained(explainer, f"{address}:30080")["notes"][0].startswith("no such address")
