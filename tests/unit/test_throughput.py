"""What is read from iperf3 and wrk, and what is concluded from readings."""

import json
import re
from collections import Counter
from dataclasses import replace

import pytest

from bench import throughput
from bench.contestant import CONTROL, FLOOR
from bench.measured import Cell, ways
from bench.requests import Requests
from bench.streams import Streams
from bench.throughput import ThroughputBench, ThroughputPlan
from bench.throughput_outcome import ThroughputResult, outcome
from bench.traffic import Measure, Reading, version
from pyproxy.manifest import parse

_PLAN = ThroughputPlan(rounds=1, seconds=1, streams=4, warm_up=1, seed=1)
_RATE, _TIMES = Measure("rate", "so many", "1/s"), Measure("times", "times", "1", is_compared=False)


def test_a_stream_is_what_arrived_and_what_it_took() -> None:
    sent = {"bytes": 9e9, "bits_per_second": 36e9, "seconds": 2, "retransmits": 7}
    received = {"bytes": 8e9, "bits_per_second": 32e9, "seconds": 2}
    cpu = {"host_total": 75.0, "host_user": 1.0, "remote_total": 25.0}
    said = json.dumps(
        {"start": {}, "end": {"sum_sent": sent, "sum_received": received, "cpu_utilization_percent": cpu}}
    )
    reading = Streams("stream", 1, 5201).parse(said)
    assert reading.values == {"stream": 32e9, "stream-cpu": pytest.approx(0.25), "stream-retransmits": 7}
    assert reading.failures == {}


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ('{"end": {}, "error": "unable to connect to server: Connection refused"}', "unable to connect to server: "),
        ("", "iperf3 did not end"),
        ("Killed", "Killed"),
    ],
)
def test_a_stream_that_came_to_nothing_says_why(said: str, why: str) -> None:
    reading = Streams("stream", 1, 5201).parse(said)
    assert reading.values == {}
    assert [error.startswith(why) for error in reading.failures] == [True]


def _wrk(**figures: int) -> str:
    return json.dumps(dict.fromkeys(("us", "requests", "connect", "read", "write", "timeout", "status"), 0) | figures)


@pytest.mark.parametrize(
    ("said", "values", "failures"),
    [
        (_wrk(us=2_000_000, requests=500), {"connections": 250.0}, {}),
        (_wrk(us=1_000_000, requests=500, status=100, read=3), {"connections": 400.0}, {"status": 100, "read": 3}),
        (_wrk(us=1_000_000, timeout=32), {}, {"timeout": 32}),
        (_wrk(us=1_000_000), {}, {"no answer": 1}),
        ("unable to connect\n", {}, {"unable to connect": 1}),
        ("", {}, {"wrk did not end": 1}),
    ],
)
def test_requests_are_those_that_were_answered(said: str, values: dict[str, float], failures: dict[str, int]) -> None:
    assert Requests("connections", [9000], kept=False).parse(said) == (values, failures)


def test_only_requests_have_a_choice_of_endpoints() -> None:
    objects = ThroughputBench([], 20, 3, _PLAN).objects("10.244.0.12")
    read = parse(json.dumps({"kind": "List", "items": objects}).encode())
    assert read.mishaps == []
    assert sum(one["kind"] == "Service" for one in objects) == 20
    slices = [one for one in objects if one["metadata"]["name"].startswith("measured-")]
    found = [(port["name"], port["port"]) for one in slices for port in one["ports"]]
    assert found == [("http", 9000), ("http", 9001), ("http", 9002), ("stream", 5201)]


@pytest.mark.parametrize(
    ("absent", "remarks", "tasks"),
    [
        ({"wrk"}, ["Not measured, for want of wrk (apt install wrk): connections of one request; requests on "], 6),
        ({"nginx", "wrk"}, ["Not measured, for want of wrk and nginx (apt install wrk nginx): connections of one "], 6),
        ({"iperf3"}, ["Not measured, for want of iperf3 (apt install iperf3): TCP, one stream; TCP, 4 streams "], 6),
        ({"iperf3", "wrk"}, ["Not measured, for want of iperf3 ", "Not measured, for want of wrk "], 0),
    ],
)
def test_what_is_not_installed_is_told_and_the_rest_is_measured(
    absent: set[str], remarks: list[str], tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throughput, "find", lambda name: None if name in absent else f"/usr/bin/{name}")
    bench = ThroughputBench([], 1, 1, _PLAN)
    said = bench.outcome.remarks
    assert [one.startswith(start) for one, start in zip(said, remarks, strict=True)] == [True] * len(remarks)
    assert len(bench._tasks) == tasks
    if not tasks:
        bench.measure(pytest.fail)  # not even a lab is made
        assert bench.steps == 0
        assert not bench.outcome.complete  # who installs them goes on with it


