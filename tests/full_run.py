"""Documents of `pyproxy bench` as a whole run writes them, out of thin air: for what reads them."""

import itertools
import random

from bench.contestant import CONTROL, FLOOR
from bench.document import Document, Figure, Finding, Outcome, Unit
from bench.environment import Load
from bench.estimate import Estimate

SIZES = (1, 100, 1000, 10000)
PROXIES = ("ebpf", "iptables (legacy)", "iptables (nft)", "ipvs", "nftables", "userspace", "kube-proxy")
WAYS = {
    "cluster-ip": "pod to ClusterIP",
    "node-port": "outside to NodePort",
    "bystander": "bystander: pod to another pod",
}
MEASURES = {"connect": "TCP connect", "kept": "request, response (kept)"}
_COSTS = {FLOOR: 1.0, CONTROL: 1.01, "ebpf": 1.04, "nftables": 1.34, "ipvs": 1.36, "userspace": 2.9}
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}


def document(node: str = "node-1", *, proxies: tuple[str, ...] = PROXIES, sizes: tuple[int, ...] = SIZES) -> Document:
    """The same for the same arguments."""
    draws = random.Random(node)
    return Document(
        environment={
            "node": node,
            "date": "2026-11-26",
            "pyproxy": "0.1.0",
            "kernel": "6.1.0-28-amd64" if node == "node-1" else "5.10.0-33-amd64",
            "machine": "2 cores",
            "cpu": "Some Processor @ 2.6 GHz",
            "virtual": "yes",
            "governor": "",
            "mitigations": "l1tf: Mitigation: PTE Inversion; mds: Vulnerable: no microcode",
        },
        method={"services": list(sizes), "endpoints": [2], "rounds": 60, "samples": 200, "seed": 1},
        skipped={"other": "this kernel has no module for it"},
        outcomes=[
            *(_latency(draws, proxies, size) for size in sizes),
            *(_sync(draws, proxy, size) for proxy, size in itertools.product(proxies, sizes)),
            *(_memory(proxy, size) for proxy, size in itertools.product(proxies, sizes)),
            _throughput(draws, proxies),
            _failover(draws, proxies),
        ],
        complete=True,
    )


def _cost(name: str, services: int) -> float:
    if name == FLOOR:
        return 1.0
    walks = {"iptables (legacy)": 0.04, "iptables (nft)": 0.05, "kube-proxy": 0.3}.get(name, 0.003)
    return _COSTS.get(name, 1.3) + walks * (len(str(services)) - 1)


def _latency(draws: random.Random, proxies: tuple[str, ...], services: int) -> Outcome:
    figures = []
    for way, measure, name in itertools.product(WAYS, MEASURES, (FLOOR, CONTROL, *proxies)):
        ratio = _cost(name, services)
        if (way, name) == ("node-port", "ebpf"):
            ratio = 1.33
        middle = 14_000 * (1 + list(MEASURES).index(measure)) * ratio
        samples = [[float(round(middle * draws.lognormvariate(0, 0.12))) for _ in range(20)] for _ in range(12)]
        figures.append(
            Figure(
                contestant=name,
                way=way,
                measure=measure,
                title=f"{WAYS[way]}: {MEASURES[measure]}",
                unit="ns",
                quantiles=_quantiles(samples),
                ratios={} if name == FLOOR else {"p50": _around(ratio, 0.01)},
                differs=None if name == FLOOR else name != CONTROL,
                failures={"ECONNREFUSED": 3} if name == "kube-proxy" else {},
                samples=samples,
            )
        )
    return Outcome(
        key=f"latency, {services:,} x 2",
        scenario="latency",
        services=services,
        endpoints=2,
        complete=True,
        rounds=12,
        figures=figures,
        findings=[
            Finding(
                way=way,
                measure=measure,
                resolution=0.02,
                fastest=["ebpf", "nftables"] if way == "node-port" else ["ebpf"],
            )
            for way, measure in itertools.product(WAYS, MEASURES)
        ],
        failed={"kube-proxy": "the proxy ended; its log: F1126 no such thing\n    at main.go:1"}
        if services == 10000
        else {},
        remarks=["Client on CPU 0, server on CPU 1; of each time 0.41 µs are the client's own."],
        load=Load(0.61, 0.013),
    )


