"""The lab leaves nothing behind, also when it is interrupted, and two of them do not meet."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyroute2 import netns

from bench.ask import ask
from bench.lab import PREFIX, SERVER_PORT, Lab


def _namespaces(pid: int) -> list[str]:
    return [name for name in netns.listnetns() if name.startswith(f"{PREFIX}{pid}-")]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
@pytest.mark.parametrize(
    "command",
    [["demo"], ["bench", "sync", "--services", "10"], ["bench", "latency", "--services", "10"]],
    ids=["demo", "sync", "latency"],
)
def test_an_interrupted_command_leaves_nothing_behind(number: signal.Signals, command: list[str]) -> None:
    process = subprocess.Popen([sys.executable, "-m", "pyproxy", *command], stdout=subprocess.DEVNULL)
    while not any(name.endswith("pod-4") for name in _namespaces(process.pid)):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(20) == 130
    assert _namespaces(process.pid) == []
    assert not [path for path in Path("/proc").glob("[0-9]*/cmdline") if f"{PREFIX}{process.pid}-" in _text(path)]


def test_an_interrupt_in_the_midst_of_a_finalizer_is_not_lost() -> None:
    program = """
import sys, time
from bench import interrupt
class Finalized:
    def __del__(self):
        raise KeyboardInterrupt
interrupt.install()
try:
    Finalized()
    time.sleep(10)
except KeyboardInterrupt:
    sys.exit(130)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 130


def test_an_interrupt_that_a_library_would_swallow_is_not_lost() -> None:
    program = """
import os, signal, sys
from bench import interrupt
interrupt.install()
try:
    with interrupt.held():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except BaseException:
            pass
except KeyboardInterrupt:
    sys.exit(130)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 130


def test_a_killed_run_is_swept_up_by_the_next() -> None:
    process = subprocess.Popen([sys.executable, "-m", "pyproxy", "demo"], stdout=subprocess.DEVNULL)
    while len(_namespaces(process.pid)) < 5:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert _namespaces(process.pid) != []
    with Lab():
        assert _namespaces(process.pid) == []
        assert _namespaces(os.getpid()) != []


def test_two_labs_at_once_do_not_meet() -> None:
    with Lab() as one, Lab() as other:
        other.pods["pod-2"].namespace.sysctl(ipv4__icmp_echo_ignore_all=1)
        with other.pods["pod-2"].namespace.links() as links:
            links.link("set", index=links.link_lookup(ifname="eth0")[0], state="down")
        assert ask(one.client, one.pods["pod-2"].ipv4, SERVER_PORT).pod == "pod-2"
        with pytest.raises(OSError, match=r"timed out|unreachable"):
            ask(other.client, other.pods["pod-2"].ipv4, SERVER_PORT, timeout=0.3)


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
