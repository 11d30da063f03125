"""Where ebpf mode translates packets: on devices that are named, that come later, that vanish, that others use, too."""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.lab import Lab
from ebpf import pins, syscall
from ebpf.hook import SCHED_CLS
from ebpf.store import Store
from modes.ebpf import device_links, traffic_control
from modes.ebpf.devices import Devices
from pyproxy.kernel.netlink import ROUTE, Netlink
from tests.conformance.cluster import OURS, Candidate, Cluster, until
from tests.conformance.manifests import FAMILIES, PORTS, addresses, service, slices

BOTH = {"ingress", "egress"}
IDLE = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95]) + bytes(7)
"""A program that returns 0, TC_ACT_OK: nobody comes after it."""
GOES_ON = bytes([0xB7, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x95]) + bytes(7)
"""-1, TC_ACT_UNSPEC: whoever is next, is next."""
LINK_CREATE, TCX_INGRESS, BEFORE_ALL = 28, 46, 1 << 3  # BPF_LINK_CREATE, BPF_TCX_INGRESS, BPF_F_BEFORE


@contextmanager
def serving(*flags: str) -> Iterator[Cluster]:
    with Cluster(Candidate("ebpf", (*OURS, *flags)), syncPeriod="1s", minSyncPeriod="5ms") as cluster:
        cluster.apply("web", service(1), *slices(1, ["pod-2", "pod-4"]))
        yield cluster


def attached(lab: Lab, name: str) -> set[str]:
    """The hooks of a device where our programs are."""
    with lab.node.namespace.links() as links:
        (index,) = links.link_lookup(ifname=name)
    with lab.node.namespace.entered(), Netlink(ROUTE) as netlink:
        return set(device_links.attached(netlink, index))


def add(lab: Lab, name: str) -> None:
    with lab.node.namespace.links() as links:
        links.link("add", ifname=name, kind="veth", peer={"ifname": f"{name}-peer"})


def remove(lab: Lab, name: str) -> None:
    with lab.node.namespace.links() as links:
        links.link("del", index=links.link_lookup(ifname=name)[0])


def until_it_says(cluster: Cluster, what: str, since: int) -> None:
    until(lambda: what in cluster.log()[since:], lambda: cluster.log()[since:][-2000:])


def answers_outside(cluster: Cluster) -> set[str]:
    return {
        cluster.ask("client", 1, kind, family, protocol).pod
        for kind in ("NodePort", "LoadBalancer")
        for family in FAMILIES
        for protocol in PORTS
        for _ in range(8)
    }


@pytest.mark.parametrize("version", ["this", "another"])
def test_only_those_that_are_named_are_served_and_no_others(version: str) -> None:
    """What a proxy before had on others goes; who comes from outside is served as before."""
    with serving() as cluster:
        lab = cluster.lab
        for name in ("eth0", "veth1", "veth2", "veth3"):
            assert attached(lab, name) == BOTH
        assert answers_outside(cluster) == {"pod-2", "pod-4"}
        cluster.change_command((*OURS, "--devices", "eth0,late+,veth2"))
        cluster.kill()
        if version == "another":
            with lab.node.namespace.entered():
                for path in pins.folder().glob("*-*"):
                    path.rename(path.with_name(f"{path.name.partition('-')[0]}-0123456789ab"))
        cluster.start()
        cluster.settle()
        wanted = {"eth0": BOTH, "veth1": set(), "veth2": BOTH, "veth3": set()}
        until(lambda: {name: attached(lab, name) for name in wanted} == wanted, lambda: cluster.log()[-2000:])
        assert answers_outside(cluster) == {"pod-2", "pod-4"}
        add(lab, "other")
        add(lab, "late7")
        until(lambda: attached(lab, "late7") == BOTH, lambda: "late7 has no programs")
        assert attached(lab, "other") == set()
        remove(lab, "late7")
        said = len(cluster.log())
        until_it_says(cluster, "verified drift=0", said)


def test_one_that_is_not_there_is_named_and_served_when_it_comes() -> None:
    with serving("--devices", "eth0,late") as cluster:
        lab = cluster.lab
        assert "no such device; it is served when it comes device=late" in cluster.log()
        for _ in range(2):
            said = len(cluster.log())
            add(lab, "late")
            until_it_says(cluster, "a device has come and is served device=late", said)
            assert attached(lab, "late") == BOTH
            remove(lab, "late")
            until_it_says(cluster, "no such device; it is served when it comes device=late", said)
        assert cluster.log().count("no such device") == 3
        assert answers_outside(cluster) == {"pod-2", "pod-4"}


