"""How full the maps are, said before one of them is."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping

from ebpf import layout
from ebpf.syscall import MapSpec
from pyproxy.table import ModeError

log = logging.getLogger("pyproxy")

FLAG = "--ebpf-map-size"
_NEARLY, _EASED = 0.9, 0.8


def specs_of(sizes: Iterable[tuple[str, int]]) -> dict[str, MapSpec]:
    """Raises ModeError."""
    for name, _ in sizes:
        if name not in layout.SIZES:
            raise ModeError(f"no map is called {name!r}; {FLAG} knows {', '.join(layout.SIZES)}")
    return layout.resized(dict(sizes))


def check(specs: Mapping[str, MapSpec], entries: Mapping[str, int], leaving: Mapping[str, int]) -> None:
    """``entries``: that maps are to hold in the end; ``leaving``: that go last, and need room until then.

    Raises ModeError, which says what to do, before anything is written.
    """
    for name, count in entries.items():
        size = specs[name].entries
        if count + leaving.get(name, 0) > size:
            until_then = "" if count > size else f", {count + leaving[name]} while it changes"
            raise ModeError(
                f"the map {name} holds {size} entries, and it takes {count}{until_then}; nothing was changed; "
                f"{enlarge(name, count + leaving.get(name, 0))}"
            )


def capacity(specs: Mapping[str, MapSpec], name: str) -> int:
    """Some counters are nobody's."""
    return specs[name].entries - (layout.COUNTER_FIRST if name in ("names", "counters") else 0)


class Pressure:
    """Tells of maps that are nearly full, each once, and again if it had eased in between."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()

    def note(self, specs: Mapping[str, MapSpec], entries: Mapping[str, int]) -> None:
        for name, count in entries.items():
            size, of = capacity(specs, name), "counters" if name == "names" else name
            if count < _EASED * size:
                del self._told[of]
            elif count >= _NEARLY * size and not self._told[of]:
                self._told[of] = 1
                extra = {"map": of, "entries": count, "size": size, "enlarge_by": f"{FLAG} {of}={_ample(count)}"}
                log.warning("a map is nearly full", extra=extra)


def enlarge(name: str, count: int) -> str:
    """What to do about a map that is to hold ``count``."""
    return f"enlarge it: {FLAG} {name}={_ample(count)}"


def _ample(count: int) -> int:
    """A power of two, twice as many or more."""
    return int(1 << (2 * count - 1).bit_length())
