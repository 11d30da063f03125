"""`pyproxy bench compare`: what is called worse, better or neither, and what CI is told."""

import json
import math
import random
import statistics
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.compare import ASSUMED_CHANCE, BeforeAndAfter, Verdict
from bench.compare_report import compare
from bench.document import Document, Figure
from bench.estimate import Estimate
from pyproxy import bench_files_command
from pyproxy.command import main
from tests.unit.bench_documents import Told, document, figure, outcome

THRESHOLD = 0.05


def one_change(before: Figure, after: Figure, chance: float | None = 0.02) -> Any:
    runs = BeforeAndAfter(
        document(outcome([before], chance=chance)), document(outcome([after], chance=chance)), THRESHOLD
    )
    (change,) = runs.changes
    return change


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((1.20, 1.19, 1.21), (1.40, 1.39, 1.41), "worse"),
        ((1.40, 1.39, 1.41), (1.20, 1.19, 1.21), "better"),
        ((1.20, 1.19, 1.21), (1.21, 1.20, 1.22), "same"),
        # Told apart by more than chance, but by less than the threshold.
        ((1.20, 1.20, 1.20), (1.253, 1.253, 1.253), "same"),
        # Beyond the threshold, but not beyond what the two controls show together.
        ((1.20, 1.20, 1.20), (1.26, 1.24, 1.28), "unclear"),
        ((1.27, 1.24, 1.30), (1.20, 1.20, 1.20), "unclear"),
        # Intervals that touch.
        ((1.20, 1.05, 1.35), (1.40, 1.30, 1.50), "unclear"),
        # Equal, but so loosely that a difference may hide there.
        ((1.20, 1.00, 1.40), (1.20, 1.00, 1.40), "unclear"),
    ],
)
@pytest.mark.parametrize("less_is_better", [True, False])
def test_what_has_a_floor_is_judged_by_its_ratio(
    before: Told, after: Told, verdict: str, *, less_is_better: bool
) -> None:
    """The values say the opposite each time: they are those of two days."""
    if not less_is_better:
        verdict = {"worse": "better", "better": "worse"}.get(verdict, verdict)
    was = figure("ebpf", 100 * after[0], before, less_is_better=less_is_better)
    now = figure("ebpf", 100 * before[0], after, less_is_better=less_is_better)
    change = one_change(was, now)
    assert (change.basis, change.verdict) == ("ratio", verdict)
    assert change.change.value == pytest.approx(after[0] / before[0])
    assert change.chance == pytest.approx(1.02**2 - 1)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (1.0, 1.3, "worse"),
        (1.0, 1.2, "unclear"),
        (1.0, 1.04, "same"),
        (1.0, 0.7, "better"),
        (0, 0, "same"),
        (0, 1, "worse"),
        (1, 0, "better"),
        ((1.0, 0.9, 1.1), (1.5, 1.42, 1.6), "worse"),
        ((1.0, 0.9, 1.1), (1.5, 1.35, 1.6), "unclear"),
        ((0, 0, 2), (1, 0, 2), "unclear"),
    ],
)
def test_without_a_control_more_is_put_down_to_chance(before: Told | float, after: Told | float, verdict: str) -> None:
    change = one_change(figure("ebpf", before, unit="s"), figure("ebpf", after, unit="s"), chance=None)
    assert (change.basis, change.verdict, change.chance) == ("value", verdict, ASSUMED_CHANCE)


def test_a_noisy_run_hides_what_two_quiet_ones_show() -> None:
    was, now = figure("ebpf", 1, (1.2, 1.19, 1.21)), figure("ebpf", 1, (1.4, 1.39, 1.41))
    quiet, noisy = (outcome([now], chance=chance) for chance in (0.02, 0.3))
    verdicts = [
        BeforeAndAfter(document(outcome([was], chance=0.02)), document(after), THRESHOLD).changes[0].verdict
        for after in (quiet, noisy)
    ]
    assert verdicts == [Verdict.WORSE, Verdict.UNCLEAR]


