"""The lab with an API server and a proxy on its node, and what a test does with them."""

import itertools
import json
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from bench.api_server import ApiServer
from bench.ask import Answer, ask
from bench.lab import NODE_NAME, Host, Lab
from bench.peer import configuration, filled
from bench.subject import Subject
from tests.conformance import manifests
from tests.conformance.manifests import Object

DROPPED_AFTER_S = 0.4
_GLANCE_S = 0.05
_PATIENCE_S = float(os.environ.get("PYPROXY_PATIENCE", "10"))  # more in a kernel that is slow
ANSWER_S = 0.3 * _PATIENCE_S
FOUND_S = 300.0
"""Verifications take a twentieth of a core, no more: where one takes ten seconds of it, in a slow kernel, the next
comes after two hundred."""
_SENTINEL = 254
TOKEN = "conformance"

Identity = tuple[str, str, str]
"""Kind, namespace and name."""


OURS = (sys.executable, "-m", "pyproxy", "run", "--config", "{config}", "--hostname-override", "{node}")
"""The command line of this pyproxy."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """The proxy that is to be proved, and its mode."""

    mode: str
    command: tuple[str, ...] = OURS
    """Of one process; ``{config}``, ``{kubeconfig}``, ``{node}`` and ``{mode}`` stand for what they name."""
    iptables: str | None = None
    """The flavour that the node says it uses: ``legacy`` or ``nft``."""
    families: tuple[str, ...] = manifests.FAMILIES
    """That it can serve."""

    @property
    def is_ours(self) -> bool:
        """This pyproxy, maybe started by another program."""
        return any(self.command[at : at + len(OURS)] == OURS for at in range(len(self.command)))


class Cluster:
    """One lab, one API server, one proxy that can be killed and started again."""

    def __init__(self, candidate: Candidate, **options: Any) -> None:
        """``options`` are fields of KubeProxyConfiguration; those of a mode's section are put into each."""
        self.lab = Lab(candidate.iptables)
        self._candidate = candidate
        self.mode = candidate.mode
        self._options = options
        self._turns = itertools.count()
        self._held: dict[str, dict[Identity, Object]] = {}

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory()
        self.folder = Path(self._scratch.name)
        self._log = (self.folder / "log").open("w+b")
        self.lab.__enter__()
        try:
            self.api = ApiServer(self.folder, self.lab.node.namespace, tokens=[TOKEN], bookmark_every=5)
            self.api.start()
            self.token_file = self.folder / "token"
            self.token_file.write_text(TOKEN)
            self.kubeconfig = self.api.kubeconfig(self.folder / "kubeconfig", token_file=self.token_file)
            self.config = self.folder / "config.conf"
            self.configure(**self._options)
            self.write_objects("node", manifests.node())
            self.start()
            self.settle()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.lab.__exit__(kind, error, at)  # with all processes in it
        self._log.close()
        self._scratch.cleanup()

    def configure(self, **options: Any) -> None:
        """Write the configuration file anew."""
        text = json.dumps(configuration(self.mode, self.kubeconfig, **options), indent=1)
        staging = self.config.with_suffix(".new")
        staging.write_text(text)
        staging.rename(self.config)

    def start(self) -> None:
        places = {"config": self.config, "kubeconfig": self.kubeconfig}
        command = filled(self._candidate.command, **places, node=NODE_NAME, mode=self.mode)
        if self._candidate.is_ours:
            command += self.lab.flags
        self.proxy = Subject(self.lab, ["env", "PYTHONFAULTHANDLER=1", *command], self._log)

    def change_command(self, command: tuple[str, ...]) -> None:
        """What `start` starts from now on; see Candidate."""
        self._candidate = replace(self._candidate, command=command)

    def switch(self, mode: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End the proxy by that signal, and start it in another mode; its first sync has landed when this returns."""
        self.kill(number)
        self.mode = mode
        self.configure(**self._options)
        said = len(self.log())
        self.start()
        until(lambda: "synced" in self.log()[said:], lambda: f"no sync in mode {mode}: {self._last_words()[-6000:]}")

    def log(self) -> str:
        """All that the proxy has logged."""
        self._log.flush()
        return Path(self._log.name).read_text(errors="replace")

    def apply(self, name: str, *objects: Object) -> None:
        """Put ``objects`` in force, in place of what ``name`` held before; they are in the kernel when this returns."""
        self.write_objects(name, *objects)
        self.settle()

    def write_objects(self, name: str, *objects: Object) -> None:
        """The same without waiting."""
        before, now = self._held.get(name, {}), {_identity(thing): thing for thing in objects}
        self._held[name] = now
        self.api.apply(objects, sorted(before.keys() - now.keys()))

    def remove_objects(self, name: str) -> None:
        self.write_objects(name)

    def delete(self, name: str) -> None:
        """As `remove_objects`, and nothing of them is in the kernel any more when this returns."""
        self.remove_objects(name)
        self.settle()

    def settle(self, patience: float = _PATIENCE_S) -> None:
        """Wait until everything written so far is served.

        Services and EndpointSlices come on ways of their own, each in order: so both must bring something new. And a
        proxy may write one IP family after the other.
        """
        turn = next(self._turns)
        pod, port = f"pod-{turn % 3 + 1}", 1000 + turn % 50_000
        ports = [{"name": "tcp", "protocol": "TCP", "port": port}]
        sentinel = manifests.service(_SENTINEL, exposed=False, ports=ports)
        self.write_objects("sentinel", sentinel, *manifests.slices(_SENTINEL, [pod]))
        addresses = [manifests.addresses(_SENTINEL)["ClusterIP"][family] for family in self._candidate.families]
        client, started = self.lab.pods["pod-2"], time.monotonic()

        def is_served() -> bool:
            # Who asks too early is dropped for a second; but under load a relay in a slow kernel takes its time.
            glance = max(_GLANCE_S, (time.monotonic() - started) / 10)
            return all(_pod_of(client, address, port, glance) == pod for address in addresses)

        until(
            is_served,
            lambda: f"never served; the log ends: {self._last_words()[-6000:]}",
            patience,
        )

    def _last_words(self) -> str:
        """The log, at its end where each thread of the proxy stands, if it is a Python that has faulthandler on."""
        if self.proxy.is_alive:
            self.proxy.stop(signal.SIGABRT)
        return self.log()

    def host(self, who: str) -> Host:
        """``node``, ``client`` (outside) or a pod."""
        return self.lab.host(who)

    def ask(self, who: str, number: int, kind: str, family: str, protocol: str = "TCP") -> Answer:
        """One request to a frontend of service ``number``."""
        address, port = manifests.target(number, kind, family, protocol)
        return ask(self.host(who), address, port, protocol, timeout=ANSWER_S)

    def pods_of(self, times: int, *request: Any) -> set[str]:
        """Which pods answer ``times`` requests like `ask`'s."""
        return {self.ask(*request).pod for _ in range(times)}

    def outcome(self, who: str, address: str, port: int, protocol: str = "TCP") -> str:
        """The pod that answered, ``refused`` or ``dropped``, or ``reset`` by a relay that found no endpoint."""
        try:
            return ask(self.host(who), address, port, protocol, timeout=DROPPED_AFTER_S).pod
        except ConnectionRefusedError:
            return "refused"
        except ConnectionResetError:
            return "reset"
        except TimeoutError:
            return "dropped"

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        return self.proxy.stop(number)


class Load:
    """Connections one after the other, from a thread, while a test changes something."""

    def __init__(self, cluster: Cluster, who: str, number: int, kind: str, family: str, protocol: str = "TCP") -> None:
        self.name = f"{who} to {kind}, {family}, {protocol}"
        self.protocol = protocol
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
        until(
            lambda: len(self.answers) + len(self.failures) >= wanted,
            lambda: f"{self.name}: stands still, {self.failures[-3:]}",
        )

    def _run(self) -> None:
        while not self._done.is_set():
            try:
                self.answers.append(self._cluster.ask(*self._request))
            except OSError as error:
                self.failures.append(repr(error))


@contextmanager
def load_every_way(cluster: Cluster, number: int) -> Iterator[list[Load]]:
    """From a pod and from outside, in both families, of connections and of datagrams; all at once."""
    with ExitStack() as stack:
        yield [
            stack.enter_context(Load(cluster, who, number, kind, family, protocol))
            for who, kind in (("pod-1", "ClusterIP"), ("client", "NodePort"))
            for family in manifests.FAMILIES
            for protocol in ("TCP", "UDP")
        ]


def until(condition: Callable[[], bool], complaint: Callable[[], str], patience: float = _PATIENCE_S) -> None:
    """Wait for ``condition``. Raises AssertionError after ``patience`` seconds."""
    started = time.monotonic()
    while not condition():
        waited = time.monotonic() - started
        if waited > patience:
            raise AssertionError(complaint())
        time.sleep(max(0.002, waited / 20))  # to look takes time from what it waits for


def is_ended(client: socket.socket) -> bool:
    """By the kernel, as a connected UDP socket: then it is connected to nobody."""
    try:
        client.getpeername()
    except OSError:
        return True
    return False


def _identity(thing: Object) -> Identity:
    metadata = thing["metadata"]
    return thing["kind"], metadata.get("namespace", ""), metadata.get("name", "")


def _pod_of(client: Host, address: str, port: int, seconds: float) -> str | None:
    try:
        return ask(client, address, port, timeout=seconds).pod
    except OSError:
        return None
