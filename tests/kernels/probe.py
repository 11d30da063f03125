"""What the kernel offers in which this runs: `python -m tests.kernels.probe FILE` writes it there as JSON."""

import json
import platform
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.contender import lacks
from pyproxy.kernel.iptables import Flavour
from pyproxy.modes import load


@dataclass(frozen=True, slots=True)
class Variant:
    """A way in which a mode can be run."""

    mode: str
    flavour: str | None
    """Of iptables, if the mode speaks to that."""
    lacks: str | None
    """Why it can't be run in this kernel."""

    @property
    def name(self) -> str:
        return f"{self.mode} ({self.flavour})" if self.flavour else self.mode

    @property
    def options(self) -> list[str]:
        """Of the conformance suite."""
        return ["--mode", self.mode, *(["--iptables", self.flavour] if self.flavour else [])]


@dataclass(frozen=True, slots=True)
class Offer:
    release: str
    variants: list[Variant]


def offer() -> Offer:
    command = [sys.executable, "-m", "pyproxy", "modes", "--json"]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    lacking = {flavour: lacks(flavour) for flavour in Flavour}
    variants = []
    for mode in told:
        name, reason = mode["mode"], mode["reason"]
        if hasattr(type(load(name)), "flavour"):
            variants += [Variant(name, flavour.value, reason or lacking[flavour]) for flavour in Flavour]
        else:
            variants.append(Variant(name, None, reason))
    return Offer(platform.release(), variants)


def read(path: Path) -> Offer:
    content = json.loads(path.read_text())
    return Offer(content["release"], [Variant(**variant) for variant in content["variants"]])


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(asdict(offer()), indent=1))
