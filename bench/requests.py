"""HTTP requests, as many as get done, by wrk of nginx: each on a connection of its own, or all on a few.

nginx answers from its configuration, 64 bytes or so, and touches no file. Of the host's own nginx nothing is used but
the program: its configuration, process id and folders are in a folder of ours.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from bench.lab import Host
from bench.measure import Target
from bench.traffic import Measure, Reading, find, run, serving

_NGINX, _WRK = "nginx", "wrk"
_AT_ONCE = 32
"""Connections that wrk keeps busy: enough for neither side to wait for the other."""
_REPORT = Path(__file__).with_name("wrk.lua")
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
_CONFIGURATION = """\
# One process, which is the worker.
daemon off;
master_process off;
pid {folder}/pid;
error_log stderr crit;
events {{
    worker_connections 4096;
    multi_accept on;
}}
http {{
    access_log off;
    keepalive_requests 1000000000;
    {temporary}
    server {{
        {listen}
        return 200 "{answer}";
    }}
}}
"""
_ANSWER = "!" * 64


class _Said(msgspec.Struct):
    """What wrk.lua writes: a duration in µs, numbers of requests that were answered, and of errors."""

    us: int
    requests: int
    connect: int
    read: int
    write: int
    timeout: int
    status: int
    """Answered with another status than 200."""


class Requests:
    programs = (_WRK, _NGINX)

    def __init__(self, name: str, ports: Sequence[int], *, kept: bool) -> None:
        """nginx listens at all ``ports``. ``kept``: connections stay open for the next request."""
        words = "requests on kept connections" if kept else "connections of one request"
        self.measures = (Measure(name, words, "1/s"),)
        self._ports = ports
        self.port = ports[0]
        self._headers = () if kept else ("-H", "Connection: close")

    @contextmanager
    def serving(self, host: Host, cpu: int) -> Iterator[None]:
        with tempfile.TemporaryDirectory() as folder:
            configuration = Path(folder, "nginx.conf")
            configuration.write_text(
                _CONFIGURATION.format(
                    folder=folder,
                    temporary=" ".join(f"{name}_temp_path {folder}/{name};" for name in _TEMPORARY),
                    listen=" ".join(f"listen {port} backlog=4096;" for port in self._ports),
                    answer=_ANSWER,
                )
            )
            # -e: else it opens the host's error log before it reads any configuration.
            command: list[str | Path] = [find(_NGINX) or _NGINX, "-e", "stderr", "-p", folder, "-c", configuration]
            with serving(host, cpu, command, self._ports):
                yield

    def read(self, host: Host, cpu: int, target: Target, seconds: int) -> Reading:
        address, port = target
        options = ["-t", "1", "-c", str(_AT_ONCE), "-d", f"{seconds}s", "-s", _REPORT, *self._headers]
        return self.parse(run(host, cpu, [find(_WRK) or _WRK, *options, f"http://{address}:{port}/"], seconds)[1])

    def parse(self, text: str) -> Reading:
        """What wrk.lua wrote."""
        try:
            said = msgspec.json.decode(text, type=_Said)
        except msgspec.DecodeError:
            return Reading({}, {text.strip() or "wrk did not end": 1})
        failures = {name: getattr(said, name) for name in ("connect", "read", "write", "timeout", "status")}
        failures = {name: count for name, count in failures.items() if count}
        answered = said.requests - said.status
        if not answered:
            return Reading({}, failures or {"no answer": 1})
        return Reading({self.measures[0].name: answered / (said.us / 1e6)}, failures)
