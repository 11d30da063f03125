"""kube-proxy's metrics port: /metrics, /healthz, /proxyMode; a page for people at /, and what becomes of a packet."""

import json
from base64 import b64encode
from collections.abc import Callable
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files

import msgspec

from pyproxy.explainer import Explainer
from pyproxy.explanation import parse
from pyproxy.http_server import Address, Request, Response
from pyproxy.metrics import CONTENT_TYPE, Metrics
from pyproxy.status import Status

_PAGE_POLICY = (
    "default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)


class MetricsPort:
    def __init__(self, mode: str, metrics: Metrics, status: Status, explainer: Explainer) -> None:
        page = files("pyproxy").joinpath("status.html").read_bytes()
        html = Response(HTTPStatus.OK, page, "text/html; charset=utf-8", {"Content-Security-Policy": _policy(page)})
        self._answers: dict[str, Callable[[Request], Response]] = {
            "/": lambda _: html,
            "/healthz": lambda _: _text("ok"),  # that this process answers; see the healthz port for more
            "/proxyMode": lambda _: _text(mode),
            "/metrics": lambda _: Response(HTTPStatus.OK, metrics.text(), CONTENT_TYPE),
            "/status.json": lambda request: _json(status.overview(request.query.get("search", ""))),
            "/explain.json": lambda request: _explanation(explainer, request.query.get("to", "")),
        }

    def answer(self, request: Request, local: Address) -> Response:  # noqa: ARG002
        handler = self._answers.get(request.path)
        if handler is None:
            return Response(HTTPStatus.NOT_FOUND, f"there are {', '.join(self._answers)}\n".encode(), "text/plain")
        return handler(request)


def _text(text: str, status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(status, text.encode(), "text/plain; charset=utf-8")


def _json(value: object) -> Response:
    return Response(HTTPStatus.OK, json.dumps(value).encode())


def _explanation(explainer: Explainer, to: str) -> Response:
    try:
        destination = parse(to)
    except ValueError as error:
        return _text(f"{error}\n", HTTPStatus.BAD_REQUEST)
    found = explainer.explain(destination)
    if found is None:
        return _text("the first sync has not reached the kernel yet\n", HTTPStatus.SERVICE_UNAVAILABLE)
    return Response(HTTPStatus.OK, msgspec.json.encode(found))


def _policy(page: bytes) -> str:
    """What the page itself holds, by its hash, and nothing else; no string may become markup or code."""
    hashes = {
        tag: b64encode(sha256(page.partition(b"<%b>" % tag.encode())[2].partition(b"</%b>" % tag.encode())[0]).digest())
        for tag in ("script", "style")
    }
    return _PAGE_POLICY.format(**{tag: f"'sha256-{digest.decode()}'" for tag, digest in hashes.items()})
