"""Where a proxy under measurement gets its objects from: a folder of manifests, or the API server's stand-in."""

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from bench import synthetic
from bench.api_server import ApiServer
from bench.lab import NODE_NAME, SERVER_PORT, Lab

CANARY = ("canary", "10.96.0.10")
_TOKEN = "bench"  # noqa: S105

Object = dict[str, Any]


class Feed(Protocol):
    """Use as a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...

    @property
    def flags(self) -> Sequence[str | Path]:
        """Of `pyproxy run`."""

    def put(self, name: str, objects: list[Object]) -> None:
        """In place of what ``name`` held before, which had the same names; seen by the proxy at once."""


class Manifests:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        pass

    @property
    def flags(self) -> Sequence[str | Path]:
        return "--manifests", self._folder

    def put(self, name: str, objects: list[Object]) -> None:
        synthetic.write(self._folder / f"{name}.json", objects)


class ViaApi:
    """Over HTTPS, on the loopback of the lab's node."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self._folder = folder
        self._server = ApiServer(folder, lab.node.namespace, tokens=[_TOKEN])

    def __enter__(self) -> Self:
        self._server.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.__exit__(kind, error, at)

    @property
    def kubeconfig(self) -> Path:
        """It leads to the server."""
        return self._server.kubeconfig(self._folder / "kubeconfig", token=_TOKEN)

    @property
    def flags(self) -> Sequence[str | Path]:
        return "--kubeconfig", self.kubeconfig

    def put(self, name: str, objects: list[Object]) -> None:  # noqa: ARG002
        self._server.apply(objects)


def put_node(feed: Feed) -> None:
    addresses = [{"type": "InternalIP", "address": "172.18.0.2"}]
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE_NAME}, "status": {"addresses": addresses}}
    feed.put("node", [node])


def put_canary(feed: Feed, pod: str) -> None:
    """A Service with one endpoint."""
    name, address = CANARY
    feed.put("canary", [synthetic.service(name, address)])
    move_canary(feed, pod)


def move_canary(feed: Feed, pod: str) -> None:
    """One object changes: the EndpointSlice."""
    feed.put("zz-canary", [synthetic.endpoint_slice(CANARY[0], [(pod, NODE_NAME)], SERVER_PORT)])
