"""`pyproxy config check`, and how a file and flags add up for `pyproxy run`."""

import json
from pathlib import Path

import pytest

from tests.unit.test_command import Started, installed, only_error, outcome, started

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
