"""A hundred thousand UDP flows: the stale ones go, all of them, and no other."""

from bench import flows
from bench.lab import Lab
from pyproxy.address import IP
from pyproxy.conntrack import reconcile
from pyproxy.table import Backend, Host, Pool, Table, Transport
from tests.faults.routes import cluster_ip_route

FLOWS = 100_000
PODS = [IP(f"10.244.0.{number}") for number in (11, 12, 13, 14)]


def test_stale_flows_go_and_no_others(lab: Lab) -> None:
    pods = [(str(pod), 8080) for pod in PODS]
    flows.plant(lab.node, "10.96.0.53", 53, pods, FLOWS)
    flows.plant(lab.node, "10.96.0.54", 53, pods, 100, 30001)  # a frontend of nobody here
    assert flows.count(lab.node) == FLOWS + 100
    pool = Pool(tuple(Backend(pod, 8080, True) for pod in PODS[1:]))
    route = cluster_ip_route("10.96.0.53", 53, pool, transport=Transport.UDP)
    table = Table({route.id: route}, Host())
    with lab.node.namespace.entered():
        assert reconcile(table, []) == FLOWS // 4
        assert reconcile(table, []) == 0
        assert flows.count(lab.node) == FLOWS // 4 * 3 + 100
        assert reconcile(Table({}, Host()), [route]) == FLOWS // 4 * 3
    assert flows.count(lab.node) == 100
