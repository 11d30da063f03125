"""A stand-in for the Kubernetes API server: what a proxy asks of one, answered as kube-apiserver 1.36 answers.

A real server needs etcd, seconds to start, and never fails on demand. This one is a process of its own, starts in a
moment, holds tens of thousands of objects, and breaks in every way that clients must survive, when told to. That it
answers like the real one is proved by `tests/transcripts`, which were recorded from it. It imports nothing of what it
tests. Each object is encoded once, when written; lists and watches join those bytes.

Whoever knows `admin-token` in the folder steers it, in the header `X-Stand-In`: `POST /stand-in/objects` (`Change`),
`POST /stand-in/faults` (a list of `Fault`), `GET /stand-in/objects`, `GET /stand-in/requests`.
"""

import argparse
import asyncio
import base64
import contextlib
import os
import re
import secrets
import signal
import ssl
import stat
import uuid
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
import trustme

encode = msgspec.json.encode
_KEPT_EVENTS = 200_000
_LONGEST_MEASURED = 2048  # Go sends what fits into its buffer with a Content-Length, the rest in chunks
_CHUNKED = "Transfer-Encoding: chunked"
_LAST_CHUNK = b"0\r\n\r\n"
_ENDLESS = 1800.0  # seconds of a watch that names no timeout
_VERSIONED = b'{"metadata":{"resourceVersion":"'
_PUBLIC = {"/version", "/healthz", "/livez", "/readyz"}
_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<plural>[^/]+)(?:/(?P<name>.*))?"
)
_REASONS = {410: "Expired", 422: "Invalid", 429: "TooManyRequests", 500: "InternalError", 504: "Timeout"}
_EXPIRED_TOKEN = "The provided continue parameter is too old to display a consistent list result."


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    group: str
    plural: str
    kind: str
    is_namespaced: bool = True
    empty: bytes = b""
    """What Go prints of an empty object after its metadata: bookmarks are such objects."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/v1" if self.group else "v1"

    def full(self, data: bytes) -> bytes:
        """As watches and single answers show an object; in lists, kind and version are the list's."""
        return b'{"kind":"%b","apiVersion":"%b",%b' % (self.kind.encode(), self.api_version.encode(), data[1:])

    def bookmark(self, version: int, *, ends_initial_events: bool = False) -> bytes:
        end = b',"annotations":{"k8s.io/initial-events-end":"true"}' if ends_initial_events else b""
        return _line("BOOKMARK", self.full(b'%b%d"%b}%b}' % (_VERSIONED, version, end, self.empty)))


_EMPTY_SLICE = b',"addressType":"","endpoints":null,"ports":null'
_NODE_INFO = "machineID systemUUID bootID kernelVersion osImage containerRuntimeVersion kubeletVersion kubeProxyVersion"
_EMPTY_INFO = dict.fromkeys([*_NODE_INFO.split(), "operatingSystem", "architecture"], "")
_EMPTY_NODE = encode({"daemonEndpoints": {"kubeletEndpoint": {"Port": 0}}, "nodeInfo": _EMPTY_INFO})
RESOURCES = (
    Resource("", "services", "Service", empty=b',"spec":{},"status":{"loadBalancer":{}}'),
    Resource("", "nodes", "Node", is_namespaced=False, empty=b',"spec":{},"status":' + _EMPTY_NODE),
    Resource("discovery.k8s.io", "endpointslices", "EndpointSlice", empty=_EMPTY_SLICE),
    Resource("networking.k8s.io", "servicecidrs", "ServiceCIDR", is_namespaced=False, empty=b',"spec":{},"status":{}'),
    Resource("", "events", "Event", empty=b',"involvedObject":{}'),
    Resource("events.k8s.io", "events", "Event", empty=b',"eventTime":null'),
)


