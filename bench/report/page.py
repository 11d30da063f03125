"""The report as one page: it needs no other file and can ask for none, which its Content-Security-Policy sees to.

Vega draws the plots in the reader's browser, by its own script and without `eval`: by its interpreter of expressions.
Plots and results are in the page packed. What a document says is text: Jinja2 escapes all of it.
"""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from importlib import resources

import jinja2
import msgspec
import vl_convert

from bench.report.chapter import Chapter
from bench.report.palette import COLOURS
from bench.report.topic import services

_VEGA = "window.vegaEmbed = vegaEmbed;"
_FILES = resources.files("bench.report")


def page(chapters: Sequence[Chapter], results: bytes, *, has_samples: bool) -> str:
    """HTML. ``results``: all documents, packed, for the reader to take along."""
    specs = {
        name: {"spec": plot.spec, "columns": plot.columns}
        for chapter in chapters
        for section in chapter.sections
        for card in section.cards
        for name, plot in card.plots.items()
    }
    style = _colours() + _text("page.css")
    scripts = [vl_convert.javascript_bundle(_VEGA), _text("page.js")]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["services"] = services
    return environment.from_string(_text("page.html")).render(
        chapters=chapters,
        policy=_policy(style, scripts),
        style=style,
        scripts=scripts,
        plots=_base64(gzip.compress(msgspec.json.encode(specs), mtime=0)),
        results=_base64(results),
        has_samples=has_samples,
    )


def _policy(style: str, scripts: Sequence[str]) -> str:
    """Nothing may be loaded or sent, and nothing runs but what is hashed here."""
    allowed = " ".join(map(_hash, scripts))
    rules = ("default-src 'none'", f"script-src {allowed}", f"style-src {_hash(style)}", "base-uri 'none'")
    return "; ".join((*rules, "form-action 'none'"))


def _hash(text: str) -> str:
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"


def _colours() -> str:
    """Each a property of CSS."""
    declared = "".join(f"{name}: light-dark({light}, {dark}); " for name, (light, dark) in COLOURS.items())
    return f":root {{ {declared}}}\n"


def _text(name: str) -> str:
    return _FILES.joinpath(name).read_text(encoding="utf-8")


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
