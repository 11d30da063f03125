"""`pyproxy bench`: what each mode costs on this machine, in a lab of network namespaces; nothing else is needed."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyproxy import modes

if TYPE_CHECKING:
    from bench.contender import Contender
    from bench.scenario import Part

_SYNC_SIZES, _LATENCY_SIZES = (10, 1_000, 10_000), (1, 1_000, 10_000)
"""Services to measure with, unless told otherwise."""


class CannotMeasure(Exception):
    """What a user can do something about; the message is one sentence that says what."""


def add_to(bench: argparse.ArgumentParser) -> None:
    scenarios = bench.add_subparsers(required=True, metavar="SCENARIO")
    _add_sync(scenarios)
    _add_latency(scenarios)
    text = "How long it takes to remove stale UDP flows among many, and whether a sync waits for it."
    conntrack = scenarios.add_parser("conntrack", help="stale UDP flows", description=text)
    conntrack.add_argument("--mode", default="nftables", help="(default: nftables)")
    conntrack.add_argument("--flows", type=_count, default=100_000, metavar="N", help="(default: 100000)")
    conntrack.set_defaults(command=_conntrack)


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


def _add_sync(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "How long the first sync takes, and one changed endpoint, until the first packet is served by it."
    sync = scenarios.add_parser("sync", help="first sync and one change", description=text)
    _add_common(sync, _SYNC_SIZES)
    sync.add_argument(
        "--via-api", action="store_true", help="objects come from a stand-in of the API server, not files"
    )
    sync.add_argument("--changes", type=_count, default=50, metavar="C", help="to measure (default: 50)")
    sync.set_defaults(command=_sync)


def _add_latency(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    latency = scenarios.add_parser("latency", help="connections, requests and datagrams", description=_latency.__doc__)
    _add_common(latency, _LATENCY_SIZES)
    latency.add_argument("--rounds", type=_count, default=60, metavar="R", help="at each size (default: 60)")
    latency.add_argument(
        "--samples", type=_count, default=200, metavar="S", help="of each figure in a round (default: 200)"
    )
    latency.add_argument(
        "--warm-up",
        type=_count,
        default=70_000,
        metavar="C",
        help="connections by each way before the first round (default: 70000, which fill ebpf mode's map of sockets)",
    )
    latency.add_argument("--seed", type=_count, default=1, metavar="S", help="of the order in a round (default: 1)")
    latency.set_defaults(command=_latency)


def _add_common(scenario: argparse.ArgumentParser, sizes: tuple[int, ...]) -> None:
    """What all of them take."""
    scenario.add_argument(
        "--mode",
        action="append",
        default=[],
        metavar="M[,M…]",
        help="may be repeated (default: each that runs here); iptables in both flavours",
    )
    scenario.add_argument(
        "--services",
        type=_counts,
        default=sizes,
        metavar="N[,N…]",
        help=f"(default: {','.join(map(str, sizes))})",
    )
    scenario.add_argument(
        "--endpoints", type=_counts, default=(2,), metavar="E[,E…]", help="of each service (default: 2)"
    )
    scenario.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures and all samples there (-: to standard output)"
    )
    scenario.add_argument("--resume", action="store_true", help="go on with what FILE has, and measure the rest")


def _sync(options: argparse.Namespace) -> int:
    prepare_for_the_lab()
    from bench.sync import Plan, SyncBench

    plan = Plan(changes=options.changes)
    try:
        return _run(
            options,
            lambda contenders: [
                SyncBench(replace(contender, via_api=options.via_api), services, endpoints, plan)
                for services in options.services
                for endpoints in options.endpoints
                for contender in contenders
            ],
            asdict(plan) | {"via API": options.via_api},
        )
    except FileNotFoundError as error:
        raise CannotMeasure(str(error)) from None


def _latency(options: argparse.Namespace) -> int:
    """How long a connection, a request or a datagram takes, from a pod to a ClusterIP and from outside to a node port,
    against a path where no proxy ever ran; and what bystanders pay. Ctrl-C ends it with what was measured so far. The
    exit status is 1 if a mode fell out, 130 after Ctrl-C. docs/benchmarking.md says how it is done."""
    prepare_for_the_lab()
    from bench.latency import LatencyBench, Plan
    from bench.measured import MOST_ENDPOINTS

    if max(options.endpoints) > MOST_ENDPOINTS:
        raise CannotMeasure(
            f"--endpoints {max(options.endpoints)}: at most {MOST_ENDPOINTS}, since each of them answers"
        )
    plan = Plan(options.rounds, options.samples, options.warm_up, options.seed)
    return _run(
        options,
        lambda contenders: [
            LatencyBench(contenders, services, endpoints, plan)
            for services in options.services
            for endpoints in options.endpoints
        ],
        asdict(plan),
    )


def _conntrack(options: argparse.Namespace) -> int:
    prepare_for_the_lab()
    if why := modes.load(options.mode).probe():
        raise CannotMeasure(f"mode {options.mode} can't run here: {why}")
    from bench.conntrack import ConntrackBench

    return ConntrackBench(options.mode, options.flows).report()


def _run(
    options: argparse.Namespace, parts: "Callable[[Sequence[Contender]], Sequence[Part]]", method: dict[str, Any]
) -> int:
    """Measure the parts that ``parts`` makes of who takes part. Raises CannotMeasure."""
    from bench import run
    from bench.contender import contenders
    from bench.document import Unreadable
    from bench.place import processors

    runnable, skipped = _runnable(options.mode)
    competing = contenders(runnable)
    client, server = processors()
    method |= {
        "contestants": list(map(str, competing)),
        "services": options.services,
        "endpoints": options.endpoints,
        "client cpu": client,
        "server cpu": server,
    }
    try:
        document = run.begin(method, skipped, options.json, resume=options.resume)
    except (run.NoPlace, Unreadable) as error:
        raise CannotMeasure(str(error)) from None
    return run.run(parts(competing), document, options.json)


def _runnable(asked: list[str]) -> tuple[list[str], dict[str, str]]:
    """Modes that this kernel can run, of those or of all, and why it can't run the others. Raises CannotMeasure."""
    names = [name for text in asked for name in text.split(",")] or modes.names()
    why_not = {name: modes.load(name).probe() for name in dict.fromkeys(names)}
    skipped = {name: why for name, why in why_not.items() if why is not None}
    runnable = [name for name in why_not if name not in skipped]
    if not runnable:
        raise CannotMeasure(f"no mode is left to measure ({'; '.join(': '.join(one) for one in skipped.items())})")
    return runnable, skipped


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _counts(text: str) -> tuple[int, ...]:
    """Without those that came before."""
    return tuple(dict.fromkeys(_count(one) for one in text.split(",")))
