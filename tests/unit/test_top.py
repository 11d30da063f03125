"""What `pyproxy top` makes of two readings: rates, order, and columns that fit."""

import pytest

from pyproxy.table import Family, RouteId, Traffic
from pyproxy.top import SORTS, Reading, as_json, lines, number, rows

WEB, DNS = RouteId("shop", "web", "http", Family.IPV4), RouteId("kube-system", "dns", "dns", Family.IPV6)
BEFORE = Reading(10.0, {WEB: Traffic(sockets=10, bytes_in=100), DNS: Traffic(sockets=5, refused=7), None: Traffic()})
NOW = Reading(
    12.0,
    {
        WEB: Traffic(sockets=12, flows=4, bytes_in=5100, packets_in=3, packets_out=1),
        DNS: Traffic(sockets=105, refused=7, bytes_out=9, lost=1),
        None: Traffic(flows=1),
    },
)
ALL = {None, WEB, DNS}


def order(sort: str, before: Reading | None = BEFORE) -> list[RouteId | None]:
    return [row.route_id for row in rows(before, NOW, sort)]


def test_rates_are_by_the_time_between_two_readings() -> None:
    (web,) = (row for row in rows(BEFORE, NOW, "name") if row.route_id == WEB)
    assert web.sum("sockets", "flows") == (3.0, 16)
    assert web.sum("bytes_in") == (2500.0, 5100)


@pytest.mark.parametrize(
    ("sort", "first"),
    [("connections", DNS), ("packets", WEB), ("in", WEB), ("out", DNS), ("failed", DNS), ("name", None)],
)
def test_the_busiest_come_first(sort: str, first: RouteId | None) -> None:
    assert order(sort)[0] == first
    assert set(order(sort)) == ALL


def test_without_an_earlier_reading_totals_decide_and_nothing_has_a_rate() -> None:
    assert order("connections", None) == [DNS, WEB, None]
    assert {row.rate for row in rows(None, NOW, "name")} == {(0.0,) * len(Traffic._fields)}


def test_a_service_that_came_anew_or_went_has_no_rate_below_zero() -> None:
    backwards = rows(NOW, Reading(13.0, BEFORE.traffic), "name")
    assert all(rate >= 0 for row in backwards for rate in row.rate)
    assert [row.route_id for row in backwards] == [DNS, WEB]  # none of the others, for whom nothing is counted


def test_keys_are_one_letter_each() -> None:
    assert len({name[0] for name in (*SORTS, "quit")}) == len(SORTS) + 1


@pytest.mark.parametrize("width", [20, 40, 80, 120, 200])
def test_lines_fit(width: int) -> None:
    long = RouteId("n" * 63, "s" * 63, "p" * 15, Family.IPV6)
    reading = Reading(12.0, {**NOW.traffic, long: Traffic(*[10**18] * 9)})
    for some in (NOW, reading):
        shown = list(lines(rows(BEFORE, some, "connections"), width))
        assert max(map(len, shown)) <= width
        assert shown[0].startswith("SERVICE ")
        assert len(shown) == 1 + len(some.traffic)


def test_no_services_are_a_heading() -> None:
    assert len(list(lines([], 80))) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.25, "0.2"), (999, "999"), (1000, "1.0k"), (999_949, "999.9k"), (999_950, "1.0M"), (1e18, "1.0E")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_json_has_all_of_it() -> None:
    dns = as_json(rows(BEFORE, NOW, "connections"))[0]
    assert dns["service"] == {"namespace": "kube-system", "name": "dns", "port": "dns", "family": "IPv6"}
    assert dns["totals"] == NOW.traffic[DNS]._asdict()
    assert isinstance(dns["perSecond"], dict)
    assert dns["perSecond"]["sockets"] == 50.0
    assert as_json(rows(BEFORE, NOW, "name"))[0]["service"] is None
