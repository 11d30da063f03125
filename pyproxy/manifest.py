"""Manifests as text: YAML with several documents, or JSON, `List` kinds too.

Objects come out one by one, so that a bad one harms only itself. Lines are looked for only once something is wrong,
by parsing again with positions: that is slow, and what is right should not pay for it.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeVar

import msgspec
import yaml

from pyproxy.address import shorten
from pyproxy.admission import Refused, admit, printable_key
from pyproxy.objects import KINDS, Delete, EndpointSlice, Key, Object, Service
from pyproxy.problem import Problem

T = TypeVar("T")


class Broken(Exception):
    """A text that can't be read as a whole."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")


class Mishap(NamedTuple):
    """One object of a text, or a part of it, that is not obeyed."""

    line: int
    problem: Problem
    refused: bool
    """Whether the whole object is refused."""
    identity: Delete | None
    """Which object it is, as far as that can be told."""


class Manifest(NamedTuple):
    objects: list[Object]
    mishaps: list[Mishap]


class _Header(msgspec.Struct, rename="camel"):
    """Enough to tell what an object is; loose, since a wrong type here must harm this object only."""

    kind: Any = ""
    api_version: Any = ""
    metadata: Any = None


class _Envelope(_Header):
    items: list[msgspec.Raw] | None = None


class _Item(NamedTuple):
    header: _Header
    content: Any  # msgspec.Raw of JSON, or what YAML made of it
    document: int
    position: int | None  # in a List

    def decode(self, kind: type[T]) -> T:
        if isinstance(self.content, msgspec.Raw):
            return msgspec.json.decode(self.content, type=kind)
        return msgspec.convert(self.content, type=kind)


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: timestamps are text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}

_VERSION_OF = {kind: version for version, kind in KINDS}
_LIST_ITEMS = {f"{kind}List": kind for kind in _VERSION_OF}


def parse(text: bytes) -> Manifest:
    """What ``text`` holds. Objects of other kinds are passed over. Raises Broken."""
    manifest = Manifest([], [])
    is_json = text.lstrip()[:1] == b"{"
    for item in _json_items(text) if is_json else _yaml_items(text):
        kind, version = str(item.header.kind), str(item.header.api_version)
        if kind not in _VERSION_OF:
            continue
        key = _key_of(item.header, namespaced=kind != "Node")
        wire = KINDS[_VERSION_OF[kind], kind]
        identity = Delete(wire, key) if key.name else None
        try:
            if version != _VERSION_OF[kind]:
                reason = f"{shorten(version)} is not served here; {_VERSION_OF[kind]} is"
                raise Refused(Problem(kind, printable_key(key), "apiVersion", reason))
            thing, problems = admit(_in_namespace(item.decode(wire)))
        except Refused as refusal:
            problems, thing = [refusal.problem], None
        except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
            reason, _, path = str(error).partition(" - at `$")
            field = path.rstrip("`").lstrip(".")
            problems, thing = [Problem(kind, printable_key(key), field, reason)], None
        if thing is not None:
            manifest.objects.append(thing)
        for problem in problems:
            line = _line_of(text, item, problem.field)
            manifest.mishaps.append(Mishap(line, problem, thing is None, identity))
    return manifest


def _key_of(header: _Header, *, namespaced: bool) -> Key:
    """The object's key, with an empty name if it has none that could be one."""
    metadata = header.metadata if isinstance(header.metadata, dict) else {}
    namespace = str(metadata.get("namespace") or "default") if namespaced else ""
    return Key(namespace, str(metadata.get("name") or ""))


def _in_namespace(thing: Object) -> Object:
    """A manifest that names no namespace means ``default``, as kubectl reads it."""
    if isinstance(thing, Service | EndpointSlice) and not thing.metadata.namespace:
        thing.metadata.namespace = "default"
    return thing


def _json_items(text: bytes) -> Iterator[_Item]:
    try:
        envelope = msgspec.json.decode(text, type=_Envelope)
        if envelope.items is None:
            yield _Item(envelope, msgspec.Raw(text), 0, None)
            return
        for index, raw in enumerate(envelope.items):
            header = msgspec.json.decode(raw, type=_Header)
            yield _Item(_header_in(envelope.kind, envelope.api_version, header), raw, 0, index)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        at = re.search(r"\(byte (\d+)\)", str(error))
        line = text.count(b"\n", 0, int(at[1])) + 1 if at else 1
        raise Broken(line, str(error)) from None


def _yaml_items(text: bytes) -> Iterator[_Item]:
    try:
        documents = list(yaml.load_all(text, _Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Broken(mark.line + 1 if mark else 1, error.problem or str(error)) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise Broken(1, " ".join(str(error).split()) or type(error).__name__) from None
    for number, document in enumerate(documents):
        if document is None:
            continue
        try:
            header = msgspec.convert(document, type=_Header)
            items = document.get("items")
            if not isinstance(items, list):
                yield _Item(header, document, number, None)
                continue
            for index, item in enumerate(items):
                inner = msgspec.convert(item, type=_Header)
                yield _Item(_header_in(header.kind, header.api_version, inner), item, number, index)
        except msgspec.ValidationError as error:
            line = _line_of(text, _Item(_Header(), None, number, None), "")
            raise Broken(line, f"this is no Kubernetes object: {error}") from None


def _header_in(list_kind: str, list_version: str, header: _Header) -> _Header:
    """The items of a ServiceList carry no kind of their own."""
    if not header.kind and list_kind in _LIST_ITEMS:
        return _Header(_LIST_ITEMS[list_kind], list_version, header.metadata)
    return header


def _line_of(text: bytes, item: _Item, field: str) -> int:
    """The line of ``field``, or of the nearest thing around it that is there."""
    first_line = 1
    if isinstance(item.content, msgspec.Raw) and item.position is not None:
        raw = bytes(item.content)
        first_line += text.count(b"\n", 0, text.find(raw))
        text, path = raw, ""
    else:
        path = "" if item.position is None else f"items[{item.position}]."
    try:
        for number, node in enumerate(yaml.compose_all(text, _Loader)):
            if number == item.document:
                return first_line + int(_descend(node, path + field).start_mark.line)
    except (yaml.YAMLError, RecursionError):
        pass  # JSON that is no YAML: tabs for instance
    return first_line


def _descend(node: Any, path: str) -> Any:
    for name, index in re.findall(r"([^.\[\]]+)|\[([^\]]*)\]", path):
        if isinstance(node, yaml.SequenceNode) and index.isdigit() and int(index) < len(node.value):
            node = node.value[int(index)]
        elif isinstance(node, yaml.MappingNode):
            inner = next((value for key, value in node.value if key.value == (name or index)), None)
            if inner is None:
                return node
            node = inner
        else:
            return node
    return node
