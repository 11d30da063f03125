"""The runner for other kernels: what a command says and how it ends comes out, and nothing else, nor stays behind."""

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import cache_from_source
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

_RUN = [sys.executable, "-m", "tests.kernels", "uml"]
_CHECKOUT = Path(__file__).parents[2]


def guest(*command: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*_RUN, *options, "--", *command], capture_output=True, text=True, check=False)


def traces() -> set[str]:
    """Processes whose command line has the folder of a guest, and such folders."""
    processes = {_text(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return {line for line in processes if "PYPROXY_GUEST" in line} | set(
        map(str, Path("/var/tmp").glob("pyproxy-guest-*"))
    )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it has just ended
        return ""


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the guest sees: it has a /tmp of its own."""
    with TemporaryDirectory(prefix="pyproxy-test-", dir="/var/tmp") as folder:
        yield Path(folder)


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
    """From another kernel, in this checkout, with IPVS, as root."""
    made, here = tmp_path / "made" / "file", tmp_path / "elsewhere" / "file"
    script = (
        f"uname -r; pwd; id -u; grep -c . /proc/net/ip_vs; mkdir -p {made.parent} && echo inside | tee {made} {made}2; "
        "echo wrong >&2; exit 7"
    )
    wanted = ("--bring", f"{made}={here}", "--bring", f"{made}2", "--bring", "/not/there")
    done = guest("bash", "-c", script, options=wanted)
    release, folder, user, lines, inside, error = done.stdout.splitlines()
    assert done.returncode == 7
    assert release != Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert (folder, user, int(lines) > 0, inside, error) == (str(_CHECKOUT), "0", True, "inside", "wrong")
    assert done.stderr == ""
    assert (here.read_text(), Path(f"{made}2").read_text()) == ("inside\n", "inside\n")
    assert not made.exists()


def test_nothing_else_of_the_machine_changes(place: Path) -> None:
    """The guest is root on the machine's own files, and takes its own copy of each that it changes."""
    kept, emptied = place / "kept", place / "emptied"
    kept.write_text("outside\n")
    emptied.write_text("outside\n")
    script = f"cat {kept}; rm {kept}; echo > {emptied}; echo inside > {place}/new; chmod 0 {place}; ls {place}"
    done = guest("bash", "-c", script)
    assert done.stdout.split() == ["outside", "emptied", "new"]
    assert (kept.read_text(), emptied.read_text()) == ("outside\n", "outside\n")
    assert {path.name for path in place.iterdir()} == {"kept", "emptied"}
    assert place.stat().st_mode & 0o777 == 0o700


def test_python_of_the_checkout_is_compiled_before_and_not_at_each_start_inside() -> None:
    compiled = Path(cache_from_source(str(_CHECKOUT / "pyproxy" / "duration.py")))
    compiled.unlink(missing_ok=True)
    assert guest("true").returncode == 0
    assert compiled.exists()


def test_a_command_that_is_not_there_is_named() -> None:
    done = guest("no-such-command")
    assert done.returncode == 127
    assert "no-such-command: not found" in done.stdout or "no-such-command: No such file" in done.stdout


def test_what_a_command_leaves_behind_is_reaped_and_holds_nobody_up() -> None:
    """An orphan that ends becomes no zombie; one that goes on, with the output in its hands, is ended."""
    script = "(true &) ; sleep 1; grep -h State: /proc/[0-9]*/status | grep -c zombie; sleep 1000 & exit 3"
    done = guest("bash", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (3, "0\n", "")


def test_one_that_takes_too_long_is_ended() -> None:
    done = guest("bash", "-c", "echo begun; sleep 1000", options=("--timeout", "8"))
    assert done.returncode == 124
    assert done.stdout in ("begun\n", "")  # on a busy machine it may not have come so far
    assert done.stderr == "the guest took more than 8 s and was ended\n"


def test_a_kernel_that_dies_is_told_from_a_command_that_fails() -> None:
    done = guest("bash", "-c", "echo c > /proc/sysrq-trigger; sleep 1000")
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr.startswith("the guest died; its console ends:\n")
    assert "sysrq triggered crash" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_an_interrupt_cleans_up(number: signal.Signals) -> None:
    """Output is seen as it is written: it is what tells that the guest runs."""
    assert _interrupted(number) == 130


def test_a_runner_that_is_killed_takes_its_guest_along() -> None:
    """All but the folder, which nobody is left to remove."""
    before = traces()
    assert _interrupted(signal.SIGKILL) == -signal.SIGKILL
    for folder in [path for path in traces() - before if path.startswith("/")]:
        shutil.rmtree(folder)


def _interrupted(number: signal.Signals) -> int:
    command = [*_RUN, "--", "bash", "-c", "echo begun; sleep 1000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(number)
        return process.wait(timeout=60)


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
