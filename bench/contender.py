"""Who competes: what serves the Services of the lab's node, and how it is started there."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.feed import Feed, Manifests, ViaApi
from bench.lab import Lab
from bench.subject import pyproxy_run
from pyproxy import modes
from pyproxy.kernel.iptables import Flavour
from pyproxy.kernel.iptables_dialect import DIALECTS

_IN_BOTH = "iptables"
"""The mode whose cost depends on the flavour."""


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
        return f"{self.mode} ({self.iptables})" if self.mode == _IN_BOTH and self.iptables else self.mode

    @property
    def relays(self) -> bool:
        return modes.load(self.mode).ends_connections

    def feed(self, lab: Lab, folder: Path) -> Feed:
        return ViaApi(lab, folder) if self.via_api else Manifests(folder)

    def command(self, lab: Lab, feed: Feed, *flags: str | Path) -> Sequence[str]:
        return pyproxy_run(self.mode, *lab.flags, *feed.flags, *flags)


def contenders(names: Sequence[str], *, via_api: bool = False) -> tuple[list[Contender], dict[str, str]]:
    """Each of those modes, iptables in each of its flavours; and those that this kernel can't run, and why."""
    found: list[Contender] = []
    skipped: dict[str, str] = {}
    lacking = {flavour.value: lacks(flavour) for flavour in Flavour}
    working = [flavour for flavour, why in lacking.items() if why is None]
    for name in names:
        mode = modes.load(name)
        flavours: Sequence[str | None] = working if hasattr(type(mode), "flavour") else [None]
        if why := mode.probe():
            skipped[name] = why
        elif name == _IN_BOTH:
            found += [Contender(name, flavour, via_api) for flavour in flavours]
            skipped |= {str(Contender(name, flavour)): why for flavour, why in lacking.items() if why}
        else:
            found += [Contender(name, flavour, via_api) for flavour in flavours[:1]]
    return found, skipped


def lacks(flavour: Flavour) -> str | None:
    """Why the kernel can't be spoken to in it: some only notice when they write, here in a namespace of its own."""
    for dialect in DIALECTS.values():
        program = f"{dialect.program}-{flavour.value}"
        trial = ["unshare", "--net", program, "-t", "nat", "-N", "PYPROXY-TRIAL"]
        try:
            done = subprocess.run(trial, check=False, capture_output=True, text=True)
        except FileNotFoundError as error:
            return f"there is no program {error.filename}"
        if done.returncode:
            return f"{program} fails: {' '.join(done.stderr.split())}"
    return None
