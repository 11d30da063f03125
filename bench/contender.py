"""What is measured against what: a mode, and where it has them, its flavours."""

from dataclasses import dataclass

_FLAVOURS = {"iptables": ("legacy", "nft")}


@dataclass(frozen=True, slots=True)
class Contender:
    mode: str
    iptables: str | None = None
    """The flavour that the node says it uses."""

    def __str__(self) -> str:
        return f"{self.mode} ({self.iptables})" if self.iptables else self.mode


def contenders(modes: list[str]) -> list[Contender]:
    """Each of those modes in each of its flavours."""
    return [Contender(mode, flavour) for mode in modes for flavour in _FLAVOURS.get(mode, (None,))]
