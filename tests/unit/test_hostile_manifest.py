"""Texts made to break the reader: each is read or refused, soon, and takes nothing else down."""

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyproxy.manifest import Broken, parse
from tests.unit.texts import SERVICE, as_json


def test_a_complaint_about_a_text_is_bounded() -> None:
    with pytest.raises(Broken) as caught:
        parse(b"a: !" + b"x" * 10_000 + b" 1\n")
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("tag", ["timestamp", "bool", "int", "float", "null", "binary", "set", "omap", "pairs", "str"])
@pytest.mark.parametrize("value", ["nonsense", "''", "[]", "{}", "\u00e4"])
def test_a_tag_that_does_not_fit_its_value_breaks_no_more_than_the_text(tag: str, value: str) -> None:
    try:
        assert parse(f"kind: Pod\na: !!{tag} {value}\n".encode()).objects == []
    except Broken as broken:
        assert str(broken).isprintable()


@pytest.mark.parametrize("where", ["kind", "apiVersion", "metadata.name", "metadata.namespace", "spec.ports[0].port"])
def test_a_number_too_long_for_text_is_refused_like_any_other(where: str) -> None:
    huge = "0x" + "f" * 10_000
    texts = {
        "kind": SERVICE.replace("kind: Service", f"kind: {huge}"),
        "apiVersion": SERVICE.replace("apiVersion: v1", f"apiVersion: {huge}"),
        "metadata.name": SERVICE.replace("name: web", f"name: {huge}"),
        "metadata.namespace": SERVICE.replace("name: web", f"name: web\n  namespace: {huge}"),
        "spec.ports[0].port": SERVICE.replace("port: 80", f"port: {huge}"),
    }
    manifest = parse(texts[where].encode())
    assert manifest.objects == []
    assert [mishap.problem.field for mishap in manifest.mishaps] == ([] if where == "kind" else [where])


@pytest.mark.parametrize(
    "text",
    [
        b"&x\nkind: Service\napiVersion: v1\nmetadata: &y {name: a, labels: *y}\n",
        b"kind: Service\napiVersion: v1\nmetadata: &x [*x]\n",
        b"&x\nkind: List\nitems: [*x, *x]\n",
        b"&x [*x]\n",
        b"? &x [*x]\n: 1\n",
    ],
    ids=repr,
)
def test_a_text_that_contains_itself_yields_no_object(text: bytes) -> None:
    try:
        assert parse(text).objects == []
    except Broken:
        pass


@settings(deadline=None)
@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.text(max_size=99).map(json.dumps).map(str.encode)
)
def test_any_bytes_are_read_or_broken(text: bytes) -> None:
    assert_read_or_broken(text)


WORDS = ["kind", "Service", "metadata", "items", "name", "v1", "apiVersion", "0x1", "~", "'", '"', "*a", *"{}[],"]
FRAGMENTS = [*WORDS, ": ", "\n", "  ", "- ", "---\n", "&a ", "<<: ", "!!int ", "!!bool ", "? ", "|\n"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30).map("".join))
def test_anything_like_yaml_is_read_or_broken(text: str) -> None:
    assert_read_or_broken(text.encode())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["Service", "v1", "List", "web", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["kind", "apiVersion", "metadata", "name", "spec", "items", "ports"]), inner)
    ),
    max_leaves=15,
)


@settings(deadline=None)
@given(JSON, st.booleans())
def test_any_json_is_read_or_broken(document: object, as_yaml: bool) -> None:
    assert_read_or_broken((b"---\n" if as_yaml else b"") + as_json(document))


def assert_read_or_broken(text: bytes) -> None:
    try:
        lines = [f"{mishap.line} {mishap.problem}" for mishap in parse(text).mishaps]
    except Broken as broken:
        lines = [str(broken)]
    assert all(line.isprintable() for line in lines)


LAUGHS = b"a0: &a0 [lol]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
)
MERGES = LAUGHS.replace(b"[lol]", b"{x: 1}").replace(b"[", b"{<<: [").replace(b"]", b"]}")
BOMBS = {
    "100,000 open lists": b"a: " + b"[" * 100_000,
    "100,000 nested lists": b"a: " + b"[" * 100_000 + b"]" * 100_000,
    "100,000 nested lists in one line of dashes": b"- " * 100_000,
    "100,000 nested maps": b"a: " + b"{a: " * 100_000,
    "100,000 lists in JSON": b'{"a": ' + b"[" * 100_000,
    "aliases of aliases": LAUGHS,
    "aliases of aliases as a kind": LAUGHS + b"kind: *a11\n",
    "aliases of aliases as metadata": LAUGHS + b"kind: Service\nmetadata: *a11\n",
    "aliases of aliases as a name": LAUGHS + b"kind: Service\nmetadata: {name: *a11}\n",
    "aliases of aliases as a version": LAUGHS + b"kind: Service\napiVersion: *a11\n",
    "merges of merges": MERGES,
    "many bad objects": b"".join(b"---\nkind: Service\nmetadata: {name: a%d}\n" % n for n in range(3000)),
}
READ_APART = """\
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from pyproxy.manifest import Broken, parse
try:
    parse(sys.stdin.buffer.read())
except Broken as broken:
    pass
"""


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS.keys())
def test_a_small_text_takes_neither_the_process_down_nor_long(bomb: bytes) -> None:
    """In a process of its own, since what goes wrong here is a crash of the interpreter or has no end."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", READ_APART], input=bomb, capture_output=True, timeout=10, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "annotation",
    [b'"\xff"', b"9" * 6000, b"1e999999"],
    ids=["not UTF-8", "a long number", "a great number"],
)
@pytest.mark.parametrize("cluster_ip", [b"bad", b"10.96.0.1"])
def test_what_stands_in_an_annotation_harms_nobody(annotation: bytes, cluster_ip: bytes) -> None:
    head = b'{"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a", "annotations": {"x": '
    manifest = parse(head + annotation + b'}}, "spec": {"clusterIP": "' + cluster_ip + b'"}}')
    assert len(manifest.objects) + len(manifest.mishaps) == 1


def test_json_that_is_too_deep_is_broken() -> None:
    with pytest.raises(Broken, match="recursion"):
        parse(b'{"kind": "Service", "metadata": {"annotations": {"x": ' + b"[" * 994 + b"]" * 994 + b"}}}")
