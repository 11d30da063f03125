"""KubeProxyConfiguration of kubeproxy.config.k8s.io/v1alpha1, field by field as kube-proxy 1.36 has it.

Each value is checked and made what it means while it is read, so that no text of the file is looked at later. The
defaults here are the zero values of Go, which mean the default, or kube-proxy's defaults where zero means zero.
"""

import math
import re
from collections.abc import Callable
from typing import Annotated, Any

import msgspec

from pyproxy.address import IP, Prefix, parse_ip, parse_prefix, parse_socket, shorten
from pyproxy.decoder import Reads, plain, shown
from pyproxy.duration import go_duration

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"

Address = tuple[IP, int | None]
"""Where to listen; the default port if None is given, not at all if 0."""

_QUANTITY = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")


def _seconds(value: Any) -> float:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a duration such as 30s or 1m30s")
    seconds = go_duration(value)
    if seconds < 0:
        raise ValueError(f"{shorten(value)} is negative")
    return seconds


def _flush_frequency(value: Any) -> float:
    """A duration, or nanoseconds as a number, which kubeadm still writes."""
    return _within(0, 2**63 - 1)(value) / 1e9 if isinstance(value, int) else _seconds(value)


def _quantity(value: Any) -> str:
    """resource.Quantity as text, which may be a number in the file; kubeadm writes ``"0"``."""
    text = value if isinstance(value, str) else shown(value)
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"{shown(value)} is not a quantity such as 0 or 64Ki")
    return text


