"""`pyproxy bench merge`: results of many nodes in one file, and what they say together."""

from pathlib import Path

import pytest

from bench import fleet
from bench.document import Document, Unreadable
from bench.merge import merge, read_all, together
from tests.unit.bench_documents import document, figure, outcome


def node(name: str, kernel: str = "6.1", fastest: tuple[str, ...] = ("ebpf",), **more: str) -> Document:
    figures = [figure(one, 100.0, (1.1, 1.1, 1.1)) for one in ("floor", "control", "ebpf", "nftables")]
    return document(outcome(figures, fastest=fastest), node=name, kernel=kernel, **more)


def written(folder: Path, **documents: Document) -> list[Path]:
    paths = [folder / f"{name}.json" for name in documents]
    for path, one in zip(paths, documents.values(), strict=True):
        one.write(path)
    return paths


@pytest.mark.parametrize("name", ["all.json", "all.json.gz"])
def test_what_was_merged_is_read_again(tmp_path: Path, name: str) -> None:
    documents = [node("a"), node("b"), node("a", kernel="6.12"), node("a", date="2026-01-02")]
    files = written(tmp_path, **dict(zip("wxyz", documents, strict=True)))
    assert merge(files, tmp_path / name) == 0
    assert read_all(tmp_path / name) == documents
    assert ((tmp_path / name).read_bytes()[:2] == b"\x1f\x8b") is name.endswith(".gz")
    assert [read_all(path) for path in files] == [[one] for one in documents]


def test_merged_files_are_merged_again(tmp_path: Path) -> None:
    a, b, c = files = written(tmp_path, a=node("a"), b=node("b"), c=node("c"))
    assert merge([a, b], tmp_path / "two.json") == 0
    assert merge([tmp_path / "two.json", c], tmp_path / "all.json") == 0
    assert read_all(tmp_path / "all.json") == together(files)


