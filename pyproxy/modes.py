"""The modes that are installed, found through the entry-point group ``pyproxy.modes``."""

from importlib.metadata import entry_points

from pyproxy.table import Mode

GROUP = "pyproxy.modes"


class UnknownMode(Exception):
    """A mode that is not installed. The message is for the user."""


def names() -> list[str]:
    return sorted(entry.name for entry in entry_points(group=GROUP))


def load(name: str) -> Mode:
    """Raises UnknownMode."""
    for entry in entry_points(group=GROUP, name=name):
        mode: Mode = entry.load()()
        return mode
    raise UnknownMode(f"there is no mode {name!r}; installed: {', '.join(names())}")
