"""What the API server sends around the objects: pages of a list, lines of a watch, failures.

Only the envelope is decoded here; the object in it stays bytes until somebody says what it must be, so that one that
makes no sense harms no other.
"""

from collections.abc import Iterable, Iterator

import msgspec

from pyproxy.api import ApiError, Unreachable
from pyproxy.objects import Key

INITIAL_EVENTS_END = "k8s.io/initial-events-end"
"""The annotation of the bookmark that ends a watch-list's initial events (KEP-3157)."""


class Expired(Exception):
    """The version to go on from is gone, or what came can't be gone on from: everything must be listed again."""


class Metadata(msgspec.Struct, rename="camel"):
    """What of an object's metadata is read before the rest is trusted."""

    name: str = ""
    namespace: str = ""
    resource_version: str = ""
    annotations: dict[str, str] | None = None


class _Bare(msgspec.Struct):
    metadata: Metadata


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")


class Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class Line(msgspec.Struct):
    """One line of a watch."""

    type: str
    object: msgspec.Raw


class _Failure(msgspec.Struct):
    """meta/v1 Status in an ERROR event."""

    message: str = ""
    code: int = 0


# Made here, in one thread: msgspec builds what it knows of a type on first use, and two threads at once can hang in it.
_decode_page = msgspec.json.Decoder(Page).decode
_decode_line = msgspec.json.Decoder(Line).decode
_decode_bare = msgspec.json.Decoder(_Bare).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def lines(chunks: Iterable[bytes]) -> Iterator[list[Line]]:
    """The whole lines of each chunk. Raises Expired for one that is no event: what it said is lost."""
    rest = b""
    for chunk in chunks:
        whole, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            rest += chunk
            continue
        try:
            yield [_decode_line(line) for line in (rest + whole).split(b"\n") if line.strip()]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Expired(f"a line of the watch can't be read: {error}") from None
        rest = tail


def page(body: bytes) -> Page:
    try:
        return _decode_page(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreachable(f"the list can't be read: {error}") from None


def bare(raw: msgspec.Raw) -> Metadata:
    try:
        return _decode_bare(raw).metadata
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise Expired(f"an object without readable metadata: {error}") from None


def key_of(raw: msgspec.Raw) -> Key:
    """Of an object that is not obeyed."""
    try:
        metadata = bare(raw)
    except Expired:
        return Key("", "")
    return Key(metadata.namespace, metadata.name)


def failure(raw: msgspec.Raw) -> ApiError:
    try:
        status = _decode_failure(raw)
    except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise Expired(f"an error without a readable status: {error}") from None
    return ApiError(status.code, status.message)
