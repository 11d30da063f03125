"""What goes through each service, between two readings of the counters, as a table."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyproxy.table import RouteId, Traffic

_OTHERS = "(others, and gone)"
_PREFIXES = "kMGTPE"
_LEAST_NAME = 11
_PARTS = ("namespace", "name", "port", "family")


class Reading(NamedTuple):
    at: float
    """Seconds of a clock that only goes forward."""
    traffic: Mapping[RouteId | None, Traffic]


@dataclass(frozen=True, slots=True)
class Row:
    route_id: RouteId | None
    """None: what belongs to no service that is there."""
    total: Traffic
    rate: tuple[float, ...]
    """A second, by the fields of Traffic; all 0 where there is nothing to compare with."""

    @property
    def name(self) -> str:
        return _OTHERS if self.route_id is None else str(self.route_id)

    def sum(self, *fields: str) -> tuple[float, int]:
        """Rate and total."""
        places = [Traffic._fields.index(field) for field in fields]
        return sum(self.rate[place] for place in places), sum(self.total[place] for place in places)


_CONNECTIONS, _FAILED = ("sockets", "flows"), ("refused", "dropped", "lost")
SORTS: Mapping[str, tuple[str, ...]] = {
    "connections": _CONNECTIONS,
    "packets": ("packets_in", "packets_out"),
    "in": ("bytes_in",),
    "out": ("bytes_out",),
    "failed": _FAILED,
    "name": (),
}
"""By what rows can be sorted, and the fields of Traffic that stand for it. Their first letters are the keys."""

_COLUMNS: tuple[tuple[str, Callable[[Row], float]], ...] = (
    ("CONN/S", lambda row: row.sum(*_CONNECTIONS)[0]),
    ("CONNS", lambda row: row.sum(*_CONNECTIONS)[1]),
    ("PKT/S", lambda row: row.sum("packets_in", "packets_out")[0]),
    ("IN B/S", lambda row: row.sum("bytes_in")[0]),
    ("OUT B/S", lambda row: row.sum("bytes_out")[0]),
    ("IN B", lambda row: row.sum("bytes_in")[1]),
    ("OUT B", lambda row: row.sum("bytes_out")[1]),
    ("REFUSED", lambda row: row.total.refused),
    ("DROPPED", lambda row: row.total.dropped),
    ("LOST", lambda row: row.total.lost),
)
_WIDTH = 8


def rows(before: Reading | None, now: Reading, sort: str) -> list[Row]:
    """The busiest first: by rate, then by total. Those without a service have a row if there is something in it."""
    seconds = now.at - before.at if before else 0.0
    found = []
    for route_id, total in now.traffic.items():
        if route_id is None and not any(total):
            continue
        earlier = before.traffic.get(route_id, Traffic()) if before else total
        # A service may have left for the others, or come anew: nothing goes backwards.
        rate = tuple(max(0, new - old) / seconds if seconds else 0.0 for new, old in zip(total, earlier, strict=True))
        found.append(Row(route_id, total, rate))
    found.sort(key=lambda row: row.name)
    if fields := SORTS[sort]:
        found.sort(key=lambda row: row.sum(*fields), reverse=True)
    return found


def lines(found: list[Row], width: int) -> Iterator[str]:
    """A heading, then each row: as many columns as there is room for."""
    name_width = max((len(row.name) for row in found), default=0)
    count = max(1, (width - max(_LEAST_NAME, min(name_width, width // 3))) // (_WIDTH + 1))
    columns = _COLUMNS[:count]
    room = max(_LEAST_NAME, min(max(name_width, len("SERVICE")), width - len(columns) * (_WIDTH + 1)))
    yield f"{'SERVICE':{room}}" + "".join(f" {title:>{_WIDTH}}" for title, _ in columns)
    for row in found:
        name = row.name if len(row.name) <= room else row.name[: room - 1] + "…"
        yield f"{name:{room}}" + "".join(f" {number(read(row)):>{_WIDTH}}" for _, read in columns)


def number(value: float) -> str:
    """In at most seven characters."""
    if value < 1000:
        return f"{value:.0f}" if value == int(value) else f"{value:.1f}"
    power = -1
    while value >= 999.95 and power < len(_PREFIXES) - 1:
        value /= 1000
        power += 1
    return f"{value:.1f}{_PREFIXES[power]}"


def as_json(found: list[Row]) -> list[dict[str, object]]:
    return [
        {
            "service": row.route_id and dict(zip(_PARTS, (*row.route_id[:3], row.route_id.family.value), strict=True)),
            "totals": row.total._asdict(),
            "perSecond": dict(zip(Traffic._fields, row.rate, strict=True)),
        }
        for row in found
    ]