def test_it_is_said_by_what_it_was_measured() -> None:
    programs = [version(name) for name in ("iperf3", "wrk", "nginx")]
    assert re.fullmatch(r"iperf3 \d+\.\d\S*, wrk \d+\.\d\S*, nginx \d+\.\d\S*", ", ".join(programs))
    said = outcome(replace(_result(), programs=programs), 1, complete=True)
    assert ", ".join(programs) in said.remarks[0]


def _result(rounds: int = 12, **rates: float) -> ThroughputResult:
    """The control is off by 1 % in every second round."""
    names = [FLOOR, CONTROL, *rates]
    result = ThroughputResult(10, 2, names, {}, ways(80, 30080)[:1], [_RATE, _TIMES], {}, rounds=rounds)
    for name in names:
        for measure, level in (("rate", rates.get(name, 1000.0)), ("times", 0.0)):
            cell = Cell(name, "cluster-ip", measure)
            off = 10 if name == CONTROL else 0
            result.samples[cell] = [[level + number + off * (number % 2)] for number in range(rounds)]
            result.failures[cell] = Counter()
    return result


def test_the_best_gets_most_through() -> None:
    said = outcome(_result(slow=500, quick=900, same=901), 1, complete=True)
    assert [(one.measure, sorted(one.fastest)) for one in said.findings] == [("rate", ["quick", "same"])]
    assert [one.rivals for one in said.findings] == [["slow", "quick", "same"]]
    figures = {(one.contestant, one.measure): one for one in said.figures}
    slow = figures["slow", "rate"]
    assert (slow.quantiles["p50"].value, slow.unit, slow.less_is_better, slow.differs) == (505.5, "1/s", False, True)
    assert slow.ratios["p50"].value == pytest.approx(0.5, abs=0.01)
    assert slow.samples == [[500.0 + number] for number in range(12)]
    assert figures[CONTROL, "rate"].differs is False
    assert figures[FLOOR, "rate"].ratios == figures["slow", "times"].ratios == {}


def test_nothing_got_through_where_a_reading_came_to_nothing() -> None:
    """What it cost is unknown then: a number to which a rate is that of nobody."""
    stream = Streams("stream", 1, 5201)
    failed, got = Reading({}, {"refused": 1}), Reading({one.name: 7.0 for one in stream.measures}, {})
    assert [throughput.samples(one, failed) for one in stream.measures] == [[0.0], [], []]
    assert [throughput.samples(one, got) for one in stream.measures] == [[7.0]] * 3


def test_who_fails_most_readings_is_not_the_best_by_the_others() -> None:
    result = _result(often=5000, always=900)
    cell = Cell("often", "cluster-ip", "rate")
    result.samples[cell][1:] = [[0.0] for _ in range(11)]
    result.failures[cell]["refused"] += 11
    said = outcome(result, 1, complete=True)
    assert [one.fastest for one in said.findings] == [["always"]]
    figure = next(one for one in said.figures if one.contestant == "often")
    assert (figure.quantiles["p50"].value, figure.ratios["p50"].value, figure.differs) == (0, 0, True)
    assert figure.failures == {"refused": 11}


@pytest.mark.parametrize(("lacks", "sample"), [("one", []), (CONTROL, []), (FLOOR, []), (FLOOR, [0.0])])
def test_nothing_is_told_by_fewer_than_ten_pairs(lacks: str, sample: list[float]) -> None:
    result = _result(one=500)
    samples = result.samples[Cell(lacks, "cluster-ip", "rate")]
    for missing, differs in ((2, True), (3, None)):
        samples[:missing] = [sample] * missing
        figures = outcome(result, 1, complete=True).figures
        assert next(one for one in figures if one.contestant == "one").differs is differs


def test_a_control_that_mostly_fails_tells_nothing() -> None:
    result = _result(one=500)
    result.samples[Cell(CONTROL, "cluster-ip", "rate")][1:] = [[0.0]] * 11
    assert [(one.resolution, one.fastest) for one in outcome(result, 1, complete=True).findings] == [(None, [])]


def test_who_fell_out_has_no_figures() -> None:
    result = _result(one=500)
    result.contestants.remove("one")
    assert {one.contestant for one in outcome(result, 1, complete=True).figures} == {FLOOR, CONTROL}
