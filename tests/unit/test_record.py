"""The Figures that a part makes of its samples."""

from collections import Counter

from bench.document import Figure
from bench.record import Measure, Record

_LAG = Measure("lag", "how long it takes", "s")
_COUNT = Measure("count", "how many there are", "1")


def _figure(*samples: float) -> Figure:
    record = Record("nftables")
    record.add(_LAG, *samples)
    return record.figures()[0]


def test_a_figure_has_the_quantiles_for_which_there_are_samples_enough() -> None:
    assert list(_figure(0.5).quantiles) == ["p50"]
    assert list(_figure(*[0.5] * 49).quantiles) == ["p50", "max"]
    assert list(_figure(*[0.5] * 50).quantiles) == ["p50", "p90", "max"]
    assert list(_figure(*[0.5] * 500).quantiles) == ["p50", "p90", "p99", "max"]


def test_what_was_measured_once_has_an_interval_of_no_width_and_what_varies_has_one() -> None:
    once = _figure(0.25).quantiles["p50"]
    assert (once.low, once.value, once.high) == (0.25, 0.25, 0.25)
    figure = _figure(*(number / 1000 for number in range(1, 102)))
    p50 = figure.quantiles["p50"]
    assert p50.value == 0.051
    assert 0.03 < p50.low < 0.051 < p50.high < 0.072
    assert figure.quantiles["max"].value == 0.101


def test_samples_are_kept_by_start_and_figures_come_in_the_order_of_their_first_samples() -> None:
    record = Record("nftables")
    record.add(_LAG, 0.3, start=0)
    record.add(_COUNT, 7)
    record.add(_COUNT, 8, 9)
    record.add_failures(_COUNT, Counter(TimeoutError=2))
    record.add_failures(_COUNT, Counter(TimeoutError=1))
    record.add(_LAG, 0.1, start=2)
    lag, count = record.figures()
    assert (lag.contestant, lag.measure, lag.title, lag.unit) == ("nftables", *_LAG[:3])
    assert (lag.samples, lag.quantiles["p50"].value, lag.failures) == ([[0.3], [], [0.1]], 0.2, {})
    assert (count.samples, count.quantiles["p50"].value, count.failures) == ([[7, 8, 9]], 8, {"TimeoutError": 3})


def test_a_figure_says_of_which_way_it_is_and_what_is_better() -> None:
    record = Record("nftables")
    record.add(Measure("attempts", "tried", "1", "node-port", less_is_better=False), 1)
    (figure,) = record.figures()
    assert (figure.way, figure.less_is_better) == ("node-port", False)
    assert (_figure(1).way, _figure(1).less_is_better) == ("", True)
