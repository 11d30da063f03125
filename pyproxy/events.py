"""Events of the API: what an operator must see with `kubectl describe`, said once and not too often.

A thread of its own posts them, so that nothing waits for the API server; when it is away they are dropped, since the
log has them, too.
"""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from queue import Full, Queue
from urllib.parse import quote

import msgspec

from pyproxy.admission import printable_key
from pyproxy.api import Api, ApiError, Unreachable
from pyproxy.objects import KINDS
from pyproxy.problem import Problem

log = logging.getLogger("pyproxy.events")

_BURST = 25
_EVERY_S = 10.0
"""Once the burst is used up; as many as client-go's recorder would let through in an hour of trouble."""
_SAID_FOR_S = 3600.0
_MOST_WAITING = 100
_MOST_REMEMBERED = 10_000
_LONGEST_NOTE = 1000  # events.k8s.io/v1 Event.note: under 1 kB
_LONGEST_NAME = 230
_LONGEST_INSTANCE = 128  # Event.reportingInstance

_PLURALS = {"Service": "services", "EndpointSlice": "endpointslices", "Node": "nodes"}
_VERSIONS = {kind.__name__: version for (version, _), kind in KINDS.items()}


class _Metadata(msgspec.Struct):
    uid: str = ""


class _Named(msgspec.Struct):
    metadata: _Metadata


class Events:
    def __init__(self, api: Api, node_name: str, sleep: Callable[[float], None] = time.sleep) -> None:
        self._api = api
        self._node_name = node_name
        self._sleep = sleep
        self._waiting: Queue[Problem] = Queue(_MOST_WAITING)
        self._said: dict[Problem, float] = {}
        self._tokens = float(_BURST)
        self._filled = time.monotonic()

    def note(self, problem: Problem) -> None:
        """From any thread: to be posted, unless it was within the hour."""
        if not _can_exist(problem):
            return
        now = time.monotonic()
        if now - self._said.get(problem, float("-inf")) < _SAID_FOR_S:
            return
        if len(self._said) >= _MOST_REMEMBERED:
            self._said.clear()
        self._said[problem] = now
        try:
            self._waiting.put_nowait(problem)
        except Full:
            log.debug("too many events", extra={"dropped": problem})

    def run(self) -> None:
        """For ever, in a thread."""
        while True:
            problem = self._waiting.get()
            self._take_token()
            try:
                self._post(problem)
            except (ApiError, Unreachable) as error:
                log.debug("event not posted", extra={"event": problem, "reason": error})

    def _take_token(self) -> None:
        now = time.monotonic()
        self._tokens = min(float(_BURST), self._tokens + (now - self._filled) / _EVERY_S)
        self._filled = now
        self._tokens -= 1
        if self._tokens < 0:
            self._sleep(-self._tokens * _EVERY_S)

    def _post(self, problem: Problem) -> None:
        """Raises ApiError and Unreachable."""
        namespace, name = problem.key
        version = _VERSIONS[problem.kind]
        place = f"namespaces/{quote(namespace, safe='')}/" if namespace else ""
        root = f"/apis/{version}" if "/" in version else f"/api/{version}"
        body = self._api.get(f"{root}/{place}{_PLURALS[problem.kind]}/{quote(name, safe='')}", {})
        try:
            uid = msgspec.json.decode(body, type=_Named).metadata.uid  # without it `kubectl describe` finds no event
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            uid = ""
        field = f"{problem.field}: " if problem.field else ""
        now = datetime.now(UTC)
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": f"{name[:_LONGEST_NAME].rstrip('-.')}.{time.time_ns():x}",
                "namespace": namespace or "default",
            },
            "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "type": "Warning",
            "reason": problem.code,
            "action": "Sync",
            "note": f"{field}{problem.reason}"[:_LONGEST_NOTE],
            "reportingController": "pyproxy",
            "reportingInstance": self._node_name[:_LONGEST_INSTANCE],
            "regarding": {
                "apiVersion": version,
                "kind": problem.kind,
                "namespace": namespace,
                "name": name,
                "uid": uid,
            },
        }
        self._api.post(f"/apis/events.k8s.io/v1/namespaces/{namespace or 'default'}/events", event)


def _can_exist(problem: Problem) -> bool:
    """Whether the API can have such an object. A name that it would refuse may be the path to something else."""
    namespace, name = problem.key
    return bool(name) and bool(namespace) == (problem.kind != "Node") and problem.key == printable_key(problem.key)
