"""KubeProxyConfiguration's section ipvs, as it arrives in the kernel."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from modes.ipvs.mode import IpvsMode
from pyproxy.table import Ipvs as Options
from pyproxy.table import ModeError
from tests.ipvs.world import differences, node, servers, table_of
from tests.unit.iptables_world import run
from tests.unit.test_iptables_route import CLUSTER_IP, WEB, endpoints, route

SCHEDULERS = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "sh", "dh", "sed", "nq", "mh"]
ONE = route(CLUSTER_IP, internal=endpoints(1, 2))
SYSCTLS = Path("/proc/sys/net/ipv4/conf/all")


@pytest.fixture(autouse=True)
def host() -> Iterator[None]:
    with node():
        yield


def test_every_scheduler_is_taken_and_another_follows_it() -> None:
    mode = IpvsMode()
    for name in SCHEDULERS:
        table = table_of(ONE, options=Options(scheduler=name))
        mode.sync(table, None)
        assert differences(table, mode) == []
        assert f"-A -t 10.96.0.1:80 -s {name} -b " in run("ipvsadm", "-Sn")


def test_a_scheduler_that_the_kernel_lacks_is_named_and_nothing_changes() -> None:
    mode = IpvsMode()
    mode.sync(table_of(ONE), None)
    before = servers()
    told = "this kernel has no IPVS scheduler nonesuch (module ip_vs_nonesuch); set another, such as rr"
    for beginner in (mode, IpvsMode()):
        with pytest.raises(ModeError) as raised:
            beginner.sync(table_of(options=Options(scheduler="nonesuch")), None)
        assert str(raised.value) == told
    assert servers() == before
    mode.sync(table_of(ONE), {WEB})
    assert differences(table_of(ONE), mode) == []


def test_a_trial_that_was_interrupted_is_no_obstacle() -> None:
    """The virtual server with which a scheduler is tried is there still, when its process was killed."""
    run("ipvsadm", "-A", "-f", str(0x30D60000), "-s", "rr", "-b", "flag-3")
    mode = IpvsMode()
    mode.sync(table_of(ONE), None)
    assert differences(table_of(ONE), mode) == []


def test_strict_arp_is_set_if_asked_for() -> None:
    IpvsMode().sync(table_of(), None)
    assert _arp() == ["0", "0"]
    mode = IpvsMode()
    mode.sync(table_of(options=Options(strict_arp=True)), None)
    assert _arp() == ["1", "2"]
    (SYSCTLS / "arp_ignore").write_text("0")
    assert [drift.what for drift in mode.verify()] == ["net.ipv4.conf.all.arp_ignore is not 1"]


def _arp() -> list[str]:
    return [(SYSCTLS / name).read_text().strip() for name in ("arp_ignore", "arp_announce")]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Options(), "900 120 300"),
        (Options(tcp_timeout=1000), "1000 120 300"),
        (Options(tcp_timeout=720 * 3600, udp_timeout=1e10), "2147483 120 2147483"),
        (Options(tcp_timeout=1000, tcp_fin_timeout=30.4, udp_timeout=60), "1000 30 60"),
    ],
)
def test_time_outs_arrive(options: Options, told: str) -> None:
    IpvsMode().sync(table_of(options=options), None)
    assert run("ipvsadm", "-l", "--timeout") == f"Timeout (tcp tcpfin udp): {told}\n"
