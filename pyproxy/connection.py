"""How a source stands with the API server, for those who look at it from outside."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Connection:
    """How one reflector stands with the server; read by others while it changes."""

    kind: str
    state: str = "connecting"
    since: float = field(default_factory=time.time)
    error: str = ""
    lists: int = 0
    watches: int = 0

    def now(self, state: str, error: str = "") -> None:
        if state != self.state:
            self.since = time.time()
        self.state, self.error = state, error
