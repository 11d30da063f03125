"""What a report claims, where it is put, and that its colours can be told apart from what is behind them."""

import io
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from bench.document import Document, Figure, Finding, Outcome
from bench.estimate import Estimate
from bench.report.chapter import chapters
from bench.report.folder import prepare, write_report
from bench.report.palette import COLOURS, Palette
from bench.run import NoPlace
from bench.tables import overview


def estimate(value: float, spread: float = 0.01) -> Estimate:
    return Estimate(value, value - spread, value + spread)


def figure(contestant: str, ratio: float | None = None, **other: object) -> Figure:
    about = {"way": "cluster-ip", "measure": "connect", "title": "pod to ClusterIP: TCP connect", "unit": "ns"}
    quantiles = {"p50": estimate((ratio or 1) * 10_000)}
    ratios = {} if ratio is None else {"p50": estimate(ratio)}
    fields = {"contestant": contestant, **about, "quantiles": quantiles, "ratios": ratios, "differs": ratio is not None}
    return Figure(**{**fields, **other})  # type: ignore[arg-type]


def outcome(services: int, *figures: Figure, fastest: list[str], resolution: float | None = 0.02) -> Outcome:
    finding = Finding(way="cluster-ip", measure="connect", resolution=resolution, fastest=fastest)
    return Outcome(
        key=f"latency, {services}",
        scenario="latency",
        services=services,
        endpoints=2,
        complete=True,
        figures=list(figures),
        findings=[finding],
    )


def document(*outcomes: Outcome, complete: bool = True) -> Document:
    return Document(environment={"node": "n"}, method={}, outcomes=list(outcomes), complete=complete)


def findings(*outcomes: Outcome, complete: bool = True) -> list[str]:
    (chapter,) = chapters([document(*outcomes, complete=complete)])
    return chapter.findings


FLOOR = figure("floor")


def test_it_names_who_is_best_and_how_that_changes_with_size() -> None:
    small = outcome(1, FLOOR, figure("control", 1.01), figure("a", 1.1), figure("b", 1.3), fastest=["a"])
    large = outcome(1000, FLOOR, figure("control", 1.01), figure("b", 1.9), figure("a", 1.11), fastest=["a"])
    assert findings(small, large) == [
        "Pod to ClusterIP: TCP connect, at 1,000 services: a is best, at 1.11 times the floor. Then comes b (1.90).",
        "Pod to ClusterIP: TCP connect, ratio to the floor from 1 to 1,000 services: "
        "for a it stays where it is, as far as can be told and for b it goes from 1.30 to 1.90.",
    ]


def test_it_names_nobody_where_chance_hides_the_difference() -> None:
    figures = [FLOOR, figure("a", 1.1), figure("b", 1.11), figure("c", 1.5)]
    assert findings(outcome(1, *figures, fastest=["a", "b"])) == [
        "Pod to ClusterIP: TCP connect, at 1 service: no winner is named; what lies between a (1.10) and b (1.11) "
        "is no more than chance does, which is up to 2.0% here. Then comes c (1.50)."
    ]
    (said,) = findings(outcome(1, *figures, fastest=[], resolution=None))
    assert said.endswith("no winner is named, since this run can't tell differences from chance.")
    unknown = msgspec.structs.replace(outcome(1, *figures, fastest=[]), findings=[])
    assert findings(unknown) == ["No winner is named: nothing here says which differences are more than chance."]


def test_more_is_better_where_it_is() -> None:
    figures = [figure(name, ratio, less_is_better=False) for name, ratio in (("c", 0.5), ("a", 0.9), ("b", 0.8))]
    (said,) = findings(outcome(1, *figures, fastest=["a"]))
    assert said.endswith("a is best, at 0.90 times the floor. Then come b (0.80) and c (0.50).")


def test_who_does_not_compete_is_not_ranked() -> None:
    small, large = (
        outcome(size, FLOOR, figure("relay", 0.7), figure("a", 1.1), figure("b", 1.3), fastest=["a"])
        for size in (1, 1000)
    )
    for one in (small, large):
        one.findings[0] = msgspec.structs.replace(one.findings[0], rivals=["a", "b"])
    best, growth = findings(small, large)
    assert best.endswith("Then comes b (1.30).")
    assert growth.endswith("for a and b it stays where it is, as far as can be told.")


@pytest.mark.parametrize(("differs", "sign"), [(True, ""), (False, "≈ "), (None, "≈ ")])
def test_what_is_not_told_apart_from_the_floor_has_one_sign(differs: bool | None, sign: str) -> None:
    one = outcome(1, FLOOR, figure("a", 1.1, differs=differs), fastest=[])
    (chapter,) = chapters([document(one)])
    ((_, cells, _),) = chapter.sections[0].overview()
    assert cells[1] == f"{sign}1.10"
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(overview([one]))
    assert f" {sign}1.10 (1.09-1.11)" in console.export_text()


def test_no_two_cards_of_a_scenario_have_the_same_title() -> None:
    figures = [
        figure("a", measure=measure, title=f"pod to ClusterIP: {words}")
        for measure, words in (("one-cpu", "one: CPU time"), ("two-cpu", "two: CPU time"), ("rate", "rate"))
    ]
    (chapter,) = chapters([document(outcome(1, *figures, fastest=[]))])
    topics = [card.topic for section in chapter.sections for card in section.cards]
    assert [one.title for one in topics] == ["CPU time (one-cpu)", "CPU time (two-cpu)", "Rate"]
    assert topics[0].what("cluster-ip") == "pod to ClusterIP: one: CPU time"


