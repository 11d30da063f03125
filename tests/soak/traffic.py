"""Connections to one service, short ones all the time and long ones that stay, while its endpoints change."""

import threading
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import NamedTuple

from bench.ask import open_socket
from tests.conformance.cluster import Cluster, until
from tests.conformance.manifests import FAMILIES, service, slices, target

_PATIENCE_S = 5.0
NUMBER = 1
"""Of the service."""


class Way(NamedTuple):
    """Who asks, and where."""

    who: str
    kind: str
    family: str

    def __str__(self) -> str:
        return " ".join(self)


_ASKERS = (("pod-1", "ClusterIP"), ("node", "LoadBalancer"), ("client", "NodePort"), ("client", "ExternalIP"))
WAYS = tuple(Way(*asker, family) for asker in _ASKERS for family in FAMILIES)


class Endpoints:
    """Which pods serve: what was written, and what of that is known to be in force."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._history: list[frozenset[str]] = []
        self.in_force = -1
        """The number of the last change that is known to be served."""

    def change(self, pods: frozenset[str]) -> None:
        """Returns when new connections go to them and to nobody else."""
        self._history.append(pods)
        self._cluster.apply("soak", service(NUMBER), *slices(NUMBER, sorted(pods)))
        self.in_force = len(self._history) - 1

    def since(self, change: int) -> frozenset[str]:
        """Who may answer a connection that began when that change was the last one in force."""
        return frozenset().union(*self._history[change:])


class Connection:
    """One that is open."""

    def __init__(self, cluster: Cluster, way: Way) -> None:
        self.way = way
        host, to = cluster.host(way.who), target(NUMBER, way.kind, way.family, "TCP")
        self._socket = open_socket(host, to[0])
        try:
            self._socket.settimeout(_PATIENCE_S)
            self._socket.connect(to)
            self.pod = self._line().split()[0]
        except BaseException:
            self.close()
            raise
        self._said = count()

    def talk(self) -> None:
        """Something new there and back. Raises OSError, ValueError if it is not the same that comes back."""
        said = f"{self.way} {next(self._said)}\n"
        self._socket.sendall(said.encode())
        if (heard := self._line()) != said:
            raise ValueError(f"said {said!r}, heard {heard!r}")

    def close(self) -> None:
        self._socket.close()

    def _line(self) -> str:
        heard = b""
        while not heard.endswith(b"\n"):
            piece = self._socket.recv(200)
            if not piece:
                raise ConnectionResetError("the other side closed")
            heard += piece
        return heard.decode()


class Short:
    """Connections one after the other on each way, each from a thread of its own: use as a context manager."""

    def __init__(self, cluster: Cluster, endpoints: Endpoints, of_each: int) -> None:
        self._cluster, self._endpoints, self._of_each = cluster, endpoints, of_each
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(way,)) for way in WAYS]
        self.answered: Counter[tuple[Way, str]] = Counter()
        """By way and pod."""
        self.failures: list[str] = []

    def __enter__(self) -> "Short":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.wait()

    @property
    def done(self) -> int:
        return self.answered.total() + len(self.failures)

    def wait_for(self, connections: int, patience: float) -> None:
        """Until so many have been answered or failed."""
        until(lambda: self.done >= connections, lambda: f"{self.done}: the load stands still", patience)

    def wait(self) -> None:
        for thread in self._threads:
            thread.join()

    def _run(self, way: Way) -> None:
        for _ in self._turns():
            began = self._endpoints.in_force
            try:
                connection = Connection(self._cluster, way)
                try:
                    connection.talk()
                finally:
                    connection.close()
            except (OSError, ValueError) as error:
                self.failures.append(f"{way}: {error!r}")
                continue
            if connection.pod not in self._endpoints.since(began):
                self.failures.append(f"{way}: {connection.pod} answered, which had gone")
                continue
            self.answered[way, connection.pod] += 1

    def _turns(self) -> Iterator[int]:
        for turn in range(self._of_each):
            if self._over.is_set():
                return
            yield turn
