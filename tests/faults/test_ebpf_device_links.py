"""Programs come to devices while these carry traffic, and go again."""

import errno
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from threading import Event, Thread

import pytest

from bench.ask import Answer, ask
from bench.lab import SERVER_PORT, Host, Lab
from ebpf import syscall
from ebpf.hook import PACKET
from ebpf.store import Store
from modes.ebpf import device_links, traffic_control
from modes.ebpf.mode import EbpfMode
from modes.nftables.mode import NftablesMode
from pyproxy.kernel.netlink import ROUTE, Netlink
from pyproxy.table import InUse
from tests.conformance.cluster import until
from tests.faults.test_ebpf_ports import ADDRESS, PORT, table_of

TIMES, TIMES_TAKEN_OVER, PATIENCE_S = 40, 3, 2.0


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


@contextmanager
def asking(
    host: Host, address: str, port: int, protocol: str, patience: float
) -> Iterator[tuple[list[Answer], list[str]]]:
    """One after the other, from a thread: the answers, and what went wrong instead."""
    over = Event()
    answers: list[Answer] = []
    lost: list[str] = []

    def run() -> None:
        while not over.is_set():
            try:
                answers.append(ask(host, address, port, protocol, patience))
            except OSError as error:
                lost.append(repr(error))

    thread = Thread(target=run)
    thread.start()
    try:
        yield answers, lost
    finally:
        over.set()
        thread.join()


def has_retired(mode: EbpfMode) -> bool:
    with suppress(InUse):
        list(mode.retire(NftablesMode()))
        return True
    return False


def unknown(*_: object) -> None:
    raise OSError(errno.EINVAL, "Invalid argument")


def test_no_packet_is_lost_as_they_come_and_go(lab: Lab, programs: dict[str, int]) -> None:
    """From a pod to another one, past every service: each datagram that is lost is a question unanswered."""
    devices = [index_of(lab, name) for name in ("veth1", "veth2")]
    with (
        Netlink(ROUTE) as netlink,
        asking(lab.pods["pod-1"], lab.pods["pod-2"].ipv4, SERVER_PORT, "UDP", PATIENCE_S) as (answers, lost),
    ):
        for _ in range(TIMES):
            for device in devices:
                device_links.attach(netlink, device, programs)
                assert device_links.attached(netlink, device).keys() == PACKET.keys()
            for device in devices:
                assert device_links.detach(netlink, device)
                assert device_links.attached(netlink, device) == {}
    assert answers
    assert lost == []


def test_where_devices_are_stopped_for_them_connections_are_late_and_none_fails(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another mode has what comes again, and ebpf mode what comes then."""
    monkeypatch.setattr(device_links, "_link", unknown)
    NftablesMode().sync(table_of(lab), None)
    with ExitStack() as stack:
        loads = [stack.enter_context(asking(lab.client, ADDRESS, PORT, "TCP", 5.0)) for _ in range(4)]
        for _ in range(TIMES_TAKEN_OVER):
            mode = EbpfMode()
            mode.sync(table_of(lab), None)
            for answers, _ in loads:
                count = len(answers)
                until(lambda: len(answers) > count + 20, lambda: f"{loads}"[:2000])  # noqa: B023
            until(partial(has_retired, mode), lambda: "it is in use yet")
    assert [lost for _, lost in loads] == [[]] * len(loads)


def test_a_kernel_without_tcx_gets_filters(lab: Lab, programs: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
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
