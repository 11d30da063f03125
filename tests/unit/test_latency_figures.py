"""What is concluded from samples, and what is not."""

import random
from array import array
from collections import Counter

import pytest

from bench.contestant import CONTROL, FLOOR
from bench.latency_figures import LatencyFigures
from bench.latency_result import LatencyResult
from bench.measured import Cell

_MEASURED = [
    ("cluster-ip", "connect"),
    ("cluster-ip", "request"),
    ("node-port", "connect"),
    ("bystander", "connect"),
]


def figures(rounds: int = 20, samples: int = 50, noise: float = 1.0, **times: float) -> LatencyFigures:
    """Of contestants that take so many µs beside a floor of 100; ``noise`` in µs is what a batch is off by."""
    draws = random.Random(3)
    result = LatencyResult(10, 2, [FLOOR, CONTROL, *times], rounds=rounds)
    for contestant in result.contestants:
        for way, measure in _MEASURED:
            cell = Cell(contestant, way, measure)
            result.failures[cell] = Counter()
            result.samples[cell] = []
            for _ in range(rounds):
                level = times.get(contestant, 100.0) + draws.gauss(0, noise)
                result.samples[cell].append(array("q", (int(1000 * (level + draws.random())) for _ in range(samples))))
    return LatencyFigures(result, frozenset({"relay"}))


def test_the_fastest_is_named_where_it_is_clear() -> None:
    told = figures(slow=150, quick=110, middling=120)
    assert told.fastest("cluster-ip", "connect") == ["quick"]
    figure = told.cells[Cell("slow", "cluster-ip", "connect")]
    assert figure.ratios["p50"].value == pytest.approx(1.5, abs=0.02)
    assert figure.differs


def test_those_that_are_not_told_apart_stand_together() -> None:
    told = figures(slow=150, one=110, other=110.2)
    assert sorted(told.fastest("cluster-ip", "connect")) == ["one", "other"]


def test_a_noisy_control_hides_what_the_same_difference_showed() -> None:
    """A run in which the two paths without a proxy differ by a tenth can't tell a difference of a twentieth."""
    quiet, noisy = figures(one=100, other=105), figures(one=100, other=105)
    for cell in [cell for cell in noisy.result.samples if cell.contestant == CONTROL]:
        noisy.result.samples[cell] = [
            array("q", (int(1.1 * ns) for ns in samples)) for samples in noisy.result.samples[cell]
        ]
    noisy = LatencyFigures(noisy.result, frozenset())
    assert quiet.fastest("cluster-ip", "connect") == ["one"]
    assert noisy.fastest("cluster-ip", "connect") == ["one", "other"]
    assert quiet.cells[Cell("other", "cluster-ip", "connect")].differs
    assert not noisy.cells[Cell("other", "cluster-ip", "connect")].differs


def test_noise_in_the_rounds_hides_a_difference() -> None:
    told = figures(noise=30, one=100, other=105)
    assert len(told.fastest("cluster-ip", "connect")) == 2
    assert not told.cells[Cell("other", "cluster-ip", "connect")].differs


def test_too_few_rounds_tell_nothing() -> None:
    told = figures(rounds=9, slow=300, quick=110)
    assert told.fastest("cluster-ip", "connect") == []
    assert told.comparison("cluster-ip", "connect").resolution is None
    assert not told.cells[Cell("slow", "cluster-ip", "connect")].differs


def test_a_relay_does_not_compete_where_it_answers_itself() -> None:
    told = figures(relay=50, real=110)
    assert told.fastest("cluster-ip", "connect") == ["real"]
    assert told.fastest("node-port", "connect") == ["real"]
    assert told.fastest("bystander", "connect") == ["relay"]
    assert told.fastest("cluster-ip", "request") == ["relay"]
    assert told.relaying_here == ["relay"]
    assert told.rivals("cluster-ip", "connect") == ["real"]
    assert told.rivals("cluster-ip", "request") == ["relay", "real"]


def test_what_failed_for_a_whole_round_has_no_figures() -> None:
    told = figures(one=110, other=120)
    cell = Cell("one", "cluster-ip", "connect")
    told.result.samples[cell][3] = array("q")
    told = LatencyFigures(told.result, frozenset())
    assert told.cells[cell].quantiles_ns == told.cells[cell].ratios == {}
    assert told.fastest("cluster-ip", "connect") == ["other"]


def test_a_tail_without_samples_is_left_out() -> None:
    few, many = (figures(20, samples, one=110) for samples in (50, 250))
    cell = Cell("one", "cluster-ip", "connect")
    assert list(few.cells[cell].quantiles_ns) == ["p50", "p90", "p99"]
    assert list(many.cells[cell].quantiles_ns) == ["p50", "p90", "p99", "p99.9"]


def test_the_floor_is_no_ratio_of_itself() -> None:
    told = figures(one=110)
    assert told.cells[Cell(FLOOR, "cluster-ip", "connect")].ratios == {}
    assert told.cells[Cell(CONTROL, "cluster-ip", "connect")].ratios["p50"].value == pytest.approx(1, abs=0.02)


def test_who_fell_out_in_the_midst_has_no_figures_and_harms_nobodys() -> None:
    told = figures(one=110, gone=120)
    for cell in [cell for cell in told.result.samples if cell.contestant == "gone"]:
        del told.result.samples[cell][7:]
    told.result.contestants.remove("gone")
    told = LatencyFigures(told.result, frozenset())
    assert {cell.contestant for cell in told.cells} == {FLOOR, CONTROL, "one"}
    assert told.fastest("cluster-ip", "connect") == ["one"]
