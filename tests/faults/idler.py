"""A contender that never gets there."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.contender import Contender
from bench.feed import Feed
from bench.lab import Lab

_PROGRAM = "import time; print('I am idle', flush=True); time.sleep(99)"


class Idler(Contender):
    """Serves nobody."""

    def command(self, lab: Lab, feed: Feed, *flags: str | Path) -> Sequence[str]:
        return [sys.executable, "-c", _PROGRAM]