def test_one_that_vanishes_harms_nobody_else() -> None:
    """Also if that is while it is served, again and again."""
    with serving() as cluster:
        for number in range(20):
            add(cluster.lab, f"brief{number}")
            remove(cluster.lab, f"brief{number}")
        add(cluster.lab, "stays")
        until(lambda: attached(cluster.lab, "stays") == BOTH, lambda: cluster.log()[-2000:])
        assert "not served" not in cluster.log()
        assert answers_outside(cluster) == {"pod-2", "pod-4"}
        said = len(cluster.log())
        until_it_says(cluster, "verified drift=0", said)


def test_one_that_knows_no_egress_takes_no_filters_and_says_why() -> None:
    """Where the kernel has no tcx: programs for both ways would be in one place there, and one of them lost."""
    with Lab() as lab:
        add(lab, "half")
        lab.node.namespace.run(["tc", "qdisc", "add", "dev", "half", "ingress"])
        with lab.node.namespace.links() as links:
            (half,) = links.link_lookup(ifname="half")
        ours = syscall.load_program(SCHED_CLS, 0, GOES_ON, "ours")
        with lab.node.namespace.entered(), Netlink(ROUTE) as netlink:
            with pytest.raises(OSError, match="it has a qdisc ingress of another's"):
                traffic_control.attach(netlink, half, dict.fromkeys(BOTH, ours))
            assert traffic_control.attached(netlink, half) == {}


def test_one_that_takes_no_programs_is_named_and_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Lab() as lab:
        add(lab, "half")
        lab.node.namespace.run(["tc", "qdisc", "add", "dev", "half", "ingress"])
        with lab.node.namespace.entered():
            store = Store()
            store.open()
            programs = {hook: store.programs[hook] for hook in BOTH}
            devices = Devices()
            monkeypatch.setattr(syscall, "create_link", _unknown)
            for _ in range(2):
                devices.serve(programs, store.maps["devices"], (), ())
            assert list(devices.differences()) == []
            store.close()
        assert (attached(lab, "half"), attached(lab, "eth0")) == (set(), BOTH)
    refused = [record for record in caplog.records if record.message == "a device is not served"]
    assert [vars(record)["device"] for record in refused] == ["half"]


def _unknown(*_: object) -> int:
    raise OSError(errno.EINVAL, "Invalid argument")


@pytest.mark.parametrize("handle", [1, 2])
def test_programs_of_others_at_the_very_same_place_stay(monkeypatch: pytest.MonkeyPatch, handle: int) -> None:
    """Of the same priority, and with the number that ours would have."""
    with Lab() as lab:
        with lab.node.namespace.links() as links:
            (eth0,) = links.link_lookup(ifname="eth0")
        stranger = syscall.load_program(SCHED_CLS, 0, GOES_ON, "stranger")
        with lab.node.namespace.entered(), Netlink(ROUTE) as netlink:
            with monkeypatch.context() as patch:
                patch.setattr(traffic_control, "_OUR_NAME", b"stranger\0")
                patch.setattr(traffic_control, "_handle", lambda *_: handle)
                traffic_control.attach(netlink, eth0, {"ingress": stranger})
            ours = syscall.load_program(SCHED_CLS, 0, GOES_ON, "ours")
            for _ in range(2):
                traffic_control.attach(netlink, eth0, {"ingress": ours, "egress": ours})
                assert filters(lab) == {"pyproxy", "stranger"}
                assert traffic_control.attached(netlink, eth0) == dict.fromkeys(BOTH, syscall.program_id(ours))
            assert traffic_control.detach(netlink, eth0)
            assert filters(lab) == {"stranger"}


def filters(lab: Lab) -> set[str]:
    """The names of those at ingress of eth0."""
    shown = lab.node.namespace.run(["tc", "filter", "show", "dev", "eth0", "ingress"]).stdout.decode()
    return {word for word in ("pyproxy", "stranger") if f" {word} " in shown}


def test_who_comes_before_it_is_obeyed() -> None:
    """A program of somebody else's that ends the way of all packets: pyproxy does not put itself before it."""
    with serving() as cluster:
        with cluster.lab.node.namespace.links() as links:
            (eth0,) = links.link_lookup(ifname="eth0")
        first = syscall.load_program(SCHED_CLS, 0, IDLE, "stranger")
        with cluster.lab.node.namespace.entered():
            link = syscall._call(LINK_CREATE, struct.pack("=4I", first, eth0, TCX_INGRESS, BEFORE_ALL))
        external, port = addresses(1)["ExternalIP"]["IPv4"], PORTS["TCP"]
        assert cluster.outcome("client", external, port) == "dropped"
        cluster.kill()
        cluster.start()
        cluster.settle()
        assert attached(cluster.lab, "eth0") == BOTH
        assert cluster.outcome("client", external, port) == "dropped"
        os.close(link)
        assert cluster.outcome("client", external, port) in ("pod-2", "pod-4")
