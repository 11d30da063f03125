"""YAML or JSON into msgspec structs, strictly: every mistake in a text, each with its line.

msgspec stops at the first mistake and knows no lines, and someone who is told of one mistake at a time tries many
times. So structs are filled field by field here, and what is wrong is collected while the rest is read on.
"""

import difflib
import re
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, get_args, get_origin

import msgspec
import yaml

from pyproxy.address import shorten
from pyproxy.yaml_text import Broken, compose, documents, follow

T = TypeVar("T", bound=msgspec.Struct)

MOST_MISTAKES = 50
"""Of one text that are told; a text with more of them is something else altogether."""

Steps = tuple[str | int, ...]
"""The way to a field: names, and indices from 0."""

_NAMES = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}


class Mistake(NamedTuple):
    line: int
    """0 for the file as such."""
    field: str
    """Empty for the text as a whole."""
    reason: str

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line else ""
        return ": ".join(part for part in (place, self.field, self.reason) if part)


class Reads(NamedTuple):
    """In Annotated: makes a field's value from plain YAML; raises ValueError with the reason why it can't."""

    read: Callable[[Any], Any]


class Decoder:
    """One text, and what was found to be wrong with it so far."""

    def __init__(self, text: bytes) -> None:
        """Raises Broken."""
        # JSON may be indented with tabs. In its strings they are escaped, so that no value changes here.
        self._text = text.replace(b"\t", b" ") if text.lstrip()[:1] == b"{" else text
        self._mistakes: list[Mistake] = []
        found = [(number, value) for number, value in enumerate(documents(self._text)) if value is not None]
        if not found:
            raise Broken(1, "there is nothing in it")
        self._number, self._value = found[0]
        if len(found) > 1:
            raise Broken(self._documents[found[1][0]].start_mark.line + 1, "there is a second document; keep one")
        if not isinstance(self._value, dict):
            raise Broken(self.line_of(()), "there are no fields in it")
        self._find_doubles()

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """In order of their lines."""
        return tuple(sorted(self._mistakes, key=lambda mistake: mistake.line))

    def get(self, name: str) -> Any:
        """The plain value of a field at the top; None if there is none."""
        return self._value.get(name)

    def decode(self, kind: type[T]) -> T:
        """What could be read; the defaults stand for what could not, and for null."""
        return self._struct(self._value, kind, ())

    def complain(self, steps: Steps, reason: str, line: int | None = None) -> None:
        if len(self._mistakes) < MOST_MISTAKES:
            self._mistakes.append(Mistake(line or self.line_of(steps), spelled(steps), reason))

    def blames(self, steps: Steps) -> bool:
        """Whether the field at ``steps`` is wrong already."""
        return any(mistake.field == spelled(steps) for mistake in self._mistakes)

    def line_of(self, steps: Steps) -> int:
        """The line of the name at ``steps``, or of the nearest thing around it that is there; from 1."""
        root = self._root
        *_, (nearest, _) = (root, root), *follow(root, map(str, steps))
        return int(nearest.start_mark.line) + 1

    @cached_property
    def _documents(self) -> list[Any]:
        return compose(self._text)

    @property
    def _root(self) -> Any:
        return self._documents[self._number]

    def _find_doubles(self) -> None:
        """YAML's reader takes the last of several fields of one name; Kubernetes refuses them."""
        nodes: list[tuple[yaml.Node, Steps]] = [(self._root, ())]
        seen: set[int] = set()
        for (
            node,
            steps,
        ) in nodes:  # which grows meanwhile: in breadth, so that the ways stay short in a chain of aliases
            if id(node) in seen:
                continue
            seen.add(id(node))
            if isinstance(node, yaml.SequenceNode):
                nodes += ((item, (*steps, index)) for index, item in enumerate(node.value))
            elif isinstance(node, yaml.MappingNode):
                nodes += ((value, (*steps, _name(key))) for key, value in node.value)
                self._compare_names(node, steps)

    def _compare_names(self, node: yaml.MappingNode, steps: Steps) -> None:
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            name, line = (key.tag, _name(key)), key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and name in lines:
                self.complain((*steps, key.value), f"it is there twice, first in line {lines[name]}", line)
            lines.setdefault(name, line)

    def _struct(self, value: object, kind: type[T], at: Steps) -> T:
        if not isinstance(value, dict):
            self.complain(at, f"{shown(value)} is not a group of fields")
            return kind()
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for name in value:
            if name not in fields:
                self.complain((*at, _text(name)), _unknown(name, list(fields)))
        values = {}
        for name, field in fields.items():
            if value.get(name) is not None and (made := self._made(value[name], field.type, (*at, name))):
                values[field.name] = made[0]
        return kind(**values)

    def _made(self, value: Any, kind: Any, at: Steps) -> list[Any]:
        """The value in a list of one; the empty list if it is wrong."""
        try:
            return [self._make(value, kind, at)]
        except ValueError as error:
            self.complain(at, str(error))
            return []

    def _make(self, value: Any, kind: Any, at: Steps) -> Any:
        for note in getattr(kind, "__metadata__", ()):
            if isinstance(note, Reads):
                return note.read(value)
        if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
            return self._struct(value, kind, at)
        if get_origin(kind) is list:
            if not isinstance(value, list):
                raise ValueError(f"{shown(value)} is not a list")
            (of,) = get_args(kind)
            return [made for index, item in enumerate(value) for made in self._made(item, of, (*at, index))]
        if get_origin(kind) is dict:
            if not isinstance(value, dict):
                raise ValueError(f"{shown(value)} is not a group of fields")
            _, of = get_args(kind)
            return {name: made for name, item in value.items() for made in self._made(item, of, (*at, _text(name)))}
        return plain(value, kind)


def plain(value: object, kind: type) -> Any:
    """``value`` as text, a truth value or a number. Raises ValueError."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        hint = "; put it in quotes" if kind is str and isinstance(value, bool | int | float) else ""
        raise ValueError(f"{shown(value)} is not {_NAMES[kind]}{hint}") from None


def shown(value: object) -> str:
    """``value`` for a message, bounded; what is in a list or a group is not shown, since it may be endless."""
    if isinstance(value, str):
        return shorten(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1e18):
        return str(value)
    kinds = {int: "a huge number", list: "a list", dict: "a group of fields"}
    return kinds.get(type(value), "a value of another type")


def spelled(steps: Steps) -> str:
    """``a.b[0]``; printable and bounded, whatever the names are."""
    text = ""
    for step in steps:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z0-9_-]{1,60}", step):
            text += f".{step}"
        else:
            text += f".{shorten(step)}"
    return text.lstrip(".")


def _unknown(name: object, fields: list[str]) -> str:
    near = difflib.get_close_matches(name, fields, n=1) if isinstance(name, str) else []
    return f"there is no such field; did you mean {near[0]}?" if near else "there is no such field"


def _name(key: yaml.Node) -> str:
    return key.value if isinstance(key, yaml.ScalarNode) else ""


def _text(name: object) -> str:
    """A name that may be a number, say, in YAML."""
    return name if isinstance(name, str) else shown(name)
