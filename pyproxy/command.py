"""The command line: what a user types, turned into the objects that do it."""

import argparse
import json
import logging
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pyproxy import __version__, bench_command, explain_command, flags, kube_proxy, log, modes, top_command
from pyproxy import configuration as configuration_file
from pyproxy.bench_files_command import CannotMeasure
from pyproxy.config_file import ConfigFile
from pyproxy.configuration import BadConfiguration, Configuration
from pyproxy.explain_command import NoAnswer
from pyproxy.flags import override
from pyproxy.host import DetectLocal
from pyproxy.manifest_source import ManifestSource, PathError
from pyproxy.proxy import NoSource, PortTaken, Proxy, Source
from pyproxy.table import Counts, Mode, ModeError
from pyproxy.top_command import NothingCounted

logger = logging.getLogger("pyproxy")

_EXPECTED = (
    PathError,
    BadConfiguration,
    NoSource,
    PortTaken,
    NoAnswer,
    NothingCounted,
    CannotMeasure,
    ModeError,
    modes.UnknownMode,
    TimeoutError,
)
"""What a user can do something about; the messages say what."""

AUTO_ORDER = ("ebpf", "nftables", "ipvs", "iptables", "userspace")
"""Which mode ``auto`` takes: the first of these that is installed and that this kernel can run."""


class Finding(NamedTuple):
    """One line of `pyproxy config check`."""

    line: int
    """0 where it is about no line."""
    field: str
    verdict: str
    reason: str


class UsageError(Exception):
    """A mistake of the user's; the message is one sentence that says what to do."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0, 1 for a failure, 2 for a wrong command line, 130 after Ctrl-C."""
    parsed = _parser().parse_args(bench_command.completed(sys.argv[1:] if arguments is None else arguments))
    run: Callable[[argparse.Namespace], int] = parsed.command
    try:
        return run(parsed)
    except (UsageError, *_EXPECTED) as error:
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
    run = commands.add_parser("run", help="serve the Services of this node", description=_run.__doc__)
    flags.add_to(run)
    run.set_defaults(command=_run)
    _add_config(
        commands.add_parser("config", help="look at a configuration file", description="KubeProxyConfiguration.")
    )
    shown = commands.add_parser("modes", help="what this kernel can run", description=_modes.__doc__)
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.set_defaults(command=_modes)
    explain = commands.add_parser(
        "explain", help="what becomes of a packet, and why", description=explain_command.run.__doc__
    )
    explain_command.add_to(explain)
    explain.set_defaults(command=explain_command.run)
    top = commands.add_parser("top", help="what goes through each Service", description=top_command.run.__doc__)
    top_command.add_to(top)
    top.set_defaults(command=top_command.run)
    demo = commands.add_parser("demo", help="see it work", description=_demo.__doc__)
    demo.add_argument("--mode", help="only this mode")
    demo.add_argument("--json", action="store_true", help="print JSON instead of a table")
    demo.set_defaults(command=_demo)
    cleanup = commands.add_parser("cleanup", help="remove what pyproxy wrote", description=_cleanup.__doc__)
    which = cleanup.add_mutually_exclusive_group()
    which.add_argument("--kube-proxy", action="store_true", help="also what a departed kube-proxy left behind")
    which.add_argument("--kube-proxy-only", action="store_true", help="only that; pyproxy may be running")
    cleanup.set_defaults(command=_cleanup)
    bench = commands.add_parser("bench", help="measure it on this machine", description="Measurements in the lab.")
    bench_command.add_to(bench)
    return parser


def _add_config(config: argparse.ArgumentParser) -> None:
    actions = config.add_subparsers(required=True, metavar="ACTION")
    check = actions.add_parser("check", help="what is wrong, ignored or impossible", description=_config_check.__doc__)
    check.add_argument("file", type=Path, metavar="FILE", help="the config.conf of kube-proxy's ConfigMap")
    check.add_argument("--mode", help="goes before the file's, as with run")
    check.add_argument("--json", action="store_true", help="print JSON instead of text")
    check.set_defaults(command=_config_check)


