"""The flags of `pyproxy run`: kube-proxy's where they mean the same, each going before the configuration file.

A flag that is not given is None in what argparse returns, so that the file's value, or kube-proxy's default, holds.
"""

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from pyproxy import modes
from pyproxy.address import IP, Prefix, parse_prefix, parse_socket
from pyproxy.configuration import Configuration
from pyproxy.duration import go_duration
from pyproxy.host import DetectLocal
from pyproxy.kube_proxy_configuration import SCHEDULER
from pyproxy.table import EbpfAlgorithm

_LONGEST_S = 366 * 86400.0
_MOST_WORKERS = 64
_LARGEST_MAP = 1 << 24
_DISABLED = object()


_WITHOUT_EFFECT = (
    *("bind-address", "config-sync-period", "feature-gates", "oom-score-adj", "profiling", "proxy-port-range"),
    *("conntrack-max-per-core", "conntrack-min", "conntrack-tcp-be-liberal", "conntrack-tcp-timeout-close-wait"),
    *("conntrack-tcp-timeout-established", "conntrack-udp-timeout", "conntrack-udp-timeout-stream"),
    *("init-only", "iptables-localhost-nodeports", "iptables-masquerade-bit", "kube-api-burst"),
    *("kube-api-content-type", "kube-api-qps", "log-flush-frequency", "log-json-info-buffer-size"),
    *("log-json-split-stream", "log-text-info-buffer-size", "log-text-split-stream", "show-hidden-metrics-for-version"),
    "vmodule",
)
"""kube-proxy's other flags: taken, so that its command line works, and said to be in vain."""


_OF_IPVS = {
    **{name: name for name in ("scheduler", "exclude_cidrs", "strict_arp", "tcp_timeout", "udp_timeout")},
    "tcpfin_timeout": "tcp_fin_timeout",
}
"""The fields of table.Ipvs by what their flags are called."""


class _Ignored(argparse.Action):
    def __call__(self, _: object, options: argparse.Namespace, __: object, flag: str | None = None) -> None:
        options.in_vain = [*getattr(options, "in_vain", []), flag]


