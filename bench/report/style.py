"""How all plots look, as Vega-Lite's configuration: quiet axes, and the colours of the page by their names."""

from typing import Any

_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif'
STYLE: dict[str, Any] = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None},
    "title": {"color": "var(--text)", "subtitleColor": "var(--quiet)", "fontSize": 16, "subtitleFontSize": 13},
    "axis": {
        "labelColor": "var(--quiet)",
        "titleColor": "var(--quiet)",
        "titleFontWeight": 400,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "gridColor": "var(--line)",
        "domainColor": "var(--line)",
        "tickColor": "var(--line)",
        "aria": False,
    },
    "legend": {
        "labelColor": "var(--text)",
        "labelFontSize": 13,
        "labelLimit": 200,
        "symbolSize": 90,
        "symbolStrokeWidth": 2,
        "title": None,
        "orient": "top",
        "aria": False,
    },
    "mark": {"aria": False},
    "text": {"fontSize": 12},
}
