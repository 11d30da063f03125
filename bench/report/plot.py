"""A topic as plots, in Vega-Lite's words: against the number of services, as bars, and how samples are distributed.

Each shows the same thing in panels, one for each way or size, side by side or below each other as there is room.
Colours are names of CSS properties, so that a page in the dark needs no other plot.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bench.document import Figure, Unit
from bench.estimate import Estimate
from bench.report.palette import Palette
from bench.report.style import STYLE
from bench.report.topic import Topic, p50, services
from bench.tables import amount, to_floor

Json = dict[str, Any]
View = Literal["ratio", "absolute", "distribution"]
VIEWS: dict[View, str] = {"ratio": "Ratio to floor", "absolute": "Absolute", "distribution": "Distribution"}
_AGAINST_SIZE = ("latency", "sync", "memory")
"""Scenarios whose question is how it grows with the cluster. Others are bars, and so is everything at a single size."""
_WIDE = 5.0
"""From this ratio of largest to smallest on, an axis is logarithmic."""
_ENOUGH_SAMPLES = 100
_SHARES = [*(number / 100 for number in range(100)), 0.995, 0.998, 0.999]
"""Of the samples, for which a distribution has a point. What is beyond is in the table, as the largest."""


@dataclass(frozen=True, slots=True)
class Plot:
    view: View
    description: str
    """In words, for those who don't see it."""
    spec: Json
    columns: int
    """Of panels, if there is room."""


def plots(topic: Topic, palette: Palette) -> Iterator[Plot]:
    """One for each view that there are figures for, the main one first."""
    draw = _lines if topic.scenario in _AGAINST_SIZE and len(topic.sizes) > 1 else _bars
    if topic.has_ratios:
        yield draw(topic, palette, "ratio")
    yield draw(topic, palette, "absolute")
    if any(sum(map(len, one.figure.samples)) >= _ENOUGH_SAMPLES for one in topic.entries):
        yield _distribution(topic, palette)


def _lines(topic: Topic, palette: Palette, view: View) -> Plot:
    rows = list(_rows(topic, view, lambda _, way: topic.ways[way]))
    panels = [topic.ways[way] for way in topic.ways]
    x = {"field": "services", "type": "quantitative", "title": "services", "scale": {"type": "log"}}
    x["axis"] = {"values": topic.sizes, "format": ",", "labelFlush": False}
    y = {"field": "value", "type": "quantitative", "title": _axis(topic, view), "scale": _scale(rows, zero=False)}
    names = _names(rows)
    colour, shape, dash = _signs(palette, names)
    colour["legend"] = {"symbolStrokeWidth": 0}  # a dashed edge would fray the shapes
    layer: list[Json] = []
    if view == "ratio":
        layer.append(_chance({"x": x, "y": {**y, "field": "from"}, "y2": {"field": "to"}}))
        layer.append({"mark": _FLOOR, "encoding": {"y": {"datum": 1}}})
    for mark, encoding in (
        ({"type": "line", "strokeWidth": 2}, {"y": y, "strokeDash": dash}),
        ({"type": "rule", "strokeWidth": 2}, {"y": {**y, "field": "low"}, "y2": {"field": "high"}}),
        ({"type": "point", "filled": True, "size": 55, "opacity": 1}, {"y": y, "shape": shape, "tooltip": _TOOLTIP}),
    ):
        layer.append(_of_contestants(mark, {"x": x, "color": colour, **encoding}))
    said = f"{topic.title}: {_axis(topic, view)} against the number of services, for {', '.join(names)}."
    return _plot(topic, view, said, rows, panels, len(panels), layer)


