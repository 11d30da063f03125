"""Keeps one kind of object in step with the API server: list, watch, and begin again when that can't go on.

The rules are those of the API's concepts page ("Efficient detection of changes") and of KEP-3157 (watch-list). Where
client-go trusts the server, a reflector of ours does not: after a connection that broke or stayed silent it asks what
the server's version is, since one that was restored from a backup would let us wait for versions it never reaches.
"""

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec

from pyproxy import wire
from pyproxy.admission import Refused, admit, printable_key
from pyproxy.api import Api, ApiError, Silent, Unreachable
from pyproxy.connection import Connection
from pyproxy.objects import (
    HEADLESS_LABEL,
    PROXY_NAME_LABEL,
    TRIGGER_ANNOTATION,
    Delete,
    EndpointSlice,
    Event,
    Key,
    Kind,
    Node,
    Service,
    Upsert,
)
from pyproxy.problem import Problem

log = logging.getLogger("pyproxy.api")

_PAGE = "500"
_WATCH_S = (300, 600)
"""How long the server is asked to let a watch last, at random, so that reconnects spread."""
_IDLE_S = 150.0
"""Without a byte a watch is made anew; a server sends a bookmark about once a minute."""
_FIRST_RETRY_S, _LONGEST_RETRY_S = 0.4, 15.0
_TOO_SHORT_S = 1.0
"""A server that ends its watches sooner is not asked again without a pause."""
_MOST_DIGITS = 20  # of 64 bits
_LOST = frozenset({400, 410})  # a continue token or version that the server does not know (any more)
_NO_WATCH_LIST = frozenset({400, 422})


@dataclass(frozen=True, slots=True)
class Resource:
    kind: Kind
    path: str
    selector: Mapping[str, str]


def services() -> Resource:
    return Resource(Service, "/api/v1/services", {"labelSelector": f"!{PROXY_NAME_LABEL}"})