@pytest.mark.parametrize(
    ("unit", "field", "verdict"),
    [
        ("s", "cpu", "not judged"),
        ("1/s", "governor", "not judged"),
        ("MiB", "cpu", "worse"),
        ("1", "cpu", "worse"),
        ("s", "kernel", "worse"),
    ],
)
def test_times_of_two_machines_are_not_judged_without_a_floor(unit: Any, field: str, verdict: str) -> None:
    was, now = figure("ebpf", 1, unit=unit), figure("ebpf", 2, unit=unit)
    runs = BeforeAndAfter(document(outcome([was])), document(outcome([now]), **{field: "other"}), THRESHOLD)
    assert [change.verdict for change in runs.changes] == [verdict]
    assert runs.environment.keys() == {field}
    with_floor = [outcome([figure("ebpf", 1, (ratio, ratio, ratio))], chance=0.01) for ratio in (1.0, 2.0)]
    runs = BeforeAndAfter(document(with_floor[0]), document(with_floor[1], **{field: "other"}), THRESHOLD)
    assert [change.verdict for change in runs.changes] == ["worse"]


@pytest.mark.parametrize(("failures", "verdict"), [(0, "same"), (4, "same"), (20, "worse")])
def test_who_fails_more_often_is_worse_however_fast_the_rest_is(failures: int, verdict: str) -> None:
    was = figure("ebpf", 1, (1.2, 1.2, 1.2), samples=[[1.0] * 100])
    now = figure("ebpf", 1, (1.2, 1.2, 1.2), samples=[[1.0] * 100], failures={"ECONNREFUSED": failures})
    assert one_change(was, now).verdict == verdict
    assert one_change(now, was).verdict == "same"


def test_failures_that_are_the_value_do_not_count_twice() -> None:
    was = figure("ebpf", 40, unit="1", samples=[[40.0]])
    now = figure("ebpf", 41, unit="1", samples=[[41.0]], failures={"ECONNREFUSED": 41})
    assert one_change(was, now).verdict == "same"


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ([0] * 10, [25, 0, 0, 25, 0, 25, 0, 0, 25, 0], "worse"),
        ([0] * 10, [0] * 9 + [1], "worse"),
        ([0] * 10, [0] * 60, "same"),
        ([0] * 9 + [1], [0] * 10, "unclear"),
        ([40] * 10, [41] * 10, "same"),
        ([40] * 10, [80] * 10, "worse"),
        ([80] * 10, [40] * 60, "better"),
        ([25, 0, 0, 25, 0, 25, 0, 0, 25, 0], [25, 0, 0, 25, 0, 25, 0, 0, 26, 0], "unclear"),
    ],
)
def test_what_failed_is_judged_by_all_rounds(before: list[int], after: list[int], verdict: str) -> None:
    was, now = (
        figure("ebpf", statistics.median(counts), measure="failed", unit="1", samples=[[one] for one in counts])
        for counts in (before, after)
    )
    change = one_change(was, now, chance=None)
    assert (change.basis, change.verdict) == ("mean", verdict)
    assert (change.before.value, change.after.value) == (statistics.mean(before), statistics.mean(after))


@pytest.mark.parametrize("measure", ["churn-cpu", "stream-retransmits"])
def test_what_the_machine_does_is_no_failure(measure: str) -> None:
    was, now = (
        figure("ebpf", statistics.median(counts), measure=measure, unit="1", samples=[[one] for one in counts])
        for counts in ([0, 0, 0], [0, 0, 7])
    )
    assert one_change(was, now, chance=None).verdict == "same"
    was, now = (figure("ebpf", value, measure=measure, unit="1") for value in (1, 2))
    runs = BeforeAndAfter(document(outcome([was])), document(outcome([now]), cpu="other"), THRESHOLD)
    assert [change.verdict for change in runs.changes] == ["not judged"]