def add_to(run: argparse.ArgumentParser) -> None:
    where = run.add_argument_group("where Services come from (default: the API server, in-cluster)")
    where.add_argument("--config", type=Path, metavar="FILE", help="kube-proxy's KubeProxyConfiguration, watched; "
                       "a flag that is given goes before it")  # fmt: skip
    source = where.add_mutually_exclusive_group()
    source.add_argument("--kubeconfig", type=Path, metavar="FILE", help="how to reach the API server")
    source.add_argument("--manifests", type=Path, metavar="PATH",
                       help="no API server, but a file or folder of YAML or JSON, watched")  # fmt: skip
    how = run.add_argument_group("what is written")
    how.add_argument("--mode", "--proxy-mode", help=f"auto, or one of: {', '.join(modes.names())} (default: auto)")
    how.add_argument("--hostname-override", metavar="NAME", help="the name of this node (default: the host name)")
    how.add_argument("--cluster-cidr", type=_prefixes, dest="cluster_cidrs", metavar="CIDR[,CIDR]",
                     help="the addresses of pods, by family")  # fmt: skip
    how.add_argument("--detect-local-mode", type=DetectLocal, dest="detect_local", choices=list(DetectLocal),
                     metavar="MODE", help="how pods of this node are told from the world: "
                     f"{', '.join(mode.value for mode in DetectLocal)} (default: ClusterCIDR)")  # fmt: skip
    how.add_argument("--pod-bridge-interface", type=_interface, dest="bridge_interface", metavar="NAME",
                     help="for BridgeInterface")  # fmt: skip
    how.add_argument("--pod-interface-name-prefix", type=_interface, dest="interface_name_prefix", metavar="PREFIX",
                     help="for InterfaceNamePrefix")  # fmt: skip
    how.add_argument("--nodeport-addresses", type=_node_port_addresses, dest="node_port_addresses",
                     metavar="CIDR[,CIDR]|primary",
                     help="where node ports answer (default: the node's InternalIP addresses)")  # fmt: skip
    how.add_argument("--masquerade-all", type=_boolean, nargs="?", const=True, metavar="true|false",
                     help="give ClusterIP traffic of pods a node address, too")  # fmt: skip
    how.add_argument("--sync-period", type=_period, metavar="DURATION", help="between verifications (default: 30s)")
    how.add_argument("--min-sync-period", type=_seconds, metavar="DURATION", help="between syncs (default: 100ms)")
    # kube-proxy's names for the same two: one pair for ipvs, the other for every other mode.
    for section in ("iptables", "ipvs"):
        how.add_argument(f"--{section}-sync-period", type=_period, help=argparse.SUPPRESS)
        how.add_argument(f"--{section}-min-sync-period", type=_seconds, help=argparse.SUPPRESS)
    ipvs = run.add_argument_group("what only mode ipvs goes by")
    ipvs.add_argument("--ipvs-scheduler", type=_scheduler, metavar="NAME",
                      help="rr, wrr, lc, wlc, lblc, lblcr, sh, dh, sed, nq or mh (default: rr)")  # fmt: skip
    ipvs.add_argument("--ipvs-exclude-cidrs", type=_prefixes, metavar="CIDR[,CIDR]",
                      help="where virtual servers of others stay as they are")  # fmt: skip
    ipvs.add_argument("--ipvs-strict-arp", type=_boolean, nargs="?", const=True, metavar="true|false",
                      help="answer ARP for no address that is not the device's own (default: false)")  # fmt: skip
    for name, what in (("tcp", "TCP connections"), ("tcpfin", "TCP connections that end"), ("udp", "UDP flows")):
        ipvs.add_argument(f"--ipvs-{name}-timeout", type=_seconds, metavar="DURATION",
                          help=f"of idle {what} (default: 0, as the kernel has it)")  # fmt: skip
    userspace = run.add_argument_group("what only mode userspace goes by")
    userspace.add_argument("--userspace-workers", type=_workers, metavar="N|auto",
                           help="how many processes relay; auto is one for each core (default: 1)")  # fmt: skip
    ebpf = run.add_argument_group("what only mode ebpf goes by")
    ebpf.add_argument("--cgroup", type=_folder, metavar="FOLDER",
                      help="of cgroup v2: serve its processes' sockets (default: the root, all of them)")  # fmt: skip
    ebpf.add_argument("--ebpf-algorithm", type=EbpfAlgorithm, choices=list(EbpfAlgorithm), metavar="random|maglev",
                      help="how traffic from outside gets its endpoint; maglev: all nodes choose the same one for the "
                      "same flow (default: random)")  # fmt: skip
    ebpf.add_argument("--devices", type=_devices, metavar="NAME[,NAME]",
                      help="whose packets are translated; eth+ is all that begin with eth (default: all but loopback, "
                      "and ports of bridges and the like)")  # fmt: skip
    ebpf.add_argument("--ebpf-map-size", type=_map_sizes, dest="map_sizes", metavar="MAP=ENTRIES[,…]",
                      help="for more than by default: see README for the maps and what they take")  # fmt: skip
    seen = run.add_argument_group("what can be seen of it")
    seen.add_argument("--healthz-bind-address", type=_listen(10256), dest="healthz_address", metavar="IP:PORT",
                      help="/healthz, /livez and /readyz (default: 0.0.0.0:10256; with --manifests and no --config: "
                      'none; "" is none)')  # fmt: skip
    seen.add_argument("--metrics-bind-address", type=_listen(10249), dest="metrics_address", metavar="IP:PORT",
                      help="/metrics, and a status page at / (default: 127.0.0.1:10249, or as above)")  # fmt: skip
    seen.add_argument("--metrics-per-service", type=_boolean, nargs="?", const=True, metavar="true|false",
                      help="what mode ebpf counts, for each Service by itself, too (default: false)")  # fmt: skip
    seen.add_argument("--bind-address-hard-fail", type=_boolean, nargs="?", const=True, metavar="true|false",
                      help="end if one of these can't be had, instead of trying again")  # fmt: skip
    seen.add_argument("--log-format", "--logging-format", choices=("text", "json"), help="(default: text)")
    for flag in _WITHOUT_EFFECT:
        run.add_argument(f"--{flag}", nargs="?", const="", metavar="…", action=_Ignored, help=argparse.SUPPRESS)
    seen.add_argument("-v", "--v", type=int, metavar="LEVEL", dest="verbosity", help="0, or 1 for more (default: 0)")


