"""Taking over from a predecessor in another mode: what it left goes as soon as ours serves.

Both forward while both are there, the same Services to the same endpoints, so nothing is lost on the way: a connection
is translated by whichever comes first, and once it is, conntrack translates it.
"""

import logging
import threading
import time

from pyproxy import modes
from pyproxy.observer import Observer, Sync
from pyproxy.table import ModeError

log = logging.getLogger("pyproxy")

_TRY_AGAIN_S = 10.0
_TRIES = 3


class Takeover(Observer):
    def __init__(self, mode: str) -> None:
        """``mode``: the one that runs."""
        self._mode = mode
        self._begun = False

    def synced(self, sync: Sync) -> None:  # noqa: ARG002
        """After the first one; in a thread, since nobody knows how much there is to remove."""
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._run, name="takeover", daemon=True).start()

    def _run(self) -> None:
        for name in modes.names():
            if name != self._mode:
                _clean_up(name)


def _clean_up(name: str) -> None:
    for _ in range(_TRIES):
        try:
            for what in modes.load(name).cleanup():
                log.info("took over", extra={"from": f"{name} mode", "removed": what})
            return
        except ModeError as error:
            reason = error
            time.sleep(_TRY_AGAIN_S)
    log.warning(
        "what another mode left can't be looked for; see pyproxy cleanup", extra={"mode": name, "reason": reason}
    )