def endpoint_slices() -> Resource:
    selector = {"labelSelector": f"!{HEADLESS_LABEL},!{PROXY_NAME_LABEL}"}
    return Resource(EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices", selector)


def node(name: str) -> Resource:
    return Resource(Node, "/api/v1/nodes", {"fieldSelector": f"metadata.name={name}"})


_sleep = time.sleep

Sink = Callable[[list[Event], bool], None]
"""Takes events in order; True with those that make the state complete, as a list does."""


class Reflector:
    def __init__(self, api: Api, resource: Resource, sink: Sink, report: Callable[[Problem], None]) -> None:
        self._api = api
        self._resource = resource
        self._sink = sink
        self._report = report
        self._decode: Callable[[msgspec.Raw], Any] = msgspec.json.Decoder(resource.kind).decode
        self._version: str | None = None  # the last one seen; None: list
        self._known: set[Key] = set()
        self._reported: dict[Key, tuple[Problem, ...]] = {}
        self._from_cache = True  # the first list may be the server's cache; later ones must not be older than we are
        self._has_watch_list = True
        self._in_doubt = False  # whether the server's version must be asked for before going on
        self._reached = False  # whether the server has said anything of use since the last wait
        self._failures = 0  # one after the other to reach the server
        self._restarts = 0  # after it was reached, without a watch that lasted
        self.connection = Connection(resource.kind.__name__)

    @property
    def problems(self) -> list[Problem]:
        """From any thread: what is wrong with objects as the server has them now."""
        return [problem for some in list(self._reported.values()) for problem in some]

    def run(self) -> None:
        """For ever, in a thread."""
        while True:
            try:
                self._step()
            except wire.Expired as expired:
                self._version = None
                self._wait(str(expired), None)
            except ApiError as error:
                if error.status in _LOST:
                    self._version = None
                self._in_doubt = True
                self._wait(str(error), error.retry_after)
            except Unreachable as error:
                self._in_doubt = True
                self._wait(str(error), None)

    def _step(self) -> None:
        """One list or watch, until it ends."""
        if self._version is None and self._has_watch_list:
            try:
                return self._watch({"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"})
            except ApiError as error:
                if error.status not in _NO_WATCH_LIST:
                    raise
                log.info("the server has no watch-list; listing", extra={"kind": self.connection.kind})
                self._has_watch_list = False
        if self._version is None:
            self._list()
        elif self._in_doubt:
            self._check_version(self._version)
        return self._watch({"resourceVersion": self._version or ""})

    def _wait(self, why: str, retry_after: float | None) -> None:
        """Before the next try: as long as the server asked for, and longer with each failure, give or take half."""
        if self._reached:
            self._reached, self._failures, self._restarts = False, 0, self._restarts + 1
        else:
            self._failures += 1
        tries = self._restarts if self._failures == 0 else self._failures
        wait = min(_LONGEST_RETRY_S, _FIRST_RETRY_S * 2 ** min(tries - 1, 10))
        wait = (retry_after or 0.0) + wait * random.uniform(0.5, 1.5)  # noqa: S311
        self.connection.now("waiting to try again", why)
        extra = {"kind": self.connection.kind, "server": self._api.server, "reason": why, "retry_in_s": round(wait, 1)}
        log.warning("the API server does not answer as hoped; what is in the kernel stays", extra=extra)
        _sleep(wait)

    def _list(self) -> None:
        """All objects, in pages. Nothing is delivered before the last page is there."""
        self.connection.now("listing")
        started, cpu = time.monotonic(), time.thread_time()
        query = {**self._resource.selector, "limit": _PAGE} | ({"resourceVersion": "0"} if self._from_cache else {})
        events: list[Event] = []
        found: set[Key] = set()
        pages = 0
        while True:
            page = wire.page(self._api.get(self._resource.path, query))
            pages += 1
            events += self._upserts(page.items or (), found)
            if not page.metadata.continue_:
                break
            query = {**self._resource.selector, "limit": _PAGE, "continue": page.metadata.continue_}
        self._complete(events, found, page.metadata.resource_version, started, cpu, pages)

    def _complete(
        self, events: list[Event], found: set[Key], version: str, started: float, cpu: float, pages: int
    ) -> None:
        """Deliver a whole list, and as deletions what went while we did not watch."""
        gone = [Delete(self._resource.kind, key) for key in self._known - found]
        for event in gone:
            self._reported.pop(event.key, None)
        self._known, self._version = found, version
        self._from_cache, self._in_doubt, self._reached = False, False, True
        self.connection.lists += 1
        extra = {"kind": self.connection.kind, "objects": len(found), "pages": pages}
        took = {"ms": _milliseconds(time.monotonic() - started), "cpu_ms": _milliseconds(time.thread_time() - cpu)}
        log.info("listed", extra=extra | took)
        self._sink([*gone, *events], True)

    def _check_version(self, mine: str) -> None:
        """One object, read past the server's cache, tells how far the server is. Raises Expired if it fell behind."""
        page = wire.page(self._api.get(self._resource.path, {**self._resource.selector, "limit": "1"}))
        self._reached = True
        if _is_older(page.metadata.resource_version, mine):
            raise wire.Expired(f"the server is at version {page.metadata.resource_version} and was at {mine}")
        self._in_doubt = False

    def _watch(self, start: dict[str, str]) -> None:
        """Until the server ends it."""
        initial = "sendInitialEvents" in start
        self.connection.now("listing" if initial else "watching")
        self.connection.watches += 1
        started, cpu = time.monotonic(), time.thread_time()
        query = {**self._resource.selector, "watch": "1", "allowWatchBookmarks": "true", **start}
        query["timeoutSeconds"] = str(random.randint(*_WATCH_S))  # noqa: S311
        events: list[Event] = []
        found: set[Key] = set()
        heard = False
        try:
            for lines in wire.lines(self._api.stream(self._resource.path, query, _IDLE_S)):
                heard = True
                try:
                    for line in lines:
                        if not initial:
                            events += self._event(line)
                        elif line.type in ("ADDED", "MODIFIED"):
                            events += self._upserts((line.object,), found)
                        elif line.type == "DELETED":  # while the list was still on its way
                            found.discard(key := wire.key_of(line.object))
                            events.append(Delete(self._resource.kind, key))
                        elif (end := self._end_of_initial_events(line)) is not None:
                            self._complete(events, found, end, started, cpu, 0)
                            self.connection.now("watching")
                            initial, events = False, []
                finally:  # what came before a line that ends the watch counts: the version has moved past it
                    if events and not initial:
                        self._sink(events, False)
                        events = []
        except Silent as silent:
            log.debug("watching anew", extra={"kind": self.connection.kind, "reason": silent})
            heard = False
        finally:
            if not initial and time.monotonic() - started > _TOO_SHORT_S:
                self._failures = self._restarts = 0
        if initial:
            raise Unreachable("the watch ended in the midst of the list")
        self._in_doubt = not heard
        if time.monotonic() - started < _TOO_SHORT_S:
            if not heard:
                raise Unreachable("the watch ended at once")
            _sleep(_TOO_SHORT_S)

    def _end_of_initial_events(self, line: wire.Line) -> str | None:
        """The version of the list, once ``line`` says that it is complete. Raises ApiError."""
        if line.type == "ERROR":
            raise wire.failure(line.object)
        if line.type == "BOOKMARK":
            metadata = wire.bare(line.object)
            if (metadata.annotations or {}).get(wire.INITIAL_EVENTS_END) == "true":
                return metadata.resource_version
        return None

    def _event(self, line: wire.Line) -> list[Event]:
        """What one line of a watch tells. Raises wire.Expired, and ApiError for an ERROR event."""
        if line.type == "ERROR":
            raise wire.failure(line.object)
        if line.type not in ("ADDED", "MODIFIED", "DELETED", "BOOKMARK"):
            log.warning("unknown event of a watch", extra={"kind": self.connection.kind, "type": line.type[:40]})
            return []
        metadata = wire.bare(line.object)
        if self._version is not None and _is_older(metadata.resource_version, self._version):
            raise wire.Expired(f"version {metadata.resource_version} came after {self._version}")
        events: list[Event] = []
        if line.type == "DELETED":
            key = Key(metadata.namespace, metadata.name)
            self._known.discard(key)
            self._reported.pop(key, None)
            events.append(Delete(self._resource.kind, key))
        elif line.type != "BOOKMARK":
            triggered = _trigger_time(metadata) if self._resource.kind is EndpointSlice else None
            events += [event._replace(triggered=triggered) for event in self._upserts((line.object,), self._known)]
        self._version = metadata.resource_version or self._version
        return events

    def _upserts(self, objects: Iterable[msgspec.Raw], found: set[Key]) -> Iterator[Upsert]:
        """Each object that can be obeyed. One that can't is reported once, and what was known of it stays in force."""
        for raw in objects:
            try:
                thing, problems = admit(self._decode(raw))
            except Refused as refusal:
                key = wire.key_of(raw)
                problems = [refusal.problem]
            except (msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
                key = wire.key_of(raw)
                reason, _, path = str(error).partition(" - at `$")
                problems = [Problem(self.connection.kind, printable_key(key), path.rstrip("`").lstrip("."), reason)]
            else:
                key = thing.key
                yield Upsert(thing)
            found.add(key)
            if problems or self._reported:
                self._tell(key, tuple(problems))

    def _tell(self, key: Key, problems: tuple[Problem, ...]) -> None:
        before = self._reported.pop(key, ())
        if problems:
            self._reported[key] = problems
        for problem in problems:
            if problem not in before:
                self._report(problem)


def _is_older(version: str, than: str) -> bool:
    """Versions count up (KEP-5504); what is no number is taken as it comes."""
    are_numbers = all(one.isascii() and one.isdigit() and len(one) <= _MOST_DIGITS for one in (version, than))
    return are_numbers and int(version) < int(than)


def _trigger_time(metadata: wire.Metadata) -> float | None:
    text = (metadata.annotations or {}).get(TRIGGER_ANNOTATION)
    try:
        return datetime.fromisoformat(text).astimezone(UTC).timestamp() if text else None
    except (ValueError, OverflowError):  # a year 1 that time zones make a year 0
        return None


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)
