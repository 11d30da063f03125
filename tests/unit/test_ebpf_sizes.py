"""Whether it is said that a map is nearly full, once, and that it would be too full, before anything is written."""

import logging

import pytest

from modes.ebpf.sizes import Pressure, check, specs_of
from pyproxy.table import ModeError

SPECS = specs_of([("backends", 100), ("counters", 10)])


def said(caplog: pytest.LogCaptureFixture, pressure: Pressure, **entries: int) -> list[str]:
    caplog.clear()
    with caplog.at_level(logging.WARNING, "pyproxy"):
        pressure.note(SPECS, entries)
    return [f"{record.map} {record.entries}/{record.size} {record.enlarge_by}" for record in caplog.records]  # type: ignore[attr-defined]


def test_a_map_that_is_nearly_full_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    pressure = Pressure()
    assert said(caplog, pressure, backends=89) == []
    assert said(caplog, pressure, backends=90) == ["backends 90/100 --ebpf-map-size backends=256"]
    assert said(caplog, pressure, backends=95) == []
    assert said(caplog, pressure, backends=85) == []
    assert said(caplog, pressure, backends=91) == []
    assert said(caplog, pressure, backends=79) == []
    assert said(caplog, pressure, backends=100) == ["backends 100/100 --ebpf-map-size backends=256"]


def test_names_are_as_many_as_counters_that_services_can_have(caplog: pytest.LogCaptureFixture) -> None:
    assert said(caplog, Pressure(), names=7) == []
    assert said(caplog, Pressure(), names=8) == ["counters 8/8 --ebpf-map-size counters=16"]


def test_what_leaves_last_needs_room_until_then() -> None:
    check(SPECS, {"backends": 100}, {})
    check(SPECS, {"backends": 90}, {"backends": 10})
    with pytest.raises(ModeError, match=r"holds 100 entries, and it takes 101; .*--ebpf-map-size backends=256"):
        check(SPECS, {"backends": 101}, {})
    with pytest.raises(
        ModeError, match=r"holds 100 entries, and it takes 95, 105 while it changes; nothing was changed"
    ):
        check(SPECS, {"backends": 95}, {"backends": 10})


def test_only_maps_that_there_are_have_a_size() -> None:
    with pytest.raises(ModeError, match="no map is called 'config'"):
        specs_of([("config", 3)])
