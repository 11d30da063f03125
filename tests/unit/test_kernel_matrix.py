"""The matrix of kernels and modes, made piece by piece."""

from pathlib import Path

from pyproxy import modes
from tests.kernels import probe
from tests.kernels.kept import Kept
from tests.kernels.matrix import table
from tests.kernels.result import Broken, Lacking, Result

BEFORE, AFTER = (Result(passed, 0, ["test_x::y"], 600.0, "2026-01-01") for passed in (7, 8))


def test_what_was_not_asked_for_this_time_stands_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "new" / "kernels.json"
    for kernel, name, outcome in (
        ("uml", "ipvs", BEFORE),
        ("host", "ipvs", Lacking("no IPVS")),
        ("uml", "ebpf", Broken("ended with status 3")),
        ("uml", "ipvs", AFTER),
    ):
        Kept(path).keep(kernel, "Linux 6", name, outcome)
    shown = table(Kept(path).columns())
    assert "| mode | host: Linux 6 | uml: Linux 6 |" in shown
    assert "| ipvs | not in this kernel | 8 passed, **1 failed** in 10 min, 2026-01-01 |" in shown
    assert "| ebpf | not tried | **ended with status 3** |" in shown
    assert "- uml, ipvs: `test_x::y` failed" in shown


def test_this_kernel_says_which_modes_it_can_run_and_why_not_the_others() -> None:
    variants = probe.offer().variants
    assert {variant.mode for variant in variants} == {*modes.names()}
    assert {variant.name for variant in variants if variant.mode == "iptables"} == {
        "iptables (legacy)",
        "iptables (nft)",
    }
    runnable = {name for name in modes.names() if modes.load(name).probe() is None}
    assert {variant.mode for variant in variants if variant.lacks is None} == runnable


def test_what_came_of_another_release_is_forgotten(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kernels.json")
    kept.keep("uml", "Linux 6.1", "ipvs", BEFORE)
    kept.keep("uml", "Linux 6.2", "userspace", AFTER)
    (column,) = kept.columns()
    assert (column.release, column.cells) == ("Linux 6.2", {"userspace": AFTER})
