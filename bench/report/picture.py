"""A plot as a picture that stands by itself: in the light, on white, with its title."""

from collections.abc import Iterator, Sequence

import msgspec
import vl_convert

from bench.report.chapter import Chapter
from bench.report.palette import in_the_light
from bench.report.plot import Plot

_VERSION = "6.4"
"""Of Vega-Lite: the one that the page has, too."""


def all_of(chapters: Sequence[Chapter]) -> Iterator[tuple[str, Plot]]:
    """With their names."""
    for chapter in chapters:
        for section in chapter.sections:
            for card in section.cards:
                yield from card.plots.items()


def svg(plot: Plot) -> str:
    spec = {**plot.spec, "background": "white", "padding": 16}
    return vl_convert.vegalite_to_svg(in_the_light(msgspec.json.encode(spec).decode()), vl_version=_VERSION)


def png(drawn: str, scale: float) -> bytes:
    return vl_convert.svg_to_png(drawn, scale=scale)
