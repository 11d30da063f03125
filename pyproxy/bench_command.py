"""`pyproxy bench`: what each mode costs on this machine, in a lab of network namespaces; nothing else is needed."""

import argparse
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyproxy import bench_files_command, modes
from pyproxy.bench_files_command import CannotMeasure

if TYPE_CHECKING:
    from bench.contender import Proxy
    from bench.document import Document
    from bench.scenario import Part

_QUICK = "quick"
_FEW, _MANY = (10, 1_000), (1, 1_000, 10_000)
"""Services to measure with, unless told otherwise."""
_FULL_FILE = Path("pyproxy-bench.json")
_PEER = "kube-proxy:ipvs='kube-proxy --config {config} --hostname-override {node}'"
_Parts = Callable[["Sequence[Proxy]"], "list[Part]"]
"""What is measured of those who take part."""


def completed(arguments: Sequence[str]) -> list[str]:
    """`pyproxy bench` without a scenario is `pyproxy bench quick`."""
    command, *rest = arguments or [""]
    if command == "bench" and (not rest or (rest[0].startswith("-") and rest[0] not in ("-h", "--help"))):
        return [command, _QUICK, *rest]
    return list(arguments)


def add_to(bench: argparse.ArgumentParser) -> None:
    scenarios = bench.add_subparsers(required=True, metavar="SCENARIO")
    _scenario(scenarios, _QUICK, "the finding in three minutes (default)", _quick, (1, 1_000))
    full = _scenario(scenarios, "full", "all of them, at all sizes: hours", _full, (1, 100, 1_000, 10_000))
    full.set_defaults(json=_FULL_FILE)
    _add_latency(scenarios)
    _add_sync(scenarios)
    memory = _scenario(scenarios, "memory", "memory of the proxy and the kernel", _memory, (10, *_MANY[1:]))
    _number(memory, "--starts", 3, "first syncs, each in a lab of its own")
    _via_api(memory)
    _add_throughput(scenarios)
    restart = _scenario(scenarios, "restart", "what clients notice of a restart", _restart, _FEW)
    failover = _scenario(scenarios, "failover", "until a dead endpoint is left out", _failover, _FEW)
    for one in (restart, failover):
        _number(one, "--rounds", 10, "at each size")
    _add_conntrack(scenarios)
    bench_files_command.add_to(scenarios)


def prepare_for_the_lab() -> None:
    """Check what a lab takes, and make SIGTERM clean up as Ctrl-C does. Raises CannotMeasure."""
    from bench import interrupt

    interrupt.install()
    if os.geteuid() != 0:
        raise CannotMeasure("network namespaces take root; run it with sudo")
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        raise CannotMeasure("the lab is not installed; install pyproxy[bench]") from None


def _scenario(
    scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    words: str,
    run: Callable[[argparse.Namespace], int],
    sizes: tuple[int, ...],
) -> argparse.ArgumentParser:
    """With the options that all have."""
    scenario = scenarios.add_parser(name, help=words, description=run.__doc__)
    scenario.add_argument("--mode", action="append", default=[], metavar="M[,M…]",
                          help="may be repeated (default: each that runs here); iptables in both flavours")  # fmt: skip
    scenario.add_argument("--peer", action="append", default=[], metavar="NAME[:MODE]='COMMAND'",
                          help=f"another proxy, such as {_PEER}; may be repeated")  # fmt: skip
    scenario.add_argument("--services", type=_counts, default=sizes, metavar="N[,N…]",
                          help=f"(default: {','.join(map(str, sizes))})")  # fmt: skip
    scenario.add_argument("--endpoints", type=_counts, default=(2,), metavar="E[,E…]",
                          help="of each service (default: 2)")  # fmt: skip
    scenario.add_argument("--json", type=Path, metavar="FILE",
                          help="write the figures and all samples there; packed if it ends in .gz; - is standard output"
                          + (f" (default: {_FULL_FILE})" if name == "full" else ""))  # fmt: skip
    scenario.add_argument("--resume", action="store_true", help="go on with what FILE has, and measure the rest")
    scenario.add_argument("--report", type=Path, metavar="DIR", help="make a page and pictures of it there, too")
    scenario.add_argument("--patience", type=_count, default=600, metavar="S",
                          help="seconds that a proxy has to serve everything (default: 600)")  # fmt: skip
    scenario.set_defaults(command=run, scenario=name, via_api=False)
    return scenario


def _number(scenario: argparse.ArgumentParser, name: str, default: int, words: str, *, least: int = 1) -> None:
    kind = _count if least else _number_or_none
    scenario.add_argument(name, type=kind, default=default, metavar="N", help=f"{words} (default: {default})")


def _via_api(scenario: argparse.ArgumentParser) -> None:
    scenario.add_argument("--via-api", action="store_true", help="objects come from a stand-in of the API server")


