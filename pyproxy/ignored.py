"""Which fields of a KubeProxyConfiguration ask for something that pyproxy does not do, and why it does not.

A user who moves from kube-proxy should learn from the log, not from an incident, what has no effect any more.
"""

from typing import Any, NamedTuple

import msgspec

from pyproxy.decoder import Decoder
from pyproxy.kube_proxy_configuration import KubeProxyConfiguration, section_of, sections_of_masquerade_all


class Ignored(NamedTuple):
    field: str
    line: int
    reason: str


_WINDOWS = "it is for Windows"
_JSON = "the API server is asked for JSON"
_RATE = "requests to the API server are few, and not limited"
_MARKS = dict.fromkeys(("iptables", "nftables"), "what is to be masqueraded is always marked with bit 14 (0x4000)")
"""What a mode does instead of obeying masqueradeBit."""
_MARK = "pyproxy uses a mark of its own, or none"
_LOG = "the log is written at once, to one place"
_CONNTRACK = "pyproxy does not set it; set net.netfilter.nf_conntrack_* in /etc/sysctl.d of the node"

_WITHOUT_EFFECT: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("feature_gates", ({},), "pyproxy has no feature gates"),
    ("client_connection.accept_content_types", ("", "application/json"), _JSON),
    ("client_connection.content_type", ("", "application/json", "application/vnd.kubernetes.protobuf"), _JSON),
    ("client_connection.qps", (0, 5), _RATE),
    ("client_connection.burst", (0, 10), _RATE),
    ("logging.flush_frequency", (0, 5), _LOG),
    ("logging.vmodule", ([],), "verbosity is the same everywhere"),
    ("logging.options.text.split_stream", (False,), _LOG),
    ("logging.options.text.info_buffer_size", ("0",), _LOG),
    ("logging.options.json.split_stream", (False,), _LOG),
    ("logging.options.json.info_buffer_size", ("0",), _LOG),
    ("bind_address", (None, "0.0.0.0", "::"), "only its family counts; node addresses are those of the Node object"),  # noqa: S104
    ("enable_profiling", (False,), "there is no profiler to serve"),
    ("show_hidden_metrics_for_version", ("",), "no metric is hidden"),
    ("iptables.localhost_node_ports", (False,), "node ports never answer on loopback (CVE-2020-8558)"),
    ("winkernel.network_name", ("",), _WINDOWS),
    ("winkernel.source_vip", ("",), _WINDOWS),
    ("winkernel.enable_dsr", (False,), _WINDOWS),
    ("winkernel.root_hns_endpoint_name", ("",), _WINDOWS),
    ("winkernel.forward_health_check_vip", (False,), _WINDOWS),
    ("windows_run_as_service", (False,), _WINDOWS),
    ("oom_score_adj", (-999,), "it is for what starts pyproxy to set"),
    ("conntrack.max_per_core", (0, 32 * 1024), _CONNTRACK),
    ("conntrack.min", (0, 128 * 1024), _CONNTRACK),
    ("conntrack.tcp_established_timeout", (0, 86400), _CONNTRACK),
    ("conntrack.tcp_close_wait_timeout", (0, 3600), _CONNTRACK),
    ("conntrack.tcp_be_liberal", (False,), _CONNTRACK),
    ("conntrack.udp_timeout", (0,), _CONNTRACK),
    ("conntrack.udp_stream_timeout", (0,), _CONNTRACK),
    ("config_sync_period", (0, 900), "the API server is watched, not asked again and again"),
    ("port_range", ("",), "it has no effect in kube-proxy either"),
)
"""Fields, values of them that ask for nothing (zero and kube-proxy's default), and why others are not obeyed."""

_OF_MODES: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("iptables.masquerade_bit", (14,)),
    ("iptables.masquerade_all", (False,)),
    ("iptables.sync_period", (0, 30)),
    ("iptables.min_sync_period", (0, 1)),
    ("ipvs.sync_period", (0, 30)),
    ("ipvs.min_sync_period", (0,)),
    ("ipvs.scheduler", ("", "rr")),
    ("ipvs.exclude_cidrs", ([],)),
    ("ipvs.strict_arp", (False,)),
    ("ipvs.tcp_timeout", (0,)),
    ("ipvs.tcp_fin_timeout", (0,)),
    ("ipvs.udp_timeout", (0,)),
    ("nftables.masquerade_bit", (14,)),
    ("nftables.masquerade_all", (False,)),
    ("nftables.sync_period", (0, 30)),
    ("nftables.min_sync_period", (0, 1)),
)
"""Likewise, fields that count in some modes. A flag may name another mode than the file, whose section then rests."""


def ignored(decoder: Decoder, file: KubeProxyConfiguration, mode: str) -> tuple[Ignored, ...]:
    """In order of their lines."""
    of_modes = ((path, harmless, _why_not(path, mode)) for path, harmless in _OF_MODES)
    result = []
    for path, harmless, reason in (*_WITHOUT_EFFECT, *of_modes):
        value: Any = file
        steps: tuple[str, ...] = ()
        for name in path.split("."):
            (field,) = (field for field in msgspec.structs.fields(value) if field.name == name)
            value, steps = getattr(value, name), (*steps, field.encode_name)
        if reason and value not in harmless:
            result.append(Ignored(".".join(steps), decoder.line_of(steps), reason))
    return tuple(sorted(result, key=lambda field: field.line))


def _why_not(path: str, mode: str) -> str:
    """Empty if ``mode`` goes by that field."""
    section, field = path.split(".")
    counting = sections_of_masquerade_all(mode) if field.startswith("masquerade") else (section_of(mode),)
    if mode == "auto" and section == "ipvs" and not field.endswith("sync_period"):
        return ""  # it may yet become that mode
    if section not in counting:
        return f"mode {mode} goes by the section {counting[0]}"
    return _MARKS.get(mode, _MARK) if field == "masquerade_bit" else ""
