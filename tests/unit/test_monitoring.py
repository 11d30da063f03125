"""deploy/monitoring: that a Prometheus finds the proxy, and that the dashboard asks for metrics that exist."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from pyproxy.traffic_metrics import TrafficCollector
from tests.unit import kustomize
from tests.unit.test_traffic_metrics import Counting

DEPLOY = Path(__file__).parents[2] / "deploy"
MONITORING = DEPLOY / "monitoring"

HISTOGRAMS = {
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "kubeproxy_sync_full_proxy_rules_duration_seconds",
    "kubeproxy_sync_partial_proxy_rules_duration_seconds",
    "kubeproxy_network_programming_duration_seconds",
    "kubeproxy_conntrack_reconciler_sync_duration_seconds",
}
COUNTERS = {
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "kubeproxy_sync_proxy_rules_service_changes_total",
    "kubeproxy_proxy_healthz_total",
    "kubeproxy_proxy_livez_total",
    "kubeproxy_conntrack_reconciler_deleted_entries_total",
    "process_cpu_seconds_total",
}
GAUGES = {
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds",
    "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
    "kubeproxy_sync_proxy_rules_service_changes_pending",
    "kubeproxy_sync_proxy_rules_no_local_endpoints_total",  # kube-proxy's name, for all that it is a gauge
    "process_resident_memory_bytes",
}
"""kube-proxy 1.36's, and those of any process."""
COUNTED = {
    sample.name for metric in TrafficCollector(Counting(), per_service=True).collect() for sample in metric.samples
}
"""What modes that count serve beside."""
COUNTERS |= {name for name in COUNTED if name.endswith("_total")}
GAUGES |= {name for name in COUNTED if not name.endswith("_total")}
UNITS = {"s", "short", "ops", "reqps", "bytes", "pps", "Bps", "percentunit"}


def dashboard() -> Any:
    return json.loads((MONITORING / "dashboard.json").read_text())


def expressions() -> list[str]:
    return [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]


def metrics(expression: str) -> list[str]:
    return re.findall(r"\b(?:kubeproxy|process|pyproxy)_\w+", expression)


def test_every_metric_is_one_that_is_served_and_all_are_shown() -> None:
    asked = {name for expression in expressions() for name in metrics(expression)}
    assert asked == {f"{name}_bucket" for name in HISTOGRAMS} | COUNTERS | GAUGES


@pytest.mark.parametrize("expression", expressions())
def test_each_expression_treats_a_metric_as_what_it_is(expression: str) -> None:
    for name in metrics(expression):
        selected = re.escape(name) + r'\{job="\$job",node=~"\$node"(,code!="200")?\}'
        assert re.search(selected, expression), name
        is_rate = re.search(rf"rate\({selected}\[\$__rate_interval\]\)", expression) is not None
        assert is_rate == (name not in GAUGES), name
        assert ("histogram_quantile(" in expression) == name.endswith("_bucket")
    assert expression.count("(") == expression.count(")")
    assert not re.search(r"\b(sum|avg|max) by \((?!le|code|node|map|level|to|namespace)", expression)


def test_every_panel_says_what_it_shows_and_in_what_unit() -> None:
    panels = dashboard()["panels"]
    assert [panel["id"] for panel in panels] == list(range(1, len(panels) + 1))
    assert len({panel["title"] for panel in panels}) == len(panels)
    for panel in panels:
        assert len(panel["description"]) > 30, panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"])
        for one in (panel, *panel["targets"]):
            assert one["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        seconds = "seconds" in panel["targets"][0]["expr"] and "process_cpu" not in panel["targets"][0]["expr"]
        about_time = seconds and "count(" not in panel["targets"][0]["expr"]
        assert (panel["fieldConfig"]["defaults"]["unit"] == "s") == about_time, panel["title"]


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_the_dashboard_needs_nothing_but_a_prometheus() -> None:
    variables = {one["name"]: one for one in dashboard()["templating"]["list"]}
    assert list(variables) == ["datasource", "job", "node"]
    assert all(metrics(variables[name]["definition"])[0] in GAUGES for name in ("job", "node"))


def test_the_pod_monitor_finds_the_pods_and_their_port() -> None:
    """A PodMonitor is no type of Kubernetes: the fields of monitoring.coreos.com/v1 that are used here, by hand."""
    monitor = yaml.safe_load((MONITORING / "podmonitor.yaml").read_text())
    assert monitor.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    spec = monitor["spec"]
    assert spec.keys() == {"jobLabel", "selector", "namespaceSelector", "podMetricsEndpoints"}
    (daemon_set,) = [one for one in kustomize.render(DEPLOY / "base") if one["kind"] == "DaemonSet"]
    template = daemon_set["spec"]["template"]
    assert spec["selector"] == {"matchLabels": template["metadata"]["labels"]}
    assert spec["jobLabel"] in template["metadata"]["labels"]
    assert spec["namespaceSelector"] == {"matchNames": [daemon_set["metadata"]["namespace"]]}
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint.keys() == {"port", "path", "interval", "relabelings"}
    assert endpoint["port"] in {port["name"] for port in template["spec"]["containers"][0]["ports"]}
    assert (endpoint["path"], endpoint["interval"]) == ("/metrics", "30s")
    for rule in endpoint["relabelings"]:
        assert rule.keys() == {"action", "sourceLabels", "targetLabel"}
        assert (rule["action"], rule["sourceLabels"]) == ("replace", ["__meta_kubernetes_pod_node_name"])
    assert [rule["targetLabel"] for rule in endpoint["relabelings"]] == ["node", "instance"]
