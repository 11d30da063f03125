"""Parts that are measured one after the other: what is kept, what is gone on with, what is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from bench.document import Document, Figure, Outcome, Unreadable
from bench.estimate import Estimate
from bench.run import NoPlace, begin, run
from bench.scenario import Step

_METHOD: dict[str, object] = {"services": (1, 10), "rounds": 3}


@dataclass
class Scripted:
    """A part without a kernel: what it measures is what it is told."""

    key: str
    end: BaseException | None = None
    failed: dict[str, str] = field(default_factory=dict)
    measured: int = 0
    steps: int = 1
    rounds: int = 1

    def measure(self, step: Step) -> None:
        step("measuring")
        self.measured += 1
        if self.end:
            raise self.end

    @property
    def outcome(self) -> Outcome:
        value = Estimate(1.5, 1.0, 2.0)
        figure = Figure(contestant="one", measure="time", title="the time", unit="s", quantiles={"p50": value})
        return Outcome(
            key=self.key,
            scenario="scripted",
            services=1,
            endpoints=2,
            complete=self.end is None,
            rounds=self.rounds,
            figures=[figure] if self.measured else [],
            failed=self.failed,
        )


def _run(file: Path | None, *parts: Scripted, resume: bool = False) -> int:
    return run(parts, begin(dict(_METHOD), {}, file, resume=resume), file)


def test_what_was_measured_is_kept_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "results.json"
    assert _run(file, Scripted("a"), Scripted("b")) == 0
    said = Document.read(file)
    assert said.complete
    assert [(one.key, one.complete) for one in said.outcomes] == [("a", True), ("b", True)]
    assert said.outcomes[0].load is not None
    out = capsys.readouterr().out
    assert "the time" in out and "1.50 s" in out


def test_the_file_has_each_part_as_soon_as_it_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "results.json.gz"

    class Looks(Scripted):
        def measure(self, step: Step) -> None:
            said = Document.read(file)
            assert [one.key for one in said.outcomes] == ["a"]
            assert not said.complete
            super().measure(step)

    last = Looks("b")
    assert _run(file, Scripted("a"), last) == 0
    assert last.measured == 1


def test_an_interruption_keeps_what_there_is_and_resume_measures_the_rest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    never = Scripted("c")
    assert _run(file, Scripted("a"), Scripted("b", KeyboardInterrupt()), never) == 130
    assert never.measured == 0
    said = Document.read(file)
    assert [(one.key, one.complete) for one in said.outcomes] == [("a", True), ("b", False)]
    assert not said.complete
    assert "b was interrupted" in capsys.readouterr().out
    again = [Scripted("a"), Scripted("b"), Scripted("c")]
    assert _run(file, *again, resume=True) == 0
    assert [one.measured for one in again] == [0, 1, 1]
    said = Document.read(file)
    assert [(one.key, one.complete) for one in said.outcomes] == [("a", True), ("b", True), ("c", True)]
    assert said.complete
    assert "1 of 3 parts are there already" in capsys.readouterr().err


def test_what_had_come_further_stays_until_there_is_better(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    assert _run(file, Scripted("a", KeyboardInterrupt(), rounds=9)) == 130
    for rounds, kept in ((3, 9), (12, 12)):
        assert _run(file, Scripted("a", KeyboardInterrupt(), rounds=rounds), resume=True) == 130
        assert [one.rounds for one in Document.read(file).outcomes] == [kept]
    assert _run(file, Scripted("a", rounds=2), resume=True) == 0
    assert [(one.rounds, one.complete) for one in Document.read(file).outcomes] == [(2, True)]


def test_what_can_not_be_measured_is_told_and_the_rest_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    parts = [
        Scripted("a", OSError(28, "No space left on device")),
        Scripted("b", RuntimeError("no lab")),
        Scripted("c"),
    ]
    assert _run(file, *parts) == 1
    assert parts[2].measured == 1
    err = capsys.readouterr().err
    assert "pyproxy: a: [Errno 28] No space left on device\n" in err
    assert "pyproxy: b: no lab\n" in err
    assert not Document.read(file).complete


def test_a_mistake_of_ours_loses_nothing(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    with pytest.raises(ZeroDivisionError):
        _run(file, Scripted("a"), Scripted("b", ZeroDivisionError()), Scripted("c"))
    assert [one.key for one in Document.read(file).outcomes] == ["a", "b"]


def test_nothing_measured_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    class Nothing(Scripted):
        def measure(self, step: Step) -> None:
            step("looking")

    assert _run(None, Nothing("a")) == 1
    assert capsys.readouterr().err.endswith("pyproxy: nothing was measured\n")


def test_who_falls_out_is_told_and_makes_the_exit_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(None, Scripted("a", failed={"peer": "it ended; its log: no such flag"}), Scripted("b")) == 1
    assert capsys.readouterr().err.endswith("pyproxy: a: peer fell out: it ended; its log: no such flag\n")


def test_why_nothing_was_measured_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Lacking(Scripted):
        @property
        def outcome(self) -> Outcome:
            return msgspec.structs.replace(super().outcome, figures=[], remarks=["It takes a tool."])

    file = tmp_path / "results.json"
    assert _run(file, Lacking("a"), Scripted("b")) == 0
    assert "pyproxy: a: It takes a tool.\n" in capsys.readouterr().err
    assert [one.key for one in Document.read(file).outcomes] == ["b"]


def test_on_standard_output_is_only_json_if_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(Path("-"), Scripted("a")) == 0
    out, err = capsys.readouterr()
    assert msgspec.json.decode(out, type=Document).outcomes[0].key == "a"
    assert "1.50 s" in err


def _measured(file: Path) -> None:
    assert _run(file, Scripted("a")) == 0


def _of(**changes: object) -> Callable[[Path], None]:
    """Writes a document that differs."""

    def write(file: Path) -> None:
        document = begin(dict(_METHOD), {}, None, resume=False)
        for name, value in changes.items():
            setattr(document, name, value)
        document.write(file)

    return write


@pytest.mark.parametrize(
    ("prepare", "resume", "error", "said"),
    [
        (_measured, False, NoPlace, "exists: name another file, remove it, or go on with it by --resume"),
        (_of(method={"rounds": 4}), True, Unreadable, "was measured with other options"),
        (_of(environment={"kernel": "2.6.32"}), True, Unreadable, "was measured with "),
        (_of(version=1), True, Unreadable, "is of version 1, and this pyproxy reads 2: measure again"),
        (_of(format="pyproxy soup"), True, Unreadable, "is no result of `pyproxy bench`"),
        (lambda file: file.write_text("{}"), True, Unreadable, "is no result of `pyproxy bench`"),
        (lambda file: file.write_text("{"), True, Unreadable, "can't be read: "),
        (lambda file: file.write_text('{"format":"pyproxy bench","version":2}'), True, Unreadable, "environment"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_left_as_it_was(
    prepare: Callable[[Path], None], resume: bool, error: type[Exception], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "results.json"
    prepare(file)
    before = file.read_bytes()
    with pytest.raises(error, match=r"results\.json") as raised:
        begin(dict(_METHOD), {}, file, resume=resume)
    assert said in str(raised.value)
    assert file.read_bytes() == before


def test_a_packed_file_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "results.json.gz"
    _measured(file)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(Unreadable, match="can't be read"):
        Document.read(file)


@pytest.mark.parametrize("file", [None, Path("-")])
def test_to_resume_takes_a_file(file: Path | None) -> None:
    with pytest.raises(NoPlace, match="--json FILE"):
        begin(dict(_METHOD), {}, file, resume=True)


def test_what_cant_be_written_leaves_nothing_half(tmp_path: Path) -> None:
    folder = tmp_path / "results.json.gz"
    folder.mkdir()
    with pytest.raises(OSError):
        begin(dict(_METHOD), {}, None, resume=False).write(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json.gz"]
