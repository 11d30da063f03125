"""Durations as Go writes them, which is how every flag and file of Kubernetes has them: 1m30s, 250ms, 0."""

import re

from pyproxy.address import shorten

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = rf"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)({'|'.join(_UNITS)})"
_WHOLE = re.compile(rf"([-+]?)(?:0|((?:{_PART})+))")
_LONGEST_S = (2**63 - 1) / 1e9  # Go counts nanoseconds in an int64


def go_duration(text: str) -> float:
    """``text`` in seconds, as time.ParseDuration of Go reads it; negative ones too.

    Raises ValueError with a sentence that quotes ``text``.
    """
    whole = _WHOLE.fullmatch(text)
    if whole is None:
        raise ValueError(f"{shorten(text)} is not a duration such as 30s or 1m30s")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in re.findall(_PART, whole[2] or ""))
    if seconds > _LONGEST_S:
        raise ValueError(f"{shorten(text)} is longer than 292 years")
    return -seconds if whole[1] == "-" else seconds
