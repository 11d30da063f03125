"""A kernel that lacks a module which the mode needs, and can't load it: it is named, and nothing is there to remove.

The first of these tests, by its name: later ones may leave namespaces that need the modules until the kernel ends them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import CalledProcessError

import pytest

from modes.iptables.mode import IptablesMode
from modes.ipvs.mode import IpvsMode
from pyproxy import kube_proxy
from pyproxy.kernel import ipset
from pyproxy.table import ModeError
from tests.conformance.cluster import until
from tests.ipvs.world import node, table_of
from tests.unit.iptables_world import run

_LOADER = Path("/proc/sys/kernel/modprobe")
"""Names the program that the kernel starts when it is asked for what it has not got."""


@contextmanager
def without(module: str) -> Iterator[None]:
    """That module, and those that depend on it."""
    loader = _LOADER.read_text()
    _LOADER.write_text("/bin/false")
    try:
        until(lambda: _is_unloaded(module), lambda: f"{module} is in use")
        yield
    finally:
        _LOADER.write_text(loader)
        run("modprobe", module)


def _is_unloaded(module: str) -> bool:
    """Or will be later: a namespace that has ended holds modules until the kernel has come to it."""
    loaded = [line.split()[0] for line in Path("/proc/modules").read_text().splitlines()]
    mine = [name for name in loaded if name == module or name.startswith(f"{module}_")]
    for name in mine:  # those that came last are used by nobody
        try:
            run("rmmod", name)
        except CalledProcessError:
            return False
    return True


def test_without_ipvs_it_says_what_provides_it_and_finds_nothing_to_remove() -> None:
    told = (
        "this kernel has no IPVS: load its module with `modprobe ip_vs` (it comes with the package linux-image of "
        "Debian, linux-modules of Ubuntu, kernel-modules of Fedora)"
    )
    with node():
        assert IpvsMode().probe() is None  # so all else that it needs is loaded
        with without("ip_vs"):
            mode = IpvsMode()
            assert mode.probe() == told
            with pytest.raises(ModeError) as raised:
                mode.sync(table_of(), None)
            assert str(raised.value) == told
            assert mode.cleanup() == list(mode.retire(IptablesMode())) == kube_proxy.cleanup() == []
        assert IpvsMode().probe() is None


def test_a_type_of_set_that_is_not_there_is_told_and_no_other_set_stays() -> None:
    with node():
        assert IpvsMode().probe() is None
        with without("ip_set_hash_netnet"):
            told = "the set PYPROXY_IPVS-HAIRPIN-4 can't be made: the kernel has no such type of set"
            assert IpvsMode().probe() == told
            assert ipset.names() == []
