"""What of kube-proxy's file has no effect, and whether the reason that is given for it is true."""

import pytest

from modes.iptables import ruleset as iptables
from modes.nftables import ruleset as nftables
from pyproxy.ignored import Ignored
from tests.unit.test_configuration import of

NOT_OBEYED: list[tuple[str, str, str]] = [
    ("featureGates: {A: true}", "featureGates", "feature gates"),
    ("clientConnection: {acceptContentTypes: text/plain}", "clientConnection.acceptContentTypes", "JSON"),
    ("clientConnection: {contentType: text/plain}", "clientConnection.contentType", "JSON"),
    ("clientConnection: {qps: 7.5}", "clientConnection.qps", "not limited"),
    ("clientConnection: {burst: 7}", "clientConnection.burst", "not limited"),
    ("logging: {flushFrequency: 7000000000}", "logging.flushFrequency", "at once"),
    ("logging: {vmodule: [{filePattern: a, verbosity: 3}]}", "logging.vmodule", "everywhere"),
    ("logging: {options: {text: {splitStream: true}}}", "logging.options.text.splitStream", "one place"),
    ("logging: {options: {text: {infoBufferSize: 64Ki}}}", "logging.options.text.infoBufferSize", "at once"),
    ("logging: {options: {json: {splitStream: true}}}", "logging.options.json.splitStream", "one place"),
    ("logging: {options: {json: {infoBufferSize: 512}}}", "logging.options.json.infoBufferSize", "at once"),
    ("bindAddress: 192.0.2.1", "bindAddress", "family"),
    ("enableProfiling: true", "enableProfiling", "profiler"),
    ("showHiddenMetricsForVersion: '1.35'", "showHiddenMetricsForVersion", "hidden"),
    ("iptables: {localhostNodePorts: true}", "iptables.localhostNodePorts", "CVE-2020-8558"),
    ("winkernel: {networkName: a}", "winkernel.networkName", "Windows"),
    ("winkernel: {sourceVip: a}", "winkernel.sourceVip", "Windows"),
    ("winkernel: {enableDSR: true}", "winkernel.enableDSR", "Windows"),
    ("winkernel: {rootHnsEndpointName: a}", "winkernel.rootHnsEndpointName", "Windows"),
    ("winkernel: {forwardHealthCheckVip: true}", "winkernel.forwardHealthCheckVip", "Windows"),
    ("windowsRunAsService: true", "windowsRunAsService", "Windows"),
    ("oomScoreAdj: 0", "oomScoreAdj", "starts pyproxy"),
    ("conntrack: {maxPerCore: 1}", "conntrack.maxPerCore", "sysctl"),
    ("conntrack: {min: 1}", "conntrack.min", "sysctl"),
    ("conntrack: {tcpEstablishedTimeout: 1s}", "conntrack.tcpEstablishedTimeout", "sysctl"),
    ("conntrack: {tcpCloseWaitTimeout: 1s}", "conntrack.tcpCloseWaitTimeout", "sysctl"),
    ("conntrack: {tcpBeLiberal: true}", "conntrack.tcpBeLiberal", "sysctl"),
    ("conntrack: {udpTimeout: 1s}", "conntrack.udpTimeout", "sysctl"),
    ("conntrack: {udpStreamTimeout: 1s}", "conntrack.udpStreamTimeout", "sysctl"),
    ("configSyncPeriod: 1m", "configSyncPeriod", "watched"),
    ("portRange: 1-2", "portRange", "no effect"),
]


@pytest.mark.parametrize(("body", "field", "reason"), NOT_OBEYED, ids=lambda text: text[:60])
def test_what_is_not_obeyed_is_said(body: str, field: str, reason: str) -> None:
    (ignored,) = of(f"\n{body}\n").ignored
    assert (ignored.field, ignored.line) == (field, 4)
    assert reason in ignored.reason


OBEYED = """\
clientConnection: {acceptContentTypes: application/json, contentType: application/json, qps: 5, burst: 10}
logging: {flushFrequency: 5000000000, options: {text: {infoBufferSize: 0}}}
iptables: {masqueradeBit: 14, localhostNodePorts: false, syncPeriod: 30s, minSyncPeriod: 1s}
ipvs: {syncPeriod: 30s}
nftables: {masqueradeBit: 14}
oomScoreAdj: -999
conntrack: {maxPerCore: 0, min: 131072, tcpEstablishedTimeout: 24h, tcpCloseWaitTimeout: 0s}
configSyncPeriod: 15m0s
bindAddress: '::'
"""