def _within(least: int, most: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        number: int = plain(value, int)
        if not least <= number <= most:
            raise ValueError(f"{shown(number)} is not within {least} to {most}")
        return number

    return read


def _number(value: Any) -> float:
    number: float = plain(value, float)
    if not math.isfinite(number):
        raise ValueError(f"{shown(value)} is not a number")
    return number


def _ip(value: Any) -> IP | None:
    text = plain(value, str)
    return parse_ip(text) if text else None


def _address(value: Any) -> Address | None:
    """``IP``, ``IP:port`` or ``[IP]:port``, as kube-proxy's IPPortVar; empty means the default."""
    text = plain(value, str)
    return parse_socket(text) if text else None


def _prefix(value: Any) -> Prefix:
    return parse_prefix(plain(value, str))


def _prefixes(value: Any) -> tuple[Prefix, ...]:
    text = plain(value, str)
    return tuple(parse_prefix(part) for part in text.split(",")) if text else ()


def _prefix_or_primary(value: Any) -> Prefix | None:
    """None for ``primary``."""
    return None if value == "primary" else _prefix(value)


def _matching(pattern: str, what: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        text: str = plain(value, str)
        if text and not re.fullmatch(pattern, text):
            raise ValueError(f"{shorten(text)} is not {what}")
        return text

    return read


def _node_name(value: Any) -> str:
    """As kube-proxy: without white space around it, in small letters."""
    text: str = plain(value, str)
    name = text.strip().lower()
    if text and (len(name) > 253 or not re.fullmatch(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", name)):
        raise ValueError(f"{shorten(text)} is not the name of a node")
    return name


def _path(value: Any) -> str:
    text: str = plain(value, str)
    if "\0" in text:
        raise ValueError(f"{shorten(text)} is not a path")
    return text


SCHEDULER = r"[a-z0-9_]{1,15}"
"""The name of an IPVS scheduler, IP_VS_SCHEDNAME_MAXLEN of linux/ip_vs.h, less the end."""

Bit = Annotated[int, Reads(_within(0, 31))]
Count = Annotated[int, Reads(_within(0, 2**31 - 1))]
Seconds = Annotated[float, Reads(_seconds)]
Interface = Annotated[str, Reads(_matching(r"[A-Za-z0-9_.-]{1,15}", "the name of a network interface"))]
_OneOrTheOther = Annotated[str, Reads(_matching("text|json", "text or json"))]
_LocalMode = Annotated[
    str,
    Reads(
        _matching(
            "ClusterCIDR|NodeCIDR|BridgeInterface|InterfaceNamePrefix",
            "ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
        )
    ),
]


class ClientConnection(msgspec.Struct, rename="camel"):
    kubeconfig: Annotated[str, Reads(_path)] = ""
    accept_content_types: str = ""
    content_type: str = ""
    qps: Annotated[float, Reads(_number)] = 0.0
    burst: Count = 0


class LogOutput(msgspec.Struct, rename="camel"):
    split_stream: bool = False
    info_buffer_size: Annotated[str, Reads(_quantity)] = "0"


class LogOptions(msgspec.Struct, rename="camel"):
    text: LogOutput = msgspec.field(default_factory=LogOutput)
    json: LogOutput = msgspec.field(default_factory=LogOutput)


class LogPattern(msgspec.Struct, rename="camel"):
    file_pattern: str = ""
    verbosity: Count = 0


class Logging(msgspec.Struct, rename="camel"):
    format: _OneOrTheOther = ""
    flush_frequency: Annotated[float, Reads(_flush_frequency)] = 0.0
    verbosity: Count = 0
    vmodule: list[LogPattern] = []
    options: LogOptions = msgspec.field(default_factory=LogOptions)


class Nftables(msgspec.Struct, rename="camel"):
    masquerade_bit: Bit = 14
    masquerade_all: bool = False
    sync_period: Seconds = 0.0
    min_sync_period: Seconds = 0.0


class Iptables(Nftables, rename="camel"):
    localhost_node_ports: bool = False
    """None in kube-proxy, where it means true; here only a true that is written down is a wish."""


class IpvsSection(msgspec.Struct, rename="camel"):
    sync_period: Seconds = 0.0
    min_sync_period: Seconds = 0.0
    scheduler: Annotated[str, Reads(_matching(SCHEDULER, "the name of an ipvs scheduler such as rr"))] = ""
    exclude_cidrs: list[Annotated[Prefix, Reads(_prefix)]] = msgspec.field(default_factory=list, name="excludeCIDRs")
    strict_arp: bool = msgspec.field(default=False, name="strictARP")
    tcp_timeout: Seconds = 0.0
    tcp_fin_timeout: Seconds = 0.0
    udp_timeout: Seconds = 0.0


class Winkernel(msgspec.Struct, rename="camel"):
    network_name: str = ""
    source_vip: str = ""
    enable_dsr: bool = msgspec.field(default=False, name="enableDSR")
    root_hns_endpoint_name: str = ""
    forward_health_check_vip: bool = False


class DetectLocalSection(msgspec.Struct, rename="camel"):
    bridge_interface: Interface = ""
    interface_name_prefix: Interface = ""


class ConntrackSection(msgspec.Struct, rename="camel"):
    """Zero leaves what the kernel has; null is kube-proxy's default, which for four fields is not zero."""

    max_per_core: Count = 32 * 1024
    min: Count = 128 * 1024
    tcp_established_timeout: Seconds = 86400.0
    tcp_close_wait_timeout: Seconds = 3600.0
    tcp_be_liberal: bool = False
    udp_timeout: Seconds = 0.0
    udp_stream_timeout: Seconds = 0.0


class KubeProxyConfiguration(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    feature_gates: dict[str, bool] = {}
    client_connection: ClientConnection = msgspec.field(default_factory=ClientConnection)
    logging: Logging = msgspec.field(default_factory=Logging)
    hostname_override: Annotated[str, Reads(_node_name)] = ""
    bind_address: Annotated[IP | None, Reads(_ip)] = None
    healthz_bind_address: Annotated[Address | None, Reads(_address)] = None
    metrics_bind_address: Annotated[Address | None, Reads(_address)] = None
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: Annotated[
        str, Reads(_matching(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", "the name of a mode such as nftables"))
    ] = ""
    iptables: Iptables = msgspec.field(default_factory=Iptables)
    ipvs: IpvsSection = msgspec.field(default_factory=IpvsSection)
    nftables: Nftables = msgspec.field(default_factory=Nftables)
    winkernel: Winkernel = msgspec.field(default_factory=Winkernel)
    detect_local_mode: _LocalMode = ""
    detect_local: DetectLocalSection = msgspec.field(default_factory=DetectLocalSection)
    cluster_cidr: Annotated[tuple[Prefix, ...], Reads(_prefixes)] = msgspec.field(default=(), name="clusterCIDR")
    node_port_addresses: list[Annotated[Prefix | None, Reads(_prefix_or_primary)]] = []
    oom_score_adj: Annotated[int, Reads(_within(-1000, 1000))] = -999
    conntrack: ConntrackSection = msgspec.field(default_factory=ConntrackSection)
    config_sync_period: Seconds = 0.0
    port_range: str = ""
    windows_run_as_service: bool = False


def section_of(mode: str) -> str:
    """The section that a mode takes its periods from. Those that kube-proxy does not have, ``auto`` among them, share
    that of its newest mode."""
    return mode if mode in ("iptables", "ipvs") else "nftables"


def sections_of_masquerade_all(mode: str) -> tuple[str, ...]:
    """Of which any asks for it: kube-proxy keeps that of ipvs with iptables; the modes it does not have go by both."""
    if mode in ("iptables", "ipvs"):
        return ("iptables",)
    return ("nftables",) if mode == "nftables" else ("iptables", "nftables")
