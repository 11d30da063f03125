"""What a user types, and what comes back: an exit status, and one sentence if it is wrong. No kernel is touched."""

import argparse
import json
import logging
import os
from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from pathlib import Path

import pytest

from pyproxy import __version__, command
from pyproxy.config_file import ConfigFile
from pyproxy.configuration import Configuration
from pyproxy.controller import Pace
from pyproxy.host import DetectLocal, HostOptions
from pyproxy.modes import UnknownMode
from pyproxy.proxy import Proxy, Source
from pyproxy.table import IP, Drift, EbpfAlgorithm, Ipvs, Mode, ModeError, Prefix, Route, RouteId, Table, Transport


class PaperMode:
    """A mode that writes nowhere."""

    tracks_connections = False
    ends_connections = False
    connects_sockets = False

    def __init__(self, name: str, lacks: str | None = None) -> None:
        self.name = name
        self._lacks = lacks

    def probe(self) -> str | None:
        return self._lacks

    def objection(self, route: Route) -> str | None:
        raise AssertionError

    def sync(self, table: Table, changed: AbstractSet[RouteId] | None) -> None:
        raise AssertionError

    def shortfalls(self) -> dict[RouteId, str]:
        return {}

    def verify(self) -> list[Drift]:
        raise AssertionError

    def cleanup(self) -> list[str]:
        if self._lacks == "broken":
            raise ModeError(f"{self.name} could not be removed")
        return [f"table of {self.name}"] if self._lacks is None else []

    def retire(self, successor: Mode) -> list[str]:
        raise AssertionError

    def entries(self, address: IP, port: int, transport: Transport) -> list[str]:
        raise AssertionError


class Started:
    """What `run` put together, caught as it was about to begin."""

    configuration: Configuration
    host: HostOptions
    pace: Pace
    mode: Mode


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Mode]]:
    """The modes that are installed; and logging is as it was afterwards."""
    result: dict[str, Mode] = {"iptables": PaperMode("iptables"), "nftables": PaperMode("nftables", "nft is missing")}

    def load(name: str) -> Mode:
        if name not in result:
            raise UnknownMode(f"there is no mode {name!r}; installed: {', '.join(sorted(result))}")
        return result[name]

    monkeypatch.setattr("pyproxy.modes.names", lambda: sorted(result))
    monkeypatch.setattr("pyproxy.modes.load", load)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield result
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    result = Started()

    class Caught(Proxy):
        def __init__(self, configuration: Configuration, node_name: str, mode: Mode) -> None:
            super().__init__(configuration, node_name, mode)
            settings = self._settings(configuration)
            result.host, result.pace, result.mode = settings.host, settings.pace, mode
            result.configuration = configuration

        def run(self, source: Source, config_file: ConfigFile | None) -> int:
            return 0

    monkeypatch.setattr(command, "Proxy", Caught)
    return result


def outcome(*arguments: str) -> int:
    """The exit status, whether main returns it or argparse exits."""
    try:
        return command.main(list(arguments))
    except SystemExit as leaving:
        assert isinstance(leaving.code, int)
        return leaving.code


def run(tmp_path: Path, *arguments: str) -> int:
    return outcome("run", "--manifests", str(tmp_path), *arguments)


