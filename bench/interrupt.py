"""Ctrl-C and SIGTERM: they end a command of the lab, which then cleans up, and neither of them gets lost on the way."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType

_holders = 0
_came = False


def install() -> None:
    """From now on both raise KeyboardInterrupt in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, _interrupt)
    sys.unraisablehook = _again


@contextmanager
def held() -> Iterator[None]:
    """What comes meanwhile is raised on leaving: pyroute2 has places that swallow every exception, this one too."""
    global _holders, _came
    if current_thread() is not main_thread():  # no signal is ever handled in another
        yield
        return
    _holders += 1
    try:
        yield
    finally:
        _holders -= 1
        if _came and not _holders:
            _came = False
            raise KeyboardInterrupt


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    global _came
    if _holders:
        _came = True
    else:
        raise KeyboardInterrupt


def _again(lost: "sys.UnraisableHookArgs") -> None:
    """Python drops an interrupt that comes in the midst of a finalizer: let it come once more, after it."""
    if lost.exc_type is KeyboardInterrupt:
        signal.setitimer(signal.ITIMER_REAL, 0.01)
    else:
        sys.__unraisablehook__(lost)
