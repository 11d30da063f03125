"""YAML as text: read as Kubernetes reads it, without harm from hostile texts, and with the lines of what is in it.

A small text can be made to nest deeply, to contain itself or to unfold endlessly. Whoever reads YAML here reads it
through this module, so that the bounds stand in one place.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

_LONGEST_REASON = 300
_DEEPEST = 100  # a Service is five deep
_MOST_MERGED = 1000  # fields of one mapping
_MAY_BE_DEEP = re.compile(rb"[ \-?:]{200}")


class Broken(Exception):
    """A text that can't be read as a whole."""

    def __init__(self, line: int, reason: str) -> None:
        text = " ".join(reason.split())
        self.line = line
        self.reason = (text if text.isprintable() else ascii(text))[:_LONGEST_REASON]
        super().__init__(f"line {line}: {self.reason}"[:_LONGEST_REASON])


class _Loader(yaml.CSafeLoader):
    """YAML as Kubernetes reads it: timestamps are text."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge keys (<<), as long as merges of merges do not make a small text endless."""
        super().flatten_mapping(node)
        if len(node.value) > _MOST_MERGED:
            raise yaml.constructor.ConstructorError(None, None, "too much is merged here", node.start_mark)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.CSafeLoader.yaml_implicit_resolvers.items()
}


def documents(text: bytes) -> list[Any]:
    """What ``text`` holds, as plain values; aliases are shared, so a value may contain itself. Raises Broken."""
    try:
        if text.count(b"[") + text.count(b"{") > _DEEPEST or _MAY_BE_DEEP.search(text):
            _check_depth(text)
        return list(yaml.load_all(text, _Loader))
    except Broken:
        raise
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise Broken(mark.line + 1 if mark else 1, error.problem or str(error)) from None
    except yaml.reader.ReaderError as error:
        line = text.count(b"\n", 0, error.position) + 1
        raise Broken(line, f"{error.reason} (character {error.character!r})") from None
    except Exception as error:  # a tag such as !!timestamp fails in any way it likes if its value does not fit
        raise Broken(1, f"a value can't be read: {error}") from None


def _check_depth(text: bytes) -> None:
    """The parser's events come one by one; its trees by recursion in C, which ends the process when they are deep."""
    depth = 0
    for event in yaml.parse(text, _Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            line = event.start_mark.line + 1 if event.start_mark else 1
            raise Broken(line, f"nested more than {_DEEPEST} deep")


def compose(text: bytes) -> list[Any]:
    """The documents of ``text`` as nodes with positions; none for JSON that is no YAML, with tabs for instance.

    Only for a text whose depth was checked, by `documents` or by a decoder of JSON.
    """
    try:
        return list(yaml.compose_all(text, _Loader))
    except (yaml.YAMLError, RecursionError):
        return []


def follow(node: Any, steps: Iterable[str]) -> Iterator[tuple[Any, Any]]:
    """The nodes along ``steps``, each a key or an index: (key, value), or an item twice; as far as they are there."""
    for step in steps:
        found = _step(node, step)
        if found is None:
            return
        yield found
        node = found[1]


def _step(node: Any, step: str) -> tuple[Any, Any] | None:
    if isinstance(node, yaml.SequenceNode) and step.isdecimal() and int(step) < len(node.value):
        return (node.value[int(step)],) * 2
    if isinstance(node, yaml.MappingNode):
        return next(((key, value) for key, value in node.value if key.value == step), None)
    return None
