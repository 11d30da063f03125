"""The command line of `pyproxy bench`: what is asked for, and what is refused before anything is measured."""

import shutil
from pathlib import Path

import pytest

from bench import contender
from bench.document import Document
from pyproxy import command
from pyproxy.bench_command import completed
from pyproxy.kernel.iptables import Flavour
from tests.full_run import document

_ROOT_ONLY = ["--mode", "userspace", "--services", "1"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["bench"], ["bench", "quick"]),
        (["bench", "--json", "a.json"], ["bench", "quick", "--json", "a.json"]),
        (["bench", "full"], ["bench", "full"]),
        (["bench", "--help"], ["bench", "--help"]),
        (["bench", "-h"], ["bench", "-h"]),
        (["modes"], ["modes"]),
        ([], []),
    ],
)
def test_without_a_scenario_it_is_the_quick_one(given: list[str], meant: list[str]) -> None:
    assert completed(given) == meant


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quick", "--peer", "x"], "--peer 'x': it takes the form NAME='command {config}'"),
        (["quick", "--peer", "ebpf=true {config}"], "--peer ebpf: another contestant has that name"),
        (["full", "--peer", "x=/no/such {config}"], "--peer x: there is no program /no/such"),
        (["sync", "--endpoints", "101"], "--endpoints 101: at most 100"),
        (["latency", "--resume"], "--resume goes on with what a file has: name it by --json FILE"),
        (["latency", "--report", "/nowhere/report"], "there is no folder /nowhere"),
        (["memory", "--mode", "magic"], "there is no mode 'magic'"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["bench", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pyproxy: ") and said in err
    assert err.count("\n") == 1


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, folder = tmp_path / "results.json", tmp_path / "report"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").touch()
    for option, place, said in (("--json", file, "exists"), ("--report", folder, "is not empty")):
        assert command.main(["bench", "quick", *_ROOT_ONLY, option, str(place)]) == 1
        assert said in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_results_are_compared_merged_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other, all_of_them = (tmp_path / f"{name}.json" for name in ("one", "other", "all"))
    document("node-1", proxies=("ebpf", "nftables"), sizes=(1,)).write(one)
    document("node-2", proxies=("ebpf", "nftables"), sizes=(1,)).write(other)
    assert command.main(["bench", "compare", str(one), str(one)]) == 0
    assert command.main(["bench", "compare", str(one), str(tmp_path / "nowhere.json")]) == 2
    assert command.main(["bench", "merge", str(one), str(other), "-o", str(all_of_them)]) == 0
    assert command.main(["bench", "merge", str(one), str(other), "-o", str(all_of_them)]) == 1
    assert command.main(["bench", "report", str(all_of_them), str(tmp_path / "report")]) == 0
    assert (tmp_path / "report" / "index.html").exists()
    assert command.main(["bench", "report", str(one), str(one), str(tmp_path / "twice")]) == 1
    assert f"{one} has what {one} has" in capsys.readouterr().err
    assert Document.read(one).outcomes


@pytest.mark.parametrize("threshold", ["-1", "x", "nan", "1001"])
def test_a_threshold_is_a_percentage(threshold: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(["bench", "compare", "a", "b", f"--threshold={threshold}"])
    assert ended.value.code == 2
    assert "is not a percentage from 0 to 1000" in capsys.readouterr().err


def test_a_flavour_that_this_kernel_lacks_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in user-mode Linux, whose kernel has no nf_tables: the command fails there."""
    monkeypatch.setattr(contender, "lacks", lambda flavour: "it fails" if flavour is Flavour.NFT else None)
    found, skipped = contender.contenders(["iptables", "userspace"], via_api=True)
    assert list(map(str, found)) == ["iptables (legacy)", "userspace"]
    assert skipped == {"iptables (nft)": "it fails"}
    assert all(one.via_api for one in found)


def test_a_flavour_whose_program_is_not_there_is_lacking(monkeypatch: pytest.MonkeyPatch) -> None:
    assert contender.lacks(Flavour.LEGACY) is None
    monkeypatch.setenv("PATH", str(Path(shutil.which("unshare") or "").parent))
    assert "iptables-legacy" in (contender.lacks(Flavour.LEGACY) or "")
