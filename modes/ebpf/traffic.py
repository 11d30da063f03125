"""What went through each service, as the maps counters and names have it."""

from collections.abc import Collection, Mapping

from ebpf import layout, syscall
from ebpf.layout import MAPS
from pyproxy.table import Family, RouteId, Traffic

_FEW = 64
"""Numbers that are looked up one by one: beyond, all are read at once."""


def traffic(maps: Mapping[str, int]) -> dict[RouteId | None, Traffic]:
    """Under None, what belongs to no service that is there: see Counts. Raises OSError."""
    names = {layout.read_number(key): layout.read_name(value) for key, value in syscall.entries(maps["names"])}
    found: dict[RouteId | None, Traffic] = {}
    others = Traffic()
    for key, value in syscall.entries(maps["counters"]):
        counted, name = _read(value), names.get(layout.read_number(key))
        if name is None:
            others = others.plus(counted)
        else:
            family = Family.IPV6 if name.family == 6 else Family.IPV4
            found[RouteId(name.namespace, name.service, name.port, family)] = counted
    found[None] = others
    return found


def begin_anew(counters: int, numbers: Collection[int]) -> None:
    """Other services get those numbers: what the last ones counted goes to those that are gone. Raises OSError."""
    if len(numbers) > _FEW:
        there = {layout.read_number(key): value for key, value in syscall.entries(counters)}
    else:
        wanted = {*numbers, layout.COUNTER_GONE} if numbers else set()
        there = {number: _lookup(counters, number) for number in wanted}
    counted = {number: counter for number in numbers if any(counter := _read(there[number]))}
    if not counted:
        return
    gone = _read(there[layout.COUNTER_GONE])
    for counter in counted.values():
        gone = gone.plus(counter)
    new = {layout.number(number): layout.counter() for number in counted}
    syscall.update(counters, {**new, layout.number(layout.COUNTER_GONE): layout.counter(gone)})


def _read(counter: bytes) -> Traffic:
    """Its fields are those of struct counter."""
    return Traffic(*layout.read_counter(counter))


def _lookup(counters: int, number: int) -> bytes:
    return syscall.lookup(counters, layout.number(number), MAPS["counters"].read_bytes) or layout.counter()