def test_how_much_was_tried_is_not_judged() -> None:
    before, after = (
        document(
            outcome(
                [
                    figure("ebpf", 1.0, unit="s"),
                    figure("ebpf", attempts, measure="attempts", unit="1", less_is_better=False),
                ]
            )
        )
        for attempts in (1000, 10)
    )
    assert [change.measure for change in BeforeAndAfter(before, after, THRESHOLD).changes] == ["connect"]


def test_the_worst_comes_first_and_floor_and_control_are_not_judged() -> None:
    names = ("floor", "control", "a", "b", "c", "d")

    def run(*ratios: float) -> Document:
        told = [figure(name, 1, (ratio, ratio, ratio)) for name, ratio in zip(names, (9, *ratios), strict=True)]
        told[0] = figure("floor", 1000 * ratios[0])
        told.append(figure("floor", 0, measure="retransmits", unit="1"))
        return document(outcome(told, chance=0.01))

    runs = BeforeAndAfter(run(1, 1, 1, 1, 1), run(2, 0.5, 1.2, 1, 1.5), THRESHOLD)
    assert [change.contestant for change in runs.changes] == ["d", "b", "a", "c"]
    assert runs.floors == [2]


def test_chance_calls_worse_about_as_often_as_is_said() -> None:
    """Draws pairs of runs between which nothing changed. By intervals alone, without a threshold."""
    draws, deviation = random.Random(1), 0.05
    said, called, trials = 0.0, 0, 20_000
    for _ in range(trials):
        told = []
        for _ in range(2):
            centre = draws.gauss(0, deviation)
            told.append(tuple(math.exp(centre + by * 1.96 * deviation) for by in (0, -1, 1)))
        was, now = (document(outcome([figure("a", 1, ratio)], chance=0.0)) for ratio in told)  # type: ignore[arg-type]
        (change,) = BeforeAndAfter(was, now, 0.0).changes
        said += change.false_alarm or 0
        called += change.verdict is Verdict.WORSE
    assert said / trials == pytest.approx(0.0028, abs=0.0002)
    assert called / trials == pytest.approx(said / trials, abs=0.0015)


def test_a_threshold_makes_false_alarms_rarer() -> None:
    now = figure("a", 1, (1.0, 0.98, 1.02))
    same = document(outcome([now], chance=0.0))
    alarms = [BeforeAndAfter(same, same, threshold).false_alarms for threshold in (0.0, 0.1)]
    assert 0 < alarms[1] < alarms[0] / 10
    assert one_change(figure("a", 1, (1.0, 1.0, 1.0)), now).false_alarm is not None
    assert one_change(figure("a", 1, (1.0, 1.0, 1.0)), figure("a", 1, (1.0, 1.0, 1.0))).false_alarm is None


