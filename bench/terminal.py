"""Where tables are printed."""

from rich.console import Console

_WIDTH = 160
"""In columns: what no table needs to be folded for."""


def console(*, stderr: bool = False) -> Console:
    """As wide as the terminal, or where there is none to fit, as tables take."""
    found = Console(highlight=False, stderr=stderr)
    if not found.file.isatty():  # is_terminal is what FORCE_COLOR says
        found.width = _WIDTH
    return found
