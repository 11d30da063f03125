"""kube-proxy's file, as clusters have it and as nobody should."""

import dataclasses
import json
import os
import re
from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest

from pyproxy.configuration import LARGEST, BadConfiguration, Configuration, Ignored, Ipvs, parse, read
from pyproxy.host import DetectLocal
from pyproxy.kube_proxy_configuration import KubeProxyConfiguration

CONNTRACK = "pyproxy does not set it; set net.netfilter.nf_conntrack_* in /etc/sysctl.d of the node"
DATA = Path(__file__).parent / "data"
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def of(body: str = "", mode: str | None = None) -> Configuration:
    return parse((HEAD + body).encode(), mode)


def mistakes(text: str | bytes) -> list[str]:
    with pytest.raises(BadConfiguration) as caught:
        parse(text.encode() if isinstance(text, str) else text)
    assert str(caught.value) == f"configuration: {'; '.join(map(str, caught.value.mistakes))}"
    return [str(mistake) for mistake in caught.value.mistakes]


def test_the_file_of_kubeadm_works_as_it_is() -> None:
    expected = Configuration(kubeconfig=Path("/var/lib/kube-proxy/kubeconfig.conf"), cluster_cidrs=("10.244.0.0/16",))  # type: ignore[arg-type]
    assert read(DATA / "kubeadm-config.conf") == expected


def test_the_file_of_kind_works_as_it_is() -> None:
    expected = Configuration(
        mode="nftables",
        kubeconfig=Path("/var/lib/kube-proxy/kubeconfig.conf"),
        cluster_cidrs=("10.244.0.0/16", "fd00:10:244::/56"),  # type: ignore[arg-type]
        ignored=(Ignored("conntrack.tcpBeLiberal", 15, CONNTRACK),),
    )
    assert read(DATA / "kind-config.conf") == expected


def test_a_file_in_json_indented_by_tabs_works_as_it_is() -> None:
    expected = Configuration(
        mode="iptables",
        kubeconfig=Path("/var/lib/kube-proxy/kubeconfig"),
        metrics_address=("0.0.0.0", 10249),  # type: ignore[arg-type]
        ignored=(Ignored("oomScoreAdj", 38, "it is for what starts pyproxy to set"),),
    )
    assert read(DATA / "managed-config.json") == expected


def test_a_file_may_say_nothing_but_what_it_is() -> None:
    assert of() == Configuration()


FIELDS = re.findall(
    r"\S+",
    """
apiVersion kind featureGates clientConnection.kubeconfig clientConnection.acceptContentTypes
clientConnection.contentType clientConnection.qps clientConnection.burst logging.format logging.flushFrequency
logging.verbosity logging.vmodule.filePattern logging.vmodule.verbosity logging.options.text.splitStream
logging.options.text.infoBufferSize logging.options.json.splitStream logging.options.json.infoBufferSize
hostnameOverride bindAddress healthzBindAddress metricsBindAddress bindAddressHardFail enableProfiling
showHiddenMetricsForVersion mode iptables.masqueradeBit iptables.masqueradeAll iptables.localhostNodePorts
iptables.syncPeriod iptables.minSyncPeriod ipvs.syncPeriod ipvs.minSyncPeriod ipvs.scheduler ipvs.excludeCIDRs
ipvs.strictARP ipvs.tcpTimeout ipvs.tcpFinTimeout ipvs.udpTimeout nftables.masqueradeBit nftables.masqueradeAll
nftables.syncPeriod nftables.minSyncPeriod winkernel.networkName winkernel.sourceVip winkernel.enableDSR
winkernel.rootHnsEndpointName winkernel.forwardHealthCheckVip detectLocalMode detectLocal.bridgeInterface
detectLocal.interfaceNamePrefix clusterCIDR nodePortAddresses oomScoreAdj conntrack.maxPerCore conntrack.min
conntrack.tcpEstablishedTimeout conntrack.tcpCloseWaitTimeout conntrack.tcpBeLiberal conntrack.udpTimeout
conntrack.udpStreamTimeout configSyncPeriod portRange windowsRunAsService
""",
)


def names(kind: Any) -> list[str]:
    inner = get_args(kind)[0] if get_origin(kind) is list else kind
    if not (isinstance(inner, type) and issubclass(inner, msgspec.Struct)):
        return [""]
    fields = msgspec.structs.fields(inner)
    return [f"{field.encode_name}.{rest}".rstrip(".") for field in fields for rest in names(field.type)]


