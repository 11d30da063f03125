"""Go's durations, as Go itself reads and prints them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyproxy.duration import go_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0), ("-0", 0.0), ("+0", 0.0), ("0s", 0.0), ("1h0m0s", 3600.0), ("1m30s", 90.0), ("250ms", 0.25),
        ("1.5h", 5400.0), (".5s", 0.5), ("1.s", 1.0), ("+3s", 3.0), ("-1m30s", -90.0), ("7us", 7e-6),
        ("7\u00b5s", 7e-6), ("7\u03bcs", 7e-6), ("9ns", 9e-9), ("1s1m1s", 62.0), ("2562047h", 2562047 * 3600.0),
    ],
)  # fmt: skip
def test_durations_are_those_of_go(text: str, seconds: float) -> None:
    assert go_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "+",
        "-",
        "s",
        ".s",
        ".",
        "1",
        "30",
        "00",
        "1 s",
        " 1s",
        "1s\n",
        "1d",
        "1S",
        "1e3s",
        "--1s",
        "1s-1s",
        "1s2",
        "\u0661s",
    ],
    ids=ascii,
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 30s or 1m30s"):
        go_duration(text)


@pytest.mark.parametrize("text", ["2562048h", "9" * 5000 + "ns", "-2562048h"], ids=lambda text: text[:9])
def test_a_duration_that_go_can_not_count_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is longer than 292 years"):
        go_duration(text)


@given(st.integers(0, 10**6), st.integers(0, 59), st.integers(0, 59), st.integers(0, 999))
def test_a_duration_as_go_prints_it_is_read_back(hours: int, minutes: int, seconds: int, thousandths: int) -> None:
    text = f"{hours}h{minutes}m{seconds}.{thousandths:03}s"
    assert go_duration(text) == pytest.approx(hours * 3600 + minutes * 60 + seconds + thousandths / 1000)