def _run(options: argparse.Namespace) -> int:
    """Serve the Services of this node until SIGTERM or Ctrl-C. What is in the kernel then stays and keeps working;
    `pyproxy cleanup` removes it."""
    # First, so that no change of the file is lost between its first reading and the watch.
    file = ConfigFile(options.config, lambda text: reconfigure(text)) if options.config else None
    configuration = _configuration(options)
    log.set_up(configuration.log_format, configuration.verbosity)
    for ignored in configuration.ignored:
        logger.info("configured in vain", extra={"field": ignored.field, "reason": ignored.reason})
    for flag in getattr(options, "in_vain", ()):
        logger.info("configured in vain", extra={"field": flag, "reason": "pyproxy has no such flag"})
    mode = _choose(configuration.mode)
    _check(configuration)
    _check_maps(configuration, mode)
    node_name = (configuration.hostname_override or socket.gethostname()).strip().lower()
    proxy = Proxy(configuration, node_name, mode)
    source: Source
    if options.manifests is not None:
        source = ManifestSource(options.manifests, proxy.deliver)
    else:
        source = proxy.use_api(configuration.kubeconfig)

    def reconfigure(text: bytes) -> None:
        try:
            changed = override(configuration_file.parse(text, options.mode, str(options.config)), options)
            _check(changed)
            proxy.reconfigure(changed)
        except (BadConfiguration, UsageError) as error:
            logger.error("configuration not obeyed; the last good one stays in force", extra={"reason": error})

    return proxy.run(source, file)


def _configuration(options: argparse.Namespace) -> Configuration:
    """From the file, if there is one, and from flags."""
    from_file = configuration_file.read(options.config, options.mode) if options.config else Configuration()
    return override(from_file, options)


def _check(configuration: Configuration) -> None:
    """What file and flags say together. Raises UsageError."""
    if configuration.min_sync_period > configuration.sync_period:
        raise UsageError(
            f"--min-sync-period ({configuration.min_sync_period:g}s) is longer than the sync period "
            f"({configuration.sync_period:g}s)"
        )
    if configuration.detect_local is DetectLocal.BRIDGE_INTERFACE and not configuration.bridge_interface:
        raise UsageError("--detect-local-mode BridgeInterface needs --pod-bridge-interface")
    if configuration.detect_local is DetectLocal.INTERFACE_NAME_PREFIX and not configuration.interface_name_prefix:
        raise UsageError("--detect-local-mode InterfaceNamePrefix needs --pod-interface-name-prefix")
    if configuration.detect_local is DetectLocal.CLUSTER_CIDR and not configuration.cluster_cidrs:
        logger.warning(
            "without --cluster-cidr pods can't be told from the world: no traffic to a ClusterIP is masqueraded"
        )


def _check_maps(configuration: Configuration, mode: Mode) -> None:
    """Raises UsageError."""
    known = mode.map_sizes if isinstance(mode, Counts) else {}
    for name, _ in configuration.map_sizes:
        if not known:
            raise UsageError(f"--ebpf-map-size {name}: mode {mode.name} has no maps")
        if name not in known:
            raise UsageError(f"--ebpf-map-size: there is no map {name}, but {', '.join(known)}")


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


def _config_check(options: argparse.Namespace) -> int:
    """Tell what `pyproxy run --config FILE` would make of it: what is unknown or wrong (with its line), what has no
    effect, and what this kernel can't do. Ends with 1 if it would not start."""
    found = []
    try:
        configuration = configuration_file.read(options.file, options.mode)
    except BadConfiguration as error:
        found = [Finding(one.line, one.field, "wrong", one.reason) for one in error.mistakes]
    else:
        found = [Finding(one.line, one.field, "ignored", one.reason) for one in configuration.ignored]
        try:
            _check(configuration)
            mode = _choose(options.mode or configuration.mode).name
        except (UsageError, modes.UnknownMode) as error:
            found.append(Finding(0, "mode", "impossible", str(error)))
        else:
            found.append(Finding(0, "mode", "runs", f"{mode} mode runs here"))
    if options.json:
        print(json.dumps([one._asdict() for one in found]))
    else:
        for one in found:
            where = f"line {one.line}: " if one.line else ""
            print(f"{where}{one.field}: {one.verdict}: {one.reason}")
    return 1 if any(one.verdict in ("wrong", "impossible") for one in found) else 0


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
    cleaners = [] if options.kube_proxy_only else [modes.load(name).cleanup for name in modes.names()]
    if options.kube_proxy or options.kube_proxy_only:
        cleaners.append(kube_proxy.cleanup)
    removed, failures = False, set()
    for clean_up in cleaners:
        try:
            for what in clean_up():
                print(f"removed {what}")
                removed = True
        except ModeError as error:
            if str(error) not in failures:  # several modes may ask the same of the kernel
                print(f"pyproxy: {error}", file=sys.stderr)
            failures.add(str(error))
    if not removed and not failures:
        print("nothing to remove")
    return 1 if failures else 0


def _demo(options: argparse.Namespace) -> int:
    """Build a lab of network namespaces, serve the example manifests in it in every mode this kernel can run, send
    real requests, and show who answered. Takes root; leaves nothing behind."""
    bench_command.prepare_for_the_lab()
    from bench.demo import demo

    return demo([options.mode] if options.mode else modes.names(), as_json=options.json)