def test_the_fields_are_those_of_kube_proxy() -> None:
    assert sorted(names(KubeProxyConfiguration)) == sorted(FIELDS)


@pytest.mark.parametrize("field", sorted({field.split(".")[0] for field in FIELDS} - {"apiVersion", "kind"}))
def test_null_means_the_default(field: str) -> None:
    assert of(f"{field}: null\n") == Configuration()


@pytest.mark.parametrize("field", [field for field in FIELDS if "." in field and "vmodule" not in field])
def test_null_in_a_section_means_the_default(field: str) -> None:
    *sections, name = field.split(".")
    assert of("".join(f"{section}: {{" for section in sections) + f"{name}: null" + "}" * len(sections)) == of()


VALUES: list[tuple[str, str, Any]] = [
    ("mode: ''", "mode", "auto"),
    ("mode: ebpf", "mode", "ebpf"),
    ("mode: my-plugin.v2", "mode", "my-plugin.v2"),
    ("clientConnection: {kubeconfig: ''}", "kubeconfig", None),
    ("hostnameOverride: ' Node-A.Example '", "hostname_override", "node-a.example"),
    ("bindAddress: '::'", "healthz_address", ("::", 10256)),
    ("bindAddress: '::'", "metrics_address", ("::1", 10249)),
    ("bindAddress: 'fd00::1'", "healthz_address", ("::", 10256)),
    ("bindAddress: 192.0.2.1", "healthz_address", ("0.0.0.0", 10256)),
    ("bindAddress: ''", "metrics_address", ("127.0.0.1", 10249)),
    ("healthzBindAddress: 192.0.2.1", "healthz_address", ("192.0.2.1", 10256)),
    ("healthzBindAddress: 192.0.2.1:80", "healthz_address", ("192.0.2.1", 80)),
    ("healthzBindAddress: 0.0.0.0:0", "healthz_address", None),
    ("healthzBindAddress: '[::]:65535'", "healthz_address", ("::", 65535)),
    ("healthzBindAddress: '[127.0.0.1]:80'", "healthz_address", ("127.0.0.1", 80)),
    ("metricsBindAddress: '0:0:0:0:0:0:0:1'", "metrics_address", ("::1", 10249)),
    ("metricsBindAddress: 'fd00::1:80'", "metrics_address", ("fd00::1:80", 10249)),
    ("metricsBindAddress: '[::1]:0'", "metrics_address", None),
    ("bindAddressHardFail: true", "bind_address_hard_fail", True),
    ("detectLocalMode: ''", "detect_local", DetectLocal.CLUSTER_CIDR),
    ("detectLocalMode: NodeCIDR", "detect_local", DetectLocal.NODE_CIDR),
    ("detectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: br0}", "bridge_interface", "br0"),
    ("detectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: v}", "interface_name_prefix", "v"),
    ("clusterCIDR: ''", "cluster_cidrs", ()),
    ("clusterCIDR: 10.1.2.3/16,fd00::1/64", "cluster_cidrs", ("10.1.0.0/16", "fd00::/64")),
    ("nodePortAddresses: []", "node_port_addresses", None),
    ("nodePortAddresses: [primary]", "node_port_addresses", ()),
    ("nodePortAddresses: [10.0.0.0/8, 'fd00::/8']", "node_port_addresses", ("10.0.0.0/8", "fd00::/8")),
    ("logging: {verbosity: 4}", "verbosity", 4),
    ("logging: {format: json}", "log_format", "json"),
    ("logging: {format: ''}", "log_format", "text"),
    ("ipvs: {scheduler: ''}", "ipvs", Ipvs()),
    (
        "ipvs: {scheduler: lc, excludeCIDRs: [10.0.0.0/8], strictARP: true, tcpTimeout: 1m, tcpFinTimeout: 2s, "
        "udpTimeout: 3ms}",
        "ipvs",
        Ipvs("lc", ("10.0.0.0/8",), True, 60.0, 2.0, 0.003),  # type: ignore[arg-type]
    ),
    ("nftables: {syncPeriod: 876000h}", "sync_period", 366 * 86400.0),
    ("nftables: {syncPeriod: 50ms}", "min_sync_period", 0.05),
    ("---\nmode: ipvs\n---", "mode", "ipvs"),
]