def _sync(draws: random.Random, proxy: str, services: int) -> Outcome:
    slower = 4.0 if proxy == "kube-proxy" else draws.uniform(0.7, 1.3)
    first = slower * (0.4 + services * 1.5e-4)
    changes = [[slower * (0.008 + services * 1e-6) * draws.lognormvariate(0, 0.3) for _ in range(120)]]
    figures = [
        _once(proxy, "first-sync", "first sync", "s", first),
        Figure(
            contestant=proxy,
            measure="change",
            title="one endpoint changed",
            unit="s",
            quantiles=_quantiles(changes),
            samples=changes,
        ),
    ]
    return _part("sync", proxy, services, figures)


def _memory(proxy: str, services: int) -> Outcome:
    resident = 40 + 3 * len(proxy) + services * 0.006
    return _part("memory", proxy, services, [_once(proxy, "resident", "resident", "MiB", resident)])


def _throughput(draws: random.Random, proxies: tuple[str, ...]) -> Outcome:
    figures = []
    for way, name in itertools.product(("cluster-ip", "node-port"), (FLOOR, CONTROL, *proxies)):
        share = 1 / _cost(name, 1000)
        for measure, words, unit, most in (
            ("stream", "one stream", "bit/s", 31e9),
            ("connections", "connections", "1/s", 21_000),
        ):
            ratios = {} if name == FLOOR else {"p50": _around(share, 0.03)}
            figures.append(
                Figure(
                    contestant=name,
                    way=way,
                    measure=measure,
                    title=f"{WAYS[way]}: {words}",
                    unit=unit,  # type: ignore[arg-type]
                    less_is_better=False,
                    quantiles={"p50": _around(most * share * draws.uniform(0.97, 1.03), 0.03)},
                    ratios=ratios,
                )
            )
    findings = [
        Finding(way=way, measure=measure, resolution=0.04, fastest=["ebpf"])
        for way, measure in itertools.product(("cluster-ip", "node-port"), ("stream", "connections"))
    ]
    return Outcome(
        key="throughput, 1,000 x 2",
        scenario="throughput",
        services=1000,
        endpoints=2,
        complete=True,
        rounds=12,
        figures=figures,
        findings=findings,
    )


def _failover(draws: random.Random, proxies: tuple[str, ...]) -> Outcome:
    figures = []
    for name in proxies:
        figures.append(
            _once(name, "last-failure", "an endpoint died: last failed connection", "s", draws.uniform(0.01, 0.4))
        )
        figures.append(_once(name, "failed", "an endpoint died: failed connections", "1", draws.randrange(0, 40)))
    return _part("failover", "all", 1000, figures)


def _part(scenario: str, who: str, services: int, figures: list[Figure]) -> Outcome:
    key = f"{scenario}, {who}, {services:,} x 2"
    return Outcome(key=key, scenario=scenario, services=services, endpoints=2, complete=True, figures=figures)


def _once(contestant: str, measure: str, title: str, unit: Unit, value: float) -> Figure:
    quantiles = {"p50": Estimate(value, value, value)}
    return Figure(contestant=contestant, measure=measure, title=title, unit=unit, quantiles=quantiles)


def _quantiles(samples: list[list[float]]) -> dict[str, Estimate]:
    every = sorted(itertools.chain(*samples))
    return {name: _around(every[int(share * len(every))], 0.02) for name, share in _SHARES.items()}


def _around(value: float, share: float) -> Estimate:
    return Estimate(value, value * (1 - share), value * (1 + share))
