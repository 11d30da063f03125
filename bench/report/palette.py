"""The colours of the page and its plots, and the sign by which one knows a contestant everywhere.

The colours of contestants are Okabe and Ito's and a few more, which the colour-blind tell apart, made darker or lighter
until each has a contrast of three to what is behind it (WCAG 1.4.11). A sign is a shape and a dash as well.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bench.contestant import CONTROL, FLOOR

COLOURS = {
    "--page": ("#f6f7f8", "#121518"),
    "--card": ("#ffffff", "#1a1e22"),
    "--line": ("#dfe3e7", "#2e353c"),
    "--text": ("#1b2026", "#e4e7ea"),
    "--quiet": ("#59636e", "#9aa5b0"),
    "--accent": ("#1d5fbf", "#7fb0f5"),
    "--warn": ("#855100", "#e5b555"),
    "--c0": ("#0072b2", "#56b4e9"),
    "--c1": ("#d55e00", "#f5824a"),
    "--c2": ("#00875f", "#35c79a"),
    "--c3": ("#b8579a", "#e8a0cb"),
    "--c4": ("#a87400", "#f0b429"),
    "--c5": ("#7a1f4c", "#ff7f8e"),
    "--c6": ("#5f6b00", "#c9d65a"),
}
"""By the name of a property in CSS: in the light, in the dark."""
_CONTESTANTS = [name for name in COLOURS if re.fullmatch(r"--c\d+", name)]
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (6, 2), (2, 2), (8, 2, 2, 2), (12, 3))
_GREY = "--quiet"
_VARIABLE = re.compile(r"var\((--\w+)\)")


@dataclass(frozen=True, slots=True)
class Sign:
    """In Vega's words."""

    colour: str
    shape: str
    dash: tuple[int, ...]


class Palette:
    def __init__(self, contestants: Iterable[str]) -> None:
        """In whatever order; the same name always has the same sign. Who is no proxy is grey."""
        self._signs = {
            FLOOR: Sign(f"var({_GREY})", "stroke", _DASHES[0]),
            CONTROL: Sign(f"var({_GREY})", "circle", _DASHES[2]),
        }
        proxies = (name for name in dict.fromkeys(contestants) if name not in self._signs)
        for number, name in enumerate(proxies):
            colour, shape = _CONTESTANTS[number % len(_CONTESTANTS)], _SHAPES[number % len(_SHAPES)]
            self._signs[name] = Sign(f"var({colour})", shape, _DASHES[number % len(_DASHES)])

    def __getitem__(self, contestant: str) -> Sign:
        return self._signs[contestant]


def in_the_light(text: str) -> str:
    """With colours in place of the names of properties, for pictures that stand by themselves."""
    return _VARIABLE.sub(lambda found: COLOURS[found[1]][0], text)
