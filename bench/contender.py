"""Who competes: what serves the Services of the lab's node, and how it is started there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.feed import Feed, Manifests, ViaApi
from bench.lab import Lab
from bench.subject import pyproxy_run
from pyproxy import modes

_FLAVOURS = {"iptables": ("legacy", "nft")}


@dataclass(frozen=True, slots=True)
class Contender:
    """A mode of this pyproxy."""

    mode: str
    iptables: str | None = None
    """The flavour that the node says it uses."""
    via_api: bool = False
    """Gets its objects from the API server's stand-in, not from files."""

    def __str__(self) -> str:
        return f"{self.mode} ({self.iptables})" if self.iptables else self.mode

    @property
    def relays(self) -> bool:
        """Whether connect() ends at this node already, before any endpoint is asked."""
        return modes.load(self.mode).ends_connections

    def feed(self, lab: Lab, folder: Path) -> Feed:
        """Where its objects are put; ``folder`` is empty."""
        return ViaApi(lab, folder) if self.via_api else Manifests(folder)

    def command(self, lab: Lab, feed: Feed, *flags: str | Path) -> Sequence[str]:
        """To run on the lab's node. ``flags`` are for pyproxy alone."""
        return pyproxy_run(self.mode, *lab.flags, *feed.flags, *flags)


def contenders(names: list[str]) -> list[Contender]:
    """Each of those modes in each of its flavours."""
    return [Contender(mode, flavour) for mode in names for flavour in _FLAVOURS.get(mode, (None,))]
