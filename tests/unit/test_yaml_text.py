"""What both readers of YAML rest on; the harm that texts could do is tested through the readers."""

import pytest

from pyproxy.yaml_text import Broken, compose, documents, follow

TEXT = b"a:\n- x\n- b: y\n  '0': z\n"


@pytest.mark.parametrize(
    ("steps", "lines"),
    [
        ([], []),
        (["a"], [(0, 1)]),
        (["a", "1", "b"], [(0, 1), (2, 2), (2, 2)]),
        (["a", "1", "0"], [(0, 1), (2, 2), (3, 3)]),
        (["a", "2"], [(0, 1)]),
        (["a", "b"], [(0, 1)]),
        (["a", "\u00b2"], [(0, 1)]),
        (["a", "0", "x"], [(0, 1), (1, 1)]),
        (["b", "a"], []),
    ],
)
def test_steps_are_followed_as_far_as_they_are_there(steps: list[str], lines: list[tuple[int, int]]) -> None:
    found = follow(compose(TEXT)[0], steps)
    assert [(key.start_mark.line, value.start_mark.line) for key, value in found] == lines


def test_timestamps_are_text() -> None:
    assert documents(b"2026-01-02") == ["2026-01-02"]


def test_a_broken_text_is_told_with_line_and_reason() -> None:
    with pytest.raises(Broken) as caught:
        documents(b"a: 1\nb: [\n")
    assert (
        str(caught.value)
        == f"line {caught.value.line}: {caught.value.reason}"
        == ("line 3: did not find expected node content")
    )