def override(configuration: Configuration, options: argparse.Namespace) -> Configuration:
    """``configuration`` with what was given on the command line."""
    if options.config is None and options.manifests is not None:  # nobody asked for ports
        configuration = replace(configuration, healthz_address=None, metrics_address=None)
    given = {
        one.name: getattr(options, one.name)
        for one in fields(configuration)
        if getattr(options, one.name, None) is not None
    }
    changes: dict[str, Any] = {name: None if value is _DISABLED else value for name, value in given.items()}
    section = "ipvs" if changes.get("mode", configuration.mode) == "ipvs" else "iptables"
    for name in ("sync_period", "min_sync_period"):
        value = getattr(options, f"{section}_{name}")
        if value is not None:
            changes.setdefault(name, value)
    of_ipvs = {field: getattr(options, f"ipvs_{flag}", None) for flag, field in _OF_IPVS.items()}
    given = {field: value for field, value in of_ipvs.items() if value is not None}
    return replace(configuration, **changes, ipvs=replace(configuration.ipvs, **given))


def _prefixes(text: str) -> tuple[Prefix, ...]:
    try:
        return tuple(parse_prefix(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _scheduler(text: str) -> str:
    if not re.fullmatch(SCHEDULER, text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of an ipvs scheduler such as rr")
    return text


def _workers(text: str) -> int:
    number = len(os.sched_getaffinity(0)) if text == "auto" else int(text) if re.fullmatch(r"[0-9]{1,3}", text) else 0
    if not 1 <= number <= _MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number from 1 to {_MOST_WORKERS}")
    return number


def _map_sizes(text: str) -> tuple[tuple[str, int], ...]:
    found = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        if not re.fullmatch("[a-z_]{1,15}", name) or not re.fullmatch("[0-9]{1,9}", number):
            raise argparse.ArgumentTypeError(f"{part!r} is not a map and its size, such as flows=524288")
        if not 1 <= int(number) <= _LARGEST_MAP:
            raise argparse.ArgumentTypeError(f"{part!r} is not within 1 to {_LARGEST_MAP}")
        found[name] = int(number)
    return tuple(sorted(found.items()))


def _node_port_addresses(text: str) -> tuple[Prefix, ...]:
    return () if text == "primary" else _prefixes(text)


def _listen(port: int) -> Callable[[str], Any]:
    """An address, with ``port`` if it names none. Empty disables, as kube-proxy's flags have it."""

    def parse(text: str) -> tuple[IP, int] | object:
        if not text:
            return _DISABLED
        try:
            address, number = parse_socket(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return _DISABLED if number == 0 else (address, number or port)

    return parse


def _folder(text: str) -> str:
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a folder")
    return text


def _devices(text: str) -> tuple[str, ...]:
    """A trailing ``+`` as iptables has it, since a shell leaves it alone."""
    names = text.split(",")
    for name in names:
        _interface(name.removesuffix("+"))
    return tuple(f"{name[:-1]}*" if name.endswith("+") else name for name in names)


def _boolean(text: str) -> bool:
    """As strconv.ParseBool of Go reads it, for command lines that were kube-proxy's."""
    if text not in ("1", "t", "T", "true", "TRUE", "True", "0", "f", "F", "false", "FALSE", "False"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text[0] in "1tT"


def _interface(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not the name of a network interface")
    return text


def _period(text: str) -> float:
    if (seconds := _seconds(text)) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} would be all the time")
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = go_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not 0 <= seconds <= _LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and a year")
    return seconds
