"""What is asked and answered about a packet that is sent somewhere: the words of `pyproxy explain`, and its JSON."""

from dataclasses import dataclass
from enum import StrEnum

import msgspec

from pyproxy.address import IP, parse_socket, shorten
from pyproxy.table import Transport


@dataclass(frozen=True, slots=True)
class Destination:
    address: IP
    port: int
    transport: Transport

    def __str__(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"{host}:{self.port}/{self.transport}"


def parse(text: str) -> Destination:
    """``ADDRESS:PORT[/PROTOCOL]``, TCP if it names none. Raises ValueError with a sentence that quotes ``text``."""
    where, slash, protocol = text.partition("/")
    try:
        address, port = parse_socket(where)
        if not port:
            raise ValueError
        return Destination(address, port, Transport(protocol.lower() if slash else "tcp"))
    except ValueError:
        reason = "is not a destination such as 10.96.0.10:53/udp or [fd00:10:96::a]:443"
        raise ValueError(f"{shorten(text)} {reason}") from None


class Asker(StrEnum):
    """Whose packet it is, as far as that makes a difference."""

    POD = "pod"
    """On this node."""
    NODE = "node"
    """This one."""
    OUTSIDE = "outside"
    """Everybody else."""


class Verdict(StrEnum):
    TRANSLATED = "translated"
    REFUSED = "refused"
    DROPPED = "dropped"
    NOT_HANDLED = "not handled"


class Source(StrEnum):
    """What the endpoint sees as the sender."""

    KEPT = "kept"
    MASQUERADED = "masqueraded"
    NODE = "a node address"
    """Which it was from the beginning."""


class Endpoint(msgspec.Struct, frozen=True):
    address: str
    port: int
    local: bool
    """Whether it is on this node."""


class Outcome(msgspec.Struct, frozen=True):
    """What one asker meets."""

    asker: Asker
    verdict: Verdict
    why: str
    source: Source | None = None
    endpoints: tuple[Endpoint, ...] = ()


class Explanation(msgspec.Struct, frozen=True, rename="camel"):
    destination: str
    mode: str
    summary: str
    """What the destination is."""
    outcomes: tuple[Outcome, ...]
    """One of each asker."""
    route: str | None = None
    """What serves it: namespace, name and port of a service, and the family."""
    affinity_seconds: int | None = None
    allowed_sources: tuple[str, ...] | None = None
    """Who is let in; None is everyone."""
    notes: tuple[str, ...] = ()
    """Why not, and what else one should know."""

    @property
    def is_handled(self) -> bool:
        """Whether anybody who asks reaches an endpoint."""
        return any(outcome.verdict is Verdict.TRANSLATED for outcome in self.outcomes)
