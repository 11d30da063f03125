"""What a text holds, and on which line it goes wrong."""

import re
from typing import Any

import pytest

from pyproxy.manifest import Broken, Manifest, parse
from pyproxy.objects import Delete, EndpointSlice, Key, Node, Object, Service
from tests.unit.texts import NODE, SERVICE, SLICE, as_json, service


def names(manifest: Manifest) -> list[str]:
    assert not manifest.mishaps
    return [f"{type(thing).__name__} {thing.key}" for thing in manifest.objects]


def complaints(text: str | bytes) -> list[str]:
    manifest = parse(text.encode() if isinstance(text, str) else text)
    return [f"line {mishap.line}: {mishap.problem}" for mishap in manifest.mishaps]


def why_broken(text: bytes) -> str:
    with pytest.raises(Broken) as caught:
        parse(text)
    return str(caught.value)


def first(thing: Object, kind: type[Service]) -> Service:
    assert isinstance(thing, kind)
    return thing


def test_documents_of_one_text_come_out_in_order() -> None:
    text = "\n---\n".join(["# only a comment", SERVICE, SLICE, "", NODE, "---"])
    assert names(parse(text.encode())) == ["Service default/web", "EndpointSlice shop/web-1", "Node node-a"]


@pytest.mark.parametrize("text", [b"", b" \n", b"---\n", b"---\n---\n", b"# nothing\n", b"null\n"], ids=repr)
def test_a_text_may_hold_nothing(text: bytes) -> None:
    assert parse(text) == Manifest([], [])


def test_json_and_yaml_of_one_object_are_the_same() -> None:
    yaml = b"apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}"
    assert parse(as_json(service())) == parse(yaml)
    assert parse(b" \n\t" + as_json(service())) == parse(yaml)


def test_timestamps_and_dates_stay_text() -> None:
    text = SERVICE.replace("  name: web", "  name: web\n  labels: {topology.kubernetes.io/zone: 2024-01-02}")
    web = first(parse(text.encode()).objects[0], Service)
    assert web.metadata.creation_timestamp == "2024-01-02T03:04:05Z"
    assert web.metadata.labels == {"topology.kubernetes.io/zone": "2024-01-02"}


def test_anchors_and_merge_keys_are_obeyed() -> None:
    text = SERVICE.replace("port: 80", "<<: &rest {nodePort: 30080}\n    port: 80").replace(
        "port: 443", "port: 443\n    <<: *rest"
    )
    web = first(parse(text.encode()).objects[0], Service)
    assert [port.node_port for port in web.spec.ports or ()] == [30080, 30080]


@pytest.mark.parametrize("kind", ["List", "ServiceList"])
def test_lists_are_taken_apart(kind: str) -> None:
    bare = [{k: v for k, v in service(n).items() if k not in ("kind", "apiVersion")} for n in ("a", "b")]
    items = [service("a"), service("b")] if kind == "List" else bare
    document = {"apiVersion": "v1", "kind": kind, "items": items}
    expected = ["Service default/a", "Service default/b"]
    assert names(parse(as_json(document))) == expected
    assert names(parse(b"---\n" + as_json(document))) == expected


