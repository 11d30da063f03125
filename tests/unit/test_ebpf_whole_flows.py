"""Which entries of flows are found not to belong together, with flows that packet programs made."""

from collections.abc import Iterator
from dataclasses import replace

import pytest

from ebpf import syscall
from ebpf.layout import FLOW_FROM_SERVICE, FLOW_TO_SERVICE, HOOK_EGRESS, HOOK_INGRESS, Flow, Way, read_tuple
from ebpf.whole_flows import torn
from modes.ebpf.flows import of_others, ports_of
from pyproxy.kernel.masquerade import Use
from pyproxy.table import OnEmpty, Pool
from tests.unit.ebpf_world import NODE, PORTS, World, world
from tests.unit.packets import UDP
from tests.unit.test_ebpf_packet import CLIENT, HERE, POD, PROTOCOLS, VERSIONS, packet, route
from tests.unit.test_ebpf_ports import MASQUERADED, both


@pytest.fixture(scope="module")
def bpf() -> Iterator[World]:
    with world() as loaded:
        yield loaded


def parts(bpf: World) -> dict[str, tuple[Way, Flow]]:
    """Of the one flow that there is, by where in flow.h's drawing they stand."""
    found = {}
    for way, flow in bpf.flows().items():
        if way.hook == HOOK_INGRESS:
            found["there" if flow.flags & FLOW_TO_SERVICE else "answer"] = way, flow
        else:
            assert way.hook == HOOK_EGRESS
            found["back" if flow.flags & FLOW_FROM_SERVICE else "out"] = way, flow
    return found


def found_torn(bpf: World) -> set[Way]:
    return set(map(read_tuple, torn(bpf.store.maps["flows"])))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("version", VERSIONS)
def test_flows_are_whole_as_programs_make_them(bpf: World, version: int, protocol: int) -> None:
    bpf.write(route(version, protocol))
    for port in range(40000, 40010):
        bpf.through(packet(version, protocol, CLIENT, source_port=port))
        bpf.through(packet(version, protocol, POD, source_port=port))
    bpf.passes("ingress", packet(version, protocol, CLIENT, source_port=50000))  # no source is chosen yet
    empty = Pool((), OnEmpty.REJECT)
    bpf.change(route(version, protocol, internal=empty))
    bpf.run("ingress", packet(version, UDP, CLIENT, source_port=50001).bytes())  # refused
    assert len(bpf.flows()) > 60
    assert found_torn(bpf) == set()


@MASQUERADED
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_so_are_those_whose_client_got_another_port_and_answers_to_other_modes(
    bpf: World, protocol: int, masquerades: bool
) -> None:
    bpf.write(route(4, protocol, masquerade_external=masquerades))
    for one in both(4, protocol):
        bpf.through(one)
    lent = [(way, flow) for way, flow in bpf.flows().items() if flow.client_port and way.hook == HOOK_INGRESS]
    assert len(lent) == 1
    syscall.update(bpf.store.maps["flows"], of_others([Use(protocol, NODE[4], PORTS.stop, HERE[4], 8080)]))
    assert found_torn(bpf) == set()
    used = {use for use in ports_of(bpf.flows()) if use.endpoint == HERE[4]}
    assert len(used) == 2 * masquerades


@pytest.mark.parametrize(
    ("lost", "found"),
    [
        ("there", set()),  # the next packet begins anew
        ("back", {"there"}),
        ("out", {"answer"}),
        ("answer", {"there", "out"}),
    ],
)
def test_a_flow_without_one_of_its_entries_is_torn(bpf: World, lost: str, found: set[str]) -> None:
    bpf.write(route(4))
    bpf.through(packet(4))
    before = parts(bpf)
    assert before.keys() == {"there", "out", "answer", "back"}
    syscall.delete(bpf.store.maps["flows"], [before[lost][0].packed()])
    assert found_torn(bpf) == {before[name][0] for name in found}


def test_a_flow_whose_port_another_has_is_torn(bpf: World) -> None:
    bpf.write(route(4, UDP))
    bpf.through(packet(4, UDP))
    mine = parts(bpf)
    way, answer = mine["answer"]
    other = replace(packet(4, UDP), source_port=40001)
    syscall.update(bpf.store.maps["flows"], {way.packed(): answer._replace(port=other.source_port).packed()})
    assert found_torn(bpf) == {mine["there"][0], mine["out"][0], way}
    syscall.delete(bpf.store.maps["flows"], torn(bpf.store.maps["flows"]))
    assert bpf.through(packet(4, UDP)).source_port  # it begins anew


def test_a_flow_whose_answers_come_from_another_service_is_torn(bpf: World) -> None:
    bpf.write(route(4))
    bpf.through(packet(4, source=POD))
    mine = parts(bpf)
    assert mine.keys() == {"there", "back"}
    way, back = mine["back"]
    syscall.update(bpf.store.maps["flows"], {way.packed(): back._replace(port=81).packed()})
    assert found_torn(bpf) == {mine["there"][0]}