@pytest.mark.parametrize(
    ("body", "name", "expected"), VALUES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_value_means_what_it_means_to_kube_proxy(body: str, name: str, expected: Any) -> None:
    text = f"---\n{HEAD}{body[4:]}\n" if body.startswith("---") else f"{HEAD}{body}\n"
    assert getattr(parse(text.encode()), name) == expected


PERIODS = (
    "iptables: {syncPeriod: 11s, minSyncPeriod: 1s}\nipvs: {syncPeriod: 12s, minSyncPeriod: 2s}\n"
    "nftables: {syncPeriod: 13s, minSyncPeriod: 3s}\n"
)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("iptables", (11.0, 1.0)),
        ("ipvs", (12.0, 2.0)),
        ("nftables", (13.0, 3.0)),
        ("ebpf", (13.0, 3.0)),
        ("userspace", (13.0, 3.0)),
        ("", (13.0, 3.0)),
    ],
)
def test_periods_are_those_of_the_section_of_the_mode(mode: str, expected: tuple[float, float]) -> None:
    for configuration in (of(f"{PERIODS}mode: '{mode}'"), of(f"{PERIODS}mode: other", mode or "auto")):
        assert (configuration.sync_period, configuration.min_sync_period) == expected
        assert configuration.mode == (mode or "auto")


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables", "ebpf", "userspace", "auto"])
@pytest.mark.parametrize("section", ["iptables", "nftables"])
def test_masquerade_all_is_that_of_the_section_of_the_mode(mode: str, section: str) -> None:
    obeys = {"iptables": ["iptables"], "ipvs": ["iptables"], "nftables": ["nftables"]}.get(mode, [section])
    assert of(f"mode: {mode}\n{section}: {{masqueradeAll: true}}").masquerade_all is (section in obeys)


