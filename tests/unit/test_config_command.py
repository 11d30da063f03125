"""`pyproxy config check`, and how a file and flags add up for `pyproxy run`."""

import json
from pathlib import Path

import pytest

from pyproxy.table import Mode
from tests.unit.test_command import PaperMode, Started, installed, only_error, outcome, started

__all__ = ["installed", "started"]  # fixtures

KUBEADM = Path(__file__).parent / "data" / "kubeadm-config.conf"
HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"


def check(tmp_path: Path, text: str, *flags: str) -> int:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + text)
    return outcome("config", "check", str(file), *flags)


def test_a_kubeadm_cluster_s_file_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("config", "check", str(KUBEADM)) == 0
    assert capsys.readouterr().out == "mode: runs: iptables mode runs here\n"


def test_the_same_file_is_fine_in_iptables_mode(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.conf"
    file.write_text(KUBEADM.read_text().replace('mode: ""', "mode: iptables"))
    assert outcome("config", "check", str(file)) == 0
    assert capsys.readouterr().out == "mode: runs: iptables mode runs here\n"
    assert outcome("run", "--config", str(file), "--manifests", str(tmp_path)) == 0
    assert (started.mode.name, started.pace.sync_period) == ("iptables", 30.0)
    assert "in vain" not in capsys.readouterr().err


def test_a_mode_given_goes_before_the_file_s(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "mode: nftables\nnftables:\n  masqueradeAll: true\n", "--mode", "iptables") == 0
    told = "line 5: nftables.masqueradeAll: ignored: mode iptables goes by the section iptables\n"
    assert capsys.readouterr().out == f"{told}mode: runs: iptables mode runs here\n"
    assert check(tmp_path, "mode: iptables\n", "--mode", "teleport") == 1
    assert "there is no mode 'teleport'" in capsys.readouterr().out


TUNED = """\
mode: iptables
iptables:
  masqueradeAll: true
  masqueradeBit: 15
  localhostNodePorts: true
  syncPeriod: 1m
  minSyncPeriod: 2s
nftables:
  masqueradeAll: true
  syncPeriod: 2m
"""
IN_VAIN = [
    ("iptables.masqueradeBit", 6, "what is to be masqueraded is always marked with bit 14 (0x4000)"),
    ("iptables.localhostNodePorts", 7, "node ports never answer on loopback (CVE-2020-8558)"),
    ("nftables.masqueradeAll", 11, "mode iptables goes by the section iptables"),
    ("nftables.syncPeriod", 12, "mode iptables goes by the section iptables"),
]


def test_what_has_no_effect_in_iptables_mode_is_told(
    tmp_path: Path, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path, TUNED) == 0
    told = [f"line {line}: {field}: ignored: {reason}" for field, line, reason in IN_VAIN]
    assert capsys.readouterr().out.splitlines() == [*told, "mode: runs: iptables mode runs here"]
    assert outcome("run", "--config", str(tmp_path / "config.conf"), "--manifests", str(tmp_path)) == 0
    assert (started.host.masquerade_all, started.pace.sync_period, started.pace.min_sync_period) == (True, 60.0, 2.0)
    said = [line for line in capsys.readouterr().err.splitlines() if "in vain" in line]
    assert [field in line and reason in line for line, (field, _, reason) in zip(said, IN_VAIN, strict=True)] == [
        True
    ] * 4


def test_a_flag_for_the_mode_goes_before_the_file_s(
    tmp_path: Path, installed: dict[str, Mode], started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    installed["nftables"] = PaperMode("nftables")
    assert check(tmp_path, TUNED) == 0
    arguments = ["run", "--config", str(tmp_path / "config.conf"), "--manifests", str(tmp_path), "--mode"]
    assert outcome(*arguments, "nftables") == 0
    assert (started.mode.name, started.host.masquerade_all, started.pace.sync_period) == ("nftables", True, 120.0)
    assert "field=iptables.minSyncPeriod" in capsys.readouterr().err
    assert outcome(*arguments, "auto") == 0
    assert started.mode.name == "nftables"


@pytest.mark.parametrize(
    ("mode", "expected"), [("iptables", (61.0, 3.0)), ("nftables", (61.0, 3.0)), ("ipvs", (30.0, 0.1))]
)
def test_kube_proxy_s_flags_for_periods_are_obeyed_in_the_modes_in_which_it_does(
    tmp_path: Path, installed: dict[str, Mode], started: Started, mode: str, expected: tuple[float, float]
) -> None:
    installed[mode] = PaperMode(mode)
    arguments = ["run", "--manifests", str(tmp_path), "--proxy-mode", mode]
    periods = ["--iptables-sync-period=61s", "--iptables-min-sync-period", "3s"]
    assert outcome(*arguments, *periods) == 0
    assert (started.pace.sync_period, started.pace.min_sync_period) == expected
    assert outcome(*arguments, *periods, "--sync-period", "9s", "--min-sync-period", "0") == 0
    assert (started.pace.sync_period, started.pace.min_sync_period) == (9.0, 0.0)


def test_a_flag_for_a_period_is_checked_under_kube_proxy_s_name_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert outcome("run", "--manifests", str(tmp_path), "--iptables-sync-period", "soon") == 2
    assert "--iptables-sync-period" in only_error(capsys)
    assert outcome("run", "--manifests", str(tmp_path), "--iptables-min-sync-period", "31s") == 1
    assert "(31s) is longer than the sync period (30s)" in only_error(capsys)


def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "clusterCIDRs: 10.0.0.0/8\nnftables:\n  syncPeriod: soon\n", "--json") == 1
    found = json.loads(capsys.readouterr().out)
    assert [(one["line"], one["field"], one["verdict"]) for one in found] == [
        (3, "clusterCIDRs", "wrong"),
        (5, "nftables.syncPeriod", "wrong"),
    ]


def test_what_has_no_effect_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, "mode: iptables\noomScoreAdj: -5\nwindowsRunAsService: true\n") == 0
    out = capsys.readouterr().out
    assert "line 4: oomScoreAdj: ignored: " in out
    assert "line 5: windowsRunAsService: ignored: " in out
    assert out.endswith("mode: runs: iptables mode runs here\n")


