"""After each change in a random history of a cluster the maps must hold what the table says, and no slot be missing.

Not even after each single step of a change, since packets come by then, too.
"""

import errno
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from bench.lab import Lab
from ebpf import layout, store, syscall
from ebpf.layout import MAPS
from modes.ebpf.mode import EbpfMode
from pyproxy.host import HostOptions
from pyproxy.objects import Ingress, ServicePort, SlicePort
from pyproxy.planner import Planner
from pyproxy.store import Store
from pyproxy.table import EbpfAlgorithm, Host, ModeError, Prefix, Table
from tests.unit.histories import CLUSTER_CIDRS, Crowd
from tests.unit.samples import THIS_NODE, endpoint, endpoint_slice, service
from tests.unit.samples import table as table_of

STEPS, SEEDS = 40, 3
Endpoints = dict[tuple[str, int, int], tuple[set[tuple[str, int]], set[tuple[str, int]]]]
CROWD = Crowd()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize("algorithm", EbpfAlgorithm)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_after_any_history_the_maps_hold_what_the_table_says(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, seed: int, algorithm: EbpfAlgorithm
) -> None:
    random = Random(seed)
    assert lab.cgroup is not None
    options = HostOptions(THIS_NODE, cluster_cidrs=CLUSTER_CIDRS, cgroup=str(lab.cgroup.path), ebpf_algorithm=algorithm)
    objects = Store(THIS_NODE)
    planner = Planner(objects, options, EbpfMode().objection)
    with lab.node.namespace.entered():
        mode = EbpfMode()
        mode.cleanup()
        for step in range(STEPS):
            objects.apply([CROWD.event(random) for _ in range(random.choice((1, 1, 1, 2, 5)))])
            table, changed = planner.plan()
            happening = random.random()
            if happening < 0.05:
                mode = EbpfMode()  # another process begins where this one ended
            elif happening < 0.1:
                with monkeypatch.context() as patch:
                    patch.setattr(syscall, "update", _refuse)
                    with pytest.raises(ModeError, match="no space"):
                        mode.sync(table, None)
            with watched():
                mode.sync(table, changed)
            assert mode.verify() == [], f"seed {seed}, step {step}"
            assert endpoints() == wanted(table), f"seed {seed}, step {step}"
            assert counters() == of_routes(table), f"seed {seed}, step {step}"