MISTAKES: list[tuple[str, str]] = [
    ("nftablez: {}", "nftablez: there is no such field; did you mean nftables?"),
    ("Mode: ipvs", "Mode: there is no such field; did you mean mode?"),
    ("ipvs: {strictArp: true}", "ipvs.strictArp: there is no such field; did you mean strictARP?"),
    ("metadata: {}", "metadata: there is no such field"),
    ("1: 2", "1: there is no such field"),
    ("'a.b\\n': 2", "'a.b\\\\n': there is no such field"),
    ("nftables: 3", "nftables: 3 is not a group of fields"),
    ("nftables: [a]", "nftables: a list is not a group of fields"),
    ("featureGates: 3", "featureGates: 3 is not a group of fields"),
    ("featureGates: {A: 1}", "featureGates.A: 1 is not true or false"),
    ("logging: {vmodule: {}}", "logging.vmodule: a group of fields is not a list"),
    ("logging: {vmodule: [{verbosity: x}]}", "logging.vmodule[0].verbosity: 'x' is not a whole number"),
    ("logging: {verbosity: -1}", "logging.verbosity: -1 is not within 0 to 2147483647"),
    ("logging: {verbosity: true}", "logging.verbosity: true is not a whole number"),
    ("logging: {format: xml}", "logging.format: 'xml' is not text or json"),
    ("logging: {flushFrequency: -5}", "logging.flushFrequency: -5 is not within 0 to 9223372036854775807"),
    ("logging: {flushFrequency: x}", "logging.flushFrequency: 'x' is not a duration such as 30s or 1m30s"),
    (
        "logging: {options: {json: {infoBufferSize: much}}}",
        "logging.options.json.infoBufferSize: 'much' is not a quantity such as 0 or 64Ki",
    ),
    ("mode: 3", "mode: 3 is not text; put it in quotes"),
    ("mode: 'a b'", "mode: 'a b' is not the name of a mode such as nftables"),
    ("hostnameOverride: ' '", "hostnameOverride: ' ' is not the name of a node"),
    (f"hostnameOverride: {'a' * 254}", f"hostnameOverride: '{'a' * 60}\\u2026' is not the name of a node"),
    ("hostnameOverride: a_b", "hostnameOverride: 'a_b' is not the name of a node"),
    ("clientConnection: {kubeconfig: [a]}", "clientConnection.kubeconfig: a list is not text"),
    ('clientConnection: {kubeconfig: "a\\0"}', "clientConnection.kubeconfig: 'a\\x00' is not a path"),
    ("clientConnection: {qps: fast}", "clientConnection.qps: 'fast' is not a number"),
    ("clientConnection: {qps: true}", "clientConnection.qps: true is not a number"),
    ("clientConnection: {qps: .nan}", "clientConnection.qps: nan is not a number"),
    ("clientConnection: {burst: -1}", "clientConnection.burst: -1 is not within 0 to 2147483647"),
    ("bindAddress: here", "bindAddress: 'here' is not an IP address"),
    ("bindAddressHardFail: 'true'", "bindAddressHardFail: 'true' is not true or false"),
    *(
        (f"{field}: '{text}'", f"{field}: '{text}' is not an address such as 0.0.0.0:10256 or [::]:10256")
        for field in ("healthzBindAddress", "metricsBindAddress")
        for text in (":80", "[::]", "localhost:80", "0.0.0.0:", "0.0.0.0:65536", "0.0.0.0:1:2", "[::]80", "[::1%lo]:80")
    ),
    ("detectLocalMode: nodecidr",
     "detectLocalMode: 'nodecidr' is not ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix"),
    ("detectLocalMode: BridgeInterface", "detectLocalMode: BridgeInterface needs detectLocal.bridgeInterface"),
    ("detectLocalMode: InterfaceNamePrefix",
     "detectLocalMode: InterfaceNamePrefix needs detectLocal.interfaceNamePrefix"),
    ("{detectLocalMode: BridgeInterface, detectLocal: {bridgeInterface: a/b}}",
     "detectLocal.bridgeInterface: 'a/b' is not the name of a network interface"),
    ("clusterCIDR: 10.0.0.0", "clusterCIDR: '10.0.0.0' is not a range such as 10.0.0.0/8 or fd00::/64"),
    ("clusterCIDR: '10.0.0.0/8,'", "clusterCIDR: '' is not a range such as 10.0.0.0/8 or fd00::/64"),
    ("nodePortAddresses: primary", "nodePortAddresses: 'primary' is not a list"),
    ("nodePortAddresses: [10.0.0.0/8, x]", "nodePortAddresses[1]: 'x' is not a range such as 10.0.0.0/8 or fd00::/64"),
    ("nodePortAddresses: [null]", "nodePortAddresses[0]: null is not text"),
    ("nodePortAddresses: [primary, 10.0.0.0/8]", "nodePortAddresses: primary must be the only entry"),
    ("oomScoreAdj: 1001", "oomScoreAdj: 1001 is not within -1000 to 1000"),
    ("iptables: {masqueradeBit: 32}", "iptables.masqueradeBit: 32 is not within 0 to 31"),
    (f"iptables: {{masqueradeBit: 0x{'f' * 9000}}}", "iptables.masqueradeBit: a huge number is not within 0 to 31"),
    ("iptables: {syncPeriod: 30}", "iptables.syncPeriod: 30 is not a duration such as 30s or 1m30s"),
    ("iptables: {syncPeriod: ''}", "iptables.syncPeriod: '' is not a duration such as 30s or 1m30s"),
    ("iptables: {syncPeriod: -1s}", "iptables.syncPeriod: '-1s' is negative"),
    ("nftables: {minSyncPeriod: 1m}", "nftables.minSyncPeriod: it is longer than nftables.syncPeriod (30s)"),
    ("nftables: {minSyncPeriod: 1m, syncPeriod: x}",
     "nftables.syncPeriod: 'x' is not a duration such as 30s or 1m30s"),
    ("mode: ipvs\nipvs: {syncPeriod: 1s, minSyncPeriod: 2s}",
     "ipvs.minSyncPeriod: it is longer than ipvs.syncPeriod (1s)"),
    ("ipvs: {scheduler: 'r r'}", "ipvs.scheduler: 'r r' is not the name of an ipvs scheduler such as rr"),
    ("ipvs: {excludeCIDRs: [1]}", "ipvs.excludeCIDRs[0]: 1 is not text; put it in quotes"),
    ("conntrack: {min: 1.5}", "conntrack.min: 1.5 is not a whole number"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), MISTAKES, ids=lambda text: text[:60])
def test_a_wrong_value_is_named_with_line_and_field(body: str, expected: str) -> None:
    text = f"{{{', '.join(HEAD.splitlines())}, {body[1:]}" if body.startswith("{") else f"{HEAD}\n# why\n{body}"
    found = mistakes(text)
    line = 5 + body.count("\n") if not body.startswith("{") else 1
    assert found == [f"line {line}: {expected}"]


def test_every_mistake_is_told_at_once_in_order_of_lines() -> None:
    body = "nftables:\n  syncPeriod: soon\n  masqueradeAll: 3\nmod: x\niptables:\n- a\nclusterCIDR: y\n"
    assert [mistake.split(": ")[:2] for mistake in mistakes(HEAD + body)] == [
        ["line 4", "nftables.syncPeriod"],
        ["line 5", "nftables.masqueradeAll"],
        ["line 6", "mod"],
        ["line 7", "iptables"],
        ["line 9", "clusterCIDR"],
    ]


