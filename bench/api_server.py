"""The stand-in for the Kubernetes API server (tests/apiserver.py) as a process that tests and benches steer."""

import http.client
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from bench.namespace import Namespace

PROGRAM = Path(__file__).parents[1] / "tests" / "apiserver.py"
_PATIENCE = 30  # seconds for one answer


class ApiServer:
    """Use as a context manager. It may be stopped and started again inside: port, certificate and objects stay."""

    def __init__(
        self,
        folder: Path,
        namespace: Namespace | None = None,
        *,
        host: str = "127.0.0.1",
        tokens: Sequence[str] = (),
        client_ca: Path | None = None,
        watch_list: bool = True,
        bookmark_every: float = 60,
    ) -> None:
        """``folder`` keeps the certificate, and in objects.json the List to start with, if there is one.

        Without ``tokens`` and ``client_ca`` everybody is let in.
        """
        if not PROGRAM.exists():
            raise FileNotFoundError(f"{PROGRAM} is missing: the API server's stand-in runs only from a source tree")
        self._folder = folder
        self._namespace = namespace
        self._host = host
        self._options = [word for token in tokens for word in ("--token", token)]
        self._options += ["--client-ca", str(client_ca)] if client_ca else []
        self._options += [] if watch_list else ["--no-watch-list"]
        self._options += ["--bookmark-every", str(bookmark_every)]
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: http.client.HTTPSConnection | None = None
        self.port = 0
        """Set by the first start."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self._end(signal.SIGKILL)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end(signal.SIGKILL)

    @property
    def url(self) -> str:
        return f"https://{self._host}:{self.port}"

    @property
    def ca_file(self) -> Path:
        return self._folder / "ca.crt"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, first_version: int | None = None) -> None:
        """With what it held when it was stopped, at the same versions.

        ``first_version`` gives all of it new versions from there on, as if etcd had been restored from a backup.
        """
        command = [sys.executable, str(PROGRAM), "--folder", str(self._folder)]
        command += ["--host", self._host, "--port", str(self.port), *self._options]
        if self._kept.exists():
            command += ["--objects", str(self._kept)]
        if first_version is not None:
            command += ["--first-version", str(first_version)]
        if self._namespace:
            self._process = self._namespace.start(command, stdout=subprocess.PIPE)
        else:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, process_group=0)
        assert self._process.stdout is not None
        said = self._process.stdout.readline().split()
        if said[:1] != [b"ready"]:
            raise RuntimeError(f"the API server's stand-in did not start: {' '.join(command)}")
        self.port = int(said[1])

    def stop(self) -> int:
        """What it held is kept for the next start. The exit status."""
        self._keep()
        return self._end(signal.SIGTERM)

    def kill(self) -> None:
        """As `stop`, but with SIGKILL."""
        self._keep()
        self._end(signal.SIGKILL)

    def apply(self, upsert: Sequence[dict[str, Any]] = (), delete: Iterable[tuple[str, str, str]] = ()) -> int:
        """All as one burst. ``delete``: kind, namespace ("" for what has none) and name. The last resourceVersion."""
        gone = [{"kind": kind, "namespace": namespace, "name": name} for kind, namespace, name in delete]
        answer = self._control("POST", "objects", {"upsert": list(upsert), "delete": gone})
        return int(msgspec.json.decode(answer)["resourceVersion"])

    def fault(self, *faults: dict[str, Any]) -> None:
        """Each as `tests.apiserver.Fault` describes it, with its fields in camelCase."""
        self._control("POST", "faults", faults)

    def requests(self) -> list[dict[str, Any]]:
        """The last 10,000 since the start: method, path (with query), userAgent, status (None: not answered yet)."""
        return msgspec.json.decode(self._control("GET", "requests"), type=list[dict[str, Any]])

    def kubeconfig(self, path: Path, token: str | None = None, token_file: Path | None = None) -> Path:
        """``path``, now a kubeconfig that leads here, with a token, or the file of one, or neither."""
        user = {"token": token, "tokenFile": token_file and str(token_file)}
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "stand-in", "cluster": cluster}],
            "users": [{"name": "stand-in", "user": {key: value for key, value in user.items() if value}}],
            "contexts": [{"name": "stand-in", "context": {"cluster": "stand-in", "user": "stand-in"}}],
            "current-context": "stand-in",
        }
        path.write_bytes(msgspec.json.encode(config))  # JSON is YAML
        return path

    @property
    def _kept(self) -> Path:
        return self._folder / "objects.json"

    def _keep(self) -> None:
        self._kept.write_bytes(self._control("GET", "objects"))

    def _end(self, number: signal.Signals) -> int:
        self._disconnect()
        if self._process is None:
            return 0
        process, self._process = self._process, None
        process.send_signal(number)
        try:
            return process.wait(timeout=10)
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()

    def _control(self, method: str, what: str, body: Any = None) -> bytes:
        """Over one connection, which outlives the faults; made anew if it broke, as after a restart."""
        headers = {"X-Stand-In": (self._folder / "admin-token").read_text()}
        payload = None if body is None else msgspec.json.encode(body)
        while True:
            is_new = self._connection is None
            connection = self._connection or self._connect()
            try:
                connection.request(method, f"/stand-in/{what}", payload, headers)
                answer = connection.getresponse()
                text = answer.read()
                break
            except (OSError, http.client.HTTPException):
                self._disconnect()
                if is_new:
                    raise
        if answer.status != 200:
            raise RuntimeError(f"the API server's stand-in refuses {method} {what}: {text.decode()}")
        return text

    def _connect(self) -> http.client.HTTPSConnection:
        context = ssl.create_default_context(cafile=self.ca_file)
        connection = http.client.HTTPSConnection(self._host, self.port, timeout=_PATIENCE, context=context)
        place: AbstractContextManager[None] = self._namespace.entered() if self._namespace else nullcontext()
        with place:
            connection.connect()
        self._connection = connection
        return connection

    def _disconnect(self) -> None:
        if self._connection:
            self._connection.close()
        self._connection = None
