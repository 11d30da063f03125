"""The runner for other kernels: what a command says and how it ends comes out, and nothing else, nor stays behind."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_RUN = [sys.executable, "-m", "tests.kernels", "uml"]
_CHECKOUT = Path(__file__).parents[2]


def guest(*command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_RUN, *options, "--", *command], capture_output=True, text=True, check=False)


def traces() -> set[str]:
    """Processes, by what they were started with, and folders of guests."""
    processes = {_text(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return {line for line in processes if "PYPROXY_GUEST" in line} | set(
        map(str, Path("/var/tmp").glob("pyproxy-guest-*"))
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just ended
        return ""


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    """There may be guests of others."""
    before = traces()
    yield
    until = time.monotonic() + 10
    while traces() - before and time.monotonic() < until:  # what is killed ends in a moment
        time.sleep(0.05)
    assert traces() - before == set()


def test_output_and_status_come_out_and_files_if_asked_for(tmp_path: Path) -> None:
    """From another kernel, in this checkout, with IPVS, as root; what is not asked for stays inside."""
    brought, kept = tmp_path / "brought" / "file", tmp_path / "kept"
    script = (
        f"uname -r; pwd; id -u; grep -c . /proc/net/ip_vs; mkdir -p {brought.parent} && echo inside > {brought}; "
        f"echo inside > {kept}; rm -f README.md; echo wrong >&2; exit 7"
    )
    # In /tmp the guest has a file system of its own; tmp_path must be there for the test to show anything.
    done = guest("bash", "-c", script, options=("--bring", str(brought)))
    release, folder, user, lines, error = done.stdout.splitlines()
    assert done.returncode == 7
    assert release != Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert (folder, user, int(lines) > 0, error) == (str(_CHECKOUT), "0", True, "wrong")
    assert done.stderr == ""
    assert brought.read_text() == "inside\n"
    assert not kept.exists()
    assert (_CHECKOUT / "README.md").exists()


def test_a_command_that_is_not_there_is_named() -> None:
    done = guest("no-such-command")
    assert done.returncode == 127
    assert "no-such-command: not found" in done.stdout or "no-such-command: No such file" in done.stdout


def test_one_that_takes_too_long_is_ended() -> None:
    done = guest("bash", "-c", "echo begun; sleep 1000", options=("--timeout", "15"))
    assert done.returncode == 124
    assert done.stdout == "begun\nthe guest took more than 15 s and was ended\n"


def test_a_kernel_that_dies_is_told_from_a_command_that_fails() -> None:
    done = guest("bash", "-c", "echo c > /proc/sysrq-trigger; sleep 1000")
    assert done.returncode == 125
    assert done.stdout.startswith("the guest died; its console ends:\n")
    assert "sysrq triggered crash" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupt_cleans_up(number: signal.Signals) -> None:
    """Output is seen as it is written: it is what tells that the guest runs."""
    command = [*_RUN, "--", "bash", "-c", "echo begun; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == 130


def test_without_the_package_it_says_which() -> None:
    done = subprocess.run(
        ["/usr/bin/env", "PATH=/nowhere", *_RUN, "--", "true"],
        capture_output=True,
        text=True,
        check=False,
        cwd=_CHECKOUT,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "install the Debian packages user-mode-linux and kmod" in done.stderr
    assert len(done.stderr.splitlines()) == 1
