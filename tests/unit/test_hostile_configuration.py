"""Configurations made to break the reader: each is read or refused, soon, by the name of what is wrong."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.configuration import BadConfiguration, parse
from tests.unit.test_configuration import FIELDS, HEAD, V1ALPHA1
from tests.unit.test_hostile_manifest import BOMBS, FRAGMENTS


def assert_read_or_refused(text: bytes) -> None:
    try:
        parse(text)
    except BadConfiguration as bad:
        assert bad.mistakes
        assert str(bad).isprintable()
        assert all(mistake.line > 0 and len(str(mistake)) < 1000 for mistake in bad.mistakes)


@settings(deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_are_read_or_refused(text: bytes) -> None:
    assert_read_or_refused(text)
    assert_read_or_refused(HEAD.encode() + text)


NAMES = sorted({name for field in FIELDS for name in field.split(".")})


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([*FRAGMENTS, *NAMES, "30s", "primary", "10.0.0.0/8"]), max_size=30).map("".join))
def test_anything_like_yaml_is_read_or_refused(text: str) -> None:
    assert_read_or_refused((HEAD + text).encode())


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
    | st.sampled_from(["30s", "-1s", "primary", "10.0.0.0/8", "[::]:80", "text", "ipvs", 2**63, 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@settings(deadline=None, max_examples=400)
@given(st.sampled_from([field for field in FIELDS if field not in ("apiVersion", "kind")]), ANY)
def test_any_value_of_any_field_is_read_or_refused_by_its_name(field: str, value: object) -> None:
    inner = value
    for name in reversed(field.split(".")):
        inner = (
            [{name: inner}] if field.startswith("logging.vmodule.") and name == field.split(".")[-1] else {name: inner}
        )
    document = {"apiVersion": V1ALPHA1, "kind": "KubeProxyConfiguration", **inner}  # type: ignore[dict-item]
    text = json.dumps(document, indent=1).replace("NaN", ".nan").replace("Infinity", ".inf").encode()
    assert_read_or_refused(text)
    try:
        parse(text)
    except BadConfiguration as bad:
        about = [mistake.field for mistake in bad.mistakes if mistake.field]
        top = field.split(".")[0]
        assert all(name.split(".")[0].split("[")[0] == top for name in about)


PARSE_APART = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from pyproxy.configuration import BadConfiguration, parse
try:
    parse(sys.stdin.buffer.read())
except BadConfiguration as bad:
    print(len(bad.mistakes))
"""
CHAIN = "".join(f"- &a{number} [*a{number - 1}]\n" if number else "- &a0 [x]\n" for number in range(9000))
HOSTILE = {
    **BOMBS,
    **{f"{name}, behind a head": HEAD.encode() + bomb for name, bomb in BOMBS.items()},
    "aliases of aliases as values": HEAD.encode() + BOMBS["aliases of aliases"] + b"mode: *a11\nnftables: *a11\n"
    b"nodePortAddresses: *a11\nfeatureGates: {A: *a11}\n",
    "a chain of aliases": (HEAD + "x:\n" + CHAIN).encode(),
    "a section that contains itself": b"&x\n" + HEAD.encode() + b"nftables: *x\nlogging: {vmodule: &y [*y]}\n",
    "many unknown names": (HEAD + "".join(f"nftable{number}: 1\n" for number in range(900))).encode(),
    "many doubles": (HEAD + "mode: ipvs\n" * 900).encode(),
    "many bad items": (HEAD + "logging: {vmodule: [" + "{a: 1, b: 1, b: 1}, " * 12_000 + "]}").encode(),
    "too many names": (HEAD + "".join(f"nftable{number}: 1\n" for number in range(12_000))).encode(),
    "an endless duration": (HEAD + f"configSyncPeriod: {'1' * 200_000}").encode(),
    "an endless name": (HEAD + "x" * 200_000 + ": 1").encode(),
}  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_text_takes_neither_the_process_down_nor_long(text: bytes) -> None:
    """In a process of its own, since what goes wrong here is a crash of the interpreter or has no end."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", PARSE_APART], input=text, capture_output=True, timeout=10, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert int(done.stdout) > 0
