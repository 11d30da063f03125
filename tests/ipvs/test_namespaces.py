"""What is read of IPVS is all that there is."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain

import pytest

from bench.namespace import Namespace
from pyproxy.kernel.ipvs import Ipvs, Key, Load, Real, Service
from pyproxy.table import IP, Family

MANY = 300
"""More than a page of /proc/net/ip_vs holds."""


@pytest.fixture
def namespaces() -> Iterator[list[Namespace]]:
    with ExitStack() as stack:
        both = [Namespace(f"pyproxy{os.getpid()}-reading-{number}") for number in (1, 2)]
        for one in both:
            stack.callback(one.remove)
            one.create()
        yield both


@pytest.mark.parametrize("family", list(Family))
def test_real_servers_are_read_whoever_else_has_some(namespaces: list[Namespace], family: Family) -> None:
    address, real = (IP(ip) for ip in (("10.0.0.1", "10.1.0.1") if family is Family.IPV4 else ("fd00::1", "fd01::1")))
    keys = [Key(family, "tcp", address, port) for port in range(1, MANY + 1)]
    keys += [Key(family, "", None, 0, 7)]
    for namespace in namespaces:
        with namespace.entered():
            ipvs = Ipvs()
            additions = [ipvs.addition(key, Service("rr"), [Real(real, 8080)]) for key in keys]
            ipvs.carry_out(chain.from_iterable(additions))
            ipvs.close()
    for namespace in namespaces:
        with namespace.entered():
            ipvs = Ipvs()
            found = ipvs.services()
            ipvs.close()
        assert found.keys() == set(keys)
        assert {tuple(server.reals) for server in found.values()} == {(Real(real, 8080),)}
        assert {load for server in found.values() for load in server.reals.values()} == {Load(1, 0)}
