"""Packets of those who have no flows go by without a look at them."""

from collections.abc import Iterator

import pytest

from ebpf import layout, syscall
from tests.unit.ebpf_world import World, world
from tests.unit.packets import Packet
from tests.unit.test_ebpf_packet import CLIENT, STRANGER, VERSIONS, packet, route

ELSEWHERE = {4: "203.0.113.99", 6: "2001:db8:99::9"}


@pytest.fixture(scope="module")
def bpf() -> Iterator[World]:
    with world("party") as loaded:
        yield loaded


def plant(bpf: World, sent: Packet) -> None:
    """A flow that leads its packets elsewhere, of somebody that programs know nothing of."""
    for hook in (layout.HOOK_INGRESS, layout.HOOK_EGRESS):
        way = layout.Way(sent.source, 40000, sent.destination, 80, sent.protocol, hook)
        flow = layout.Flow(ELSEWHERE[sent.version], 4711, 0, 0, 1e9)
        syscall.update(bpf.store.maps["flows"], {way.packed(): flow.packed()})


def ends(packet: Packet) -> set[str]:
    return {packet.source, packet.destination}


@pytest.mark.parametrize("hook", ["ingress", "egress"])
@pytest.mark.parametrize("version", VERSIONS)
def test_flows_are_looked_up_for_those_who_have_some(bpf: World, version: int, hook: str) -> None:
    bpf.write(route(version))
    sent = Packet(STRANGER[version], 40000, CLIENT[version], 80, flags=0)
    plant(bpf, sent)
    assert bpf.passes(hook, sent) == sent
    bpf.through(packet(version, source=CLIENT))
    assert ELSEWHERE[version] in ends(bpf.passes(hook, sent))  # it goes to one who has some
    bpf.write(route(version))
    plant(bpf, sent)
    assert bpf.passes(hook, sent) == sent
    bpf.through(packet(version, source=STRANGER))
    assert ELSEWHERE[version] in ends(bpf.passes(hook, sent))  # or it comes from one


def test_where_nobody_knows_any_more_who_has_flows_they_are_looked_up_for_all(bpf: World) -> None:
    bpf.write(route(4))
    sent = Packet(STRANGER[4], 40000, CLIENT[4], 80, flags=0)
    plant(bpf, sent)
    (bpf.store.folder / "parties").unlink()
    bpf.store.open()
    assert ELSEWHERE[4] in ends(bpf.passes("ingress", sent))