def test_when_the_first_sync_has_failed_that_is_what_differs(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lab.cgroup is not None
    with lab.node.namespace.entered():
        EbpfMode().cleanup()
        mode = EbpfMode()
        with monkeypatch.context() as patch:
            patch.setattr(syscall, "update", _refuse)
            with pytest.raises(ModeError, match="no space"):
                mode.sync(Table({}, Host(cgroup=str(lab.cgroup.path))), None)
        assert [drift.what for drift in mode.verify()] == ["the last sync failed"]


def test_what_memory_is_short_for_is_written_as_long_as_some_of_it_goes_in(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = syscall.create_map("short", MAPS["members"])
    write = syscall._raw

    def write_one(command: int, attribute: Any) -> int:
        (wanted,) = struct.unpack_from("=I", attribute, syscall._COUNT_AT)
        struct.pack_into("=I", attribute, syscall._COUNT_AT, 1)
        done = write(command, attribute)
        if wanted > 1:
            raise OSError(errno.ENOMEM, "as the kernel says it")
        return done

    def write_none(_command: int, _attribute: Any) -> int:
        raise OSError(errno.ENOMEM, "as the kernel says it")

    wanted = {layout.member(number, layout.backend("10.244.0.1", 80)): layout.ONE for number in range(3000)}
    try:
        with monkeypatch.context() as patch:
            patch.setattr(syscall, "_MEMORY_WAIT_S", 0)
            patch.setattr(syscall, "_raw", write_none)
            with pytest.raises(OSError, match="as the kernel says it"):
                syscall.update(handle, wanted)
            patch.setattr(syscall, "_raw", write_one)
            syscall.update(handle, wanted)
        assert dict(syscall.entries(handle)) == wanted
    finally:
        syscall.close_all({"short": handle})


@pytest.mark.parametrize("is_full", [True, False], ids=["everything", "changes"])
def test_whoever_sees_a_known_service_at_a_new_port_sees_all_that_came_with_it(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """So a process that is killed in the midst of a sync leaves nothing half done that others take for done."""
    assert lab.cgroup is not None
    host = Host(cgroup=str(lab.cgroup.path))
    known = service("old", cluster_ips=("10.96.0.1",)), endpoint_slice(endpoint("10.244.0.1"), of="old")
    goes = service("gone", cluster_ips=("10.96.0.3",)), endpoint_slice(endpoint("10.244.0.3"), of="gone", name="gone-1")
    before = replace(table_of(*known, *goes), host=host)
    moved = (
        service("old", ServicePort(81), cluster_ips=("10.96.0.1",)),
        endpoint_slice(endpoint("10.244.0.4"), of="old"),
    )
    node_port = ServicePort(80, node_port=30080)
    comes = service("new", node_port, cluster_ips=("10.96.0.2",), type="NodePort")
    after = replace(table_of(*moved, comes, endpoint_slice(endpoint("10.244.0.2"), of="new", name="new-1")), host=host)
    ids = before.routes.keys() | after.routes.keys()
    calls, shown = 0, False
    with lab.node.namespace.entered():
        while not shown or endpoints() != wanted(after):
            mode = EbpfMode()
            mode.sync(before, None)
            with monkeypatch.context() as patch, suppress(ModeError):
                calls += 1
                countdown = iter(range(calls))
                for name in ("update", "delete"):
                    patch.setattr(syscall, name, _until_killed(getattr(syscall, name), countdown))
                mode.sync(after, None if is_full else ids)
            found = endpoints()
            shown = found.get(("10.96.0.1", 81, 6)) == ({("10.244.0.4", 8080)},) * 2
            if shown:
                assert ("10.96.0.3", 80, 6) not in found
                assert found["10.96.0.2", 80, 6] == found["0.0.0.0", 30080, 6] == ({("10.244.0.2", 8080)},) * 2
                opened = store.opened_maps()
                assert {layout.spelled(key) for key, _ in syscall.entries(opened["addresses"])} >= {"10.96.0.2"}
                syscall.close_all(opened)
    assert calls > 5


@pytest.mark.parametrize("is_full", [True, False], ids=["everything", "changes"])
def test_whoever_sees_a_new_port_sees_all_other_changes(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, is_full: bool
) -> None:
    """As between two turns of the scheduler: what clients find after each entry that is written."""
    assert lab.cgroup is not None
    host = Host((Prefix("0.0.0.0/0"),), cgroup=str(lab.cgroup.path))
    balanced: dict[str, Any] = {
        "type": "LoadBalancer",
        "ingress": (Ingress("192.0.2.1"),),
        "cluster_ips": ("10.96.0.1",),
    }
    web, more = ServicePort(80, "web"), ServicePort(81, "more")
    of_grown = endpoint_slice(endpoint("10.244.0.3"), of="grown", ports=(SlicePort("web", "TCP", 8080),))
    of_both = endpoint_slice(
        endpoint("10.244.0.3"), of="grown", ports=(SlicePort("web", "TCP", 8080), SlicePort("more", "TCP", 8081))
    )
    before = table_of(
        service("moved", load_balancer_source_ranges=("10.1.0.0/16", "10.2.0.0/16"), **balanced),
        endpoint_slice(endpoint("10.244.0.1"), endpoint("10.244.0.2"), of="moved"),
        *(service("grown", web, cluster_ips=("10.96.0.3",)), of_grown),
        *(service("gone", cluster_ips=("10.96.0.2",)), endpoint_slice(endpoint("10.244.0.2"), of="gone")),
    )
    after = table_of(
        service("moved", load_balancer_source_ranges=("10.2.0.0/16",), **balanced),
        endpoint_slice(endpoint("10.244.0.4"), of="moved"),
        *(service("grown", web, more, cluster_ips=("10.96.0.3",)), of_both),
        service("new", ServicePort(80, node_port=30080), cluster_ips=("10.96.0.4",), type="NodePort"),
        endpoint_slice(endpoint("10.244.0.5"), of="new"),
    )
    seen: list[Found] = []

    def followed(write: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
        def written(handle: int, entries: Any) -> None:
            for one in entries:
                write(handle, {one: entries[one]} if isinstance(entries, dict) else [one])
                seen.append(found_by_clients())

        return written

    with lab.node.namespace.entered():
        mode = EbpfMode()
        mode.sync(replace(before, host=host), None)
        known = found_by_clients()
        with monkeypatch.context() as patch:
            for name in ("update", "delete"):
                patch.setattr(syscall, name, followed(getattr(syscall, name)))
            mode.sync(replace(after, host=host), None if is_full else before.routes.keys() | after.routes.keys())
    new = seen[-1].keys() - known.keys()
    assert {port for _, port in new} == {80, 81, 30080}
    rest = {place: found for place, found in seen[-1].items() if place not in new}
    assert rest.keys() < known.keys()
    for found in seen:
        assert not found.keys() & new or {place: one for place, one in found.items() if place not in new} == rest


Found = dict[tuple[str, int], tuple[set[tuple[str, int]], set[str]]]


def found_by_clients() -> Found:
    """By address and port, where programs look for them: endpoints for the outside, and sources that are let in."""
    maps = store.opened_maps()
    try:
        bits = {key: layout.read_number(value) for key, value in syscall.entries(maps["addresses"])}
        sources = [layout.read_source(key) for key, _ in syscall.entries(maps["sources"])]
        found: Found = {}
        for key, value in syscall.entries(maps["services"]):
            (address, port, _), service = layout.read_place(key), layout.read_service(value)
            if address == layout.ANY_ADDRESS["IPv4"] or bits.get(address, 0) & layout.ADDRESS_FRONTEND:
                endpoints = {_slot(maps, service.outside.id, number) for number in range(service.outside.size)}
                let_in = {prefix for guard, prefix in sources if guard == service.guard}
                found[layout.spelled(address), port] = endpoints, let_in
        return found
    finally:
        syscall.close_all(maps)


def _until_killed(call: Callable[..., None], countdown: Iterator[int]) -> Callable[..., None]:
    """The call, one entry at a time, for as long as something is left to count."""

    def limited(handle: int, entries: Any) -> None:
        for one in entries:
            if next(countdown, None) is None:
                raise OSError(28, "no space")
            call(handle, {one: entries[one]} if isinstance(entries, dict) else [one])

    return limited


@contextmanager
def watched() -> Iterator[None]:
    """Whatever is written meanwhile, `assert_intact` must hold after each call that writes."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("update", "delete"):
            patch.setattr(syscall, name, _followed(getattr(syscall, name)))
        yield


def _followed(write: Callable[[int, Any], None]) -> Callable[[int, Any], None]:
    def written(handle: int, entries: Any) -> None:
        write(handle, entries)
        assert_intact()

    return written


def assert_intact() -> None:
    """Whoever finds a service finds a backend in each slot that it counts, and all of the table that it names."""
    maps = store.opened_maps()
    try:
        for _, value in syscall.entries(maps["services"]):
            service = layout.read_service(value)
            for pool in service[:2]:
                slots = [layout.slot(pool.id, n) for n in range(pool.size)]
                assert all(syscall.lookup(maps["backends"], slot, MAPS["backends"].value) for slot in slots)
            if service.places:
                assert set(_places(maps, service)) == set(range(service.outside.size))
    finally:
        syscall.close_all(maps)


def _places(maps: dict[str, int], service: layout.Service) -> list[int]:
    slots: list[int] = []
    while len(slots) < service.places:
        key = layout.stretch(service.outside.id, service.table, len(slots) // 256)
        packed = syscall.lookup(maps["maglev"], key, MAPS["maglev"].value)
        assert packed is not None
        slots += layout.read_places(packed)
    return slots[: service.places]


def endpoints() -> Endpoints:
    """By address, port and protocol: the endpoints for the inside, and those for others, as programs find them."""
    maps = store.opened_maps()
    try:
        found: Endpoints = {}
        for key, value in syscall.entries(maps["services"]):
            service = layout.read_service(value)
            address, port, protocol = layout.read_place(key)
            inside, outside = ({_slot(maps, pool.id, n) for n in range(pool.size)} for pool in service[:2])
            found[layout.spelled(address), port, protocol] = inside, outside
        return found
    finally:
        syscall.close_all(maps)


def counters() -> dict[tuple[str, int, int], layout.Name]:
    """By address, port and protocol: whose counter it is."""
    maps = store.opened_maps()
    try:
        names = {layout.read_number(key): layout.read_name(value) for key, value in syscall.entries(maps["names"])}
        found = {}
        for key, value in syscall.entries(maps["services"]):
            address, port, protocol = layout.read_place(key)
            found[layout.spelled(address), port, protocol] = names[layout.read_service(value).counter]
        return found
    finally:
        syscall.close_all(maps)


def of_routes(table: Table) -> dict[tuple[str, int, int], layout.Name]:
    found = {}
    for route in table.routes.values():
        name = layout.Name(*route.id[:3], int(route.id.family.value[3]))
        protocol = layout.PROTOCOLS[route.transport.value]
        found.update({(str(one.address), one.port, protocol): name for one in route.frontends})
        if route.node_port:
            found["0.0.0.0" if name.family == 4 else "::", route.node_port, protocol] = name
    return found


def _slot(maps: dict[str, int], pool: int, number: int) -> tuple[str, int]:
    packed = syscall.lookup(maps["backends"], layout.slot(pool, number), MAPS["backends"].value)
    assert packed is not None
    assert syscall.lookup(maps["members"], layout.member(pool, packed), MAPS["members"].value) is not None
    return layout.read_backend(packed)


def wanted(table: Table) -> Endpoints:
    """From the table alone."""
    found: Endpoints = {}
    for route in table.routes.values():
        internal, external, short_circuit = ({(str(one.ip), one.port) for one in pool.backends} for pool in route.pools)
        protocol = layout.PROTOCOLS[route.transport.value]
        others = external if route.masquerade_external else short_circuit, external
        for one in route.frontends:
            of_cluster = one.scope.value == "ClusterIP"
            found[str(one.address), one.port, protocol] = (internal, internal) if of_cluster else others
        if route.node_port:
            anywhere = "0.0.0.0" if route.id.family.value == "IPv4" else "::"
            found[anywhere, route.node_port, protocol] = others
    return found


def _refuse(*_: object) -> None:
    raise OSError(28, "no space")
