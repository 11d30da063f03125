"""The lab with a proxy on its node, and what a test does with them."""

import itertools
import json
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from bench.ask import Answer, ask
from bench.lab import Host, Lab
from bench.subject import Subject
from tests.conformance import manifests
from tests.conformance.manifests import Object

DROPPED_AFTER_S = 0.4
_PATIENCE_S = 10.0
_SENTINEL = 254


class Cluster:
    """One lab, one folder of manifests, one proxy that can be killed and started again."""

    def __init__(self, mode: str, *flags: str) -> None:
        self.lab = Lab()
        self._mode = mode
        self._flags = flags
        self._turns = itertools.count()

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self._scratch.name, "manifests")
        self.folder.mkdir()
        self._log = Path(self._scratch.name, "log").open("w+b")
        self.lab.__enter__()
        try:
            self.start()
            self.apply("node", manifests.node())
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.lab.__exit__(kind, error, at)
        self._log.close()
        self._scratch.cleanup()

    def start(self) -> None:
        self.proxy = Subject(self.lab, self._mode, self.folder, self._log, *self._flags)

    def log(self) -> str:
        """All that the proxy has logged."""
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")

    def apply(self, name: str, *objects: Object) -> None:
        """Put ``objects`` in force, in place of what ``name`` held before; they are in the kernel when this returns."""
        self.write_objects(name, *objects)
        self.settle()

    def write_objects(self, name: str, *objects: Object) -> None:
        self.write(f"{name}.json", json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def delete(self, name: str) -> None:
        (self.folder / f"{name}.json").unlink()
        self.settle()

    def write(self, file: str, text: str) -> None:
        staging = self.folder / f".{file}.new"
        staging.write_text(text)
        staging.rename(self.folder / file)

    def settle(self) -> None:
        """Wait until everything written so far is served: changes reach the kernel in the order of their files."""
        pod = f"pod-{next(self._turns) % 3 + 1}"
        self.write_objects("zz", manifests.service(_SENTINEL, exposed=False), *manifests.slices(_SENTINEL, [pod]))
        address, port = manifests.target(_SENTINEL, "ClusterIP", "IPv4", "TCP")
        client = self.lab.pods["pod-2"]
        until(
            lambda: _pod_of(client, address, port) == pod, lambda: f"never served; the log ends: {self.log()[-3000:]}"
        )

    def host(self, who: str) -> Host:
        """``node``, ``client`` (outside) or a pod."""
        return {"node": self.lab.node, "client": self.lab.client}.get(who) or self.lab.pods[who]

    def ask(self, who: str, number: int, kind: str, family: str, protocol: str = "TCP") -> Answer:
        """One request to a frontend of service ``number``."""
        address, port = manifests.target(number, kind, family, protocol)
        return ask(self.host(who), address, port, protocol, timeout=3.0)

    def pods_of(self, times: int, *request: Any) -> set[str]:
        """Which pods answer ``times`` requests like `ask`'s."""
        return {self.ask(*request).pod for _ in range(times)}

    def outcome(self, who: str, address: str, port: int, protocol: str = "TCP") -> str:
        """The pod that answered, ``refused`` or ``dropped``."""
        try:
            return ask(self.host(who), address, port, protocol, timeout=DROPPED_AFTER_S).pod
        except ConnectionRefusedError:
            return "refused"
        except TimeoutError:
            return "dropped"

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        return self.proxy.stop(number)


class Load:
    """Connections one after the other, from a thread, while a test changes something."""

    def __init__(self, cluster: Cluster, who: str, number: int, kind: str, family: str, protocol: str = "TCP") -> None:
        self._request = (who, number, kind, family, protocol)
        self._cluster = cluster
        self._done = Event()
        self._thread = Thread(target=self._run)
        self.answers: list[Answer] = []
        self.failures: list[str] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._done.set()
        self._thread.join()

    def run_for(self, requests: int) -> None:
        """Wait until so many more have been answered or failed."""
        wanted = len(self.answers) + len(self.failures) + requests
        until(lambda: len(self.answers) + len(self.failures) >= wanted, lambda: "the load stands still")

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                self.answers.append(self._cluster.ask(*self._request))
            except OSError as error:
                self.failures.append(repr(error))


def until(condition: Callable[[], bool], complaint: Callable[[], str]) -> None:
    """Wait for ``condition``. Raises AssertionError after ten seconds."""
    end = time.monotonic() + _PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(complaint())
        time.sleep(0.002)


def _pod_of(client: Host, address: str, port: int) -> str | None:
    try:
        return ask(client, address, port, timeout=0.05).pod
    except OSError:
        return None