@pytest.mark.parametrize("again", ["the same file", "another file", "a merged file"])
def test_one_result_twice_is_refused(again: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, c = written(tmp_path, a=node("a"), b=node("b"), c=node("a"))
    assert merge([a, b], tmp_path / "two.json") == 0
    other = {"the same file": a, "another file": c, "a merged file": tmp_path / "two.json"}[again]
    assert merge([a, other], tmp_path / "all.json") == 1
    assert not (tmp_path / "all.json").exists()
    said = f"pyproxy: {other} has what {a} has, of a, 6.1, 2026-01-01: leave one of them out\n"
    assert capsys.readouterr().err == said


def test_another_method_is_another_result(tmp_path: Path) -> None:
    figures = outcome([figure("ebpf", 1.0)])
    files = written(tmp_path, a=document(figures, method={"rounds": 1}), b=document(figures, method={"rounds": 2}))
    assert len(together(files)) == 2


def test_a_file_that_is_there_stays_unless_told_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (a,) = written(tmp_path, a=node("a"))
    there = tmp_path / "all.json"
    there.write_text("precious")
    assert merge([a], there) == 1
    assert there.read_text() == "precious"
    assert capsys.readouterr().err == f"pyproxy: {there} exists: name another file, or say --force\n"
    assert merge([a], there, force=True) == 0
    assert len(read_all(there)) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("no JSON", "can't be read"),
        ('{"format": "pyproxy bench merged", "version": 1}', "is of version 1"),
        ('{"format": "pyproxy bench merged", "version": 2, "documents": 7}', "can't be read"),
        ('{"format": "pyproxy bench latency", "version": 1}', "is no result of `pyproxy bench`"),
    ],
)
def test_what_is_no_result_is_refused(
    content: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, output = tmp_path / "bad.json", tmp_path / "all.json"
    bad.write_text(content)
    (a,) = written(tmp_path, a=node("a"))
    assert merge([a, bad], output) == 1
    assert not output.exists()
    error = capsys.readouterr().err
    assert error.startswith(f"pyproxy: {bad} ")
    assert says in error
    assert len(error.splitlines()) == 1
    with pytest.raises(Unreadable):
        read_all(bad)


@pytest.mark.parametrize("place", ["nowhere/all.json", "all.json/all.json"])
def test_a_place_that_can_not_be_written_is_told(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (a,) = written(tmp_path, a=node("a"))
    (tmp_path / "all.json").touch()
    assert merge([a], tmp_path / place) == 1
    assert f"{tmp_path / place} can't be written: No" in capsys.readouterr().err


def test_kernels_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    documents = [
        node("a"),
        node("b", "6.12", ("ebpf", "nftables")),
        node("c", "6.12", ("nftables", "ebpf")),
        node("d", "6.18", ()),
    ]
    assert merge(written(tmp_path, **dict(zip("abcd", documents, strict=True))), tmp_path / "all.json") == 0
    rows = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "latency, 10 x 2 the connect 6.1 1 ebpf 1.10 x floor" in rows
    assert "6.12 2 ebpf ≈ nftables (1), nftables ≈ ebpf (1) 1.10 x floor" in rows
    assert "6.18 1 not told" in rows
    assert "4 runs: 1 of kernel 6.1, 2 of kernel 6.12, 1 of kernel 6.18." in rows


@pytest.mark.parametrize(
    ("fastest", "says"),
    [
        ([("ebpf",), ("ebpf", "nftables")], "ebpf 1 times"),
        ([("ebpf", "nftables"), ("nftables", "ebpf")], "ebpf 1 times, nftables 1 times"),
        ([("ebpf",), ("nftables",)], "nobody"),
        ([("ebpf",), ()], "nobody"),
    ],
)
def test_who_is_fastest_everywhere_is_named(fastest: list[tuple[str, ...]], says: str) -> None:
    documents = [node(str(number), fastest=names) for number, names in enumerate(fastest)]
    _, told = fleet.summary(documents, fleet.verdicts(documents))
    assert f"not told apart from it: {says}." in told


@pytest.mark.parametrize(
    ("values", "less_is_better", "fastest"),
    [
        ({"a": 1.0, "b": 2.0}, True, ("a",)),
        ({"a": 1.0, "b": 2.0}, False, ("b",)),
        ({"a": 1.1, "b": 1.0, "c": 1.3}, True, ("b", "a")),
        ({"a": (1.5, 1.2, 1.8), "b": 1.0}, True, ("b", "a")),
        ({"a": 0, "b": 0, "c": 1}, True, ("a", "b")),
    ],
)
def test_contestants_that_were_measured_one_after_the_other_are_held_against_each_other(
    values: dict[str, float], fastest: tuple[str, ...], *, less_is_better: bool
) -> None:
    parts = [
        outcome([figure(name, value, unit="s", less_is_better=less_is_better)], key=f"sync, {name}, 10 x 2")
        for name, value in values.items()
    ]
    ((verdict,),) = fleet.verdicts([document(*parts)]).values()
    assert verdict.fastest == fastest


def test_nobody_is_fastest_at_what_was_tried() -> None:
    parts = [
        outcome([figure(name, tries, measure="attempts", unit="1", less_is_better=False)], key=f"restart, {name}")
        for name, tries in (("slow", 9000), ("swift", 100))
    ]
    assert fleet.verdicts([document(*parts)]) == {}


def test_what_a_node_could_not_do_is_told() -> None:
    one = document(
        outcome([figure("ebpf", 1.0)], failed={"ipvs": "it ended"}), skipped={"nftables": "no nft"}, complete=False
    )
    assert list(fleet.summary([one], fleet.verdicts([one]))) == [
        "1 run: 1 of kernel 6.1.",
        "On kernel 6.1 mode nftables can't run: no nft",
        "The run of node-1 was interrupted.",
        "On node-1 ipvs fell out: latency, 10 x 2",
    ]