@pytest.mark.parametrize(
    ("after", "why", "fell_out", "status"),
    [
        (
            document(outcome([figure("ebpf", 1.0)], failed={"ipvs": "the proxy\nended"})),
            "fell out: the proxy\nended",
            True,
            1,
        ),
        (document(outcome([figure("ebpf", 1.0)]), skipped={"ipvs": "no IPVS"}), "can't run there: no IPVS", False, 0),
        (document(outcome([figure("ebpf", 1.0)])), "not measured", False, 0),
        (
            document(outcome([figure("ebpf", 1.0)], key="latency, 1 x 2"), complete=False),
            "interrupted before that",
            False,
            2,
        ),
    ],
)
def test_what_only_one_run_has_is_told(
    after: Document, why: str, fell_out: bool, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = document(outcome([figure("ebpf", 1.0), figure("ipvs", 1.0), figure("ipvs", 2.0, measure="kept")]))
    (missing,) = [one for one in BeforeAndAfter(before, after, THRESHOLD).missing if one.contestant == "ipvs"]
    assert (missing.figures, missing.only, missing.why, missing.fell_out) == (2, "before", why, fell_out)
    assert run(tmp_path, before, after) == status
    told = capsys.readouterr().out
    if status < 2:
        assert f"only before: latency, 10 x 2: ipvs: 2 figures; after: {' '.join(why.split())}\n" in told


@pytest.mark.parametrize("skipped", ["iptables", "iptables (legacy)"])
def test_a_flavour_that_the_other_kernel_lacks_is_told(skipped: str) -> None:
    before = document(outcome([figure("iptables (legacy)", 1.0)]))
    after = document(outcome([figure("ebpf", 1.0)]), skipped={skipped: "no ip_tables"})
    missing = BeforeAndAfter(before, after, THRESHOLD).missing[0]
    assert (missing.why, missing.fell_out) == ("can't run there: no ip_tables", False)


def test_who_only_fails_now_is_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("floor", "ebpf")
    before = document(outcome([figure(name, 1.0) for name in names]))
    failing = msgspec.structs.replace(figure("ebpf", 1.0), quantiles={}, failures={"ECONNREFUSED": 7})
    after = document(outcome([figure("floor", 1.0), failing]))
    assert run(tmp_path, before, after) == 1
    told = capsys.readouterr().out
    assert "worse: only before: latency, 10 x 2: ebpf: 1 figure; after: failed: ECONNREFUSED 7 times\n" in told
    silent = document(outcome([figure("floor", 1.0), msgspec.structs.replace(failing, failures={})]))
    assert not BeforeAndAfter(before, silent, THRESHOLD).has_worse


def test_who_gets_through_only_now_is_no_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = document(outcome([figure("ebpf", 1.0)], failed={"ipvs": "it ended"}))
    assert run(tmp_path, before, document(outcome([figure("ebpf", 1.0), figure("ipvs", 1.0)]))) == 0
    assert "only after: latency, 10 x 2: ipvs: 1 figure; before: fell out: it ended" in capsys.readouterr().out


def run(folder: Path, before: Document, after: Document, json_file: Path | None = None) -> int:
    before.write(folder / "before.json")
    after.write(folder / "after.json.gz")
    return compare(folder / "before.json", folder / "after.json.gz", THRESHOLD, json_file)


@pytest.mark.parametrize(("ratio", "status"), [(1.2, 0), (1.5, 1), (0.9, 0)])
def test_ci_is_told_by_the_exit_status(
    ratio: float, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was, now = figure("ebpf", 1, (1.2, 1.2, 1.2)), figure("ebpf", 1, (ratio, ratio, ratio))
    before, after = document(outcome([was], chance=0.01)), document(outcome([now], chance=0.01), kernel="6.12")
    assert run(tmp_path, before, after, tmp_path / "told.json") == status
    said = json.loads((tmp_path / "told.json").read_text())
    assert (said["format"], said["version"], said["worse"]) == ("pyproxy bench compared", 1, status == 1)
    assert said["environment"] == {"kernel": ["6.1", "6.12"]}
    assert [one["after"]["value"] for one in said["changes"]] == [ratio]
    told = capsys.readouterr().out
    for words in ("node-1, 2026-01-01, 6.1\n", "6.12", "Of 1 figures: 1 ", "worse by chance"):
        assert words in told
    assert ("1.500 x floor" in told) is (status == 1)
    assert ("What changed" in told) is (ratio != 1.2)


def test_ways_of_measuring_that_differ_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = outcome([figure("ebpf", 1.0)])
    assert run(tmp_path, document(same, method={"rounds": 20}), document(same, method={"rounds": 60})) == 0
    told = capsys.readouterr().out
    assert "method: rounds" in told
    assert "measured in different ways" in told


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"{", "can't be read"),
        (b"\xff", "can't be read"),
        (b'{"format": "\xff"}', "can't be read"),
        (b'{"format": "pyproxy bench", "version": 2, "environment": {"node": "\xff"}}', "can't be read"),
        (b'{"format": "other"}', "is no result of `pyproxy bench`"),
        (b'{"format": "pyproxy bench", "version": 1}', "is of version 1, and this pyproxy reads 2: measure again"),
        (b'{"format": "pyproxy bench", "version": 2}', "can't be read"),
        (None, "No such file or directory"),
    ],
)
def test_what_is_no_result_can_not_be_compared(
    content: bytes | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document(outcome([figure("ebpf", 1.0)])).write(tmp_path / "good.json")
    bad = tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content)
    for files in ((tmp_path / "good.json", bad), (bad, tmp_path / "good.json")):
        assert compare(*files, THRESHOLD, None) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"pyproxy: {bad} ")
        assert says in error
        assert len(error.splitlines()) == 1


