"""`pyproxy explain`: asks the running proxy, adds what the kernel has, and says it in words."""

import argparse
import json
from collections.abc import Iterator
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from itertools import groupby
from urllib.parse import quote

import msgspec

from pyproxy import modes
from pyproxy.address import IP, parse_socket, shorten
from pyproxy.explanation import Asker, Destination, Endpoint, Explanation, Outcome, Source, Verdict, parse
from pyproxy.table import ModeError

_PATIENCE_S = 10.0
_MOST_ENDPOINTS, _MOST_ENTRIES = 10, 40  # in text
_PORT = 10249
_SEEN = {
    Source.KEPT: "who sent it",
    Source.MASQUERADED: "an address of this node (masqueraded)",
    Source.NODE: "an address of this node",
}
_WHO = {Asker.POD: "a pod on this node", Asker.NODE: "this node", Asker.OUTSIDE: "outside"}


class NoAnswer(Exception):
    """The proxy could not be asked. The message is for the user."""


def add_to(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("destination", type=_destination, metavar="ADDRESS:PORT[/PROTOCOL]",
                         help="IPv6 addresses in brackets; tcp, udp or sctp (default: tcp)")  # fmt: skip
    explain.add_argument("--metrics-address", type=_address, default=(IP("127.0.0.1"), _PORT), metavar="IP[:PORT]",
                         help="the metricsBindAddress of the running proxy (default: 127.0.0.1:10249)")  # fmt: skip
    explain.add_argument("--json", action="store_true", help="print JSON, which holds all of it, instead of text")


def run(options: argparse.Namespace) -> int:
    """Tell what becomes of a packet to ADDRESS:PORT, from a pod, this node and outside: which service, which
    endpoints, whose address they see, or why nobody answers; and which entries of the kernel do it. For instance:
    `pyproxy explain 10.96.0.10:53/udp`, or `pyproxy explain '[fd00:10:96::a]:443'`. It asks the proxy that runs on
    this node. Ends with 0 if anybody who asks reaches an endpoint, and with 1 if not."""
    told = _ask(options.metrics_address, options.destination)
    entries, missing = _entries(told.mode, options.destination)
    if options.json:
        print(json.dumps(msgspec.to_builtins(told) | {"entries": entries, "entriesMissing": missing}))
    else:
        print("\n".join([*_text(told), *_kernel(told.mode, entries, missing)]))
    return 0 if told.is_handled else 1


def _ask(address: tuple[IP, int], to: Destination) -> Explanation:
    """Raises NoAnswer."""
    where = f"{address[0]} port {address[1]}"
    # Not urllib, which would heed the proxies of the environment.
    connection = HTTPConnection(*address, timeout=_PATIENCE_S)
    try:
        connection.request("GET", f"/explain.json?to={quote(str(to))}")
        response = connection.getresponse()
        body = response.read()
    except (OSError, HTTPException) as error:
        reason = getattr(error, "strerror", None) or shorten(str(error))
        raise NoAnswer(
            f"no proxy answers at {where} ({reason}); is `pyproxy run` running on this node, and is that its "
            "metricsBindAddress? If not, give --metrics-address; with --manifests nothing is open unless it was "
            "started with --metrics-bind-address"
        ) from None
    finally:
        connection.close()
    if response.status == HTTPStatus.SERVICE_UNAVAILABLE:
        raise NoAnswer(f"the proxy can't tell yet: {body.decode(errors='replace').strip()}")
    try:
        if response.status != HTTPStatus.OK:
            raise ValueError
        return msgspec.json.decode(body, type=Explanation)
    except (ValueError, RecursionError):  # msgspec's are of these kinds
        reason = f"what answers at {where} (status {response.status}) is not a pyproxy of this version"
        raise NoAnswer(f"{reason}; is it kube-proxy?") from None


def _entries(mode: str, to: Destination) -> tuple[list[str], str | None]:
    """What the kernel has, or why that is not known."""
    try:
        return modes.load(mode).entries(to.address, to.port, to.transport), None
    except (ModeError, modes.UnknownMode) as error:
        return [], str(error)


def _text(told: Explanation) -> Iterator[str]:
    yield told.summary
    yield from told.notes
    if told.affinity_seconds is not None:
        yield f"session affinity: a client keeps its endpoint until {told.affinity_seconds} s after its last connection"
    for _, alike in groupby(told.outcomes, lambda one: (one.verdict, one.why, one.source, one.endpoints)):
        outcome, *others = alike
        yield f"\nfrom {', '.join(_WHO[one.asker] for one in (outcome, *others))}: {_what(outcome)}"
        yield f"    {outcome.why}"
        yield from (f"    {line}" for line in _few([_spelled(one) for one in outcome.endpoints], _MOST_ENDPOINTS))


def _what(outcome: Outcome) -> str:
    if outcome.verdict is not Verdict.TRANSLATED:
        return outcome.verdict
    count = len(outcome.endpoints)
    where = f"one of {count} endpoints" if count > 1 else "the only endpoint"
    return f"to {where}, which sees {_SEEN[outcome.source or Source.KEPT]}"


def _spelled(endpoint: Endpoint) -> str:
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{host}:{endpoint.port}{' on this node' if endpoint.local else ''}"


def _kernel(mode: str, entries: list[str], missing: str | None) -> Iterator[str]:
    if missing is not None:
        yield f"\nthe kernel's entries could not be read: {missing}"
        return
    yield f"\nin the kernel, {mode} mode:{'' if entries else ' nothing'}"
    yield from (f"    {line}" for line in _few(entries, _MOST_ENTRIES))


def _few(lines: list[str], most: int) -> list[str]:
    """JSON has all of them."""
    return [*lines[:most], f"and {len(lines) - most} more"] if len(lines) > most else lines


def _destination(text: str) -> Destination:
    try:
        return parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> tuple[IP, int]:
    try:
        address, port = parse_socket(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return address, port or _PORT
