"""What ebpf mode takes of root's powers and of the kernel: that it is enough, and that what lacks is named."""

import json
import socket
import subprocess
import sys
from collections.abc import Sequence

import pytest

from bench.ask import datagram, open_socket
from bench.lab import Lab
from modes.ebpf import requirement
from tests.conformance.cluster import OURS, Candidate, Cluster, is_ended, until
from tests.conformance.manifests import FAMILIES, PORTS, service, slices, target
from tests.faults.commands import is_one_sentence, pyproxy

NEEDED = ("net_admin", "bpf", "perfmon")
WITHOUT_PINS = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /sys/fs/bpf && exec "$0" "$@"')
"""A BPF file system of the command's own would be the machine's again: here is none."""


_REFUSES_BPF = """
import ctypes, os, platform, struct, sys
number = {"x86_64": 321}.get(platform.machine(), 280)
code = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]  # EPERM or allow
packed = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
described = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(packed)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(described), 0, 0) == 0  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execvp(sys.argv[1], sys.argv[1:])
"""
WITHOUT_BPF = (sys.executable, "-c", _REFUSES_BPF)
"""As the profiles of container runtimes have it for who lacks CAP_BPF."""


def only(*capabilities: str) -> tuple[str, ...]:
    """What runs a command as a root that has no others, nor any way to get them."""
    few = ",".join(("-all", *(f"+{one}" for one in capabilities)))
    return ("setpriv", "--no-new-privs", "--bounding-set", few, "--inh-caps", few)


