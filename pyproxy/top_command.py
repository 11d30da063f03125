"""`pyproxy top`: reads what the kernel counted, again and again, and shows it; the proxy itself is not asked."""

import argparse
import json
import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from itertools import islice
from typing import Self

from pyproxy import modes
from pyproxy.table import Counts
from pyproxy.top import SORTS, Reading, as_json, lines, rows

_LEAST_S, _MOST_S = 0.1, 3600.0
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"  # another screen, no cursor; and back
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"
_BOLD, _PLAIN = "\x1b[1m", "\x1b[m"
_KEYS = {name[0]: name for name in SORTS}
_HELP = ", ".join(f"{key} {name}" for key, name in _KEYS.items())


class NothingCounted(Exception):
    """There is nothing to show. The message is for the user."""


class _Screen:
    """One of our own, which leaves the terminal as it was: in the end, also after SIGTERM, and while it is stopped by
    Ctrl-Z, after which it is there again as it was."""

    def __init__(self) -> None:
        self._before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
        self._shown = ""

    def __enter__(self) -> Self:
        # A signal that comes right before a wait would only be seen after it.
        self._wakes, self._woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._woken_before = signal.set_wakeup_fd(self._woken, warn_on_full_buffer=False)
        self._terminates = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        self._stops = signal.signal(signal.SIGTSTP, self._stop)
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTSTP, self._stops)
        self._close()
        signal.signal(signal.SIGTERM, self._terminates)
        signal.set_wakeup_fd(self._woken_before)
        os.close(self._wakes)
        os.close(self._woken)

    def pressed(self, seconds: float) -> str:
        """The key, within so long; empty if none is, or a signal came."""
        keys = [sys.stdin] if self._before is not None else []
        ready, _, _ = select.select([*keys, self._wakes], [], [], max(0.0, seconds))
        if self._wakes in ready:
            os.read(self._wakes, 64)
        if sys.stdin not in ready:
            return ""
        return os.read(sys.stdin.fileno(), 1).decode(errors="replace") or "q"  # at its end nobody can press anything

    def show(self, text: str) -> None:
        self._shown = _HOME + text + _REST_OF_SCREEN
        _print(self._shown)

    def _open(self) -> None:
        if self._before is not None:
            tty.setcbreak(sys.stdin)
        _print(_ENTER + self._shown)

    def _close(self) -> None:
        _print(_LEAVE)
        if self._before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._before)

    def _stop(self, *_: object) -> None:
        self._close()
        signal.signal(signal.SIGTSTP, self._stops)
        os.kill(os.getpid(), signal.SIGTSTP)  # and here it goes on, by SIGCONT
        signal.signal(signal.SIGTSTP, self._stop)
        self._open()


def add_to(top: argparse.ArgumentParser) -> None:
    top.add_argument("--sort", choices=tuple(SORTS), default="connections",
                     help="failed is refused, dropped and lost together (default: connections)")  # fmt: skip
    top.add_argument("--interval", type=_interval, default=2.0, metavar="SECONDS",
                     help="between two readings (default: 2)")  # fmt: skip
    top.add_argument("--once", action="store_true", help="end after the first interval")
    top.add_argument("--json", action="store_true", help="print JSON, a line for each interval, instead of a table")


def run(options: argparse.Namespace) -> int:
    """Show what goes through each Service of this node, as eBPF programs count it: connections, packets and bytes a
    second and in all, who was refused or dropped. On a terminal a live table (keys: c, p, i, o, f, n sort, q ends),
    elsewhere a table for each interval. Connections of this node's own sockets and pods are counted as they are made;
    their packets, which no program touches, are not. Takes root, and mode ebpf."""
    mode, first = _first_reading()
    if options.json or options.once or not sys.stdout.isatty():
        for before, now in _readings(mode, first, options.interval):
            found = rows(before, now, options.sort)
            if options.json:
                print(json.dumps({"seconds": round(now.at - before.at, 3), "services": as_json(found)}), flush=True)
            else:
                print("\n".join(lines(found, shutil.get_terminal_size((160, 24)).columns)), end="\n\n", flush=True)
            if options.once:
                break
    else:
        with _Screen() as screen:
            _live(mode, first, options.sort, options.interval, screen)
    return 0


def _first_reading() -> tuple[Counts, Reading]:
    """Of the mode that counts. Raises NothingCounted, ModeError."""
    for mode in map(modes.load, modes.names()):
        if isinstance(mode, Counts):
            traffic = mode.traffic()
            if traffic is not None:
                return mode, Reading(time.monotonic(), traffic)
    raise NothingCounted(
        "nothing is counted on this node: only mode ebpf counts, and none of this version has run here. Start it by "
        "`pyproxy run --mode ebpf`; if it runs in a pod, call `pyproxy top` there"
    )


def _read(mode: Counts) -> Reading:
    return Reading(time.monotonic(), mode.traffic() or {})  # it may just be replaced by another version


def _readings(mode: Counts, first: Reading, interval: float) -> Iterator[tuple[Reading, Reading]]:
    before = first
    while True:
        time.sleep(interval)
        now = _read(mode)
        yield before, now
        before = now


def _live(mode: Counts, first: Reading, sort: str, interval: float, screen: _Screen) -> None:
    """Until q is pressed, or Ctrl-C."""
    before, now = None, first
    while True:
        size = shutil.get_terminal_size()
        title = f"pyproxy top: {len(now.traffic) - (None in now.traffic)} ports of Services, every {interval:g} s, "
        title += f"by {sort} ({_HELP}, q ends)"
        shown = list(islice(lines(rows(before, now, sort), size.columns), size.lines - 2))
        styled = [f"{title[: size.columns]}", f"{_BOLD}{shown[0]}{_PLAIN}", *shown[1:]]
        screen.show("\n".join(line + _REST_OF_LINE for line in styled))
        key = screen.pressed(now.at + interval - time.monotonic())
        if key == "q":
            return
        sort = _KEYS.get(key, sort)
        if time.monotonic() >= now.at + interval:
            before, now = now, _read(mode)


def _print(text: str) -> None:
    """All of it, before Ctrl-Z has more to print."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTSTP])
    print(text, end="", flush=True)
    signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not _LEAST_S <= seconds <= _MOST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {_LEAST_S:g} to {_MOST_S:g}")
    return seconds