def test_defaults_that_are_written_out_are_not_called_ignored() -> None:
    assert of(OBEYED).ignored == ()
    assert of(OBEYED.replace("minSyncPeriod: 1s", "minSyncPeriod: 2s"), "iptables").ignored == ()


MODES = ("iptables", "nftables", "ipvs", "ebpf", "auto")
BY_IPTABLES, BY_NFTABLES, BY_IPVS = "section iptables", "section nftables", "section ipvs"
PERIODS = {"iptables": BY_IPTABLES, "nftables": BY_NFTABLES, "ipvs": BY_IPVS, "ebpf": BY_NFTABLES, "auto": BY_NFTABLES}
NOT_IPVS = {mode: by for mode, by in PERIODS.items() if mode not in ("ipvs", "auto")}
MARKS = {"ipvs": "of its own, or none", "ebpf": "of its own, or none", "auto": "of its own, or none"}

# By mode, what the reason must say; a mode that is not named goes by the field.
OF_MODES: list[tuple[str, str, dict[str, str]]] = [
    ("iptables", "syncPeriod: 1m", {mode: by for mode, by in PERIODS.items() if mode != "iptables"}),
    ("iptables", "minSyncPeriod: 2s", {mode: by for mode, by in PERIODS.items() if mode != "iptables"}),
    ("iptables", "masqueradeAll: true", {"nftables": BY_NFTABLES}),
    ("iptables", "masqueradeBit: 15", MARKS | {"iptables": "bit 14", "nftables": BY_NFTABLES}),
    ("iptables", "localhostNodePorts: true", dict.fromkeys(MODES, "CVE-2020-8558")),
    ("nftables", "syncPeriod: 1m", {"iptables": BY_IPTABLES, "ipvs": BY_IPVS}),
    ("nftables", "minSyncPeriod: 2s", {"iptables": BY_IPTABLES, "ipvs": BY_IPVS}),
    ("nftables", "masqueradeAll: true", {"iptables": BY_IPTABLES, "ipvs": BY_IPTABLES}),
    (
        "nftables",
        "masqueradeBit: 15",
        MARKS | {"iptables": BY_IPTABLES, "ipvs": BY_IPTABLES, "nftables": "bit 14"},
    ),
    ("ipvs", "syncPeriod: 1m", {mode: by for mode, by in PERIODS.items() if mode != "ipvs"}),
    ("ipvs", "minSyncPeriod: 2s", {mode: by for mode, by in PERIODS.items() if mode != "ipvs"}),
    ("ipvs", "scheduler: lc", NOT_IPVS),
    ("ipvs", "excludeCIDRs: [10.0.0.0/8]", NOT_IPVS),
    ("ipvs", "strictARP: true", NOT_IPVS),
    ("ipvs", "tcpTimeout: 1s", NOT_IPVS),
    ("ipvs", "tcpFinTimeout: 1s", NOT_IPVS),
    ("ipvs", "udpTimeout: 1s", NOT_IPVS),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("section", "text", "says"), OF_MODES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_a_mode_does_not_go_by_is_said_in_that_mode(
    section: str, text: str, says: dict[str, str], mode: str
) -> None:
    body = f"{section}: {{{text}}}\n"
    found = of(f"{body}mode: {mode}\n").ignored
    assert found == of(f"{body}mode: another\n", mode).ignored
    if mode in says:
        (one,) = found
        assert (one.field, one.line) == (f"{section}.{text.split(':')[0]}", 3)
        assert says[mode] in one.reason
    else:
        assert found == ()


@pytest.mark.parametrize(("mode", "mark"), [("iptables", iptables.MASQUERADE), ("nftables", nftables.MASQUERADE_MARK)])
def test_the_bit_that_is_told_is_the_one_that_is_used(mode: str, mark: int) -> None:
    (one,) = of(f"mode: {mode}\n{mode}: {{masqueradeBit: 20}}\n").ignored
    assert f"bit {mark.bit_length() - 1} ({mark:#x})" in one.reason
    assert mark.bit_count() == 1


def test_what_was_obeyed_in_the_file_s_mode_is_told_of_when_a_flag_goes_before_it() -> None:
    """The migration from kube-proxy pins a mode: nobody should find out later that nothing is masqueraded any more."""
    body = "mode: iptables\niptables:\n  masqueradeAll: true\n  syncPeriod: 1m\n"
    assert of(body).ignored == ()
    reason = "mode nftables goes by the section nftables"
    assert of(body, "nftables").ignored == (
        Ignored("iptables.masqueradeAll", 5, reason),
        Ignored("iptables.syncPeriod", 6, reason),
    )