def test_without_what_shows_results_nothing_is_said_to_be_worse(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in the image of the proxy."""
    monkeypatch.setattr(bench_files_command, "find_spec", lambda _: None)
    assert main(["bench", "compare", "before.json", "after.json"]) == 2
    assert capsys.readouterr().err == "pyproxy: what shows results is not installed; install pyproxy[bench]\n"


def test_runs_with_nothing_in_common_can_not_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, document(outcome([figure("a", 1.0)])), document(outcome([figure("b", 1.0)]))) == 2
    assert "have no figure in common" in capsys.readouterr().err


def test_where_nothing_can_be_judged_ci_is_not_told_that_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = outcome([figure("ebpf", 1.0)])
    assert run(tmp_path, document(same), document(same, cpu="other")) == 2
    assert capsys.readouterr().err == "pyproxy: of these two runs nothing can be judged\n"


def test_a_result_that_can_not_be_written_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = document(outcome([figure("ebpf", 1.0)]))
    assert run(tmp_path, same, same, tmp_path / "nowhere" / "told.json") == 2
    assert "told.json can't be written: No such file or directory" in capsys.readouterr().err


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same, there = document(outcome([figure("ebpf", 1.0)])), tmp_path / "told.json"
    there.write_text("precious")
    assert run(tmp_path, same, same, there) == 2
    assert there.read_text() == "precious"
    out, error = capsys.readouterr()
    assert (out, error) == ("", f"pyproxy: {there} exists: name another file, or remove it\n")


def test_json_goes_to_standard_output_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    same = document(outcome([figure("ebpf", 1.0)]))
    assert run(tmp_path, same, same, Path("-")) == 0
    out, error = capsys.readouterr()
    assert json.loads(out)["worse"] is False
    assert "Of 1 figures: 1 same." in error
    assert not Path("-").exists()


def test_of_what_is_the_same_only_the_number_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    was, now = (document(outcome([figure("ebpf", value), figure("ipvs", 3.0)])) for value in (1.0, 2.0))
    assert run(tmp_path, was, now) == 1
    told = capsys.readouterr().out
    assert "ipvs" not in told
    assert "Of 2 figures: 1 worse, 1 same.\n" in told


def test_a_file_that_was_cut_or_damaged_can_not_be_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = document(outcome([figure("ebpf", 1.0)]))
    whole = tmp_path / "whole.json.gz"
    same.write(whole)
    for content in (whole.read_bytes()[:-9], whole.read_bytes()[:20] + b"damage" * 9, b"no gzip"):
        (tmp_path / "bad.json.gz").write_bytes(content)
        assert compare(whole, tmp_path / "bad.json.gz", THRESHOLD, None) == 2
        assert "bad.json.gz can't be read: " in capsys.readouterr().err


def test_what_comes_from_nothing_is_null_in_json(tmp_path: Path) -> None:
    assert one_change(figure("a", 0, unit="1"), figure("a", 2, unit="1")).change == Estimate(
        math.inf, math.inf, math.inf
    )
    before, after = (document(outcome([figure("a", value, unit="1")])) for value in (0, 2))
    assert run(tmp_path, before, after, tmp_path / "told.json") == 1
    (change,) = json.loads((tmp_path / "told.json").read_text())["changes"]
    assert change["change"] == {"value": None, "low": None, "high": None}