def test_it_says_that_a_run_was_interrupted() -> None:
    assert findings(complete=False)[-1] == "This run is not complete: it says what there was when it ended."


@pytest.mark.parametrize("scenario", ["latency", "throughput", "one that is yet to be thought of"])
def test_what_says_nothing_has_no_plot(scenario: str) -> None:
    """Such as a contestant that failed each time, of which there is no p50."""
    mute = figure("a", quantiles={}, failures={"ECONNREFUSED": 3})
    one = msgspec.structs.replace(outcome(1, mute, fastest=[]), scenario=scenario)
    (empty,) = chapters([document(one)])
    assert [card for section in empty.sections for card in section.cards] == []
    spoken = msgspec.structs.replace(outcome(1, mute, figure("b"), fastest=[]), scenario=scenario)
    (chapter,) = chapters([document(spoken)])
    ((card,),) = (section.cards for section in chapter.sections)
    assert [about for about, _ in card.rows()] == [["b", "1", "pod to ClusterIP"]]
    ((_, remarks),) = chapter.sections[0].remarks()
    assert remarks == ["a, pod to ClusterIP: TCP connect: ECONNREFUSED 3 times."]


@pytest.mark.parametrize(("least", "scale"), [(0.0, "linear"), (1.0, "log")])
def test_nought_has_no_logarithm(least: float, scale: str) -> None:
    (chapter,) = chapters([document(outcome(1, figure("a", samples=[[least, *([9.0] * 200)]]), fastest=[]))])
    ((card,),) = (section.cards for section in chapter.sections)
    (layer,) = card.plots["latency-connect-distribution"].spec["spec"]["layer"]
    assert layer["encoding"]["x"]["scale"]["type"] == scale


def test_ways_without_words_are_told_apart() -> None:
    figures = [figure("a", way=way, title="connect") for way in ("cluster-ip", "node-port")]
    (chapter,) = chapters([document(outcome(1, *figures, fastest=[]))])
    ((card,),) = (section.cards for section in chapter.sections)
    rows = card.plots["latency-connect-absolute"].spec["data"]["values"]
    assert [row["panel"] for row in rows] == ["cluster-ip", "node-port"]


def test_files_of_odd_names_are_told_apart() -> None:
    odd = [figure("a", measure=measure, title=measure, way="") for measure in ("../x", "x", "X", "ß")]
    (chapter,) = chapters([document(outcome(1, *odd, fastest=[]))])
    names = [card.name for section in chapter.sections for card in section.cards]
    assert names == ["latency-x", "latency-x-2", "latency-x-3", "latency-unnamed"]


def test_each_contestant_has_a_sign_of_its_own() -> None:
    names = [f"proxy {number}" for number in range(40)]
    palette = Palette(["floor", *names, "control", "proxy 3"])
    signs = [palette[name] for name in (*names, "floor", "control")]
    assert len({(sign.colour, sign.shape) for sign in signs}) == len(signs)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_seen(theme: int) -> None:
    for name in ("--text", "--quiet", "--accent", "--warn"):
        for behind in ("--page", "--card"):
            assert contrast(COLOURS[name][theme], COLOURS[behind][theme]) >= 4.5, (name, behind)
    for name in (name for name in COLOURS if name.startswith("--c") and name != "--card"):
        assert contrast(COLOURS[name][theme], COLOURS["--card"][theme]) >= 3, name


def contrast(one: str, other: str) -> float:
    """As WCAG 2 defines it."""
    less, more = sorted((luminance(one), luminance(other)))
    return (more + 0.05) / (less + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    prepare(tmp_path / "new")
    prepare(tmp_path / "new")
    (tmp_path / "new" / "mine").touch()
    with pytest.raises(NoPlace, match="/new is not empty: name another folder for the report, or remove it"):
        write_report([document()], tmp_path / "new")
    assert [one.name for one in (tmp_path / "new").iterdir()] == ["mine"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_results_stay_when_drawing_ends(error: type[BaseException] | OSError, tmp_path: Path) -> None:
    """They may be nowhere else."""
    one = document(outcome(1, figure("a"), fastest=[]))

    def step(what: str) -> None:
        if what != "the page":
            raise error

    with pytest.raises((KeyboardInterrupt, NoPlace)):
        write_report([one], tmp_path / "new", step)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["results.json"]
    assert Document.read(tmp_path / "new" / "results.json") == one


def test_what_is_in_the_way_is_said(tmp_path: Path) -> None:
    with pytest.raises(NoPlace, match=f"there is no folder {tmp_path}/none"):
        prepare(tmp_path / "none" / "report")
    (tmp_path / "file").touch()
    with pytest.raises(NoPlace, match=f"no report can be written to {tmp_path}/file: File exists"):
        prepare(tmp_path / "file")
    with pytest.raises(NoPlace, match="no report can be written to /proc"):
        prepare(Path("/proc/sys"))


def test_a_library_that_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    with pytest.raises(NoPlace, match=r"not installed; install pyproxy\[bench\]"):
        prepare(tmp_path / "report")
    assert not (tmp_path / "report").exists()
