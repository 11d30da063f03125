"""What keeps the proxy from starting: one clear sentence and a status that is not 0."""

import json
import sys
from pathlib import Path

import pytest

from bench.lab import Lab
from tests.conformance.cluster import until
from tests.faults.commands import is_one_sentence, pyproxy

KUBEADM = Path(__file__).parents[1] / "unit" / "data" / "kubeadm-config.conf"


def without(*programs: str) -> list[str]:
    """What runs a command that does not find those."""
    hide = "".join(f"mount --bind /dev/null /usr/sbin/{program} && " for program in programs)
    return ["unshare", "--mount", "sh", "-c", f'{hide}exec "$0" "$@"']


IPTABLES = ("xtables-legacy-multi", "xtables-nft-multi")  # what all of iptables' programs are links to
WITHOUT_NFT = without("nft")
WITHOUT_IPTABLES = without(*IPTABLES)
WITHOUT_CGROUPS = ["unshare", "--mount", "sh", "-c", 'umount -l -a -t cgroup2 && exec "$0" "$@"']
WITHOUT_NET_ADMIN = ["setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--manifests", "/nowhere"], "can't read manifests from /nowhere: No such file or directory"),
        (["--manifests", "{folder}", "--mode", "ipvs2"], "there is no mode 'ipvs2'"),
        (["--manifests", "{folder}", "--detect-local-mode", "BridgeInterface"], "--pod-bridge-interface"),
        (["--manifests", "{folder}", "--detect-local-mode", "InterfaceNamePrefix"], "--pod-interface-name-prefix"),
    ],
)
def test_a_users_mistake_gets_one_sentence(lab: Lab, tmp_path: Path, arguments: list[str], says: str) -> None:
    done = pyproxy(lab, "run", *(argument.format(folder=tmp_path) for argument in arguments))
    assert done.returncode == 1
    assert is_one_sentence(done.stderr.splitlines(keepends=True)[-1])
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--cluster-cidr", "10.0.0.0/40"), ("--sync-period", "soon"), ("--nodeport-addresses", "all"), ("--mode", "")],
)
def test_a_wrong_flag_is_named(lab: Lab, tmp_path: Path, flag: str, value: str) -> None:
    done = pyproxy(lab, "run", "--manifests", str(tmp_path), flag, value)
    assert done.returncode in (1, 2)
    assert value in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("mode", "inside", "says"),
    [
        ("nftables", WITHOUT_NFT, "nft is not installed"),
        ("nftables", WITHOUT_NET_ADMIN, "CAP_NET_ADMIN"),
        ("iptables", WITHOUT_IPTABLES, "is not installed (Debian package iptables)"),
        ("iptables", WITHOUT_NET_ADMIN, "CAP_NET_ADMIN"),
        ("ebpf", WITHOUT_NET_ADMIN, "CAP_NET_ADMIN"),
        ("ebpf", WITHOUT_CGROUPS, "cgroup v2 is not mounted"),
        ("userspace", WITHOUT_NET_ADMIN, "CAP_NET_ADMIN"),
        ("ipvs", [], "load its module with `modprobe ip_vs`"),
    ],
)
def test_what_is_missing_is_said(lab: Lab, tmp_path: Path, mode: str, inside: list[str], says: str) -> None:
    done = pyproxy(lab, "run", "--manifests", str(tmp_path), "--mode", mode, inside=inside)
    assert (done.returncode, is_one_sentence(done.stderr)) == (1, True)
    assert says in done.stderr
    listed = pyproxy(lab, "modes", "--json", inside=inside)
    assert listed.returncode == 0
    (found,) = [entry for entry in json.loads(listed.stdout) if entry["mode"] == mode]
    assert found["runs"] is False
    assert says in found["reason"]


def test_auto_says_why_no_mode_can_run(lab: Lab, tmp_path: Path) -> None:
    done = pyproxy(lab, "run", "--manifests", str(tmp_path), inside=WITHOUT_NET_ADMIN)
    assert (done.returncode, is_one_sentence(done.stderr)) == (1, True)
    reasons = done.stderr.partition("no mode can run here (")[2].split("; ")
    assert [reason.partition(":")[0] for reason in reasons] == ["ebpf", "nftables", "ipvs", "iptables", "userspace"]
    assert reasons[2].startswith("ipvs: this kernel has no IPVS: load its module with `modprobe ip_vs` (it comes with ")
    assert all("CAP_NET_ADMIN" in reason for reason in (*reasons[:2], *reasons[3:]))


@pytest.mark.parametrize(
    ("inside", "mode"),
    [
        ([], "ebpf"),
        (WITHOUT_CGROUPS, "nftables"),
        ([*WITHOUT_CGROUPS, *WITHOUT_NFT], "iptables"),
        ([*WITHOUT_CGROUPS, *without("nft", *IPTABLES)], "userspace"),
    ],
)
def test_auto_takes_the_best_mode_that_runs(lab: Lab, tmp_path: Path, inside: list[str], mode: str) -> None:
    """kubeadm's `mode: ""`."""
    done = pyproxy(lab, "config", "check", str(KUBEADM), inside=inside)
    assert (done.returncode, done.stdout) == (0, f"mode: runs: {mode} mode runs here\n")


def test_modes_tells_what_runs_here(lab: Lab) -> None:
    done = pyproxy(lab, "modes")
    assert done.returncode == 0
    ebpf, iptables, ipvs, *others = done.stdout.splitlines()
    assert [ebpf, iptables] == ["ebpf       runs here", "iptables   runs here"]
    assert others == ["nftables   runs here", "userspace  runs here"]
    assert ipvs.startswith(
        "ipvs       can not run here: this kernel has no IPVS: load its module with `modprobe ip_vs`"
    )


@pytest.mark.parametrize("command", ["demo", "bench sync"])
def test_the_lab_takes_root(lab: Lab, command: str) -> None:
    nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]
    done = pyproxy(lab, *command.split(), inside=nobody)
    assert (done.returncode, is_one_sentence(done.stderr)) == (1, True)
    assert "root" in done.stderr


@pytest.mark.parametrize("command", ["", "run", "modes", "demo", "cleanup", "bench", "bench sync"])
def test_help_teaches(lab: Lab, command: str) -> None:
    done = pyproxy(lab, *command.split(), "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 4


def test_it_stops_though_its_main_thread_hears_no_signal(lab: Lab, tmp_path: Path) -> None:
    """As it does when one comes just before it waits."""
    program = (
        "import signal, sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=(99,), daemon=True).start()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})\n"
        "from pyproxy import command\n"
        "sys.exit(command.main(sys.argv[1:]))"
    )
    log = tmp_path / "log"
    examples = Path(__file__).parents[2] / "examples"
    flags = ["--manifests", str(examples), "--mode", "nftables", "--hostname-override", "node-1"]
    with log.open("wb") as out:
        proxy = lab.node.namespace.start([sys.executable, "-c", program, "run", *flags], stdout=out, stderr=out)
    until(lambda: "reconciled" in log.read_text(), lambda: log.read_text())
    proxy.terminate()
    assert proxy.wait(timeout=10) == 0