@pytest.mark.parametrize("start", [b"", b"---\n"], ids=["JSON", "YAML"])
def test_lists_of_the_other_kinds_are_taken_apart_too(start: bytes) -> None:
    piece = {"metadata": {"name": "s", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4"}
    slices = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList", "items": [piece]}
    nodes = {"apiVersion": "v1", "kind": "NodeList", "items": [{"metadata": {"name": "n"}}]}
    assert names(parse(start + as_json(slices))) == ["EndpointSlice default/s"]
    assert names(parse(start + as_json(nodes))) == ["Node n"]


@pytest.mark.parametrize("items", [[], None])
@pytest.mark.parametrize("start", [b"", b"---\n"], ids=["JSON", "YAML"])
def test_a_list_may_be_empty(items: list[object] | None, start: bytes) -> None:
    assert parse(start + as_json({"kind": "List", "items": items})) == Manifest([], [])


@pytest.mark.parametrize("kind", ["ConfigMap", "Pod", "service", "", None, 7, True, ["Service"], {"a": 1}])
@pytest.mark.parametrize("start", [b"", b"---\n"], ids=["JSON", "YAML"])
def test_other_kinds_are_passed_over(kind: object, start: bytes) -> None:
    other = {"apiVersion": "v1", "kind": kind, "metadata": 5, "spec": [], "data": {"x": "y"}}
    document = {"kind": "List", "items": [other, service()]}
    assert names(parse(start + as_json(other))) == []
    assert names(parse(start + as_json(document))) == ["Service default/web"]


@pytest.mark.parametrize("kind", [["List"], {"a": 1}, 5, None])
@pytest.mark.parametrize("start", [b"", b"---\n"], ids=["JSON", "YAML"])
def test_items_without_kind_in_a_list_of_strange_kind_are_passed_over(kind: object, start: bytes) -> None:
    assert names(parse(start + as_json({"kind": kind, "items": [{"metadata": {"name": "a"}}]}))) == []


@pytest.mark.parametrize(
    ("kind", "version", "served"),
    [
        ("Service", "v2", "v1"),
        ("Service", "", "v1"),
        ("EndpointSlice", "discovery.k8s.io/v1beta1", "discovery.k8s.io/v1"),
        ("Node", "a\nb", "v1"),
    ],
)
def test_another_version_is_refused_and_the_one_served_is_named(kind: str, version: str, served: str) -> None:
    text = as_json({"kind": kind, "apiVersion": version, "metadata": {"name": "web", "namespace": ""}})
    (mishap,) = parse(text).mishaps
    assert (mishap.refused, mishap.line, mishap.problem.field) == (True, 3, "apiVersion")
    assert mishap.problem.reason == f"{version!a} is not served here; {served} is"


def test_one_bad_object_harms_only_itself() -> None:
    bad = [service("a", type="Foo"), service("B"), service("c", ports=[{"port": "80"}]), {"kind": "Service"}]
    text = as_json({"kind": "List", "items": [service("first"), *bad, service("last")]})
    for each in (text, b"---\n" + text):
        manifest = parse(each)
        assert [thing.key.name for thing in manifest.objects] == ["first", "last"]
        assert [mishap.refused for mishap in manifest.mishaps] == [True] * 4


def test_mishaps_tell_which_object_they_are_about_as_far_as_that_is_known() -> None:
    wrong: list[Any] = [{"name": "web"}, {"name": "a", "namespace": "shop"}, {}, None, 5, {"name": ""}]
    items = [{"kind": "Service", "apiVersion": "v2", "metadata": metadata} for metadata in wrong]
    mishaps = parse(as_json({"kind": "List", "items": items})).mishaps
    known = [Delete(Service, Key("default", "web")), Delete(Service, Key("shop", "a"))]
    assert [mishap.identity for mishap in mishaps] == [*known, None, None, None, None]


def test_a_bad_endpoint_is_a_mishap_of_a_slice_that_is_served() -> None:
    manifest = parse(SLICE.replace("10.244.1.2", "127.0.0.1").encode())
    (piece,), (mishap,) = manifest.objects, manifest.mishaps
    assert isinstance(piece, EndpointSlice)
    assert len(piece.endpoints or ()) == 1
    assert (mishap.line, mishap.refused) == (12, False)
    assert mishap.identity == Delete(EndpointSlice, Key("shop", "web-1"))


def test_what_names_no_namespace_means_default_and_a_node_has_none() -> None:
    node_with_namespace = NODE.replace("name: node-a", "name: node-a\n  namespace: shop")
    assert names(parse(SERVICE.replace("name: web", 'name: web\n  namespace: ""').encode())) == ["Service default/web"]
    (node,) = parse(node_with_namespace.encode()).objects
    assert isinstance(node, Node)
    assert node.key == Key("", "node-a")


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("port: 443", "port: 70000", "line 12: Service default/web: spec.ports[1].port: 70000 is not a port"),
        ("port: 443", "port: '443'", "line 12: Service default/web: spec.ports[1].port: Expected `int`, got `str`"),
        ("    port: 443\n", "", "line 11: Service default/web: spec.ports[1]: Object missing required field `port`"),
        ("name: web", "name: Web", "line 4: Service default/'Web': metadata.name: 'Web' is not a DNS label"),

        ("name: web", "name: no", "line 4: Service default/: metadata.name: Expected `str`, got `bool`"),
        ("apiVersion: v1", "apiVersion: v2", "line 1: Service default/web: apiVersion: 'v2' is not served here"),
        ("  clusterIP: 10.96.0.1", "  x: y\n  clusterIPs:\n  - 10.96.0.1\n  - x",
         "line 10: Service default/web: spec.clusterIPs[1]: 'x' is not an IP address"),
        ("  ports:\n", "  ports: 5\n  x:\n", "line 8: Service default/web: spec.ports: Expected `array | null`"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_found_on_its_line(old: str, new: str, complaint: str) -> None:
    changed = SERVICE.replace(old, new, 1)
    assert changed != SERVICE
    (said,) = complaints(changed)
    assert said.startswith(complaint)
    further = f"# comment\n{NODE}---\n{changed}"
    (said_further,) = complaints(further)
    offset = len(NODE.splitlines()) + 2
    assert said_further == re.sub(r"\d+", lambda m: str(int(m[0]) + offset), said, count=1)


def test_a_wrong_label_is_found_on_its_line() -> None:
    (said,) = complaints(SLICE.replace("service-name: web", "service-name: W"))
    label = "metadata.labels[kubernetes.io/service-name]"
    assert said == f"line 7: EndpointSlice shop/web-1: {label}: 'W' is not a DNS label"


@pytest.mark.parametrize("start", [b"", b"---\n", b"\n\n "], ids=["JSON", "YAML", "indented JSON"])
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(
    ("changes", "mark"),
    [
        ({"ports": [{"name": "y", "port": 80}, {"name": "x", "port": 70000}]}, b"70000"),
        ({"ports": [{"name": "y", "port": 80}, {"name": "x", "port": "70000"}]}, b"70000"),
        ({"sessionAffinity": "Foo"}, b"Foo"),
        ({"externalIPs": ["198.51.100.1", "nonsense"]}, b"nonsense"),
    ],
    ids=str,
)
def test_lines_of_wrong_fields_are_known_in_json_too(
    changes: dict[str, Any], mark: bytes, listed: bool, start: bytes
) -> None:
    bad = service("bad", **changes)
    text = start + as_json({"kind": "List", "items": [service(), bad, bad]} if listed else bad)
    manifest = parse(text)
    numbers = [number for number, line in enumerate(text.split(b"\n"), 1) if mark in line]
    assert [mishap.line for mishap in manifest.mishaps][:1] == numbers[:1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"a: 1\nb: [1, 2\nc: 3\n", 3),
        (b"a: 1\n b: 2\n", 2),
        (b"a: 1\nb: \t@x\n", 2),
        (b"a: 1\n---\nb: *unknown\n", 3),
        (b"a: 1\nb: 'open\n", 3),
        (b"a: 1\nb: !!python/object:os.system {}\n", 2),
        (b"a: 1\nb: !unknown x\n", 2),
        (b"a: 1\nb:\n  ? [x]\n  : y\n", 3),
        (b'{"a": 1,\n"b": }\n', 2),
        (b'{"a": 1,\n"b": 2\n', 2),
        (b'{"a": 1,\n\n"b": "\\q"}\n', 3),
        (b'{"kind": "Pod"}\n{"kind": "Pod"}', 2),
        (b"a: 1\n---\nhello\n", 3),
        (b"a: 1\n---\n- a\n- b\n", 3),
        (b"hello\n", 1),
        (b"[1, 2]\n", 1),
        (b"1: 2\n", 1),
        (b"kind: List\nitems:\n- 5\n", 3),
        (b'{"kind": "List",\n"items": [\n5]}', 3),
        (b"a: 1\nb: \xff\n", 2),
        (b"a: 1\nb: \x00\n", 2),
    ],
    ids=repr,
)
def test_a_text_that_can_not_be_read_says_where(text: bytes, line: int) -> None:
    said = why_broken(text)
    assert said.startswith(f"line {line}: ")
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_texts_with_a_byte_order_mark_are_read(encoding: str) -> None:
    assert names(parse(SERVICE.encode(encoding))) == ["Service default/web"]
