"""What goes wrong between this process and the kernel, said to whoever runs it."""

from collections.abc import Iterator
from contextlib import contextmanager


class ModeError(Exception):
    """The kernel did not take what a mode wrote. The message is one sentence for the operator."""


class Lacking(ModeError):
    """The kernel has no such part, and so nothing of anybody's in it."""


class InUse(ModeError):
    """Open connections need what is left; it can be asked for again later."""


@contextmanager
def as_mode_error(what: str) -> Iterator[None]:
    """An OSError inside is a ModeError: ``what`` and the reason."""
    try:
        yield
    except OSError as error:
        raise ModeError(f"{what}: {error.strerror or error}") from error