def test_three_capabilities_are_enough_and_what_a_fourth_is_for_is_said() -> None:
    """Programs compiled and loaded, found again after a restart, replaced, removed; endpoints that come and go."""
    with Cluster(Candidate("ebpf", (*only(*NEEDED), *OURS)), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("web", service(1), *slices(1, ["pod-2", "pod-4"]))
        assert everywhere(cluster) == {"pod-2", "pod-4"}
        cluster.kill()
        cluster.start()
        with udp_client(cluster, "node") as of_node, udp_client(cluster, "pod-1") as of_pod:
            cluster.apply("web", service(1), *slices(1, ["pod-3"]))
            assert everywhere(cluster) == {"pod-3"}
            until(lambda: is_ended(of_node), lambda: "the node's own socket is connected to an endpoint that went")
            until(lambda: "CAP_SYS_ADMIN" in cluster.log(), lambda: cluster.log()[-2000:])
            assert not is_ended(of_pod)
            cluster.apply("web", service(1), *slices(1, ["pod-2"]))
        said = len(cluster.log())
        until(lambda: "verified drift=0" in cluster.log()[said:], lambda: cluster.log()[said:])
        assert cluster.log().count("UDP sockets of pods can't be ended") == 1
        assert "ERROR" not in cluster.log()
        cluster.kill()
        blind = pyproxy(cluster.lab, "cleanup", inside=WITHOUT_PINS)
        assert (blind.returncode, is_one_sentence(blind.stderr)) == (1, True)
        assert "their pins are not seen: mount the host's /sys/fs/bpf" in blind.stderr
        assert everywhere(cluster) == {"pod-2"}
        done = pyproxy(cluster.lab, "cleanup", inside=only(*NEEDED))
        assert (done.returncode, done.stderr) == (0, "")
        assert pyproxy(cluster.lab, "cleanup").stdout == "nothing to remove\n"


def test_who_may_not_call_bpf_removes_it_all_the_same() -> None:
    with Cluster(Candidate("ebpf"), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("web", service(1), *slices(1, ["pod-2"]))
        cluster.kill()
        done = pyproxy(cluster.lab, "cleanup", inside=(*only("net_admin", "net_raw"), *WITHOUT_BPF))
        assert (done.returncode, done.stderr) == (0, "")
        served = target(1, "ClusterIP", "IPv4", "TCP")
        for who in ("node", "pod-1"):
            until(lambda: cluster.outcome(who, *served) == "dropped", lambda: "it is served yet")  # noqa: B023
        assert pyproxy(cluster.lab, "cleanup").stdout == "nothing to remove\n"


def test_with_these_rights_nftables_mode_takes_over() -> None:
    """The first of the two steps of deploy/README.md."""
    with Cluster(Candidate("ebpf"), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("web", service(1), *slices(1, ["pod-2"]))
        cluster.change_command((*only(*NEEDED, "sys_admin"), *OURS))
        cluster.switch("nftables")
        until(lambda: 'took over from="ebpf mode"' in cluster.log(), lambda: cluster.log()[-2000:])
        assert everywhere(cluster) == {"pod-2"}


def test_another_mode_that_can_not_see_whether_it_was_here_says_so_once() -> None:
    """As in a pod of its own rights, without the host's BPF file system."""
    confined = (*WITHOUT_PINS, *only("net_admin"), *WITHOUT_BPF, *OURS)
    with Cluster(Candidate("nftables", confined), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("web", service(1), *slices(1, ["pod-2"]))
        told = "INFO whether ebpf mode left anything can't be seen"
        until(lambda: told in cluster.log(), lambda: cluster.log()[-2000:])
        said = len(cluster.log())
        until(lambda: cluster.log()[said:].count("verified drift=0") > 3, lambda: cluster.log()[said:])
        assert cluster.log().count(told) == 1
        assert "can't be removed" not in cluster.log()


def everywhere(cluster: Cluster) -> set[str]:
    return {
        cluster.ask(who, 1, kind, family, protocol).pod
        for who, kind in (("pod-1", "ClusterIP"), ("node", "ExternalIP"), ("client", "NodePort"))
        for family in FAMILIES
        for protocol in PORTS
        for _ in range(8)
    }


def udp_client(cluster: Cluster, who: str) -> socket.socket:
    """That is connected to an endpoint."""
    to = target(1, "ClusterIP", "IPv4", "UDP")
    client = open_socket(cluster.host(who), to[0], "UDP")
    client.settimeout(3)
    client.connect(to)
    datagram(client)
    return client


@pytest.mark.parametrize("lacking", NEEDED)
def test_each_of_them_is_named_if_it_lacks(lab: Lab, lacking: str) -> None:
    inside = only(*(one for one in NEEDED if one != lacking))
    assert_says(lab, f"it takes the capability CAP_{lacking.upper()} (run as root)", inside)


def test_one_for_all_of_bpf_is_as_good(lab: Lab) -> None:
    """CAP_SYS_ADMIN, which was all that older kernels had."""
    done = pyproxy(lab, "modes", "--json", inside=only("net_admin", "sys_admin"))
    assert [one["runs"] for one in json.loads(done.stdout) if one["mode"] == "ebpf"] == [True]


def test_a_bpf_file_system_that_it_may_not_mount_is_named(lab: Lab) -> None:
    inside = (*WITHOUT_PINS, *only(*NEEDED))
    assert_says(lab, "the BPF file system is not mounted at /sys/fs/bpf, and mounting it takes CAP_SYS_ADMIN", inside)


def test_a_bpf_file_system_that_it_may_mount_is_mounted(lab: Lab) -> None:
    script = "from ebpf import pins; pins.mount(); pins.mount(); print(pins.is_mounted())"
    done = subprocess.run([*WITHOUT_PINS, sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def assert_says(lab: Lab, what: str, inside: Sequence[str]) -> None:
    done = pyproxy(lab, "run", "--manifests", "/tmp", "--mode", "ebpf", inside=inside)
    assert (done.returncode, is_one_sentence(done.stderr)) == (1, True), done.stderr
    assert what in done.stderr
    listed = json.loads(pyproxy(lab, "modes", "--json", inside=inside).stdout)
    assert [one["reason"] for one in listed if one["mode"] == "ebpf"] == [what]


def test_a_kernel_without_the_helper_that_refuses_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel is asked for one that it does not have."""
    assert requirement.missing() is None
    monkeypatch.setattr(requirement, "_SET_RETVAL", 9999)
    assert requirement.missing() == "this kernel can't refuse connections by eBPF (bpf_set_retval, Linux 5.18)"