def only_error(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failure printed: nothing on standard output, and one sentence after the usage on standard error."""
    out, error = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in error
    return error.splitlines()[-1]


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("--version") == 0
    assert capsys.readouterr().out == f"pyproxy {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["modes", "--help"], ["bench", "sync", "--help"], ["bench", "latency", "--help"]],
)
def test_help_is_printed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome(*arguments) == 0
    assert capsys.readouterr().out.startswith("usage: pyproxy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "argument COMMAND: invalid choice: 'walk'"),
        (["run", "--manifests", ".", "--kubeconfig", "k"], "--kubeconfig: not allowed with argument --manifests"),
        (["run", "--manifests", ".", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["run", "--manifests", ".", "--sync-period", "30"], "'30' is not a duration such as 30s or 1m30s"),
        (["run", "--manifests", ".", "--cluster-cidr", "x"], "'x' is not a range such as 10.0.0.0/8 or fd00::/64"),
        (["run", "--manifests", ".", "--cluster-cidr", "10.0.0.0/8,"], "'' is not a range"),
        (["run", "--manifests", ".", "--nodeport-addresses", "10.0.0.1"], "'10.0.0.1' is not a range"),
        (["run", "--manifests", ".", "--pod-bridge-interface", "cni0; x"], "'cni0; x' is not the name of a network"),
        (["run", "--manifests", ".", "--detect-local-mode", "Magic"], "argument --detect-local-mode: invalid"),
        (["run", "--manifests", ".", "--log-format", "xml"], "--logging-format: invalid choice: 'xml'"),
        (["run", "--manifests", ".", "-v", "much"], "argument -v/--v: invalid int value: 'much'"),
        (["bench", "soup"], "invalid choice: 'soup'"),
    ],
)
def test_a_wrong_command_line_exits_with_2_and_says_why(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome(*arguments) == 2
    line = only_error(capsys)
    assert line.startswith("pyproxy")
    assert said in line


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("250ms", 0.25),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("1h1m1s1ms", 3661.001),
        ("100ms", 0.1),
        ("1m", 60.0),
    ],
)
def test_durations_are_those_of_go(text: str, seconds: float, tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, "--sync-period", text, "--min-sync-period", text) == 0
    assert [started.pace.sync_period, started.pace.min_sync_period] == pytest.approx([seconds, seconds])


@pytest.mark.parametrize(
    ("flags", "on"),
    [([], False), (["--masquerade-all"], True), (["--masquerade-all=true"], True), (["--masquerade-all=false"], False)],
)
def test_flags_may_be_written_as_kube_proxys_are(flags: list[str], on: bool, tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, *flags, "--v=2") == 0
    assert started.host.masquerade_all is on


@pytest.mark.parametrize("text", ["0", "0s"])
def test_syncs_may_follow_at_once_but_not_verifications(
    text: str, tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--min-sync-period", text) == 0
    assert started.pace.min_sync_period == 0
    assert run(tmp_path, "--sync-period", text) == 2
    assert "all the time" in only_error(capsys)


@pytest.mark.parametrize("text", ["-30s", "9000h"])
def test_a_duration_has_bounds(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, f"--min-sync-period={text}") == 2
    assert f"{text!r} is not between 0 and a year" in only_error(capsys)


@pytest.mark.parametrize("value", ["1", "t", "True", "TRUE", "true", ""])
def test_truths_are_those_of_go(value: str, tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, f"--masquerade-all={value}" if value else "--masquerade-all") == 0
    assert started.host.masquerade_all is True


def test_flags_of_kube_proxy_without_effect_are_taken_and_said(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--oom-score-adj=-998", "--profiling", "--kube-api-qps", "5", "--conntrack-min=1"]
    assert run(tmp_path, *flags, "--masquerade-all") == 0
    assert started.host.masquerade_all is True
    lines = [line for line in capsys.readouterr().err.splitlines() if "in vain" in line]
    assert [line.split("field=")[1].split()[0] for line in lines] == [
        flag.split("=")[0] for flag in flags if flag != "5"
    ]
    assert "kube-api" not in flags_help()


def test_flags_of_ipvs_go_before_the_file(tmp_path: Path, started: Started) -> None:
    config = tmp_path / "config.conf"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "ipvs: {scheduler: lc, tcpFinTimeout: 2s, udpTimeout: 3s, syncPeriod: 9s}\n"
    )
    flags = ["--ipvs-scheduler", "sh", "--ipvs-strict-arp", "--ipvs-exclude-cidrs", "10.0.0.0/8,fd00::/8"]
    flags += ["--ipvs-tcp-timeout", "1m", "--ipvs-tcpfin-timeout", "0", "--ipvs-min-sync-period", "1s"]
    assert run(tmp_path, "--config", str(config), *flags) == 0
    ranges = (Prefix("10.0.0.0/8"), Prefix("fd00::/8"))
    assert started.host.ipvs == Ipvs("sh", ranges, True, 60.0, 0.0, 3.0)
    assert started.pace.min_sync_period == 0.1  # that of ipvs is for ipvs


@pytest.mark.parametrize(
    "flag", ["--ipvs-scheduler=r r", "--ipvs-tcp-timeout=soon", "--ipvs-exclude-cidrs=10.0.0.0/33"]
)
def test_wrong_flags_of_ipvs_are_named(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, flag) == 2
    assert flag.partition("=")[0] in only_error(capsys)


@pytest.mark.parametrize(("given", "workers"), [("3", 3), ("auto", len(os.sched_getaffinity(0)))])
def test_userspace_mode_has_as_many_relays_as_the_flag_says(
    given: str, workers: int, tmp_path: Path, started: Started
) -> None:
    assert run(tmp_path, "--userspace-workers", given) == 0
    assert started.host.userspace_workers == workers


@pytest.mark.parametrize("wrong", ["0", "65", "-1", "many"])
def test_wrong_numbers_of_relays_are_named(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, f"--userspace-workers={wrong}") == 2
    assert "--userspace-workers" in only_error(capsys)


def test_ebpf_mode_goes_by_its_flags(tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, "--ebpf-algorithm", "maglev", "--devices", "eth0,bond+", "--cgroup", str(tmp_path)) == 0
    assert started.host.ebpf_algorithm is EbpfAlgorithm.MAGLEV
    assert started.host.devices == ("eth0", "bond*")
    assert started.host.cgroup == str(tmp_path)


def test_ebpf_mode_without_flags(tmp_path: Path, started: Started) -> None:
    assert run(tmp_path) == 0
    assert (started.host.ebpf_algorithm, started.host.devices) == (EbpfAlgorithm.RANDOM, ())


@pytest.mark.parametrize("flag", ["--ebpf-algorithm=rr", "--devices=eth0,,eth1", "--devices=et+h", "--cgroup=/nowhere"])
def test_wrong_flags_of_ebpf_are_named(flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, flag) == 2
    assert flag.partition("=")[0] in only_error(capsys)


def flags_help() -> str:
    from pyproxy import flags

    parser = argparse.ArgumentParser()
    flags.add_to(parser)
    return parser.format_help().replace("iptables, nftables", "")


def test_a_sync_must_not_wait_longer_than_a_verification(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, "--min-sync-period", "31s") == 1
    assert "--min-sync-period (31s) is longer than the sync period (30s)" in only_error(capsys)


def test_without_a_cluster_it_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert outcome("run", "--cluster-cidr", "10.0.0.0/8") == 1
    assert "(without a cluster, use --manifests)" in only_error(capsys)


def test_nobody_asked_for_ports_with_manifests_alone(tmp_path: Path, started: Started) -> None:
    assert run(tmp_path) == 0
    assert (started.configuration.healthz_address, started.configuration.metrics_address) == (None, None)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:2", ("::1", 2)),
        ("0.0.0.0", ("0.0.0.0", 10256)),
        ("::", ("::", 10256)),
        ("fd00::1", ("fd00::1", 10256)),
        ("", None),
        ("127.0.0.1:0", None),
    ],
)
def test_addresses_to_answer_at(text: str, address: object, tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, f"--healthz-bind-address={text}") == 0
    assert started.configuration.healthz_address == address


@pytest.mark.parametrize(
    "text", ["localhost:1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000", "[::1", "[::1]", "::1]:1", ":1"]
)
def test_what_is_no_address(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, f"--metrics-bind-address={text}") == 2
    assert "argument --metrics-bind-address: " in only_error(capsys)


@pytest.mark.parametrize("text", ["", "30", "s", "30 s", " 30s", "30s ", "30S", "1d", "30s!", "1m 30s", "1e3s"])
def test_what_is_no_duration_is_refused(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, f"--sync-period={text}") == 2
    assert f"{text!r} is not a duration such as 30s or 1m30s" in only_error(capsys)


@pytest.mark.parametrize(
    ("text", "prefixes"),
    [
        ("10.244.0.0/16", ("10.244.0.0/16",)),
        ("10.244.0.0/16,fd00:244::/56", ("10.244.0.0/16", "fd00:244::/56")),
        ("10.244.1.2/16, fd00:244::1/56", ("10.244.0.0/16", "fd00:244::/56")),
    ],
)
def test_ranges_are_read_as_lists(text: str, prefixes: tuple[str, ...], tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, "--cluster-cidr", text, "--nodeport-addresses", text) == 0
    assert started.host.cluster_cidrs == prefixes
    assert started.host.node_port_addresses == prefixes


def test_without_options_the_defaults_are_those_of_kube_proxy(tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, "--hostname-override", " Node-A ") == 0
    assert started.host == HostOptions("node-a")
    assert started.host.node_port_addresses is None
    assert started.pace == Pace(30.0, 0.1)


def test_the_host_name_is_the_nodes_name(tmp_path: Path, started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Worker-1")
    assert run(tmp_path) == 0
    assert started.host.node_name == "worker-1"


def test_primary_and_masquerade_all_are_passed_on(tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, "--nodeport-addresses", "primary", "--masquerade-all") == 0
    assert (started.host.node_port_addresses, started.host.masquerade_all) == ((), True)


@pytest.mark.parametrize(
    ("mode", "option", "value"),
    [
        (DetectLocal.BRIDGE_INTERFACE, "--pod-bridge-interface", "cni0"),
        (DetectLocal.INTERFACE_NAME_PREFIX, "--pod-interface-name-prefix", "veth"),
    ],
)
def test_a_way_to_detect_pods_needs_its_option(
    mode: DetectLocal, option: str, value: str, tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--detect-local-mode", mode.value) == 1
    assert f"pyproxy: --detect-local-mode {mode.value} needs {option}" in only_error(capsys)
    assert run(tmp_path, "--detect-local-mode", mode.value, option, value) == 0
    assert started.host.detect_local is mode
    assert value in (started.host.bridge_interface, started.host.interface_name_prefix)


@pytest.mark.parametrize("name", ["a" * 15, "eth0.100", "br-lan_1"])
def test_names_of_interfaces(name: str, tmp_path: Path, started: Started) -> None:
    assert run(tmp_path, "--pod-bridge-interface", name) == 0
    assert started.host.bridge_interface == name


@pytest.mark.parametrize("name", ["", "a" * 16, "a b", 'a"', "a/b", "a\n", "\u00e4"])
def test_what_is_no_name_of_an_interface(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, f"--pod-bridge-interface={name}") == 2
    assert "is not the name of a network interface" in only_error(capsys)


def test_auto_takes_the_first_mode_that_can_run(tmp_path: Path, started: Started, installed: dict[str, Mode]) -> None:
    assert run(tmp_path) == 0
    assert started.mode.name == "iptables"
    installed["nftables"] = PaperMode("nftables")
    assert run(tmp_path, "--mode", "auto") == 0
    assert started.mode.name == "nftables"


def test_auto_says_what_each_mode_lacks(
    tmp_path: Path, installed: dict[str, Mode], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["iptables"] = PaperMode("iptables", "no root")
    assert run(tmp_path) == 1
    assert only_error(capsys) == "pyproxy: no mode can run here (nftables: nft is missing; iptables: no root)"


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("nftables", "pyproxy: mode nftables can't run here: nft is missing"),
        ("magic", "pyproxy: there is no mode 'magic'; installed: iptables, nftables"),
    ],
)
def test_a_mode_that_can_not_run_is_an_error(
    mode: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--mode", mode) == 1
    assert only_error(capsys) == said


def test_manifests_that_are_not_there_are_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    absent = tmp_path / "absent"
    assert run(absent, "--cluster-cidr", "10.0.0.0/8") == 1
    assert only_error(capsys) == f"pyproxy: can't read manifests from {absent}: No such file or directory"


def test_modes_lists_what_runs_and_what_others_lack(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("modes") == 0
    out = capsys.readouterr().out
    assert out == "iptables  runs here\nnftables  can not run here: nft is missing\n"
    assert outcome("modes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == [
        {"mode": "iptables", "runs": True, "reason": None},
        {"mode": "nftables", "runs": False, "reason": "nft is missing"},
    ]


def test_modes_are_none_when_none_is_installed(installed: dict[str, Mode], capsys: pytest.CaptureFixture[str]) -> None:
    installed.clear()
    assert outcome("modes", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert outcome("modes") == 0
    assert capsys.readouterr().out == ""


def test_cleanup_says_what_it_removed(installed: dict[str, Mode], capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("cleanup") == 0
    assert capsys.readouterr().out == "removed table of iptables\n"
    del installed["iptables"]
    assert outcome("cleanup") == 0
    assert capsys.readouterr().out == "nothing to remove\n"


def test_cleanup_of_one_mode_is_done_and_told_though_another_fails(
    installed: dict[str, Mode], capsys: pytest.CaptureFixture[str]
) -> None:
    installed["nftables"] = PaperMode("nftables", "broken")
    assert outcome("cleanup") == 1
    out, error = capsys.readouterr()
    assert out == "removed table of iptables\n"
    assert error == "pyproxy: nftables could not be removed\n"


@pytest.mark.parametrize("arguments", [["demo"], ["bench", "sync"], ["bench", "latency"]])
def test_the_lab_takes_root(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert outcome(*arguments) == 1
    assert only_error(capsys) == "pyproxy: network namespaces take root; run it with sudo"


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted() -> list[str]:
        raise KeyboardInterrupt

    parser = command._parser()
    monkeypatch.setattr(command, "_parser", lambda: parser)
    monkeypatch.setattr("pyproxy.modes.names", interrupted)
    assert outcome("modes") == 130
    assert capsys.readouterr().err == ""


def test_without_cluster_cidr_a_warning_says_what_is_lost(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path, "--log-format", "json") == 0
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["level"] for line in lines if "--cluster-cidr" in line["message"]] == ["warning"]
    assert started.host.cluster_cidrs == ()
