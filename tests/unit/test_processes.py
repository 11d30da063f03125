"""What the processes of a proxy take, with real processes."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bench.processes import Processes

_MIB = 64
_PARENT = (
    "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1]]); print('done', flush=True); input()"
)
_BURN = "import time\nwhile time.process_time() < 0.3: pass"
_HOLD = f"data = bytearray(b'x' * ({_MIB} << 20)); print('held', flush=True); input()"
_FREE = f"data = bytearray(b'x' * ({_MIB} << 20)); del data; print('freed', flush=True); input()"
_FOR_EVER = "while True: pass"


@contextmanager
def _running(child: str) -> Iterator[tuple["subprocess.Popen[bytes]", Processes]]:
    """A process whose child runs that; what they say comes by a pipe, and a line to it lets them go on."""
    command = [sys.executable, "-c", _PARENT, child]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, process_group=0)
    try:
        with Processes(process.pid) as processes:
            yield process, processes
    finally:
        subprocess.run(["/usr/bin/kill", "-9", "--", f"-{process.pid}"], check=False)
        process.communicate()


def _said(process: "subprocess.Popen[bytes]") -> bytes:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_cpu_of_children_that_have_ended_counts() -> None:
    with _running(_BURN) as (process, processes):
        assert _said(process) == b"done"
        assert processes.cpu_s() >= 0.3


def test_memory_of_children_counts_and_their_peak_outlives_them() -> None:
    with _running(_HOLD) as (process, processes):
        assert _said(process) == b"held"
        processes.forget_peak()  # it may have been seen while it still grew
        while processes._peak_pages == 0:  # the watcher has not looked yet
            pass
        assert processes.memory().proportional > _MIB
        assert processes.memory().resident >= processes.memory().proportional
        assert processes.peak_mib() > _MIB
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert _said(process) == b"done"
        assert processes.memory().resident < _MIB < processes.peak_mib()
        processes.forget_peak()
        assert processes.peak_mib() < _MIB


def test_a_peak_that_nobody_saw_is_told_all_the_same_until_it_is_forgotten() -> None:
    with _running(_FREE) as (process, processes):
        assert _said(process) == b"freed"
        assert processes.memory().resident < _MIB < processes.peak_mib()
        processes.forget_peak()
        assert processes.peak_mib() < _MIB


def test_who_sleeps_is_at_rest_and_who_works_is_not() -> None:
    with _running("") as (process, processes):
        assert _said(process) == b"done"
        processes.wait_for_rest(patience_s=60)
    with _running(_FOR_EVER) as (_, processes), pytest.raises(TimeoutError):
        processes.wait_for_rest(patience_s=0)


def test_who_has_ended_takes_nothing() -> None:
    with _running("") as (process, processes):
        process.kill()
        process.wait()
        assert (processes.cpu_s(), processes.memory()) == (0, (0, 0))