def _bars(topic: Topic, palette: Palette, view: View) -> Plot:
    several = len(topic.sizes) > 1

    def panel(count: int, way: str) -> str:
        return ", ".join(filter(None, (topic.ways[way], services(count) if several else "")))

    rows = list(_rows(topic, view, panel))
    panels = [panel(count, way) for count in topic.sizes for way in topic.ways]
    names = _names(rows)
    colour, _, _ = _signs(palette, names)
    y = {"field": "contestant", "type": "nominal", "sort": names, "title": None, "axis": {"labelLimit": 150}}
    x = {"field": "value", "type": "quantitative", "title": _axis(topic, view), "scale": _scale(rows, zero=True)}
    x["axis"] = {"tickCount": 4}
    layer: list[Json] = []
    if view == "ratio":
        layer.append(_chance({"x": {**x, "field": "from"}, "x2": {"field": "to"}}))
    text = {"type": "text", "align": "left", "dx": 6, "color": "var(--text)"}
    layer += [
        _of_contestants(
            {"type": "bar", "height": {"band": 0.6}},
            {"x": x, "y": y, "color": {**colour, "legend": None}, "tooltip": _TOOLTIP},
        ),
        _of_contestants(
            {"type": "rule", "strokeWidth": 1.5, "color": "var(--text)"},
            {"x": {**x, "field": "low"}, "x2": {"field": "high"}, "y": y},
        ),
    ]
    if view == "ratio":
        layer.append({"mark": _FLOOR, "encoding": {"x": {"datum": 1}}})
    words = {"x": {**x, "field": "high"}, "y": y, "text": {"field": "label"}}
    halo = {"stroke": "var(--card)", "strokeWidth": 4, "strokeJoin": "round"}
    layer += [_of_contestants({**text, **halo}, words), _of_contestants(text, words)]
    said = f"{topic.title}: {_axis(topic, view)} as bars, for {', '.join(names)}."
    return _plot(topic, view, said, rows, panels, len(topic.ways) if len(topic.ways) > 1 else 2, layer, len(names) * 26)


def _distribution(topic: Topic, palette: Palette) -> Plot:
    """At the smallest and the largest size: what lies between is between."""
    sizes = [size for size in topic.sizes if size in (topic.sizes[0], topic.sizes[-1])]

    def panel(count: int, way: str) -> str:
        return ", ".join(filter(None, (topic.ways[way], services(count))))

    entries = [one for one in topic.entries if one.services in sizes and any(one.figure.samples)]
    divisor, word = _unit(topic.unit, [one.value.value for one in entries])
    rows: list[Json] = []
    for one in entries:
        samples = sorted(sample for samples in one.figure.samples for sample in samples)
        about = {"panel": panel(one.services, one.figure.way), "contestant": one.figure.contestant}
        values = ((share, samples[int(share * len(samples))] / divisor) for share in _SHARES)
        rows += [{**about, "share": share, "value": _short(value)} for share, value in values]
    names = _names(rows)
    colour, _, dash = _signs(palette, names)
    encoding = {
        "x": {
            "field": "value",
            "type": "quantitative",
            "title": word,
            "scale": {"type": "log" if all(row["value"] > 0 for row in rows) else "linear", "nice": False},
            "axis": {"tickCount": 5, "format": "~g"},
        },
        "y": {"field": "share", "type": "quantitative", "title": "share of samples", "axis": {"format": "%"}},
        "order": {"field": "share", "type": "quantitative"},
        "color": colour,
        "strokeDash": dash,
    }
    mark = {"type": "line", "interpolate": "step-after", "strokeWidth": 1.5}
    said = f"{topic.title}: share of samples that take up to so many {word}, for {', '.join(names)}."
    panels = [panel(count, way) for count in sizes for way in topic.ways]
    columns = len(topic.ways) if len(topic.ways) > 1 else len(sizes)
    return _plot(topic, "distribution", said, rows, panels, columns, [_of_contestants(mark, encoding)])


_FLOOR: Json = {"type": "rule", "color": "var(--text)", "strokeWidth": 1}
_TOOLTIP: list[Json] = [
    {"field": "contestant", "type": "nominal", "title": "contestant"},
    {"field": "panel", "type": "nominal", "title": "of"},
    {"field": "services", "type": "quantitative", "format": ",", "title": "services"},
    {"field": "label", "type": "nominal", "title": "p50"},
]


