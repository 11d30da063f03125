"""Taking over from a predecessor in another mode: what it left goes as soon as ours serves.

Both forward while both are there, the same Services to the same endpoints, so nothing is lost on the way: a connection
is translated by whichever comes first, and once it is, conntrack translates it.
"""

import logging
import threading
import time
from functools import partial

from pyproxy import modes
from pyproxy.observer import Observer, Sync
from pyproxy.table import InUse, Mode

log = logging.getLogger("pyproxy")

_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S, _LONGEST_WAIT_FOR_CONNECTIONS_S = 600.0, 30.0


class Takeover(Observer):
    def __init__(self, mode: Mode) -> None:
        """``mode``: the one that runs."""
        self._mode = mode
        self._begun = False

    def synced(self, sync: Sync) -> None:  # noqa: ARG002
        """After the first one; in threads, since nobody knows how much there is to remove."""
        if not self._begun:
            self._begun = True
            for name in modes.names():
                if name != self._mode.name:
                    work, what = partial(_clean_up, name, self._mode), f"takeover from {name}"
                    threading.Thread(target=work, name=what, daemon=True).start()


def _clean_up(name: str, successor: Mode) -> None:
    """However long it takes: what stays may send connections to endpoints that are gone."""
    wait, said = _FIRST_WAIT_S, ""
    while True:
        try:
            for what in modes.load(name).retire(successor):
                log.info("took over", extra={"from": f"{name} mode", "removed": what})
            return
        except InUse as error:
            log.debug("what another mode left is still in use", extra={"mode": name, "reason": error})
            longest = _LONGEST_WAIT_FOR_CONNECTIONS_S
        except Exception as error:  # a mode that nobody runs, maybe a stranger's, must not end this process
            if str(error) != said:  # once, for as long as it stays the same: this is tried for ever
                log.warning("what another mode left can't be removed", extra={"mode": name, "reason": error})
            said, longest = str(error), _LONGEST_WAIT_S
        time.sleep(wait)
        wait = min(2 * wait, longest)
