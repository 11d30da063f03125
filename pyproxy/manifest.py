"""Manifests as text: YAML with several documents, or JSON, `List` kinds too.

Objects come out one by one, so that a bad one harms only itself. Lines are looked for only once something is wrong,
by parsing again with positions: that is slow, and what is right should not pay for it.
"""

import re
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import msgspec

from pyproxy.address import shorten
from pyproxy.admission import Refused, admit, printable_key
from pyproxy.objects import KINDS, Delete, EndpointSlice, Key, Object, Service
from pyproxy.problem import Problem
from pyproxy.yaml_text import Broken as Broken
from pyproxy.yaml_text import compose, documents, follow

T = TypeVar("T")

_MOST_LOCATED = 20  # mishaps of one text whose lines are looked for
_STEPS = re.compile(r"([^.\[\]]+)|\[([^\]]*)\]")


class Mishap(NamedTuple):
    """One object of a text, or a part of it, that is not obeyed."""

    line: int | None
    """None where it would take too long to find out."""
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


class _Envelope(_Header):
    items: Any = None


class _Named(msgspec.Struct):
    metadata: Any = None


class _Item(NamedTuple):
    header: _Header
    content: Any  # msgspec.Raw of JSON, or what YAML made of it
    document: int
    position: int | None  # in a List

    def decode(self, kind: type[T]) -> T:
        if isinstance(self.content, msgspec.Raw):
            return msgspec.json.decode(self.content, type=kind)
        return msgspec.convert(self.content, type=kind)

    def key(self, *, namespaced: bool) -> Key:
        """With an empty name if it has none that could be one."""
        try:
            metadata = self.decode(_Named).metadata
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            metadata = None
        metadata = metadata if isinstance(metadata, dict) else {}
        namespace = (_text(metadata.get("namespace")) or "default") if namespaced else ""
        return Key(namespace, _text(metadata.get("name")))


class _JsonEnvelope(_Header):
    items: list[msgspec.Raw] | None = None


_VERSION_OF = {kind: version for version, kind in KINDS}
_LIST_ITEMS = {f"{kind}List": kind for kind in _VERSION_OF}


def parse(text: bytes) -> Manifest:
    """What ``text`` holds. Objects of other kinds are passed over. Raises Broken."""
    manifest = Manifest([], [])
    positions = _Positions(text)
    is_json = text.lstrip()[:1] == b"{"
    for item in _json_items(text) if is_json else _yaml_items(text, positions):
        kind, version = _text(item.header.kind), _text(item.header.api_version)
        if kind not in _VERSION_OF or _group(version) != _group(_VERSION_OF[kind]):
            continue
        thing, problems = _obey(item, kind, version)
        if thing is not None:
            manifest.objects.append(thing)
        if problems:
            key = item.key(namespaced=kind != "Node")
            identity = Delete(KINDS[_VERSION_OF[kind], kind], key) if key.name else None
            for problem in problems:
                line = positions.line_of(item, problem.field) if len(manifest.mishaps) < _MOST_LOCATED else None
                manifest.mishaps.append(Mishap(line, problem, thing is None, identity))
    return manifest


def _obey(item: _Item, kind: str, version: str) -> tuple[Object | None, list[Problem]]:
    """The object, None if it is refused, and what is wrong with it."""
    served = _VERSION_OF[kind]
    try:
        if version == served:
            return admit(_in_namespace(item.decode(KINDS[served, kind])))
        field, reason = "apiVersion", f"{shorten(version)} is not served here; {served} is"
    except Refused as refusal:
        return None, [refusal.problem]
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        reason, _, path = str(error).partition(" - at `$")
        field = path.rstrip("`").lstrip(".")
    return None, [Problem(kind, printable_key(item.key(namespaced=kind != "Node")), field, reason)]


def _group(version: str) -> str:
    """Of an apiVersion; the core group is empty."""
    return version.rpartition("/")[0]


def _text(value: Any) -> str:
    """``value`` if it is text; what else it may be is not even printed, since it may be endless."""
    return value if isinstance(value, str) else ""


def _in_namespace(thing: Object) -> Object:
    """A manifest that names no namespace means ``default``, as kubectl reads it."""
    if isinstance(thing, Service | EndpointSlice) and not thing.metadata.namespace:
        thing.metadata.namespace = "default"
    return thing


def _json_items(text: bytes) -> Iterator[_Item]:
    part = text
    try:
        envelope = msgspec.json.decode(text, type=_JsonEnvelope)
        if envelope.items is None:
            yield _Item(envelope, msgspec.Raw(text), 0, None)
            return
        for position, raw in enumerate(envelope.items):
            part = bytes(raw)
            yield _Item(_header_in(envelope, msgspec.json.decode(part, type=_Header)), raw, 0, position)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        at = re.search(r"\(byte (\d+)\)", str(error))
        end = int(at[1]) if at else 0 if isinstance(error, msgspec.ValidationError) else len(part.rstrip())
        raise Broken(text.count(b"\n", 0, text.find(part) + end) + 1, str(error)) from None


def _yaml_items(text: bytes, positions: "_Positions") -> Iterator[_Item]:
    for number, document in enumerate(documents(text)):
        if document is None:
            continue
        position = None
        try:
            outer = msgspec.convert(document, type=_Envelope)
            if not isinstance(outer.items, list):
                yield _Item(outer, document, number, None)
                continue
            for position, item in enumerate(outer.items):
                yield _Item(_header_in(outer, msgspec.convert(item, type=_Header)), item, number, position)
        except msgspec.ValidationError as error:
            line = positions.line_of(_Item(_Header(), None, number, position), "")
            raise Broken(line, f"this is no Kubernetes object: {error}") from None


def _header_in(outer: _Header, header: _Header) -> _Header:
    """The items of a ServiceList carry no kind of their own."""
    kind = _LIST_ITEMS.get(_text(outer.kind))
    return _Header(kind, outer.api_version) if kind and not header.kind else header


class _Positions:
    """The lines of a text that has mishaps."""

    def __init__(self, text: bytes) -> None:
        self._text = text

    def line_of(self, item: _Item, field: str) -> int:
        """The line of ``field``, or of the nearest thing around it that is there."""
        if isinstance(item.content, msgspec.Raw) and item.position is not None:
            raw = bytes(item.content)
            first = self._text.count(b"\n", 0, max(0, self._text.find(raw))) + 1
            return first + _line_in(compose(raw), 0, field)
        path = field if item.position is None else f"items[{item.position}].{field}"
        return 1 + _line_in(self._nodes, item.document, path)

    @cached_property
    def _nodes(self) -> list[Any]:
        return compose(self._text)


def _line_in(nodes: list[Any], document: int, path: str) -> int:
    """From 0, of the value at ``path``, which is spelled as msgspec does: ``spec.ports[0].port``."""
    if document >= len(nodes):
        return 0
    root = nodes[document]
    *_, (_, nearest) = (root, root), *follow(root, (name or index for name, index in _STEPS.findall(path)))
    return int(nearest.start_mark.line)
