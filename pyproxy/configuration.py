"""What kube-proxy's own configuration file means here: every value resolved, and what has no effect said.

What kube-proxy does with the two addresses, from its defaults.go, validation.go and flags: in the file an empty
address is the default one, and port 0 is refused, so that no file can switch a server off. The flags can: empty
disables. Here port 0 disables, in file and flags alike.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pyproxy.address import IP, Family, Prefix, family_of
from pyproxy.decoder import Decoder, Mistake, shown
from pyproxy.host import DetectLocal
from pyproxy.ignored import Ignored as Ignored
from pyproxy.ignored import ignored
from pyproxy.kube_proxy_configuration import (
    API_VERSION,
    KIND,
    Address,
    IpvsSection,
    KubeProxyConfiguration,
    Nftables,
    section_of,
    sections_of_masquerade_all,
)
from pyproxy.table import EbpfAlgorithm
from pyproxy.table import Ipvs as Ipvs
from pyproxy.text_file import read_text
from pyproxy.yaml_text import Broken

AUTO = "auto"
LARGEST = 256 * 1024
"""Bytes of a configuration file; kubeadm's has 2,000."""

_HEALTHZ_PORT = 10256
_METRICS_PORT = 10249
_SYNC_PERIOD_S = 30.0
_MIN_SYNC_PERIOD_S = 0.1
_LONGEST_PERIOD_S = 366 * 86400.0  # what is longer is shortened to it: no clock of the controller's goes further

Listen = tuple[IP, int]
"""An address and a port."""


class BadConfiguration(Exception):
    """A file that can't be obeyed. The message is one sentence for the user, with all that is wrong."""

    def __init__(self, name: str, mistakes: tuple[Mistake, ...]) -> None:
        self.mistakes = mistakes
        super().__init__(f"{name}: {'; '.join(map(str, mistakes))}")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Named as in KubeProxyConfiguration. What a flag says instead goes in by `dataclasses.replace`."""

    mode: str = AUTO
    kubeconfig: Path | None = None
    hostname_override: str = ""
    healthz_address: Listen | None = (IP("0.0.0.0"), _HEALTHZ_PORT)  # noqa: S104
    """None: disabled, as is the next one."""
    metrics_address: Listen | None = (IP("127.0.0.1"), _METRICS_PORT)
    bind_address_hard_fail: bool = False
    detect_local: DetectLocal = DetectLocal.CLUSTER_CIDR
    cluster_cidrs: tuple[Prefix, ...] = ()
    bridge_interface: str = ""
    interface_name_prefix: str = ""
    node_port_addresses: tuple[Prefix, ...] | None = None
    """As in HostOptions: None for the node's InternalIP addresses, the empty tuple for ``primary``."""
    masquerade_all: bool = False
    sync_period: float = _SYNC_PERIOD_S
    min_sync_period: float = _MIN_SYNC_PERIOD_S
    verbosity: int = 0
    log_format: Literal["text", "json"] = "text"
    ipvs: Ipvs = field(default_factory=Ipvs)
    userspace_workers: int = 1
    """As in table.Host; kube-proxy has no field for it, so there is but the flag."""
    cgroup: str = ""
    """Only a flag says it: whose sockets mode ebpf serves, by default all of this node."""
    ebpf_algorithm: EbpfAlgorithm = EbpfAlgorithm.RANDOM
    """Only flags say it, and the next ones: as in table.Host."""
    devices: tuple[str, ...] = ()
    map_sizes: tuple[tuple[str, int], ...] = ()
    metrics_per_service: bool = False
    ignored: tuple[Ignored, ...] = ()


def read(path: Path, mode: str | None = None) -> Configuration:
    """The file at ``path``. Raises BadConfiguration."""
    try:
        text = read_text(path, LARGEST)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or str(error)
        raise BadConfiguration(f"can't read {path}", (Mistake(0, "", reason),)) from None
    return parse(text, mode, name=str(path))


def parse(text: bytes, mode: str | None = None, name: str = "configuration") -> Configuration:
    """What ``text`` means, in ``mode`` if a flag names another one than the file. Raises BadConfiguration."""
    if len(text) > LARGEST:
        raise BadConfiguration(name, (Mistake(1, "", f"it is longer than {LARGEST // 1024} KiB"),))
    try:
        decoder = Decoder(text)
    except Broken as broken:
        raise BadConfiguration(name, (Mistake(broken.line, "", broken.reason),)) from None
    configuration = _resolve(decoder, mode)
    if decoder.mistakes:
        raise BadConfiguration(name, decoder.mistakes)
    return configuration


