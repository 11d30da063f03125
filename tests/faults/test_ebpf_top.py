"""`pyproxy top`: what it shows of real traffic, and what becomes of the terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from typing import Any

import pytest

from bench.lab import Lab
from pyproxy.top import number
from tests.conformance.cluster import OURS, Candidate, Cluster, Load
from tests.conformance.manifests import service, slices
from tests.faults.commands import is_one_sentence, pyproxy
from tests.faults.test_ebpf_counters import ALL, traffic


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster(Candidate("ebpf", OURS), syncPeriod="1s", minSyncPeriod="5ms") as running:
        yield running


def test_top_shows_rates_and_totals(cluster: Cluster) -> None:
    cluster.apply("top", service(8), *slices(8, ALL))
    with Load(cluster, "pod-1", 8, "ClusterIP", "IPv4") as load:
        load.run_for(10)
        done = pyproxy(cluster.lab, "top", "--once", "--json", "--interval", "0.5")
    assert (done.returncode, done.stderr) == (0, "")
    busiest: Any = json.loads(done.stdout)["services"][0]
    assert busiest["service"] == {"namespace": "conformance", "name": "svc-8", "port": "tcp", "family": "IPv4"}
    assert busiest["totals"]["sockets"] >= 10
    assert busiest["perSecond"]["sockets"] > 0
    count = traffic(cluster.lab, 8, "IPv4", "TCP").sockets
    text = pyproxy(cluster.lab, "top", "--once", "--interval", "0.1", "--sort", "name").stdout.splitlines()
    assert text[0].split()[:3] == ["SERVICE", "CONN/S", "CONNS"]
    (line,) = (one for one in text if one.startswith("conformance/svc-8:tcp IPv4"))
    assert line.split()[2:4] == ["0", number(count)]


@pytest.mark.parametrize(("end", "status"), [(b"q", 0), (b"\x03", 130), (None, 128 + signal.SIGTERM)])
def test_top_is_live_on_a_terminal_and_leaves_it_as_it_was(cluster: Cluster, end: bytes | None, status: int) -> None:
    cluster.apply("live", service(9), *slices(9, ALL))
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (200, 120))
    before = termios.tcgetattr(theirs)
    process = top_on(theirs, cluster, "0.2")
    try:
        said = read_until(ours, b"by connections")
        os.write(ours, b"n")
        said += read_until(ours, b"by name")
        cluster.ask("pod-1", 9, "ClusterIP", "IPv4")
        said += read_until(ours, b"conformance/svc-9:tcp IPv4")
        if end is None:
            process.terminate()
        else:
            os.write(ours, end)
        said += read_until(ours, b"\x1b[?1049l")
        assert process.wait(timeout=10) == status
    finally:
        process.kill()
        process.wait()
    assert said.startswith(b"\x1b[?1049h")
    assert said.count(b"\x1b[?25l") == said.count(b"\x1b[?25h") == 1
    assert b"Traceback" not in said
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


_SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
child = subprocess.Popen(sys.argv[1:], process_group=0)
os.tcsetpgrp(0, child.pid)
while os.WIFSTOPPED(status := os.waitpid(child.pid, os.WUNTRACED)[1]):
    os.tcsetpgrp(0, os.getpid())
    print("stopped", flush=True)
    sys.stdin.readline()
    os.tcsetpgrp(0, child.pid)
    os.killpg(child.pid, signal.SIGCONT)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""As much of a shell as it takes to be stopped: who has none to be continued by is not."""


def test_top_leaves_the_terminal_while_it_is_stopped(cluster: Cluster) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (200, 120))
    before = termios.tcgetattr(theirs)
    process = top_on(theirs, cluster, "1000", sys.executable, "-c", _SHELL)  # so nothing is shown by itself
    try:
        read_until(ours, b"by connections")
        for _ in range(2):
            os.write(ours, b"\x1a")
            assert b"\x1b[?1049l" in read_until(ours, b"stopped")
            assert termios.tcgetattr(theirs) == before
            os.write(ours, b"\n")
            assert b"\x1b[?1049h" in read_until(ours, b"by connections")
        os.write(ours, b"q")
        assert process.wait(timeout=10) == 0
    finally:
        process.kill()
        process.wait()
    assert termios.tcgetattr(theirs) == before
    os.close(ours)
    os.close(theirs)


def top_on(terminal: int, cluster: Cluster, interval: str, *by: str) -> subprocess.Popen[bytes]:
    """On the node, started ``by`` another command."""
    command = ["nsenter", f"--net={cluster.lab.node.namespace.path}", "--", sys.executable, "-m", "pyproxy", "top"]
    return subprocess.Popen(
        [*by, *command, "--interval", interval],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")},
        start_new_session=True,
        preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # its terminal, so that Ctrl-C reaches it
    )


def read_until(terminal: int, text: bytes) -> bytes:
    said, end = b"", time.monotonic() + 10
    while text not in said:
        assert time.monotonic() < end, said[-4000:]
        assert select.select([terminal], [], [], 10)[0], said[-4000:]
        said += os.read(terminal, 1 << 16)
    return said


def test_top_says_what_to_do_where_nothing_is_counted() -> None:
    with Lab() as lab:
        done = pyproxy(lab, "top", "--once")
    assert done.returncode == 1
    assert is_one_sentence(done.stderr)
    assert "pyproxy run --mode ebpf" in done.stderr


def test_top_says_that_it_takes_root(cluster: Cluster) -> None:
    done = pyproxy(cluster.lab, "top", "--once", inside=["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"])
    assert done.returncode == 1
    assert is_one_sentence(done.stderr)
    assert "run as root" in done.stderr