class Refusal(Exception):
    """Answered as a Status; ``metadata`` is the Status's own."""

    def __init__(
        self,
        code: int,
        message: str = "",
        details: dict[str, Any] | None = None,
        metadata: dict[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after = retry_after
        phrase = HTTPStatus(code).phrase
        status = {"kind": "Status", "apiVersion": "v1", "metadata": metadata or {}, "status": "Failure"}
        status |= {"message": message or phrase, "reason": _REASONS.get(code, phrase.replace(" ", ""))}
        if retry_after is not None:
            details = {**(details or {}), "retryAfterSeconds": retry_after}
        self.status = encode(status | ({} if details is None else {"details": details}) | {"code": code})


@dataclass(frozen=True, slots=True)
class Record:
    """An object at one version."""

    resource: Resource
    namespace: str
    name: str
    labels: Mapping[str, Any]
    birth: tuple[Any, Any]
    """Its uid and creationTimestamp, which stay when it is written again."""
    version: int
    data: bytes
    """Without kind and apiVersion; its version stands at its beginning."""

    def at(self, version: int) -> bytes:
        """The same state under a later version, as watches show what is gone."""
        return b"%b%d%b" % (_VERSIONED, version, self.data[len(_VERSIONED) + len(str(self.version)) :])


Selects = Callable[[Record], bool]


@dataclass(frozen=True, slots=True)
class Event:
    version: int
    resource: Resource
    key: str
    before: Record | None
    after: Record | None

    def line(self, selects: Selects) -> bytes:
        """As a watch with this selector shows it, empty if it doesn't."""
        was_there = self.before is not None and selects(self.before)
        if self.after is not None and selects(self.after):
            return _line("MODIFIED" if was_there else "ADDED", self.resource.full(self.after.data))
        if self.before is not None and was_there:
            return _line("DELETED", self.resource.full(self.before.at(self.version)))
        return b""


class Store:
    """The objects now, and the events since ``compacted``: with both, the objects at any version since."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.compacted = version
        self.objects: dict[Resource, dict[str, Record]] = {resource: {} for resource in RESOURCES}
        self._history: list[Event] = []

    def put(self, document: Mapping[str, Any], version: int | None = None) -> Event:
        resource, namespace, name = identify(document)
        key = _key(namespace, name)
        before = self.objects[resource].get(key)
        version = version or self.version + 1
        metadata = {"resourceVersion": "", **document["metadata"]} | {"resourceVersion": str(version)}
        birth = before.birth if before else (str(uuid.uuid4()), f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
        birth = metadata.setdefault("uid", birth[0]), metadata.setdefault("creationTimestamp", birth[1])
        rest = {field: value for field, value in document.items() if field not in ("kind", "apiVersion", "metadata")}
        labels = metadata["labels"] if isinstance(metadata.get("labels"), dict) else {}
        data = encode({"metadata": metadata, **rest})
        after = self.objects[resource][key] = Record(resource, namespace, name, labels, birth, version, data)
        return self._record(Event(version, resource, key, before, after))

    def remove(self, resource: Resource, namespace: str, name: str) -> Event | None:
        """None if it isn't there."""
        key = _key(namespace, name)
        before = self.objects[resource].pop(key, None)
        return self._record(Event(self.version + 1, resource, key, before, None)) if before else None

    def _record(self, event: Event) -> Event:
        self.version = max(self.version, event.version)
        self._history.append(event)
        if len(self._history) > _KEPT_EVENTS:
            self.compacted = self._history[_KEPT_EVENTS // 2 - 1].version
            del self._history[: _KEPT_EVENTS // 2]
        return event

    def expire(self) -> None:
        self._history.clear()
        self.compacted = self.version

    def events_after(self, version: int) -> list[Event]:
        return self._history[bisect_left(self._history, version + 1, key=lambda event: event.version) :]

    def snapshot(self, resource: Resource, version: int) -> dict[str, Record]:
        """The objects as they were at ``version``, which isn't compacted."""
        objects = dict(self.objects[resource])
        for event in reversed(self.events_after(version)):
            if event.resource is resource:
                if event.before is None:
                    objects.pop(event.key, None)
                else:
                    objects[event.key] = event.before
        return objects


def identify(document: Mapping[str, Any]) -> tuple[Resource, str, str]:
    """Nothing else of an object is looked at: hostile objects are stored as they are."""
    metadata = document.get("metadata")
    for resource in RESOURCES:
        if (resource.api_version, resource.kind) == (document.get("apiVersion"), document.get("kind")):
            if not isinstance(metadata, dict):
                break
            namespace, name = metadata.get("namespace", "") if resource.is_namespaced else "", metadata.get("name", "")
            if isinstance(namespace, str) and isinstance(name, str):
                return resource, namespace, name
    raise Refusal(400, f"no key: apiVersion, kind and metadata.name must be of a known resource: {str(document)[:200]}")


def _key(namespace: str, name: str) -> str:
    """As in etcd, which also sorts by it."""
    return f"/{namespace}/{name}" if namespace else f"/{name}"


def _line(kind: str, document: bytes) -> bytes:
    return b'{"type":"%b","object":%b}\n' % (kind.encode(), document)


_REQUIREMENT = re.compile(
    r"\s*(?:!\s*(?P<absent>[^\s!=,()]+)"
    r"|(?P<key>[^\s!=,()]+)\s*(?:(?P<sign>==?|!=)\s*(?P<value>[^\s!=,()]*)|(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)"
    r"\s*(?:,|$)"
)


def selector(text: str, read: Callable[[Record], Mapping[str, Any]], known: Iterable[str] = ()) -> Selects:
    """A label or field selector; ``read`` gives the values that it is about, ``known`` their keys if they are few."""
    needs: list[tuple[str, tuple[Any, ...], bool]] = []  # key, values (None: not there), whether they are wanted
    at = 0
    while at < len(text):
        match = _REQUIREMENT.match(text, at)
        if match is None:
            raise Refusal(400, f"unable to parse requirement: {text[at:]!r}")
        at = match.end()
        if match["set"]:
            needs.append((match["key"], tuple(map(str.strip, match["values"].split(","))), match["set"] == "in"))
        elif match["sign"]:
            needs.append((match["key"], (match["value"],), match["sign"] != "!="))
        else:
            needs.append((match["absent"] or match["key"], (None,), bool(match["absent"])))
    if known and (strange := {key for key, _, _ in needs}.difference(known)):
        raise Refusal(400, f"field label not supported: {strange.pop()}")
    if not needs:
        return lambda _: True
    return lambda record: all((read(record).get(key) in values) is wanted for key, values, wanted in needs)


_FIELDS = ("metadata.name", "metadata.namespace")


def _fields(record: Record) -> Mapping[str, Any]:
    return dict(zip(_FIELDS, (record.name, record.namespace), strict=True))


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    path: str
    query: Mapping[str, str]

    def asks(self, option: str) -> bool:
        """Whether a flag of the query is set; the API server takes for true whatever isn't false."""
        return self.query.get(option, "false").lower() not in ("0", "false")

    def number(self, option: str) -> int:
        text = self.query.get(option) or "0"
        if not text.isdecimal():
            raise Refusal(400, f'{option}: Invalid value: "{text}": must be a number')
        return int(text)

    @property
    def is_watch_list(self) -> bool:
        return self.asks("watch") and self.asks("sendInitialEvents")


class Exchange:
    """One request and its answer on a connection; ``half``, ``stall`` and ``slow`` are faults of that answer."""

    half = False
    stall = 0.0
    slow = 0.0

    def __init__(self, request: Request, writer: asyncio.StreamWriter, entry: dict[str, Any]) -> None:
        self.request = request
        self._writer = writer
        self._entry = entry

    async def whole(self, status: int, body: bytes, *headers: str) -> None:
        is_chunked = len(body) > _LONGEST_MEASURED
        await self.begin(status, *headers, _CHUNKED if is_chunked else f"Content-Length: {len(body)}")
        await self._put(_chunk(body) + _LAST_CHUNK if is_chunked else body)

    async def begin(self, status: int, *headers: str) -> None:
        self._entry["status"] = status
        kind = (
            [] if any(header.startswith("Content-Type") for header in headers) else ["Content-Type: application/json"]
        )
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}", *kind, *headers, "", ""]
        self._writer.write("\r\n".join(head).encode())
        await asyncio.sleep(self.stall)

    async def chunk(self, data: bytes) -> None:
        if data:
            await self._put(_chunk(data))

    async def end(self) -> None:
        await self._put(_LAST_CHUNK)

    async def _put(self, data: bytes) -> None:
        if self.half:
            data = data[: len(data) // 2]
        step = max(1, int(self.slow / 10)) if self.slow else max(1, len(data))
        for at in range(0, len(data), step):
            self._writer.write(data[at : at + step])
            await self._writer.drain()
            await asyncio.sleep(0.1 if self.slow else 0)
        if self.half:
            raise ConnectionAbortedError


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Key(msgspec.Struct):
    kind: str
    name: str
    namespace: str = ""
    api_version: str = msgspec.field(name="apiVersion", default="")
    """Only needed where two groups have the kind."""


class Change(msgspec.Struct, forbid_unknown_fields=True):
    """First the one, then the other, in order, and no client sees a state between."""

    upsert: list[dict[str, Any]] = []
    delete: list[Key] = []


class Fault(msgspec.Struct, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """One damage: to all that is open now, or to the next ``times`` requests whose path and query hold ``path``."""

    path: str = ""
    times: int = 1
    answer: int = 0  # a Status of this HTTP code
    retry_after: int | None = None  # seconds, said with the answer
    watch_answer: int = 0  # the stream is an ERROR of this code, and ends
    half_list: bool = False  # the connection closes amid a list, or amid the initial events of a watch-list
    stall: float = 0  # seconds between headers and body
    slow: float = 0  # bytes a second
    cut: bool = False  # every connection breaks
    torn: bool = False  # every watch breaks amid an event
    line: str | None = None  # every watch is sent this
    expire: bool = False  # versions before the current one are forgotten
    tokens: list[str] | None = None  # only these are accepted from now on
    refuse_connections: float = 0  # seconds for which nobody listens


@dataclass(eq=False, slots=True)
class Watch:
    resource: Resource
    selects: Selects
    path: str
    inbox: asyncio.Queue[list[Event] | bytes | None] = field(default_factory=asyncio.Queue)
    """Events, raw bytes, or None to hang up."""


class StandIn:
    def __init__(self, options: argparse.Namespace, admin_token: str, tls: ssl.SSLContext) -> None:
        self._options = options
        self._admin_token = admin_token
        self._tls = tls
        self._tokens: list[str] | None = options.token
        self._port: int = options.port
        self._faults: list[Fault] = []
        self._requests: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._open: set[asyncio.StreamWriter] = set()
        self._watches: set[Watch] = set()
        self._reopening: asyncio.Task[None] | None = None
        self.store = Store(options.first_version or 1)
        if options.objects:
            self._load(msgspec.json.decode(options.objects.read_bytes()))

    def _load(self, documents: Mapping[str, Any]) -> None:
        """A List, at its versions unless a first version is given. What came before it is forgotten."""
        for document in documents["items"]:
            version = document["metadata"].get("resourceVersion")
            self.store.put(document, None if self._options.first_version or not version else int(version))
        if not self._options.first_version:
            self.store.version = max(self.store.version, int(documents.get("metadata", {}).get("resourceVersion", 0)))
        self.store.expire()

    async def listen(self) -> int:
        options = self._options
        self._server = await asyncio.start_server(self._serve, options.host, self._port, ssl=self._tls, limit=1 << 20)
        self._port = self._server.sockets[0].getsockname()[1]
        return self._port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            while request := await _read(reader):
                await self._answer(request, reader, writer)
                if request.headers.get("connection", "").lower() == "close":
                    break
        except (OSError, asyncio.IncompleteReadError):
            pass  # clients and faults hang up when they like
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        entry = {"method": request.method, "path": request.target, "status": None}
        entry["userAgent"] = request.headers.get("user-agent", "")
        exchange = Exchange(request, writer, entry)
        try:
            if request.path.startswith("/stand-in/") and request.headers.get("x-stand-in") == self._admin_token:
                self._open.discard(writer)  # faults spare whoever makes them
                await exchange.whole(200, encode(self._control(request)))
                return
            self._requests.append(entry)
            if fault := self._take("answer", request):
                raise Refusal(fault.answer, "as told", retry_after=fault.retry_after)
            self._authenticate(request, writer)
            exchange.stall = self._fault_value("stall", request)
            exchange.slow = self._fault_value("slow", request)
            await self._dispatch(exchange, reader)
        except Refusal as refusal:
            seconds = refusal.retry_after
            headers = [] if seconds is None else [f"Retry-After: {seconds}"]
            await exchange.whole(refusal.code, refusal.status + b"\n", *headers)

    def _authenticate(self, request: Request, writer: asyncio.StreamWriter) -> None:
        given = request.headers.get("authorization", "")
        if self._tokens is None and not self._options.client_ca:
            return
        if writer.get_extra_info("peercert") or (request.path in _PUBLIC and not given):
            return
        scheme, _, token = given.partition(" ")
        if scheme.lower() != "bearer" or token.strip() not in (self._tokens or []):
            raise Refusal(401)

    def _take(self, name: str, request: Request) -> Fault | None:
        for fault in self._faults:
            if getattr(fault, name) and fault.path in request.target:
                fault.times -= 1
                if fault.times <= 0:
                    self._faults.remove(fault)
                return fault
        return None

    def _fault_value(self, name: str, request: Request) -> float:
        return float(getattr(self._take(name, request), name, 0))

    async def _dispatch(self, exchange: Exchange, reader: asyncio.StreamReader) -> None:
        request = exchange.request
        if request.path in _PUBLIC - {"/version"}:
            return await exchange.whole(200, b"ok", "Content-Type: text/plain; charset=utf-8")
        if request.path == "/version":
            return await exchange.whole(200, encode({"major": "1", "minor": "36", "gitVersion": "v1.36.0"}) + b"\n")
        resource, namespace, name = _locate(request.path)
        if request.method == "POST" and resource.kind == "Event" and namespace and name is None:
            return await exchange.whole(201, self._keep(resource, namespace, request.body) + b"\n")
        if request.method != "GET":
            raise Refusal(405, "the server does not allow this method on the requested resource", {})
        if name is not None:
            return await exchange.whole(200, self._get(resource, namespace or "", name) + b"\n")
        labels = selector(request.query.get("labelSelector", ""), lambda record: record.labels)
        fields = selector(request.query.get("fieldSelector", ""), _fields, _FIELDS)

        def selects(record: Record) -> bool:
            return namespace in (None, record.namespace) and labels(record) and fields(record)

        exchange.half = bool((request.is_watch_list or not request.asks("watch")) and self._take("half_list", request))
        if request.asks("watch"):
            return await self._watch(exchange, Watch(resource, selects, request.target), reader)
        return await exchange.whole(200, self._list(request, resource, selects))

    def _get(self, resource: Resource, namespace: str, name: str) -> bytes:
        record = self.store.objects[resource].get(_key(namespace, name))
        if record is None:
            plural = ".".join(filter(None, (resource.plural, resource.group)))
            details = {"name": name} | ({"group": resource.group} if resource.group else {}) | {"kind": resource.plural}
            raise Refusal(404, f'{plural} "{name}" not found', details)
        return resource.full(record.data)

    def _keep(self, resource: Resource, namespace: str, body: bytes) -> bytes:
        """An event as sent, or one that only says that there was one: kube-proxy sends protobuf."""
        try:
            document = msgspec.json.decode(body, type=dict[str, Any])
            metadata = {"name": "", **document["metadata"]}
        except (msgspec.DecodeError, KeyError, TypeError):
            document, metadata = {}, {"name": ""}
        metadata |= {"name": metadata["name"] or f"event-{self.store.version + 1}", "namespace": namespace}
        document |= {"kind": resource.kind, "apiVersion": resource.api_version, "metadata": metadata}
        self._publish([self.store.put(document)])
        return self._get(resource, namespace, metadata["name"])

    def _list(self, request: Request, resource: Resource, selects: Selects) -> bytes:
        version, start = self._page(request)
        found = self.store.snapshot(resource, version)
        matching = [(key, found[key]) for key in sorted(found) if key >= start and selects(found[key])]
        page = matching[: request.number("limit") or None]
        metadata: dict[str, Any] = {"resourceVersion": str(version)}
        if left := len(matching) - len(page):
            metadata["continue"] = _continue(version, page[-1][0] + "\0")
            if not request.query.get("labelSelector") and not request.query.get("fieldSelector"):
                metadata["remainingItemCount"] = left
        head = {"kind": f"{resource.kind}List", "apiVersion": resource.api_version, "metadata": metadata}
        return encode(head)[:-1] + b',"items":[' + b",".join(record.data for _, record in page) + b"]}\n"

    def _page(self, request: Request) -> tuple[int, str]:
        """The version to list at and the key to begin with."""
        asked = request.number("resourceVersion")
        self._check_not_future(asked)
        if token := request.query.get("continue"):
            if asked:
                raise Refusal(400, "specifying resource version is not allowed when using continue")
            version, start = _continued(token)
            if version < 0:  # what an expired token was replaced with: go on in the present
                return self.store.version, start
            if version < self.store.compacted:
                raise Refusal(410, _EXPIRED_TOKEN, metadata={"continue": _continue(-1, start)})
            return min(version, self.store.version), start
        if asked and request.query.get("resourceVersionMatch") == "Exact":
            if asked < self.store.compacted:
                raise Refusal(410, f"The resourceVersion for the provided list is too old: {asked}")
            return asked, ""
        return self.store.version, ""

    def _check_not_future(self, version: int) -> None:
        if version > self.store.version:
            causes = [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}]
            message = f"Too large resource version: {version}, current: {self.store.version}"
            raise Refusal(504, message, {"causes": causes}, retry_after=1)

    async def _watch(self, exchange: Exchange, watch: Watch, reader: asyncio.StreamReader) -> None:
        request, since, seconds = exchange.request, *map(exchange.request.number, ("resourceVersion", "timeoutSeconds"))
        _check_watch(request, self._options.watch_list)
        problem = self._watch_problem(request, since)
        beginning, since = self._beginning(watch, request, since)
        hangup = asyncio.ensure_future(reader.read(1))  # a client that says anything during a watch has left
        hangup.add_done_callback(lambda _: watch.inbox.put_nowait(None))
        self._watches.add(watch)
        try:
            await exchange.begin(200, _CHUNKED)
            await exchange.chunk(_line("ERROR", problem.status) if problem else beginning)
            if not problem:
                await self._follow(exchange, watch, since, seconds or _ENDLESS)
        finally:
            self._watches.discard(watch)
            hangup.cancel()
            await asyncio.gather(hangup, return_exceptions=True)
        await exchange.end()

    def _watch_problem(self, request: Request, since: int) -> Refusal | None:
        """What is told in the stream, after a 200: that is how the API server does it."""
        oldest = self.store.compacted
        if fault := self._take("watch_answer", request):
            return Refusal(fault.watch_answer, "as told")
        if since and since < oldest and not request.is_watch_list:
            return Refusal(410, f"too old resource version: {since} ({oldest})")
        return None

    def _beginning(self, watch: Watch, request: Request, since: int) -> tuple[bytes, int]:
        """What a watch is sent at once, and the version that it has then seen."""
        if since and not request.is_watch_list:
            past = [event for event in self.store.events_after(since) if event.resource is watch.resource]
            return b"".join(event.line(watch.selects) for event in past), since
        self._check_not_future(since)
        found = [record for _, record in sorted(self.store.objects[watch.resource].items()) if watch.selects(record)]
        lines = [_line("ADDED", record.resource.full(record.data)) for record in found]
        if request.is_watch_list and request.asks("allowWatchBookmarks"):
            lines.append(watch.resource.bookmark(self.store.version, ends_initial_events=True))
        return b"".join(lines), self.store.version

    async def _follow(self, exchange: Exchange, watch: Watch, since: int, seconds: float) -> None:
        """What happens after ``since``."""
        now = asyncio.get_running_loop().time
        every = self._options.bookmark_every if exchange.request.asks("allowWatchBookmarks") else _ENDLESS
        deadline, bookmark = now() + seconds, now() + every
        while now() < deadline:
            try:
                async with asyncio.timeout_at(min(deadline, bookmark)):
                    item = await watch.inbox.get()
            except TimeoutError:
                if now() < bookmark:
                    continue
                bookmark += every
                item = watch.resource.bookmark(self.store.version) if self.store.version >= since else b""
            if item is None:
                raise ConnectionAbortedError
            if isinstance(item, list):
                item = b"".join(event.line(watch.selects) for event in item if event.version > since)
            await exchange.chunk(item)

    def _publish(self, events: list[Event]) -> None:
        for watch in self._watches:
            if concerned := [event for event in events if event.resource is watch.resource]:
                watch.inbox.put_nowait(concerned)

    def _control(self, request: Request) -> Any:
        try:
            match request.method, request.path.removeprefix("/stand-in/"):
                case "POST", "objects":
                    self._apply(msgspec.json.decode(request.body, type=Change))
                    return {"resourceVersion": str(self.store.version)}
                case "POST", "faults":
                    for fault in msgspec.json.decode(request.body, type=list[Fault]):
                        self._break(fault)
                    return {}
                case "GET", "objects":
                    found = [record for records in self.store.objects.values() for record in records.values()]
                    items = [msgspec.Raw(record.resource.full(record.data)) for record in found]
                    return {"kind": "List", "metadata": {"resourceVersion": str(self.store.version)}, "items": items}
                case "GET", "requests":
                    return list(self._requests)
        except msgspec.DecodeError as error:
            raise Refusal(400, str(error)) from error
        raise Refusal(404, f"no control {request.method} {request.path}")

    def _apply(self, change: Change) -> None:
        keys = [(_by_kind(key), key.namespace, key.name) for key in change.delete]
        for document in change.upsert:
            identify(document)  # all or nothing
        events: list[Event | None] = [self.store.put(document) for document in change.upsert]
        events += [self.store.remove(*key) for key in keys]
        self._publish([event for event in events if event])

    def _break(self, fault: Fault) -> None:
        """At once what concerns all, else with the requests to come."""
        if fault.expire:
            self.store.expire()
        elif fault.tokens is not None:
            self._tokens = fault.tokens
        elif fault.cut:
            for writer in self._open:
                writer.transport.abort()
        elif fault.torn or fault.line is not None:
            for watch in self._watches:
                if fault.path in watch.path:
                    event = watch.resource.bookmark(self.store.version)
                    raw = event[: len(event) // 2] if fault.line is None else fault.line.encode() + b"\n"
                    watch.inbox.put_nowait(raw)
                    if fault.torn:
                        watch.inbox.put_nowait(None)
        elif fault.refuse_connections:
            self._server.close()
            self._reopening = asyncio.ensure_future(self._reopen(fault.refuse_connections))
        elif fault.answer or fault.watch_answer or fault.half_list or fault.stall or fault.slow:
            self._faults.append(fault)
        else:
            raise Refusal(400, f"no fault: {fault}")

    async def _reopen(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.listen()


async def _read(reader: asyncio.StreamReader) -> Request | None:
    """None if there is no further request on the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = first.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    url = urlsplit(target)
    return Request(method, target, headers, body, url.path, dict(parse_qsl(url.query, keep_blank_values=True)))


def _locate(path: str) -> tuple[Resource, str | None, str | None]:
    """The resource, its namespace unless all are meant, and the object's name unless all are."""
    if match := _PATH.fullmatch(path):
        namespace, name = (None if part is None else unquote(part) for part in match.group("namespace", "name"))
        for resource in RESOURCES:
            if (resource.group, resource.plural) == (match["group"] or "", match["plural"]) and (
                namespace is None or resource.is_namespaced
            ):
                return resource, namespace, name
    raise Refusal(404, "the server could not find the requested resource", {})


def _by_kind(key: Key) -> Resource:
    for resource in RESOURCES:
        if resource.kind == key.kind and key.api_version in ("", resource.api_version):
            return resource
    raise Refusal(400, f"no such kind: {key.kind}")


def _check_watch(request: Request, has_watch_list: bool) -> None:
    """What kube-apiserver's ValidateListOptions says of watches."""
    wrong: dict[str, str] = {}
    match = request.query.get("resourceVersionMatch")
    if "sendInitialEvents" in request.query:
        if match != "NotOlderThan":
            wrong["resourceVersionMatch"] = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
        if not has_watch_list:
            unless = "is forbidden for watch unless the WatchList feature gate is enabled"
            wrong["sendInitialEvents"] = f"sendInitialEvents {unless}"
    elif match:
        wrong["resourceVersionMatch"] = (
            "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"
        )
    for name, why in wrong.items():
        causes = [{"reason": "FieldValueForbidden", "message": f"Forbidden: {why}", "field": name}]
        details = {"group": "meta.k8s.io", "kind": "ListOptions", "causes": causes}
        raise Refusal(422, f'ListOptions.meta.k8s.io "" is invalid: {name}: Forbidden: {why}', details)


def _continue(version: int, start: str) -> str:
    token = encode({"v": "meta.k8s.io/v1", "rv": version, "start": start})
    return base64.urlsafe_b64encode(token).rstrip(b"=").decode()


def _continued(token: str) -> tuple[int, str]:
    """A version and a key, from a token that `_continue` may have made."""
    why, text = "illegal base64 data", b""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = base64.b64decode(token + "=" * (-len(token) % 4), b"-_", validate=True)
        why = f"invalid character {chr(text[0])!a} looking for beginning of value" if text else "empty"
        fields = msgspec.json.decode(text)
        why = "server does not recognize this encoded version"
        if fields["v"] == "meta.k8s.io/v1":
            return int(fields["rv"]), str(fields["start"])
    raise Refusal(400, f"invalid continue token: continue key is not valid: {why}")


def _tls(folder: Path, host: str, client_ca: Path | None) -> ssl.SSLContext:
    """With the certificate of an earlier start, if there was one: its clients go on trusting."""
    if not (folder / "server.pem").exists():
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(folder / "ca.crt"))
        hosts = {host, "localhost", "127.0.0.1", "::1", "kubernetes.default.svc"} - {"0.0.0.0", "::"}
        ca.issue_cert(*sorted(hosts)).private_key_and_cert_chain_pem.write_to_path(str(folder / "server.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    context.set_alpn_protocols(["http/1.1"])
    if client_ca:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="ca.crt, admin-token and server.pem are kept here")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument(
        "--token", action="append", help="a bearer token to accept; without one, and a CA, so is anybody"
    )
    parser.add_argument("--client-ca", type=Path, help="whose client certificates are accepted instead of a token")
    parser.add_argument("--objects", type=Path, help="a List to begin with")
    parser.add_argument("--first-version", type=int, help="where versions begin; the objects' own are then ignored")
    parser.add_argument("--no-watch-list", dest="watch_list", action="store_false", help="refuse sendInitialEvents")
    parser.add_argument("--bookmark-every", type=float, default=60, metavar="SECONDS")
    return parser.parse_args()


async def _main(options: argparse.Namespace) -> None:
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ended.set)
    if stat.S_ISFIFO(os.fstat(1).st_mode):
        loop.add_reader(1, ended.set)  # whoever read our readiness is gone, perhaps killed: nobody else would end us
    admin_token = secrets.token_urlsafe()
    (options.folder / "admin-token").write_text(admin_token)
    stand_in = StandIn(options, admin_token, _tls(options.folder, options.host, options.client_ca))
    print("ready", await stand_in.listen(), flush=True)
    await ended.wait()


if __name__ == "__main__":
    asyncio.run(_main(_options()))
