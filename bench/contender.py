"""Who competes: what serves the Services of the lab's node, and how it is started there."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.feed import Feed, Manifests, ViaApi
from bench.lab import Lab
from bench.subject import pyproxy_run
from pyproxy import modes

_FLAVOURS = {"iptables": ("legacy", "nft")}


class Proxy(Protocol):
    """A Contender, or a Peer; its str() names it."""

    @property
    def iptables(self) -> str | None:
        """The flavour that the node says it uses."""

    @property
    def via_api(self) -> bool:
        """Gets its objects from the API server's stand-in, not from files."""

    @property
    def relays(self) -> bool:
        """Whether connect() ends at this node already, before any endpoint is asked."""

    def feed(self, lab: Lab, folder: Path) -> Feed:
        """Where its objects are put; ``folder`` is empty."""

    def command(self, lab: Lab, feed: Feed, *flags: str | Path) -> Sequence[str]:
        """Of one process, to run on the lab's node. ``flags`` are for pyproxy alone."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A mode of this pyproxy. See Proxy."""

    mode: str
    iptables: str | None = None
    via_api: bool = False

    def __str__(self) -> str:
        return f"{self.mode} ({self.iptables})" if self.iptables else self.mode

    @property
    def relays(self) -> bool:
        return modes.load(self.mode).ends_connections

    def feed(self, lab: Lab, folder: Path) -> Feed:
        return ViaApi(lab, folder) if self.via_api else Manifests(folder)

    def command(self, lab: Lab, feed: Feed, *flags: str | Path) -> Sequence[str]:
        return pyproxy_run(self.mode, *lab.flags, *feed.flags, *flags)


def contenders(names: list[str], *, via_api: bool = False) -> list[Contender]:
    """Each of those modes in each of its flavours."""
    return [Contender(mode, flavour, via_api) for mode in names for flavour in _FLAVOURS.get(mode, (None,))]