@pytest.mark.parametrize(
    ("mode", "why"),
    [("nftables", "nft is missing"), ("magic", "there is no mode 'magic'"), ("ipvs", "there is no mode")],
)
def test_what_this_kernel_can_not_do_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mode: str, why: str
) -> None:
    assert check(tmp_path, f"mode: {mode}\n") == 1
    assert f"mode: impossible: {why}" in capsys.readouterr().out.replace(f"mode {mode} can't run here: ", "")


def test_a_file_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert outcome("config", "check", str(tmp_path / "absent")) == 1
    assert "wrong: No such file or directory" in capsys.readouterr().out
    assert outcome("run", "--config", str(tmp_path / "absent")) == 1
    assert "can't read" in only_error(capsys)


def test_run_refuses_a_wrong_file_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.conf"
    file.write_text(HEAD + "mood: good\n")
    assert outcome("run", "--config", str(file), "--manifests", str(tmp_path)) == 1
    line = only_error(capsys)
    assert str(file) in line
    assert "line 3: mood: " in line


def test_flags_go_before_the_file(tmp_path: Path, started: Started) -> None:
    file = tmp_path / "config.conf"
    file.write_text(
        HEAD + "clusterCIDR: 10.0.0.0/8\nhostnameOverride: a\niptables: {syncPeriod: 7s, masqueradeAll: true}\n"
    )
    arguments = ["run", "--config", str(file), "--manifests", str(tmp_path), "--mode", "iptables"]
    assert outcome(*arguments) == 0
    assert (started.host.cluster_cidrs, started.host.node_name) == (("10.0.0.0/8",), "a")
    assert (started.host.masquerade_all, started.pace.sync_period) == (True, 7.0)
    assert started.configuration.metrics_address == ("127.0.0.1", 10249)
    flags = ["--cluster-cidr", "fd00::/8", "--hostname-override", "b", "--masquerade-all=false", "--sync-period", "9s"]
    assert outcome(*arguments, *flags, "--metrics-bind-address", "") == 0
    assert (started.host.cluster_cidrs, started.host.node_name) == (("fd00::/8",), "b")
    assert (started.host.masquerade_all, started.pace.sync_period) == (False, 9.0)
    assert started.configuration.metrics_address is None
