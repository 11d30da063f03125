"""Userspace mode among many services: what a relay and the proxy may have open."""

import os
import resource
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from bench.lab import PREFIX
from bench.namespace import Namespace
from modes.userspace.mode import UserspaceMode
from modes.userspace.protocol import Entry
from modes.userspace.relay_process import found
from modes.userspace.relays import Relays
from pyproxy.table import IP, Backend, Family, Frontend, Host, Pool, Route, RouteId, Scope, Table, Transport


@pytest.fixture
def node() -> Iterator[Namespace]:
    """A network namespace alone."""
    namespace = Namespace(f"{PREFIX}{os.getpid()}-alone")
    try:
        namespace.create()
        yield namespace
    finally:
        namespace.remove()


def test_thousands_of_services_take_few_descriptors_of_the_proxy(node: Namespace) -> None:
    """Ten thousand routes of two families: the relay listens for all of them, and raises its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    mode = UserspaceMode()
    try:
        with node.entered():
            mode.sync(_table(10_000), None)
            assert mode.shortfalls() == {}
            assert mode.verify() == []
            assert sum(len(relay.entries) for relay in found()) == 10_000
            for number in (0, 5_000, 9_999):
                with pytest.raises(ConnectionResetError), socket.create_connection((_address(number), 80), 3) as one:
                    one.recv(1)  # its endpoint is nowhere
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_places_than_a_relay_may_have_files_are_told(node: Namespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Relays, "most_places", 100)
    with node.entered():
        mode = UserspaceMode()
        mode.sync(_table(120), None)
        assert len(mode.shortfalls()) == 20
        assert all("raise RLIMIT_NOFILE" in reason for reason in mode.shortfalls().values())
        mode.sync(_table(100), None)
        assert mode.verify() == []
        assert mode.shortfalls() == {}


def test_few_files_left_for_connections_are_told_once(
    node: Namespace, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Relays, "most_files", 100)
    told = []
    with node.entered():
        mode = UserspaceMode()
        for routes in (50, 60, 60, 50, 51):
            mode.sync(_table(routes), None)
            told.append([record.message for record in caplog.records if "raise RLIMIT_NOFILE" in record.message])
            caplog.clear()
    assert [len(one) for one in told] == [0, 1, 0, 0, 1]


def test_known_places_change_in_the_message_that_brings_new_ports(
    node: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two messages a relay serves: whoever finds a new port there would find endpoints that are gone, too."""
    told: list[list[str]] = []
    change = Relays.change

    def noted(relays: Relays, put: Sequence[Entry], *rest: Any) -> None:
        told.append([f"{entry.place[1]} {entry.place[2]}" for entry in put])
        change(relays, put, *rest)

    before = _table(3)
    moved, new, other = before.routes.values()
    frontend = replace(new.frontends[0], port=81)
    after = {
        moved.id: replace(moved, internal=Pool((Backend(IP("10.9.0.2"), 80, is_local=False),))),
        new.id: replace(new, frontends=(frontend,)),
        other.id: other,
    }
    with node.entered():
        mode = UserspaceMode()
        mode.sync(before, None)
        monkeypatch.setattr(Relays, "change", noted)
        mode.sync(Table(after, Host()), {moved.id, new.id})
        assert mode.verify() == []
    assert [one for one in told if one] == [[f"{_address(0)} 80", f"{_address(1)} 81"]]


def _table(count: int) -> Table:
    """As many routes, every other one in IPv6."""
    routes = []
    for number in range(count):
        family = Family.IPV6 if number % 2 else Family.IPV4
        pool = Pool((Backend(IP("fd00:9::1" if number % 2 else "10.9.0.1"), 80, is_local=False),))
        routes.append(
            Route(
                RouteId("default", f"svc-{number}", "", family),
                Transport.TCP,
                (Frontend(IP(_address(number)), 80, Scope.CLUSTER_IP),),
                *(None, pool, pool, pool),
                *(True, None, None, None),
            )
        )
    return Table({route.id: route for route in routes}, Host())


def _address(number: int) -> str:
    return f"fd00:96::{number:x}" if number % 2 else f"10.96.{number >> 8}.{number & 255}"