def _plot(
    topic: Topic,
    view: View,
    said: str,
    rows: list[Json],
    panels: Sequence[str],
    columns: int,
    layer: list[Json],
    height: int = 230,
) -> Plot:
    """The panels share their axes, so that they can be compared."""
    header = {"labelFontSize": 13, "labelFontWeight": 600, "labelColor": "var(--text)", "labelAnchor": "start"}
    facet = {"field": "panel", "type": "nominal", "sort": list(panels), "title": None}
    columns = min(columns, len({row["panel"] for row in rows}))
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "description": said,
        "title": {"text": f"{topic.scenario}: {topic.title}", "subtitle": VIEWS[view], "anchor": "start", "offset": 12},
        "data": {"values": rows},
        "facet": {**facet, "header": header if any(panels) else {"labels": False}},
        "columns": columns,
        "spacing": 36,
        "spec": {"width": 300 if columns > 1 else 560, "height": height, "layer": layer},
        "config": STYLE,
    }
    return Plot(view, said, spec, columns)


def _rows(topic: Topic, view: View, panel: Callable[[int, str], str]) -> Iterator[Json]:
    """A row for each contestant, size and way; in ratios also one for what chance does there."""
    divisor, _ = _unit(topic.unit, [one.value.value for one in topic.entries])
    for one in topic.entries:
        estimate = one.figure.ratios.get("p50") if view == "ratio" else one.value
        if estimate is not None:
            yield {
                "panel": panel(one.services, one.figure.way),
                "services": one.services,
                "contestant": one.figure.contestant,
                "label": label(one.figure, view),
                **_interval(estimate, 1 if view == "ratio" else divisor),
            }
    if view == "ratio":
        for (count, way), finding in topic.findings.items():
            if finding.resolution is not None:
                chance = 1 + finding.resolution
                yield {"panel": panel(count, way), "services": count, "from": 1 / chance, "to": chance}


def label(figure: Figure, view: View) -> str:
    """The p50 in words."""
    return to_floor(figure) if view == "ratio" else amount(p50(figure).value, figure.unit)


def _interval(estimate: Estimate, divisor: float) -> Json:
    return {
        "value": _short(estimate.value / divisor),
        "low": _short(estimate.low / divisor),
        "high": _short(estimate.high / divisor),
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _unit(unit: Unit, values: Sequence[float]) -> tuple[float, str]:
    """By what to divide, so that the largest is a number one can read, and the unit then."""
    most = max(values)
    match unit:
        case "ns":
            return (1e3, "microseconds") if most < 1e6 else (1e6, "milliseconds")
        case "s":
            return (1e-3, "milliseconds") if most < 1 else (1, "seconds")
        case "bit/s":
            return 1e9, "Gbit/s"
        case "1/s":
            return 1, "per second"
        case "1":
            return 1, "count"
        case "MiB":
            return 1, "MiB"


def _axis(topic: Topic, view: View) -> str:
    if view == "ratio":
        return "p50, ratio to the floor"
    _, word = _unit(topic.unit, [one.value.value for one in topic.entries])
    return f"p50, {word}" if len(topic.quantiles) > 1 else word


def _names(rows: Sequence[Json]) -> list[str]:
    return list(dict.fromkeys(row["contestant"] for row in rows if "contestant" in row))


def _scale(rows: Sequence[Json], *, zero: bool) -> Json:
    """Bars start at nought, lines don't."""
    values = [row[end] for row in rows if "contestant" in row for end in ("low", "high")]
    if not zero and min(values) > 0 and max(values) / min(values) > _WIDE:
        return {"type": "log"}
    return {"zero": zero, "nice": True}


def _signs(palette: Palette, names: Sequence[str]) -> tuple[Json, Json, Json]:
    """Colour, shape and dash of each, in one legend."""
    field = {"field": "contestant", "type": "nominal", "sort": list(names), "title": None}
    signs = [palette[name] for name in names]
    return tuple(
        {**field, "scale": {"domain": list(names), "range": values}}
        for values in ([one.colour for one in signs], [one.shape for one in signs], [list(one.dash) for one in signs])
    )  # type: ignore[return-value]


def _of_contestants(mark: Json, encoding: Json) -> Json:
    return {"mark": mark, "encoding": encoding, "transform": [{"filter": "isValid(datum.contestant)"}]}


def _chance(encoding: Json) -> Json:
    """The band in which chance alone can put a ratio."""
    band = {"type": "area" if "y" in encoding else "rect", "color": "var(--quiet)", "opacity": 0.18}
    return {"mark": band, "encoding": encoding, "transform": [{"filter": "isValid(datum.from)"}]}
