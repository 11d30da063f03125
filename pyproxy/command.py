"""The command line: what a user types, turned into the objects that do it."""

import argparse
import gc
import json
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from pathlib import Path
from threading import Thread

from pyproxy import __version__, kube_proxy, log, modes
from pyproxy.address import Prefix, parse_prefix
from pyproxy.conntrack import Reconciler
from pyproxy.controller import Controller, Pace
from pyproxy.host import DetectLocal, HostOptions
from pyproxy.manifest_source import ManifestSource, PathError
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import Mode, ModeError, RouteId, Table

logger = logging.getLogger("pyproxy")

AUTO_ORDER = ("ebpf", "nftables", "ipvs", "iptables", "userspace")
"""Which mode ``auto`` takes: the first of these that is installed and that this kernel can run."""


_LONGEST_S = 366 * 86400.0


class UsageError(Exception):
    """A mistake of the user's; the message is one sentence that says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a failure, 2 for a wrong command line, 130 after Ctrl-C."""
    parsed = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return run(parsed)
    except (UsageError, PathError, ModeError, modes.UnknownMode, TimeoutError) as error:
        print(f"pyproxy: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit does not fail on it again
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="pyproxy",
        description="A Kubernetes service proxy: turns Services and EndpointSlices into what the kernel forwards by.",
        epilog="Try `pyproxy demo` first: it shows every mode at work in a lab of its own.",
    )
    parser.add_argument("--version", action="version", version=f"pyproxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands.add_parser("run", help="serve the Services of this node", description=_run.__doc__))
    shown = commands.add_parser("modes", help="what this kernel can run", description=_modes.__doc__)
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.set_defaults(command=_modes)
    demo = commands.add_parser("demo", help="see it work", description=_demo.__doc__)
    demo.add_argument("--mode", help="only this mode")
    demo.add_argument("--json", action="store_true", help="print JSON instead of a table")
    demo.set_defaults(command=_demo)
    cleanup = commands.add_parser("cleanup", help="remove what pyproxy wrote", description=_cleanup.__doc__)
    cleanup.add_argument("--kube-proxy", action="store_true", help="also what a departed kube-proxy left behind")
    cleanup.set_defaults(command=_cleanup)
    bench = commands.add_parser("bench", help="measure it on this machine", description="Measurements in the lab.")
    scenarios = bench.add_subparsers(required=True, metavar="SCENARIO")
    _add_bench_sync(scenarios)
    text = "How long it takes to remove stale UDP flows among many, and whether a sync waits for it."
    conntrack = scenarios.add_parser("conntrack", help="stale UDP flows", description=text)
    conntrack.add_argument("--mode", default="nftables", help="(default: nftables)")
    conntrack.add_argument("--flows", type=_count, default=100_000, metavar="N", help="(default: 100000)")
    conntrack.set_defaults(command=_bench_conntrack)
    return parser


def _add_run(run: argparse.ArgumentParser) -> None:
    add = run.add_argument
    add("--manifests", type=Path, metavar="PATH", required=True, help="a file or folder of YAML or JSON, watched")
    add("--mode", default="auto", help=f"auto, or one of: {', '.join(modes.names())} (default: auto)")
    add("--hostname-override", metavar="NAME", help="the name of this node (default: the host name)")
    add("--cluster-cidr", type=_prefixes, default=(), metavar="CIDR[,CIDR]", help="the addresses of pods, by family")
    add("--detect-local-mode", type=DetectLocal, default=DetectLocal.CLUSTER_CIDR, choices=list(DetectLocal),
        metavar="MODE", help="how pods of this node are told from the world: "
        f"{', '.join(mode.value for mode in DetectLocal)} (default: ClusterCIDR)")  # fmt: skip
    add("--pod-bridge-interface", type=_interface, metavar="NAME", help="for BridgeInterface")
    add("--pod-interface-name-prefix", type=_interface, metavar="PREFIX", help="for InterfaceNamePrefix")
    add("--nodeport-addresses", type=_node_port_addresses, metavar="CIDR[,CIDR]|primary",
        help="where node ports answer (default: the node's InternalIP addresses)")  # fmt: skip
    add("--masquerade-all", type=_boolean, nargs="?", const=True, default=False, metavar="true|false",
        help="give ClusterIP traffic of pods a node address, too")  # fmt: skip
    add("--sync-period", type=_period, default=30.0, metavar="DURATION", help="between verifications (default: 30s)")
    add("--min-sync-period", type=_seconds, default=0.1, metavar="DURATION", help="between syncs (default: 100ms)")
    add("--log-format", choices=("text", "json"), default="text", help="(default: text)")
    add("-v", "--v", type=int, default=0, metavar="LEVEL", dest="verbosity", help="0, or 1 for more (default: 0)")
    run.set_defaults(command=_run)


def _add_bench_sync(scenarios: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    text = "How long the first sync takes, and one changed endpoint, until the first packet is served by it."
    sync = scenarios.add_parser("sync", help="first sync and one change", description=text)
    sync.add_argument("--mode", default="nftables", help="(default: nftables)")
    sync.add_argument("--services", type=_count, default=1000, metavar="N", help="(default: 1000)")
    sync.add_argument("--endpoints", type=_count, default=2, metavar="E", help="of each service (default: 2)")
    sync.add_argument("--changes", type=_count, default=50, metavar="C", help="to measure (default: 50)")
    sync.add_argument("--json", type=Path, metavar="FILE", help="write the figures and all samples there")
    sync.set_defaults(command=_bench_sync)


def _run(options: argparse.Namespace) -> int:
    """Serve the Services of this node until SIGTERM or Ctrl-C. What is in the kernel then stays and keeps working;
    `pyproxy cleanup` removes it."""
    log.set_up(options.log_format, options.verbosity)
    gc.disable()  # until the first sync: what is made by then is kept, and each pass would look at all of it in vain
    # So that a sync gets the interpreter at once while conntrack's flows are read in the other thread.
    sys.setswitchinterval(0.0005)
    mode = _choose(options.mode)
    node_name = (options.hostname_override or socket.gethostname()).strip().lower()
    host = HostOptions(
        node_name=node_name,
        detect_local=options.detect_local_mode,
        cluster_cidrs=options.cluster_cidr,
        bridge_interface=options.pod_bridge_interface or "",
        interface_name_prefix=options.pod_interface_name_prefix or "",
        node_port_addresses=options.nodeport_addresses,
        masquerade_all=options.masquerade_all,
    )
    _check_detection(host)
    reconciler = Reconciler()

    def after_sync(before: Table, now: Table, changed: AbstractSet[RouteId] | None) -> None:
        if not gc.isenabled():
            gc.freeze()
            gc.enable()
        if mode.tracks_connections:
            reconciler.after_sync(before, now, changed)

    store = Store(node_name)
    controller = Controller(
        store,
        Planner(store, host),
        mode,
        Pace(options.sync_period, options.min_sync_period),
        after_sync,
    )
    source = ManifestSource(options.manifests, controller.deliver)
    died = []

    def give_up(what: threading.ExceptHookArgs) -> None:
        logger.critical("thread died", exc_info=(what.exc_type, what.exc_value or what.exc_type(), what.exc_traceback))
        died.append(what.thread)
        controller.stop()

    threading.excepthook = give_up  # a proxy that hears or cleans up no more must be started anew
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: controller.stop())
    logger.info("starting", extra={"version": __version__, "mode": mode.name, "node": node_name})
    Thread(target=source.run, name="manifests", daemon=True).start()
    Thread(target=reconciler.run, name="conntrack", daemon=True).start()
    controller.run()
    logger.info("stopped; the kernel keeps forwarding")
    return 1 if died else 0


def _check_detection(host: HostOptions) -> None:
    if host.detect_local is DetectLocal.BRIDGE_INTERFACE and not host.bridge_interface:
        raise UsageError("--detect-local-mode BridgeInterface needs --pod-bridge-interface")
    if host.detect_local is DetectLocal.INTERFACE_NAME_PREFIX and not host.interface_name_prefix:
        raise UsageError("--detect-local-mode InterfaceNamePrefix needs --pod-interface-name-prefix")
    if host.detect_local is DetectLocal.CLUSTER_CIDR and not host.cluster_cidrs:
        logger.warning(
            "without --cluster-cidr pods can't be told from the world: no traffic to a ClusterIP is masqueraded"
        )


def _choose(name: str) -> Mode:
    """The mode of that name, or the best one for ``auto``, that this kernel can run."""
    if name != "auto":
        mode = modes.load(name)
        if reason := mode.probe():
            raise UsageError(f"mode {name} can't run here: {reason}")
        return mode
    reasons = []
    for candidate in (candidate for candidate in AUTO_ORDER if candidate in modes.names()):
        mode = modes.load(candidate)
        reason = mode.probe()
        if reason is None:
            return mode
        reasons.append(f"{candidate}: {reason}")
    raise UsageError(f"no mode can run here ({'; '.join(reasons)})")


def _modes(options: argparse.Namespace) -> int:
    """Tell which modes are installed, which of them this kernel can run, and what the others lack."""
    found = {name: modes.load(name).probe() for name in modes.names()}
    if options.json:
        print(json.dumps([{"mode": name, "runs": why is None, "reason": why} for name, why in found.items()]))
        return 0
    width = max(map(len, found), default=0)
    for name, why in found.items():
        print(f"{name:{width}}  {'runs here' if why is None else 'can not run here: ' + why}")
    return 0


def _cleanup(options: argparse.Namespace) -> int:
    """Remove everything that pyproxy ever wrote to this kernel, in every mode. Services stop working on this node."""
    cleaners = [modes.load(name).cleanup for name in modes.names()]
    if options.kube_proxy:
        cleaners.append(kube_proxy.cleanup)
    removed, failed = False, False
    for clean_up in cleaners:
        try:
            for what in clean_up():
                print(f"removed {what}")
                removed = True
        except ModeError as error:
            print(f"pyproxy: {error}", file=sys.stderr)
            failed = True
    if not removed and not failed:
        print("nothing to remove")
    return 1 if failed else 0


def _demo(options: argparse.Namespace) -> int:
    """Build a lab of network namespaces, serve the example manifests in it in every mode this kernel can run, send
    real requests, and show who answered. Takes root; leaves nothing behind."""
    _prepare_for_the_lab()
    from bench.demo import demo

    return demo([options.mode] if options.mode else modes.names(), as_json=options.json)


def _bench_sync(options: argparse.Namespace) -> int:
    _prepare_for_the_lab()
    _choose(options.mode)
    from bench.sync import SyncBench

    return SyncBench(options.mode, options.services, options.endpoints, options.changes).report(options.json)


def _bench_conntrack(options: argparse.Namespace) -> int:
    _prepare_for_the_lab()
    _choose(options.mode)
    from bench.conntrack import ConntrackBench

    return ConntrackBench(options.mode, options.flows).report()


def _prepare_for_the_lab() -> None:
    """Check what a lab takes, and make SIGTERM clean up as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if os.geteuid() != 0:
        raise UsageError("network namespaces take root; run it with sudo")
    try:
        import pyroute2  # noqa: F401
    except ImportError:
        raise UsageError("the lab is not installed; install pyproxy[bench]") from None


def _count(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 1")
    return int(text)


def _prefixes(text: str) -> tuple[Prefix, ...]:
    try:
        return tuple(parse_prefix(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _node_port_addresses(text: str) -> tuple[Prefix, ...]:
    return () if text == "primary" else _prefixes(text)


def _boolean(text: str) -> bool:
    """As Go's flags read it, for command lines that were kube-proxy's."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text == "true"


def _interface(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a network interface")
    return text


def _period(text: str) -> float:
    if (seconds := _seconds(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} would be all the time")
    return seconds


def _seconds(text: str) -> float:
    """A Go duration such as 1m30s or 250ms."""
    units = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
    if text == "0":
        return 0.0
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|h|m|s)", text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30s or 1m30s")
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if seconds > _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is more than a year")
    return seconds
