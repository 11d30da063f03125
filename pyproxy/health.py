"""Whether this proxy does its work: what kubelet's probes and load balancers are told."""

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http import HTTPStatus

from pyproxy.http_server import Address, Request, Response
from pyproxy.status import Status

_NEVER = "0001-01-01 00:00:00 +0000 UTC"


class Health:
    """kube-proxy's healthz port, /healthz and /livez, and a /readyz of our own."""

    def __init__(self, status: Status, sync_period: float, answered: Callable[[str, HTTPStatus], None]) -> None:
        """``answered`` is told of each answer: its path and its status."""
        self._status = status
        self._answered = answered
        self.patience = 2 * sync_period
        """How long a change may wait to reach the kernel, in seconds."""

    @property
    def keeps_up(self) -> bool:
        since = self._status.pending_since()
        return since is None or time.monotonic() - since <= self.patience

    @property
    def is_healthy(self) -> bool:
        """Also while it starts, like kube-proxy: the kernel still forwards by what the last process wrote."""
        return self.keeps_up and not self._status.node_is_leaving

    @property
    def is_ready(self) -> bool:
        """Once the kernel forwards by what this process wrote: what a rollout must wait for."""
        return self.is_healthy and self._status.has_synced

    def answer(self, request: Request, local: Address) -> Response:  # noqa: ARG002
        verdicts = {"/healthz": self.is_healthy, "/livez": self.keeps_up, "/readyz": self.is_ready}
        if request.path not in verdicts:
            return Response(HTTPStatus.NOT_FOUND, b"there are /healthz, /livez and /readyz\n", "text/plain")
        ok = verdicts[request.path]
        now = time.time()
        body = {
            "lastUpdated": _go_time(last) if (last := self._status.last_sync) is not None else _NEVER,
            "currentTime": _go_time(now),
            "nodeEligible": not self._status.node_is_leaving,
        }
        status = HTTPStatus.OK if ok else HTTPStatus.SERVICE_UNAVAILABLE
        self._answered(request.path, status)
        return Response(status, json.dumps(body).encode())


def _go_time(seconds: float) -> str:
    """As Go prints a time, which is what readers of kube-proxy's answers know."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S.%f000 +0000 UTC")
