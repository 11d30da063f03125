"""Programs come to devices while these carry traffic, and go again."""

import errno
from collections.abc import Iterator
from threading import Event, Thread

import pytest

from bench.ask import ask
from bench.lab import SERVER_PORT, Lab
from ebpf import syscall
from ebpf.hook import PACKET
from ebpf.store import Store
from modes.ebpf import device_links, traffic_control
from pyproxy.kernel.netlink import ROUTE, Netlink

TIMES, PATIENCE_S = 40, 2.0


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab, lab.node.namespace.entered():
        yield lab


@pytest.fixture
def programs(lab: Lab) -> Iterator[dict[str, int]]:
    """With empty maps, so that they let everything pass."""
    store = Store()
    store.open()
    yield {hook: store.programs[hook] for hook in PACKET}
    store.close()


def index_of(lab: Lab, name: str) -> int:
    with lab.node.namespace.links() as links:
        return int(links.link_lookup(ifname=name)[0])


def test_no_packet_is_lost_as_they_come_and_go(lab: Lab, programs: dict[str, int]) -> None:
    """From a pod to another one, past every service: each datagram that is lost is a question unanswered."""
    over = Event()
    answers, lost = [], []

    def run() -> None:
        while not over.is_set():
            try:
                answers.append(ask(lab.pods["pod-1"], lab.pods["pod-2"].ipv4, SERVER_PORT, "UDP", PATIENCE_S))
            except TimeoutError:
                lost.append(len(answers))

    devices = [index_of(lab, name) for name in ("veth1", "veth2")]
    thread = Thread(target=run)
    thread.start()
    try:
        with Netlink(ROUTE) as netlink:
            for _ in range(TIMES):
                for device in devices:
                    device_links.attach(netlink, device, programs)
                    assert device_links.attached(netlink, device).keys() == PACKET.keys()
                for device in devices:
                    assert device_links.detach(netlink, device)
                    assert device_links.attached(netlink, device) == {}
    finally:
        over.set()
        thread.join()
    assert answers
    assert lost == []


def test_a_kernel_without_tcx_gets_filters(lab: Lab, programs: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    device = index_of(lab, "veth1")
    ids = {hook: syscall.program_id(handle) for hook, handle in programs.items()}
    with Netlink(ROUTE) as netlink:
        with monkeypatch.context() as patch:
            patch.setattr(syscall, "create_link", unknown)
            device_links.attach(netlink, device, programs)
            assert traffic_control.attached(netlink, device) == device_links.attached(netlink, device) == ids
        # As soon as the kernel does, filters go.
        device_links.attach(netlink, device, programs)
        assert (traffic_control.attached(netlink, device), device_links.attached(netlink, device)) == ({}, ids)
        assert device_links.detach(netlink, device)
        assert not device_links.detach(netlink, device)


def test_a_device_that_has_vanished_is_no_failure(lab: Lab, programs: dict[str, int]) -> None:
    device = index_of(lab, "veth3")
    with Netlink(ROUTE) as netlink:
        device_links.attach(netlink, device, programs)
        with lab.node.namespace.links() as links:
            links.link("del", index=device)
        assert device_links.attached(netlink, device) == {}
        device_links.attach(netlink, device, programs)
        assert device_links.attached(netlink, device) == {}