def _add_latency(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    latency = _scenario(scenarios, "latency", "connections, requests and datagrams", _latency, _MANY)
    _number(latency, "--rounds", 60, "at each size")
    _number(latency, "--samples", 200, "of each figure in a round")
    _number(
        latency,
        "--warm-up",
        70_000,
        "connections, and datagrams of pods, before; so many fill ebpf mode's map of UDP sockets",
    )
    _number(latency, "--seed", 1, "of the order in a round")


def _add_sync(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    sync = _scenario(scenarios, "sync", "first sync, changes, rolling updates, churn", _sync, (10, *_MANY[1:]))
    _number(sync, "--starts", 3, "first syncs, each in a lab of its own")
    _number(sync, "--changes", 50, "of one endpoint; 0: none", least=0)
    _number(sync, "--rollouts", 5, "rolling updates of a service of 100 endpoints; 0: none", least=0)
    _number(sync, "--churn-rate", 50, "changes a second")
    _number(sync, "--churn-seconds", 30, "of them; 0: none", least=0)
    _via_api(sync)


def _add_throughput(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    throughput = _scenario(scenarios, "throughput", "streams, connections and requests in a second", _throughput, _MANY)
    _number(throughput, "--rounds", 10, "at each size")
    _number(throughput, "--seconds", 1, "of each reading")
    _number(throughput, "--streams", 8, "of TCP at once")
    _number(throughput, "--warm-up", 5, "seconds of connections by each way, before")
    _number(throughput, "--seed", 1, "of the order in a round")


def _add_conntrack(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    conntrack = scenarios.add_parser("conntrack", help="stale UDP flows", description=_conntrack.__doc__)
    conntrack.add_argument("--mode", default="nftables", help="(default: nftables)")
    _number(conntrack, "--flows", 100_000, "among which they are")
    conntrack.set_defaults(command=_conntrack)


def _quick(options: argparse.Namespace) -> int:
    """Which mode to run, in three minutes: latency at two sizes, the first sync and changes at the larger one. See
    `latency` and `sync` for what they measure, `full` for all there is. docs/benchmarking.md says how it is done."""
    prepare_for_the_lab()
    from bench import latency, sync

    latencies = latency.Plan(rounds=15, samples=50, warm_up=3_000, seed=1, patience_s=options.patience)
    syncs = sync.Plan(starts=1, changes=20, rollouts=1, churn_s=0, patience_s=options.patience)
    largest = [(max(options.services), max(options.endpoints))]
    return _run(
        options,
        {"latency": asdict(latencies), "sync": asdict(syncs)},
        _latency_parts(_sizes(options), latencies),
        _of_each(lambda proxy, size: sync.SyncBench(proxy, *size, syncs), largest),
    )


def _full(options: argparse.Namespace) -> int:
    """Everything, as long as it takes, kept part by part: Ctrl-C ends it, and --resume goes on. Latency and syncs at
    all sizes, restarts, failovers and throughput at the largest. docs/benchmarking.md says how it is done."""
    prepare_for_the_lab()
    from bench import latency, sync
    from bench.failover import Failover
    from bench.restart import Restart
    from bench.throughput import ThroughputBench, ThroughputPlan

    rounds = 10
    latencies = latency.Plan(rounds=60, samples=100, warm_up=70_000, seed=1, patience_s=options.patience)
    syncs = sync.Plan(churn_s=10, patience_s=options.patience)
    throughputs = ThroughputPlan(rounds, seconds=1, streams=8, warm_up=5, seed=1, patience_s=options.patience)
    largest = [(max(options.services), max(options.endpoints))]
    method = {"latency": asdict(latencies), "sync": asdict(syncs), "throughput": asdict(throughputs)}
    return _run(
        options,
        method | {"restart": rounds, "failover": rounds},
        _latency_parts(_sizes(options), latencies),
        _of_each(lambda proxy, size: sync.SyncBench(proxy, *size, syncs), _sizes(options)),
        _of_each(lambda proxy, size: Restart(proxy, *size, rounds, options.patience), largest),
        _of_each(lambda proxy, size: Failover(proxy, *size, rounds, options.patience), largest),
        lambda proxies: [ThroughputBench(proxies, *size, throughputs) for size in largest],
    )


def _latency(options: argparse.Namespace) -> int:
    """How long a connection, a request or a datagram takes, from a pod to a ClusterIP and from outside to a node port,
    against a path where no proxy ever ran; and what bystanders pay. Ctrl-C ends it with what was measured so far. The
    exit status is 1 if a mode fell out, 130 after Ctrl-C. docs/benchmarking.md says how it is done."""
    prepare_for_the_lab()
    from bench.latency import Plan

    plan = Plan(options.rounds, options.samples, options.warm_up, options.seed, options.patience)
    return _run(options, asdict(plan), _latency_parts(_sizes(options), plan))


def _sync(options: argparse.Namespace) -> int:
    """How long the first sync takes, one changed endpoint, a rolling update of 100, a change among many others: until
    the first packet that a new endpoint answers. And what it takes in CPU and memory."""
    prepare_for_the_lab()
    from bench.sync import Plan, SyncBench

    plan = Plan(
        options.starts, options.changes, options.rollouts, options.churn_rate, options.churn_seconds, options.patience
    )
    return _run(options, asdict(plan), _of_each(lambda proxy, size: SyncBench(proxy, *size, plan), _sizes(options)))


def _memory(options: argparse.Namespace) -> int:
    """What it takes in memory to serve so many Services, in the proxy's processes and in the kernel."""
    prepare_for_the_lab()
    from bench.memory import MemoryBench

    return _run(
        options,
        {"starts": options.starts},
        _of_each(lambda proxy, size: MemoryBench(proxy, *size, options.starts, options.patience), _sizes(options)),
    )


def _throughput(options: argparse.Namespace) -> int:
    """How much TCP streams carry (iperf3), how many connections and requests there are in a second (wrk, nginx),
    against a path where no proxy ever ran. What needs a program that is not installed is left out, and that is said."""
    prepare_for_the_lab()
    from bench.throughput import ThroughputBench, ThroughputPlan

    plan = ThroughputPlan(
        options.rounds, options.seconds, options.streams, options.warm_up, options.seed, options.patience
    )
    return _run(
        options, asdict(plan), lambda proxies: [ThroughputBench(proxies, *size, plan) for size in _sizes(options)]
    )


def _restart(options: argparse.Namespace) -> int:
    """What clients notice while the proxy ends, by SIGTERM and by SIGKILL, and is started anew."""
    prepare_for_the_lab()
    from bench.restart import Restart

    return _run(
        options,
        {"rounds": options.rounds},
        _of_each(lambda proxy, size: Restart(proxy, *size, options.rounds, options.patience), _sizes(options)),
    )


def _failover(options: argparse.Namespace) -> int:
    """How long connections fail after one of three endpoints has died, until nobody is sent there any more."""
    prepare_for_the_lab()
    from bench.failover import Failover

    return _run(
        options,
        {"rounds": options.rounds},
        _of_each(lambda proxy, size: Failover(proxy, *size, options.rounds, options.patience), _sizes(options)),
    )


def _conntrack(options: argparse.Namespace) -> int:
    """How long it takes to remove stale UDP flows among many, and whether a sync waits for it."""
    prepare_for_the_lab()
    if why := modes.load(options.mode).probe():
        raise CannotMeasure(f"mode {options.mode} can't run here: {why}")
    from bench.conntrack import ConntrackBench

    return ConntrackBench(options.mode, options.flows).report()


def _latency_parts(sizes: Sequence[tuple[int, int]], plan: Any) -> "_Parts":
    from bench.latency import LatencyBench

    return lambda proxies: [LatencyBench(proxies, *size, plan) for size in sizes]


def _of_each(make: "Callable[[Proxy, tuple[int, int]], Part]", sizes: Sequence[tuple[int, int]]) -> "_Parts":
    """A part for each proxy at each size."""
    return lambda proxies: [make(proxy, size) for size in sizes for proxy in proxies]


def _sizes(options: argparse.Namespace) -> list[tuple[int, int]]:
    return list(itertools.product(options.services, options.endpoints))


def _run(options: argparse.Namespace, method: dict[str, Any], *parts: "_Parts") -> int:
    """Measure those parts, and tell and keep what they say as the options have it. Raises CannotMeasure."""
    from bench import api_server, run
    from bench.contender import contenders
    from bench.contestant import CONTROL, FLOOR
    from bench.document import Unreadable
    from bench.measured import MOST_ENDPOINTS
    from bench.peer import UnusablePeer, peers
    from bench.place import processors

    if max(options.endpoints) > MOST_ENDPOINTS:
        raise CannotMeasure(
            f"--endpoints {max(options.endpoints)}: at most {MOST_ENDPOINTS}, since each of them answers"
        )
    asked = [name for text in options.mode for name in text.split(",")] or modes.names()
    modes_here, skipped = contenders(list(dict.fromkeys(asked)), via_api=options.via_api)
    if not modes_here:
        raise CannotMeasure(f"no mode is left to measure ({'; '.join(': '.join(one) for one in skipped.items())})")
    try:
        others = peers(options.peer, [FLOOR, CONTROL, *modes.names(), *map(str, modes_here)])
        competing: list[Proxy] = [*modes_here, *others]
        client, server = processors()
        if (others or options.via_api) and not api_server.PROGRAM.exists():
            raise CannotMeasure("--peer and --via-api take tests/apiserver.py of a checkout: run it from there")
        method |= {
            "scenario": options.scenario,
            "contestants": list(map(str, modes_here)),
            "peers": options.peer,
            "services": options.services,
            "endpoints": options.endpoints,
            "via API": options.via_api,
            "client cpu": client,
            "server cpu": server,
        }
        document = run.begin(method, skipped, options.json, resume=options.resume)
        finish = None
        if options.report is not None:
            from bench.report.folder import prepare

            prepare(options.report)
            finish = partial(_report_on, options.report)
        return run.run([part for some in parts for part in some(competing)], document, options.json, finish)
    except (run.NoPlace, Unreadable, UnusablePeer) as error:
        raise CannotMeasure(str(error)) from None


def _report_on(folder: Path, document: "Document") -> None:
    if any(outcome.figures for outcome in document.outcomes):
        bench_files_command.report_on([document], folder)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _number_or_none(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    """Without those that came before."""
    return tuple(dict.fromkeys(_count(one) for one in text.split(",")))