def _resolve(decoder: Decoder, flag: str | None) -> Configuration:
    if not _is_ours(decoder):
        return Configuration()
    file = decoder.decode(KubeProxyConfiguration)
    mode = flag or file.mode or AUTO
    sync_period, min_sync_period = _periods(decoder, file, mode)
    is_ipv6 = file.bind_address is not None and family_of(file.bind_address) is Family.IPV6
    return Configuration(
        mode=mode,
        kubeconfig=Path(file.client_connection.kubeconfig) if file.client_connection.kubeconfig else None,
        hostname_override=file.hostname_override,
        healthz_address=_listen(file.healthz_bind_address, IP("::" if is_ipv6 else "0.0.0.0"), _HEALTHZ_PORT),  # noqa: S104
        metrics_address=_listen(file.metrics_bind_address, IP("::1" if is_ipv6 else "127.0.0.1"), _METRICS_PORT),
        bind_address_hard_fail=file.bind_address_hard_fail,
        detect_local=_detect_local(decoder, file),
        cluster_cidrs=file.cluster_cidr,
        bridge_interface=file.detect_local.bridge_interface,
        interface_name_prefix=file.detect_local.interface_name_prefix,
        node_port_addresses=_node_port_addresses(decoder, file.node_port_addresses),
        masquerade_all=any(getattr(file, name).masquerade_all for name in sections_of_masquerade_all(mode)),
        sync_period=sync_period,
        min_sync_period=min_sync_period,
        verbosity=file.logging.verbosity,
        log_format="json" if file.logging.format == "json" else "text",
        ipvs=_ipvs(file.ipvs),
        ignored=ignored(decoder, file, mode),
    )


def _is_ours(decoder: Decoder) -> bool:
    """Whether it is a KubeProxyConfiguration; else each of its fields would be called unknown."""
    result = True
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if (found := decoder.get(name)) != wanted:
            decoder.complain(
                (name,), f"it is missing; write {wanted}" if found is None else f"{shown(found)} is not {wanted}"
            )
            result = False
    return result


def _listen(address: Address | None, host: IP, port: int) -> Listen | None:
    if address is not None:
        host, port = address[0], port if address[1] is None else address[1]
    return (host, port) if port else None


def _periods(decoder: Decoder, file: KubeProxyConfiguration, mode: str) -> tuple[float, float]:
    name = section_of(mode)
    section: Nftables | IpvsSection = getattr(file, name)
    period = min(section.sync_period or _SYNC_PERIOD_S, _LONGEST_PERIOD_S)
    least = section.min_sync_period or min(_MIN_SYNC_PERIOD_S, period)
    if least > period and not decoder.blames((name, "syncPeriod")):
        decoder.complain((name, "minSyncPeriod"), f"it is longer than {name}.syncPeriod ({period:g}s)")
    return period, least


def _detect_local(decoder: Decoder, file: KubeProxyConfiguration) -> DetectLocal:
    mode = DetectLocal(file.detect_local_mode or DetectLocal.CLUSTER_CIDR)
    section = file.detect_local
    needs = {
        DetectLocal.BRIDGE_INTERFACE: ("bridgeInterface", section.bridge_interface),
        DetectLocal.INTERFACE_NAME_PREFIX: ("interfaceNamePrefix", section.interface_name_prefix),
    }
    field, value = needs.get(mode, ("", "nothing"))
    if not value and not decoder.blames(("detectLocal", field)):
        decoder.complain(("detectLocalMode",), f"{mode.value} needs detectLocal.{field}")
    return mode


def _node_port_addresses(decoder: Decoder, entries: list[Prefix | None]) -> tuple[Prefix, ...] | None:
    """None among ``entries`` is ``primary``."""
    prefixes = tuple(entry for entry in entries if entry is not None)
    if len(prefixes) == len(entries):
        return prefixes or None
    if len(entries) > 1:
        decoder.complain(("nodePortAddresses",), "primary must be the only entry")
    return ()


def _ipvs(section: IpvsSection) -> Ipvs:
    return Ipvs(
        scheduler=section.scheduler or "rr",
        exclude_cidrs=tuple(section.exclude_cidrs),
        strict_arp=section.strict_arp,
        tcp_timeout=section.tcp_timeout,
        tcp_fin_timeout=section.tcp_fin_timeout,
        udp_timeout=section.udp_timeout,
    )