def test_the_line_of_a_field_is_that_of_its_name() -> None:
    assert mistakes(HEAD + "nftablez:\n\n  syncPeriod: 1s\n")[0].startswith("line 3: nftablez: ")
    text = json.dumps(
        {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", "ipvs": 3}, indent="\t"
    )
    assert mistakes(text) == ["line 4: ipvs: 3 is not a group of fields"]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("mode: ipvs\nmode: ipvs\n", "line 4: mode: it is there twice, first in line 3"),
        ("ipvs:\n  scheduler: rr\n  strictARP: true\n  scheduler: rr\n",
         "line 6: ipvs.scheduler: it is there twice, first in line 4"),
        ("logging:\n  vmodule:\n  - filePattern: a\n    filePattern: b\n",
         "line 6: logging.vmodule[0].filePattern: it is there twice, first in line 5"),
        ("featureGates: {A: true, 'A': true}\n", "line 3: featureGates.A: it is there twice, first in line 3"),
    ],
)  # fmt: skip
def test_a_field_that_is_there_twice_is_a_mistake(body: str, expected: str) -> None:
    assert mistakes(HEAD + body) == [expected]


def test_a_merged_field_is_not_there_twice() -> None:
    body = "nftables: &base {syncPeriod: 5s, minSyncPeriod: 1s}\nipvs:\n  <<: *base\n  syncPeriod: 6s\n"
    configuration = of(body, "ipvs")
    assert (configuration.sync_period, configuration.min_sync_period) == (6.0, 1.0)


V1ALPHA1 = "kubeproxy.config.k8s.io/v1alpha1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["line 1: there is nothing in it"]),
        ("# a\n---\n", ["line 1: there is nothing in it"]),
        ("a", ["line 1: there are no fields in it"]),
        ("\n- a", ["line 2: there are no fields in it"]),
        ("mode: x\n", [f"line 1: apiVersion: it is missing; write {V1ALPHA1}",
                       "line 1: kind: it is missing; write KubeProxyConfiguration"]),
        ("apiVersion: v1\nkind: ConfigMap\ndata: {}\n", [f"line 1: apiVersion: 'v1' is not {V1ALPHA1}",
                                                        "line 2: kind: 'ConfigMap' is not KubeProxyConfiguration"]),
        (f"{HEAD}---\n{HEAD}", ["line 4: there is a second document; keep one"]),
        (f"---\n---\n{HEAD}mode: 3\n", ["line 5: mode: 3 is not text; put it in quotes"]),
        (f"{HEAD}mode: [\n", ["line 4: did not find expected node content"]),
        (f"{HEAD}mode: \0\n", ["line 3: control characters are not allowed (character 0)"]),
        (f"{HEAD}a: {'[' * 200}{']' * 200}", ["line 3: nested more than 100 deep"]),
        ("#" * (LARGEST + 1), ["line 1: it is longer than 256 KiB"]),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else "",
)  # fmt: skip
def test_a_text_that_is_something_else_is_told_as_such(text: str, expected: list[str]) -> None:
    assert mistakes(text) == expected


def test_no_text_makes_more_mistakes_than_can_be_read() -> None:
    assert len(mistakes(HEAD + "".join(f"x{number}: 1\n" for number in range(900)))) == 50
    assert len(mistakes(HEAD + "mode: ipvs\n" * 900)) == 50


def test_a_flag_goes_over_the_file() -> None:
    assert dataclasses.replace(of("logging: {verbosity: 4}"), verbosity=1).verbosity == 1


@pytest.mark.parametrize("path", ["absent", "folder", "pipe", "loop", "a.conf/b"])
def test_a_file_that_can_not_be_read_is_an_error_in_one_sentence(tmp_path: Path, path: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "a.conf").touch()
    with pytest.raises(BadConfiguration) as caught:
        read(tmp_path / path)
    assert str(caught.value).startswith(f"can't read {tmp_path / path}: ")
    assert "line" not in str(caught.value)


def test_a_file_is_named_by_its_mistakes(tmp_path: Path) -> None:
    (tmp_path / "a.conf").write_text(HEAD + "mode: 3\n")
    with pytest.raises(BadConfiguration) as caught:
        read(tmp_path / "a.conf")
    assert str(caught.value) == f"{tmp_path / 'a.conf'}: line 3: mode: 3 is not text; put it in quotes"


def test_a_file_without_end_is_not_read_to_its_end() -> None:
    with pytest.raises(BadConfiguration):
        read(Path("/dev/zero"))
